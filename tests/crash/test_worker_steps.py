"""A worker dies at the k-th instruction of its work, for many k: nothing is lost, doubled or torn.

The pool has one worker. It is stopped, tasks are put into its lane, it takes k instructions, and is killed. The
range of k covers reading the record, claiming, decoding, the user's function, encoding, publishing and stepping on,
several times over. One seed chooses the k: SHMRT_SEED repeats a run, SHMRT_KILL_POINTS=300 looks closer.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path

import pytest
import stepper

import shmrt

SEED = int(os.environ.get("SHMRT_SEED", str(random.SystemRandom().randrange(2**32))))
TASKS = 4
REACH = 24_000  # instructions of about all the tasks
POINTS = int(os.environ.get("SHMRT_KILL_POINTS", "25"))


def work(path: str, number: int, payload: bytes) -> tuple[int, bytes]:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    os.write(fd, bytes([number]))
    os.close(fd)
    return number, payload[::-1]


def one_pid(pool: shmrt.Pool, old: int) -> int:
    """The ready worker that is not the old one; a finished task says that it is there."""
    pid: int = pool.submit(os.getpid).result(60)
    assert pid != old
    return pid


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_kill_at_any_instruction_loses_and_doubles_nothing(attempts: int, tmp_path: Path) -> None:
    """P1 P2 P3. At most one task is ambiguous; with attempts left even that one has its result."""
    reason = stepper.may_trace()
    if reason:
        pytest.skip(reason)
    rng = random.Random(SEED + attempts)
    print(f"SHMRT_SEED={SEED}", file=sys.stderr)
    crashed = finished_early = point = 0
    payload = bytes(range(256)) * 3
    with shmrt.Runtime(), shmrt.Pool(1) as pool:
        view = pool.options(max_attempts=attempts)
        pid = one_pid(pool, 0)
        # A worker that waits for a CPU is taken for one that sleeps and dies early: on a busy machine most of them.
        while point < POINTS or not (finished_early and (crashed or attempts > 1)):
            point += 1
            runs = tmp_path / f"runs-{point}"
            runs.touch()
            futures: list[shmrt.Future] = []
            steps = rng.randrange(1, REACH)

            def submit_all(runs: Path = runs, futures: list[shmrt.Future] = futures) -> None:
                futures.extend(view.submit(work, str(runs), number, payload) for number in range(TASKS))

            stepper.kill_after(pid, steps, submit_all)
            failed = 0
            for number, future in enumerate(futures):
                error = future.exception(60)
                if error is None:
                    assert future.result() == (number, payload[::-1]), (SEED, point, steps)
                else:
                    assert isinstance(error, shmrt.WorkerCrashed), (SEED, point, steps, error)
                    assert error.pid == pid and error.signal == 9
                    failed += 1
            executions = [runs.read_bytes().count(bytes([number])) for number in range(TASKS)]
            if attempts == 1:
                assert failed <= 1, (SEED, point, steps)
                assert max(executions) <= 1, (SEED, point, steps, executions)
                assert sum(executions) >= TASKS - failed
            else:
                assert failed == 0, (SEED, point, steps)
                assert min(executions) >= 1 and sum(executions) <= TASKS + 1, (SEED, point, steps, executions)
            crashed += failed or any(count > 1 for count in executions)
            finished_early += futures[0].attempts == 1 and not failed
            pid = one_pid(pool, pid)
        stats = pool.stats()
    assert stats["pending"] == 0

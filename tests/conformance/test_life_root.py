"""The root is killed: a new one comes, the workers start afresh, every message is accounted for."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path

import pytest

import shmrt

sys.path.insert(0, str(Path(__file__).parent))

SEED = int(os.environ.get("SHMRT_SEED", str(random.SystemRandom().randrange(2**32))))


def square_slowly(number: int) -> int:
    for _ in range(2000):
        number + number
    return number * number


def wait_for_start(pool: shmrt.Pool) -> None:
    pool.submit(abs, -1).result(60)


@pytest.mark.parametrize("attempts", [1, 3])
def test_root_killed_again_and_again_under_load(attempts: int) -> None:
    """P2 P3 P4. With attempts left, or before they began, all give their results; the others say what happened."""
    print(f"SHMRT_SEED={SEED}", file=sys.stderr)
    rng = random.Random(SEED)
    with shmrt.Runtime() as runtime, shmrt.Pool(2) as pool:
        wait_for_start(pool)
        view = pool.options(max_attempts=attempts)
        futures = [view.submit(square_slowly, number) for number in range(3000)]
        killed = []
        for _ in range(6):
            # Kill after some more results, so that the instant lies anywhere in the work.
            futures[rng.randrange(len(futures))].exception(60)
            pid = runtime.pid
            if pid not in killed:
                os.kill(pid, signal.SIGKILL)
                killed.append(pid)
            while runtime.pid == pid:
                os.sched_yield()
        crashed = 0
        for number, future in enumerate(futures):
            error = future.exception(60)
            if error is None:
                assert future.result() == number * number
            else:
                assert attempts == 1 and isinstance(error, shmrt.WorkerCrashed), error
                crashed += 1
        assert crashed <= 2 * len(killed)  # only what ran
        assert len(killed) >= 2
        if attempts == 3:
            assert {future.attempts for future in futures} == {1}  # the root's death costs no attempt
        stats = pool.stats()
        assert stats["completed"] + stats["crashed"] == 3001 and stats["pending"] == 0


def test_everybody_is_killed_at_once() -> None:
    """Root and workers together; what waits goes on, and the pool serves again."""
    with shmrt.Runtime() as runtime, shmrt.Pool(2, max_attempts=2) as pool:
        wait_for_start(pool)
        futures = [pool.submit(square_slowly, number) for number in range(500)]
        pids = [row["pid"] for row in pool._core.workers()]
        for pid in (*pids, runtime.pid):
            os.kill(pid, signal.SIGKILL)
        assert [future.result(60) for future in futures] == [number * number for number in range(500)]


def test_too_many_root_deaths_end_in_an_error_and_not_in_a_hang() -> None:
    """More roots than may die in a minute: futures fail, later calls say why."""
    events: list[str] = []
    down = threading.Event()

    def note(event: tuple[object, ...]) -> None:
        events.append(str(event[0]))
        if event[0] == "root_started":
            os.kill(int(str(event[1])), signal.SIGKILL)

    runtime = shmrt.Runtime(on_event=note)
    runtime.start()
    pool = None
    try:
        try:
            pool = shmrt.Pool(1, runtime=runtime)
            future = pool.submit(square_slowly, 3)
            error = future.exception(60)
            assert isinstance(error, (shmrt.RuntimeDown, shmrt.PoolBroken, shmrt.WorkerCrashed)), error
        except (shmrt.RuntimeDown, shmrt.PoolBroken):
            pass  # it was down before the pool was made or the task taken
        assert runtime.wait(60) is not None
        with pytest.raises((shmrt.RuntimeDown, shmrt.PoolBroken, RuntimeError)):
            shmrt.Pool(1, runtime=runtime)
        assert events.count("root_started") > 3
        assert not down.is_set()
    finally:
        if pool is not None:
            pool.shutdown()
        runtime.stop()

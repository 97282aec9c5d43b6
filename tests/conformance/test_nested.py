"""Pools that tasks make: workers of the same root, which end with the worker that made them."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pool_tasks as tasks
import pytest
from life_kit import run
from pool_tasks import LIMIT_S
from stage import wait_gone

import shmrt
from shmrt import Pool, PoolBroken, Runtime, SegmentError, TaskTimeout, WorkerCrashed, _native
from shmrt.supervise.protocol import FIRST_NESTED


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def nested_slots(runtime: Runtime) -> list[int]:
    """Slots of pools inside workers that are in use."""
    slots = runtime._slots
    return [slot for slot in range(FIRST_NESTED, slots.count) if slots.state(slot) != _native.SLOT_EMPTY]


def running(pool: Pool) -> list[int]:
    return [row["pid"] for row in tasks.ready(pool) if row["phase"] & 0xFF == _native.PHASE_RUN]


# ---- tasks ----


def who(*_: Any) -> tuple[int, int]:
    return os.getpid(), os.getppid()


def ask_inside(count: int) -> tuple[int, int, list[tuple[int, int]]]:
    with Pool(2) as pool:
        return os.getpid(), int(shmrt.runtime().pid or 0), list(pool.map(who, range(count)))


def deeper(levels: int) -> list[tuple[int, int]]:
    if levels == 0:
        return [who()]
    with Pool(1) as pool:
        return [who(), *pool.submit(deeper, levels - 1).result()]


def crash_inside() -> str:
    with Pool(1) as pool:
        dead, alive = pool.submit(tasks.kill_self), pool.submit(tasks.same, 7)
        return f"{type(dead.exception()).__name__} {alive.result()}"


def time_out_inside() -> str:
    with Pool(1) as pool:
        for _ in range(20):  # one that gets no CPU when it is asked for its stack dies without telling
            error = pool.options(timeout=0.2).submit(tasks.sleep_long).exception()
            if getattr(error, "stack", ""):
                break
        return f"{type(error).__name__} {'in sleep_long' in str(getattr(error, 'stack', ''))}"


def refuse() -> None:
    raise ValueError("no worker starts here")


def break_inside() -> list[str]:
    with Pool(1, initializer=refuse) as pool:
        try:
            pool.submit(tasks.same, 1).result()
        except PoolBroken as error:
            return list(error.reasons)
    return []


def start_and_wait(path: str, size: int) -> None:
    """Notes the pids of a nested pool whose workers hold arrays, then waits to be killed."""
    pool = Pool(2)
    futures = [pool.submit(hold_array, numpy.ones(size), path) for _ in range(2)]
    for future in futures:
        future.result()


def hold_array(array: numpy.ndarray[Any, Any], path: str) -> None:
    tasks.note(path, str(os.getpid()))
    tasks.sleep_long()


def ask_for_too_many() -> str:
    with Pool(1):
        try:
            Pool(256)
        except SegmentError as error:
            return str(error)
    return "it was made"


def fail_to_open(times: int) -> int:
    """Pools that do not open, for lack of memory for their lanes, give their slots back."""
    failed = 0
    for _ in range(times):
        try:
            Pool(60, ring=shmrt.RingSpec(slots=1 << 16, slot_bytes=1 << 20))
        except SegmentError as error:
            assert "slots in a row" not in str(error), error
            failed += 1
    with Pool(1) as pool:
        return failed + int(pool.submit(tasks.same, 1).result())


def lose_the_socket() -> str:
    """As user code does that closes every descriptor it does not know."""
    from shmrt.process import worker

    said = "it was made"
    try:
        with Pool(1) as pool:
            assert pool.submit(tasks.same, 1).result() == 1
            assert worker.job_of_this is not None
            os.close(worker.job_of_this.control_fd)
            shmrt.runtime()._link._poke()
            try:
                Pool(1)
            except shmrt.RuntimeDown as error:
                said = str(error)
    except shmrt.RuntimeDown:
        pass  # nobody is there any more whom the pool's end could ask
    return said


def default_size() -> int:
    with Pool() as pool:
        return int(pool._max_workers)


def fork_inside() -> str:
    """A process forked by a worker owns nothing of the worker's pools, and can have its own."""
    pool = Pool(1)
    assert pool.submit(tasks.same, 1).result() == 1
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            pool.submit(tasks.same, 1)
            text = "nothing was raised"
        except shmrt.RuntimeDown as error:
            text = str(error)
        with Pool(1) as own:
            text += f" {own.submit(tasks.same, 5).result()}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        said = file.read().decode()
    os.waitpid(pid, 0)
    assert str(pid) in said and str(os.getpid()) in said, said
    return said.rsplit(" ", 1)[1] + str(pool.submit(tasks.same, 2).result())


# ---- tests ----


@pytest.mark.slow
def test_the_same_root_serves_pools_inside_workers() -> None:
    with Runtime() as runtime, Pool(1) as pool:
        worker, root, inner = pool.submit(ask_inside, 20).result(LIMIT_S)
        assert root == runtime.pid and worker not in {pid for pid, _ in inner}
        assert {parent for _, parent in inner} == {runtime.pid}
        levels = pool.submit(deeper, 3).result(LIMIT_S)
        assert len({pid for pid, _ in levels}) == 4 and {parent for _, parent in levels} == {runtime.pid}
        tasks.until(lambda: not nested_slots(runtime) or len(nested_slots(runtime)) == 1)  # the hub's own stays


@pytest.mark.slow
def test_what_happens_inside_stays_inside() -> None:
    with Pool(1) as pool:
        pid = pool.submit(tasks.pid).result(LIMIT_S)
        assert pool.submit(crash_inside).result(LIMIT_S) == "WorkerCrashed 7"
        assert pool.submit(time_out_inside).result(LIMIT_S) == "TaskTimeout True"
        reasons = pool.submit(break_inside).result(LIMIT_S)
        assert len(reasons) >= 3 and any("no worker starts here" in reason for reason in reasons)
        assert pool.submit(fork_inside).result(LIMIT_S) == "52"
        assert pool.submit(tasks.pid).result(LIMIT_S) == pid
    assert TaskTimeout.__name__ == "TaskTimeout"


@pytest.mark.slow
def test_a_dead_worker_takes_its_pools_along(tmp_path: Path) -> None:
    """Killed at any moment of a nested pool's life, and its workers with it, by whoever comes first."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Runtime() as runtime, Pool(2) as pool:
        for turn in range(6):
            path = str(tmp_path / str(turn))
            doomed = pool.submit(start_and_wait, path, 1 << 16)
            if turn % 2:
                tasks.until(lambda path=path: len(tasks.notes(path)) == 2)
            else:  # in its start
                tasks.until(doomed.running)
                for _ in range(rng.randrange(100_000)):
                    pass
            os.kill(tasks.until(lambda: running(pool))[0], signal.SIGKILL)
            assert type(doomed.exception(LIMIT_S)) is WorkerCrashed
            for pid in map(int, tasks.notes(path)):
                wait_gone(pid)
            assert pool.submit(tasks.same, turn).result(LIMIT_S) == turn
        tasks.until(lambda: not nested_slots(runtime), "slots of dead pools were not freed")
        assert sum(pool.submit(ask_inside, 4).result(LIMIT_S)[2][0]) > 0


@pytest.mark.slow
def test_blocks_of_dead_pools_are_given_back(tmp_path: Path) -> None:
    with Runtime(shm_limit="256MiB") as runtime, Pool(1) as pool:
        before = runtime._arena.stats()["bytes_used"]
        for turn in range(4):  # together they would be beyond the limit
            path = str(tmp_path / str(turn))
            doomed = pool.submit(start_and_wait, path, 5 << 20)
            tasks.until(lambda path=path: len(tasks.notes(path)) == 2)
            os.kill(tasks.ready(pool)[0]["pid"], signal.SIGKILL)
            assert type(doomed.exception(LIMIT_S)) is WorkerCrashed
        tasks.until(lambda: runtime._arena.stats()["bytes_used"] <= before)


@pytest.mark.slow
def test_a_killed_root_takes_all_and_all_starts_afresh(tmp_path: Path) -> None:
    with Runtime() as runtime, Pool(1, max_attempts=2) as pool:
        path = str(tmp_path / "pids")
        task = pool.submit(start_and_wait, path, 16)
        tasks.until(lambda: len(tasks.notes(path)) == 2)
        pids = [int(pid) for pid in tasks.notes(path)]
        os.kill(int(runtime.pid or 0), signal.SIGKILL)
        tasks.until(lambda: len(tasks.notes(path)) == 4)  # the task and its pool run again
        for pid in pids:
            wait_gone(pid)
        task.kill()
        assert pool.submit(ask_inside, 3).result(LIMIT_S)[1] == runtime.pid
        tasks.until(lambda: len(nested_slots(runtime)) <= 1)


def test_the_table_s_end_is_told() -> None:
    with Pool(1) as pool:
        assert "slots in a row left" in pool.submit(ask_for_too_many).result(LIMIT_S)
        assert pool.submit(ask_inside, 3).result(LIMIT_S)[2]


def test_the_usable_cpus_are_shared_by_siblings() -> None:
    cpus = _native.usable_cpus()
    with Pool(1) as one, Pool(cpus + 1) as many:
        assert one.submit(default_size).result(LIMIT_S) == cpus
        assert many.submit(default_size).result(LIMIT_S) == 1


def test_a_pool_left_open_in_a_worker_does_its_work(tmp_path: Path) -> None:
    source = f"""
import shmrt, time
def late(x):
    time.sleep(0.2)
    open({str(tmp_path)!r} + f"/{{x}}", "w").close()
def leave_open():
    global kept
    kept = shmrt.Pool(2)
    for i in range(4): kept.submit(late, i)
with shmrt.Pool(1) as pool: pool.submit(leave_open).result()
"""
    assert run(source) == (0, "", "")
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3"]


def test_a_pool_that_does_not_open_keeps_no_slots() -> None:
    with Pool(1) as pool:
        assert pool.submit(fail_to_open, 6).result(LIMIT_S) == 7  # 122 slots each, of 256


def test_a_lost_socket_keeps_nobody_waiting() -> None:
    with Pool(1) as pool:
        assert "its socket" in pool.submit(lose_the_socket).result(LIMIT_S)
        assert pool.submit(tasks.same, 2).result(LIMIT_S) == 2

"""No task waits behind another while a worker has nothing to do: tasks that wait for each other come to their end."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def meet(path: str, count: int) -> int:
    """Comes back once `count` of these run at the same time."""
    tasks.note(path)
    while len(tasks.notes(path)) < count:
        os.sched_yield()
    return os.getpid()


@pytest.mark.parametrize("before", [0, 1, 5000])
@pytest.mark.parametrize("workers", [2, 3])
def test_as_many_tasks_as_workers_run_at_once(before: int, workers: int, tmp_path: Path) -> None:
    """Whatever is known of running times: nothing, or that tasks take a microsecond."""
    with Pool(workers) as pool:
        assert sum(pool.map(abs, range(before))) == before * (before - 1) // 2
        for turn in range(5):
            path = str(tmp_path / str(turn))
            futures = [pool.submit(meet, path, workers) for _ in range(workers)]
            assert len({future.result(LIMIT_S) for future in futures}) == workers


def test_short_tasks_pass_by_a_long_one(tmp_path: Path) -> None:
    """A long task is begun somewhere among short ones; all of them end before it, whatever lane they were put into."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with Pool(2) as pool:
        for turn in range(10):
            path = str(tmp_path / str(turn))
            place = rng.randrange(400)
            futures = [pool.submit(tasks.same, number) for number in range(place)]
            long = pool.submit(tasks.wait_for_file, path, "ended")
            futures += [pool.submit(tasks.same, number) for number in range(place, 400)]
            assert [future.result(LIMIT_S) for future in futures] == list(range(400))
            assert not long.done()
            tasks.note(path)
            assert long.result(LIMIT_S) == "ended"


def test_all_but_one_worker_may_hang(tmp_path: Path) -> None:
    path = str(tmp_path / "go")
    with Pool(4) as pool:
        hung = [pool.submit(tasks.wait_for_file, path) for _ in range(3)]
        assert list(pool.map(tasks.same, range(2000))) == list(range(2000))
        assert not any(future.done() for future in hung)
        tasks.note(path)
        for future in hung:
            future.result(LIMIT_S)


def test_a_time_is_kept_although_nobody_waits() -> None:
    """The task is accepted before its worker is ready; nobody but the hub's own thread looks at the clock."""
    with Pool(1) as pool:
        future = pool.options(timeout=0.05).submit(tasks.sleep_long)
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        assert done.wait(LIMIT_S)
        assert future.exception().elapsed >= 0.05
    with Pool(1) as pool:
        path_free = pool.options(timeout=0.05).submit(tasks.sleep_long)
        tasks.until(lambda: pool.stats()["timed_out"] == 1)
        assert path_free.done()


def test_results_that_nobody_asks_for_are_counted(tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(10):
        with Pool(3) as pool:
            for number in range(rng.randrange(300)):
                pool.submit(abs, number)
            workers = rng.randint(1, 3)
            pool.resize(workers)
            tasks.until(lambda pool=pool: pool.stats()["pending"] == 0)
            tasks.until(lambda pool=pool, workers=workers: pool.stats()["workers_ready"] == workers)

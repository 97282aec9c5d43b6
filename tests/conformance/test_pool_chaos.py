"""Workers are killed all the time, by the pool itself and from outside; every task has exactly one outcome.

SHMRT_CHAOS_SEED repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool, WorkerCrashed

SEED = int(os.environ.get("SHMRT_CHAOS_SEED") or random.SystemRandom().randrange(2**32))
COUNT = 20_000
BETWEEN = 50


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    print(f"SHMRT_CHAOS_SEED={SEED}")
    with tasks.watchdog():
        yield


@contextmanager
def killing(pool: Pool, kill: Callable[[Pool, random.Random], None], pause_s: float) -> Iterator[list[int]]:
    """A thread that kills until the block ends; what it gives counts the rounds. Between two of them workers have done
    something, however slow the machine is."""
    stop = threading.Event()
    rounds = [0]

    def run() -> None:
        rng = random.Random(SEED)
        at_last = -BETWEEN
        while not stop.wait(rng.random() * pause_s):
            stats = pool.stats()
            done = stats["completed"] + stats["crashed"]
            if done - at_last >= BETWEEN:
                kill(pool, rng)
                rounds[0] += 1
                at_last = done

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield rounds
    finally:
        stop.set()
        thread.join(LIMIT_S)


def by_chaos(pool: Pool, rng: random.Random) -> None:
    pool.chaos_kill(rng)


def from_outside(pool: Pool, rng: random.Random) -> None:
    rows = tasks.ready(pool)
    if rows:
        try:
            os.kill(rng.choice(rows)["pid"], signal.SIGKILL)
        except ProcessLookupError:
            pass


def count_done(futures: list[Any]) -> Counter[int]:
    """How often each future called back."""
    called: Counter[int] = Counter()
    for number, future in enumerate(futures):
        future.add_done_callback(lambda _, number=number: called.update([number]))
    return called


@pytest.mark.slow
@pytest.mark.parametrize("kill", [by_chaos, from_outside])
def test_with_attempts_every_task_comes_to_its_value(kill: Any) -> None:
    with Pool(2, max_attempts=100, preload=["pool_tasks"]) as pool:
        with killing(pool, kill, 0.02) as rounds:
            futures = [pool.submit(tasks.same, number) for number in range(COUNT)]
            called = count_done(futures)
            assert [future.result(LIMIT_S) for future in futures] == list(range(COUNT))
            more = 0
            while rounds[0] < 40:  # the machine may be faster than the killer
                assert pool.submit(tasks.same, more).result(LIMIT_S) == more
                more += 1
        tasks.until(lambda: len(called) == COUNT)
        assert set(called.values()) == {1}
        stats = pool.stats()
        assert (stats["pending"], stats["completed"], stats["crashed"]) == (0, COUNT + more, 0)
        print("rounds", rounds[0], "restarts", stats["restarts"])


@pytest.mark.slow
@pytest.mark.parametrize("kill", [by_chaos, from_outside])
def test_at_most_once_is_at_most_once(kill: Any, tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    with Pool(2, preload=["pool_tasks"]) as pool:
        with killing(pool, kill, 0.02):
            futures = [pool.submit(tasks.note_and_return, path, number) for number in range(COUNT)]
            called = count_done(futures)
            crashed = set()
            for number, future in enumerate(futures):
                error = future.exception(LIMIT_S)
                if error is None:
                    assert future.result() == number
                else:
                    assert type(error) is WorkerCrashed, repr(error)
                    assert error.signal is signal.SIGKILL
                    assert error.attempts == 1
                    crashed.add(number)
        tasks.until(lambda: len(called) == COUNT)
        assert set(called.values()) == {1}
        stats = pool.stats()
        assert stats["pending"] == 0
        assert stats["completed"] + stats["crashed"] == COUNT
        assert stats["crashed"] == len(crashed)
        print("restarts", stats["restarts"], "crashed", len(crashed))
    ran = Counter(map(int, tasks.notes(path)))
    assert max(ran.values()) == 1
    assert set(range(COUNT)) - set(ran) <= crashed


@pytest.mark.slow
def test_callbacks_arrays_and_timeouts_under_chaos() -> None:
    """What is watched, by reference and timed at once."""
    np = pytest.importorskip("numpy")
    with Pool(2, max_attempts=100, task_timeout=60, preload=["numpy"]) as pool, killing(pool, by_chaos, 0.05):
        futures = [pool.submit(tasks.same, np.full(5000, number)) for number in range(2000)]
        called = count_done(futures)
        for number, future in enumerate(futures):
            array = future.result(LIMIT_S)
            assert array.shape == (5000,)
            assert (array == number).all()
        tasks.until(lambda: len(called) == len(futures))
        assert set(called.values()) == {1}

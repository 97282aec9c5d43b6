"""Many items of a map in one message: an outcome for each all the same, none run twice, and a death concerns one item.

A chunk of a fixed size is one message whatever its items take, so these tests know which items share one.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pool_tasks as tasks
import pytest
from test_pool_map import collect, outcomes

from shmrt import Pool, RingSpec, WorkerCrashed, _native
from shmrt.cli.chaos_strike import pidfd_of_child

SIZE = 50


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def run_and_die(path: str, number: int, deadly: set[int], how: str) -> int:
    """Says that it ran, in one write, and dies if its number is deadly."""
    tasks.note(path, str(number))
    if number in deadly:
        {"kill": tasks.kill_self, "exit": tasks.exit_at_once, "sys.exit": tasks.sys_exit, "abort": tasks.abort}[how]()
    return -number


def inputs(path: Path, count: int, deadly: set[int], how: str) -> tuple[Any, ...]:
    return itertools.repeat(str(path)), range(count), itertools.repeat(deadly), itertools.repeat(how)


def each_ran_once(path: Path, count: int) -> None:
    assert sorted(map(int, tasks.notes(path))) == list(range(count))


# ---- deaths ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["kill", "exit", "sys.exit", "abort"])
@pytest.mark.parametrize("deadly", [{0}, {SIZE - 1}, {SIZE}, {7, 8}, {3, 49, 50, 99, 120}])
def test_a_death_is_one_items(how: str, deadly: set[int], tmp_path: Path) -> None:
    """What ran before it has its outcome, what comes behind it runs, and nothing runs twice."""
    ran, count = tmp_path / "ran", 3 * SIZE - 7
    with Pool(1) as pool:
        found = outcomes(pool.map(run_and_die, *inputs(ran, count, deadly, how), chunksize=SIZE))
        stats = pool.stats()
    assert found == [WorkerCrashed if number in deadly else -number for number in range(count)]
    each_ran_once(ran, count)
    assert (stats["submitted"], stats["completed"], stats["crashed"]) == (count, count - len(deadly), len(deadly))
    assert stats["pending"] == 0


def test_what_is_told_of_a_death(tmp_path: Path) -> None:
    with Pool(1, name="hash") as pool:
        results = pool.map(run_and_die, *inputs(tmp_path / "ran", 9, {4}, "exit"), chunksize=9)
        assert [next(results) for _ in range(4)] == [0, -1, -2, -3]
        with pytest.raises(WorkerCrashed, match=r"worker hash/0 .*exited with code 7") as caught:
            next(results)
        assert (caught.value.exitcode, caught.value.attempts, caught.value.worker) == (7, 1, "hash/0")
        assert list(results) == [-5, -6, -7, -8]


@pytest.mark.parametrize("name", ["map", "map_unordered", "amap"])
def test_random_kills_repeat_and_lose_nothing(name: str, tmp_path: Path) -> None:
    """Whoever is killed from outside may have been in any item, or between two."""
    import asyncio

    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw, ran, count = random.Random(seed), tmp_path / "ran", 4000
    with Pool(2) as pool:
        more = inputs(ran, count, set(), "")
        if name == "amap":
            results: Any = iter(asyncio.run(collect(pool.amap(run_and_die, *more, chunksize=200))))
        else:
            results = getattr(pool, name)(run_and_die, *more, chunksize=200)
        found: list[Any] = []
        kills = 0
        while True:
            if name != "amap" and draw.random() < 0.01 and kills < 15:
                there = tasks.ready(pool)  # one look: the next may find nobody
                for row in draw.sample(there, min(1, len(there))):
                    victim = pidfd_of_child(row["pid"], pool._runtime.pid)  # None: reaped, and not replaced yet
                    if victim is not None:
                        kills += _native.pidfd_signal(victim, signal.SIGKILL)  # False: reaped since
                        os.close(victim)
            try:
                found.append(next(results))
            except StopIteration:
                break
            except WorkerCrashed as error:
                found.append(error)
    crashed = [each for each in found if isinstance(each, WorkerCrashed)]
    values = [each for each in found if not isinstance(each, (WorkerCrashed, type))]
    assert len(found) == count and len(crashed) <= kills
    if name != "map_unordered":
        assert all(each == -number for number, each in enumerate(found) if isinstance(each, int))
    assert len(set(values)) == len(values)
    ran_numbers = list(map(int, tasks.notes(ran)))
    assert len(set(ran_numbers)) == len(ran_numbers), "run twice"
    assert {-value for value in values} <= set(ran_numbers)


def test_a_worker_that_is_asked_to_end_hands_back_the_rest(tmp_path: Path) -> None:
    """SIGTERM: the item in progress has its outcome, those behind it are run by another worker."""
    ran = tmp_path / "ran"
    with Pool(1) as pool:
        go = str(tmp_path / "go")
        more = itertools.repeat(str(ran)), itertools.repeat(go), range(20)
        results = pool.map(note_then_wait, *more, chunksize=20)
        tasks.until(lambda: tasks.notes(ran))
        [row] = tasks.ready(pool)
        os.kill(row["pid"], signal.SIGTERM)
        tasks.note(go)
        found = list(results)
    assert [number for _, number in found] == list(range(20))
    each_ran_once(ran, 20)


def note_then_wait(ran: str, go: str, number: int) -> tuple[int, int]:
    tasks.note(ran, str(number))
    tasks.wait_for_file(go)
    return os.getpid(), number


# ---- values ---------------------------------------------------------------------------------------------------------
class Odd:
    """Pickled, by value of its class's name; equal by its number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Odd) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


def make(number: int) -> Any:
    """Something else for each number: plain, long, big, an array, a log line, an exception, what cannot be pickled."""
    kinds: list[Any] = [
        lambda: number,
        lambda: "x" * number,
        lambda: b"y" * (number * 997),
        lambda: np.full(number, number),
        lambda: np.full((64, 64), number),
        lambda: (logging.getLogger("chunk").warning("at %d", number), number)[1],
        lambda: tasks.raise_it(KeyError(number)),
        lambda: threading.Lock(),
        lambda: Odd(number),
        lambda: {number: [number, (None, 1.5, "é")]},
        lambda: print(number, file=sys.stderr),
    ]
    return kinds[number % len(kinds)]()


def plain(value: Any) -> Any:
    return (value.shape, value.tolist()) if isinstance(value, np.ndarray) else value


@pytest.mark.parametrize("ring", [RingSpec(), RingSpec(slots=4, slot_bytes=512)], ids=["", "tiny"])
@pytest.mark.parametrize("chunksize", [2, 77, 500, "auto"])
def test_every_kind_of_outcome(ring: RingSpec, chunksize: Any) -> None:
    with Pool(2, ring=ring) as pool:
        results = pool.map(make, range(330), chunksize=chunksize)
        for number in range(330):
            try:
                value = next(results)
            except Exception as error:
                kind = number % 11
                assert (kind == 6 and error.args == (number,)) or (kind == 7 and isinstance(error, TypeError)), (
                    number,
                    error,
                )
                continue
            assert plain(value) == plain(make(number)), number
        assert next(results, "ended") == "ended"


def echo(value: Any, *more: Any) -> Any:
    return (value, *more) if more else value


@pytest.mark.parametrize("chunksize", [7, "auto"])
@pytest.mark.parametrize("several", [False, True])
def test_every_kind_of_item(chunksize: Any, several: bool) -> None:
    """What cannot travel with others goes alone, in its place; what cannot be pickled is its own outcome."""
    small: list[Any] = [1, "two", Odd(3), np.arange(4), (1, 2), [None]]
    items = [*small, np.ones((300, 10)), threading.Lock(), b"z" * 70_000] * 20
    with Pool(2) as pool:
        more = [range(10**6)] if several else []
        found = outcomes(pool.map(echo, items, *more, chunksize=chunksize))
    assert len(found) == len(items)
    for number, (item, value) in enumerate(zip(items, found, strict=True)):
        if isinstance(item, type(threading.Lock())):
            assert value is TypeError
        elif several:
            assert (plain(value[0]), value[1]) == (plain(item), number)
        else:
            assert plain(value) == plain(item)


class Unpicklable:
    """Comes apart where it is unpickled."""

    def __reduce__(self) -> Any:
        return tasks.raise_it, (ValueError("from its pickle"),)


def test_an_item_that_cannot_be_unpickled_is_one_item() -> None:
    items: list[Any] = [1, 2, 3, Unpicklable(), 4, 5, Unpicklable()]
    with Pool(1) as pool:
        assert outcomes(pool.map(echo, items, chunksize=7)) == [1, 2, 3, ValueError, 4, 5, ValueError]


def test_items_do_not_share_what_is_in_them() -> None:
    """Each is pickled by itself, as in tasks of their own: what one call changes no other sees."""
    shared: list[int] = []
    with Pool(1) as pool:
        assert list(pool.map(append_one, [shared] * 30, chunksize=30)) == [[1]] * 30


def append_one(value: list[int]) -> list[int]:
    value.append(1)
    return value


# ---- in time --------------------------------------------------------------------------------------------------------
def meet(folder: str, number: int, others: int) -> int:
    """Returns when so many others have come."""
    tasks.note(f"{folder}/{number}")
    for other in range(others):
        tasks.wait_for_file(f"{folder}/{other}")
    return number


@pytest.mark.parametrize("name", ["map", "map_unordered", "amap"])
def test_items_behind_one_that_waits_are_taken_out(name: str, tmp_path: Path) -> None:
    """Items that wait for each other, in one chunk: the other worker gets those that were not begun."""
    import asyncio

    with Pool(2) as pool:
        results = getattr(pool, name)(meet, itertools.repeat(str(tmp_path)), range(2), itertools.repeat(2), chunksize=2)
        found = asyncio.run(collect(results)) if name == "amap" else list(results)
        stats = pool.stats()
    assert sorted(found) == [0, 1]
    assert (stats["submitted"], stats["completed"]) == (2, 2)


def test_a_split_chunk_keeps_its_order(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    go = str(tmp_path / "go")
    with Pool(2) as pool:
        results = pool.map(wait_at, itertools.repeat(str(ran)), itertools.repeat(go), range(300), chunksize=100)
        thread = threading.Thread(target=lambda: (tasks.until(lambda: len(tasks.notes(ran)) >= 299), tasks.note(go)))
        thread.start()
        assert list(results) == list(range(300))  # the first waits until all others have run
        thread.join()
    each_ran_once(ran, 300)


def wait_at(ran: str, go: str, number: int) -> int:
    if number == 0:
        tasks.wait_for_file(go)
    tasks.note(ran, str(number))
    return number


def test_a_dropped_iterator_ends_its_chunk(tmp_path: Path) -> None:
    """At the item that is running."""
    ran, go = tmp_path / "ran", str(tmp_path / "go")
    with Pool(1) as pool:
        results = pool.map(note_then_wait, itertools.repeat(str(ran)), itertools.repeat(go), range(20), chunksize=20)
        results._started = True  # type: ignore[attr-defined]  # as by a consumer that waits for the first result
        tasks.until(lambda: tasks.notes(ran))
        results.close()  # type: ignore[attr-defined]
        tasks.note(go)
        tasks.until(lambda: pool.stats()["pending"] == 0)
    assert tasks.notes(ran) == ["0"]


def test_chunks_grow_with_short_calls_and_not_with_long_ones() -> None:
    with Pool(2) as pool:

        def grown() -> bool:
            assert sum(pool.map(tasks.same, range(2000))) == 1999000
            return bool(pool._opened.pace_of(tasks.same).size(waiting=10**9, workers=2) > 8)

        tasks.until(grown)
        assert list(pool.map(tasks.spin_for, [0.002] * 30, range(30))) == list(range(30))
        assert pool._opened.pace_of(tasks.spin_for).size(waiting=10**9, workers=2) == 1


def test_options_that_watch_a_call_go_item_by_item(tmp_path: Path) -> None:
    """A timeout, a deadline, further attempts: each item is a task of its own."""
    with Pool(1) as pool:
        assert outcomes(pool.options(timeout=0.2).map(tasks.hang_first, [str(tmp_path / "h")], [1], [5])) != [5]
        path = str(tmp_path / "died")
        found = outcomes(pool.options(max_attempts=2).map(tasks.die_first, [path] * 3, [1] * 3, range(3), chunksize=3))
        assert found == [0, 1, 2]


def map_inside(count: int) -> tuple[int, int]:
    with Pool(1) as inner:
        return sum(inner.map(tasks.same, range(count), chunksize=100)), inner.stats()["timed_out"]


def test_inside_a_task_with_a_deadline() -> None:
    """Its tasks have no more time than it has; so they are tasks of their own."""
    with Pool(1) as pool:
        assert pool.options(deadline=tasks.LIMIT_S).submit(map_inside, 300).result() == (44850, 0)


# ---- the parts ------------------------------------------------------------------------------------------------------
def test_wrong_arguments_of_the_parts() -> None:
    with Pool(1) as pool:
        core = pool._core
        with pytest.raises(TypeError, match="no future of a pool"):
            core.split(object())
        done = pool.submit(tasks.same, 1)
        done.result()
        assert core.split(done) == -1
        with pytest.raises(TypeError, match="submit_chunk"):
            core.submit_chunk(1, tasks.same, [1], False)
        assert core.submit_chunk((True, 0), tasks.same, [], False) is None
    with pytest.raises(TypeError, match="pull"):
        _native.pull([], [], 1)
    taken: list[int] = []
    assert _native.pull(iter(range(5)), taken, 3) is True and taken == [0, 1, 2]
    assert _native.pull(iter(()), taken, 3) is False

    class Bad(_native.Ready):
        def _more(self) -> Any:
            return 5

    with pytest.raises(TypeError, match="returns a list"):
        next(Bad())


def test_two_threads_may_take_turns() -> None:
    found: list[int] = []

    def take(results: Iterator[int]) -> None:
        found.extend(results)

    with Pool(2) as pool:
        results = pool.map(tasks.same, range(20_000))
        threads = [threading.Thread(target=take, args=(results,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(found) == list(range(20_000))

"""`map` and its kin: in order, lazy, bounded, an outcome for each item, and no input or result lost to a shutdown."""

from __future__ import annotations

import asyncio
import concurrent.futures as standard
import gc
import itertools
import multiprocessing
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Overloaded, Pool, WorkerCrashed
from shmrt.pool_feed import CHUNK_ITEMS_MAX

WINDOW = 512
"""What is under way at once for each worker, by default; longer inputs are what laziness is about."""
AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def hold(pool: Pool, path: Path) -> Any:
    """Occupies one worker until `release`: whatever is submitted behind it in a pool of one cannot have begun."""
    future = pool.submit(tasks.started_then_wait, str(path / "started"), str(path / "go"), "held")
    tasks.until(lambda: tasks.notes(path / "started"))
    return future


def release(path: Path) -> None:
    tasks.note(str(path / "go"))


def outcomes(results: Iterator[Any]) -> list[Any]:
    """Every value, and the type of every exception in its place."""
    found: list[Any] = []
    while True:
        try:
            found.append(next(results))
        except StopIteration:
            return found
        except Exception as error:
            found.append(type(error))


async def collect(results: Any) -> list[Any]:
    found: list[Any] = []
    while True:
        try:
            found.append(await anext(results))
        except StopAsyncIteration:
            return found
        except Exception as error:
            found.append(type(error))


class Source:
    """Counts what was taken from it."""

    def __init__(self, count: int | None = None, error: BaseException | None = None) -> None:
        self.taken = 0
        self.count = count
        self.error = error

    def __iter__(self) -> Source:
        return self

    def __next__(self) -> int:
        if self.taken == self.count:
            raise self.error or StopIteration
        self.taken += 1
        return self.taken - 1


# ---- results ----


def test_in_order_and_as_long_as_the_shortest(pool: Pool) -> None:
    assert list(pool.map(pow, range(5), itertools.count(1), [10] * 4)) == [0, 1, 8, 1]
    assert list(pool.map(tasks.same, [])) == []
    assert list(pool.map(tasks.same, iter(()))) == []
    for chunksize in (1, 7, 5000, "auto"):
        assert list(pool.map(tasks.same, range(3000), chunksize=chunksize)) == list(range(3000))
        assert sorted(pool.map_unordered(tasks.same, range(3000), chunksize=chunksize)) == list(range(3000))
    for buffersize in (1, 2, 100):
        assert list(pool.map(tasks.same, range(300), buffersize=buffersize)) == list(range(300))
        assert sorted(pool.imap_unordered(tasks.same, range(300), buffersize=buffersize)) == list(range(300))
    view = pool.options(priority=1)
    assert list(view.map(tasks.same, range(99))) == sorted(view.imap_unordered(tasks.same, range(99))) == [*range(99)]
    assert asyncio.run(collect(view.amap(tasks.same, range(99), buffersize=2))) == list(range(99))
    assert sorted(view.map_unordered(tasks.same, range(99), timeout=LIMIT_S, chunksize=5)) == list(range(99))


def fail_odd(number: int) -> int:
    if number % 2:
        raise LookupError(number)
    return number


def die_at(number: int, bad: int) -> int:
    if number == bad:
        tasks.kill_self()
    return number


def test_an_exception_or_a_death_concerns_its_item(pool: Pool) -> None:
    wanted = [LookupError if number % 2 else number for number in range(50)]
    assert outcomes(pool.map(fail_odd, range(50))) == wanted
    assert asyncio.run(collect(pool.amap(fail_odd, range(50)))) == wanted
    assert sorted(outcomes(pool.map_unordered(fail_odd, range(50))), key=str) == sorted(wanted, key=str)
    given = list(pool.map_unordered(fail_odd, range(50), return_exceptions=True))
    assert sorted(one for one in given if isinstance(one, int)) == list(range(0, 50, 2))
    assert sorted(one.args[0] for one in given if isinstance(one, LookupError)) == list(range(1, 50, 2))
    wanted = [WorkerCrashed if number == 20 else number for number in range(50)]
    assert outcomes(pool.map(die_at, range(50), [20] * 50)) == wanted


def nested(depth: int) -> list[Any]:
    deep: list[Any] = []
    for _ in range(depth):
        deep = [deep]
    return deep


@pytest.mark.parametrize("max_pending", [None, 2])
def test_an_item_that_cannot_be_pickled_fails_in_its_place(max_pending: int | None) -> None:
    """Whatever its pickling raises. Two of them raise a RuntimeError, as a pool does that was shut down."""
    bad = [threading.Lock(), multiprocessing.Lock(), nested(100_000), (number for number in ())]
    items = [number for pair in zip(range(4), bad, strict=True) for number in pair] + [4]
    kinds = [TypeError, RuntimeError, RecursionError, TypeError]
    wanted = [number for pair in zip(range(4), kinds, strict=True) for number in pair] + [4]
    with Pool(2, max_pending=max_pending) as pool:
        assert outcomes(pool.map(tasks.same, items)) == wanted
        assert sorted(outcomes(pool.map_unordered(tasks.same, items)), key=str) == sorted(wanted, key=str)
        assert list(pool.map(tasks.same, range(50))) == list(range(50))


@pytest.mark.parametrize("count", [0, 3, WINDOW * 2, WINDOW * 3])
def test_an_exception_of_the_input_comes_after_what_came_before_it(pool: Pool, count: int) -> None:
    """As with the built-in map; and at the call where the call meets it, as with the standard executors."""
    for name in ("map", "map_unordered"):
        source = Source(count, KeyError("of the input"))
        if count < WINDOW * 2:
            with pytest.raises(KeyError, match="of the input"):
                getattr(pool, name)(tasks.same, source)
            continue
        found = outcomes(getattr(pool, name)(tasks.same, source))
        assert found.pop() is KeyError if name == "map" else found.remove(KeyError) is None
        assert sorted(found) == list(range(count))
    if count > WINDOW * 2:
        found = asyncio.run(collect(pool.amap(tasks.same, Source(count, KeyError("of the input")))))
        assert found == [*range(count), KeyError]


# ---- lazy and bounded ----


def test_an_endless_input_is_taken_as_it_is_needed(pool: Pool) -> None:
    for make in (pool.map, pool.map_unordered, pool.options(priority=1).map):
        source = Source()
        results = make(tasks.same, source)
        most = source.taken
        for _ in range(WINDOW * 6):
            next(results)
            most = max(most, source.taken)
        assert most <= WINDOW * 6 + pool._max_workers * 4 * CHUNK_ITEMS_MAX  # short calls go many at a time
        del results
    source = Source()
    results = pool.map(tasks.same, source, buffersize=3)
    assert source.taken == 3
    assert [next(results) for _ in range(100)] == list(range(100))
    assert source.taken <= 103


def test_a_started_iterator_that_is_dropped_cancels(tmp_path: Path) -> None:
    ran = str(tmp_path / "ran")
    with Pool(1) as pool:
        for name in ("map", "map_unordered"):
            results = getattr(pool, name)(tasks.same, range(5), buffersize=1)
            assert next(results) == 0
            held = hold(pool, tmp_path)
            source = Source()
            waiting = getattr(pool, name)(tasks.note_and_return, itertools.repeat(ran), source, timeout=0.01)
            with pytest.raises(TimeoutError):
                next(waiting)  # which starts it, and its time is over
            assert next(waiting, "ended") == "ended"
            other = getattr(pool, name)(tasks.note_and_return, itertools.repeat(ran), Source())
            thread = threading.Thread(target=release, args=(tmp_path,))
            other._started = True  # as by a consumer that waits for the first result
            del other
            gc.collect()
            assert pool.stats()["pending"] <= 2  # the held one and the one behind `results`
            thread.start()
            thread.join()
            assert held.result(LIMIT_S) == "held"
            for path in ("started", "go"):
                (tmp_path / path).unlink()
    assert tasks.notes(ran) == []


def test_a_loop_that_is_left_early_lets_the_pool_end(tmp_path: Path) -> None:
    """Also when the iterator is still held, whose input has no end."""
    with Pool(2) as pool:
        for number in pool.map(tasks.same, itertools.count()):
            if number == 10:
                break
        for _ in pool.map_unordered(tasks.same, itertools.count()):
            break
        kept = pool.map(tasks.same, itertools.count())
        assert list(itertools.islice(kept, 5)) == list(range(5))

        async def some() -> list[int]:
            found = []
            async for value in pool.amap(tasks.same, itertools.count()):
                found.append(value)
                if value == 10:
                    break
            return found

        assert asyncio.run(some()) == list(range(11))
    # What was under way is there; what was not, is refused aloud and not left out in silence.
    found = 5
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        for found in kept:  # noqa: B007
            pass
    assert found >= WINDOW - 1
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        next(kept)


def test_a_timeout_is_the_iterators_and_a_timeouterror_the_items(pool: Pool, tmp_path: Path) -> None:
    assert outcomes(pool.map(tasks.raise_it, [TimeoutError("own")] * 3, timeout=LIMIT_S)) == [TimeoutError] * 3
    go = str(tmp_path / "go")
    for make in (pool.map, pool.map_unordered):
        assert outcomes(make(tasks.wait_for_file, [go], timeout=0)) == [TimeoutError]

    async def late() -> list[Any]:
        return await collect(pool.amap(tasks.wait_for_file, [go] * 3, timeout=0.01))

    assert asyncio.run(late()) == [TimeoutError]
    tasks.note(go)


# ---- shutdown ----


def never_iterated(pool: Pool, name: str, fn: Callable[..., Any], *inputs: Any) -> Any:
    return getattr(pool, name)(fn, *inputs)


@pytest.mark.parametrize("name", ["map", "map_unordered", "amap"])
@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("max_pending", [None, 3])
def test_never_iterated_it_runs_to_its_end(name: str, held: bool, max_pending: int | None, tmp_path: Path) -> None:
    ran, count = str(tmp_path / "ran"), WINDOW + 100
    with Pool(1, max_pending=max_pending, on_full="raise") as pool:
        results = never_iterated(pool, name, tasks.note_and_return, [ran] * count, range(count))
        if not held:
            del results
    assert tasks.notes(ran) == [str(number) for number in range(count)]
    if held:  # and it gives them all, as one of a standard executor would
        found = asyncio.run(collect(results)) if name == "amap" else sorted(results)
        assert found == list(range(count))


def test_maps_never_iterated_share_a_full_pool(tmp_path: Path) -> None:
    """A shutdown waits for room where a submit would be refused."""
    ran = str(tmp_path / "ran")
    with Pool(1, max_pending=2, on_full="raise") as pool:
        held = hold(pool, tmp_path)
        first = pool.map(tasks.note_and_return, [ran] * 20, range(20))
        second = pool.map(tasks.note_and_return, [ran] * 20, range(20, 40))
        pool.map_unordered(tasks.note_and_return, [ran] * 20, range(40, 60))
        release(tmp_path)
    assert held.result(0) == "held"
    assert sorted(map(int, tasks.notes(ran))) == list(range(60))
    assert [*first, *second] == list(range(40))


def test_a_failing_input_keeps_no_pool_from_ending(tmp_path: Path) -> None:
    """Its exception is raised by whoever iterates, else by the shutdown, when all other work is done."""
    ran, count = str(tmp_path / "ran"), WINDOW + 5
    pool = Pool(1)
    pool.map(tasks.note_and_return, [ran] * (count + 9), Source(count, KeyError("of the input")))
    pool.map(tasks.note_and_return, [ran] * count, range(count, 2 * count))
    with pytest.raises(KeyError, match="of the input"):
        pool.shutdown()
    pool.shutdown()
    assert sorted(map(int, tasks.notes(ran))) == list(range(2 * count))
    with Pool(1) as pool:
        kept = pool.map(tasks.same, Source(count, KeyError("of the input")))
    assert outcomes(kept) == [*range(count), KeyError]


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_results_outlive_a_shutdown_without_waiting(name: str) -> None:
    pool = Pool(1)
    results = getattr(pool, name)(tasks.same, range(100))
    pool.shutdown(wait=False)
    assert sorted(results) == list(range(100))


@pytest.mark.parametrize("name", ["map", "map_unordered"])
def test_a_cancelling_shutdown_is_heard(name: str, tmp_path: Path) -> None:
    pool = Pool(1)
    held = hold(pool, tmp_path)
    results = getattr(pool, name)(tasks.same, range(100))
    pool.shutdown(wait=False, cancel_futures=True)
    with pytest.raises(standard.CancelledError):
        next(results)
    release(tmp_path)
    pool.shutdown()
    assert held.result(0) == "held"


def test_a_shutdown_races_with_new_maps() -> None:
    """Each map is done or refused; the list of maps bears a look while it changes."""
    for _ in range(3):
        pool = Pool(1)
        kept: list[Any] = []
        refused = threading.Event()

        def make(pool: Pool = pool, kept: list[Any] = kept, refused: threading.Event = refused) -> None:
            try:
                while True:
                    kept.append(pool.map(tasks.same, range(3)))
            except RuntimeError as error:
                assert str(error) == AFTER_SHUTDOWN
                refused.set()

        threads = [threading.Thread(target=make) for _ in range(3)]
        for thread in threads:
            thread.start()
        tasks.until(lambda kept=kept: len(kept) > 20)
        pool.shutdown()
        for thread in threads:
            thread.join()
        assert refused.is_set()
        assert all(list(results) == [0, 1, 2] for results in kept)


# ---- a full pool ----


def test_an_input_that_was_refused_is_not_lost(tmp_path: Path) -> None:
    """Overloaded is raised only where no result is under way, and iteration goes on after it."""
    with Pool(1, max_pending=3, on_full="raise") as pool:
        for make in (pool.map, pool.map_unordered):
            held = hold(pool, tmp_path)
            others = [pool.submit(tasks.same, 1) for _ in range(2)]
            results = make(tasks.same, Source(50))
            for _ in range(3):
                with pytest.raises(Overloaded):
                    next(results)
            release(tmp_path)
            standard.wait([held, *others], LIMIT_S)
            assert pool.drain(LIMIT_S)
            assert sorted(results) == list(range(50))
            for path in ("started", "go"):
                (tmp_path / path).unlink()

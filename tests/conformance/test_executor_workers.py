"""An executor as its workers, many threads and event loops see it: initializers, concurrency, references, await."""

from __future__ import annotations

import asyncio
import concurrent.futures as standard
import gc
import os
import subprocess
import sys
import threading
import traceback
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool, PoolBroken

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


# ---- initializer ----

seen: list[Any] = []


def remember(path: str, *words: Any) -> None:
    tasks.note(path, str(os.getpid()))
    seen.append(words)


def recall() -> tuple[int, list[Any]]:
    return os.getpid(), seen


def fail_from(path: str, times: int) -> None:
    """The first `times` workers start, those after them do not."""
    tasks.note(path)
    if len(tasks.notes(path)) > times:
        raise LookupError("no more workers")


@pytest.mark.slow
def test_every_worker_is_initialized_once_before_its_first_task(tmp_path: Path) -> None:
    path = str(tmp_path / "pids")
    with Pool(2, initializer=remember, initargs=(path, 1, "two")) as pool:
        first = [future.result(LIMIT_S) for future in [pool.submit(recall) for _ in range(50)]]
        assert type(pool.submit(tasks.kill_self).exception(LIMIT_S)).__name__ == "WorkerCrashed"
        again = [future.result(LIMIT_S) for future in [pool.submit(recall) for _ in range(50)]]
        tasks.until(lambda: len(tasks.ready(pool)) == 2)
    assert [words for _, words in first + again] == [[(1, "two")]] * 100
    pids = tasks.notes(path)
    assert len(pids) == len(set(pids))
    assert {str(pid) for pid, _ in first + again} <= set(pids)
    assert seen == []


def test_an_initializer_may_be_a_closure() -> None:
    words: list[str] = []

    def begin(word: str) -> None:
        words.append(word)
        os.environ["SHMRT_TEST_INITIALIZED"] = word

    with Pool(1, None, begin, ("by value",)) as pool:  # the standard positions
        assert pool.submit(os.getenv, "SHMRT_TEST_INITIALIZED").result(LIMIT_S) == "by value"
    assert words == []
    assert "SHMRT_TEST_INITIALIZED" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 4])
def test_a_pool_whose_workers_never_start_is_broken(workers: int, tmp_path: Path) -> None:
    path = str(tmp_path / "starts")
    with Pool(workers, initializer=fail_from, initargs=(path, 0)) as pool:
        futures: list[Any] = []
        try:
            futures += [pool.submit(tasks.same, number) for number in range(100)]
        except PoolBroken:
            pass  # that early
        for future in futures:
            error = future.exception(LIMIT_S)
            assert type(error) is PoolBroken
            assert isinstance(error, standard.BrokenExecutor)
            assert "no more workers" in "".join(error.reasons)
            assert "LookupError" in "".join(error.reasons)
        tasks.until(lambda: pool.health()["status"] == "unhealthy")
        with pytest.raises(PoolBroken):
            while True:  # a pool that got no submit before it broke refuses the first, else the next one
                pool.submit(tasks.pid).result(LIMIT_S)
        with pytest.raises(PoolBroken):
            pool.map(tasks.same, range(5))
    assert len(tasks.notes(path)) >= max(3, workers)


def test_one_start_that_fails_does_not_break_a_pool(tmp_path: Path) -> None:
    """Fewer failures in a row than max(3, max_workers), and then a worker that is ready."""
    path = str(tmp_path / "starts")
    with Pool(1, initializer=tasks.raise_first, initargs=(path, 2, LookupError("not yet"), None)) as pool:
        assert pool.submit(tasks.same, 5).result(LIMIT_S) == 5
    assert len(tasks.notes(path)) >= 3


# ---- how many ----


@pytest.mark.slow
def test_the_default_is_the_usable_cpus() -> None:
    usable = len(os.sched_getaffinity(0))
    with Pool() as pool:
        assert 1 <= pool._max_workers <= usable
        assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1
        inside = pool.submit(workers_by_default).result(LIMIT_S)
    assert inside == 1  # divided by its siblings


def workers_by_default() -> int:
    with Pool() as pool:
        return pool._max_workers


@pytest.mark.parametrize("count", [0, -1, -(2**40)])
def test_too_few_workers_have_the_standard_words(count: int) -> None:
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        Pool(count)
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        Pool(max_workers=count)


def in_and_out(path: str) -> None:
    tasks.note(path, "in")
    os.sched_yield()
    tasks.note(path, "out")


def test_no_more_run_at_once_than_there_are_workers(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with Pool(3, spares=1) as pool:
        tasks.until(lambda: len(tasks.ready(pool)) == 4)
        standard.wait([pool.submit(in_and_out, path) for _ in range(300)], LIMIT_S)
    inside = most = 0
    for word in tasks.notes(path):
        inside += 1 if word == "in" else -1
        most = max(most, inside)
    assert inside == 0
    assert most <= 3


def test_an_idle_worker_is_used_again(pool: Pool) -> None:
    """One after another needs no more than the workers there are."""
    assert len({pool.submit(tasks.pid).result(LIMIT_S) for _ in range(50)}) <= 2
    assert len(tasks.ready(pool)) <= 2


# ---- references ----


class Noted:
    """Notes where and that it ended."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __del__(self) -> None:
        tasks.note(self.path, str(os.getpid()))


def make_noted(path: str) -> Noted:
    return Noted(path)


def test_no_worker_keeps_arguments_or_results(tmp_path: Path) -> None:
    given, made = str(tmp_path / "given"), str(tmp_path / "made")
    with Pool(1) as pool:
        worker = str(pool.submit(tasks.pid).result(LIMIT_S))
        noted = Noted(given)
        assert pool.submit(type, noted).result(LIMIT_S) is Noted
        tasks.until(lambda: worker in tasks.notes(given), "the worker keeps its last argument")
        result = pool.submit(make_noted, made).result(LIMIT_S)
        tasks.until(lambda: worker in tasks.notes(made), "the worker keeps its last result")
        assert str(os.getpid()) not in tasks.notes(given) + tasks.notes(made)
        del noted, result
        assert str(os.getpid()) in tasks.notes(given)
        assert str(os.getpid()) in tasks.notes(made)


class Value:
    pass


def test_the_program_keeps_neither_arguments_nor_results(pool: Pool) -> None:
    argument = Value()
    future = pool.submit(tasks.same, argument)
    looks = [weakref.ref(argument), weakref.ref(future)]
    del argument
    result = future.result(LIMIT_S)
    looks.append(weakref.ref(result))
    del future, result
    assert [look() for look in looks] == [None] * 3


def test_an_iterator_keeps_no_result_that_it_gave(pool: Pool) -> None:
    for results in (pool.map(tasks.same, [Value() for _ in range(5)]), pool.map_unordered(tasks.same, [Value()] * 5)):
        for result in results:
            look = weakref.ref(result)
            del result
            assert look() is None


class Failure(Exception):
    """Unlike the built-in ones it may be referred to weakly."""


def test_exceptions_leave_no_cycle(pool: Pool) -> None:
    """As the standard ones: an exception that was raised and caught is gone without the collector."""
    gc.collect()
    gc.disable()
    try:
        future = pool.submit(tasks.raise_it, Failure("x"))
        try:
            future.result(LIMIT_S)
        except Failure as error:
            look = weakref.ref(error)
        del future
        assert look() is None
    finally:
        gc.enable()


# ---- exceptions ----


def test_a_traceback_shows_both_sides(pool: Pool) -> None:
    try:
        pool.submit(tasks.raise_it, KeyError("over there")).result(LIMIT_S)
    except KeyError as error:
        shown = "".join(traceback.format_exception(error))
    assert "in raise_it" in shown
    assert "raise error" in shown
    assert "direct cause" in shown
    assert shown.index("in raise_it") < shown.index("test_a_traceback_shows_both_sides")


# ---- threads ----


@pytest.mark.slow
def test_many_threads_share_a_pool(pool: Pool) -> None:
    wrong: list[Any] = []

    def use(base: int) -> None:
        for round in range(20):
            numbers = range(base + round, base + round + 30)
            if [future.result(LIMIT_S) for future in [pool.submit(tasks.same, n) for n in numbers]] != list(numbers):
                wrong.append(("submit", base, round))
            if list(pool.map(tasks.same, numbers)) != list(numbers):
                wrong.append(("map", base, round))
            if pool.call(tasks.same, base) != base:
                wrong.append(("call", base, round))

    threads = [threading.Thread(target=use, args=(1000 * number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---- event loops ----


def test_a_loop_awaits_wraps_and_runs(pool: Pool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await pool.submit(tasks.same, 1) == 1
        assert await asyncio.wrap_future(pool.submit(tasks.same, 2)) == 2
        assert await loop.run_in_executor(pool, tasks.same, 3) == 3
        awaited = [asyncio.ensure_future(await_it(pool.submit(tasks.same, number))) for number in range(50)]
        wrapped = [asyncio.wrap_future(pool.submit(tasks.same, number)) for number in range(50)]
        run = [loop.run_in_executor(pool, tasks.same, number) for number in range(50)]
        assert await asyncio.gather(*awaited, *wrapped, *run) == [*range(50)] * 3
        for failing in (
            await_it(pool.submit(tasks.raise_it, KeyError("x"))),
            asyncio.wrap_future(pool.submit(tasks.raise_it, KeyError("x"))),
            loop.run_in_executor(pool, tasks.raise_it, KeyError("x")),
        ):
            with pytest.raises(KeyError):
                await failing

    asyncio.run(main())


async def await_it(future: Any) -> Any:
    return await future


@pytest.mark.parametrize("way", ["await", "wrap", "run"])
def test_a_cancelled_await_cancels_what_has_not_begun(way: str, tmp_path: Path) -> None:
    ran = str(tmp_path / "ran")

    async def main(pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        held = pool.submit(tasks.started_then_wait, str(tmp_path / "started"), str(tmp_path / "go"), "held")
        tasks.until(lambda: tasks.notes(tmp_path / "started"))
        if way == "run":
            waiting: Any = loop.run_in_executor(pool, tasks.note_and_return, ran, 1)
        else:
            future = pool.submit(tasks.note_and_return, ran, 1)
            waiting = asyncio.ensure_future(await_it(future)) if way == "await" else asyncio.wrap_future(future)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(waiting, 0.01)
        tasks.note(str(tmp_path / "go"))
        assert await held == "held"
        assert await pool.submit(tasks.same, 1) == 1

    with Pool(1) as pool:
        asyncio.run(main(pool))
        assert pool.stats()["cancelled"] == 1
    assert tasks.notes(ran) == []


PROGRAM = """
import sys
from shmrt import Pool
import pool_tasks as tasks

pool = Pool(2)
futures = [pool.submit(tasks.note_and_return, sys.argv[1], number) for number in range(200)]
results = pool.map(tasks.note_and_return, [sys.argv[1]] * 1300, range(200, 1500))
dropped = [sys.argv[1]] * 1300
pool.map(tasks.note_and_return, dropped, range(1500, 2800))
"""


@pytest.mark.slow
def test_the_end_of_a_program_finishes_what_it_accepted(tmp_path: Path) -> None:
    """Calls, and maps that nobody iterated: held ones and dropped ones, longer than what is under way at once."""
    path = tmp_path / "ran"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)])},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(map(int, tasks.notes(path))) == list(range(2800))

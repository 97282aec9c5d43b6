"""What a pool or one call may be asked for: bounds, options, priorities, kills; and what happens to wrong arguments."""

from __future__ import annotations

import asyncio
import concurrent.futures as standard
import queue
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Overloaded, PoisonMessage, Pool, TaskTimeout


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def hold(pool: Any, path: Path) -> Any:
    """Occupies one worker until `release`: whatever is submitted behind it in a pool of one cannot have begun."""
    future = pool.submit(tasks.started_then_wait, str(path / "started"), str(path / "go"), "held")
    tasks.until(lambda: tasks.notes(path / "started"))
    return future


def release(path: Path) -> None:
    tasks.note(str(path / "go"))


# ---- wrong arguments ----

WRONG_FOR_A_POOL = [
    ("max_workers", "2", TypeError),
    ("max_workers", 2.0, TypeError),
    ("max_workers", True, TypeError),
    ("max_workers", 10**6, ValueError),
    ("initializer", 5, TypeError),
    ("initargs", 5, TypeError),
    ("max_tasks_per_child", 0, ValueError),
    ("max_tasks_per_child", "3", TypeError),
    ("name", "", ValueError),
    ("name", "a/b", ValueError),
    ("name", 5, ValueError),
    ("ring", 5, TypeError),
    ("max_attempts", 0, ValueError),
    ("max_attempts", 1.5, TypeError),
    ("task_timeout", 0, ValueError),
    ("task_timeout", float("nan"), ValueError),
    ("task_timeout", "1s", TypeError),
    ("max_rss", 0, ValueError),
    ("max_rss", "much", ValueError),
    ("max_rss", 1.5, TypeError),
    ("max_age", -1, ValueError),
    ("max_age", "5", TypeError),
    ("spares", -1, ValueError),
    ("spares", None, TypeError),
    ("preload", "numpy", TypeError),
    ("preload", [5], TypeError),
    ("preload", 5, TypeError),
    ("max_restarts", -1, ValueError),
    ("max_seconds", 0, ValueError),
    ("max_seconds", None, TypeError),
    ("worker_exit", 5, TypeError),
    ("threads_per_worker", 0, ValueError),
    ("max_pending", 0, ValueError),
    ("max_pending", "9", TypeError),
    ("on_full", "drop_oldest", ValueError),
    ("on_full", None, ValueError),
    ("seed", -1, ValueError),
    ("seed", 1.5, TypeError),
    ("runtime", "default", TypeError),
]


def named(error: BaseException, argument: str, value: Any) -> bool:
    text = str(error)
    return argument in text and (repr(value) in text or repr((value,)) in text or repr(value).strip("[]") in text)


@pytest.mark.parametrize(("argument", "value", "kind"), WRONG_FOR_A_POOL)
def test_a_wrong_argument_of_a_pool_is_named(argument: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        Pool(**{"max_workers": 1, argument: value})
    assert type(caught.value) is kind
    assert named(caught.value, argument, value), caught.value


WRONG_FOR_A_CALL = [
    ("timeout", 0, ValueError),
    ("timeout", "1", TypeError),
    ("deadline", -1, ValueError),
    ("deadline", True, TypeError),
    ("max_attempts", 0, ValueError),
    ("max_attempts", "2", TypeError),
    ("retry_on", 5, TypeError),
    ("retry_on", "ValueError", TypeError),
    ("retry_on", [5], TypeError),
    ("retry_on", int, TypeError),
    ("priority", 1.5, TypeError),
    ("priority", 2**40, ValueError),
    ("retries", 3, TypeError),
]


@pytest.mark.parametrize(("argument", "value", "kind"), WRONG_FOR_A_CALL)
def test_a_wrong_option_is_named(pool: Pool, argument: str, value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        pool.options(**{argument: value})
    assert type(caught.value) is kind
    assert argument in str(caught.value)
    assert named(caught.value, argument, value) or argument == "retries", caught.value
    with pytest.raises(kind):
        pool.options(priority=1).options(**{argument: value})


WRONG_FOR_A_MAP = [
    ("chunksize", 0, ValueError),
    ("chunksize", "many", TypeError),
    ("buffersize", 0, ValueError),
    ("buffersize", "1", TypeError),
    ("timeout", -1, ValueError),
    ("timeout", "1", TypeError),
]


@pytest.mark.parametrize(("argument", "value", "kind"), WRONG_FOR_A_MAP)
@pytest.mark.parametrize("name", ["map", "map_unordered", "imap_unordered", "amap"])
def test_a_wrong_argument_of_a_map_is_named(
    pool: Pool, name: str, argument: str, value: Any, kind: type[Exception]
) -> None:
    for maker in (pool, pool.options(priority=1)):
        with pytest.raises(kind) as caught:
            getattr(maker, name)(tasks.same, [1], **{argument: value})
        assert named(caught.value, argument, value), caught.value
        for bad in ((), (tasks.same,), (5, [1]), (tasks.same, 5)):
            with pytest.raises(TypeError):
                getattr(maker, name)(*bad)


# ---- max_pending ----


def test_a_full_pool_refuses(tmp_path: Path) -> None:
    with Pool(1, max_pending=3, on_full="raise", name="small") as pool:
        held = hold(pool, tmp_path)
        waiting = [pool.submit(tasks.same, number) for number in range(2)]
        for submit in (pool.submit, pool.options(priority=9).submit, pool.call):
            with pytest.raises(Overloaded) as caught:
                submit(tasks.same, 1)
            assert isinstance(caught.value, queue.Full)
            assert (caught.value.capacity, caught.value.where) == (3, "small")
            assert "max_pending" in str(caught.value)
        assert waiting[0].cancel()
        assert pool.submit(tasks.same, 5).cancel()  # a cancelled one makes room
        again = pool.submit(tasks.same, 6)
        release(tmp_path)
        assert (held.result(LIMIT_S), waiting[1].result(LIMIT_S), again.result(LIMIT_S)) == ("held", 1, 6)
        assert pool.drain(LIMIT_S)
        assert [pool.submit(tasks.same, number) for number in range(3)]


def test_of_many_threads_as_many_get_in_as_there_is_room(tmp_path: Path) -> None:
    with Pool(1, max_pending=10, on_full="raise") as pool:
        hold(pool, tmp_path)
        accepted: list[Any] = []
        refused: list[Any] = []
        begin = threading.Barrier(8)

        def submit() -> None:
            begin.wait()
            for number in range(20):
                try:
                    accepted.append(pool.submit(tasks.same, number))
                except Overloaded as error:
                    refused.append(error)

        threads = [threading.Thread(target=submit) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(accepted), len(refused)) == (9, 151)
        release(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [1, 3])
def test_blocked_submits_of_many_threads_never_pass_the_bound(limit: int) -> None:
    with Pool(2, max_pending=limit) as pool:
        results: list[Any] = []
        most: list[int] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                most.append(pool.stats()["pending"])

        def submit(base: int) -> None:
            view = pool.options(priority=base % 3)
            for number in range(base, base + 50):
                results.append((pool if number % 2 else view).submit(tasks.same, number).result(LIMIT_S))
                most.append(pool.stats()["pending"])

        watcher = threading.Thread(target=watch)
        threads = [threading.Thread(target=submit, args=(1000 * number,)) for number in range(6)]
        for thread in [watcher, *threads]:
            thread.start()
        for thread in threads:
            thread.join()
        done.set()
        watcher.join()
        assert max(most) <= limit
        assert sorted(results) == [1000 * base + number for base in range(6) for number in range(50)]
        assert list(pool.map(tasks.same, range(50))) == list(range(50))
        assert sorted(pool.map_unordered(tasks.same, range(50))) == list(range(50))


def blocked_submit(pool: Pool) -> tuple[threading.Thread, list[Any]]:
    outcome: list[Any] = []

    def submit() -> None:
        try:
            outcome.append(pool.submit(tasks.same, 5).result(LIMIT_S))
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=submit)
    thread.start()
    return thread, outcome


def test_a_blocked_submit_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with Pool(1, max_pending=1) as pool:
        hold(pool, tmp_path)
        thread, outcome = blocked_submit(pool)
        assert pool.stats()["submitted"] == 1
        assert outcome == []
        release(tmp_path)
        thread.join()
        assert outcome == [5]


@pytest.mark.parametrize("way", ["shutdown", "kill_workers"])
def test_the_end_of_its_pool_ends_a_blocked_submit(way: str, tmp_path: Path) -> None:
    pool = Pool(1, max_pending=1)
    hold(pool, tmp_path)
    thread, outcome = blocked_submit(pool)
    if way == "shutdown":
        pool.shutdown(wait=False)
        release(tmp_path)
    else:
        pool.kill_workers()
    thread.join()
    assert [(type(one), str(one)) for one in outcome] == [
        (RuntimeError, "cannot schedule new futures after shutdown"),
    ]


def test_an_event_loop_is_never_blocked(tmp_path: Path) -> None:
    async def main(pool: Pool) -> None:
        loop = asyncio.get_running_loop()
        hold(pool, tmp_path)
        with pytest.raises(Overloaded):
            pool.submit(tasks.same, 1)
        with pytest.raises(Overloaded):
            await loop.run_in_executor(pool, tasks.same, 1)
        results = pool.amap(tasks.same, range(20))
        with pytest.raises(Overloaded):
            await anext(results)
        elsewhere = loop.run_in_executor(None, lambda: pool.submit(tasks.same, 7).result(LIMIT_S))
        release(tmp_path)
        assert await elsewhere == 7  # another thread may wait for room
        tasks.until(lambda: pool.stats()["pending"] == 0)
        assert [value async for value in results] == list(range(20))

    with Pool(1, max_pending=1) as pool:
        asyncio.run(main(pool))


def submit_in_a_worker(count: int) -> list[int]:
    with Pool(1, max_pending=1) as pool:
        return [future.result(LIMIT_S) for future in [pool.submit(tasks.same, number) for number in range(count)]]


@pytest.mark.slow
def test_a_pool_of_a_worker_blocks_as_any_other() -> None:
    """It is not a pool that this worker belongs to."""
    with Pool(1) as pool:
        assert pool.submit(submit_in_a_worker, 20).result(LIMIT_S) == list(range(20))


# ---- options ----


@pytest.mark.slow
def test_views_keep_what_they_were_given_and_leave_the_pool_alone(tmp_path: Path) -> None:
    with Pool(1, task_timeout=0.05, max_attempts=2) as pool:
        patient = pool.options(timeout=None)
        go = str(tmp_path / "go")
        assert type(pool.submit(tasks.wait_for_file, go).exception(LIMIT_S)) is TaskTimeout
        assert [type(error) for error in pool.map_unordered(tasks.wait_for_file, [go], return_exceptions=True)] == [
            TaskTimeout
        ]
        held = patient.options(priority=3).submit(tasks.started_then_wait, str(tmp_path / "started"), go, "held")
        tasks.until(lambda: tasks.notes(tmp_path / "started"))
        assert not held.done()
        assert type(pool.options(deadline=0.01).submit(tasks.same, 1).exception(LIMIT_S)) is TaskTimeout
        release(tmp_path)
        assert held.result(LIMIT_S) == "held"
        killer = patient.options(priority=3).submit(tasks.kill_self)
        assert type(killer.exception(LIMIT_S)) is PoisonMessage  # max_attempts of the pool
        assert killer.attempts == 2
        assert type(patient.options(max_attempts=3).call(tasks.die_first, str(tmp_path / "died"), 2, "x")) is str
        with pytest.raises(TaskTimeout):
            pool.call(tasks.sleep_long, timeout=0.05)


@pytest.mark.parametrize("form", [LookupError, (LookupError,), [LookupError, OSError], (OSError, KeyError)])
def test_exceptions_are_retried_as_often_as_attempts_are_allowed(pool: Pool, form: Any, tmp_path: Path) -> None:
    once, thrice = str(tmp_path / "once"), str(tmp_path / "thrice")
    first = pool.options(retry_on=form).submit(tasks.raise_first, once, 9, KeyError("x"), None)
    assert (type(first.exception(LIMIT_S)), first.attempts) == (KeyError, 1)  # one attempt is the default
    third = pool.options(retry_on=form, max_attempts=3).submit(tasks.raise_first, thrice, 2, KeyError("x"), "done")
    assert (third.result(LIMIT_S), third.attempts) == ("done", 3)
    assert [len(tasks.notes(path)) for path in (once, thrice)] == [1, 3]
    tries = [str(tmp_path / str(number)) for number in range(5)]
    view = pool.options(retry_on=form, max_attempts=3)
    assert list(view.map(tasks.raise_first, tries, [1] * 5, [KeyError("x")] * 5, range(5))) == list(range(5))


def test_a_higher_priority_goes_first_and_equals_in_their_order(tmp_path: Path) -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    ran = str(tmp_path / "ran")
    with Pool(1) as pool:
        hold(pool, tmp_path)
        while pool.stats()["backlog"] == 0:  # the lane of the worker is full: from here on the order is the pool's
            pool.submit(tasks.note, ran, "lane")
        given = [(rng.choice([-(2**31), -5, 1, 2, 7, 2**31 - 1]), number) for number in range(200)]
        for priority, number in given:
            pool.options(priority=priority).submit(tasks.note, ran, str(number))
        release(tmp_path)
    found = tasks.notes(ran)
    numbers = [int(word) for word in found if word != "lane"]
    assert numbers == [number for _, number in sorted(given, key=lambda pair: (-pair[0], pair[1]))]
    above = sum(priority > 0 for priority, _ in given)
    assert "lane" not in found[-(200 - above) :]  # what has no priority has 0, and goes before what has less
    assert found.index(str(numbers[0])) < len(found) - 200  # and after what has more


# ---- kill ----


def test_a_killed_task_ends_and_nobody_else_does(tmp_path: Path) -> None:
    with Pool(1, max_attempts=3) as pool:
        held = hold(pool, tmp_path)
        before = int(tasks.notes(tmp_path / "started")[0])
        behind = [pool.submit(tasks.same, number) for number in range(20)]
        assert behind[3].kill()
        assert behind[3].cancelled()
        assert not held.done()
        assert held.kill()
        with pytest.raises(standard.CancelledError):
            held.result(LIMIT_S)
        assert held.cancelled() and held.done() and not held.running()
        assert [future.result(LIMIT_S) for future in behind if not future.cancelled()] == [
            number for number in range(20) if number != 3
        ]
        after = pool.submit(tasks.pid)
        assert after.result(LIMIT_S) != before
        assert not after.kill()
        assert after.result(0) != before
        assert after.worker == f"{pool.name}/0"
        assert (after.attempts, held.attempts) == (1, 1)
        stats = pool.stats()
        assert (stats["cancelled"], stats["crashed"], stats["retried"]) == (2, 0, 0)
    assert len(tasks.notes(tmp_path / "started")) == 1  # it is not tried again

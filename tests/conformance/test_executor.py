"""What every user of `concurrent.futures` relies on, in the spirit of CPython's own tests of the executors."""

from __future__ import annotations

import concurrent.futures as standard
import gc
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool, PoolBroken

AFTER_SHUTDOWN = "cannot schedule new futures after shutdown"


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def capture(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


def gone(pid: int) -> bool:
    return not os.path.exists(f"/proc/{pid}")


def hold(pool: Pool, path: Path) -> Any:
    """Occupies one worker until `release`: whatever is submitted behind it in a pool of one cannot have begun."""
    future = pool.submit(tasks.started_then_wait, str(path / "started"), str(path / "go"), "held")
    tasks.until(lambda: tasks.notes(path / "started"))
    return future


def release(path: Path) -> None:
    tasks.note(str(path / "go"))


def test_arguments_may_have_any_name(pool: Pool) -> None:
    """`self`, `fn`, `timeout` are the function's, not the executor's."""
    names = {"self": 1, "fn": 2, "args": 3, "submit": 4, "timeout": 5, "options": 6, "wait": 7}
    wanted = ((8, 9), names)
    with Pool(1, max_pending=3) as bounded:
        for one in (pool, bounded):
            assert one.submit(capture, 8, 9, **names).result(LIMIT_S) == wanted
            assert one.options(priority=1).submit(capture, 8, 9, **names).result(LIMIT_S) == wanted
            del names["timeout"]
            assert one.call(capture, 8, 9, **names) == ((8, 9), names)
            names["timeout"] = 5
        many = {f"name{number}": number for number in range(100)}
        assert bounded.submit(capture, *range(50), **many).result(LIMIT_S) == (tuple(range(50)), many)


@pytest.mark.parametrize("bad", [(), (5,), (None, 1)])
def test_submit_needs_a_function(pool: Pool, bad: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="submit"):
        pool.submit(*bad)
    with pytest.raises(TypeError):
        pool.submit(fn=tasks.pid)


def test_it_is_an_executor_with_standard_futures(pool: Pool) -> None:
    future = pool.submit(pow, 2, 8)
    assert isinstance(pool, standard.Executor)
    assert isinstance(future, standard.Future)
    assert future.result(LIMIT_S) == 256
    assert (future.done(), future.cancelled(), future.running(), future.exception()) == (True, False, False, None)
    assert not future.cancel()


class FalseyBool(Exception):
    def __bool__(self) -> bool:
        return False


class FalseyLen(Exception):
    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("kind", [FalseyBool, FalseyLen])
def test_an_exception_that_is_false_is_an_exception(pool: Pool, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        pool.submit(tasks.raise_it, kind("x")).result(LIMIT_S)
    with pytest.raises(kind):
        list(pool.map(tasks.raise_it, [kind("x")]))
    with pytest.raises(kind):
        list(pool.map_unordered(tasks.raise_it, [kind("x")]))
    assert [type(error) for error in pool.map_unordered(tasks.raise_it, [kind("x")], return_exceptions=True)] == [kind]
    with pytest.raises(kind):
        pool.call(tasks.raise_it, kind("x"))


# ---- wait and as_completed ----


def test_wait_for_the_first(pool: Pool, tmp_path: Path) -> None:
    other = Pool(1)  # of its own, for what keeps a worker: nothing else here may wait behind it
    held = hold(other, tmp_path)
    quick = pool.submit(tasks.same, 1)
    done, waiting = standard.wait([held, quick], LIMIT_S, standard.FIRST_COMPLETED)
    assert (done, waiting) == ({quick}, {held})
    bad = pool.submit(tasks.raise_it, KeyError("x"))
    done, waiting = standard.wait([held, quick, bad], LIMIT_S, standard.FIRST_EXCEPTION)
    assert (done, waiting) == ({quick, bad}, {held})
    assert standard.wait([held], 0) == (set(), {held})
    with pytest.raises(standard.TimeoutError):
        held.result(0)
    with pytest.raises(standard.TimeoutError):
        held.exception(0.01)
    release(tmp_path)
    assert standard.wait([held, bad], LIMIT_S) == ({held, bad}, set())
    other.shutdown()


def test_as_completed_gives_each_once_and_of_any_pool(pool: Pool, tmp_path: Path) -> None:
    with Pool(1) as other, standard.ThreadPoolExecutor(1) as threads:
        held = hold(other, tmp_path)
        futures = [one.submit(tasks.same, number) for number in range(20) for one in (pool, threads)]
        futures += futures
        with pytest.raises(standard.TimeoutError):
            for future in standard.as_completed([*futures, held], 0):
                assert future is not held
        early = list(standard.as_completed(futures, LIMIT_S))
        assert len(early) == 40
        assert set(early) == set(futures)
        release(tmp_path)
        assert list(standard.as_completed([held], LIMIT_S)) == [held]


# ---- cancel ----


def test_what_was_cancelled_never_runs(tmp_path: Path) -> None:
    ran = str(tmp_path / "ran")
    with Pool(1) as pool:
        held = hold(pool, tmp_path)
        assert held.running()
        assert not held.cancel()
        waiting = [pool.submit(tasks.note_and_return, ran, number) for number in range(100)]
        called: list[Any] = []
        for future in waiting[::2]:
            future.add_done_callback(called.append)
        assert all(future.cancel() for future in waiting[::2])
        assert all(future.cancel() and future.cancelled() for future in waiting[::2])  # twice is as good as once
        for future in waiting[::2]:
            with pytest.raises(standard.CancelledError):
                future.result(0)
        release(tmp_path)
        assert [future.result(LIMIT_S) for future in waiting[1::2]] == list(range(1, 100, 2))
        tasks.until(lambda: len(called) == 50)
        assert set(called) == set(waiting[::2])
        assert pool.stats()["cancelled"] == 50
    assert tasks.notes(ran) == [str(number) for number in range(1, 100, 2)]


def test_callbacks_may_submit_and_fail(pool: Pool, caplog: pytest.LogCaptureFixture) -> None:
    results: list[Any] = []
    ended = threading.Event()

    def again(future: Any) -> None:
        results.append(future.result())
        if future.result() < 50:
            pool.submit(tasks.same, future.result() + 1).add_done_callback(again)
        else:
            ended.set()
        raise ZeroDivisionError("of the callback")

    pool.submit(tasks.same, 0).add_done_callback(again)
    assert ended.wait(LIMIT_S)
    assert results == list(range(51))
    tasks.until(lambda: sum("of the callback" in str(record.exc_info) for record in caplog.records) == 51)


# ---- shutdown ----


@pytest.mark.parametrize("way", ["shutdown", "no wait", "with", "cancel", "terminate_workers", "kill_workers"])
def test_after_shutdown_nothing_is_accepted(way: str) -> None:
    pool = Pool(1)
    if way == "with":
        with pool:
            pass
    elif way.endswith("workers"):
        getattr(pool, way)()
    else:
        pool.shutdown(wait=way != "no wait", cancel_futures=way == "cancel")
    for call in (
        lambda: pool.submit(tasks.pid),
        lambda: pool.options(priority=1).submit(tasks.pid),
        lambda: pool.map(tasks.same, [1]),
        lambda: pool.map_unordered(tasks.same, [1]),
        lambda: pool.amap(tasks.same, [1]),
        lambda: pool.call(tasks.pid),
    ):
        with pytest.raises(RuntimeError, match=f"^{AFTER_SHUTDOWN}$"):
            call()
    pool.shutdown()
    pool.shutdown(wait=False, cancel_futures=True)
    pool.terminate_workers()
    pool.kill_workers()
    assert pool.drain(0)


def test_shutdown_waits_for_what_was_accepted() -> None:
    pool = Pool(2)
    futures = [pool.submit(tasks.spin_for, 0.0005, number) for number in range(100)]
    pids = [row["pid"] for row in pool._core.workers()]
    pool.shutdown()
    assert all(future.done() for future in futures)
    assert [future.result(0) for future in futures] == list(range(100))
    assert all(gone(pid) for pid in pids)
    stats = pool.stats()
    assert (stats["completed"], stats["pending"], stats["workers_ready"]) == (100, 0, 0)


def test_shutdown_without_waiting_does_what_was_accepted(tmp_path: Path) -> None:
    pool = Pool(1)
    held = hold(pool, tmp_path)
    worker = int(tasks.notes(tmp_path / "started")[0])
    waiting = [pool.submit(tasks.same, number) for number in range(50)]
    pool.shutdown(wait=False)
    assert not held.done()
    release(tmp_path)
    assert held.result(LIMIT_S) == "held"
    assert [future.result(LIMIT_S) for future in waiting] == list(range(50))
    tasks.until(lambda: gone(worker))


def test_shutdown_may_cancel_what_waits(tmp_path: Path) -> None:
    pool = Pool(1)
    held = hold(pool, tmp_path)
    waiting = [pool.submit(tasks.same, number) for number in range(50)]
    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    assert not held.done()
    release(tmp_path)
    pool.shutdown()
    assert held.result(0) == "held"


def test_a_callback_may_shut_down() -> None:
    pool = Pool(1)
    ended = threading.Event()

    def end(_: Any) -> None:
        pool.shutdown()
        ended.set()

    pool.submit(tasks.same, 1).add_done_callback(end)
    assert ended.wait(LIMIT_S)
    with pytest.raises(RuntimeError, match=AFTER_SHUTDOWN):
        pool.submit(tasks.same, 1)


@pytest.mark.slow
def test_submits_against_a_shutdown_from_several_threads() -> None:
    """Each submit is refused with the standard words, or its call is done."""
    for _ in range(5):
        pool = Pool(2)
        accepted: list[Any] = []
        refused: list[str] = []
        begin = threading.Barrier(6)

        def submit(pool: Pool = pool, accepted: Any = accepted, refused: Any = refused, begin: Any = begin) -> None:
            begin.wait()
            try:
                while True:
                    accepted.append(pool.submit(tasks.same, 5))
            except RuntimeError as error:
                refused.append(str(error))

        def end(pool: Pool = pool, accepted: Any = accepted, begin: Any = begin) -> None:
            begin.wait()
            tasks.until(lambda: len(accepted) > 50)
            pool.shutdown()

        threads = [threading.Thread(target=submit) for _ in range(4)] + [threading.Thread(target=end) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert refused == [AFTER_SHUTDOWN] * 4
        pool.shutdown()
        assert {future.result(0) for future in accepted} == {5}
        assert pool.stats()["submitted"] == len(accepted)


def test_leaving_by_an_exception_cancels_and_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.pool._GRACE_S", 0.05)
    with pytest.raises(KeyError):
        with Pool(1) as pool:
            held = hold(pool, tmp_path)
            waiting = [pool.submit(tasks.same, number) for number in range(50)]
            raise KeyError("out")
    assert all(future.cancelled() for future in waiting)
    assert held.done()
    assert gone(int(tasks.notes(tmp_path / "started")[0]))


def test_leaving_by_an_exception_lets_what_runs_end(tmp_path: Path) -> None:
    """Within the grace time, which is what the file is made in."""

    def release_soon(pool: Pool) -> None:
        tasks.until(lambda: pool._shutdown)
        release(tmp_path)

    with pytest.raises(KeyError):
        with Pool(1) as pool:
            held = hold(pool, tmp_path)
            thread = threading.Thread(target=release_soon, args=(pool,))
            thread.start()
            raise KeyError("out")
    thread.join()
    assert held.result(0) == "held"


@pytest.mark.parametrize("way", ["terminate_workers", "kill_workers"])
def test_the_workers_may_be_ended_at_once(way: str, tmp_path: Path) -> None:
    pool = Pool(2)
    done = pool.submit(tasks.same, 5)
    assert done.result(LIMIT_S) == 5
    held = hold(pool, tmp_path)
    waiting = [pool.submit(tasks.sleep_long) for _ in range(50)]
    results = pool.map(tasks.same, range(10))
    pids = [row["pid"] for row in pool._core.workers()]
    getattr(pool, way)()
    assert all(gone(pid) for pid in pids)
    for future in [held, *waiting]:
        error = future.exception(0)
        assert isinstance(error, standard.BrokenExecutor)
    assert type(waiting[-1].exception(0)) is PoolBroken
    assert waiting[-1].exception(0).reasons == ["terminated by terminate_workers() or kill_workers()"]
    for _ in range(10):
        with pytest.raises(PoolBroken):
            next(results)
    assert done.result(0) == 5


# ---- life without shutdown ----


def test_a_forgotten_pool_does_its_work_and_ends(tmp_path: Path) -> None:
    pool = Pool(1)
    held = hold(pool, tmp_path)
    worker = int(tasks.notes(tmp_path / "started")[0])
    waiting = [pool.submit(tasks.same, number) for number in range(50)]
    look = weakref.ref(pool)
    del pool
    assert look() is None  # at once: nothing of the pool refers back to it
    release(tmp_path)
    assert held.result(LIMIT_S) == "held"
    assert [future.result(LIMIT_S) for future in waiting] == list(range(50))
    tasks.until(lambda: gone(worker))


def test_a_pool_of_one_expression_does_its_work(tmp_path: Path) -> None:
    path = str(tmp_path / "ran")
    assert Pool(2).submit(pow, 2, 8).result(LIMIT_S) == 256
    assert Pool(2).call(pow, 2, 9) == 512
    assert list(Pool(1).map(tasks.same, range(700))) == list(range(700))  # more than one window
    assert sorted(Pool(1).map_unordered(tasks.same, range(700))) == list(range(700))
    worker = Pool(1).submit(tasks.pid).result(LIMIT_S)
    tasks.until(lambda: gone(worker))
    Pool(1).map(tasks.note_and_return, [path] * 700, range(700))
    tasks.until(lambda: len(tasks.notes(path)) == 700)
    assert tasks.notes(path) == [str(number) for number in range(700)]


def test_a_pool_in_a_cycle_is_collected() -> None:
    pool = Pool(1)
    worker = pool.submit(tasks.pid).result(LIMIT_S)
    pool.itself = pool  # type: ignore[attr-defined]
    look = weakref.ref(pool)
    del pool
    gc.collect()
    assert look() is None
    tasks.until(lambda: gone(worker))


def test_a_bound_submit_keeps_its_pool_open() -> None:
    submit = Pool(1).submit
    gc.collect()
    assert submit(pow, 2, 8).result(LIMIT_S) == 256
    assert submit(pow, 2, 9).result(LIMIT_S) == 512

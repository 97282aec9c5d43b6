"""What a pool's end, its failure to start and its seed mean to whoever holds it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool, PoolBroken, Runtime, WorkerCrashed


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def test_a_broken_pool_says_why_at_every_submit() -> None:
    with Pool(1, initializer=tasks.kill_self) as pool:
        assert isinstance(pool.submit(abs, 1).exception(LIMIT_S), PoolBroken)
        with pytest.raises(PoolBroken) as refused:
            pool.submit(abs, 1)
        assert any("signal 9" in reason for reason in refused.value.reasons)


def draw() -> tuple[float, float]:
    import random

    import numpy

    return random.random(), float(numpy.random.random())


def test_a_seed_is_the_same_whenever_numpy_is_imported() -> None:
    drawn = []
    for _ in range(2):
        with Pool(1, seed=12) as pool:
            drawn.append(pool.submit(draw).result(LIMIT_S))
    assert drawn[0] == drawn[1]


def test_what_runs_when_its_pool_is_left_by_an_exception_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.pool._GRACE_S", 0.1)
    with pytest.raises(KeyError), Pool(1) as pool:
        future = pool.submit(tasks.sleep_long)
        tasks.until(future.running)
        raise KeyError
    assert future.cancelled()


def leave() -> int:
    logging.getLogger("shmrt.test").warning("the end of %d", os.getpid())
    return os.getpid()


@pytest.mark.parametrize("preload", [(), ("colorsys",)])
def test_what_workers_leave_is_there_when_their_pool_has_ended(
    preload: tuple[str, ...], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the program's dispatcher thread is in a callback of the user's the whole time."""
    monkeypatch.setattr("shmrt.pool_opened._GRACE_S", LIMIT_S)  # they import this file before they leave
    entered, may_leave = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        entered.set()
        may_leave.wait()

    pool = Pool(2, worker_exit=leave, preload=preload)
    try:
        tasks.until(lambda: len(tasks.ready(pool)) == 2)
        pids = {row["pid"] for row in tasks.ready(pool)}
        pool.submit(tasks.same, 1).add_done_callback(callback)
        assert entered.wait(LIMIT_S)
        pool.shutdown()
        assert sorted(pool.exit_values) == sorted(pids)
    finally:
        may_leave.set()
    tasks.until(lambda: all(f"the end of {pid}" in caplog.text for pid in pids))
    assert {record.processName for record in caplog.records} == {f"{pool.name}/0", f"{pool.name}/1"}


def say_and_die() -> None:
    logging.getLogger("shmrt.test").error("about to die")
    tasks.kill_self()


def test_a_death_comes_with_the_last_lines_of_its_worker() -> None:
    entered, may_leave = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        entered.set()
        may_leave.wait()

    with Pool(1) as pool:
        try:
            pool.submit(tasks.same, 1).add_done_callback(callback)
            assert entered.wait(LIMIT_S)
            error = pool.submit(say_and_die).exception(LIMIT_S)
        finally:
            may_leave.set()
    assert isinstance(error, WorkerCrashed)
    assert error.log_tail == "ERROR shmrt.test: about to die"


def fail_to_start() -> None:
    raise LookupError("no such device")


def test_a_pool_that_breaks_says_what_its_workers_said() -> None:
    entered, may_leave = threading.Event(), threading.Event()

    def callback(_: object) -> None:
        entered.set()
        may_leave.wait()

    with Runtime(), Pool(1) as other:
        try:
            other.submit(tasks.same, 1).add_done_callback(callback)
            assert entered.wait(LIMIT_S)
            with Pool(1, initializer=fail_to_start) as pool:
                try:
                    error = pool.submit(abs, 1).exception(LIMIT_S)
                except PoolBroken as refused:  # that early
                    error = refused
        finally:
            may_leave.set()
    assert isinstance(error, PoolBroken)
    assert "LookupError: no such device" in "".join(error.reasons)


def test_who_served_the_last_task_leaves_its_value_whether_or_not_the_root_had_looked(tmp_path: Path) -> None:
    """Its root sleeps from before the worker is ready until after the pool is to end."""
    for number in range(20):
        path = str(tmp_path / f"may start {number}")
        with Runtime() as runtime:
            pool = Pool(1, initializer=tasks.wait_for_file, initargs=(path,), worker_exit=leave)
            tasks.until(pool._core.workers)
            assert runtime.pid is not None
            os.kill(runtime.pid, signal.SIGSTOP)
            try:
                tasks.note(path)
                served = pool.submit(tasks.pid).result(LIMIT_S)
                ending = threading.Thread(target=pool.shutdown)
                ending.start()
                tasks.until(pool._opened._ending.locked)
            finally:
                os.kill(runtime.pid, signal.SIGCONT)
            ending.join()
            assert pool.exit_values == [served]


def test_a_pool_whose_end_comes_while_it_opens_leaves_no_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root is told of the start first, whichever thread is faster: of an end before it, it could make nothing."""
    with Runtime() as runtime:
        link, ended = runtime._link, threading.Event()
        add, opening, removed = link.add_pool, threading.Event(), threading.Event()

        def slowly(*arguments: object, **more: object) -> None:
            opening.set()
            removed.wait(0.2)  # for as long as an end that does not wait would take
            add(*arguments, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(link, "add_pool", slowly)
        remove = link.remove_pool
        monkeypatch.setattr(link, "remove_pool", lambda *arguments: (remove(*arguments), removed.set()))
        made: list[Pool] = []
        maker = threading.Thread(target=lambda: made.append(Pool(1)))
        maker.start()
        assert opening.wait(LIMIT_S)
        (opened,) = runtime._pools.values()

        def end() -> None:
            opened.shutdown()
            ended.set()

        threading.Thread(target=end, daemon=True).start()
        maker.join(LIMIT_S)
        assert ended.wait(LIMIT_S), "its worker was started after its end"
        assert made[0]._opened is opened and not opened.core.stats()

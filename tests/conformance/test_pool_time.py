"""Timeouts and deadlines: the task that is late pays, wherever it hangs, and nobody else does."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool, TaskTimeout, WorkerCrashed


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.mark.parametrize(
    ("hang", "shown"),
    [
        (tasks.sleep_long, "in sleep_long"),
        (tasks.hold_the_gil, "in hold_the_gil"),
        (tasks.backtrack, "in backtrack"),
        (tasks.masked_loop, None),
        (tasks.ignoring_loop, None),
    ],
)
def test_a_hung_task_ends_at_its_timeout(hang: Any, shown: str | None) -> None:
    with Pool(2) as pool:
        for turn in range(1, 20):
            before = [pool.submit(tasks.same, number) for number in range(200)]
            hung = pool.options(timeout=0.5).submit(hang)
            after = [pool.submit(tasks.same, number) for number in range(200, 999)]
            assert [future.result(LIMIT_S) for future in before + after] == list(range(999))
            error = hung.exception(LIMIT_S)
            assert type(error) is TaskTimeout
            assert isinstance(error, TimeoutError)
            assert error.elapsed >= 0.5
            assert error.worker == hung.worker
            assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1
            assert pool.stats()["timed_out"] == turn
            assert pool.stats()["crashed"] == 0
            # A worker that gets no CPU for 30 ms when it is asked for its stack dies without telling.
            if shown is None or error.stack is not None:
                break
        if shown is not None:
            assert shown in str(error.stack)


def test_a_long_c_call_within_its_time_is_healthy() -> None:
    with Pool(1, task_timeout=60) as pool:
        pid = pool.submit(tasks.pid).result(LIMIT_S)
        assert pool.submit(tasks.hold_the_gil_for, 2.0).result(LIMIT_S) == pid
        assert pool.stats()["restarts"] == 0


def test_a_deadline_drops_what_has_not_begun_and_nothing_else(tmp_path: Path) -> None:
    started, go, ran = str(tmp_path / "started"), str(tmp_path / "go"), str(tmp_path / "ran")
    with Pool(1) as pool:
        assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1  # its worker is there: the next one begins in time
        running = pool.options(deadline=1.0).submit(tasks.started_then_wait, started, go, "ran on")
        tasks.until(lambda: tasks.notes(started))
        late = [pool.options(deadline=1.0).submit(tasks.note_and_return, ran, number) for number in range(100)]
        plain = [pool.submit(tasks.same, number) for number in range(100)]
        for future in late:
            error = future.exception(LIMIT_S)  # while the worker is still busy
            assert type(error) is TaskTimeout
            assert error.worker is None
        assert not running.done()
        tasks.note(go)
        assert running.result(LIMIT_S) == "ran on"
        assert [future.result(LIMIT_S) for future in plain] == list(range(100))
        assert tasks.notes(ran) == []
        assert pool.options(deadline=60).submit(tasks.same, 7).result(LIMIT_S) == 7
        assert pool.options(deadline=0).submit(tasks.note_and_return, ran, 1).exception(LIMIT_S) is not None
        assert pool.stats()["restarts"] == 0


def test_a_timeout_is_tried_again_only_if_named(tmp_path: Path) -> None:
    once, twice, always = (str(tmp_path / name) for name in ("once", "twice", "always"))
    with Pool(2, max_attempts=3) as pool:
        not_named = pool.options(timeout=1.0).submit(tasks.hang_first, once, 1, "x")
        named = pool.options(timeout=1.0, retry_on=(TaskTimeout,)).submit(tasks.hang_first, twice, 2, "x")
        never = pool.options(timeout=1.0, retry_on=TimeoutError).submit(tasks.hang_first, always, 100, "x")
        assert type(not_named.exception(LIMIT_S)) is TaskTimeout
        assert (named.result(LIMIT_S), named.attempts) == ("x", 3)
        assert type(never.exception(LIMIT_S)) is TaskTimeout
        assert never.attempts == 3
    assert [len(tasks.notes(path)) for path in (once, twice, always)] == [1, 3, 3]


def test_an_exception_is_tried_again_only_if_named(tmp_path: Path) -> None:
    paths = [str(tmp_path / str(number)) for number in range(4)]
    with Pool(2, max_attempts=3) as pool:
        view = pool.options(retry_on=(ValueError,))
        plain = pool.submit(tasks.raise_first, paths[0], 1, ValueError("no"), "x")
        named = view.submit(tasks.raise_first, paths[1], 2, UnicodeError("no"), "x")
        other = view.submit(tasks.raise_first, paths[2], 1, KeyError("no"), "x")
        always = view.submit(tasks.raise_first, paths[3], 100, ValueError("no"), "x")
        assert type(plain.exception(LIMIT_S)) is ValueError
        assert (named.result(LIMIT_S), named.attempts) == ("x", 3)
        assert type(other.exception(LIMIT_S)) is KeyError
        assert type(always.exception(LIMIT_S)) is ValueError
        assert always.attempts == 3
        assert pool.stats()["restarts"] == 0
    assert [len(tasks.notes(path)) for path in paths] == [1, 3, 1, 3]


@pytest.mark.slow
def test_the_timeout_of_a_task_that_just_ended_never_hits_the_next() -> None:
    """Tasks that end right at their timeout, each followed by one without any: those must never be hit."""
    with Pool(2) as pool:
        timed = pool.options(timeout=0.004)
        pairs = [
            (timed.submit(tasks.spin_for, 0.00395 + number % 20 * 1e-5, number), pool.submit(tasks.same, number))
            for number in range(400)
        ]
        ends = [0, 0]
        for number, (edge, plain) in enumerate(pairs):
            assert plain.result(LIMIT_S) == number
            assert plain.attempts == 1
            error = edge.exception(LIMIT_S)
            assert error is None or type(error) is TaskTimeout, repr(error)
            ends[error is None] += 1
        assert pool.stats()["timed_out"] == ends[0]
        assert pool.stats()["crashed"] == 0
        print("timed out, in time:", ends)


def test_a_stopped_worker_keeps_its_task_and_its_lane(tmp_path: Path) -> None:
    started, go = str(tmp_path / "started"), str(tmp_path / "go")
    with Pool(2) as pool:
        held = pool.submit(tasks.started_then_wait, started, go, "still here")
        stopped = int(tasks.until(lambda: tasks.notes(started))[0])
        os.kill(stopped, signal.SIGSTOP)
        try:
            others = [pool.submit(tasks.pid) for _ in range(500)]
            assert stopped not in {future.result(LIMIT_S) for future in others}
            assert not held.done()
            tasks.note(go)
            assert [pool.submit(tasks.same, number).result(LIMIT_S) for number in range(50)] == list(range(50))
            assert not held.done()
        finally:
            os.kill(stopped, signal.SIGCONT)
        assert held.result(LIMIT_S) == "still here"
        assert held.attempts == 1
        stats = pool.stats()
        assert (stats["restarts"], stats["stale_results"], stats["crashed"]) == (0, 0, 0)


def test_a_stopped_worker_is_ended_at_its_task_s_timeout(tmp_path: Path) -> None:
    started, go = str(tmp_path / "started"), str(tmp_path / "go")
    with Pool(2) as pool:
        held = pool.options(timeout=0.5).submit(tasks.started_then_wait, started, go)
        with contextlib.suppress(ProcessLookupError):  # its time may be over already
            os.kill(int(tasks.until(lambda: tasks.notes(started))[0]), signal.SIGSTOP)
        error = held.exception(LIMIT_S)
        assert type(error) is TaskTimeout
        assert not isinstance(error, WorkerCrashed)
        assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1

"""A deadline travels with its message: what nobody wants any more does not begin, whoever was stopped meanwhile."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from overload_kit import PATIENCE_S, Clerk, held, hold_server, let_go, lines, stopped, trace, until

import shmrt
from shmrt import CallTimeout, Child, Pool, RingSpec, Runtime, Supervisor, TaskTimeout, start, whereis

SOON_S = 0.1


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Runtime]:
    with Runtime() as made:
        yield made


# ---- servers
def test_calls_that_expired_while_the_server_was_stopped_never_run(tmp_path: Path) -> None:
    """It goes on, skips and counts them, and does what is still wanted, in order."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), mailbox=RingSpec(slots=16))
    with stopped(ref.pid):
        for number in range(4):
            with pytest.raises(CallTimeout):
                ref.call("ask", f"late {number}", timeout=0.01)
        wanted = ref.request("ask", "wanted", timeout=PATIENCE_S)
        forgotten = ref.request("ask", "cancelled", timeout=PATIENCE_S)
        assert forgotten.cancel()
    assert wanted.result(PATIENCE_S) == "wanted"
    assert ref.ask("end") == "end"
    assert lines(path) == ["wanted", "end"]
    stats = ref.mailbox_stats()
    assert (stats["expired"], stats["abandoned"], stats["depth"]) == (4, 1, 0)
    ref.stop()


@pytest.mark.parametrize("send", ["cast", "info"])
def test_casts_and_infos_with_a_deadline_expire(send: str, tmp_path: Path) -> None:
    """Those without one never do."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path))
    put = ref.info if send == "info" else lambda word, **options: ref.cast("note", word, **options)
    with stopped(ref.pid):
        assert put("late", deadline=0.0) and put("late, too", deadline=SOON_S)
        assert put("no limit") and put("in time", deadline=PATIENCE_S)
        end = time.monotonic() + SOON_S
        until(lambda: time.monotonic() > end)
    assert ref.ask("end") == "end"
    assert lines(path) == ["no limit", "in time", "end"]
    assert ref.mailbox_stats()["expired"] == 2
    ref.stop()


def test_a_full_mailbox_is_waited_for_no_longer_than_the_message_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), mailbox=RingSpec(slots=1))
    holding = hold_server(ref, path)
    ref.note("first")
    with pytest.raises(shmrt.Overloaded):
        ref.cast("note", "late", timeout=None, deadline=0.02)
    let_go(path)
    assert holding.result(PATIENCE_S) == "went on" and ref.ask("end") == "end"
    assert lines(path)[1:] == ["first", "end"]
    ref.stop()


def test_a_handler_is_told_how_long_its_caller_waits(tmp_path: Path) -> None:
    """By the message that it handles, and by no other; out of a handler there is none."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path))
    left = ref.call("left", timeout=30.0)
    assert left is not None and 0 < left <= 30.0
    assert ref.call("left", timeout=None) is None
    ref.cast("note_left")
    ref.cast("note_left", deadline=0.0)  # dropped
    ref.cast("note_left", deadline=PATIENCE_S)
    ref.ask("end")
    first, second, _ = lines(path)
    assert first == "left None" and 0 < float(second.split()[1]) <= PATIENCE_S
    assert shmrt.deadline() is None
    ref.stop()


def test_one_with_little_patience_does_not_end_the_server_that_it_calls(tmp_path: Path) -> None:
    """A handler that calls on does not get its caller's deadline by itself: CallTimeout there would end it."""

    class Middle(shmrt.Server):
        def init(self, other: Any) -> None:
            self.other = other

        @shmrt.call
        def through(self) -> Any:
            return self.other.ask("through")

    path = tmp_path / "trace"
    last = start(Clerk, str(path))
    middle = start(Middle, last)
    holding = hold_server(last, path)
    with pytest.raises(CallTimeout):
        middle.call("through", timeout=0.02)
    pid = middle.pid
    let_go(path)
    assert holding.result(PATIENCE_S) == "went on"
    assert middle.through() == "through" and middle.pid == pid
    assert lines(path)[1:] == ["through", "through"]
    middle.stop()
    last.stop()


# ---- pools


def test_tasks_behind_a_stopped_worker_expire(tmp_path: Path) -> None:
    """They lie in its lane; it goes on and does not begin them, though it may have claimed one."""
    path = tmp_path / "trace"
    with Pool(1) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE_S)
        with stopped(pid):
            late = [pool.options(deadline=SOON_S).submit(trace, str(path), number) for number in range(5)]
            wanted = pool.submit(trace, str(path), "wanted")
            for future in late:
                with pytest.raises(TaskTimeout):
                    future.result(PATIENCE_S)
        assert wanted.result(PATIENCE_S) is None
        stats = pool.stats()
        assert (stats["expired"], stats["timed_out"], stats["pending"]) == (5, 5, 0)
    assert lines(path) == ["wanted"]


def test_killed_futures_behind_a_stopped_worker_make_room(tmp_path: Path) -> None:
    """What was taken out of a full lane, without a result, leaves its place to what waits in the backlog."""
    path = tmp_path / "trace"
    with Pool(1) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE_S)
        with stopped(pid):
            killed = [pool.submit(trace, str(path), number) for number in range(12)]
            wanted = pool.submit(trace, str(path), "wanted")
            for future in killed:
                future.kill()
        assert wanted.result(PATIENCE_S) is None and all(future.cancelled() for future in killed)
    assert lines(path) == ["wanted"]


def expire_with_a_stopped_hub(path: str, report: str) -> None:
    """A program: its worker has a task in its lane whose deadline passes while nobody is there to take it back."""
    with Pool(1) as pool:
        pool.submit(trace, path, "worker", "ready").result(PATIENCE_S)
        first = pool.submit(held, path)
        until(lambda: len(lines(path)) == 2)
        late = [pool.options(deadline=0.3).submit(trace, path, "late", number) for number in range(2)]
        after = pool.submit(trace, path, "after")
        trace(path, "submitted", os.getpid())
        first.result(PATIENCE_S)
        after.result(PATIENCE_S)
        names = [type(future.exception(PATIENCE_S)).__name__ for future in late]
        stats = pool.stats()
        trace(report, *names, stats["expired"], stats["failed"], stats["pending"], stats["restarts"])


def test_a_worker_does_not_begin_what_expired_while_the_program_was_stopped(tmp_path: Path) -> None:
    """The task carries its deadline: the hub cannot take it back, and the worker finds it over by itself."""
    import multiprocessing

    from ring_kit import stop_helpers

    path, report = tmp_path / "trace", tmp_path / "report"
    program = multiprocessing.get_context("spawn").Process(
        target=expire_with_a_stopped_hub, args=(str(path), str(report))
    )
    program.start()
    until(lambda: any(line.startswith("submitted") for line in lines(path)))
    assert program.pid is not None
    with stopped(program.pid):
        end = time.monotonic() + 0.35
        until(lambda: time.monotonic() > end)
        let_go(path)
        # one of them may be in the lane with `after` behind it, or none: either way no late one runs
        until(lambda: Path(f"{path}.go").exists())
        settled = time.monotonic() + 0.1
        until(lambda: time.monotonic() > settled)
        assert not [line for line in lines(path) if line.startswith("late")]
    program.join(PATIENCE_S)
    assert program.exitcode == 0
    assert lines(report) == ["TaskTimeout TaskTimeout 2 0 0 0"]
    assert not [line for line in lines(path) if line.startswith("late")] and "after" in lines(path)
    stop_helpers()


def test_a_task_that_died_is_not_begun_again_after_its_deadline(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Pool(1) as pool:
        view = pool.options(deadline=0.5, max_attempts=5)
        future = view.submit(held, str(path))
        until(lambda: lines(path))
        pid = int(lines(path)[0].split()[1])
        end = time.monotonic() + 0.5
        until(lambda: time.monotonic() > end)  # it runs on: a deadline ends nothing that has begun
        assert not future.done()
        os.kill(pid, 9)
        with pytest.raises(TaskTimeout):
            future.result(PATIENCE_S)
        assert len(lines(path)) == 1 and pool.stats()["expired"] == 1


# ---- nested
def look() -> float | None:
    return shmrt.deadline()


def look_in_a_thread() -> list[float | None]:
    seen: list[float | None] = []
    thread = threading.Thread(target=lambda: seen.append(shmrt.deadline()))
    thread.start()
    thread.join()
    return [*seen, shmrt.deadline()]


def nest(how: str) -> Any:
    """In a task: what a task that it submits has left."""
    with Pool(1) as inner:
        if how == "plain":
            return inner.submit(look).result(PATIENCE_S)
        if how == "shorter":
            return inner.options(deadline=5.0).submit(look).result(PATIENCE_S)
        if how == "longer":
            return inner.options(deadline=500.0).submit(look).result(PATIENCE_S)
        if how == "timeout":
            return inner.options(timeout=50.0).submit(look).result(PATIENCE_S)
        if how == "map":
            return list(inner.map(lambda _: look(), range(2)))[1]
        return inner.options(deadline=None).submit(look).result(PATIENCE_S)


NESTED = {"plain": 30.0, "shorter": 5.0, "longer": 30.0, "timeout": 30.0, "map": 30.0, "none": None}


@pytest.mark.parametrize("how", NESTED)
def test_what_a_task_submits_has_no_more_time_than_the_task(how: str) -> None:
    """At most what is left; deadline=None opts out."""
    most = NESTED[how]
    with Pool(1) as pool:
        left = pool.options(deadline=30.0).submit(nest, how).result(PATIENCE_S)
        assert left is None if most is None else 0 < left <= most
        assert pool.submit(nest, "plain").result(PATIENCE_S) is None
        assert pool.submit(look).result(PATIENCE_S) is None  # nothing is left of the task before
        seen, own = pool.options(deadline=30.0).submit(look_in_a_thread).result(PATIENCE_S)
        assert seen is None and 0 < own <= 30.0


def nest_late(path: str) -> list[str]:
    """In a task that runs on when its deadline is over."""
    trace(path, "begun")
    until(lambda: shmrt.deadline() == 0.0)
    ends = []
    with Pool(1) as inner:
        for make in (inner.submit, inner.options(deadline=60.0).submit):
            try:
                make(trace, path, "nested").result(PATIENCE_S)
            except TaskTimeout:
                ends.append("TaskTimeout")
        inner.options(deadline=None).submit(trace, path, "opted out").result(PATIENCE_S)
    return ends


def test_nothing_new_is_begun_for_a_task_whose_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Pool(1) as pool:
        future = pool.options(deadline=0.2).submit(nest_late, str(path))
        assert future.result(PATIENCE_S) == ["TaskTimeout", "TaskTimeout"]
    assert lines(path) == ["begun", "opted out"]


def call_late(ref: Any) -> list[str]:
    until(lambda: shmrt.deadline() == 0.0)
    ends = []
    for name in ("late", "later"):
        try:
            ref.ask(name) if name == "late" else ref.call("ask", name, timeout=30.0)
        except CallTimeout as error:
            ends.append(str(error))
    ref.call("ask", "opted out", timeout=None)
    ref.cast("note", "cast")
    return ends


def call_in_time(ref: Any) -> Any:
    return ref.left(), ref.call("left", timeout=2.0), ref.call("left", timeout=None)


def test_what_a_task_calls_has_no_more_time_than_the_task(tmp_path: Path) -> None:
    """By default and with a timeout; timeout=None and casts opt out."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path))
    with Pool(1) as pool:
        default, shorter, none = pool.options(deadline=3.0).submit(call_in_time, ref).result(PATIENCE_S)
        assert 0 < default <= 3.0 and 0 < shorter <= 2.0 and none is None
        ends = pool.options(deadline=0.2).submit(call_late, ref).result(PATIENCE_S)
    assert len(ends) == 2 and all("what was left of the deadline of the task that called" in end for end in ends)
    ref.ask("end")
    assert lines(path) == ["opted out", "cast", "end"]
    ref.stop()


def submit_to(name: str) -> Any:
    return whereis(name).submit(look).result(PATIENCE_S)


def test_a_deadline_goes_through_the_door_of_a_pool_of_a_tree() -> None:
    from overload_kit import until as wait

    tree = Supervisor([Child(Pool, kwargs={"max_workers": 1}, name="last", id="last")])
    with Runtime(tree):
        with Pool(1) as pool:
            wait(lambda: whereis("last"))
            left = pool.options(deadline=20.0).submit(submit_to, "last").result(PATIENCE_S)
            assert 0 < left <= 20.0
            assert pool.submit(submit_to, "last").result(PATIENCE_S) is None

"""Starts in order, stops in reverse order, and what each kind of shutdown means for the process (B5)."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import tree_kit
from tree_kit import Journal, Mark, alive, until

from shmrt import Child, Runtime, Shutdown, StartError, Supervisor, monitor


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def test_children_start_in_order(journal: Journal) -> None:
    """B6. Each child is ready before the next one begins, also across layers."""
    inner = Supervisor([Child(tree_kit.idle, Mark(journal, name), id=name) for name in ("b1", "b2")])
    tree = Supervisor(
        [
            Child(tree_kit.idle, Mark(journal, "a"), id="a"),
            Child(inner, id="b"),
            Child(tree_kit.idle, Mark(journal, "c"), id="c"),
        ]
    )
    with Runtime(tree) as runtime:
        assert journal.lines() == ["a", "b1", "b2", "c"]
        assert [row[0] for row in runtime.supervisor().which_children()] == ["c", "b", "a"]


def test_children_stop_in_reverse_order_one_after_the_other(journal: Journal) -> None:
    """B5. The newest child is asked first, and the next one only when it is gone."""
    names = ["a", "b", "c", "d"]
    with Runtime(Supervisor([Child(tree_kit.stay, journal, name, id=name) for name in names])):
        for name in names:
            journal.wait(f"run {name}")
        journal.clear()
    assert journal.lines() == [f"{word} {name}" for name in "dcba" for word in ("shutdown", "finally")]


def test_a_tree_is_stopped_depth_first(journal: Journal) -> None:
    """B5. A supervisor's children end, in reverse order, before it counts as ended and its elder sibling is asked."""
    inner = Supervisor([Child(tree_kit.stay, journal, name, id=name) for name in ("b1", "b2")])
    tree = Supervisor(
        [
            Child(tree_kit.stay, journal, "a", id="a"),
            Child(inner, id="b"),
            Child(tree_kit.stay, journal, "c", id="c"),
        ]
    )
    with Runtime(tree):
        for name in ("a", "b1", "b2", "c"):
            journal.wait(f"run {name}")
        journal.clear()
    assert journal.lines("shutdown") == ["shutdown c", "shutdown b2", "shutdown b1", "shutdown a"]


def test_a_function_sees_shutdown_and_its_finally_blocks_run(journal: Journal) -> None:
    """B5. Asked to end, a function sees Shutdown where it is, cleans up, and its exit reason is "shutdown"."""
    with Runtime(Supervisor([Child(tree_kit.stay, journal, "a", id="a")])) as runtime:
        supervisor = runtime.supervisor()
        journal.wait("run a")
        with monitor(supervisor.child("a")) as watch:
            supervisor.terminate_child("a")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "shutdown"
        assert journal.lines() == ["run a", "shutdown a", "finally a"]
        assert not tree_kit.reports(runtime, "shutdown_error")


def at_exit(journal: Journal, name: str) -> None:
    import atexit

    atexit.register(journal.note, "atexit", name)
    tree_kit.stay(journal, name)


def test_atexit_functions_run_after_shutdown(journal: Journal) -> None:
    """B5. A child that was asked to end leaves as an interpreter does."""
    with Runtime(Supervisor([Child(at_exit, journal, "a")])):
        journal.wait("run a")
    assert journal.lines() == ["run a", "shutdown a", "finally a", "atexit a"]


def test_own_handler_replaces_shutdown(journal: Journal) -> None:
    """B5. A function with its own handler for SIGTERM ends in its own way; returning then is "normal"."""
    with Runtime(Supervisor([Child(tree_kit.own_handler, journal, "a", id="a", restart="transient")])) as runtime:
        supervisor = runtime.supervisor()
        journal.wait("run a")
        with monitor(supervisor.child("a")) as watch:
            supervisor.terminate_child("a")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "normal"
        assert journal.lines() == ["run a", "handler a"]
        assert not tree_kit.reports(runtime, "shutdown_error")


def test_a_permanent_child_must_end_by_shutdown_to_please_its_supervisor(journal: Journal) -> None:
    """B5. A permanent child that returns when it is asked to end is reported: shutdown_error, reason normal."""
    with Runtime(Supervisor([Child(tree_kit.own_handler, journal, "a", id="a")])) as runtime:
        journal.wait("run a")
        runtime.supervisor().terminate_child("a")
        assert [report["reason"] for report in tree_kit.reports(runtime, "shutdown_error", "a")] == ["normal"]


@pytest.mark.parametrize("function", [tree_kit.deaf, tree_kit.hold_gil])
def test_whoever_does_not_end_in_time_is_killed(journal: Journal, function: object) -> None:
    """B5. After its seconds, and not before, a child that ignores TERM or sits in C with the GIL is killed."""
    with Runtime(Supervisor([Child(function, journal, "a", id="a", shutdown=0.3)])) as runtime:
        supervisor = runtime.supervisor()
        journal.wait("run a")
        pid = supervisor.which_child("a")[1]
        with monitor(supervisor.child("a")) as watch:
            start = time.monotonic()
            supervisor.terminate_child("a")
            assert time.monotonic() - start >= 0.3
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "killed"
        assert not alive(pid)
        assert [report["reason"] for report in tree_kit.reports(runtime, "shutdown_error", "a")] == ["killed"]
        assert supervisor.which_child("a")[1] is None


def test_zero_seconds_are_asked_and_killed(journal: Journal) -> None:
    """B5. shutdown=0 asks, and kills whoever has not ended at once."""
    with Runtime(Supervisor([Child(tree_kit.deaf, journal, "a", shutdown=0)])) as runtime:
        journal.wait("run a")
        runtime.supervisor().terminate_child("deaf")
        assert runtime.supervisor().which_child("deaf")[1] is None


def test_brutal_kill_never_asks(journal: Journal) -> None:
    """B5. "brutal_kill" is SIGKILL at once: nothing of the function runs any more, and "killed" is what was wanted."""
    with Runtime(Supervisor([Child(tree_kit.stay, journal, "a", id="a", shutdown="brutal_kill")])) as runtime:
        supervisor = runtime.supervisor()
        journal.wait("run a")
        with monitor(supervisor.child("a")) as watch:
            supervisor.terminate_child("a")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "killed"
        assert journal.lines() == ["run a"]
        assert not tree_kit.reports(runtime, "shutdown_error")


def test_infinity_waits_as_long_as_it_takes(journal: Journal) -> None:
    """B5. A child with "infinity" is asked and never killed; its supervisor answers questions meanwhile."""
    with Runtime(Supervisor([Child(tree_kit.linger, journal, "a", "end", id="a", shutdown="infinity")])) as runtime:
        supervisor = runtime.supervisor()
        journal.wait("run a")
        pid = supervisor.which_child("a")[1]
        stopper = threading.Thread(target=supervisor.terminate_child, args=("a",))
        stopper.start()
        journal.wait("asked a")
        for _ in range(50):
            assert supervisor.count_children() == (1, 1, 0, 1)
        assert alive(pid) and stopper.is_alive()
        journal.note("end")
        stopper.join(tree_kit.PATIENCE_S)
        assert not stopper.is_alive() and not alive(pid)
        assert not tree_kit.reports(runtime, "shutdown_error")


def test_a_child_is_asked_once(journal: Journal) -> None:
    """B5. Several who stop the same child send one TERM: its cleaning up is not interrupted by another."""
    with Runtime(Supervisor([Child(tree_kit.linger, journal, "a", "end", id="a", restart="temporary")])) as runtime:
        supervisor = runtime.supervisor()
        ref = supervisor.child("a")
        journal.wait("run a")
        stoppers = [threading.Thread(target=ref.stop) for _ in range(3)]
        stoppers.append(threading.Thread(target=supervisor.terminate_child, args=("a",)))
        for stopper in stoppers:
            stopper.start()
        journal.wait("asked a")
        for _ in range(50):
            assert supervisor.which_child("a")[1] == ref.pid
        journal.note("end")
        for stopper in stoppers:
            stopper.join(tree_kit.PATIENCE_S)
            assert not stopper.is_alive()
        assert journal.lines("asked") == ["asked a"]


@pytest.mark.parametrize("how", ["return", "SIGKILL", "os._exit(5)", "sys.exit(3)"])
def test_a_child_that_ends_by_itself_while_it_is_being_stopped(journal: Journal, how: str) -> None:
    """B5. Its end is consumed by the stop: never taken for a crash, never restarted, whatever its reason."""
    with Runtime(
        Supervisor([Child(end_when_asked, journal, how, id="a"), Child(tree_kit.idle, id="b")], strategy="one_for_all")
    ) as runtime:
        supervisor = runtime.supervisor()
        journal.wait("run")
        other = supervisor.which_child("b")[1]
        supervisor.terminate_child("a")
        assert supervisor.which_child("a")[1] is None
        assert supervisor.which_child("b")[1] == other
        assert not tree_kit.reports(runtime, "child_terminated")
        expected = tree_kit.ENDINGS[how]
        assert [report["reason"] for report in tree_kit.reports(runtime, "shutdown_error", "a")] == [expected]
        supervisor.restart_child("a")
        assert supervisor.which_child("a")[1] is not None


def end_when_asked(journal: Journal, how: str) -> None:
    try:
        journal.note("run")
        tree_kit.wait_for_ever()
    except Shutdown:
        if how == "SIGKILL":
            os.kill(os.getpid(), signal.SIGKILL)
        tree_kit.end_by(how)


def test_a_stop_right_after_ready_is_always_seen(journal: Journal) -> None:
    """B5. Between ready and the function's first line nothing is lost: 40 children stopped at once end by shutdown."""
    children = [Child(tree_kit.idle, id=number) for number in range(40)]
    with Runtime(Supervisor(children, max_restarts=0)) as runtime:
        pass
    assert tree_kit.reports(runtime, "shutdown_error") == []


def test_stops_that_come_while_a_child_starts(journal: Journal) -> None:
    """B5. ProcessRef.stop of a child that is still starting ends it once it is ready."""
    tree = Supervisor([Child(tree_kit.idle, tree_kit.Hold(journal, "a", "go"), id="a")])
    runtime = Runtime(tree)
    starter = threading.Thread(target=runtime.start)
    starter.start()
    until(lambda: journal.lines("held"))
    ref = runtime.supervisor().child("a")
    stopper = threading.Thread(target=ref.stop)
    stopper.start()
    first = int(journal.lines("held")[0].split()[2])
    for _ in range(20):
        assert ref.pid == first
    journal.note("go")
    stopper.join(tree_kit.PATIENCE_S)
    starter.join(tree_kit.PATIENCE_S)
    assert not stopper.is_alive() and not starter.is_alive()
    until(lambda: len(journal.lines("held")) == 2)  # permanent: it is back
    runtime.stop()


def test_stopping_a_tree_that_still_starts_kills_the_child_in_the_making(journal: Journal) -> None:
    """B6. A runtime that is stopped while a child starts: the child is killed, elder ones end in order."""
    tree = Supervisor(
        [
            Child(tree_kit.stay, journal, "a", id="a"),
            Child(tree_kit.idle, tree_kit.Hold(journal, "b", "never"), id="b"),
            Child(tree_kit.idle, Mark(journal, "c"), id="c"),
        ]
    )
    runtime = Runtime(tree)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            runtime.start()
        except BaseException as error:
            failures.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    until(lambda: journal.lines("held"))
    journal.wait("run a")
    pid = int(journal.lines("held")[0].split()[2])
    runtime.stop()
    starter.join(tree_kit.PATIENCE_S)
    assert not starter.is_alive()
    assert len(failures) == 1 and isinstance(failures[0], (StartError, RuntimeError)), failures
    assert not alive(pid)
    assert journal.lines("shutdown") == ["shutdown a"] and "c" not in journal.lines()


def test_runtime_stop_is_idempotent_and_wait_says_shutdown(journal: Journal) -> None:
    """B5. stop() twice is stop() once; wait() then says "shutdown"."""
    runtime = Runtime(Supervisor([Child(tree_kit.idle)]))
    runtime.start()
    assert runtime.wait(0) is None
    runtime.stop()
    runtime.stop()
    assert runtime.wait(tree_kit.PATIENCE_S) == "shutdown"


def sleep_over_it(journal: Journal) -> None:
    """TERM is noted by another thread, so nothing ends the sleep of the main thread: just what happens to a signal that
    comes right before a sleep."""
    noted = threading.Event()

    def take() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        noted.set()
        tree_kit.wait_for_ever()

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=take, daemon=True).start()
    noted.wait()
    tree_kit.stay(journal, "a")


def test_nobody_sleeps_over_a_stop(journal: Journal) -> None:
    """B5. A signal that came a moment before the function fell asleep ends it all the same."""
    with Runtime(Supervisor([Child(sleep_over_it, journal, shutdown="infinity")])) as runtime:
        journal.wait("run a")
        runtime.supervisor().terminate_child("sleep_over_it")
    assert journal.lines() == ["run a", "shutdown a", "finally a"]

"""How real processes end, what that is called, and which of them are started again (B2, B7)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import tree_kit
from tree_kit import ENDINGS, Journal, until

from shmrt import Child, DynamicSupervisor, NotFound, Runtime, Shutdown, Supervisor, monitor

RESTARTS = ("permanent", "transient", "temporary")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def is_orderly(reason: Any) -> bool:
    return reason in ("normal", "shutdown") or reason[0] == "shutdown"


def same(reason: Any, expected: Any) -> bool:
    """An error carries its traceback behind what is expected."""
    return bool(reason == expected or (expected[0] == "error" and reason[: len(expected)] == expected))


def go(journal: Journal, how: str, pids: list[int]) -> None:
    """Lets the children end; signals come from here."""
    journal.note("go")
    if how.startswith("SIG") and how not in ("SIGSEGV", "SIGABRT"):
        for pid in pids:
            os.kill(pid, getattr(signal, how))


@pytest.mark.parametrize("how", ENDINGS)
def test_each_end_of_a_process_is_one_reason_and_one_decision(journal: Journal, how: str) -> None:
    """B2 B7. For every way to end and every restart type: the monitor's reason, the report, and whether it is back."""
    expected = ENDINGS[how]
    children = [Child(tree_kit.end_once, journal, restart, how, id=restart, restart=restart) for restart in RESTARTS]
    with Runtime(Supervisor(children, max_restarts=10)) as runtime:
        supervisor = runtime.supervisor()
        watches = {restart: monitor(supervisor.child(restart)) for restart in RESTARTS}
        before = tree_kit.pids(supervisor)
        for restart in RESTARTS:
            journal.wait(f"run {restart}")
        go(journal, how, list(before.values()))
        for restart, watch in watches.items():
            down = watch.wait(tree_kit.PATIENCE_S)
            assert down is not None and same(down.reason, expected), (restart, down, expected)
        if expected[0] == "error":
            assert "in end_by" in watches["transient"].wait(0).reason[3]
        comes_back = {"permanent": True, "transient": not is_orderly(expected), "temporary": False}
        for restart, back in comes_back.items():
            if back:
                assert tree_kit.new_pid(supervisor, restart, before[restart]) != before[restart]
                journal.wait(f"run {restart}", 2)
            elif restart == "temporary":
                with pytest.raises(NotFound):
                    supervisor.which_child(restart)
            else:
                assert supervisor.which_child(restart)[1] is None
        assert supervisor.count_children().active == sum(comes_back.values())
        for restart in RESTARTS:
            told = [report["reason"] for report in tree_kit.reports(runtime, "child_terminated", restart)]
            if restart == "permanent" or not is_orderly(expected):
                assert len(told) == 1 and same(told[0], expected), told
            else:
                assert told == []  # an end in order is news for nobody
        assert not tree_kit.reports(runtime, "out_of_memory")


@pytest.mark.parametrize("how", ["raise", "SIGKILL", "Shutdown(info)"])
def test_a_dynamic_supervisor_decides_alike(journal: Journal, how: str) -> None:
    """B2. In a DynamicSupervisor a child that ended for good is forgotten, a restarted one keeps its reference."""
    with Runtime(DynamicSupervisor(max_restarts=10)) as runtime:
        supervisor = runtime.supervisor()
        refs = {
            restart: supervisor.start_child(
                Child(tree_kit.end_once, journal, restart, how, id=restart, restart=restart)
            )
            for restart in RESTARTS
        }
        watches = {restart: monitor(ref) for restart, ref in refs.items()}
        before = {restart: ref.pid for restart, ref in refs.items()}
        for restart in RESTARTS:
            journal.wait(f"run {restart}")
        go(journal, how, list(before.values()))
        for watch in watches.values():
            down = watch.wait(tree_kit.PATIENCE_S)
            assert down is not None and same(down.reason, ENDINGS[how])
        back = {"permanent"} if is_orderly(ENDINGS[how]) else {"permanent", "transient"}
        for restart in back:
            journal.wait(f"run {restart}", 2)
            assert until(lambda restart=restart: refs[restart].pid) != before[restart]
        assert {row[0] for row in supervisor.which_children()} == back
        assert refs["temporary"].pid is None


def exec_away(journal: Journal) -> None:
    journal.note("run")
    if len(journal.lines("run")) == 1:
        os.execv("/bin/true", ["true"])
    tree_kit.wait_for_ever()


def test_a_child_that_becomes_another_program(journal: Journal) -> None:
    """B7. exec ends the child as its supervisor knows it: the process is killed if need be, and it is started again."""
    with Runtime(Supervisor([Child(exec_away, journal, id="a")])) as runtime:
        journal.wait("run", 2)
        [report] = tree_kit.reports(runtime, "child_terminated", "a")
        assert report["reason"] in ("normal", "killed")


def leave_a_thread(journal: Journal) -> None:
    import threading

    def work() -> None:
        while "go" not in journal.lines():
            pass
        journal.note("thread")

    threading.Thread(target=work).start()
    journal.note("returns")


def test_a_function_that_returned_waits_for_its_threads(journal: Journal) -> None:
    """B7. As an interpreter does: the process ends, with "normal", when its threads that are no daemons have ended."""
    with Runtime(Supervisor([Child(leave_a_thread, journal, id="a", restart="temporary")])) as runtime:
        with monitor(runtime.supervisor().child("a")) as watch:
            journal.wait("returns")
            assert watch.wait(0) is None
            journal.note("go")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "normal"
        assert journal.lines() == ["returns", "go", "thread"]


def leave_a_process(journal: Journal) -> None:
    pid = os.fork()
    if not pid:
        tree_kit.wait_for_ever()
    journal.note("left", pid)


def test_what_a_child_leaves_behind_ends_with_it(journal: Journal) -> None:
    """B5. Processes that a child has forked and not waited for do not outlive it."""
    with Runtime(Supervisor([Child(leave_a_process, journal, id="a", restart="temporary")])):
        until(lambda: journal.lines("left"))
        pid = int(journal.lines("left")[0].split()[1])
        until(lambda: not tree_kit.alive(pid), "it lives on")


class Unpicklable(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("never")


def raise_unpicklable(journal: Journal) -> None:
    if len(journal.lines()) == 0:
        journal.note("run")
        raise Unpicklable("some text")
    tree_kit.wait_for_ever()


def test_an_exception_that_does_not_pickle_is_a_reason_all_the_same(journal: Journal) -> None:
    """B7. A reason is plain text: type, message and traceback, whatever the exception is."""
    with Runtime(Supervisor([Child(raise_unpicklable, journal, id="a")])) as runtime:
        [report] = until(lambda: tree_kit.reports(runtime, "child_terminated", "a"))
        assert report["reason"][:3] == ("error", "test_tree_reasons.Unpicklable", "some text")
        assert "raise Unpicklable" in report["reason"][3]


class Info:
    """Travels as its pickle."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Info) and other.value == self.value

    __hash__ = None  # type: ignore[assignment]


def shut_down_with(journal: Journal, info: Any) -> None:
    journal.note("run")
    if len(journal.lines("run")) > 1:
        tree_kit.wait_for_ever()
    while "go" not in journal.lines():
        pass
    raise Shutdown(info)


@pytest.mark.parametrize("info", [7, ("a", 1.5, None), {"a": [1]}, Info(3), ("nested", ("tuple", [1])), b"bytes"])
def test_shutdown_carries_any_information(journal: Journal, info: Any) -> None:
    """B7. Whatever pickles arrives as itself in the reason of a monitor and in the reports."""
    with Runtime(Supervisor([Child(shut_down_with, journal, info, id=("a", 1))])) as runtime:
        with monitor(runtime.supervisor().child(("a", 1))) as watch:
            journal.note("go")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == ("shutdown", info)
        [report] = until(lambda: tree_kit.reports(runtime, "child_terminated", ("a", 1)))
        assert report["reason"] == ("shutdown", info)


class Homesick:
    """Can be unpickled only where it was made."""

    def __reduce__(self) -> Any:
        return only_in, (os.getpid(),)


def only_in(pid: int) -> Homesick:
    if os.getpid() != pid:
        raise ValueError("not at home")
    return Homesick()


def test_information_that_cannot_be_unpickled_harms_nobody(journal: Journal) -> None:
    """B7. The reason then says so; the program's link to the root serves on."""
    with Runtime(Supervisor([Child(shut_down_homesick, journal, id="a")])) as runtime:
        supervisor = runtime.supervisor()
        with monitor(supervisor.child("a")) as watch:
            journal.note("go")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason[0] == "shutdown" and "not at home" in down.reason[1]
        assert supervisor.count_children().specs == 1
        [report] = until(lambda: tree_kit.reports(runtime, "child_terminated", "a"))
        assert "not at home" in report["reason"][1]


def shut_down_homesick(journal: Journal) -> None:
    shut_down_with(journal, Homesick())

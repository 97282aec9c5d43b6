"""Starts that fail: what the caller is told, what is stopped again, and that nobody else waits for a slow one (B6)."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import tree_kit
from tree_kit import Fail, Hold, Journal, LeaveAtStart, Mark, Oops, alive, kill, until

from shmrt import AlreadyStarted, Child, DynamicSupervisor, Runtime, StartError, Supervisor, monitor, whereis


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


BROKEN: dict[str, tuple[Any, Any]] = {
    "raises": (lambda journal: Fail(Oops("no way")), ("error", "tree_kit.Oops", "no way")),
    "leaves with 0": (lambda journal: LeaveAtStart("os._exit(0)"), "normal"),
    "leaves with 5": (lambda journal: LeaveAtStart("os._exit(5)"), ("exit", 5)),
    "sys.exit": (lambda journal: LeaveAtStart("sys.exit(3)"), None),
    "crashes": (lambda journal: LeaveAtStart("SIGSEGV"), ("signal", "SIGSEGV")),
    "is slow": (lambda journal: Hold(journal, "x", "never"), "timeout"),
}


def broken(how: str, journal: Journal, **options: Any) -> Child:
    make, _ = BROKEN[how]
    if how == "is slow":
        options.setdefault("start_timeout", 0.3)
    return Child(tree_kit.idle, make(journal), id="broken", **options)


def fits(reason: Any, how: str) -> bool:
    expected = BROKEN[how][1]
    if isinstance(expected, tuple):
        return bool(reason[: len(expected)] == expected)
    return expected is None or bool(reason == expected)


@pytest.mark.parametrize("how", BROKEN)
def test_a_child_that_does_not_start_ends_the_tree_at_init(journal: Journal, how: str) -> None:
    """B6. Runtime(tree).start() raises StartError that names child and reason; elder ones are stopped in reverse order,
    younger ones never began, and nothing is left."""
    tree = Supervisor(
        [
            Child(tree_kit.stay, journal, "a", Mark(journal, "start a"), id="a"),
            Child(tree_kit.stay, journal, "b", Hold(journal, "b", "run a"), id="b"),
            Child(tree_kit.idle, Hold(journal, "c", "run b"), id="c"),
            broken(how, journal),
            Child(tree_kit.idle, Mark(journal, "start d"), id="d"),
        ]
    )
    runtime = Runtime(tree)
    with pytest.raises(StartError) as caught:
        runtime.start()
    assert caught.value.child == "broken"
    outer, (what, child, inner) = caught.value.reason
    assert (outer, what, child) == ("shutdown", "failed_to_start_child", "broken")
    assert fits(inner, how), inner
    assert "broken" in str(caught.value)
    assert journal.lines("shutdown") == ["shutdown b", "shutdown a"]
    assert not journal.lines("start d")
    for line in journal.lines("held"):
        assert not alive(int(line.split()[2]))
    assert runtime.pid is None or not alive(runtime.pid)


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("kind", ["static", "dynamic"])
def test_start_child_says_why_and_forgets(journal: Journal, how: str, kind: str) -> None:
    """B6. StartError carries the reason; the child is not kept, costs no restart, and its supervisor goes on."""
    tree: Any = Supervisor([], max_restarts=0) if kind == "static" else DynamicSupervisor(max_restarts=0)
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        for _ in range(2):
            with pytest.raises(StartError) as caught:
                supervisor.start_child(broken(how, journal))
            assert caught.value.child == "broken" and fits(caught.value.reason, how), caught.value.reason
            assert supervisor.count_children() == (0, 0, 0, 0)
        supervisor.start_child(tree_kit.idle)
        assert supervisor.count_children() == (1, 1, 0, 1)
        assert runtime.wait(0) is None


def test_the_caller_sees_the_remote_traceback(journal: Journal) -> None:
    """B6. A start failure shows where it happened."""
    with Runtime(DynamicSupervisor()) as runtime:
        with pytest.raises(StartError) as caught:
            runtime.supervisor().start_child(broken("raises", journal))
        assert "in _fail" in caught.value.reason[3]
        assert "no way" in str(caught.value)


def test_a_nested_start_failure_names_the_whole_path(journal: Journal) -> None:
    """B6. Two layers down: the reason is OTP's nest of failed_to_start_child, `child` the innermost."""
    inner = Supervisor([Child(tree_kit.stay, journal, "x", id="x"), broken("raises", journal)])
    with pytest.raises(StartError) as caught:
        Runtime(Supervisor([Child(inner, id="inner")])).start()
    shutdown, (_, id, below) = caught.value.reason
    assert (shutdown, id) == ("shutdown", "inner")
    assert below[0] == "shutdown" and below[1][:2] == ("failed_to_start_child", "broken")
    assert caught.value.child == "broken"


def test_restart_child_that_fails_leaves_it_stopped(journal: Journal) -> None:
    """B4. A stopped child whose restart_child fails stays stopped, and can be tried again."""
    child = Child(tree_kit.idle, Fail(Oops("not yet"), journal, "good"), id="a")
    journal.note("good")
    with Runtime(Supervisor([child])) as runtime:
        supervisor = runtime.supervisor()
        supervisor.terminate_child("a")
        journal.clear()
        with pytest.raises(StartError) as caught:
            supervisor.restart_child("a")
        assert caught.value.reason[1:3] == ("tree_kit.Oops", "not yet")
        assert supervisor.which_child("a")[1] is None
        journal.note("good")
        supervisor.restart_child("a")
        assert supervisor.which_child("a")[1] is not None


def test_a_restart_that_fails_is_tried_again_and_costs(journal: Journal) -> None:
    """B1. A child that cannot start again is tried max_restarts times in all, then its supervisor gives up."""
    child = Child(tree_kit.idle, Fail(Oops("gone"), journal, "good"), id="a")
    journal.note("good")
    with Runtime(Supervisor([child], max_restarts=4, max_seconds=1000)) as runtime:
        pid = runtime.supervisor().which_child("a")[1]
        journal.clear()
        kill(pid)
        assert runtime.wait(tree_kit.PATIENCE_S) == "shutdown"
    assert len(journal.lines("failing")) == 4
    assert len(tree_kit.reports(runtime, "start_error", "a")) == 4


def test_a_slow_start_freezes_no_questions(journal: Journal) -> None:
    """B6. While a child starts, its supervisor and another one answer at once, and the other one starts children."""
    other = DynamicSupervisor(name="other")
    tree = Supervisor([Child(tree_kit.idle, id="a"), Child(other, id="other")], name="top")
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        slow = Child(tree_kit.idle, Hold(journal, "slow", "go"), id="slow")
        starter = threading.Thread(target=supervisor.start_child, args=(slow,))
        starter.start()
        until(lambda: journal.lines("held"))
        for _ in range(30):
            assert [row[0] for row in supervisor.which_children()] == ["other", "a"]
            assert supervisor.count_children() == (2, 2, 1, 1)
            assert supervisor.get_childspec("a").id == "a"
        pids = [runtime.supervisor("other").start_child(tree_kit.idle).pid for _ in range(3)]
        assert all(alive(pid) for pid in pids)
        assert starter.is_alive()
        journal.note("go")
        starter.join(tree_kit.PATIENCE_S)
        assert [row[0] for row in supervisor.which_children()] == ["slow", "other", "a"]


def test_a_slow_tree_answers_while_it_comes_up(journal: Journal) -> None:
    """B6. Before a tree is up its children can be seen: those that run, and those that do not yet."""
    tree = Supervisor(
        [Child(tree_kit.idle, id="a"), Child(tree_kit.idle, Hold(journal, "b", "go"), id="b")], name="top"
    )
    runtime = Runtime(tree)
    starter = threading.Thread(target=runtime.start)
    starter.start()
    until(lambda: journal.lines("held"))
    supervisor = runtime.supervisor("top")
    shown = tree_kit.pids(supervisor)
    assert alive(shown["a"]) and shown["b"] is None
    assert supervisor.count_children() == (2, 1, 0, 2)
    journal.note("go")
    starter.join(tree_kit.PATIENCE_S)
    assert alive(tree_kit.pids(supervisor)["b"])
    runtime.stop()


def test_a_dynamic_supervisor_starts_slow_children_concurrently(journal: Journal) -> None:
    """B6. A slow child of a dynamic supervisor holds up no other, and can be terminated while it starts."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        failures: list[BaseException] = []

        def start() -> None:
            try:
                supervisor.start_child(Child(tree_kit.idle, Hold(journal, "slow", "never"), id="slow"))
            except BaseException as error:
                failures.append(error)

        starter = threading.Thread(target=start)
        starter.start()
        until(lambda: journal.lines("held"))
        quick = supervisor.start_child(tree_kit.idle)
        assert alive(quick.pid) and starter.is_alive()
        supervisor.terminate_child("slow")
        starter.join(tree_kit.PATIENCE_S)
        assert len(failures) == 1 and isinstance(failures[0], StartError)
        assert not alive(int(journal.lines("held")[0].split()[2]))
        assert supervisor.count_children() == (1, 1, 0, 1)


def test_requests_wait_for_a_slow_start_in_order(journal: Journal) -> None:
    """B4. What changes one static supervisor is done one after the other; a start's id is taken only once it is up."""
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")])) as runtime:
        supervisor = runtime.supervisor()
        slow = Child(tree_kit.idle, Hold(journal, "slow", "go"), id="slow")
        starter = threading.Thread(target=supervisor.start_child, args=(slow,))
        starter.start()
        until(lambda: journal.lines("held"))
        done: list[str] = []
        stopper = threading.Thread(target=lambda: (supervisor.terminate_child("slow"), done.append("slow")))
        with pytest.raises(LookupError):
            supervisor.terminate_child("slow")  # not one of its children yet
        stopper = threading.Thread(target=lambda: (supervisor.terminate_child("a"), done.append("a")))
        stopper.start()
        assert supervisor.which_child("a")[1] is not None and not done
        journal.note("go")
        stopper.join(tree_kit.PATIENCE_S)
        starter.join(tree_kit.PATIENCE_S)
        assert done == ["a"] and supervisor.which_child("a")[1] is None


class Never:
    def __reduce__(self) -> Any:
        raise TypeError("this stays here")


def test_what_does_not_pickle_raises_in_the_caller() -> None:
    """B6. Arguments that cannot be pickled are the caller's error, from Runtime(tree).start() and from start_child."""
    with pytest.raises(TypeError, match="this stays here"):
        Runtime(Supervisor([Child(tree_kit.idle, Never())])).start()
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        with pytest.raises(TypeError, match="this stays here"):
            supervisor.start_child(tree_kit.idle, Never())
        with pytest.raises(TypeError, match="this stays here"):
            supervisor.start_child(tree_kit.idle, kwargs={"x": Never()})
        assert supervisor.count_children().specs == 0
        supervisor.start_child(tree_kit.idle)


def test_closures_and_lambdas_are_children(journal: Journal) -> None:
    """B6. A function by value runs like any other."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        supervisor.start_child(lambda: journal.note("lambda"), restart="temporary")
        journal.wait("lambda")


def test_a_start_timeout_counts_each_start_anew(journal: Journal) -> None:
    """B6. A child that is ready in time is not judged by its start_timeout later; one that hangs is killed."""
    quick = Child(tree_kit.idle, id="quick", start_timeout=60)
    with Runtime(Supervisor([quick])) as runtime:
        supervisor = runtime.supervisor()
        with pytest.raises(StartError) as caught:
            supervisor.start_child(broken("is slow", journal, start_timeout=1.5))
        assert caught.value.reason == "timeout"
        assert not alive(int(journal.lines("held")[0].split()[2]))
        assert supervisor.which_child("quick")[1] is not None


def test_a_name_that_is_taken() -> None:
    """B6. A second child with the same name does not start: AlreadyStarted carries the reference of the holder."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        first = supervisor.start_child(tree_kit.idle, name="one", id="first")
        assert whereis("one") == first
        with pytest.raises(AlreadyStarted) as caught:
            supervisor.start_child(tree_kit.idle, name="one", id="second")
        assert caught.value.ref == first
        supervisor.terminate_child(first)
        assert whereis("one") is None
        assert whereis("one") is None and supervisor.start_child(tree_kit.idle, name="one").pid
        with pytest.raises(AlreadyStarted) as caught:
            Supervisor([Child(tree_kit.idle, name="one")]).start(runtime)
        assert caught.value.ref == whereis("one")


def test_a_name_lost_to_another_does_not_break_the_root(journal: Journal) -> None:
    """B1. A child whose name was taken while its group stopped fails each restart: hundreds of failures in a row are
    its supervisor's end, and nobody else's."""
    group = Supervisor(
        [
            Child(tree_kit.idle, id="a", name="one"),
            Child(tree_kit.linger, journal, "b", "go", id="b", shutdown="infinity"),
        ],
        strategy="one_for_all",
        max_restarts=500,
        max_seconds=1000,
    )
    tree = Supervisor([Child(DynamicSupervisor(), id="d"), Child(group, id="group", restart="temporary")])
    with Runtime(tree) as runtime:
        top = runtime.supervisor()
        root = runtime.pid
        journal.wait("run b")
        below = top.child("group")
        with monitor(below) as watch:
            kill(below.which_child("a")[1])
            journal.wait("asked b")
            taker = top.which_child("d")[1].start_child(tree_kit.idle, name="one")
            journal.note("go")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "shutdown"
        assert runtime.pid == root and whereis("one") == taker
        assert [row[0] for row in top.which_children()] == ["d"]

"""Strategies, restart intensity, escalation and automatic shutdown, with real deaths (B1, B2, B3)."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import tree_kit
from tree_kit import Journal, Mark, alive, kill, until

from shmrt import Child, NotFound, Runtime, RuntimeDown, Supervisor, monitor
from shmrt.handles import SupervisorRef

NAMES = ("a", "b", "c", "d")


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def four(journal: Journal, **restarts: str) -> list[Child]:
    return [
        Child(
            tree_kit.stay, journal, name, Mark(journal, "start", name), id=name, restart=restarts.get(name, "permanent")
        )
        for name in NAMES
    ]


def running(journal: Journal, names: str = "abcd", count: int = 1) -> None:
    for name in names:
        journal.wait(f"run {name}", count)


def up_again(supervisor: Any) -> dict[Any, Any]:
    """Once the supervisor knows: a child that runs may have said so a moment ago."""

    def look() -> dict[Any, Any] | None:
        shown = tree_kit.pids(supervisor)
        return None if "restarting" in shown.values() else shown

    found: dict[Any, Any] = until(look)
    return found


@pytest.mark.parametrize(
    ("strategy", "stopped", "started"),
    [("one_for_one", "", "b"), ("rest_for_one", "dc", "bcd"), ("one_for_all", "dca", "abcd")],
)
def test_who_is_stopped_and_started_after_a_death(journal: Journal, strategy: str, stopped: str, started: str) -> None:
    """B3. After the second of four is killed: who is stopped, newest first, then who is started, in order."""
    with Runtime(Supervisor(four(journal), strategy=strategy)) as runtime:
        supervisor = runtime.supervisor()
        running(journal)
        before = tree_kit.pids(supervisor)
        journal.clear()
        kill(before["b"])
        running(journal, started)
        after = up_again(supervisor)
        lines = [line for line in journal.lines() if line.split()[0] in ("shutdown", "start")]
        assert lines == [f"shutdown {name}" for name in stopped] + [f"start {name}" for name in started]
        assert {name for name in NAMES if after[name] != before[name]} == set(started)
        assert all(alive(after[name]) for name in NAMES)
        assert not any(alive(before[name]) for name in started)


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_group_restart_revives_what_had_ended(journal: Journal, strategy: str) -> None:
    """B3. As in OTP, children stopped by terminate_child or ended in order are started again; temporary ones are
    gone."""
    with Runtime(Supervisor(four(journal, c="transient", d="temporary"), strategy=strategy)) as runtime:
        supervisor = runtime.supervisor()
        running(journal)
        supervisor.terminate_child("c")
        assert supervisor.which_child("c")[1] is None
        kill(supervisor.which_child("b")[1])
        running(journal, "bc", 2)
        assert [row[0] for row in supervisor.which_children()] == ["c", "b", "a"]
        assert all(isinstance(pid, int) for pid in up_again(supervisor).values())


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
def test_several_deaths_at_once(journal: Journal, strategy: str) -> None:
    """B3. All four killed in one moment: all come back, each death is one of the budget's restarts at most."""
    with Runtime(Supervisor(four(journal), strategy=strategy, max_restarts=4, max_seconds=1000)) as runtime:
        supervisor = runtime.supervisor()
        running(journal)
        before = tree_kit.pids(supervisor)
        for pid in before.values():
            with contextlib.suppress(ProcessLookupError):  # the group's restart may have ended it already
                kill(pid)
        until(
            lambda: all(
                isinstance(pid, int) and pid != before[name] for name, pid in tree_kit.pids(supervisor).items()
            ),
            lambda: supervisor.which_children(),
        )
        assert runtime.wait(0) is None
        assert 1 <= supervisor.describe()["used"] <= 4


@pytest.mark.parametrize("strategy", ["one_for_all", "rest_for_one"])
def test_a_failed_start_in_a_group_restart_runs_the_strategy_again(journal: Journal, strategy: str) -> None:
    """B3. c does not start again twice: with one_for_all a and b are stopped again each time, with rest_for_one not."""
    children = [
        Child(tree_kit.idle, Mark(journal, "start", "a"), id="a"),
        Child(tree_kit.idle, Mark(journal, "start", "b"), id="b"),
        Child(tree_kit.idle, FailTwice(journal), Mark(journal, "start", "c"), id="c"),
        Child(tree_kit.idle, Mark(journal, "start", "d"), id="d"),
    ]
    with Runtime(Supervisor(children, strategy=strategy, max_restarts=3, max_seconds=1000)) as runtime:
        supervisor = runtime.supervisor()
        pid = supervisor.which_child("a")[1]
        journal.clear()
        journal.note("broken")
        kill(pid)
        journal.wait("start d")
        assert journal.lines("failed") == ["failed", "failed"]
        starts = [line.split()[1] for line in journal.lines("start")]
        again = ["a", "b", "a", "b", "a", "b", "c", "d"] if strategy == "one_for_all" else ["a", "b", "c", "d"]
        assert starts == again
        assert len(tree_kit.reports(runtime, "start_error", "c")) == 2
        assert supervisor.describe()["used"] == 3


class FailTwice:
    """Raises at its first two unpicklings after the journal said "broken"."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal

    def __reduce__(self) -> Any:
        return fail_twice, (self.journal,)


def fail_twice(journal: Journal) -> None:
    if journal.lines("broken") and len(journal.lines("failed")) < 2:
        journal.note("failed")
        raise tree_kit.Oops("not yet")


def test_too_many_restarts_end_the_runtime() -> None:
    """B1. One more than max_restarts: wait() says "shutdown", handles raise RuntimeDown with it, nothing is left."""
    tree = Supervisor([Child(tree_kit.idle, id=name) for name in NAMES], max_restarts=2, max_seconds=1000, name="top")
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor("top")
        ref = supervisor.child("a")
        pids = set(tree_kit.pids(supervisor).values()) | {runtime.pid}
        for _ in range(2):
            old = ref.pid
            kill(old)
            pids.add(tree_kit.new_pid(supervisor, "a", old))
        kill(ref.pid)
        assert runtime.wait(tree_kit.PATIENCE_S) == "shutdown"
        for ask in (supervisor.which_children, runtime.supervisor, ref.stop, lambda: monitor(ref)):
            with pytest.raises(RuntimeDown) as caught:
                ask()  # type: ignore[operator]
            assert caught.value.reason == "shutdown"
        assert not [pid for pid in pids if alive(pid)]
        [report] = tree_kit.reports(runtime, "shutdown")
        assert (report["reason"], report["used"], report["limit"]) == ("reached_max_restart_intensity", 3, 2)
        assert report["offender"]["id"] == "a" and report["supervisor"] == ("top",)
        used = [report["used"] for report in tree_kit.reports(runtime, "child_terminated", "a")]
        assert used == [1, 2, 3]


@pytest.mark.parametrize("first", ["the block", "the tree"])
def test_leaving_a_runtime_whose_tree_gives_up_leaves_nothing(first: str) -> None:
    """B1. Whether the tree's own end or the `with` block comes first, after it no process is left."""
    for _ in range(4):
        with Runtime(
            Supervisor([Child(tree_kit.idle, id=name) for name in NAMES], max_restarts=0, max_seconds=1000)
        ) as runtime:
            supervisor = runtime.supervisor()
            pids = [*tree_kit.pids(supervisor).values(), runtime.pid]
            kill(pids[2])
            until(lambda supervisor=supervisor: first == "the block" or is_down(supervisor))
        assert not [pid for pid in pids if alive(pid)]
        assert runtime.wait(0) == "shutdown"


def is_down(supervisor: SupervisorRef) -> bool:
    try:
        supervisor.count_children()
    except RuntimeDown:
        return True
    return False


def test_zero_restarts_and_a_slow_crasher(journal: Journal) -> None:
    """B1. The window slides: with one restart per 0.05 s, crashes further apart than that go on for ever."""
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")], max_restarts=1, max_seconds=0.05)) as runtime:
        supervisor = runtime.supervisor()
        pid = supervisor.which_child("a")[1]
        for _ in range(5):
            kill(pid)
            pid = tree_kit.new_pid(supervisor, "a", pid)
            until(lambda: supervisor.describe()["used"] == 0)
        assert runtime.wait(0) is None


def layers(journal: Journal, restart: str = "permanent") -> Supervisor:
    low = Supervisor([Child(tree_kit.stay, journal, "leaf", id="leaf")], max_restarts=0, max_seconds=1000)
    middle = Supervisor(
        [Child(tree_kit.stay, journal, "m", id="m"), Child(low, id="low", restart=restart)],
        max_restarts=0,
        max_seconds=1000,
    )
    return Supervisor(
        [Child(tree_kit.stay, journal, "t", id="t"), Child(middle, id="middle")], max_restarts=1, max_seconds=1000
    )


def test_escalation_through_three_layers(journal: Journal) -> None:
    """B1. Each layer that has no restarts left ends with "shutdown" and is one restart of the layer above."""
    with Runtime(layers(journal)) as runtime:
        top = runtime.supervisor()
        for count in (1, 2):
            journal.wait("run leaf", count)
            middle = top.which_child("middle")[1]
            assert isinstance(middle, SupervisorRef)
            leaf = middle.which_child("low")[1].which_child("leaf")[1]
            kill(leaf)
            journal.wait("shutdown m", count)
        assert runtime.wait(tree_kit.PATIENCE_S) == "shutdown"
        assert journal.lines("run t") == ["run t"]
        journal.wait("shutdown t")
        paths = [report["supervisor"][1:] for report in tree_kit.reports(runtime, "shutdown")]
        assert paths == [("middle", "low"), ("middle",), ("middle", "low"), ("middle",), ()]


def test_a_transient_supervisor_that_gave_up_is_not_restarted(journal: Journal) -> None:
    """B2. Its reason is "shutdown", which is an end in order: whoever wants it back says permanent."""
    with Runtime(layers(journal, "transient")) as runtime:
        middle = runtime.supervisor().which_child("middle")[1]
        low = middle.which_child("low")[1]
        journal.wait("run leaf")
        with monitor(low) as watch:
            kill(low.which_child("leaf")[1])
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "shutdown"
        assert middle.which_child("low")[1] is None
        assert middle.count_children() == (2, 1, 1, 1)
        middle.restart_child("low")
        assert middle.which_child("low")[1].count_children().active == 1


@pytest.mark.parametrize("how", ["return", "SIGKILL"])
@pytest.mark.parametrize("mode", ["any_significant", "all_significant"])
def test_automatic_shutdown(journal: Journal, mode: str, how: str) -> None:
    """B2. The end for good of any, or of the last, significant child ends the supervisor with "shutdown"."""
    inner = Supervisor(
        [
            *(
                Child(
                    tree_kit.end_once,
                    Journal(Path(journal.path + n)),
                    n,
                    how,
                    id=n,
                    restart="temporary",
                    significant=True,
                )
                for n in ("s1", "s2")
            ),
            Child(tree_kit.stay, journal, "other", id="other"),
        ],
        auto_shutdown=mode,
    )
    with Runtime(Supervisor([Child(inner, id="inner", restart="temporary")])) as runtime:
        top = runtime.supervisor()
        ref = top.child("inner")
        journal.wait("run other")
        with monitor(ref) as watch:
            for number, name in enumerate(("s1", "s2")):
                own = Journal(Path(journal.path + name))
                own.wait(f"run {name}")
                pid = ref.which_child(name)[1]
                own.note("go")
                if how == "SIGKILL":
                    kill(pid)
                until(lambda pid=pid: not alive(pid))
                if mode == "any_significant" or number == 1:
                    break
                until(lambda: ref.count_children().specs == 2)
                assert watch.wait(0) is None
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "shutdown"
        assert journal.lines("shutdown") == ["shutdown other"]
        with pytest.raises(NotFound):
            top.which_child("inner")


def test_what_is_stopped_by_request_never_shuts_down_automatically(journal: Journal) -> None:
    """B2. terminate_child of the last significant child leaves the supervisor running; so does a group restart."""
    inner = [
        Child(tree_kit.idle, id="s", restart="transient", significant=True),
        Child(tree_kit.idle, id="other"),
    ]
    with Runtime(Supervisor(inner, auto_shutdown="any_significant", strategy="one_for_all")) as runtime:
        supervisor = runtime.supervisor()
        old = supervisor.which_child("other")[1]
        kill(old)
        tree_kit.new_pid(supervisor, "other", old)
        supervisor.terminate_child("s")
        assert supervisor.count_children() == (2, 1, 0, 2)
        supervisor.restart_child("s")
        assert supervisor.count_children() == (2, 2, 0, 2)
        assert runtime.wait(0) is None


def test_automatic_shutdown_of_the_top_ends_the_runtime(journal: Journal) -> None:
    """B2. A runtime whose tree has done its work ends by itself: wait() says "shutdown"."""
    work = Child(tree_kit.end_once, journal, "s", "return", restart="temporary", significant=True)
    with Runtime(Supervisor([work], auto_shutdown="all_significant")) as runtime:
        root = runtime.pid
        journal.note("go")
        assert runtime.wait(tree_kit.PATIENCE_S) == "shutdown"
        assert root is not None and not alive(root)


def test_backoff_waits_and_can_be_cancelled() -> None:
    """B1. With backoff a restart waits, shown as "restarting"; nobody else waits with it; terminate_child cancels
    it."""
    tree = Supervisor(
        [Child(tree_kit.idle, id="a"), Child(tree_kit.idle, id="b")], backoff={"base": 1000.0, "max": 1000.0}
    )
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        kill(supervisor.which_child("a")[1])
        until(lambda: supervisor.which_child("a")[1] == "restarting")
        assert supervisor.count_children() == (2, 1, 0, 2)
        supervisor.terminate_child("a")
        assert supervisor.which_child("a")[1] is None
        supervisor.restart_child("a")
        assert isinstance(supervisor.which_child("a")[1], int)


def test_a_death_while_backoff_waits_is_restarted_in_time() -> None:
    """B1. With a short backoff the child comes back by itself."""
    tree = Supervisor([Child(tree_kit.idle, id="a")], backoff={"base": 0.01, "max": 0.05}, max_restarts=10)
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        pid = supervisor.which_child("a")[1]
        for _ in range(3):
            kill(pid)
            pid = tree_kit.new_pid(supervisor, "a", pid)

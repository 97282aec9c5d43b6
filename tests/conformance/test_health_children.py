"""The checks of children: they run beside the child, and a failed one is an end of the child like any other.

`on_fail="restart"`: exit reason ("unhealthy", name), counted by the restart budget, decided by the child's supervisor.
"""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

import health_tasks as tasks
import pytest
from health_tasks import once
from tree_kit import Journal, alive, found_again, idle, kill, new_pid, pids, reports, until

from shmrt import (
    Child,
    DynamicSupervisor,
    HealthCheck,
    PartitionSupervisor,
    Pool,
    Runtime,
    Server,
    SpecError,
    Supervisor,
    TaskSupervisor,
    call,
    checks,
    health,
    whereis,
)

FAST = {"interval": 0.02, "timeout": 60}
MANY = {"max_restarts": 1000, "max_seconds": 5.0}


def watched(name: str, fn: Any, **more: Any) -> HealthCheck:
    return HealthCheck(name, fn, **{"on_fail": "restart", **FAST, **more})


class Store(Server):
    @call
    def ping(self) -> str:
        return "pong"

    @call
    def block(self) -> None:
        signal.pause()


def answers(ref: Any) -> bool:
    return bool(ref.call("ping", timeout=300) == "pong")


# ---- restarts -------------------------------------------------------------------------------------------------------
def test_a_failed_check_is_an_exit_reason(tmp_path: Path) -> None:
    """The child is killed by the root; the reason names the check, and the budget counts it."""
    path = tmp_path / "bad"
    tree = Supervisor(
        [Child(idle, id="a", health=[watched("probe", functools.partial(tasks.unless_exists, str(path)))])]
    )
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        first = pids(supervisor)["a"]
        path.touch()
        until(lambda: not alive(first))
        path.unlink()
        until(lambda: pids(supervisor)["a"] not in (first, "restarting", None))
        [*found] = reports(runtime, "child_terminated", "a")
    assert found[0]["reason"] == ("unhealthy", "probe")
    assert (found[0]["used"], found[0]["limit"]) == (1, 3)


def test_the_budget_ends_it(tmp_path: Path) -> None:
    """A check that always fails: as many restarts as are allowed, then the supervisor gives up."""
    tree = Supervisor([Child(idle, id="a", health=[watched("never", tasks.fail)])], max_restarts=2, max_seconds=3600)
    runtime = Runtime(tree).start()
    try:
        assert runtime.wait(120) == "shutdown"
        ends = reports(runtime, "child_terminated", "a")
        assert [report["reason"] for report in ends] == [("unhealthy", "never")] * 3
        assert [report["used"] for report in ends] == [1, 2, 3]
    finally:
        runtime.stop()


@pytest.mark.parametrize(
    ("fn", "error"),
    [
        (tasks.hang, "timeout"),
        (tasks.hang_with_gil, "timeout"),
        (tasks.kill_itself, "SIGKILL"),
        (tasks.segfault, "SIGSEGV"),
        (functools.partial(tasks.leave, 0), "exited with code 0"),
        (tasks.fail, "LookupError"),
    ],
)
def test_every_way_to_fail_restarts(fn: Any, error: str) -> None:
    """Hung, crashed, raised: the check's process is the victim, the child is restarted for it, the root goes on."""
    check = watched("bad", fn, timeout=0.1 if error == "timeout" else 60)
    with Runtime(Supervisor([Child(idle, id="a", health=[check])], **MANY)) as runtime:
        root = runtime.pid
        until(lambda: len(reports(runtime, "child_terminated", "a")) >= 2)
        assert {report["reason"] for report in reports(runtime, "child_terminated", "a")} == {("unhealthy", "bad")}
        [change, *_] = reports(runtime, "health_change", "bad")
        assert error in change["reason"] and change["to"] == "unhealthy"
        assert runtime.pid == root


def test_without_on_fail_nothing_is_restarted(tmp_path: Path) -> None:
    """The report says it, the child stays."""
    journal = Journal(tmp_path / "journal")
    check = HealthCheck("bad", functools.partial(tasks.count, journal, str(tmp_path)), **FAST)
    with Runtime(Supervisor([Child(idle, id="a", health=[check])])) as runtime:
        pid = pids(runtime.supervisor())["a"]
        until(lambda: len(journal.lines("checked")) >= 5)
        report = health()
        assert report.status == "unhealthy" and report.checks["bad"].status == "unhealthy"
        assert pids(runtime.supervisor())["a"] == pid and not reports(runtime, "child_terminated")


def test_several_failures_in_a_row(tmp_path: Path) -> None:
    """Fewer do nothing: the child is restarted by the third run of its check, not before."""
    journal = Journal(tmp_path / "journal")
    check = watched("third", functools.partial(tasks.count, journal, str(tmp_path)), failures=3)
    with Runtime(Supervisor([Child(idle, id="a", health=[check])], **MANY)) as runtime:
        until(lambda: reports(runtime, "child_terminated", "a"))
        assert len(journal.lines("checked")) >= 3
        until(lambda: len(reports(runtime, "child_terminated", "a")) >= 3)
        ends = len(reports(runtime, "child_terminated", "a"))
        assert len(journal.lines("checked")) >= 3 * ends


def test_in_grace_failures_do_not_count(tmp_path: Path) -> None:
    """Many runs fail, and nothing happens; one that passes ends the grace."""
    journal, path = Journal(tmp_path / "journal"), tmp_path / "bad"
    path.touch()
    check = watched("probe", functools.partial(tasks.count, journal, str(path)), grace=3600)
    with Runtime(Supervisor([Child(idle, id="a", health=[check])], **MANY)) as runtime:
        until(lambda: len(journal.lines("checked")) >= 10)
        assert not reports(runtime, "child_terminated")
        path.unlink()
        until(lambda: any(report["to"] == "healthy" for report in reports(runtime, "health_change", "probe")))
        path.touch()
        until(lambda: reports(runtime, "child_terminated", "a"))
        path.unlink()


def test_an_explicit_stop_is_respected(tmp_path: Path) -> None:
    """A child that was terminated stays down, whatever its check says; started again, it is watched again."""
    path = tmp_path / "bad"
    check = watched("probe", functools.partial(tasks.unless_exists, str(path)))
    with Runtime(Supervisor([Child(idle, id="a", health=[check]), Child(idle, id="b")], **MANY)) as runtime:
        supervisor = runtime.supervisor()
        supervisor.terminate_child("a")
        path.touch()
        once(runtime.health, lambda report: "probe" not in report.checks)
        assert runtime.health().status == "healthy", "it is as somebody wants it"
        assert pids(supervisor)["a"] is None and not reports(runtime, "child_terminated")
        supervisor.restart_child("a")
        until(lambda: reports(runtime, "child_terminated", "a"))
        path.unlink()


def test_the_restart_type_decides() -> None:
    """A transient child is restarted, since that end is abnormal; a temporary one is gone."""
    children = [
        Child(idle, id="transient", restart="transient", health=[watched("bad", tasks.fail)]),
        Child(idle, id="temporary", restart="temporary", health=[watched("bad", tasks.fail)]),
    ]
    with Runtime(Supervisor(children, **MANY)) as runtime:
        until(lambda: len(reports(runtime, "child_terminated", "transient")) >= 2)
        until(lambda: reports(runtime, "child_terminated", "temporary"))
        assert set(pids(runtime.supervisor())) == {"transient"}
        once(runtime.health, lambda report: "child.temporary:bad" not in report.as_json()["checks"])


def test_a_signal_that_comes_first_keeps_its_reason() -> None:
    """A child that dies by itself has its own reason."""
    check = HealthCheck("fine", tasks.fine, on_fail="restart", **FAST)
    with Runtime(Supervisor([Child(idle, id="a", health=[check])])) as runtime:
        pid = pids(runtime.supervisor())["a"]
        kill(pid, signal.SIGKILL)
        new_pid(runtime.supervisor(), "a", pid)
        assert [report["reason"] for report in reports(runtime, "child_terminated", "a")] == ["killed"]


# ---- what a check sees ----------------------------------------------------------------------------------------------
def test_a_check_gets_its_child(tmp_path: Path) -> None:
    """A reference with the pid of the present incarnation; a server's can be called."""
    journal = Journal(tmp_path / "journal")
    look = functools.partial(tasks.look_at, journal=journal)
    children = [
        Child(idle, id="a", health=[HealthCheck("look", look, **FAST)]),
        Child(Store, name="store", health=[HealthCheck("ping", answers, **FAST), HealthCheck("look", look, **FAST)]),
    ]
    with Runtime(Supervisor(children)) as runtime:
        first = pids(runtime.supervisor())["a"]
        server = pids(runtime.supervisor())["store"]
        until(lambda: f"looked {first} ProcessRef" in journal.lines())
        until(lambda: f"looked {server} ServerRef" in journal.lines())
        until(lambda: health().checks["ping"].status == "healthy")
        kill(first)
        second = new_pid(runtime.supervisor(), "a", first)
        journal.wait(f"looked {second} ProcessRef")


def test_a_server_that_hangs_is_restarted() -> None:
    """The gap that supervisors have: it lives, and does nothing."""
    check = watched("ping", answers, timeout=1.0)
    with Runtime(Supervisor([Child(Store, name="store", health=[check])], **MANY)) as runtime:
        store = whereis("store")
        pid = store.pid
        store.request("block")
        new_pid(runtime.supervisor(), "store", pid)
        assert reports(runtime, "child_terminated", "store")[0]["reason"] == ("unhealthy", "ping")
        assert until(lambda: _ping(store)) == "pong"


def _ping(ref: Any) -> Any:
    from shmrt import CallTimeout, ServerDown

    try:
        return ref.call("ping", timeout=5)
    except (CallTimeout, ServerDown):
        return None


def test_memory_is_that_of_the_child() -> None:
    """A limit that only a process that has grown exceeds."""
    children = [
        Child(idle, id="small", health=[checks.memory("1GiB", name="small")]),
        Child(idle, id="large", health=[checks.memory(1, name="large")]),
    ]
    with Runtime(Supervisor(children)):
        report = health()
    assert report.checks["small"].status == "healthy" and report.checks["large"].status == "unhealthy"
    assert 0 < report.checks["small"].value < 1 << 30


def test_a_pool_of_a_tree_is_restarted(tmp_path: Path) -> None:
    """It lives in the program, which closes and opens it."""
    path = tmp_path / "bad"
    check = watched("probe", functools.partial(tasks.unless_exists, str(path)))
    tree = Supervisor([Child(Pool, 1, name="pool", health=[check, checks.pool("pool")])], **MANY)
    with Runtime(tree) as runtime:
        first = whereis("pool")
        once(health, lambda report: report.checks["pool.pool:workers"].status == "healthy")
        path.touch()
        until(lambda: reports(runtime, "child_terminated", "pool"))
        path.unlink()
        assert reports(runtime, "child_terminated", "pool")[0]["reason"] == ("unhealthy", "probe")
        second = until(lambda: (found := whereis("pool")) is not None and found is not first and found)
        assert second.submit(pow, 2, 3).result() == 8


# ---- what the report says -------------------------------------------------------------------------------------------
def test_equal_names_are_told_apart() -> None:
    children = [Child(idle, id=id, health=[HealthCheck("probe", tasks.fine)]) for id in "ab"]
    with Runtime(Supervisor(children)):
        report = health()
    assert {"a/probe", "b/probe"} <= set(report.checks)
    assert {"child.a:probe", "child.b:probe"} <= set(report.as_json()["checks"])


def test_a_child_that_is_restarting_is_not_well(tmp_path: Path) -> None:
    """Its check cannot be run, and the report says why."""
    tree = Supervisor(
        [Child(idle, id="a", health=[HealthCheck("probe", tasks.fine)])], backoff={"base": 3600, "max": 3600}
    )
    with Runtime(tree) as runtime:
        kill(pids(runtime.supervisor())["a"])
        report = once(health, lambda report: report.checks["probe"].status == "unhealthy")
        assert report.checks["probe"].error == "its child is restarting" and report.status == "unhealthy"
        assert report.checks["supervisor.tree:children"].detail == "down: a"


def test_a_low_budget_and_a_dead_child_degrade() -> None:
    """What the root knows by itself, without any check."""
    with Runtime(Supervisor([Child(idle, id="a")], max_restarts=3, max_seconds=3600, name="top")) as runtime:
        for left in (2, 1):
            pid = pids(runtime.supervisor())["a"]
            kill(pid)
            new_pid(runtime.supervisor(), "a", pid)
            found = health().checks["supervisor.top:restarts"]
            assert (found.value, found.status) == (left, "healthy" if left == 2 else "degraded")
        assert health().status == "degraded"


def test_checks_in_groups_of_children() -> None:
    """A child's check may be in a group of its own, which exists as long as the child."""
    check = HealthCheck("probe", tasks.fine, group=("live", "stores"))
    with Runtime(Supervisor([Child(idle, id="a", health=[check])])):
        assert set(health(group="stores").checks) == {"probe"}
        assert set(health(group="live").checks) == {"probe", "runtime:loop"}
    with Runtime(), pytest.raises(ValueError, match="stores"):
        health(group="stores")


# ---- descriptions ---------------------------------------------------------------------------------------------------
def test_the_description_comes_back() -> None:
    """get_childspec has the checks; a check given to a child is no longer the program's."""
    made = [HealthCheck("probe", tasks.fine, 3.0, ("live", "x"), False, "restart", interval=7, failures=2, grace=9)]
    made.append(checks.pool("hash"))
    child = Child(idle, id="a", health=made)
    assert [check.name for check in child.health] == ["probe", "pool.hash:workers"]
    with Runtime(Supervisor([child])) as runtime:
        first, second = runtime.supervisor().get_childspec("a").health
        for word in ("name", "fn", "timeout", "groups", "critical", "on_fail", "interval", "failures", "grace"):
            assert getattr(first, word) == getattr(made[0], word), word
        assert second.name == "pool.hash:workers" and second.fn.pool == "hash"
    assert "probe" not in health().checks


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Child(idle, health=3), "health=3 must be a list"),
        (lambda: Child(idle, health=["x"]), "must be a list of HealthCheck"),
        (
            lambda: Child(idle, id="a", health=[quiet("x"), quiet("x")]),
            "child 'a': health: two checks have the name 'x'",
        ),
        (lambda: Child(Supervisor([]), id="s", health=[quiet("x")]), "child 's': a supervisor has no process"),
        (lambda: Child(TaskSupervisor(), health=[quiet("x")]), "a supervisor has no process"),
        (lambda: Runtime(health=["x"]), "must be a list of HealthCheck"),
    ],
)
def test_mistakes_are_named_where_they_are_made(make: Any, text: str) -> None:
    with pytest.raises(SpecError, match=text) as caught:
        make()
    assert caught.value.problem == "invalid_health"


def quiet(name: str) -> HealthCheck:
    """One that nobody has."""
    check = HealthCheck(name, tasks.fine)
    check.unregister()
    return check


def test_what_cannot_be_sent_is_refused_at_the_start() -> None:
    """As a function that cannot be pickled is."""
    tree = Supervisor([Child(idle, id="a", health=[HealthCheck("x", tasks.Unpicklable())])])
    with pytest.raises(TypeError, match="not to be sent"):
        Runtime(tree).start()


def test_children_that_come_and_go(tmp_path: Path) -> None:
    """Of a dynamic supervisor: watched while they live, forgotten with them; nothing of their checks is left."""
    journal = Journal(tmp_path / "journal")
    with Runtime(DynamicSupervisor(name="dynamic")) as runtime:
        supervisor = runtime.supervisor()
        for round in range(10):
            note = functools.partial(tasks.count, journal, str(tmp_path / "no"))
            check = HealthCheck(f"probe-{round}", note, **FAST)
            ref = supervisor.start_child(Child(idle, health=[check]))
            until(lambda round=round: len(journal.lines("checked")) > round)
            assert health().checks[f"probe-{round}"].status == "healthy"
            supervisor.terminate_child(ref)
            until(lambda: not tasks.processes_of_checks(runtime.pid or 0))
        assert not [name for name in health().checks if name.startswith("probe")]


def test_the_next_root_watches_again(tmp_path: Path) -> None:
    """The root is killed: the tree starts afresh, and so do its checks."""
    journal, path = Journal(tmp_path / "journal"), tmp_path / "bad"
    check = watched("probe", functools.partial(tasks.count, journal, str(path)))
    with Runtime(Supervisor([Child(idle, id="a", health=[check])], **MANY)) as runtime:
        until(lambda: journal.lines("checked"))
        root = runtime.pid or 0
        os.kill(root, signal.SIGKILL)
        found_again(runtime, root)
        before = len(reports(runtime, "child_terminated", "a"))
        path.touch()
        until(lambda: len(reports(runtime, "child_terminated", "a")) > before)
        path.unlink()
        assert reports(runtime, "child_terminated", "a")[-1]["reason"] == ("unhealthy", "probe")


def test_every_partition_has_the_checks_of_its_child() -> None:
    child = Child(idle, id="a", health=[HealthCheck("probe", tasks.fine)])
    with Runtime(PartitionSupervisor(child, 2, name="parts")):
        report = health()
    assert {"0/probe", "1/probe"} <= set(report.checks)


@pytest.mark.stress
def test_a_thousand_restarts_by_a_check() -> None:
    """Each by a check that is SIGKILLed inside: nothing sticks, and the last incarnation is as well as the first."""
    check = watched("bad", tasks.kill_itself, interval=0.01)
    tree = Supervisor([Child(idle, id="a", health=[check])], max_restarts=10**6, max_seconds=1.0)
    with Runtime(tree) as runtime:
        seen: set[Any] = set()

        def enough() -> bool:
            seen.update(pid for pid in pids(runtime.supervisor()).values() if isinstance(pid, int))
            return len(seen) >= 1000

        while not enough():
            pass
        assert all(report["reason"] == ("unhealthy", "bad") for report in reports(runtime, "child_terminated", "a"))

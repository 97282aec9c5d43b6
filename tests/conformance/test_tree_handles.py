"""Handles from everywhere: threads, children, pool workers, forks; monitors, links, brutal stops."""

from __future__ import annotations

import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tree_kit
from tree_kit import Journal, alive, kill, until

from shmrt import (
    Child,
    DynamicSupervisor,
    NotFound,
    Pool,
    Runtime,
    RuntimeDown,
    ServerDown,
    Supervisor,
    join,
    link,
    members,
    monitor,
    unlink,
    whereis,
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def test_many_threads_ask_at_once() -> None:
    """Every thread gets its own answers while children come, die and go."""
    with Runtime(DynamicSupervisor(max_restarts=1000)) as runtime:
        supervisor = runtime.supervisor()
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                for turn in range(8):
                    ref = supervisor.start_child(tree_kit.idle, id=(number, turn))
                    assert supervisor.which_child(ref)[0] == (number, turn)
                    assert supervisor.get_childspec(ref).id == (number, turn)
                    kill(ref.pid)
                    supervisor.terminate_child(ref)
                    assert ref.pid is None
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(tree_kit.PATIENCE_S)
        assert not failures
        assert supervisor.count_children() == (0, 0, 0, 0)


# ---- from other processes --------------------------------------------------------------------------------------------
def manage(journal: Journal) -> None:
    """A function child that uses the tree that it is in."""
    import shmrt

    supervisor = shmrt.runtime().supervisor("workers")
    ref = supervisor.start_child(tree_kit.stay, journal, "made by a child", id="made")
    assert supervisor.which_child(ref)[1] == ref.pid
    journal.wait("run made by a child", 1)  # ready comes before its first line
    with monitor(ref) as watch:
        kill(ref.pid)
        down = watch.wait(tree_kit.PATIENCE_S)
    journal.note("down", down.reason if down else None)
    journal.wait("run made by a child", 2)
    supervisor.terminate_child(ref)
    journal.note("count", *supervisor.count_children())
    tree_kit.wait_for_ever()


def test_a_function_child_manages_its_tree(journal: Journal) -> None:
    """A child finds a supervisor by name and starts, watches and ends children there."""
    tree = Supervisor([Child(DynamicSupervisor(name="workers")), Child(manage, journal, id="manager")])
    with Runtime(tree) as runtime:
        until(lambda: journal.lines("count"), lambda: (journal.lines(), runtime.events()))
        assert journal.lines("down") == ["down killed"]
        assert journal.lines("count") == ["count 0 0 0 0"]


def use_refs(supervisor: Any, ref: Any) -> tuple[Any, ...]:
    with monitor(ref) as watch:
        supervisor.terminate_child(ref)
        down = watch.wait(tree_kit.PATIENCE_S)
    fresh = supervisor.start_child(tree_kit.idle)
    return down.reason if down else None, fresh, supervisor.count_children(), ref == fresh, whereis("named")


def test_references_travel_to_pool_workers_and_back() -> None:
    """Pickled references work in a worker of the same runtime; what it returns works here, and equals what is here."""
    with Runtime(DynamicSupervisor()) as runtime, Pool(1) as pool:
        supervisor = runtime.supervisor()
        ref = supervisor.start_child(tree_kit.idle)
        named = supervisor.start_child(tree_kit.idle, name="named")
        reason, fresh, count, same, found = pool.submit(use_refs, supervisor, ref).result(tree_kit.PATIENCE_S)
        assert (reason, tuple(count), same) == ("shutdown", (2, 2, 0, 2), False)
        assert alive(fresh.pid) and supervisor.which_child(fresh)[1] == fresh.pid
        assert found == named and found.pid == named.pid
        assert pickle.loads(pickle.dumps(ref)) == ref


def test_a_reference_of_another_runtime_is_refused(journal: Journal) -> None:
    """A reference is good in its own runtime; elsewhere unpickling says so."""
    with Runtime(DynamicSupervisor()) as one:
        data = pickle.dumps(one.supervisor())
        with Runtime(DynamicSupervisor()) as other, Pool(1, runtime=other) as pool:
            error = pool.submit(pickle.loads, data).exception(tree_kit.PATIENCE_S)
            assert isinstance(error, LookupError)
            assert pickle.loads(data) == one.supervisor()  # this process is of both
            assert one.supervisor() != other.supervisor()


def run_own_runtime(journal: Journal) -> None:
    with Runtime(Supervisor([Child(tree_kit.stay, journal, "inner", id="i")])) as runtime:
        journal.wait("run inner")
        journal.note("pids", runtime.pid, runtime.supervisor().which_child("i")[1])
        tree_kit.wait_for_ever()


def test_a_child_may_have_a_runtime_of_its_own(journal: Journal) -> None:
    """A runtime within a function child is a tree of its own, and ends with the child, however that ends."""
    with Runtime(Supervisor([Child(run_own_runtime, journal, id="a", restart="temporary")])) as runtime:
        until(lambda: journal.lines("pids"), lambda: (journal.lines(), runtime.events()))
        pids = [int(word) for word in journal.lines("pids")[0].split()[1:]]
        assert all(alive(pid) for pid in pids)
        kill(runtime.supervisor().which_child("a")[1])
        until(lambda: not any(alive(pid) for pid in pids), "the inner runtime lives on")


def test_a_forked_child_of_the_program_owns_nothing(journal: Journal) -> None:
    """In a fork every handle raises RuntimeDown that names both pids, and ends nothing when it exits."""
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")])) as runtime:
        supervisor = runtime.supervisor()
        ref = supervisor.child("a")
        pid = os.fork()
        if not pid:
            try:
                for ask in (supervisor.which_children, ref.stop, lambda: monitor(ref), runtime.supervisor):
                    try:
                        ask()  # type: ignore[operator]
                    except RuntimeDown as error:
                        journal.note("down", str(os.getppid()) in str(error), str(os.getpid()) in str(error))
                    except BaseException as error:
                        journal.note("other", repr(error))
                runtime.stop()
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        assert journal.lines() == ["down True True"] * 4
        assert alive(supervisor.which_child("a")[1])


# ---- brutal stops ----------------------------------------------------------------------------------------------------
def test_the_kill_of_a_supervisor_takes_its_children_and_comes_back() -> None:
    """B5. stop("killed") of a supervisor with ten named children: all die at once, names are free, all are back."""
    names = [f"n{number}" for number in range(10)]
    middle = Supervisor([Child(tree_kit.idle, name=name) for name in names], name="middle")
    with Runtime(
        Supervisor([Child(tree_kit.idle, id="elder"), Child(middle), Child(tree_kit.idle, id="y")])
    ) as runtime:
        top = runtime.supervisor()
        supervisor = runtime.supervisor("middle")
        before = tree_kit.pids(supervisor)
        others = [top.which_child(id)[1] for id in ("elder", "y")]
        with monitor(supervisor) as watch:
            start = time.monotonic()
            assert supervisor.stop("killed") == "killed"
            gone = time.monotonic() - start
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "killed"
        assert not [pid for pid in before.values() if alive(pid)]

        def back() -> bool:
            try:
                return all(isinstance(pid, int) for pid in tree_kit.pids(runtime.supervisor("middle")).values())
            except (NotFound, ServerDown):
                return False

        until(back)
        print(f"ten children: gone after {gone * 1e3:.1f} ms, back after {(time.monotonic() - start) * 1e3:.1f} ms")
        after = tree_kit.pids(runtime.supervisor("middle"))
        assert list(after) == list(reversed(names)) and not set(after.values()) & set(before.values())
        for name in names:
            found = whereis(name)
            assert found is not None and found.pid == after[name]
        assert [top.which_child(id)[1] for id in ("elder", "y")] == others
        [report] = tree_kit.reports(runtime, "child_terminated", "middle")
        assert report["reason"] == "killed"


def test_a_supervisor_is_stopped_for_a_reason_of_ones_own(journal: Journal) -> None:
    """B5. stop(reason) ends it in order with that reason; a permanent one comes back, a transient one by the reason."""
    for reason, back in (("shutdown", False), ("normal", False), ("because", True)):
        journal.clear()
        inner = Supervisor([Child(tree_kit.stay, journal, n, id=n) for n in "ab"], name="inner")
        with Runtime(Supervisor([Child(inner, restart="transient")])) as runtime:
            supervisor = runtime.supervisor("inner")
            for name in "ab":
                journal.wait(f"run {name}")
            assert supervisor.stop(reason) == reason
            assert journal.lines("shutdown") == ["shutdown b", "shutdown a"]
            if back:
                journal.wait("run b", 2)
            else:
                assert runtime.supervisor().which_child("inner")[1] is None


def test_the_end_of_the_runtimes_own_supervisor_is_the_runtimes() -> None:
    """stop(reason) of the top supervisor ends the runtime with that reason."""
    with Runtime(Supervisor([Child(tree_kit.idle)])) as runtime:
        assert runtime.supervisor().stop(("shutdown", "enough")) == ("shutdown", "enough")
        assert runtime.wait(tree_kit.PATIENCE_S) == ("shutdown", "enough")
        with pytest.raises(RuntimeDown) as caught:
            runtime.supervisor()
        assert caught.value.reason == ("shutdown", "enough")


# ---- monitors --------------------------------------------------------------------------------------------------------
def test_monitors_of_what_is_gone_fall_at_once(journal: Journal) -> None:
    """Nothing runs: Down with "noproc", at once, for processes and supervisors."""
    inner = Supervisor([], name="inner")
    with Runtime(Supervisor([Child(tree_kit.idle, id="a"), Child(inner)])) as runtime:
        supervisor = runtime.supervisor()
        refs = [supervisor.child("a"), supervisor.child("inner")]
        supervisor.terminate_child("a")
        supervisor.terminate_child("inner")
        for ref in refs:
            down = monitor(ref).wait(0)
            assert down is not None and down.reason == "noproc"
        supervisor.delete_child("a")
        down = monitor(refs[0]).wait(0)
        assert down is not None and down.reason == "noproc"


def test_a_monitor_is_of_one_incarnation(journal: Journal) -> None:
    """It falls once, with the first death; whoever wants to hear of the next makes another."""
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")])) as runtime:
        supervisor = runtime.supervisor()
        ref = supervisor.child("a")
        watches = [monitor(ref) for _ in range(3)]
        cancelled = monitor(ref)
        cancelled.cancel()
        old = ref.pid
        kill(old)
        for watch in watches:
            down = watch.wait(tree_kit.PATIENCE_S)
            assert down is not None and down.reason == "killed"
        pid = tree_kit.new_pid(supervisor, "a", old)
        with monitor(ref) as again:
            assert again.wait(0) is None
            supervisor.terminate_child("a")
            down = again.wait(tree_kit.PATIENCE_S)
            assert down is not None and down.reason == "shutdown"
        assert cancelled.wait(0) is None
        assert not alive(pid)


def test_a_monitor_of_a_whole_subtree(journal: Journal) -> None:
    """A supervisor's monitor falls when everything below it is gone; one made of its next incarnation is new."""
    inner = Supervisor([Child(tree_kit.stay, journal, "a", id="a")], name="inner")
    with Runtime(Supervisor([Child(inner)])) as runtime:
        journal.wait("run a")
        ref = runtime.supervisor("inner")
        pid = ref.which_child("a")[1]
        with monitor(ref) as watch:
            ref.stop("other")
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "other" and not alive(pid)
        journal.wait("run a", 2)
        with monitor(ref) as again:
            assert again.wait(0) is None


def test_the_death_of_the_root_is_noconnection() -> None:
    """Every monitored process ends with the root: Down with "noconnection"."""
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")])) as runtime:
        with monitor(runtime.supervisor().child("a")) as watch:
            assert runtime.pid is not None
            kill(runtime.pid)
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "noconnection"


# ---- links and groups ------------------------------------------------------------------------------------------------
def linked(journal: Journal, name: str, other: str, how: str) -> None:
    try:
        if other:
            ref = until(lambda: whereis(other))
            assert link(ref)
            if how == "unlink":
                assert unlink(ref)
            journal.note("linked", name)
        journal.note("run", name)
        if not other:
            while "go" not in journal.lines():
                time.sleep(0.001)
            tree_kit.end_by(how)
            return
        tree_kit.wait_for_ever()
    finally:
        journal.note("finally", name)


@pytest.mark.parametrize(
    ("how", "dies"), [("raise", True), ("os._exit(5)", True), ("return", False), ("unlink", False)]
)
def test_linked_children_end_together(journal: Journal, how: str, dies: bool) -> None:
    """An abnormal end of one is an exit signal to the other; a normal end, or unlink, leaves it alone."""
    way = "os._exit(5)" if how == "unlink" else how
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        one = supervisor.start_child(linked, journal, "one", "", way, name="one", restart="temporary")
        two = supervisor.start_child(linked, journal, "two", "one", how, name="two", restart="temporary")
        journal.wait("linked two")
        watches = [monitor(one), monitor(two)]
        journal.note("go")
        assert watches[0].wait(tree_kit.PATIENCE_S) is not None
        if dies:
            reasons = [watch.wait(tree_kit.PATIENCE_S).reason for watch in watches]  # type: ignore[union-attr]
            assert reasons[0] == reasons[1]
            assert "finally two" in journal.lines()
            until(lambda: supervisor.count_children().specs == 0)
        else:
            assert supervisor.count_children().specs == 1 and watches[1].wait(0) is None
            assert alive(two.pid)


def test_only_children_link() -> None:
    """The program has no process of a tree: RuntimeError that names monitor()."""
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")])) as runtime:
        with pytest.raises(RuntimeError, match="monitor"):
            link(runtime.supervisor().child("a"))


def in_group(journal: Journal, name: str) -> None:
    assert join("group") and not join("group")
    journal.note("joined", name)
    tree_kit.wait_for_ever()


def test_groups_know_the_living(journal: Journal) -> None:
    """join and members: in the order of joining; a death leaves at once, before its replacement comes."""
    with Runtime(Supervisor([Child(in_group, journal, n, id=n, restart="temporary") for n in "abc"])) as runtime:
        supervisor = runtime.supervisor()
        for name in "abc":
            journal.wait(f"joined {name}")
        found = members("group")
        assert {ref.pid for ref in found} == set(tree_kit.pids(supervisor).values())
        with monitor(found[1]) as watch:
            kill(found[1].pid)
            watch.wait(tree_kit.PATIENCE_S)
        assert members("group") == [found[0], found[2]]
        assert members("other") == []

"""DynamicSupervisor and PartitionSupervisor with real processes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import tree_kit
from tree_kit import Journal, alive, kill, until

from shmrt import (
    Child,
    ChildStateError,
    DynamicSupervisor,
    PartitionSupervisor,
    Runtime,
    StartError,
    Supervisor,
    monitor,
)


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


def write_arguments(journal: Journal, *words: Any, **more: Any) -> None:
    journal.note("got", *words, *(f"{key}={value}" for key, value in more.items()))
    tree_kit.wait_for_ever()


def test_max_children_counts_whoever_starts_or_runs(journal: Journal) -> None:
    """One more than max_children is ChildStateError("max_children"), also while the others still start; room comes
    back with each end."""
    with Runtime(DynamicSupervisor(max_children=3)) as runtime:
        supervisor = runtime.supervisor()
        first = supervisor.start_child(tree_kit.idle, restart="temporary")
        slow = [Child(tree_kit.idle, tree_kit.Hold(journal, str(n), "go"), id=n) for n in range(2)]
        starters = [threading.Thread(target=supervisor.start_child, args=(child,)) for child in slow]
        for starter in starters:
            starter.start()
        until(lambda: len(journal.lines("held")) == 2)
        with pytest.raises(ChildStateError, match="3 children") as caught:
            supervisor.start_child(tree_kit.idle)
        assert caught.value.state == "max_children"
        kill(first.pid)
        until(lambda: supervisor.count_children().specs == 2)
        supervisor.start_child(tree_kit.idle)
        journal.note("go")
        for starter in starters:
            starter.join(tree_kit.PATIENCE_S)
        assert supervisor.count_children() == (3, 3, 0, 3)


def test_a_failed_start_gives_its_place_back() -> None:
    """A child that does not start takes no place."""
    with Runtime(DynamicSupervisor(max_children=1)) as runtime:
        supervisor = runtime.supervisor()
        for _ in range(3):
            with pytest.raises(StartError):
                supervisor.start_child(tree_kit.idle, tree_kit.Fail(tree_kit.Oops("no")))
        assert supervisor.start_child(tree_kit.idle).pid
    with Runtime(DynamicSupervisor(max_children=0)) as runtime, pytest.raises(ChildStateError):
        runtime.supervisor().start_child(tree_kit.idle)


def test_extra_arguments_come_first(journal: Journal) -> None:
    """extra_arguments are put before each child's own, at restarts too, also where the supervisor is a child."""
    tree = Supervisor([Child(DynamicSupervisor(extra_arguments=(journal, "extra"), name="d"))])
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor("d")
        ref = supervisor.start_child(write_arguments, 1, 2, kwargs={"k": "v"})
        journal.wait("got extra 1 2 k=v")
        kill(ref.pid)
        journal.wait("got extra 1 2 k=v", 2)


def test_fifty_children_from_four_threads(journal: Journal) -> None:
    """Concurrent start_child calls each get their own child; which_children shows all of them, newest first."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        refs: list[Any] = []

        def start(numbers: range) -> None:
            for number in numbers:
                refs.append((number, supervisor.start_child(Child(tree_kit.stay, journal, number, id=number))))

        threads = [threading.Thread(target=start, args=(range(first, 50, 4),)) for first in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(tree_kit.PATIENCE_S)
        assert sorted(number for number, _ in refs) == list(range(50))
        rows = supervisor.which_children()
        pids = {ref.pid for _, ref in refs}
        assert len(pids) == 50 and {row[1] for row in rows} == pids and all(alive(pid) for pid in pids)
        assert supervisor.count_children() == (50, 50, 0, 50)
        assert [ref.key for _, ref in sorted(refs, key=lambda pair: -pair[1].key)] == [
            dict(refs)[row[0]].key for row in rows
        ]
    assert not [pid for pid in pids if alive(pid)]


def test_a_restart_touches_nobody_else(journal: Journal) -> None:
    """The death of one of ten is one restart; the others keep their processes, its reference stays good."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        refs = [supervisor.start_child(tree_kit.idle) for _ in range(10)]
        before = [ref.pid for ref in refs]
        kill(before[4])
        until(lambda: refs[4].pid not in (None, before[4]))
        after = [ref.pid for ref in refs]
        assert [old == new for old, new in zip(before, after, strict=True)] == [n != 4 for n in range(10)]
        supervisor.terminate_child(refs[4])
        assert not alive(after[4]) and supervisor.count_children().specs == 9


def test_all_are_asked_at_once(journal: Journal) -> None:
    """B5. When a dynamic supervisor ends, every child is asked before any has to be gone."""
    names = [str(number) for number in range(6)]
    runtime = Runtime(DynamicSupervisor())
    supervisor = runtime.start().supervisor()
    for name in names:
        supervisor.start_child(tree_kit.linger, journal, name, "end", id=name, shutdown="infinity")
        journal.wait(f"run {name}")
    stopper = threading.Thread(target=runtime.stop)
    stopper.start()
    for name in names:
        journal.wait(f"asked {name}")  # nobody has ended yet
    journal.note("end")
    stopper.join(tree_kit.PATIENCE_S)
    assert not stopper.is_alive()


def test_each_shutdown_time_is_its_own(journal: Journal) -> None:
    """B5. Deaf children are killed after their own seconds; with them in one supervisor others end in order."""
    with Runtime(Supervisor([Child(DynamicSupervisor(), id="d")])) as runtime:
        top = runtime.supervisor()
        supervisor = top.which_child("d")[1]
        watches = {}
        for name, function, shutdown in (
            ("deaf", tree_kit.deaf, 0.2),
            ("deafer", tree_kit.deaf, 0.4),
            ("good", tree_kit.stay, 60.0),
            ("brutal", tree_kit.stay, "brutal_kill"),
        ):
            watches[name] = monitor(supervisor.start_child(function, journal, name, id=name, shutdown=shutdown))
            journal.wait(f"run {name}")
        top.terminate_child("d")
        reasons = {name: watch.wait(tree_kit.PATIENCE_S).reason for name, watch in watches.items()}  # type: ignore
        assert reasons == {"deaf": "killed", "deafer": "killed", "good": "shutdown", "brutal": "killed"}
        errors = {report["offender"]["id"] for report in tree_kit.reports(runtime, "shutdown_error")}
        assert errors == {"deaf", "deafer"}


def test_too_many_restarts_end_a_dynamic_supervisor() -> None:
    """B1. The budget is the supervisor's, over all its children; its own supervisor starts it again, empty."""
    tree = Supervisor([Child(DynamicSupervisor(max_restarts=2, max_seconds=1000), id="d")])
    with Runtime(tree) as runtime:
        top = runtime.supervisor()
        supervisor = top.which_child("d")[1]
        refs = [supervisor.start_child(tree_kit.idle) for _ in range(3)]
        pids = [ref.pid for ref in refs]
        with monitor(supervisor) as watch:
            for pid in pids:
                kill(pid)
            down = watch.wait(tree_kit.PATIENCE_S)
        assert down is not None and down.reason == "shutdown"
        until(lambda: top.which_child("d")[1] not in (None, "restarting"))
        assert top.which_child("d")[1].count_children() == (0, 0, 0, 0)
        assert [ref.pid for ref in refs] == [None, None, None]


def test_it_starts_itself_at_first_use_and_ends_with_the_block() -> None:
    """A supervisor outside any tree is started in the current runtime when it is used."""
    with Runtime(), DynamicSupervisor() as supervisor:
        pids = [supervisor.start_child(tree_kit.idle).pid for _ in range(2)]
        assert supervisor.count_children().active == 2
        supervisor.stop()
        assert not [pid for pid in pids if alive(pid)]


# ---- partitions ------------------------------------------------------------------------------------------------------
def test_partitions_are_found_by_key(journal: Journal) -> None:
    """Equal keys meet the same partition: ints by remainder, anything else by its hash; None is the usable CPUs."""
    tree = PartitionSupervisor(Child(tree_kit.stay, journal, "p", name="part"), 3, name="parts")
    with Runtime(), tree:
        assert [row[0] for row in tree.which_children()] == [2, 1, 0]
        assert tree.partition(7) == tree.partition(1) == tree.partition(-2)
        assert tree.partition(7).pid == tree.which_child(1)[1]
        assert tree.partition("key") == tree.partition("key")
        assert len({tree.partition(number).pid for number in range(3)}) == 3
        assert [tree.partition(number).name for number in range(3)] == ["part-0", "part-1", "part-2"]
    assert PartitionSupervisor(Child(tree_kit.idle)).partitions >= 1


def test_a_partition_is_restarted_by_itself() -> None:
    """The death of one partition leaves the others; equal keys meet its replacement."""
    tree = PartitionSupervisor(Child(tree_kit.idle), 3)
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        ref = supervisor.child(1)
        before = [supervisor.which_child(number)[1] for number in range(3)]
        kill(before[1])
        assert tree_kit.new_pid(supervisor, 1, before[1]) == ref.pid
        assert [supervisor.which_child(number)[1] for number in (0, 2)] == [before[0], before[2]]


def test_partitions_of_dynamic_supervisors_and_own_arguments(journal: Journal) -> None:
    """Each partition may be a supervisor, or have arguments of its own."""
    with Runtime(PartitionSupervisor(DynamicSupervisor(), 2, name="sharded")) as runtime:
        shards = runtime.supervisor("sharded")
        assert [row[2] for row in shards.which_children()] == ["supervisor", "supervisor"]
        for number in range(2):
            shards.child(number).start_child(tree_kit.idle)
        assert [shards.child(number).count_children().active for number in range(2)] == [1, 1]
    tree = PartitionSupervisor(
        Child(tree_kit.stay, journal), 2, with_arguments=lambda args, number: (*args, f"n{number}")
    )
    with Runtime(tree):
        journal.wait("run n0")
        journal.wait("run n1")

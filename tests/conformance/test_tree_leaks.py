"""Hundreds of children come and go: nothing of them stays, in the root, in the program, or in shared memory."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import tree_kit
from tree_kit import kill, until

from shmrt import Child, DynamicSupervisor, Runtime, StartError, Supervisor, _native, monitor
from shmrt.supervise.protocol import FIRST_NESTED

MEMORY_KB = 2048  # what a few hundred children may cost for good; one kilobyte each would be seen at 1000 and more
RUNS = [pytest.param(300, id="300"), pytest.param(1000, id="1000", marks=pytest.mark.stress)]


class Use:
    """What a runtime and its program hold, once both are at rest."""

    def __init__(self, runtime: Runtime) -> None:
        root = runtime.pid
        assert root is not None
        gc.collect()
        self.counts = {
            "descriptors of the root": len(os.listdir(f"/proc/{root}/fd")),
            "threads of the root": len(os.listdir(f"/proc/{root}/task")),
            "children of the root": len(Path(f"/proc/{root}/task/{root}/children").read_text().split()),
            "descriptors of the program": len(os.listdir("/proc/self/fd")),
            "threads of the program": threading.active_count(),
            "slots": sum(
                runtime._slots.state(slot) != _native.SLOT_EMPTY for slot in range(FIRST_NESTED, runtime._slots.count)
            ),
            "waiting for answers": len(runtime._link._waiting),
            "monitors": len(runtime._link._monitors) + len(runtime._link._early),
        }
        lines = Path(f"/proc/{root}/status").read_text().splitlines()
        self.memory_kb = int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def same_again(runtime: Runtime, before: Use) -> None:
    """Waits for what is still on its way out, then compares."""
    after = Use(runtime)

    def look() -> bool:
        nonlocal after
        after = Use(runtime)
        return all(after.counts[what] <= count for what, count in before.counts.items())

    until(look, lambda: (before.counts, after.counts))
    grown = after.memory_kb - before.memory_kb
    print(f"memory of the root: {before.memory_kb} kB, then {after.memory_kb} kB")
    assert grown < MEMORY_KB, grown


@pytest.mark.slow
@pytest.mark.parametrize("count", RUNS)
def test_children_that_come_and_go_leave_nothing(count: int) -> None:
    """Started, watched and terminated: no descriptor, thread, zombie, slot, monitor or memory is left of them."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()

        def turn(number: int) -> None:
            name = f"name{number}" if number % 2 else None
            ref = supervisor.start_child(tree_kit.idle, name=name, restart="temporary", shutdown="brutal_kill")
            with monitor(ref) as watch:
                monitor(ref).cancel()
                supervisor.terminate_child(ref)
                assert watch.wait(tree_kit.PATIENCE_S) is not None

        for number in range(30):
            turn(number)
        before = Use(runtime)
        for number in range(count):
            turn(number)
        assert supervisor.which_children() == []
        same_again(runtime, before)


@pytest.mark.slow
@pytest.mark.parametrize("count", RUNS)
def test_restarts_leave_nothing(count: int) -> None:
    """The same child killed again and again: each incarnation takes the place of the one before."""
    tree = Supervisor([Child(tree_kit.idle, name="a")], max_restarts=10**6)
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        pid = supervisor.which_child("a")[1]

        def turns(count: int) -> None:
            nonlocal pid
            for _ in range(count):
                kill(pid)
                pid = tree_kit.new_pid(supervisor, "a", pid)

        turns(30)
        before = Use(runtime)
        turns(count)
        same_again(runtime, before)
        assert supervisor.count_children() == (1, 1, 0, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [pytest.param(100, id="100"), pytest.param(1000, id="1000", marks=pytest.mark.stress)]
)
def test_failed_starts_leave_nothing(count: int) -> None:
    """Children that never got ready: their processes, slots and names are free again."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()

        def turns(count: int) -> None:
            for number in range(count):
                how: Any = tree_kit.LeaveAtStart("os._exit(5)") if number % 2 else tree_kit.Fail(tree_kit.Oops("never"))
                with pytest.raises(StartError):
                    supervisor.start_child(tree_kit.idle, how, name="always the same")

        turns(20)
        before = Use(runtime)
        turns(count)
        same_again(runtime, before)


@pytest.mark.slow
@pytest.mark.parametrize("count", [pytest.param(30, id="30"), pytest.param(300, id="300", marks=pytest.mark.stress)])
def test_whole_subtrees_leave_nothing(count: int) -> None:
    """Supervisors with three children, started beside the tree and within it, stopped in order and brutally."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        inner = Supervisor([Child(tree_kit.idle, id=number, shutdown="brutal_kill") for number in range(3)])

        def turns(count: int) -> None:
            for number in range(count):
                ref = supervisor.start_child(inner, restart="temporary") if number % 2 else inner.start(runtime)
                with monitor(ref) as watch:
                    ref.stop("killed" if number % 3 else "shutdown")
                    assert watch.wait(tree_kit.PATIENCE_S) is not None

        turns(6)
        before = Use(runtime)
        turns(count)
        assert supervisor.count_children().specs == 0
        same_again(runtime, before)


def test_monitors_that_are_cancelled_cost_the_root_nothing() -> None:
    """A supervisor that is watched and left a thousand times is watched by nobody."""
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")])) as runtime:
        supervisor = runtime.supervisor()
        refs = [supervisor, supervisor.child("a")]
        for _ in range(20):
            for ref in refs:
                monitor(ref).cancel()
        before = Use(runtime)
        for _ in range(1000):
            for ref in refs:
                monitor(ref).cancel()
        same_again(runtime, before)

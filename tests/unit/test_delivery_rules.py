"""The rules of a pipeline run one by one, each driven event by event: deaths, credit, bytes, batches, ends.

Who pays for the death of a shared task, when the source stops, when a batch goes out, and how a run ends.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from shmrt.decide.delivery import (
    Deliver,
    Delivery,
    Done,
    Ended,
    Failed,
    Fed,
    Finished,
    Grant,
    Letter,
    Node,
    Stop,
    Submit,
    Taken,
    Tick,
)


def test_an_item_that_kills_costs_its_attempts_and_the_innocent_nothing() -> None:
    """C6. The death of a shared task is paid by the first that kills again, and by nobody if none does."""
    machine = Delivery((Node(kind="map", row=0, workers=1),), 1, on_error="dead_letter")
    (first,) = [e for e in machine.step(Fed([0]), 0) if isinstance(e, Submit)]
    machine.step(Done(first.task_id, [0], elapsed_ns=1), 1)
    chunk = None
    fed = [e for e in machine.step(Fed(list(range(1, 65))), 2) if isinstance(e, Submit)]
    numbers = iter(range(3, 10_000))
    letters: list[Letter] = []
    deaths = 0
    pending = deque(fed)
    while pending:
        task = pending.popleft()
        if 13 in task.items:
            chunk = max(chunk or 0, len(task.items))
            deaths += task.max_attempts
            event: Any = Failed(task.task_id, OSError(), "crashed", task.max_attempts)
        else:
            event = Done(task.task_id, task.items, elapsed_ns=len(task.items))
        effects = machine.step(event, next(numbers))
        pending += [e for e in effects if isinstance(e, Submit)]
        letters += [e for e in effects if isinstance(e, Letter)]
    assert chunk is not None and chunk > 1, "the killer never shared a task, so this proved nothing"
    assert [(x.item, x.attempts) for x in letters] == [(13, 3)]
    assert deaths == 3
    assert (machine.rows[0].deaths, machine.rows[0].retried, machine.rows[0].failed) == (3, 2, 1)
    assert machine.rows[0].done == 64


def test_deaths_from_outside_charge_nobody() -> None:
    """A shared task killed ever again from outside: every item keeps its attempts."""
    machine = Delivery((Node(kind="map", row=0, workers=1),), 1, on_error="dead_letter")
    (first,) = [e for e in machine.step(Fed([0]), 0) if isinstance(e, Submit)]
    machine.step(Done(first.task_id, [0], elapsed_ns=1), 1)
    pending = deque(e for e in machine.step(Fed(list(range(1, 100))), 2) if isinstance(e, Submit))
    killed = 0
    out: list[Any] = []
    while pending:
        task = pending.popleft()
        shared = len(task.items) > 1 and killed < 20
        killed += shared
        event: Any = Failed(task.task_id, OSError(), "crashed") if shared else Done(task.task_id, task.items)
        for effect in machine.step(event, 3):
            assert not isinstance(effect, Letter)
            if isinstance(effect, Submit):
                pending.append(effect)
            elif isinstance(effect, Deliver):
                out += effect.items
    assert killed >= 2 and out == list(range(1, 100)) and machine.rows[0].deaths == killed


def test_a_stopped_consumer_stops_the_source() -> None:
    """R8, D4. Grants end when every edge is full; nothing more is accepted until something is taken."""
    plan = (Node(kind="map", row=0, slots=8), Node(kind="batch", row=1, size=3), Node(kind="map", row=2, slots=4))
    machine = Delivery(plan, 3, out_slots=2)
    granted = sum(e.count for e in machine.begin(0) if isinstance(e, Grant))
    fed = 0
    tasks: deque[Submit] = deque()
    while granted or tasks:
        if granted:
            granted, fed = granted - 1, fed + 1
            effects = machine.step(Fed([fed]), fed)
        else:
            task = tasks.popleft()
            effects = machine.step(Done(task.task_id, task.items), fed)
        tasks += [e for e in effects if isinstance(e, Submit)]
        granted += sum(e.count for e in effects if isinstance(e, Grant))
        assert fed < 100, "the source is not stopped"
    assert fed <= 8 + 3 + 3 + 3 * 4 + 3 * 2
    before_ns = machine.rows[2].blocked_ns
    assert any(isinstance(e, Grant) for e in machine.step(Taken(2), fed + 1000))
    assert machine.rows[2].blocked_ns >= before_ns + 1000


def test_bytes_bound_what_is_in_flight() -> None:
    """P8. Megabytes are held back long before the slots are used up."""
    machine = Delivery((Node(kind="map", row=0, slots=1000, bytes_most=2**20),), 1)
    granted = sum(e.count for e in machine.begin(0) if isinstance(e, Grant))
    fed = 0
    while granted:
        granted, fed = granted - 1, fed + 1
        effects = machine.step(Fed([b"x" * 2**18]), fed)
        granted += sum(e.count for e in effects if isinstance(e, Grant))
    assert 1 <= fed <= 20


def test_a_batch_goes_out_when_its_time_is_up() -> None:
    """The pair: before its timeout it stays, after it it goes."""
    machine = Delivery((Node(kind="batch", row=0, size=10, timeout_ns=100),), 1)
    machine.begin(0)
    machine.step(Fed([1, 2]), 50)
    assert machine.wake_ns() == 150
    assert [e for e in machine.step(Tick(), 149) if isinstance(e, Deliver)] == []
    assert [e.items for e in machine.step(Tick(), 150) if isinstance(e, Deliver)] == [[[1, 2]]]
    assert machine.wake_ns() is None
    machine.step(Fed([3]), 160)
    assert [e.items for e in machine.step(Ended(), 161) if isinstance(e, Deliver)] == [[[3]]]


def test_a_broken_pool_and_a_broken_source_end_the_run() -> None:
    """A fatal failure stops at once; the source's error comes after everything that it gave."""
    machine = Delivery((Node(kind="map", row=0),), 1, on_error="skip")
    (task,) = [e for e in machine.step(Fed([1]), 0) if isinstance(e, Submit)]
    problem = OSError("broken")
    assert machine.step(Failed(task.task_id, problem, "fatal"), 1) == [Stop(problem)]
    assert machine.step(Fed([2]), 2) == []

    machine = Delivery((Node(kind="map", row=0),), 1)
    (task,) = [e for e in machine.step(Fed([1]), 0) if isinstance(e, Submit)]
    assert machine.step(Ended(problem), 1) == []
    assert machine.step(Done(task.task_id, ["one"]), 2) == [Deliver(["one"]), Finished(problem)]


def test_the_machine_refuses_what_is_no_event() -> None:
    """An invalid input is an error, not a silent nothing; an unknown task is counted."""
    machine = Delivery((), 0)
    with pytest.raises(TypeError, match="event must be one of"):
        machine.step("nonsense", 0)  # type: ignore[arg-type]
    machine.step(Done(77, [1]), 0)
    machine.step(Failed(78, OSError()), 0)
    assert machine.repeats == 2 and machine.step(Taken(5), 1) == []

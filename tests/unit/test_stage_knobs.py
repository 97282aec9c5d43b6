"""`chunk` and `spin`, of a stage and of a pool: what is refused, and that it reaches what it is about."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import shmrt
from shmrt.decide.delivery import Delivery, Done, Ended, Fed, Node, Submit
from shmrt.pipeline_plan import make_plan


def sizes(chunk: int | None, items: int, workers: int = 1) -> list[int]:
    """Of the tasks of a run, in order, each of which took no time."""
    machine = Delivery((Node(kind="map", row=0, workers=workers, chunk=chunk),), rows=1)
    found: list[int] = []
    open_tasks = [effect for effect in machine.step(Fed(list(range(items))), 0) if isinstance(effect, Submit)]
    open_tasks += [effect for effect in machine.step(Ended(), 1) if isinstance(effect, Submit)]
    while open_tasks:
        task = open_tasks.pop(0)
        found.append(len(task.items))
        effects = machine.step(Done(task.task_id, list(task.items), elapsed_ns=1), 2)
        open_tasks += [effect for effect in effects if isinstance(effect, Submit)]
    assert sum(found) == items and machine.balanced()
    return found


def test_a_chosen_chunk_is_kept_from_the_first_task_on() -> None:
    assert set(sizes(1, 40)) == {1}
    assert sizes(8, 200)[:10] == [8] * 10 and max(sizes(8, 200)) == 8
    assert sizes(None, 200)[0] == 1 and max(sizes(None, 200)) > 8  # auto begins with one, and learns


def test_a_chosen_chunk_is_no_more_than_an_even_share() -> None:
    assert sizes(1000, 40, workers=2)[0] == 10


def test_chunk_and_spin_are_part_of_a_description() -> None:
    pipe = shmrt.Pipeline("p").map(str, chunk=7, spin=0.0).filter(bool, chunk="auto").flat_map(list, spin=1e-4, chunk=2)
    copy = pickle.loads(pickle.dumps(pipe))
    assert [(stage.chunk, stage.spin) for stage in copy.stages] == [(7, 0.0), (None, None), (2, 1e-4)]
    nodes, _ = make_plan(copy.stages)
    assert [node.chunk for node in nodes] == [7, None, 2]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"chunk": 0}, "chunk=0 must be from 1 to 65536"),
    ({"chunk": "many"}, "chunk='many' must be 'auto' or a whole number"),
    ({"chunk": 1.5}, "chunk must be a whole number"),
    ({"chunk": None}, "chunk must be a whole number"),
    ({"spin": -1}, "spin=-1 must be at least 0 seconds"),
    ({"spin": 0.011}, "spin=0.011 must be from 0 to 0.01 seconds"),
    ({"spin": float("inf")}, "spin=inf must be from 0 to 0.01 seconds"),
    ({"spin": "50us"}, "spin must be seconds or None"),
]


@pytest.mark.parametrize(("given", "text"), WRONG)
def test_a_wrong_knob_is_named(given: dict[str, Any], text: str) -> None:
    for kind in ("map", "filter", "flat_map"):
        with pytest.raises((ValueError, TypeError), match=f"stage 1 .*{text}"):
            getattr(shmrt.Pipeline("p"), kind)(str, **given)
    if "spin" in given:
        with pytest.raises((ValueError, TypeError), match=text):
            shmrt.Pool(1, **given)


def options_here(_: Any = None) -> Any:
    from shmrt.process.worker import job_of_this

    assert job_of_this is not None
    return job_of_this.spec["options"]


def test_spin_reaches_the_workers() -> None:
    with shmrt.Runtime():
        for spin, options in ((None, {}), (0.0, {"spin_ns": 0}), (5e-4, {"spin_ns": 500_000})):
            with shmrt.Pool(1, spin=spin) as pool:
                assert pool.submit(options_here).result() == options
            with shmrt.Pipeline("p").map(options_here, workers=1, spin=spin).run([1, 2]) as run:
                assert list(run) == [options] * 2


def test_a_loop_refuses_a_spin_that_is_none() -> None:
    """The native loop reads it as nanoseconds."""
    with shmrt.Runtime(), shmrt.Pool(1) as pool:
        assert pool.submit(refused).result() == ["OverflowError", "TypeError"]


def refused() -> list[str]:
    from shmrt import _native
    from shmrt.process.worker import job_of_this as job

    found = []
    for value in (-1, "soon"):
        try:
            _native.WorkerLoop(job.slots, job.lanes_fd, job.arena_fd, {"spin_ns": value})  # type: ignore[union-attr]
        except Exception as error:
            found.append(type(error).__name__)
    return found

"""The decisions of a pipeline run in random worlds: random plans, completions, deaths and consumers.

Whatever happens, every input has one outcome, the outputs are those of the same pipeline as nested loops, and equal
keys stay in order. What single rules say is in test_delivery_rules.py.
"""

from __future__ import annotations

from typing import Any

from delivery_kit import World, key_of, model, plans
from hypothesis import given, note, settings
from hypothesis import strategies as st

from shmrt.decide.delivery import Finished, Node, Stop
from shmrt.decide.routing import route


@settings(max_examples=300, deadline=None, print_blob=True)
@given(
    planned=plans(),
    seed=st.integers(0, 2**32),
    count=st.integers(0, 60),
    ordered=st.booleans(),
    policy=st.sampled_from(["dead_letter", "skip"]),
    rates=st.sampled_from(
        [{"kill": 0, "raise": 0}, {"kill": 60, "raise": 99}, {"kill": 40, "raise": 20, "outside": 200}]
    ),
    out_slots=st.sampled_from([1, 3, 50]),
)
def test_every_input_has_one_outcome_whatever_happens(planned, seed, count, ordered, policy, rates, out_slots) -> None:
    """R23. Random order of completions, deaths from inside and outside, repeats: the model's outputs."""
    plan, rows = planned
    note(f"seed={seed}")
    has_stream_deaths = rates["kill"] and any(node.kind == "flat_map" for node in plan)
    world = World(plan, rows, count, seed, rates=rates, ordered=ordered, on_error=policy, out_slots=out_slots)
    world.run()
    assert isinstance(world.ending, Finished)
    assert world.machine.balanced(), world.machine.rows
    assert world.held_most <= 0
    assert not world.tasks
    assert world.machine.taken == count and world.machine.out == len(world.deliveries)
    has_batch = any(node.kind == "batch" for node in plan)
    expected, failures = model(plan, count, rates)
    # A stream that dies loses outputs by contract, and an unordered run fills its batches otherwise.
    if not has_stream_deaths and (ordered or not has_batch):
        got = world.deliveries if ordered else sorted(map(repr, world.deliveries))
        assert got == (expected if ordered else sorted(map(repr, expected)))
        if policy == "dead_letter":
            assert sorted(repr((x.row, x.item)) for x in world.letters) == sorted(map(repr, failures))
    assert bool(world.letters) <= (policy == "dead_letter")
    for (row, item), deaths in world.deaths.items():
        allowed = next(node.max_attempts for node in plan if node.row == row)
        # An outside kill of a task that holds a killer is paid by the killer: one death of its own less.
        least = allowed - bool(rates.get("outside")) * (allowed > 1)
        assert least <= deaths <= allowed, f"{item} of row {row} killed {deaths} workers, allowed were {allowed}"
    for letter in world.letters:
        if isinstance(letter.error, OSError) and (letter.row, repr(letter.item)) in world.deaths:
            assert letter.attempts == next(node.max_attempts for node in plan if node.row == letter.row)


@settings(max_examples=200, deadline=None, print_blob=True)
@given(planned=plans(), seed=st.integers(0, 2**32), count=st.integers(1, 40))
def test_raise_delivers_what_came_before_and_stops(planned, seed, count) -> None:
    """An ordered run that raises has delivered exactly the outputs before its first failure."""
    plan, rows = planned
    rates = {"kill": 0, "raise": 60}
    world = World(plan, rows, count, seed, rates=rates, ordered=True, on_error="raise", out_slots=100_000)
    world.run()
    expected, failures = model(plan, count, rates)
    if failures:
        assert isinstance(world.ending, Stop)
        assert world.deliveries == expected[: len(world.deliveries)]
    else:
        assert isinstance(world.ending, Finished) and world.deliveries == expected


@settings(max_examples=150, deadline=None, print_blob=True)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4), ordered=st.booleans(), upstream=st.integers(1, 3))
def test_equal_keys_meet_one_lane_in_source_order(seed, workers, ordered, upstream) -> None:
    """Whatever completes first, and whoever dies: a routed lane sees its items in the order of the source."""
    plan = [
        Node(kind="filter", row=0, workers=upstream, slots=20, key_row=1),
        Node(kind="map", row=2, workers=workers, slots=20, keyed=True),
        Node(kind="map", row=3, workers=2),
    ]
    world = World(plan, 4, 80, seed, rates={"kill": 50, "raise": 20}, ordered=ordered, on_error="skip")
    world.run()
    seen: dict[Any, int] = {}
    for lane, items in world.order[1].items():
        first: dict[Any, int] = {}
        for place, item in enumerate(items):
            first.setdefault(item, place)
            assert seen.setdefault(key_of(item), lane) == lane
            assert route(key_of(item), workers) == lane
        last: dict[Any, int] = {item: place for place, item in enumerate(items)}
        finals = sorted(last, key=last.__getitem__)
        assert finals == sorted(finals), "the runs that counted are out of order"

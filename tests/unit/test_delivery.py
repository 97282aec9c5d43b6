"""The decisions of a pipeline run, driven without processes: random plans, completions, deaths and consumers."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from shmrt.decide.chunking import CHUNK_MOST, Pace
from shmrt.decide.delivery import (
    FILTERED,
    LOST,
    Deliver,
    Delivery,
    Done,
    Ended,
    Failed,
    Fed,
    Finished,
    Grant,
    Letter,
    Many,
    Node,
    Stop,
    Submit,
    Taken,
    Tick,
    Wrong,
)
from shmrt.decide.routing import route, weigh

# What the pretended functions do with an item (always a tuple that ends in a number) is read off the item, so
# the model and the pretended workers agree without sharing code with the machine.


def digest(item: Any, salt: int) -> int:
    return random.Random(f"{item!r}/{salt}").randrange(1000)


def fate(kind: str, item: Any, salt: int, rates: dict[str, int]) -> Any:
    """What the function of a stage does with an item: ("value", v), ("no",), ("raise",), ("kill",), ("many", list)."""
    roll = digest(item, salt)
    if roll < rates["kill"]:
        return ("kill",)
    if roll < rates["kill"] + rates["raise"]:
        return ("raise",)
    if kind == "filter":
        return ("no",) if roll % 3 == 0 else ("value", item)
    if kind == "flat_map":
        return ("many", [(salt, item, place) for place in range(roll % 5)])
    if kind == "key":
        return ("value", item)
    return ("value", (salt, item))


def key_of(item: Any) -> Any:
    roll = digest(item, 99)
    return [] if roll < 30 else roll % 7  # a list cannot be hashed: the item must fail, alone


class World:
    """Runs the machine against pretended pools with a seeded order of events."""

    def __init__(self, plan: list[Node], rows: int, count: int, seed: int, **options: Any) -> None:
        self.rng = random.Random(seed)
        self.rates = options.pop("rates")
        self.window = options.pop("window", 5)
        self.plan = plan
        self.machine = Delivery(plan, rows, **options)
        self.source = deque((number,) for number in range(count))
        self.granted = 0
        self.tasks: list[Submit] = []
        self.streams: dict[int, list[Any]] = {}
        self.deliveries: list[Any] = []
        self.untaken = 0
        self.letters: list[Letter] = []
        self.ending: Stop | Finished | None = None
        self.deaths: dict[Any, int] = {}  # deaths that the item itself caused
        self.order: list[dict[int, list[Any]]] = [{} for _ in plan]
        self.now = 0
        self.ended = False
        self.held_most = 0

    def apply(self, effects: list[Any]) -> None:
        for effect in effects:
            assert self.ending is None, f"{effect} after {self.ending}"
            if isinstance(effect, Submit):
                self.tasks.append(effect)
            elif isinstance(effect, Deliver):
                self.deliveries += effect.items
                self.untaken += len(effect.items)
            elif isinstance(effect, Letter):
                self.letters.append(effect)
            elif isinstance(effect, Grant):
                assert effect.count > 0
                self.granted += effect.count
            else:
                self.ending = effect
        for node in self.machine.nodes:
            if node.plan.kind != "batch":
                self.held_most = max(self.held_most, node.held - node.plan.slots)  # type: ignore[union-attr]

    def step(self, event: Any) -> None:
        self.now += self.rng.randrange(0, 1000)
        self.apply(self.machine.step(event, self.now))

    def finish_one(self) -> None:
        first_of_lane: dict[Any, int] = {}
        for place, task in enumerate(self.tasks):  # a lane is first in, first out; tasks without a lane are free
            first_of_lane.setdefault(("free", place) if task.lane is None else (task.node, task.lane), place)
        task = self.tasks.pop(self.rng.choice(sorted(first_of_lane.values())))
        self.step(self.outcome(task))
        if self.rng.random() < 0.1:
            repeats = self.machine.repeats
            self.step(Done(task.task_id, [None] * max(1, len(task.items))))
            assert self.machine.repeats == repeats + (self.ending is None or self.machine.repeats > repeats)

    def outcome(self, task: Submit) -> Any:
        node = self.plan[task.node]
        keyed = node.key_row is not None or node.kind == "key"
        if task.token is not None:
            if self.rng.random() < self.rates["kill"] / 1000:
                gone = self.rng.random() < 0.5
                self.streams.pop(task.token)
                return Done(task.task_id, [None], {0: LOST}) if gone else Failed(task.task_id, OSError(), "crashed")
            return Done(task.task_id, [None], {0: self.group(task.token, keyed)})
        if len(task.items) > 1 and self.rng.random() < self.rates.get("outside", 0) / 1000:
            return Failed(task.task_id, OSError("killed from outside"), "crashed")
        if len(task.items) > 1 and self.rng.random() < self.rates["raise"] / 4000:
            return Failed(task.task_id, TypeError("the results did not pickle"), "error")
        values: list[Any] = []
        marks: dict[int, Any] = {}
        for place, item in enumerate(task.items):
            what = fate(node.kind, item, node.row, self.rates)
            if what[0] == "kill":
                deaths = task.max_attempts
                key = (node.row, repr(item))
                self.deaths[key] = self.deaths.get(key, 0) + deaths
                if len(task.items) > 1:
                    assert task.max_attempts == 1
                return Failed(task.task_id, OSError("killed"), "crashed", deaths)
            if node.keyed and task.lane is not None:
                self.order[task.node].setdefault(task.lane, []).append(item)
            values.append(what[1] if what[0] == "value" else None)
            if what[0] == "no":
                marks[place] = FILTERED
            elif what[0] == "raise":
                marks[place] = Wrong(ValueError(f"{node.row} {item}"))
            elif what[0] == "many":
                if len(what[1]) > 2:
                    token = task.task_id
                    self.streams[token] = what[1]
                    marks[place] = self.group(token, keyed)
                    return Done(task.task_id, values, marks, elapsed_ns=self.cost(place + 1), started=place + 1)
                marks[place] = Many(what[1], [(True, key_of(out)) for out in what[1]] if keyed else None)
        keys = [(True, key_of(value)) for value in values] if keyed else None
        return Done(task.task_id, values, marks, keys, elapsed_ns=self.cost(len(task.items)))

    def group(self, token: int, keyed: bool) -> Many:
        left = self.streams[token]
        outs, self.streams[token] = left[:2], left[2:]
        return Many(outs, [(True, key_of(out)) for out in outs] if keyed else None, token if len(left) > 2 else None)

    def cost(self, count: int) -> int:
        return count * self.rng.choice([1, 1000, 100_000, 3_000_000])

    def run(self) -> None:
        self.apply(self.machine.begin(self.now))
        idle = 0
        while self.ending is None:
            moves = []
            if self.granted and self.source:
                moves.append("feed")
            if not self.source and not self.ended:
                moves.append("end")
            if self.tasks:
                moves.append("finish")
            if self.untaken:
                moves.append("take")
            if self.machine.wake_ns() is not None:
                moves.append("tick")
            assert moves, f"stuck: nothing can move although the run is not over, granted={self.granted}"
            move = self.rng.choice(moves)
            idle = idle + 1 if move == "tick" else 0
            assert idle < 1000
            if move == "feed":
                count = self.rng.randint(1, min(self.granted, len(self.source)))
                self.granted -= count
                self.step(Fed([self.source.popleft() for _ in range(count)]))
            elif move == "end":
                self.ended = True
                self.step(Ended())
            elif move == "finish":
                self.finish_one()
            elif move == "take":
                count = self.rng.randint(1, self.untaken)
                self.untaken -= count
                self.step(Taken(count))
            else:
                self.now = max(self.now, self.machine.wake_ns() or 0)
                self.step(Tick())


def model(plan: list[Node], count: int, rates: dict[str, int]) -> tuple[list[Any], list[tuple[int, Any]]]:
    """The same pipeline as nested loops, without streams dying: outputs in order, and (row, item) of each failure."""
    failures: list[tuple[int, Any]] = []
    items: list[Any] = [(number,) for number in range(count)]
    for index, node in enumerate(plan):
        following = plan[index + 1] if index + 1 < len(plan) else None
        given: list[Any] = []
        if node.kind == "batch":
            items = [items[at : at + node.size] for at in range(0, len(items), node.size)]
            continue
        for item in items:
            what = fate(node.kind, item, node.row, rates)
            if what[0] in ("kill", "raise"):
                failures.append((node.row, item))
            for out in what[1] if what[0] == "many" else what[1:2]:
                key_row = node.row if node.kind == "key" else node.key_row
                if key_row is not None and following is not None and following.keyed and key_of(out) == []:
                    failures.append((key_row, out))
                else:
                    given.append(out)
        items = given
    return items, failures


@st.composite
def plans(draw: Any) -> tuple[list[Node], int]:
    plan: list[Node] = []
    row = 0
    keyed = False
    for _ in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from(["map", "map", "filter", "flat_map", "batch"]))
        if draw(st.booleans()) and not (plan and plan[-1].kind != "batch"):
            plan.append(Node(kind="key", row=row, slots=draw(st.integers(1, 9))))
            row, keyed = row + 1, True
        if kind == "batch" and not keyed:
            plan.append(Node(kind="batch", row=row, size=draw(st.integers(1, 6))))
            row += 1
            continue
        if kind == "batch":
            kind = "map"
        attempts = draw(st.integers(1, 4))
        node = dict(kind=kind, row=row, workers=draw(st.integers(1, 3)), slots=draw(st.sampled_from([1, 2, 3, 40])))
        single = attempts == 1 or draw(st.booleans())
        row += 1
        key_row = None
        now_keyed = keyed
        keyed = draw(st.integers(0, 3)) == 0
        if keyed:
            key_row, row = row, row + 1
        plan.append(Node(**node, max_attempts=attempts, single=single, keyed=now_keyed, key_row=key_row))
    return plan, row


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


@given(st.lists(st.tuples(st.integers(-1, 300), st.integers(-5, 10**10))), st.integers(1, 10**6), st.integers(1, 64))
def test_chunks_stay_within_bounds(observed, waiting, workers) -> None:
    """Whatever was measured, a chunk is from 1 to the most, and an even share of what waits."""
    pace = Pace()
    for count, elapsed_ns in observed:
        pace.observe(count=count, elapsed_ns=elapsed_ns)
    size = pace.size(waiting=waiting, workers=workers)
    assert 1 <= size <= min(CHUNK_MOST, max(1, -(-waiting // (2 * workers))))
    assert 2 <= pace.depth() <= 32


class Named(str):
    pass


class Odd:
    @property
    def nbytes(self) -> int:
        raise OSError("no")


@given(st.one_of(st.text(), st.binary(), st.integers(), st.booleans(), st.tuples(st.text(), st.integers())))
def test_equal_keys_have_equal_routes(key) -> None:
    """Equality decides, not the type: 1, 1.0 and True are one key, a subclass of str goes with the string."""
    for workers in (1, 2, 7):
        assert 0 <= route(key, workers) < workers
        if isinstance(key, str):
            assert route(Named(key), workers) == route(key, workers)
        if isinstance(key, int) and abs(key) < 2**50:
            assert route(float(key), workers) == route(key, workers)


def test_routes_are_the_same_in_every_run_and_spread() -> None:
    """Strings do not depend on the hash seed; keys that share a factor still use every worker."""
    assert [route(key, 8) for key in ("alice", b"bob", ("carol", 3))] == [1, 3, 3]
    assert {route(8 * number, 8) for number in range(100)} == set(range(8))
    with pytest.raises(TypeError):
        route([], 2)


def test_weighing_never_fails() -> None:
    """An estimate for anything, near enough for what is big."""
    deep: list[Any] = []
    deep.append(deep)
    for item in (None, 1, "x", deep, {}, {"a": b"x" * 100}, Odd(), object(), type, [b"x" * 1000] * 50):
        assert weigh(item) > 0
    assert weigh([b"x" * 1000] * 50) > 40_000

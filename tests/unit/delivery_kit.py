"""A pretended world around the decisions of a pipeline run: random plans, workers, streams, deaths and a consumer.

What the pretended functions do with an item (always a tuple that ends in a number) is read off the item, so the model
and the pretended workers agree without sharing code with the machine. `World` draws from its seed which event
comes next, so a run that fails can be repeated.
"""

from __future__ import annotations

import random
from collections import deque
from typing import Any

from hypothesis import strategies as st

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

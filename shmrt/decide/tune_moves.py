"""Decides which changes of a setting are worth a trial, the most promising first.

There are more settings than anybody can try, so what the trials have shown says where to look:

    workers      of the stages that everything waits for: twice as many, then one more. Where CPUs are short: fewer, for
                 stages whose workers are mostly idle
    chunk        of stages with items so small that the message costs as much: larger, smaller, and auto
    slots        where a stage was held up by its neighbours, or has room for few: 16 times as many, then four times
    slot_bytes   where an output is larger than a slot: large enough, then four times that
    spin         of stages with small items: none, 50 and 200 microseconds; never with one CPU

A line is as fast as its slowest stage, so of two that are equally slow neither alone is worth anything: what several
stages need is tried for all of them first, then for each. A move that was taken leads to the next in its direction,
since moves are made anew from the new setting. Long items need no chunk and no spin.

    >>> slow = StageFacts("slow", "map", workers=1, taken=100, busy_s=0.95)
    >>> trial = Trial(inputs=100, wall_s=1.0, stages=(slow,))
    >>> found = moves((Knobs(workers=1),), trial, Bottleneck("stage", 0, 0.95), cpus=4, workers_most=8)
    >>> [move.changes for move in found]
    [((0, 'workers', 2),)]
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shmrt.decide.tune_bottleneck import Bottleneck, busiest
from shmrt.decide.tune_words import Knobs, Move, Setting, StageFacts, Trial

__all__ = ["moves"]

SMALL_S = 1e-3
"""An item that takes less is small: a message costs a few microseconds, and its way through the program some more."""
TINY_S = 5e-5
SLOTS_MOST = 2**16
SLOT_BYTES_MOST = 2**20
LANE_MOST = 2**28
CHUNK_MOST = 1024
SPINS = (0.0, 50e-6, 200e-6)
HELD_UP = 0.1
AS_BUSY = 0.8

_Change = tuple[int, str, Any]


def moves(setting: Setting, trial: Trial, bottleneck: Bottleneck, *, cpus: int, workers_most: int) -> list[Move]:
    """From the setting that `trial` ran with; what is useless by the facts is not in the list."""
    order = busiest(trial.stages, trial.wall_s)
    workers = _workers(setting, trial, bottleneck, order, cpus, workers_most)
    chunks = _together(_chunks(at, setting[at], trial.stages[at]) for at in order)
    others = [
        _together(_slot_bytes(at, setting[at], trial) for at in order),
        _together(_slots(at, setting[at], trial) for at in order),
    ]
    if cpus > 1:
        others.append(_together(_spins(setting[at], trial.stages[at], at) for at in order))
    first = [chunks, workers] if bottleneck.kind == "program" else [workers, chunks]
    found: dict[Move, None] = {}
    for group in (*first, *others):
        for move in group:
            if move.of(setting) != setting:
                found[move] = None
    return list(found)


def _together(groups: Iterable[tuple[list[_Change], str]]) -> list[Move]:
    """The first wish of every stage at once, then the second of every stage, then all of them one by one."""
    stages = [(wishes, why) for wishes, why in groups if wishes]
    joint, single = [], []
    for rank in range(max((len(wishes) for wishes, _ in stages), default=0)):
        ranked = [(wishes[rank], why) for wishes, why in stages if len(wishes) > rank]
        if len(ranked) > 1:
            joint.append(Move(tuple(sorted(change for change, _ in ranked)), ranked[0][1]))
        single += [Move((change,), why) for change, why in ranked]
    return joint + single


def _workers(
    setting: Setting, trial: Trial, bottleneck: Bottleneck, order: list[int], cpus: int, most: int
) -> list[Move]:
    found: list[Move] = []
    top = bottleneck.stage
    shares = [stage.share(trial.wall_s) for stage in trial.stages]
    if top is not None and shares[top] > 0.3:
        why = f"its workers are at work for {shares[top]:.0%} of the time"
        slow = [at for at in order if shares[at] >= AS_BUSY * shares[top]]
        wishes = []
        for at in slow:
            now = setting[at].workers
            values = dict.fromkeys((min(2 * now, most), min(now + 1, most)))
            wishes.append(([(at, "workers", value) for value in values if value > now], why))
        found += _together(wishes)
    if sum(knobs.workers for knobs in setting) > cpus:
        why = "there are more workers than CPUs"
        several = [at for at, knobs in enumerate(setting) if knobs.workers > 1]
        fewer: list[_Change] = [(at, "workers", setting[at].workers // 2) for at in several]
        idle = [change for change in fewer if shares[change[0]] < 0.5]
        if bottleneck.kind == "cpus" or idle:
            found = _together([([change], why) for change in fewer]) + found
    return found


def _chunks(at: int, knobs: Knobs, facts: StageFacts) -> tuple[list[_Change], str]:
    if facts.single:
        return [], ""
    if facts.item_s >= SMALL_S:
        return ([(at, "chunk", None)] if knobs.chunk is not None and knobs.chunk > 1 else []), "its items are long"
    values: list[int | None]
    if knobs.chunk is None:
        values = [64, 256, 1024] if facts.item_s < TINY_S else [16, 64]
    else:
        values = [4 * knobs.chunk, None, max(1, knobs.chunk // 4)]
    why = f"an item takes {facts.item_s * 1e6:.0f} us, its message some more"
    return [(at, "chunk", one) for one in values if one is None or one <= CHUNK_MOST], why


def _slots(at: int, knobs: Knobs, trial: Trial) -> tuple[list[_Change], str]:
    facts = trial.stages[at]
    held_up = max(facts.blocked_s, facts.starved_s) > HELD_UP * trial.wall_s
    # Slots that are never all taken cannot hold anything up.
    if facts.taken <= knobs.slots or not (held_up or knobs.slots < 64):
        return [], ""
    values = [one for one in (16 * knobs.slots, 4 * knobs.slots) if one <= SLOTS_MOST]
    fitting = [one for one in values if one * knobs.slot_bytes <= LANE_MOST]
    why = "it is held up by its neighbours" if held_up else "it has room for few items"
    return [(at, "slots", one) for one in fitting], why


def _slot_bytes(at: int, knobs: Knobs, trial: Trial) -> tuple[list[_Change], str]:
    # What a stage gets is what the one before it gives; both ways go through its lanes.
    weight = max(trial.stages[at].bytes_each, trial.stages[at - 1].bytes_each if at else 0.0)
    if weight <= knobs.slot_bytes:
        return [], ""
    values = dict.fromkeys((1 << int(weight).bit_length(), 4 * knobs.slot_bytes))
    fitting = [one for one in values if knobs.slot_bytes < one <= SLOT_BYTES_MOST and one * knobs.slots <= LANE_MOST]
    return [(at, "slot_bytes", one) for one in fitting], f"a message has about {weight:,.0f} bytes"


def _spins(knobs: Knobs, facts: StageFacts, at: int) -> tuple[list[_Change], str]:
    if facts.item_s >= SMALL_S:
        return [], ""
    return [(at, "spin", one) for one in SPINS if one != knobs.spin], "its items are short, and it may wait often"

"""A machine that runs pipelines in a formula: its best setting is known, and its noise comes from a seed."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from shmrt.decide.tune_search import Ask, Knobs, Outcome, StageFacts, Trial, Tuner
from shmrt.decide.tune_words import Setting

INPUTS = 10_000


@dataclass(frozen=True)
class FakeStage:
    """Seconds in its function, for a message at its worker, and in the program for a message of it."""

    item_s: float
    message_s: float = 5e-6
    program_s: float = 2e-6
    bytes_each: int = 100
    spill_s: float = 0.0
    """For a message that does not fit its slot."""
    auto: int | None = None
    """What chunk="auto" comes to here; by default what it is meant to come to."""

    def chunk(self, knobs: Knobs) -> int:
        if knobs.chunk is not None:
            return knobs.chunk
        return self.auto or max(1, min(256, round(1e-3 / self.item_s)))


@dataclass
class FakeMachine:
    stages: Sequence[FakeStage]
    cpus: int = 4
    noise: float = 0.0
    seed: int = 0
    burst: int = 0
    """Inputs that the source gives at once, between pauses as long as the slowest stage needs for them."""
    source_s: float = 0.0
    drag: float = 0.0
    """What each worker beyond the CPUs costs all of them."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def rate(self, setting: Setting) -> float:
        """Inputs a second, without noise."""
        limits, work, program = [], 0.0, 0.0
        for stage, knobs in zip(self.stages, setting, strict=True):
            spill = stage.spill_s if stage.bytes_each > knobs.slot_bytes else 0.0
            each = stage.item_s + spill + stage.message_s / stage.chunk(knobs)
            limits.append(knobs.workers / each)
            work += each
            program += stage.program_s / stage.chunk(knobs)
        limits += [self.cpus / (work + program), 1 / program]
        if self.source_s:
            limits.append(1 / self.source_s)
        found = min(limits)
        if self.burst:  # what does not fit keeps the source waiting: that part of the pause is lost
            fits = min(1.0, sum(knobs.slots for knobs in setting) / self.burst)
            found *= 0.5 + 0.5 * fits
        beyond = max(0, sum(knobs.workers for knobs in setting) - self.cpus)
        return found / (1 + self.drag * beyond)

    def run(self, setting: Setting) -> Trial:
        wall = INPUTS / self.rate(setting) * math.exp(self.random.gauss(0, self.noise))
        facts, program = [], 0.0
        for at, (stage, knobs) in enumerate(zip(self.stages, setting, strict=True)):
            spill = stage.spill_s if stage.bytes_each > knobs.slot_bytes else 0.0
            busy = INPUTS * (stage.item_s + spill + stage.message_s / stage.chunk(knobs))
            program += INPUTS * stage.program_s / stage.chunk(knobs)
            starved = 0.4 * wall if self.burst and not at else 0.0
            facts.append(
                StageFacts(f"s{at}", "map", knobs.workers, INPUTS, busy, 0.0, starved, bytes_each=stage.bytes_each)
            )
        return Trial(INPUTS, wall, INPUTS * self.source_s, program, tuple(facts))

    def optimum(self, start: Setting, workers: Iterable[int] = (1, 2, 4, 8)) -> float:
        """The best rate of a coarse grid, which has what the tuner may find in few steps."""
        chunks = (None, 1, 16, 64, 256, 1024)
        best = 0.0
        for counts in itertools.product(workers, repeat=len(start)):
            for chunk, slots, size in itertools.product(chunks, (16, 1024, 16384), (512, 2**17)):
                setting = tuple(Knobs(count, slots, size, chunk) for count in counts)
                best = max(best, self.rate(setting))
        return best


def tune(machine: FakeMachine, start: Setting, *, budget_s: float = 120.0, each_s: float = 0.5) -> Outcome:
    """The whole of it, on a clock of its own."""
    names = [f"s{at}" for at in range(len(start))]
    tuner = Tuner(names, start, cpus=machine.cpus, budget_s=budget_s)
    now, asks = 0.0, 0
    ask: Ask | None
    while (ask := tuner.ask(now)) is not None:
        asks += 1
        assert now <= 1.5 * budget_s, "it went on after the budget was spent"
        assert now <= budget_s or ask.phase == "confirm"
        assert asks < 10_000, "it has no end"
        now += each_s
        tuner.tell(machine.run(ask.setting), each_s)
    assert now <= 1.5 * budget_s + each_s
    return tuner.outcome()

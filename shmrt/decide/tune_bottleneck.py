"""Decides what a pipeline waits for: the stage that is always at work, the source, the processors, or the program.

In a line of stages one is slowest, and all others wait for it: those before it are blocked, those behind it starved.
Its workers are at work all the time. Where no stage is, something outside of the stages holds them up:

    a stage's workers at work for 80 % of the time      that stage
    the source took 80 % of the time                    the source
    no CPU was left                                     the processors: more workers cannot help
    the program's own process was at work for 70 %      the program: it carries every message
    otherwise                                           nothing stands out

A trial may be disturbed, so each is judged by itself, and the verdict is what most of them say.

    >>> slow = StageFacts("slow", "map", workers=1, taken=100, busy_s=0.95)
    >>> quick = StageFacts("quick", "map", workers=1, taken=100, busy_s=0.1)
    >>> verdict([Trial(inputs=100, wall_s=1.0, stages=(quick, slow))] * 3, cpus=4)
    Bottleneck(kind='stage', stage=1, share=0.95, votes=3, trials=3)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from shmrt.decide.tune_compare import median
from shmrt.decide.tune_words import StageFacts, Trial

__all__ = ["Bottleneck", "of_trial", "verdict"]

STAGE_FROM = 0.8
SOURCE_FROM = 0.8
CPUS_FROM = 0.9
PROGRAM_FROM = 0.7


@dataclass(frozen=True, slots=True)
class Bottleneck:
    """kind: `stage`, `source`, `cpus`, `program` or `none`. `share` is the part of the time that it was at work,
    `votes` the trials, of `trials`, that say so."""

    kind: str
    stage: int | None = None
    share: float = 0.0
    votes: int = 0
    trials: int = 0


def of_trial(trial: Trial, cpus: int) -> Bottleneck:
    """What this one says."""
    shares = [stage.share(trial.wall_s) for stage in trial.stages]
    top = max(range(len(shares)), key=shares.__getitem__) if shares else None
    source = trial.source_s / max(trial.wall_s, 1e-9)
    program = trial.program_s / max(trial.wall_s, 1e-9)
    # Workers that wait for a CPU are at work by the clock: where there are more of them than CPUs, it is the CPUs that
    # are short, unless one stage alone has all of the work.
    used = (sum(stage.busy_s for stage in trial.stages) + trial.program_s) / max(trial.wall_s * cpus, 1e-9)
    if top is not None and shares[top] >= STAGE_FROM:
        others = sum(stage.workers for stage in trial.stages if stage.busy_s > 0.05 * trial.wall_s)
        if used >= CPUS_FROM and others >= cpus:
            return Bottleneck("cpus", top, min(used, 1.0))
        return Bottleneck("stage", top, shares[top])
    if source >= SOURCE_FROM:
        return Bottleneck("source", None, min(source, 1.0))
    if used >= CPUS_FROM:
        return Bottleneck("cpus", top, min(used, 1.0))
    if program >= PROGRAM_FROM:
        return Bottleneck("program", None, min(program, 1.0))
    return Bottleneck("none", top, 0.0 if top is None else shares[top])


def verdict(trials: Sequence[Trial], cpus: int) -> Bottleneck:
    """What most trials say; of two that have as many, what came first."""
    found = [of_trial(trial, cpus) for trial in trials if trial.problem is None]
    if not found:
        return Bottleneck("none")
    (kind, stage), votes = Counter((one.kind, one.stage) for one in found).most_common(1)[0]
    share = median([one.share for one in found if (one.kind, one.stage) == (kind, stage)])
    return Bottleneck(kind, stage, share, votes, len(found))


def busiest(stages: Sequence[StageFacts], wall_s: float) -> list[int]:
    """Stages by how much their workers were at work, most first."""
    return sorted(range(len(stages)), key=lambda at: -stages[at].share(wall_s))

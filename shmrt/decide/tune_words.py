"""The words of tuning: what can be changed, what a trial shows, and what is asked for next.

A *setting* is one `Knobs` for each stage with workers, in order. A *trial* is one run of the sample with a setting;
what it shows is a `Trial`. A *move* changes one setting into another, and says why.

    >>> start = (Knobs(workers=1), Knobs(workers=2))
    >>> changed(start, 1, workers=4)
    (Knobs(workers=1, slots=1024, slot_bytes=512, chunk=None, spin=None), \
Knobs(workers=4, slots=1024, slot_bytes=512, chunk=None, spin=None))
    >>> differences(start[1], changed(start, 1, workers=4, chunk=16)[1])
    {'workers': 4, 'chunk': 16}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["Knobs", "Move", "Setting", "StageFacts", "Trial", "changed", "differences", "knob_text"]


@dataclass(frozen=True, slots=True)
class Knobs:
    """What can be changed of one stage. None: chunk by measured times; spin as built."""

    workers: int = 2
    slots: int = 1024
    slot_bytes: int = 512
    chunk: int | None = None
    spin: float | None = None


Setting = tuple[Knobs, ...]


@dataclass(frozen=True, slots=True)
class StageFacts:
    """What one trial showed of one stage. `bytes_each` is about what an output weighs."""

    name: str
    kind: str
    workers: int
    taken: int
    busy_s: float
    blocked_s: float = 0.0
    starved_s: float = 0.0
    bytes_each: float = 0.0
    stateful: bool = False
    single: bool = False
    """Items travel one by one, whatever `chunk` says: the stage has a timeout, or one attempt."""

    @property
    def item_s(self) -> float:
        """Of one item in a worker."""
        return self.busy_s / max(1, self.taken)

    def share(self, wall_s: float) -> float:
        """The part of the time that its workers were at work, 0 to 1."""
        return min(1.0, self.busy_s / max(1e-9, wall_s * self.workers))


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of the sample. `problem` says why its results do not count; the rest is then nothing."""

    inputs: int = 0
    wall_s: float = 0.0
    source_s: float = 0.0
    """Inside the user's source."""
    program_s: float = 0.0
    """Processor time of this process."""
    stages: tuple[StageFacts, ...] = ()
    problem: str | None = None

    @property
    def rate(self) -> float:
        """Inputs a second."""
        return self.inputs / max(self.wall_s, 1e-9)


@dataclass(frozen=True, slots=True)
class Move:
    """Changes that are worth a trial together: (stage, knob, value), one of a kind for each stage that needs it."""

    changes: tuple[tuple[int, str, Any], ...]
    why: str

    def of(self, setting: Setting) -> Setting:
        """The setting after it."""
        for stage, knob, value in self.changes:
            setting = changed(setting, stage, **{knob: value})
        return setting


def changed(setting: Setting, stage: int, **knobs: Any) -> Setting:
    """The setting with other knobs for one stage."""
    return tuple(replace(one, **knobs) if at == stage else one for at, one in enumerate(setting))


def differences(old: Knobs, new: Knobs) -> dict[str, Any]:
    """What the new one has other values for."""
    before, after = asdict(old), asdict(new)
    return {key: after[key] for key in after if after[key] != before[key]}


def knob_text(knob: str, value: Any) -> str:
    """
    >>> knob_text("spin", 5e-05), knob_text("chunk", None), knob_text("slot_bytes", 2048)
    ('spin 50us', 'chunk auto', 'slot_bytes 2048')
    """
    if knob == "spin":
        return "spin as built" if value is None else f"spin {value * 1e6:g}us"
    return f"{knob} {'auto' if value is None else value}"


def setting_text(names: Sequence[str], old: Setting, new: Setting) -> str:
    """What is changed, stage by stage; empty if nothing is."""
    parts: list[str] = []
    for name, before, after in zip(names, old, new, strict=True):
        found: Mapping[str, Any] = differences(before, after)
        if found:
            parts.append(f"{name}: " + ", ".join(knob_text(key, value) for key, value in found.items()))
    return "; ".join(parts)

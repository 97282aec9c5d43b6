"""Which faults a chaos run sends, when, and to whom: a plan that follows from the seed alone.

    kill    SIGKILL to a worker; gaps are exponential, so that no part of a message is safer than another
    stop    SIGSTOP to a worker and SIGCONT after 1 ms to 2 s; short and long ones are equally likely on a log scale
    root    SIGKILL to the root supervisor, never more often than a runtime bears

Each kind has its own source of random numbers, so that another rate of one does not move the others. The plan names
its victims by a number from 0 to 1, which `choose` turns into one of those that are there at that moment.

    >>> import random
    >>> def seeded(): return {kind: random.Random(f"7 {kind}") for kind in KINDS}
    >>> next(plan(seeded(), kill_rate=10.0)) == next(plan(seeded(), kill_rate=10.0, stop_rate=0.01))
    True
    >>> choose(0.99, ["a", "b"]), choose(0.0, ["a", "b"]), choose(0.5, [])
    ('b', 'a', None)
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

__all__ = ["KINDS", "PULSE_S", "ROOTS_MOST", "ROOTS_WITHIN_S", "Draws", "Fault", "choose", "plan"]

T = TypeVar("T")
Kind = Literal["kill", "stop", "root"]
KINDS: tuple[Kind, ...] = ("kill", "stop", "root")

PULSE_S = (0.001, 2.0)
"""The shortest and the longest time that a worker is stopped for."""

ROOTS_MOST = 9
ROOTS_WITHIN_S = 60.0
"""A runtime gives up when more than ten roots die within a minute; that is its rule, and no fault to look for."""


class Draws(Protocol):
    """A source of random numbers, as `random.Random` is one."""

    def random(self) -> float: ...
    def expovariate(self, rate: float, /) -> float: ...


@dataclass(frozen=True, slots=True)
class Fault:
    """At `at` seconds from the start; `pick` chooses the victim, `seconds` is how long a stop lasts."""

    at: float
    kind: Kind
    pick: float
    seconds: float = 0.0


def plan(
    draws: Mapping[Kind, Draws], *, kill_rate: float = 0.0, stop_rate: float = 0.0, root_rate: float = 0.0
) -> Iterator[Fault]:
    """Without end, in the order of time; rates are per second, and 0 means none."""
    rates: dict[Kind, float] = {"kill": kill_rate, "stop": stop_rate, "root": root_rate}
    streams = [_one(kind, draws[kind], rates[kind]) for kind in KINDS if rates[kind] > 0]
    return heapq.merge(*streams, key=lambda fault: fault.at)


def _one(kind: Kind, draws: Draws, rate: float) -> Iterator[Fault]:
    at = 0.0
    shortest, longest = PULSE_S
    roots: deque[float] = deque(maxlen=ROOTS_MOST)
    while True:
        at += draws.expovariate(rate)
        pick = draws.random()
        seconds = shortest * (longest / shortest) ** draws.random() if kind == "stop" else 0.0
        if kind == "root":
            if len(roots) == ROOTS_MOST and at - roots[0] <= ROOTS_WITHIN_S:
                at = roots[0] + ROOTS_WITHIN_S + 1.0  # the next one comes when the runtime has forgotten the first
            roots.append(at)
        yield Fault(at, kind, pick, seconds)


def choose(pick: float, there: Sequence[T]) -> T | None:
    """The one that `pick` (0 up to 1) names; None where nobody is."""
    return there[min(int(pick * len(there)), len(there) - 1)] if there else None

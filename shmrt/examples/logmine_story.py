"""What happened to the tenants of `logmine_run.py`, as the events of the runtime tell it, and whether it is in order.

A step is one event about one tenant, in a word:

    killed        a worker of its pool was killed by order: the call that it ran was past its deadline, or by chaos
    SIGSEGV, ...  a worker of its pool died by itself, of that signal or exit code
    open, half_open, close    its breaker
    mended        its rules were replaced
    quarantined   one of its batches is given up

The story of a tenant is in order if the steps that make it are found one after the other, whatever lies between them.

    >>> steps = [Step(0.1, "b", "killed"), Step(0.2, "c", "open"), Step(0.3, "b", "killed"), Step(0.3, "b", "open")]
    >>> in_order(steps, "b", ["killed", "killed", "open"]), in_order(steps, "b", ["open", "killed"])
    (True, False)
    >>> print(*told(steps), sep="\\n")
      0.1 s  b  a worker is killed: its call was past the deadline (2 times in a row)
      0.2 s  c  the breaker opens
      0.3 s  b  the breaker opens
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

__all__ = ["MENDED", "POOL", "QUARANTINED", "Step", "Story", "in_order", "told"]

POOL = "tenant-"
"""The pool and the breaker of tenant x are named `tenant-x`."""
MENDED, QUARANTINED = "rules.mended", "task.quarantined"
"""Events that the program adds."""

_BREAKER = {"breaker.open": "open", "breaker.half_open": "half_open", "breaker.close": "close"}
_OWN = {MENDED: "mended", QUARANTINED: "quarantined"}
_WORDS = {
    "killed": "a worker is killed: its call was past the deadline",
    "open": "the breaker opens",
    "half_open": "the breaker is half open: one call is tried",
    "close": "the breaker closes",
    "mended": "its rules are mended",
}


class Step(NamedTuple):
    """Seconds since the start, whose it is, the word, and what it is about."""

    seconds: float
    tenant: str
    what: str
    about: str = ""

    @property
    def words(self) -> str:
        if self.what == "quarantined":
            return f"quarantined: {self.about}"
        return _WORDS.get(self.what) or f"a worker dies: {self.what}"


def step_of(event: dict[str, Any], start_ns: int) -> Step | None:
    """None of an event that is no part of the story. An event is as the verb `events` gives it."""
    name, about = str(event["name"]), event["metadata"]
    seconds = (event["ns"] - start_ns) / 1e9
    whose = str(about.get("pool") if name == "worker.exit" else about.get("where"))
    tenant = whose.removeprefix(POOL)
    if tenant == whose:
        return None
    if name == "worker.exit":
        return Step(seconds, tenant, "killed" if about.get("ordered") else death_of(str(about.get("reason"))))
    if name in _OWN:
        return Step(seconds, tenant, _OWN[name], str(about.get("state")))
    return Step(seconds, tenant, _BREAKER[name]) if name in _BREAKER else None


def death_of(reason: str) -> str:
    """
    >>> death_of("killed by signal 11"), death_of("exited with code 3")
    ('SIGSEGV', 'exited with code 3')
    """
    number = reason.removeprefix("killed by signal ")
    return signal.Signals(int(number)).name if number.isdigit() else reason


class Story:
    """Collects the steps. The root keeps only its last events, so it is asked now and then: each counts once."""

    def __init__(self, start_ns: int) -> None:
        self.steps: list[Step] = []
        self.missed = 0
        self._start_ns = start_ns
        self._last = 0

    def hear(self, events: Iterable[dict[str, Any]]) -> None:
        for event in events:
            if event["seq"] <= self._last:
                continue
            self.missed += event["seq"] - self._last - 1
            self._last = event["seq"]
            step = step_of(event, self._start_ns)
            if step is not None:
                self.steps.append(step)


def in_order(steps: Iterable[Step], tenant: str, wanted: Sequence[str]) -> bool:
    """Whether the tenant's steps contain these one after the other."""
    found = (step.what for step in steps if step.tenant == tenant)
    return all(any(word == one for one in found) for word in wanted)


def told(steps: Sequence[Step], most: int = 40, *, chaos: bool = False) -> list[str]:
    """A line for each step; of a tenant's equal ones in a row, one. The middle of a long story is left out. With chaos
    an order to kill says nothing about a deadline."""
    lines: list[str] = []
    rows: list[tuple[Step, int]] = []
    for step in steps:
        place = next((at for at in reversed(range(len(rows))) if rows[at][0].tenant == step.tenant), None)
        if place is not None and rows[place][0][1:] == step[1:]:
            rows[place] = (rows[place][0], rows[place][1] + 1)
        else:
            rows.append((step, 1))
    for step, times in rows:
        again = f" ({times} times in a row)" if times > 1 else ""
        words = "a worker is killed" if chaos and step.what == "killed" else step.words
        lines.append(f"{step.seconds:5.1f} s  {step.tenant}  {words}{again}")
    if len(lines) > most:
        half = most // 2
        lines[half:-half] = [f"         ... {len(lines) - 2 * half} lines more"]
    return lines

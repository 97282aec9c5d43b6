"""The table of docs/resilience-breaker.md, cell by cell: what each event changes, and no more."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shmrt import CircuitBreaker, CircuitOpen

PAGE = Path(__file__).parents[2] / "docs" / "resilience-breaker.md"
STATES = ("closed", "open", "half_open", "forced_open", "disabled")
RESET_S, TRIAL_S = 60.0, 30.0


class Excluded(Exception):
    pass


class World:
    """A breaker in one of its states, a little way into it, and what an event does to it."""

    def __init__(self, state: str) -> None:
        self.now = 1000.0
        self.breaker = CircuitBreaker(
            "table",
            failure_threshold=3,
            success_threshold=3,
            reset_timeout=RESET_S,
            trial_timeout=TRIAL_S,
            exclude=Excluded,
            clock=lambda: self.now,
        )
        self.old = self.breaker._begin()  # a call of an earlier era
        self.breaker.reset()
        if state == "closed":
            self.call(ZeroDivisionError())
        elif state in ("open", "half_open"):
            self.breaker.trip()
            self.now += RESET_S
        elif state == "forced_open":
            self.breaker.force_open()
        else:
            self.breaker.disable()
        if state == "half_open":
            self.now += 0.5
            self.call()
        elif state == "open":
            self.now -= 5
        assert self.breaker.state == state
        self.passed: str = ""

    def call(self, error: Exception | None = None) -> None:
        def work() -> None:
            if error is not None:
                raise error

        try:
            self.breaker.call(work)
            self.passed = "passes"
        except CircuitOpen:
            self.passed = "refused"
        except Exception:
            self.passed = "passes"

    def facts(self) -> dict[str, Any]:
        _, left, row, attempt, *_, _trials, _since, era = self.breaker._look()
        counters = self.breaker.stats()["counters"]
        until = self.now + left
        return {"row": row, "attempt": attempt, "era": era, "until": until, "state": self.breaker.state, **counters}

    def cell(self, event: Callable[[World], None]) -> str:
        before = self.facts()
        event(self)
        after = self.facts()
        words = [self.passed] if self.passed else []
        for what in ("row", "attempt"):
            if after[what] != before[what] and (what == "attempt" or after["state"] == before["state"]):
                more = after[what] - before[what]
                words.append(f"{what} = 0" if after[what] == 0 else f"{what} + {more}")
        words += [f"{what} + {after[what] - before[what]}" for what in ("late", "lost") if after[what] != before[what]]
        if after["state"] == before["state"] and after["era"] != before["era"]:
            words.append("waits anew" if after["until"] != before["until"] else "new era")
        return f"`{after['state']}`: {', '.join(words)}" if words else f"`{after['state']}`"


def at(seconds: float, error: Exception | None = None) -> Callable[[World], None]:
    """A call so many seconds after it opened."""

    def event(world: World) -> None:
        world.now = 1000.0 + seconds
        world.call(error)

    return event


def late(world: World) -> None:
    world.breaker._end(world.old, ZeroDivisionError(), None)


def lost(world: World) -> None:
    world.now += TRIAL_S + 0.001
    world.call()


FAIL = ZeroDivisionError()
EVENTS: dict[str, tuple[tuple[str, ...], Callable[[World], Any] | None, Callable[[World], None]]] = {
    "a call that succeeds": (STATES, None, lambda w: w.call()),
    "a call that fails": (STATES, None, lambda w: w.call(FAIL)),
    "a call that raises what is excluded": (STATES, None, lambda w: w.call(Excluded())),
    "the `failure_threshold`-th failure in a row": (("closed",), lambda w: w.call(FAIL), lambda w: w.call(FAIL)),
    "a call exactly `reset_timeout` after it opened": (("open",), None, at(RESET_S)),
    "a call after that, which succeeds": (("open",), None, at(RESET_S + 0.001)),
    "a call after that, which fails": (("open",), None, at(RESET_S + 0.001, FAIL)),
    "the `success_threshold`-th good trial": (("half_open",), lambda w: w.call(), lambda w: w.call()),
    "a call while `half_open_max` trials are under way": (
        ("half_open",),
        lambda w: w.breaker._begin(),
        lambda w: w.call(),
    ),
    "a call when the process of a trial has died, or the trial is older than `trial_timeout`": (
        ("half_open",),
        lambda w: w.breaker._begin(),
        lost,
    ),
    "the result of a call of an earlier era": (STATES, None, late),
    "`trip()`": (STATES, None, lambda w: w.breaker.trip()),
    "`reset()`": (STATES, None, lambda w: w.breaker.reset()),
    "`force_open()`": (STATES, None, lambda w: w.breaker.force_open()),
    "`disable()`": (STATES, None, lambda w: w.breaker.disable()),
}


def told() -> dict[str, dict[str, str]]:
    """The table of the page: by event, by state."""
    found = re.search(r"(?m)^\| event \|(.*)\|\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE.read_text())
    assert found, "the page has no table"
    states = [cell.strip().strip("`") for cell in found[1].split("|")]
    assert tuple(states) == STATES
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[2].splitlines()]
    return {row[0]: dict(zip(states, row[1:], strict=True)) for row in rows}


def test_the_table_has_every_event() -> None:
    assert list(told()) == list(EVENTS)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", list(EVENTS))
def test_cell(event: str, state: str) -> None:
    states, prepare, happens = EVENTS[event]
    if state not in states:
        assert told()[event][state] == "-"
        return
    world = World(state)
    if prepare is not None:
        prepare(world)
    world.passed = ""
    assert told()[event][state] == world.cell(happens)

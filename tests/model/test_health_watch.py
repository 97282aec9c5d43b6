"""The decisions about health: their tables say what the code does, and random lives agree with a model.

Each run is one seed, printed when it fails; `SEED=n` in the environment runs that one alone.
"""

from __future__ import annotations

import itertools
import os
import random
from typing import Any

import pytest
from health_model import Story

from shmrt.decide import health
from shmrt.decide.health import Watch, counts_as, overall

SEEDS = [int(os.environ["SEED"])] if "SEED" in os.environ else list(range(0, 500, 25))
SECOND = 10
EVENTS = ["up"] * 2 + ["due"] * 3 + ["passed"] + ["failed"] * 3


def table(first: str) -> list[list[str]]:
    """The rows of the module's table whose head begins with a word."""
    lines = [line.strip() for line in (health.__doc__ or "").splitlines()]
    start = next(at for at, line in enumerate(lines) if line.startswith(f"| {first} "))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


# ---- the status of it all -------------------------------------------------------------------------------------------
def test_the_table_of_criticality_is_complete_and_true() -> None:
    """Every result, critical or not, counts as the table says."""
    rows = table("result")
    assert {(status, critical) for status, critical, _ in rows} == {
        (status, critical) for status in health.STATUSES for critical in ("yes", "no")
    }
    for status, critical, worth in rows:
        assert counts_as(status, critical == "yes") == worth
        assert overall([(status, critical == "yes")]) == worth


def test_the_whole_is_the_worst() -> None:
    """All reports of up to three checks, enumerated."""
    kinds = list(itertools.product(health.STATUSES, (True, False)))
    for count in range(4):
        for results in itertools.product(kinds, repeat=count):
            if ("unhealthy", True) in results:
                wanted = "unhealthy"
            elif any(status != "healthy" for status, _ in results):
                wanted = "degraded"
            else:
                wanted = "healthy"
            assert overall(results) == wanted


# ---- the watch of one check -----------------------------------------------------------------------------------------
def watch_in(state: str, condition: str) -> Watch:
    """A watch in this state in which the condition holds at time 1000."""
    grace = 2000 if condition == "in grace" else 0
    failures = 3 if condition.startswith("fewer") else 1
    watch = Watch(interval_ns=SECOND, failures=failures, grace_ns=grace, restarts="may not" not in condition)
    if state != "down":
        watch.up(500)
    if state == "running":
        assert watch.due(900) == "run"
    assert watch.state == state
    return watch


def tell(watch: Watch, event: str, now: int) -> str | None:
    if event == "ended":
        watch.ended()
        return None
    answer: str | None = getattr(watch, event)(now)
    return answer


def test_every_row_of_the_table_of_a_watch_is_true() -> None:
    """State, event and condition give the next state and the order."""
    for state, event, condition, after, order in table("state"):
        watch = watch_in(state, condition)
        assert (tell(watch, event, 1000) or "-", watch.state) == (order, after), (state, event, condition)


def test_what_is_not_in_the_table_changes_nothing() -> None:
    """Every other pair of state and event."""
    listed = {(row[0], row[1]) for row in table("state")}
    states, events = ("down", "waiting", "running"), ("up", "due", "passed", "failed", "ended")
    others = [pair for pair in itertools.product(states, events) if pair not in listed]
    assert len(others) == len(states) * len(events) - len(listed)
    for state, event in others:
        watch = watch_in(state, "always")
        assert tell(watch, event, 1000) is None
        assert watch.state == state, (state, event)


def test_a_run_is_not_due_before_its_time() -> None:
    """Also the first: a process that has just begun may not be able to answer yet."""
    watch = Watch(interval_ns=10, failures=1, grace_ns=0, restarts=True)
    watch.up(100)
    assert watch.due(109) is None and watch.wait_ns(103) == 7
    assert watch.due(110) == "run" and watch.wait_ns(110) is None
    watch.passed(150)
    assert watch.due(159) is None and watch.due(160) == "run"


def test_a_time_in_which_nobody_ran_uses_up_neither_interval_nor_grace() -> None:
    watch = Watch(interval_ns=10, failures=1, grace_ns=100, restarts=True)
    watch.up(0)
    watch.forgive(1000)
    assert watch.due(1009) is None and watch.due(1010) == "run"
    assert watch.failed(1099) is None, "still in grace"
    assert watch.due(1109) == "run" and watch.failed(1110) == "restart"


@pytest.mark.parametrize("first", SEEDS)
def test_random_lives_agree_with_the_model(first: int) -> None:
    """Any order of events, sensible or not, at times that stand still, creep and jump."""
    restarts = 0
    for seed in range(first, first + (1 if "SEED" in os.environ else 25)):
        draw = random.Random(seed)
        numbers: dict[str, Any] = {
            "interval": draw.choice([1, 5, 10]),
            "failures": draw.choice([1, 2, 3]),
            "grace": draw.choice([0, 0, 15, 60]),
            "restarts": draw.random() < 0.8,
        }
        story = Story(**numbers)
        watch = Watch(
            interval_ns=numbers["interval"],
            failures=numbers["failures"],
            grace_ns=numbers["grace"],
            restarts=numbers["restarts"],
        )
        now = 0
        for step in range(40):
            now += draw.choice([0, 1, 3, 10, 10, 30])
            event = draw.choice(EVENTS + ["ended"] * (draw.random() < 0.2))
            expected = story.answer(event, now)
            where = f"seed {seed}, step {step}: {event} at {now}, {numbers}, {story.events}"
            assert tell(watch, event, now) == expected, where
            assert watch.state == story.state(), where
            due_at = story.due_at()
            assert watch.wait_ns(now) == (None if due_at is None else max(0, due_at - now)), where
            restarts += expected == "restart"
    assert restarts or "SEED" in os.environ, "nothing was ever restarted: the test does not bite"

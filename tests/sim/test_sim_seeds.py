"""Ten thousand lives of trees, pools, guards, checks and pipelines, with faults, then without; and the rules of a life.

`SEED=n` in the environment runs that one alone. A seed that fails is printed with the end of its story.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from zlib import crc32

import pytest
import sim_run
from sim_mutants import wrong
from sim_scenario import FAULTS, Scenario

CHUNK = 500
FAST = range(0, 10_000, CHUNK)
LONG = range(10_000, 110_000, 10 * CHUNK)

LIVED = {
    "restarts": 500,
    "give_ups": 50,
    "plantings": CHUNK,
    "jobs": 500,
    "pools_broken": 20,
    "unhealthy": 10,
    "calls": 1000,
    "opened": 20,
    "given_up_at_last": 1,
    "events": 50_000,
}
"""What happens in a chunk at least; a simulation in which nothing happens proves nothing."""


def live(first: int, count: int) -> None:
    if "SEED" in os.environ:
        seed = int(os.environ["SEED"])
        if first <= seed < first + count:
            sim_run.sweep(seed, seed + 1)
        return
    total = sim_run.sweep(first, first + count)
    assert {name: total[name] for name, least in LIVED.items() if total[name] < least * count // CHUNK} == {}


@pytest.mark.parametrize("first", FAST)
def test_every_life_is_safe_and_comes_to_rest(first: int) -> None:
    live(first, CHUNK)


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.parametrize("first", LONG)
def test_many_lives_are_safe_and_come_to_rest(first: int) -> None:
    live(first, 10 * CHUNK)


# ---- what a seed is
def test_a_scenario_is_a_function_of_its_seed() -> None:
    """Whoever else draws; and of two seeds no two are the same, and each fault is in about half of them."""
    random.seed(5)
    first = [Scenario(seed).plain() for seed in range(300)]
    random.random()
    assert [Scenario(seed).plain() for seed in range(300)] == first
    assert len({repr(plain) for plain in first}) == len(first)
    for place, name in enumerate(FAULTS):
        there = sum(bool(plain[2][place][1]) for plain in first)
        assert 100 < there < 200, (name, there)


def digest(first: int, last: int) -> str:
    found = 0
    for seed in range(first, last):
        found = crc32(sim_run.attempt(seed)[0].w.story(10**9).encode(), found)
    return f"{found:08x}"


def test_a_life_is_a_function_of_its_seed_in_every_process() -> None:
    """To the last word of its story, whatever the hash seed."""
    here = digest(100, 160)
    assert digest(100, 160) == here
    run = [sys.executable, str(Path(sim_run.__file__)), "100", "160"]
    for seed in ("1", "22"):
        there = subprocess.run(run, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True)
        assert there.returncode == 0 and f"digest {here}" in there.stdout, there.stdout + there.stderr


def test_no_fault_begins_in_the_liveness_phase() -> None:
    faults = {"hangs", "deaf", "asleep", "stopped", "sick", "down"}
    before: Counter[str] = Counter()
    after: Counter[str] = Counter()
    for seed in range(150):
        run, error = sim_run.attempt(seed)
        assert error is None, sim_run.explain(run, error)
        calm = False
        for _, *words in run.w.trace:
            calm = calm or words == ["CALM"]
            found = faults & {str(word).split()[0] for word in words[:2]}  # "asleep for" is one of them
            (after if calm else before).update(found)
    assert set(before) == faults
    assert not after


def test_a_seed_that_fails_is_one_number_and_a_story() -> None:
    with wrong("dynamic_without_budget"), pytest.raises(AssertionError) as caught:
        sim_run.sweep(0, CHUNK)
    text = str(caught.value)
    seed = re.search(r"seed (\d+) fails after \d+ events, at [\d.]+ s", text)
    assert seed is not None and f"python tests/sim/sim_run.py {seed[1]}" in text
    assert "BROKEN budget" in text and "plant" in text
    assert sim_run.attempt(int(seed[1]))[1] is None, "and without the mistake nothing is wrong with it"

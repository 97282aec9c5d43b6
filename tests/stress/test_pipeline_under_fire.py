"""C1. Messages with numbers and checksums go through a pipeline whose workers and roots are killed all the time.

lost 0, duplicated 0, unexpected 0, corrupted 0, in order. SHMRT_SEED repeats a run's choices, SHMRT_MESSAGES says how
many messages the long tier sends.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import fire_kit
import pytest
from fire_kit import FEW, MESSAGES, NOTHING, SEED, Ledger

from shmrt import Pipeline, Runtime


def fire(count: int, kills: int, pause_s: float) -> None:
    print(f"SHMRT_SEED={SEED}")
    sent = 0
    roots = fire_kit.Roots(least_s=2.0)
    ledger = Ledger()
    last = moved = -1
    with Runtime() as runtime:

        def choose(rng: random.Random) -> int | None:
            nonlocal moved
            root = runtime.pid
            # A pool whose workers only ever die before they are ready is broken: most deaths wait for progress.
            if root is None or (len(ledger.seen) == moved and rng.random() < 0.8):
                return None
            moved = len(ledger.seen)
            if rng.random() < 0.05 and roots.may_die():
                return root
            workers = fire_kit.family(root)
            return rng.choice(workers) if workers else None

        def source() -> Iterator[fire_kit.Message]:
            nonlocal sent
            while sent < count or len(killed) < kills or not roots.deaths:
                sent += 1
                yield fire_kit.message(sent - 1)

        work = Pipeline("fire")
        for stage in range(2):
            work = work.map(fire_kit.hand_on, workers=2 - stage, max_attempts=1000, name=f"stage{stage}")
        with fire_kit.killing(choose, pause_s, SEED) as killed, work.run(source) as run:
            for thing in run:
                ledger.take(thing, sent)
                assert thing[0] > last, "out of order"
                last = thing[0]
    verdict = ledger.verdict(sent)
    print(f"result: {sent} messages, {len(killed)} processes killed, {len(roots.deaths)} roots lately: {verdict}")
    assert verdict == NOTHING and run.report.balanced and run.report.failed == 0


@pytest.mark.slow
def test_a_pipeline_under_fire() -> None:
    """P1, P2, P3. The same, short enough for every run."""
    fire(FEW, kills=12, pause_s=0.03)


@pytest.mark.stress
def test_a_long_pipeline_under_fire() -> None:
    """10^5 messages, or as many as SHMRT_MESSAGES says; a death every 50 ms in the mean."""
    fire(MESSAGES, kills=200, pause_s=0.05)

"""Random lives of a Fallback with a stale cache beside an independent model, on a clock that is moved by hand.

Each run is one seed, printed when it fails; `SEED=n` in the environment runs that one alone.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from fallback_model import Model

from shmrt import Fallback, StaleCache
from shmrt.clock import ManualClock

pytest.importorskip("cachetools", reason="pip install shmrt[resilience]")

S = 1_000_000_000
SEEDS = [int(os.environ["SEED"])] if "SEED" in os.environ else range(400)
STEPS = 120


class Life:
    """The real one and the model, told the same."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        self.clock = ManualClock(draw.choice([0, 5, 10**15]))
        max_stale = draw.choice([None, 0.0, 1e-9, 1.0, 3.0])
        fresh = draw.choice([0.0, 0.0, 1e-9, 0.5, 1.0])
        if max_stale is not None:
            fresh = min(fresh, max_stale)
        entries = draw.choice([1, 2, 3, 1000])
        names = ["a", "b"][: draw.randint(0, 2)]
        default = draw.random() < 0.7
        on, exclude = draw.choice([(Exception, ()), (OSError, ()), (OSError, FileNotFoundError)])
        self.takes = draw.choice([0, 0, S // 4])
        self.plays: dict[str, Any] = {}
        self.heard: list[Any] = []
        self.asynchronous = draw.random() < 0.3
        extra = {"default": "default"} if default else {}
        self.cache = StaleCache(entries, fresh=fresh, max_stale=max_stale, clock=self.clock)
        sources = [self.source(name) for name in ["primary", *names]]
        self.real = Fallback(
            sources[0],
            *zip(names, sources[1:], strict=True),
            on=on,
            exclude=exclude,
            cache=self.cache,
            on_change=lambda name, before, now, errors: self.heard.append((before, now)),
            **extra,
        )
        stale_ns = None if max_stale is None else round(max_stale * S)
        self.model = Model(round(fresh * S), stale_ns, entries, names, default, on, exclude)
        self.seen: set[str] = set()

    def source(self, name: str) -> Any:
        def run(key: Any) -> Any:
            self.clock.advance(self.takes)
            play = self.plays[name]
            if isinstance(play, Exception):
                raise play
            return play

        async def arun(key: Any) -> Any:
            return run(key)

        return arun if self.asynchronous else run

    def ask(self, key: Any) -> tuple[Any, ...]:
        try:
            found = self.real(key)
            outcome = asyncio.run(found) if self.asynchronous else found
        except Exception as error:
            return "error", error, list(getattr(error, "fallback_errors", Errors0).sources)
        return "value", outcome.value, outcome.source, list(outcome.errors.sources), outcome.age

    def step(self) -> None:
        draw = self.draw
        kind = draw.choice(["time", "call", "call", "call", "unhashable"])
        if kind == "time":
            self.clock.advance(draw.choice([1, S // 4, S // 2, S - 1, S, S + 1, 3 * S]))
            return
        if kind == "unhashable":
            stats = self.real.stats()
            with pytest.raises(TypeError, match="must be hashable"):
                asyncio.run(self.real([])) if self.asynchronous else self.real([])
            assert self.real.stats() == stats, "nobody was asked"
            return
        for name in ["primary", "a", "b"]:
            good = draw.random() < (0.4 if name == "primary" else 0.2)
            kinds = [OSError, OSError, OSError, FileNotFoundError, KeyError]
            self.plays[name] = draw.randrange(10**6) if good else draw.choice(kinds)(name)
        key = draw.randrange(4)
        meant = self.model.call(key, self.clock.now_ns(), self.takes, self.plays)
        got = self.ask(key)
        assert got == meant
        assert self.heard == self.model.told
        self.seen.add(meant[2] if meant[0] == "value" else "error")


class Errors0:
    sources = ()


@pytest.mark.parametrize("first", range(0, len(SEEDS), 100))
def test_a_life_is_that_of_the_model(first: int) -> None:
    """R-fallback: 400 lives of 120 steps; every kind of answer came about."""
    seen: set[str] = set()
    for seed in SEEDS[first : first + 100]:
        life = Life(seed)
        for step in range(STEPS):
            try:
                life.step()
            except BaseException:
                print(f"seed {seed}, step {step}: {life.real!r}, {life.cache!r}")
                raise
        seen |= life.seen
    if len(SEEDS) > 1:
        assert seen == {"primary", "fresh", "stale", "a", "b", "default", "error"}

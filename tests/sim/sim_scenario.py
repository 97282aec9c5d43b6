"""What a seed stands for: a tree, its pools, their work, the guards in front of a dependency, and a mix of faults.

A scenario is a pure function of its seed. `VERSION` changes whenever what a seed means changes, so that a kept seed
says when it no longer shows what it was kept for. Each fault is off in about half of all seeds: a fault that is always
there hides those that need peace to show.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, fields
from typing import Any

from sim_world import MS, S

from shmrt.decide.backoff import Backoff
from shmrt.decide.specs import ChildSpec, SupervisorSpec

VERSION = 1

RESTARTS = ("permanent", "permanent", "permanent", "transient", "temporary")


@dataclass(frozen=True, slots=True)
class Mix:
    """How often each fault happens: a probability, or a mean time in ns (0: never)."""

    kill: int  # life of a child or a worker
    fail: float  # a start fails
    slow: float  # a start takes longer than it may
    hang: float  # a start never comes through
    ignore: float  # a child says at its start that it is not wanted
    deaf: float  # a child does not end when it is asked to
    stop: float  # a process is stopped for a while in its life
    sick: float  # a child answers no check any more until it is restarted
    flake: float  # a check fails for no reason
    late: float  # news takes long
    gap: int  # between sleeps of the root
    curse: float  # a child or worker that dies as soon as it is up
    die: float  # a worker dies in the middle of a task
    again: float  # a result comes twice
    outage: int  # between outages of the dependency
    flood: int  # between floods of calls
    operator: int  # between requests of somebody who steers
    stray: float  # news of what is not there any more


FAULTS: dict[str, tuple[Any, ...]] = {
    "kill": (2 * S, 5 * S, 15 * S),
    "fail": (0.05, 0.15, 0.4),
    "slow": (0.1, 0.3),
    "hang": (0.1, 0.3),
    "ignore": (0.05, 0.2),
    "deaf": (0.2, 0.5, 1.0),
    "stop": (0.1, 0.4),
    "sick": (0.2, 0.5),
    "flake": (0.1, 0.4),
    "late": (0.1, 0.4),
    "gap": (3 * S, 8 * S),
    "curse": (0.2, 0.5),
    "die": (0.1, 0.3),
    "again": (0.1, 0.3),
    "outage": (3 * S, 8 * S),
    "flood": (2 * S, 5 * S),
    "operator": (S, 3 * S, 6 * S),
    "stray": (0.2,),
}


@dataclass(frozen=True, slots=True)
class Check:
    """A periodic health check of a child."""

    interval_ns: int
    failures: int
    grace_ns: int
    restarts: bool


@dataclass(frozen=True, slots=True)
class Work:
    """One pipeline on a pool: how many items, what each is worth, and what may become of it."""

    count: int
    kinds: tuple[str, ...]
    cost_ns: int
    attempts: int
    slots: int
    on_error: str
    ordered: bool
    guarded: bool
    poison: float
    wrong: float


@dataclass(frozen=True, slots=True)
class Leaf:
    """One child that is no supervisor. `workers` > 0: a pool."""

    name: str
    cursed: bool
    check: Check | None = None
    workers: int = 0
    max_restarts: int | None = None
    work: Work | None = None


@dataclass(frozen=True, slots=True)
class Guards:
    """What stands in front of the dependency. Times in ns."""

    window: int | None  # of calls, half of which may fail; None: failures in a row count
    threshold: int
    reset: int
    backoff: float
    successes: int
    half_open: int
    trial: int
    permits: int
    rate: float
    burst: int
    patience: int


class Scenario:
    """`draw` is the rest of the seed's chance: the world goes on with it."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.draw = random.Random(seed)
        self._next = self.draw.random
        self.mix = Mix(**{name: self._pick(FAULTS[name]) if self._next() < 0.5 else 0 for name in FAULTS})
        self.span = self._pick((6 * S, 10 * S, 16 * S))
        self.guards = self._guards() if self._next() < 0.5 else None
        self._pools = self._pick((0, 0, 1, 1, 2))
        self._names = 0
        self._left = 6  # leaves at most
        self.grown: dict[str, tuple[ChildSpec, ...]] = {}
        """By name of a dynamic supervisor: the children that somebody starts in it."""
        self.tree = self._supervisor("top", 0)

    def plain(self) -> tuple[Any, ...]:
        """Everything, for comparing."""
        mix = tuple((field.name, getattr(self.mix, field.name)) for field in fields(Mix))
        grown = tuple((name, tuple(child.to_plain() for child in specs)) for name, specs in self.grown.items())
        return VERSION, self.seed, mix, self.span, self.guards, self.tree.to_plain(), grown

    def _pick(self, options: Any) -> Any:
        return options[int(self._next() * len(options))]

    # ---- the tree ---------------------------------------------------------------------------------------------------
    def _supervisor(self, name: str, depth: int) -> SupervisorSpec:
        strategy = self._pick(("one_for_one", "one_for_one", "one_for_all", "rest_for_one", "dynamic", "dynamic"))
        auto = self._pick(("never", "never", "never", "any_significant", "all_significant"))
        children = []
        for _ in range(1 + int(self._next() * 3)):
            if depth < 2 and strategy != "dynamic" and self._next() < 0.4:
                children.append(self._branch(depth + 1))
            elif self._left:
                children.append(self._leaf(auto))
        if strategy == "dynamic":
            self.grown[name] = tuple(children)
        patient = self._next() < (0.6 if strategy == "dynamic" else 0.35)
        backoff = Backoff(free=self._pick((0, 1)), first_ns=100 * MS, cap_ns=self._pick((S, 2 * S)))
        return SupervisorSpec(
            strategy,
            name=name,
            children=() if strategy == "dynamic" else tuple(children),
            max_restarts=self._pick((0, 1, 3, 3, 10, 1000)),
            period=self._pick((S, 5 * S, 30 * S)),
            auto_shutdown=auto,
            backoff=backoff if patient else None,
            max_children=self._pick((None, 4)) if strategy == "dynamic" else None,
        )

    def _branch(self, depth: int) -> ChildSpec:
        self._names += 1
        name = f"s{self._names}"
        return ChildSpec(
            name,
            supervisor=self._supervisor(name, depth),
            restart=self._pick(RESTARTS),
            shutdown=self._pick(("infinity", "infinity", "brutal_kill", 8 * S)),
        )

    def _leaf(self, auto: str) -> ChildSpec:
        self._left -= 1
        self._names += 1
        name = f"c{self._names}"
        restart = self._pick(RESTARTS)
        significant = auto != "never" and restart != "permanent" and self._next() < 0.6
        cursed = self._next() < self.mix.curse
        if self._pools and self._next() < 0.5:
            self._pools -= 1
            workers, limit = self._pick((1, 2, 3)), self._pick((None, None, 2, 6))
            plan = Leaf(name, cursed, workers=workers, max_restarts=limit, work=self._work())
        else:
            check = None
            if self._next() < 0.5:
                check = Check(
                    interval_ns=self._pick((S, 2 * S)),
                    failures=self._pick((1, 2, 3)),
                    grace_ns=self._pick((0, 0, 3 * S)),
                    restarts=self._next() < 0.8,
                )
            plan = Leaf(name, cursed, check=check)
        return ChildSpec(
            name,
            data=plan,
            restart=restart,
            significant=significant,
            shutdown=self._pick(("brutal_kill", S, 3 * S)),
            start_timeout=2 * S,
        )

    # ---- work and guards --------------------------------------------------------------------------------------------
    def _work(self) -> Work:
        kinds = ("map", *(self._pick(("map", "filter", "batch", "keyed")) for _ in range(int(self._next() * 3))))
        return Work(
            count=self._pick((4, 8, 20)),
            kinds=kinds,
            cost_ns=self._pick((20_000, 100_000, 5 * MS, 150 * MS)),
            attempts=self._pick((1, 2, 3, 3)),
            slots=self._pick((2, 5, 100, 100)),
            on_error=self._pick(("raise", "dead_letter", "dead_letter", "skip")),
            ordered=self._next() < 0.6,
            guarded=self.guards is not None and self._next() < 0.6,
            poison=self._pick((0, 0, 0.1, 0.2)),
            wrong=self._pick((0, 0, 0.1)),
        )

    def _guards(self) -> Guards:
        return Guards(
            window=self._pick((None, None, 4)),
            threshold=self._pick((1, 2, 4)),
            reset=self._pick((S, 2 * S)),
            backoff=self._pick((1.0, 2.0)),
            successes=self._pick((1, 2)),
            half_open=self._pick((1, 2)),
            trial=self._pick((500 * MS, 3 * S)),
            permits=self._pick((1, 2, 4)),
            rate=self._pick((2.0, 10.0, 50.0)),
            burst=self._pick((1, 5)),
            patience=self._pick((0, 300 * MS)),
        )

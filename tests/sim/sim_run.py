"""One seed from its beginning to its end, and the words for a seed that fails.

    python tests/sim/sim_run.py SEED           shows the whole trace of a seed
    python tests/sim/sim_run.py FIRST LAST     looks for seeds that fail
    python tests/sim/sim_run.py keep SEED WHY  writes a regression file, which the tests replay from then on

Safety: the scenario's faults, for its span of time; every part judges every event. Liveness: no new fault begins, but
what has begun goes on: a start that hangs hangs, a sick process is sick, a poisoned item kills. Everything must come to
rest as it is wanted, or the tree has given up for a reason that its judge accepts. Then all is stopped, and nothing may
be left.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from zlib import crc32

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))
sys.path.insert(0, str(Path(__file__).parents[2]))

from sim_guards import GuardPart
from sim_health import HealthPart
from sim_pool import PoolPart
from sim_scenario import VERSION, Scenario
from sim_tree import TreePart
from sim_world import MS, S, Violation, World

REGRESSIONS = Path(__file__).parent / "regressions"
EVENTS_MOST = 20_000
PATIENCE = 240 * S
"""How long the liveness phase may take on the virtual clock."""


class Run:
    """`counts` says what happened, so that a test can see that it did."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.scenario = scenario = Scenario(seed)
        self.w = world = World(scenario.draw, late=scenario.mix.late)
        self.guards = None if scenario.guards is None else GuardPart(world, scenario)
        self.tree = TreePart(world, scenario)
        self.pools = PoolPart(world, self.tree, self.guards)
        self.health = self.tree.health = HealthPart(world, self.tree)
        self.given_up = 0
        world.parts = [self.tree, self.health, self.pools]

    def go(self) -> Run:
        """Raises `Violation`, or whatever else comes out of a decision that is not as it should be."""
        self._safety()
        self._liveness()
        self._end()
        return self

    def _safety(self) -> None:
        w, mix = self.w, self.scenario.mix
        self.tree.plant()
        if mix.operator:
            w.later(w.spread(mix.operator), self.tree.operate)
        if mix.gap:
            w.later(w.spread(mix.gap), self._gap)
        if mix.stray:
            for _ in range(3):
                w.later(w.spread(self.scenario.span // 2), self.tree.stray)
        if self.guards is not None and mix.outage:
            w.later(w.spread(mix.outage), self.guards.outage)
        if self.guards is not None and mix.flood:
            w.later(w.spread(mix.flood), self.guards.flood)
        w.run(self.scenario.span, EVENTS_MOST)

    def _gap(self) -> None:
        w = self.w
        if not w.calm:
            w.sleep(w.spread(2 * S))
            w.later(w.spread(self.scenario.mix.gap), self._gap)

    def _liveness(self) -> None:
        w = self.w
        w.note("CALM")
        w.calm = True
        if self.tree.ended is not None:
            self.tree.plant()
        for crew in self.pools.crews:
            w.later(MS, self.pools.employ, crew)
        if self.guards is not None:
            self.guards.probe()
        end, step, why = w.now + PATIENCE, S, "it was not looked at"
        while why and w.now < end:
            w.run(w.now + step, EVENTS_MOST)
            why = self.restless()
            step = min(step * 2, 8 * S)
        if why:
            w.broken("no convergence", why)
        self.tree.look_at_all()
        self.pools.look_at_all()
        self.given_up = int(self.tree.ended is not None)

    def restless(self) -> str | None:
        """What is not yet as it is to be in the end."""
        found = self.tree.restless() or self.pools.restless() or self.health.restless()
        return found or (None if self.guards is None else self.guards.restless())

    def _end(self) -> None:
        """A stop ends everything, in bounded time."""
        w, tree = self.w, self.tree
        tree.stop(w.pick(("shutdown", "killed")))
        end = w.now + 60 * S
        while tree.tree.tops and w.now < end:
            w.run(w.now + 4 * S, EVENTS_MOST)
        left = (tree.tree.tops, tree.bodies, tree.tree.owners, tree.tree.machines, tree.judge.open, self.pools.crews)
        if any(left) or tree.tree.next_ns() is not None:
            w.broken("left behind", *left, tree.tree.next_ns())

    @property
    def counts(self) -> dict[str, int]:
        judge = self.tree.judge
        found = {
            "restarts": judge.restarts,
            "give_ups": judge.give_ups,
            "plantings": self.tree.plantings,
            "jobs": self.pools.jobs_done,
            "pools_broken": self.pools.broken,
            "unhealthy": self.health.orders,
            "given_up_at_last": self.given_up,
            "events": self.w.events,
        }
        if self.guards is not None:
            found |= {"calls": self.guards.calls, "refused": self.guards.refused}
            found["opened"] = self.guards.model.counters["opened"]
        return found


def attempt(seed: int) -> tuple[Run, Exception | None]:
    """The run, and what was wrong with it. A decision that breaks down in its own way has failed as well."""
    run = Run(seed)
    try:
        run.go()
    except Exception as error:
        return run, error
    return run, None


def explain(run: Run, error: BaseException) -> str:
    """One seed, the end of its trace, and how to see all of it."""
    return (
        f"{run.w.story()}\n{type(error).__name__}: {error}\n"
        f"seed {run.seed} fails after {run.w.events} events, at {run.w.now / S:.3f} s\n"
        f"the whole story: python tests/sim/sim_run.py {run.seed}\n"
        f"once it is mended: python tests/sim/sim_run.py keep {run.seed} WHY"
    )


def sweep(first: int, last: int) -> Counter[str]:
    """What happened in the seeds from `first` to before `last`. AssertionError for the first that fails."""
    total: Counter[str] = Counter()
    for seed in range(first, last):
        run, error = attempt(seed)
        if error is not None:
            raise AssertionError(explain(run, error)) from error
        total.update(run.counts)
    return total


def keep(seed: int, why: str) -> Path:
    """The regression file of a seed that failed."""
    path = REGRESSIONS / f"seed-{seed}.toml"
    path.write_text(f"seed = {seed}\nversion = {VERSION}\nwhy = {json.dumps(why)}\n")
    return path


def main(arguments: list[str]) -> int:
    from shmrt import _native

    _native.guards_ask(lambda: None)  # no guard joins a runtime
    if arguments[0] == "keep":
        print(keep(int(arguments[1]), " ".join(arguments[2:])))
        return 0
    first, last = int(arguments[0]), int(arguments[-1])
    if first == last:
        run, error = attempt(first)
        print(run.w.story(10**9))
        print(run.counts if error is None else f"{type(error).__name__}: {error}")
        return error is not None
    bad: dict[str, list[int]] = {}
    total: Counter[str] = Counter()
    digest = 0
    for seed in range(first, last):
        run, error = attempt(seed)
        total.update(run.counts)
        if error is not None:
            bad.setdefault(error.rule if isinstance(error, Violation) else repr(error), []).append(seed)
        digest = crc32(run.w.story(10**9).encode(), digest)
    print(dict(total), f"digest {digest:08x}")
    for rule, seeds in bad.items():
        print(f"{len(seeds):6} {rule}: {seeds[:8]}")
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

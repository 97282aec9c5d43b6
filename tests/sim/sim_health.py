"""Health checks of children: the real `Watch`, driven as `shmrt/supervise/health_watch.py` drives it, and its judge.

A check of a process that is gone, stopped or sick fails; so does one in a seed with flaky checks. A sick process stays
so until it is restarted: whoever forgets a check, or a failure, leaves it sick for ever.
"""

from __future__ import annotations

from typing import Any

from sim_tree import Body, TreePart
from sim_world import MS, World

from shmrt.decide.health import Watch


class Watched:
    """One child with its check; `row` and `passed` are the judge's."""

    __slots__ = ("body", "news_at", "passed", "plan", "row", "up_at", "watch")

    def __init__(self, plan: Any) -> None:
        self.plan = plan
        self.watch = Watch(
            interval_ns=plan.interval_ns, failures=plan.failures, grace_ns=plan.grace_ns, restarts=plan.restarts
        )
        self.body: Body | None = None  # the process that its watch knows
        self.news_at = 0
        self.row = self.up_at = 0
        self.passed = False


class HealthPart:
    def __init__(self, world: World, tree: TreePart) -> None:
        self.w = world
        self.tree = tree
        self.watched: dict[int, Watched] = {}
        self.orders = 0

    def due(self) -> int | None:
        found = None
        for watched in self.watched.values():
            wait = watched.watch.wait_ns(self.w.now)
            if wait is not None and (found is None or wait < found):
                found = wait
        return None if found is None else self.w.now + found

    def tick(self) -> None:
        self.settle()

    def forgive(self, late: int) -> None:
        for watched in self.watched.values():
            watched.watch.forgive(late)
            watched.up_at += late

    def settle(self) -> None:
        """After every step of the tree, and when a check is due."""
        w, owners = self.w, self.tree.tree.owners
        for key, body in self.tree.bodies.items():
            if body.plan.check is not None and key not in self.watched:
                self.watched[key] = Watched(body.plan.check)
        for key, watched in list(self.watched.items()):
            owner = owners.get(key)
            if owner is None:
                del self.watched[key]
                continue
            body = self.tree.bodies.get(key) if owner.members[key].state == "up" else None
            if watched.body is not body:
                watched.body = body
                watched.watch.ended()
                if body is not None:
                    watched.watch.up(w.now)
                    watched.row, watched.up_at, watched.passed = 0, w.now, False
            if watched.watch.due(w.now) == "run":
                w.later(w.spread(100 * MS), self._run, watched, body)

    def _run(self, watched: Watched, body: Body) -> None:
        good = not (body.gone or body.sick or body.stopped or self.w.fault(self.tree.mix.flake))
        self.w.news(watched, self._hear, watched, body, good)

    def _hear(self, watched: Watched, body: Body, good: bool) -> None:
        if watched.body is not body:
            return  # of a process that is gone
        w, plan = self.w, watched.plan
        w.stale = True
        if good:
            watched.row, watched.passed = 0, True
            watched.watch.passed(w.now)
            return
        if watched.passed or w.now >= watched.up_at + plan.grace_ns:
            watched.row += 1
            watched.passed = True  # the grace is over with the first failure that counts, too
        expected = plan.restarts and watched.row >= plan.failures
        order = watched.watch.failed(w.now)
        if (order == "restart") != expected:
            w.broken("health", f"{body.id} after {watched.row} failures of {plan.failures}: {order}")
        if order is None:
            return
        self.orders += 1
        w.note("unhealthy", body.id)
        if not body.asked and not body.killed:
            w.later(w.spread(2 * MS), self.tree.die, body, ("unhealthy", "check"))

    def restless(self) -> str | None:
        """What is not as it is to be in the end."""
        for watched in self.watched.values():
            if watched.body is not None and watched.body.sick and watched.plan.restarts:
                return f"{watched.body.id} is sick and nobody restarts it"
        return None

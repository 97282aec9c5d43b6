"""Guards in front of a dependency: the real rate limit, bulkhead and breaker, on the clock of the world.

A call passes the rate limit (and waits for its token), then the bulkhead (and comes again, later each time, by the real
`Backoff`), then the breaker. It holds a permit and a ticket while the dependency works, unless its process dies: then
the ticket is never settled, and the permit is found by whoever looks for one next, as the native sweep finds it.

Every answer of the breaker and of the rate limit is compared with its model of `tests/model`; of the bulkhead the world
knows each permit that is out.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from breaker_model import BAD, CLOSED, GOOD, HALF, OPEN, BreakerModel
from breaker_model import Refused as NotNow
from permit_models import BucketModel
from sim_scenario import Scenario
from sim_world import MS, S, World

from shmrt import Bulkhead, CircuitBreaker, CircuitOpen, RateLimit
from shmrt.decide.backoff import Backoff

AGAIN = Backoff(free=0, first_ns=50 * MS, cap_ns=S)
TRIES = 5


class Down(Exception):
    """The dependency fails."""


class Caller:
    """Somebody of a flood, who does not die."""

    gone = stopped = False

    def __init__(self) -> None:
        self.held: list[Any] = []
        self.waiting: list[Any] = []


class GuardPart:
    def __init__(self, world: World, scenario: Scenario) -> None:
        plan = scenario.guards
        assert plan is not None
        self.w = world
        self.mix = scenario.mix
        self.plan = plan
        clock = lambda: world.now / S  # noqa: E731
        self.limit = RateLimit("sim", plan.rate, plan.burst, clock=clock)
        self.bulkhead = Bulkhead("sim", plan.permits)
        self.breaker = CircuitBreaker(
            "sim",
            window=plan.window,
            min_calls=None if plan.window is None else 2,
            failure_threshold=plan.threshold,
            reset_timeout=plan.reset / S,
            backoff=plan.backoff,
            max_reset_timeout=8.0 if plan.backoff > 1 else None,
            success_threshold=plan.successes,
            half_open_max=plan.half_open,
            trial_timeout=plan.trial / S,
            clock=clock,
        )
        rules = SimpleNamespace(
            failure_threshold=plan.threshold,
            success_threshold=plan.successes,
            half_open_max=plan.half_open,
            backoff=plan.backoff,
            reset=plan.reset,
            reset_max=8 * S if plan.backoff > 1 else plan.reset,
            trial=plan.trial,
            slow=None,
            window=None if plan.window is None else "calls",
            size=plan.window,
            failure_rate=None if plan.window is None else 0.5,
            slow_rate=None,
            min_calls=2,
        )
        self.model = BreakerModel(rules)
        self.bucket = BucketModel(round(S / plan.rate), plan.burst)
        self.healthy = True
        self.holders: list[Any] = []
        self.under_way = 0
        self.calls = self.refused = 0

    def due(self) -> int | None:
        return None

    def tick(self) -> None: ...

    def forgive(self, late: int) -> None: ...

    # ---- what is wrong ----------------------------------------------------------------------------------------------
    def outage(self) -> None:
        """The dependency fails for a while, or only comes back."""
        if self.w.calm:
            return
        self.healthy = not self.healthy
        self.w.note("dependency", "up" if self.healthy else "down")
        self.w.later(self.w.spread(self.mix.outage), self.outage)
        if not self.healthy and self.w.chance(0.1):
            self.breaker.trip()
            self.model.put(OPEN, self.w.now)

    def flood(self) -> None:
        if self.w.calm:
            return
        self.w.later(self.w.spread(self.mix.flood), self.flood)
        for _ in range(2 + int(self.w.draw() * 6)):
            self.call(Caller(), lambda good: None)

    def probe(self) -> None:
        """In the liveness phase somebody calls whenever the breaker is not closed: it may still open, by what a window
        holds of the time before."""
        self.healthy = True
        if self.breaker.state != CLOSED and self.under_way == 0:
            self.call(Caller(), lambda good: None)
        self.w.later(S // 2, self.probe)

    # ---- a call -----------------------------------------------------------------------------------------------------
    def call(self, caller: Any, then: Any) -> None:
        """`then(True)` when the dependency has answered, `then(False)` if it failed or was not asked; neither if the
        caller dies."""
        w = self.w
        self.calls += 1
        self.under_way += 1
        taken, wait = self.limit._take(1, self.plan.patience)
        if (taken, wait) != self.bucket.take(1, w.now, self.plan.patience):
            w.broken("rate limit", f"answered {taken}, {wait}")
        if taken:
            w.later(wait, self._enter, caller, then, 0)
        else:
            self._over(then, False)

    def _over(self, then: Any, good: bool) -> None:
        self.under_way -= 1
        self.refused += not good
        self.w.later(0, then, good)

    def _enter(self, caller: Any, then: Any, tries: int) -> None:
        w = self.w
        if caller.gone:
            self.under_way -= 1
            return
        if caller.stopped:
            caller.waiting.append((self._enter, (caller, then, tries)))
            return
        if not self.bulkhead.try_acquire() and not (self.sweep() and self.bulkhead.try_acquire()):
            if len(self.holders) < self.plan.permits:
                w.broken("bulkhead", f"full with {len(self.holders)} of {self.plan.permits} permits out")
            if tries == TRIES:
                self._over(then, False)
            else:
                w.later(AGAIN.delay_ns(tries + 1, w.draw()), self._enter, caller, then, tries + 1)
            return
        self.holders.append(caller)
        self._count_permits()
        if (tickets := self._ask()) is None:
            self._leave(caller)
            self._over(then, False)
            return
        length = w.spread(self.plan.trial if w.fault(0.2) else 30 * MS)
        w.later(length, self._answered, caller, then, *tickets)

    def _ask(self) -> tuple[Any, Any] | None:
        """The breaker and its model, the same question."""
        w = self.w
        try:
            expected = self.model.admit(w.now)
        except NotNow:
            expected = None
        try:
            ticket = self.breaker._begin()
        except CircuitOpen:
            ticket = None
        if (ticket is None) != (expected is None):
            w.broken("breaker", f"{'refused' if ticket is None else 'let pass'} a call while {self.model.state}")
        return None if ticket is None else (ticket, expected)

    def _answered(self, caller: Any, then: Any, ticket: Any, expected: Any) -> None:
        if caller.gone:  # its permit is found later, its ticket never
            self.under_way -= 1
            return
        if caller.stopped:
            caller.waiting.append((self._answered, (caller, then, ticket, expected)))
            return
        good = self.healthy
        self.breaker._end(ticket, None if good else Down(), None)
        self.model.settle(expected, GOOD if good else BAD, self.w.now)
        self._leave(caller)
        self._same_state()
        self._over(then, good)

    def _leave(self, caller: Any) -> None:
        self.holders.remove(caller)
        self.bulkhead.release()
        self._count_permits()

    # ---- what holds -------------------------------------------------------------------------------------------------
    def sweep(self) -> bool:
        """Takes back what the dead hold."""
        dead = [caller for caller in self.holders if caller.gone]
        for caller in dead:
            self._leave(caller)
        return bool(dead)

    def _count_permits(self) -> None:
        used = self.bulkhead.in_use
        if used != len(self.holders) or used > self.plan.permits:
            self.w.broken("bulkhead", f"{used} permits out, {len(self.holders)} holders, {self.plan.permits} in all")

    def _same_state(self) -> None:
        model, now = self.model, self.w.now
        expected = HALF if model.state == OPEN and now > model.until else model.state
        if self.breaker.state != expected:
            self.w.broken("breaker", f"{self.breaker.state}, should be {expected}")

    def restless(self) -> str | None:
        if self.breaker.state != CLOSED:
            return f"the breaker is {self.breaker.state}"
        if self.under_way:
            return f"{self.under_way} calls are under way"
        self.sweep()
        if self.bulkhead.in_use:
            return f"{self.bulkhead.in_use} permits are out"
        return None

"""Wrong decisions, one at a time, that the simulator must find: each says what is wrong and within how many seeds.

`wrong(NAME)` is a context in which the decision is wrong. The real code is replaced, not the world: what finds a mutant
is a judge that knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sim_guards
import sim_jobs

from shmrt import Bulkhead, CircuitBreaker, RateLimit
from shmrt.decide import dynamic, machine, supervisor
from shmrt.decide.backoff import Backoff
from shmrt.decide.delivery_flow import Flow
from shmrt.decide.delivery_nodes import Work
from shmrt.decide.delivery_tasks import Tasks
from shmrt.decide.dynamic import DynamicSupervisor
from shmrt.decide.health import Watch
from shmrt.decide.intensity import Intensity
from shmrt.decide.keeper import Keeper
from shmrt.decide.machine import Machine
from shmrt.decide.supervisor import StaticSupervisor
from shmrt.decide.timers import Timers

MUTANTS: dict[str, tuple[str, int, list[tuple[Any, str, Callable[[Any], Any]]]]] = {}


def mutant(what: str, within: int, *places: tuple[Any, str]) -> Callable[[Callable[[Any], Any]], None]:
    """The decorated function gets the right decision and returns the wrong one, for each place."""

    def register(make: Callable[[Any], Any]) -> None:
        MUTANTS[make.__name__] = (what, within, [(owner, name, make) for owner, name in places])

    return register


@contextmanager
def wrong(name: str) -> Iterator[None]:
    replaced = [(owner, place, owner.__dict__[place]) for owner, place, _ in MUTANTS[name][2]]
    try:
        for owner, place, make in MUTANTS[name][2]:
            setattr(owner, place, make(owner.__dict__[place]))
        yield
    finally:
        for owner, place, right in replaced:
            setattr(owner, place, right)


# ---- budgets ---------------------------------------------------------------------------------------------------------
@mutant("one restart more than the budget", 100, (Intensity, "allow"))
def budget_one_more(right: Any) -> Any:
    def allow(self: Any, now: int) -> bool:
        return right(self, now) or (self.max_restarts is not None and self.used(now) == self.max_restarts + 1)

    return allow


@mutant("one restart less than the budget", 100, (Intensity, "allow"))
def budget_one_less(right: Any) -> Any:
    return lambda self, now: right(self, now) and (self.max_restarts is None or self.used(now) < self.max_restarts)


@mutant("restarts are never forgotten", 600, (Intensity, "allow"))
def budget_without_period(right: Any) -> Any:
    def allow(self: Any, now: int) -> bool:
        self._history.append(now)
        return self.max_restarts is None or len(self._history) <= self.max_restarts

    return allow


@mutant("restarts are forgotten after half the period", 600, (Intensity, "allow"))
def budget_of_half_a_period(right: Any) -> Any:
    def allow(self: Any, now: int) -> bool:
        self._history = [at for at in self._history if at >= now - self.period_ns // 2]
        return right(self, now)

    return allow


@mutant("a dynamic supervisor restarts without asking its budget", 300, (DynamicSupervisor, "_restart"))
def dynamic_without_budget(right: Any) -> Any:
    def restart(self: Any, member: Any) -> None:
        if member.restarting and member.state == "down" and self.stop_reason is None and not self.killing:
            self.restarts += 1
            self.begin(member)

    return restart


# ---- timers ----------------------------------------------------------------------------------------------------------
@mutant("nobody limits an orderly end", 300, (Machine, "limit_end"))
def forgotten_end_timer(right: Any) -> Any:
    return lambda self, member: None


def _without(what: str) -> Callable[[Any], Any]:
    def make(right: Any) -> Any:
        def arm(self: Any, length: int, member: Any, which: str) -> Any:
            return right(self, length, member, which) if which != what else (0, 0)

        return arm

    return make


@mutant("nobody limits a start", 100, (Machine, "arm"))
def forgotten_start_timer(right: Any) -> Any:
    return _without("start")(right)


@mutant("a restart that has to wait is forgotten", 300, (Machine, "arm"))
def forgotten_retry_timer(right: Any) -> Any:
    return _without("retry")(right)


@mutant("timers do not move when the root slept", 500, (Timers, "forgive"))
def unforgiving_timers(right: Any) -> Any:
    return lambda self, late: None


@mutant("the timer of a start stays when the child is up", 200, (Machine, "disarm"))
def timer_not_disarmed(right: Any) -> Any:
    return lambda self, member: None


@mutant("of the timers that are due one is lost", 1500, (Timers, "due"))
def lost_timer(right: Any) -> Any:
    return lambda self, now: right(self, now)[:1]


# ---- order and groups ------------------------------------------------------------------------------------------------
@mutant("children are stopped in the order in which they started", 300, (StaticSupervisor, "_stop_members"))
def stopped_from_the_front(right: Any) -> Any:
    return lambda self, members: right(self, members[::-1])


@mutant("a group is started from its end", 600, (StaticSupervisor, "ordered"))
def group_from_the_end(right: Any) -> Any:
    def ordered(self: Any) -> list[Any]:
        members = right(self)
        return members[::-1] if self.is_up and self.spec.strategy == "one_for_all" else members

    return ordered


@mutant("one_for_all restarts one", 600, (StaticSupervisor, "_stop_members"))
def group_of_one(right: Any) -> Any:
    def stop_members(self: Any, members: list[Any]) -> Any:
        if self.stop_reason is None and self.spec.strategy == "one_for_all":
            members = [member for member in members if member.state == "down"]
        return right(self, members)

    return stop_members


# ---- ends ------------------------------------------------------------------------------------------------------------
@mutant("no end is orderly", 300, (supervisor, "is_orderly"), (dynamic, "is_orderly"), (machine, "is_orderly"))
def never_orderly(right: Any) -> Any:
    return lambda reason: False


@mutant("every end is orderly", 300, (supervisor, "is_orderly"), (dynamic, "is_orderly"), (machine, "is_orderly"))
def always_orderly(right: Any) -> Any:
    return lambda reason: True


@mutant("the end of a child is not heard while the supervisor is busy", 600, (StaticSupervisor, "_put"))
def deaf_while_busy(right: Any) -> Any:
    def put(self: Any, message: tuple[Any, ...]) -> None:
        if self._wanted is None or message[0] != "exited":
            right(self, message)

    return put


@mutant("a failed restart is not tried again", 300, (StaticSupervisor, "_try_again"), (DynamicSupervisor, "_try_again"))
def tried_once(right: Any) -> Any:
    return lambda self, member: None


@mutant("who waits for a supervisor that ends is not answered", 300, (Machine, "refuse"))
def unanswered(right: Any) -> Any:
    return lambda self, tokens: None


# ---- backoff ---------------------------------------------------------------------------------------------------------
@mutant("backoff never resets", 600, (Machine, "restart_delay"))
def backoff_never_resets(right: Any) -> Any:
    def restart_delay(self: Any, member: Any, *, was_up: bool) -> int:
        return right(self, member, was_up=False)

    return restart_delay


@mutant("backoff does not grow", 300, (Backoff, "delay_ns"))
def backoff_does_not_grow(right: Any) -> Any:
    return lambda self, failures, random: right(self, min(failures, self.free + 1), random)


@mutant("a pool's failures are not forgotten when a worker is ready", 300, (Keeper, "on_ready"))
def pool_never_forgets(right: Any) -> Any:
    return lambda self: None


@mutant("a pool does not wait before it starts a worker again", 600, (Keeper, "starts"))
def pool_does_not_wait(right: Any) -> Any:
    return lambda self, now, *, alive: 0 if self.broken else max(0, self.workers - alive)


@mutant("a pool has a worker too many", 50, (Keeper, "starts"))
def pool_one_more(right: Any) -> Any:
    return lambda self, now, *, alive: right(self, now, alive=alive - 1)


@mutant("nobody asks a pool again when its wait is over", 1000, (Keeper, "wait_ns"))
def pool_is_not_asked_again(right: Any) -> Any:
    return lambda self, now, *, alive: None


@mutant("a pool breaks one failed start too late", 600, (Keeper, "start_failures_max"))
def pool_breaks_late(right: Any) -> Any:
    return property(lambda self: right.fget(self) + 1)


# ---- health ----------------------------------------------------------------------------------------------------------
@mutant("a check that passes does not end a row of failures", 300, (Watch, "passed"))
def row_goes_on(right: Any) -> Any:
    def passed(self: Any, now: int) -> None:
        row = self._row
        right(self, now)
        self._row = row

    return passed


@mutant("failures count in the time of grace", 300, (Watch, "failed"))
def no_grace(right: Any) -> Any:
    def failed(self: Any, now: int) -> Any:
        self._up_ns = None
        return right(self, now)

    return failed


@mutant("a check is never run again", 500, (Watch, "_wait"))
def checked_once(right: Any) -> Any:
    def wait(self: Any, now: int) -> None:
        right(self, now)
        self.state = "running"

    return wait


# ---- delivery --------------------------------------------------------------------------------------------------------
@mutant("a result that comes twice counts twice", 200, (Tasks, "_take"))
def double_result(right: Any) -> Any:
    def take(self: Any, task_id: int) -> Any:
        task = self._out.get(task_id)
        found = right(self, task_id)
        if task is not None:
            self._out[task_id] = task
        return found

    return take


@mutant("items that were not begun are lost when their task dies", 1500, (Work, "requeue"))
def lost_items(right: Any) -> Any:
    return lambda self, entries, lane: right(self, list(entries)[1:], lane)


@mutant("a run is over while its last item is inside", 200, (Flow, "drain"))
def over_too_early(right: Any) -> Any:
    return lambda self, now: right(self, now) or sum(getattr(node, "held", 0) for node in self._nodes) == 1


@mutant("who was with an item that kills is charged for it", 600, (Tasks, "_next_single"))
def innocent_pays(right: Any) -> Any:
    def next_single(self: Any, index: int, node: Any, group: Any) -> None:
        if not group.escrow:
            right(self, index, node, group)
            return
        for entry in list(group.entries):
            self._fail(node, entry, sim_jobs.Crash(), 1)
        if group.lane is not None:
            node.locked[group.lane] -= 1

    return next_single


@mutant("outputs leave in the order in which they are ready", 200, (Work, "hold"))
def unordered(right: Any) -> Any:
    def hold(self: Any, entry: Any, *args: Any, **options: Any) -> None:
        right(self, entry, *args, **options)
        if self.ordered and len(self.line) > 1:
            self.line.remove(entry)
            self.line.appendleft(entry)

    return hold


@mutant("a node takes more than it has slots", 300, (Work, "has_room"))
def no_bounds(right: Any) -> Any:
    return lambda self: True


# ---- guards ----------------------------------------------------------------------------------------------------------
class LosingBulkhead(Bulkhead):
    """Every fifth permit does not come back."""

    count = 0

    def release(self) -> None:
        self.count += 1
        if self.count % 5:
            super().release()


class WideBulkhead(Bulkhead):
    """One call too many."""

    def __init__(self, name: str, most: int) -> None:
        super().__init__(name, most + 1)


class StuckBreaker(CircuitBreaker):
    """A trial that goes well is not heard of."""

    def _end(self, ticket: Any, error: Any, value: Any) -> None:
        if self.state != "half_open":
            super()._end(ticket, error, value)


class BlindBreaker(CircuitBreaker):
    """No failure is one."""

    def _end(self, ticket: Any, error: Any, value: Any) -> None:
        super()._end(ticket, None, value)


class HastyLimit(RateLimit):
    """A token is there half as late as it is."""

    def _take(self, tokens: int, patience: int) -> Any:
        taken, wait = super()._take(tokens, patience)
        return taken, wait // 2


@mutant("a permit is lost", 100, (sim_guards, "Bulkhead"))
def lost_permit(right: Any) -> Any:
    return LosingBulkhead


@mutant("one permit too many", 100, (sim_guards, "Bulkhead"))
def permit_too_many(right: Any) -> Any:
    return WideBulkhead


@mutant("a breaker that is open stays so", 300, (sim_guards, "CircuitBreaker"))
def breaker_stays_open(right: Any) -> Any:
    return StuckBreaker


@mutant("a breaker does not open", 300, (sim_guards, "CircuitBreaker"))
def breaker_stays_closed(right: Any) -> Any:
    return BlindBreaker


@mutant("a token comes early", 100, (sim_guards, "RateLimit"))
def early_token(right: Any) -> Any:
    return HastyLimit

"""The judge of the tree: rules that hold after every event, worked out from what the root was told and what it ordered.

    budget     no more attempts than `max_restarts` in any period; who gives up has used them all
    haste      nobody is killed before its time is over; a sleep of the root takes nothing of it
    order      one start at a time; a group is stopped from its end and started from its beginning, all of it
    patience   with backoff, no restart before its time, and in a dynamic supervisor none after it
    loss       a child that will not come back has a right to: its restart type, "ignore", somebody's request, the end
    answers    each request is answered once
    the end    a top supervisor ends as its budget is used up, a significant child ended, a start failed, or by hand

It shares no code with `shmrt/decide`; of the machines it reads what they are made of and how many attempts they count.
"""

from __future__ import annotations

from typing import Any

from sim_world import World

GROUPS = ("one_for_all", "rest_for_one")


def orderly(reason: Any) -> bool:
    return reason in ("normal", "shutdown") or (type(reason) is tuple and reason[0] == "shutdown")


class Past:
    """What happened to one child specification."""

    __slots__ = ("failures", "ignored", "last_end", "last_reason", "ran", "ran_last", "ready_at", "starts", "window")

    def __init__(self) -> None:
        self.starts = 0
        self.failures = 0  # ends in a row
        self.ready_at: int | None = None  # of the incarnation that is there
        self.last_end = -1
        self.last_reason: Any = None
        self.ran_last = False  # its last incarnation was up
        self.ran = False  # it was up once
        self.ignored = False  # it did not want to start, or could not when somebody asked: nobody tries again
        self.window: tuple[int, int] | None = None  # when it may be started again, with backoff


class TreeJudge:
    def __init__(self, world: World, tree: Any, bodies: dict[int, Any]) -> None:
        self.w = world
        self.tree = tree
        self.bodies = bodies
        self.past: dict[int, Past] = {}
        self.right_down: dict[int, str] = {}
        """Children that are down by right, and why."""
        self.attempts: dict[Any, tuple[int, list[int]]] = {}
        """Of each machine: how many it has counted, and when."""
        self.by_path: dict[Any, Any] = {}
        self.open: dict[int, tuple[int, str, Any]] = {}
        """Requests without an answer."""
        self.hands: dict[Any, None] = {}
        """Machines in which somebody has stopped something."""
        self.stopped_by_hand = False
        self.gave_up: list[Any] = []
        self.restarts = 0
        self.give_ups = 0
        self.excuse: list[Any] = []
        """Why a supervisor may end."""

    def planted(self) -> None:
        self.past.clear()
        self.right_down.clear()
        self.attempts.clear()
        self.by_path.clear()
        self.hands.clear()
        self.excuse.clear()

    def forgiven(self, late: int) -> None:
        """The root did not run: nobody is to be judged by the clock for that."""
        for body in self.bodies.values():
            body.since += late
            body.asked_at += late
        for past in self.past.values():
            past.window = None if past.window is None else (past.window[0], 1 << 62)

    # ---- requests ---------------------------------------------------------------------------------------------------
    def asked(self, token: int, key: int, verb: str, args: tuple[Any, ...]) -> None:
        self.open[token] = (key, verb, args[0])
        machine = self.tree.machines.get(key)
        if machine is not None and verb == "terminate_child":
            self.hand_on(machine)

    def hand_on(self, machine: Any) -> None:
        """Somebody stops something in it, so what is down there is down by right; so is what it is part of."""
        while machine is not None:
            self.hands[machine] = None
            machine = machine.parent

    def answered(self, token: int) -> None:
        if self.open.pop(token, None) is None:
            self.w.broken("answered twice", token)

    def requested(self, key: int) -> bool:
        """Whether somebody's request is being served, or waits, at the supervisor of this child; a dynamic one serves
        all at once, so there only requests that name the child count."""
        if not self.open:
            return False
        owner = self.tree.owners.get(key)
        if owner is None:
            return False
        only = key if owner.spec.strategy == "dynamic" else None
        return any(at == owner.key and only in (None, what) for at, _, what in self.open.values())

    # ---- starts and ends --------------------------------------------------------------------------------------------
    def begins(self, key: int, plan: Any) -> None:
        w = self.w
        if key in self.bodies:
            w.broken("started twice", plan.name)
        owner = self.tree.owners.get(key)
        if owner is None:
            w.broken("started and unknown", plan.name)
        past = self.past.get(key)
        if past is None:
            past = self.past[key] = Past()
        past.starts += 1
        past.ready_at = None
        past.ignored = False
        self.right_down.pop(key, None)
        strategy = owner.spec.strategy
        if strategy != "dynamic":
            self._in_order(owner, key, plan, past)
        if past.starts > 1 and strategy in ("one_for_one", "dynamic") and not self.requested(key):
            self._wanted_again(owner, key, plan, past)
        if past.window is not None:
            first, last = past.window
            past.window = None
            if w.now < first and strategy in ("one_for_one", "dynamic") and not self.requested(key):
                w.broken("backoff", plan.name, f"restarted {first - w.now} ns before its time")
            if w.now > last > w.slept_at and strategy == "dynamic":
                w.broken("backoff", plan.name, f"restarted {w.now - last} ns after its time")

    def _wanted_again(self, owner: Any, key: int, plan: Any, past: Past) -> None:
        restart = owner.members[key].spec.restart
        quiet = past.ran_last and orderly(past.last_reason)
        if past.ignored or restart == "temporary" or (restart == "transient" and quiet):
            self.w.broken("unwanted restart", f"{plan.name} ({restart}) after {past.last_reason!r}")

    def _in_order(self, owner: Any, key: int, plan: Any, past: Past) -> None:
        group = owner.spec.strategy in GROUPS and past.starts > 1 and not self.requested(key)
        for other, body in self.bodies.items():
            if self.tree.owners.get(other) is not owner:
                continue
            if not body.told_up and not body.killed:
                self.w.broken("two starts at once", plan.name, body.id)
            if group and other > key:
                self.w.broken("group order", f"{plan.name} is started while {body.id}, which comes later, runs")
            if group and owner.spec.strategy == "one_for_all" and body.began < past.last_end:
                self.w.broken("group", f"{plan.name} is started again and {body.id} has not been")

    def asks_to_end(self, body: Any) -> None:
        w = self.w
        if body.asked or body.killed or not body.told_up:
            w.broken("asked to end", body.id, "twice, or before it was up")
        owner = self.tree.owners[body.key]
        if owner.spec.strategy == "dynamic" or self.requested(body.key):
            return
        for other in self.bodies.values():
            if other.key > body.key and self.tree.owners.get(other.key) is owner:
                w.broken("stop order", f"{body.id} is asked to end before {other.id}, which was started later")

    def kills(self, body: Any) -> None:
        """A start or an end may take its time, and a sleep of the root takes nothing of it."""
        owner = self.tree.owners[body.key]
        if owner.stop_reason is not None or owner.killing or self.requested(body.key):
            return
        spec, now = owner.members[body.key].spec, self.w.now
        if not body.told_up and now < body.since + spec.start_timeout:
            self.w.broken("hasty kill", f"{body.id} {(now - body.since) / 1e9} s after its start")
        if body.told_up and not body.asked and spec.shutdown != "brutal_kill":
            self.w.broken("hasty kill", f"{body.id} was not asked to end")
        if body.asked and now < body.asked_at + spec.shutdown:
            self.w.broken("hasty kill", f"{body.id} {(now - body.asked_at) / 1e9} s after it was asked to end")

    def hears_ready(self, body: Any) -> None:
        past = self.past[body.key]
        if not body.killed:
            past.ready_at, past.ran = self.w.now, True

    def hears_gone(self, body: Any, reason: Any) -> None:
        w, past = self.w, self.past[body.key]
        past.last_end, past.last_reason, past.ran_last = w.now, reason, past.ready_at is not None
        past.ignored = past.ready_at is None and (reason == "ignore" or (not past.ran and self.requested(body.key)))
        owner = self.tree.owners[body.key]
        spec = owner.members[body.key].spec
        wait = owner.spec.backoff
        past.window = None
        quiet = spec.restart == "temporary" or (spec.restart == "transient" and orderly(reason))
        if spec.significant and quiet and past.ready_at is not None:
            self.excuse.append(("shutdown", owner))
        expected = body.asked or (body.killed and past.ready_at is not None)
        if wait is None or expected or past.ignored or owner.stop_reason is not None or owner.killing:
            return
        if past.ready_at is None and (past.starts == 1 or self.requested(body.key)):
            return  # the first start, or one that somebody asked for: nobody tries again
        if past.ready_at is not None:
            if quiet:
                return
            # A static supervisor looks at the end when it has time, and at how long the child was up only then.
            if w.now - past.ready_at > wait.cap_ns or owner.spec.strategy != "dynamic":
                past.failures = 0
        past.failures += 1
        steps = past.failures - wait.free
        full = 0 if steps <= 0 else min(wait.first_ns * 2 ** (steps - 1), wait.cap_ns)
        past.window = (w.now + full - int(full * wait.jitter) - 1, w.now + full)

    def lost(self, key: int, reason: Any) -> None:
        owner = self.tree.owners.get(key)
        past = self.past[key]
        if key in self.bodies or key in self.right_down:
            self.w.broken("lost", key, "while it runs, or twice")
        if owner is None or owner.ended or owner.stop_reason is not None or owner.killing:
            why = "its supervisor ends"
        elif past.ignored:
            why = "ignored"
        elif (restart := owner.members[key].spec.restart) == "temporary":
            why = "temporary"
        elif restart == "transient" and orderly(past.last_reason):
            why = "ended in order"
        elif owner in self.hands or self.requested(key):
            why = "by hand"
        else:
            self.w.broken("lost", f"{owner.members[key].spec.id} has no right to stay down after {reason}")
        self.right_down[key] = why

    def never_ran(self, key: int) -> bool:
        """It never was up and nobody tries again: what was not there is not lost."""
        past = self.past.get(key)
        return past is not None and (past.ignored or (not past.ran and self.tree.owners.get(key) in self.hands))

    def forgot(self, key: int) -> None:
        self.past.pop(key, None)
        self.right_down.pop(key, None)

    # ---- budgets ----------------------------------------------------------------------------------------------------
    def look(self) -> None:
        """After every step of the tree: what it counted is within the budget."""
        tree, now, attempts = self.tree, self.w.now, self.attempts
        for machine in tree.machines.values():
            if machine not in attempts:
                attempts[machine] = (0, [])
                self.by_path[machine.path()] = machine
        for machine, (seen, times) in attempts.items():
            if machine.restarts == seen:
                continue
            new = machine.restarts - seen
            self.restarts += new
            times += [now] * new
            attempts[machine] = (machine.restarts, times)
            used = self.used(machine)
            if used > machine.spec.max_restarts:
                self.w.broken("budget", f"{machine.path()} made {used} attempts, allowed {machine.spec.max_restarts}")
        ended = [machine for machine in attempts if machine.ended]
        for machine in self.gave_up:
            used = self.used(machine)
            if used < machine.spec.max_restarts:
                self.w.broken("budget", f"{machine.path()} gave up after {used} of {machine.spec.max_restarts}")
        self.gave_up.clear()
        for machine in ended:
            del attempts[machine]

    def used(self, machine: Any) -> int:
        since = self.w.now - machine.spec.period
        return sum(at >= since for at in self.attempts[machine][1])

    def reported(self, what: dict[str, Any]) -> None:
        machine = self.by_path.get(what["supervisor"])
        if machine is None:
            return  # it came and went in one step
        if what["reason"] == "reached_max_restart_intensity":
            self.give_ups += 1
            self.gave_up.append(machine)  # looked at when the attempts of this step are counted
            self.excuse.append(("shutdown", machine))
        elif what["context"] == "start_error" and not machine.is_up:
            offender = what["offender"]["id"]
            self.excuse.append((("shutdown", ("failed_to_start_child", offender, what["reason"])), machine))

    def top_ended(self, reason: Any) -> None:
        """By a top supervisor's own words, or somebody's."""
        if self.stopped_by_hand:
            return
        top = self.by_path[("top",)]
        if (reason, top) not in self.excuse:
            self.w.broken("the end", f"the tree ended with {reason!r}, and nothing says why")

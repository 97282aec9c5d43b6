"""The tree of supervisors and the processes below it: the real `Tree`, in a world that fails it.

A leaf has two lives. Its process (`Body`) starts, is ready, is stopped, dies; the root hears of that a little later, in
the order in which it happened to that process but in any order between processes. What the tree wants is done at once
and takes effect later: a process that is asked to end may be deaf, or stopped, or gone already.

Somebody steers in some seeds: children are started, terminated, restarted and deleted while everything else goes on.
Dynamic supervisors get their children so. A top supervisor that ended is planted again.
"""

from __future__ import annotations

from typing import Any

from sim_judges import TreeJudge
from sim_scenario import Leaf, Scenario
from sim_world import MS, S, World

from shmrt.decide.health import HEALTHY
from shmrt.decide.health_facts import tree_rows
from shmrt.decide.specs import ChildSpec
from shmrt.decide.tree import Tree

ENDS = ("killed", "killed", "crash", "crash", ("exit", 3), "normal", "shutdown", ("shutdown", "done"))
UP_MEAN = 40 * MS


class Body:
    """One process of a leaf, from the order to start it until the root knows that it is gone."""

    __slots__ = (
        *("asked", "asked_at", "began", "crew", "gone", "id", "key", "killed", "news_at", "plan", "sick"),
        *("since", "stopped", "told_up", "up", "waiting"),
    )

    def __init__(self, key: int, plan: Leaf, now: int) -> None:
        self.key = key
        self.plan = plan
        self.id = plan.name
        self.began = self.since = now
        self.asked_at = 0
        self.news_at = 0
        self.up = self.told_up = self.asked = self.killed = self.gone = self.stopped = self.sick = False
        self.waiting: list[tuple[Any, ...]] = []  # what it will do when it is not stopped any more
        self.crew: Any = None


class TreePart:
    def __init__(self, world: World, scenario: Scenario) -> None:
        self.w = world
        self.scenario = scenario
        self.mix = scenario.mix
        self.tree = Tree(world.draw)
        self.bodies: dict[int, Body] = {}
        """As far as the root knows."""
        self.judge = TreeJudge(world, self.tree, self.bodies)
        self.forgotten: list[int] = []
        self.pools: Any = None
        self.health: Any = None
        self.ended: Any = None
        """Why the top supervisor ended; None while it is there."""
        self.plantings = 0
        self.asked_to_stop = False
        self._tokens = 0
        self._seeded: dict[Any, None] = {}

    # ---- as a part of the world -------------------------------------------------------------------------------------
    def due(self) -> int | None:
        return self.tree.next_ns()

    def tick(self) -> None:
        due = self.tree.next_ns()
        if due is not None and due <= self.w.now:
            self.tree.tick(self.w.now)
            self.act()

    def forgive(self, late: int) -> None:
        self.tree.forgive(late)
        self.judge.forgiven(late)

    # ---- what the program and people want ---------------------------------------------------------------------------
    def plant(self) -> None:
        if (self.ended is None and self.tree.tops) or self.asked_to_stop:
            return
        self.plantings += 1
        self.ended = None
        self._seeded.clear()
        self.judge.planted()
        self.w.note("plant")
        self.tree.add_top(self.scenario.tree, self.w.now)
        self.act()

    def stop(self, reason: Any) -> None:
        self.asked_to_stop = True
        for key in list(self.tree.tops):
            self.judge.stopped_by_hand = True
            self.w.note("stop", reason)
            self.tree.stop(key, reason, self.w.now)
            self.act()

    def ask(self, key: int, verb: str, *args: Any) -> None:
        self._tokens += 1
        self.w.note("ask", self._tokens, key, verb, *[getattr(arg, "id", arg) for arg in args])
        self.judge.asked(self._tokens, key, verb, args)
        self.tree.ask(self._tokens, key, verb, args, self.w.now)
        self.act()

    def operate(self) -> None:
        """Somebody steers, with or without sense."""
        w, tree = self.w, self.tree
        if w.calm:
            return
        w.later(w.spread(self.mix.operator), self.operate)
        machines = list(tree.machines.values())
        if not machines:
            return
        machine = w.pick(machines)
        members = machine.ordered()
        if machine.parent is not None and w.chance(0.1):
            reason = w.pick(("shutdown", "normal", "killed"))
            w.note("stop", machine.key, reason)
            self.judge.hand_on(machine)
            tree.stop(machine.key, reason, w.now)
            self.act()
            return
        verb = w.pick(("start_child", "terminate_child", "restart_child", "restart_child", "delete_child"))
        if verb == "start_child":
            self._tokens += 1
            plan = Leaf(f"x{self._tokens}", False)
            restart = w.pick(("permanent", "transient", "temporary"))
            self.ask(machine.key, verb, ChildSpec(plan.name, data=plan, restart=restart, shutdown=S, start_timeout=S))
        elif members:
            member = w.pick(members)
            self.ask(machine.key, verb, member.key if machine.spec.strategy == "dynamic" else member.spec.id)

    def stray(self) -> None:
        """News of what is not there any more changes nothing."""
        if self.forgotten:
            key = self.w.pick(self.forgotten)
            before = self.tree.next_ns()
            self.tree.exited(key, "killed", self.w.now)
            self.tree.started(key, self.w.now)
            if self.tree.take_effects() or self.tree.next_ns() != before:
                self.w.broken("stray news", f"of {key} had an effect")

    # ---- what the tree wants ----------------------------------------------------------------------------------------
    def act(self) -> None:
        tree, self.w.stale = self.tree, True
        while effects := tree.take_effects():
            for effect in effects:
                getattr(self, f"_on_{effect[0]}")(*effect[1:])
        self.judge.look()
        if len(self._seeded) != len(tree.machines):
            self._seed()
        if self.health is not None:
            self.health.settle()

    def _seed(self) -> None:
        """Each dynamic supervisor that is new gets its children."""
        for key, machine in list(self.tree.machines.items()):
            if machine not in self._seeded and machine.is_up:
                self._seeded[machine] = None
                delay = self.w.spread(10 * MS)  # all at once, so that their timers end at once too
                for child in self.scenario.grown.get(machine.spec.name or "", ()):
                    self.w.later(delay, self.ask, key, "start_child", child)

    def _on_start(self, key: int, plan: Leaf) -> None:
        w, mix = self.w, self.mix
        self.judge.begins(key, plan)
        body = self.bodies[key] = Body(key, plan, w.now)
        w.note("start", plan.name, key)
        if w.fault(mix.fail) or (plan.cursed and w.fault(0.5)):
            w.later(w.spread(UP_MEAN), self.die, body, w.pick(("no", "killed", "crash")))
        elif w.fault(mix.ignore):
            w.later(w.spread(UP_MEAN), self.die, body, "ignore")
        elif w.fault(mix.hang):
            w.note("hangs", plan.name)
        else:
            w.later(w.spread(3 * S if w.fault(mix.slow) else UP_MEAN), self.ready, body)

    def _on_shutdown(self, key: int) -> None:
        body = self.bodies.get(key)
        if body is None:
            self.w.broken("asks nobody to end", key)
        self.judge.asks_to_end(body)
        body.asked, body.asked_at = True, self.w.now
        self.w.note("shutdown", body.id)
        if self.w.fault(self.mix.deaf):
            self.w.note("deaf", body.id)
        else:
            reason = "shutdown" if not self.w.fault(0.2) else self.w.pick(ENDS)
            self.w.later(self.w.spread(50 * MS), self.do, body, self.die, reason)

    def _on_kill(self, key: int) -> None:
        body = self.bodies.get(key)
        if body is None or body.killed:
            self.w.broken("kills nobody, or twice", key)
        self.judge.kills(body)
        body.killed = True
        self.w.note("kill", body.id)
        self.w.later(self.w.spread(2 * MS), self.die, body, "killed")

    def _on_lost(self, key: int, reason: Any) -> None:
        self.w.note("lost", key, reason)
        self.judge.lost(key, reason)

    def _on_forgotten(self, key: int) -> None:
        if key in self.bodies:
            self.w.broken("forgotten with a process", key)
        self.forgotten.append(key)
        self.judge.forgot(key)

    def _on_answer(self, token: int, ok: bool, value: Any) -> None:
        self.w.note("answer", token, ok, value)
        self.judge.answered(token)

    def _on_report(self, what: dict[str, Any]) -> None:
        if what["context"] != "progress":
            self.w.note("report", what["context"], what["offender"]["id"], what["reason"])
        self.judge.reported(what)

    def _on_top_started(self, key: int) -> None:
        self.w.note("top started")

    def _on_top_ended(self, key: int, reason: Any) -> None:
        self.w.note("top ended", reason)
        self.ended = reason
        self.judge.top_ended(reason)
        if not self.w.calm:
            self.w.later(self.w.spread(2 * S), self.plant)

    # ---- what processes do ------------------------------------------------------------------------------------------
    def do(self, body: Body, call: Any, *args: Any) -> None:
        """As soon as the process runs: one that is stopped does nothing until it is continued, or killed."""
        if body.stopped:
            body.waiting.append((call, args))
        else:
            call(body, *args)

    def ready(self, body: Body) -> None:
        if body.gone:
            return
        if body.stopped:
            self.do(body, self.ready)
            return
        w, mix = self.w, self.mix
        body.up = True
        if body.plan.workers:
            self.pools.open(body)
        w.news(body, self._hear_ready, body)
        if body.plan.cursed and w.fault(0.8):
            w.later(w.spread(100 * MS), self.fall, body)
        elif mix.kill and not w.calm:
            w.later(w.spread(mix.kill), self.fall, body)
        if not body.plan.workers and w.fault(mix.stop):
            w.later(w.spread(3 * S), self.halt, body)
        if w.fault(mix.sick):
            w.later(w.spread(3 * S), self.sicken, body)

    def fall(self, body: Body) -> None:
        if not self.w.calm:
            self.die(body, self.w.pick(ENDS))

    def die(self, body: Body, reason: Any) -> None:
        if body.gone:
            return
        body.gone = True
        self.w.note("dies", body.id, reason)
        if body.crew is not None:
            self.pools.close(body.crew)
        self.w.news(body, self._hear_gone, body, reason)

    def halt(self, body: Body) -> None:
        if not body.gone and not body.stopped and not self.w.calm:
            self.w.note("stopped", body.id)
            body.stopped = True
            self.w.later(self.w.spread(4 * S), self.resume, body)

    def resume(self, body: Body) -> None:
        body.stopped = False
        waiting, body.waiting = body.waiting, []
        for call, args in waiting:
            if not body.gone:
                call(body, *args)

    def sicken(self, body: Body) -> None:
        if not body.gone and not self.w.calm:
            self.w.note("sick", body.id)
            body.sick = True

    # ---- what the root hears ----------------------------------------------------------------------------------------
    def _hear_ready(self, body: Body) -> None:
        body.told_up = True
        self.judge.hears_ready(body)
        self.tree.started(body.key, self.w.now)
        self.act()

    def _hear_gone(self, body: Body, reason: Any) -> None:
        del self.bodies[body.key]
        self.judge.hears_gone(body, reason)
        self.tree.exited(body.key, reason, self.w.now)
        self.act()

    # ---- the end of a run -------------------------------------------------------------------------------------------
    def restless(self) -> str | None:
        """What is not as it is to be in the end: everything up that has no right to be down."""
        if self.judge.open:
            return f"requests without an answer: {self.judge.open}"
        for machine in self.tree.machines.values():
            if not machine.is_up or machine.killing or machine.stop_reason is not None:
                return f"{machine.path()} is not running"
            for member in machine.ordered():
                if member.restarting:
                    return f"{member.spec.id} is still restarting"
                if member.spec.supervisor is not None:
                    if member.state != "up" and member.spec.restart == "permanent" and machine not in self.judge.hands:
                        return f"{member.spec.id} is {member.state}"
                    continue
                body = self.bodies.get(member.key)
                up = body is not None and body.told_up and not body.gone
                if not up and member.key not in self.judge.right_down and not self.judge.never_ran(member.key):
                    return f"{member.spec.id} is {member.state} and has no right to be"
        due = self.tree.next_ns()
        return None if due is None else f"a timer is armed, for {due / S} s, and nobody waits"

    def look_at_all(self) -> None:
        """At rest: what the tree says of itself is what there is."""
        w, tree = self.w, self.tree
        for key, machine in list(tree.machines.items()):
            keys = [member.key for member in machine.ordered()]
            up = [child for child in keys if child in self.bodies or child in tree.machines]
            rows = self._question(key, "which_children")
            if [row[1] for row in rows if row[1] is not None] != up[::-1]:
                w.broken("which_children", f"{machine.path()} says {rows}, up are {up}")
            counts = self._question(key, "count_children")
            if counts[:2] != (len(rows), len(up)):
                w.broken("count_children", f"{machine.path()} says {counts}, up are {up} of {len(rows)}")
        for row in tree_rows(tree.describe(now=w.now)["supervisors"]):
            if row["name"].endswith(":children") and row["status"] != HEALTHY:
                w.broken("health of the tree", row)

    def _question(self, key: int, verb: str) -> Any:
        self.tree.ask("question", key, verb, (), self.w.now)
        ((_, _, ok, value),) = self.tree.take_effects()
        if not ok:
            self.w.broken(verb, value)
        return value

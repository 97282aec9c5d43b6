"""What static and dynamic supervisors have in common: members, effects, questions, and the end.

A machine is a small sequential actor. It learns of events by `on_...` calls, which only the tree makes and never while
the machine is at work; it acts by `tree.emit` and by speaking to the machines of its members that are supervisors.

Killed brutally (`kill`), it kills everything below at once, waits until all of it is gone, and ends with "killed".
"""

from __future__ import annotations

from shmrt.decide.intensity import Intensity
from shmrt.decide.member import DEAD, DOWN, STARTING, STOPPING, UP, Member, is_orderly

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shmrt.decide.specs import ChildSpec, SupervisorSpec
    from shmrt.decide.tree import Tree

__all__ = ["QUESTIONS", "Machine"]

QUESTIONS = ("which_children", "which_child", "count_children", "get_childspec")
"""Answered at once, whatever the machine is doing."""


class Machine:
    """One incarnation of a supervisor."""

    __slots__ = (
        *(
            "ended",
            "id",
            "intensity",
            "is_up",
            "key",
            "killing",
            "left",
            "members",
            "parent",
            "spec",
            "stop_reason",
            "tree",
        ),
        *("last_reason", "restarts"),
    )

    def __init__(self, tree: Tree, key: int, spec: SupervisorSpec, parent: Machine | None, id: Any) -> None:
        self.tree = tree
        self.key = key
        self.id = id
        self.spec = spec
        self.parent = parent
        self.intensity = Intensity(spec.max_restarts, spec.period)
        self.members: dict[int, Member] = {}
        """Every member by key, also one that is starting and may not stay."""
        self.stop_reason: Any = None
        self.is_up = False
        self.killing = False
        self.left = 0
        """After a kill: members that still have a process."""
        self.ended = False
        self.restarts = 0
        self.last_reason: Any = None

    # ------------------------------------------------------------------ what the tree tells

    def boot(self) -> None:
        raise NotImplementedError

    def on_started(self, member: Member) -> None:
        raise NotImplementedError

    def on_exited(self, member: Member, reason: Any) -> None:
        raise NotImplementedError

    def on_timer(self, member: Member | None, what: str) -> None:
        raise NotImplementedError

    def on_ask(self, token: Any, verb: str, args: tuple[Any, ...]) -> None:
        raise NotImplementedError

    def on_stop(self, reason: Any) -> None:
        raise NotImplementedError

    def abandon(self) -> list[Any]:
        """Leaves whatever it was doing; answers the tokens of those who still wait."""
        raise NotImplementedError

    def ordered(self) -> list[Member]:
        """Members that belong to it, in start order."""
        raise NotImplementedError

    # ------------------------------------------------------------------ members

    def add(self, spec: ChildSpec) -> Member:
        member = Member(self.tree.new_key(), spec)
        self.members[member.key] = member
        self.tree.owners[member.key] = self
        return member

    def begin(self, member: Member) -> None:
        """Starts another incarnation; `on_started` or `on_exited` follows."""
        member.state = STARTING
        member.lost = False
        member.incarnation += 1
        member.killed = member.timed_out = member.ready = False
        if member.incarnation > 1:
            member.restarts += 1
        if member.spec.start_timeout is not None:
            member.start_timer = self.arm(member.spec.start_timeout, member, "start")
        self.tree.begin(self, member)

    def arm(self, length: int, member: Member | None, what: str) -> tuple[int, int]:
        serial = member.incarnation if member is not None else 0
        return self.tree.timers.arm(self.tree.now, length, (self, member, serial, what))

    def set_up(self, member: Member) -> None:
        self.disarm(member)
        member.state = UP
        member.restarting = False
        member.ran = member.ready = True
        member.up_since = self.tree.now
        self.report("progress", member, None)

    def set_down(self, member: Member, reason: Any) -> None:
        self.disarm(member)
        member.ignored = member.state == STARTING and reason == "ignore"
        member.state = DOWN
        member.reason = "timeout" if member.timed_out else reason
        self.last_reason = member.reason

    def disarm(self, member: Member) -> None:
        self.tree.timers.cancel(member.start_timer)
        self.tree.timers.cancel(member.stop_timer)
        member.start_timer = member.stop_timer = None

    def ask_to_end(self, member: Member) -> None:
        """The first half of the shutdown protocol; `kill_member` is the second."""
        if member.spec.shutdown == "brutal_kill":
            self.kill_member(member)
            return
        member.state = STOPPING
        if member.spec.supervisor is not None:
            # One that is missing has ended by itself; the news of it is on its way.
            if (below := self.tree.machines.get(member.key)) is not None:
                self.tree.post(below.on_stop, "shutdown")
        else:
            self.tree.emit("shutdown", member.key)

    def kill_member(self, member: Member) -> None:
        """Nothing of it survives; `on_exited` follows."""
        if not member.has_process or member.killed:
            return
        member.state = STOPPING
        member.killed = True
        if member.spec.supervisor is not None:
            if (below := self.tree.machines.get(member.key)) is not None:
                below.kill()
        else:
            self.tree.emit("kill", member.key)

    def cut_short(self, member: Member) -> None:
        """Ends a start that nobody waits for any more: a process is killed, a supervisor stops what it has begun."""
        if member.spec.supervisor is not None:
            self.ask_to_end(member)
            self.limit_end(member)
        else:
            self.kill_member(member)

    def limit_end(self, member: Member) -> None:
        """A member that was asked to end is killed after its own time."""
        if isinstance(member.spec.shutdown, int) and member.has_process:
            member.stop_timer = self.arm(member.spec.shutdown, member, "stop")

    def out_of_time(self, member: Member, what: str) -> None:
        """It did not start, or did not end, in time; `on_exited` follows."""
        if what == "start" and member.state != STARTING:
            return
        member.timed_out = what == "start"
        self.kill_member(member)

    def judge(self, member: Member) -> None:
        """Reports a member that did not end in the way it was asked to."""
        reason = member.reason
        wanted = "killed" if member.spec.shutdown == "brutal_kill" else "shutdown"
        if reason != wanted and (member.spec.restart == "permanent" or not is_orderly(reason)):
            self.report("shutdown_error", member, reason)

    def cancel_restart(self, member: Member) -> None:
        member.restarting = False
        self.tree.timers.cancel(member.wait_timer)
        member.wait_timer = None

    def lose(self, member: Member) -> None:
        """It stays down unless somebody asks for it."""
        if member.ran and not member.lost:
            member.lost = True
            if member.spec.supervisor is None:
                self.tree.emit("lost", member.key, member.reason)

    def forget(self, member: Member) -> None:
        """Its specification is gone."""
        self.cancel_restart(member)
        self.disarm(member)
        self.lose(member)
        del self.members[member.key]
        del self.tree.owners[member.key]
        self.tree.emit("forgotten", member.key)

    def restart_delay(self, member: Member, *, was_up: bool) -> int:
        """How long its next automatic start waits; counts one more end in a row, the first of a row if it was up for
        longer than the longest wait."""
        backoff = self.spec.backoff
        if backoff is None:
            return 0
        if was_up and self.tree.now - member.up_since > backoff.cap_ns:
            member.failures = 0
        member.failures += 1
        return backoff.delay_ns(member.failures, self.tree.random())

    def problem_of(self, spec: ChildSpec) -> tuple[str, Any] | None:
        """What speaks against such a child here, in OTP's words."""
        if spec.significant and self.spec.auto_shutdown == "never":
            return "bad_combination", (("auto_shutdown", "never"), ("significant", True))
        if spec.significant and spec.restart == "permanent":
            return "bad_combination", (("restart", "permanent"), ("significant", True))
        return None

    def wants_shutdown(self, member: Member) -> bool:
        """Whether this member's end, which nobody asked for, ends the supervisor too."""
        if self.spec.auto_shutdown == "never" or not member.spec.significant:
            return False
        if self.spec.auto_shutdown == "any_significant":
            return True
        return not any(other.spec.significant and other.counts_as_alive for other in self.ordered())

    # ------------------------------------------------------------------ the end

    def kill(self) -> None:
        """Takes everything below down at once."""
        if self.ended or self.killing:
            return
        self.killing = True
        self.refuse(self.abandon())
        for member in reversed(list(self.members.values())):
            self.cancel_restart(member)
            self.left += member.has_process
            self.kill_member(member)
        if not self.left:
            self.finish("killed")

    def one_buried(self) -> None:
        """After a kill, one of its members is gone."""
        self.left -= 1
        if not self.left:
            self.finish("killed")

    def finish(self, reason: Any) -> None:
        """It is over; nothing below it runs any more."""
        self.ended = True
        tokens = self.abandon()
        for member in reversed(list(self.members.values())):
            self.forget(member)
        self.tree.on_machine_ended(self, reason)
        self.refuse(tokens)  # whoever hears this knows of the end already

    def refuse(self, tokens: list[Any]) -> None:
        for token in tokens:
            self.answer(token, False, ("noproc", None))

    # ------------------------------------------------------------------ what it says

    def answer(self, token: Any, ok: bool, value: Any) -> None:
        self.tree.emit("answer", token, ok, value)

    def report(self, context: str, member: Member, reason: Any, *, budget: int | None = None) -> None:
        spec = member.spec
        what: dict[str, Any] = {
            "supervisor": self.path(),
            "context": context,
            "reason": reason,
            "offender": {
                "id": spec.id,
                "key": member.key,
                "restart": spec.restart,
                "shutdown": spec.shutdown,
                "type": spec.type,
            },
        }
        if budget is not None:
            what["used"] = budget
            what["limit"] = self.spec.max_restarts
        self.tree.emit("report", what)

    def report_end(self, member: Member) -> None:
        """A member ended by itself; with `restart` it says how much of the budget its restart will have used."""
        will_restart = member.spec.restart == "permanent" or (
            member.spec.restart == "transient" and not is_orderly(member.reason)
        )
        budget = self.intensity.used(self.tree.now) + 1 if will_restart else None
        self.report("child_terminated", member, member.reason, budget=budget)

    def report_limit(self, member: Member) -> None:
        """The last word of a supervisor that gives up."""
        used = self.intensity.used(self.tree.now)
        self.report("shutdown", member, "reached_max_restart_intensity", budget=used)

    def path(self) -> tuple[Any, ...]:
        """The ids from the top down; a top supervisor is called by its name, without one by its key."""
        if self.parent is None:
            return (self.key if self.spec.name is None else self.spec.name,)
        return (*self.parent.path(), self.id)

    # ------------------------------------------------------------------ questions

    def find(self, id: Any) -> Member | None:
        raise NotImplementedError

    def question(self, token: Any, verb: str, args: tuple[Any, ...]) -> None:
        members = self.ordered()
        if verb == "which_children":
            self.answer(token, True, [self.row(member) for member in reversed(members)])
        elif verb == "count_children":
            supervisors = sum(member.spec.type == "supervisor" for member in members)
            active = sum(member.state in (UP, STOPPING) for member in members)
            self.answer(token, True, (len(members), active, supervisors, len(members) - supervisors))
        elif (member := self.find(args[0])) is None:
            self.answer(token, False, ("not_found", None))
        else:
            self.answer(token, True, self.row(member) if verb == "which_child" else member.spec)

    def row(self, member: Member) -> tuple[Any, ...]:
        return member.spec.id, member.shown, member.spec.type, member.spec.restart

    def describe(self, now: int) -> dict[str, Any]:
        """For people who look at a running tree."""
        state = "stopping" if self.killing or self.stop_reason is not None else "running" if self.is_up else "starting"
        return {
            "key": self.key,
            "path": self.path(),
            "strategy": self.spec.strategy,
            "state": state,
            "used": self.intensity.used(now),
            "limit": self.spec.max_restarts,
            "period_ns": self.spec.period,
            "auto_shutdown": self.spec.auto_shutdown,
            "restarts": self.restarts,
            "reason": self.last_reason,
            "children": [self.describe_member(member, now) for member in self.ordered()],
        }

    def describe_member(self, member: Member, now: int) -> dict[str, Any]:
        spec = member.spec
        below = self.tree.machines.get(member.key)
        return {
            "key": member.key,
            "id": spec.id,
            "type": spec.type,
            "restart": spec.restart,
            "shutdown": spec.shutdown,
            "significant": spec.significant,
            "state": "restarting" if member.restarting else "stopping" if member.state == DEAD else member.state,
            "restarts": member.restarts,
            "reason": member.reason,
            "supervisor": None if below is None else below.describe(now),
        }

"""The static supervisor: ordered children, three strategies, one thing at a time.

Its whole life is one generator (`_life`) that reads like OTP's process: it yields None where it waits for the next
message of its inbox, and a member where it waits for news of that member. Whatever arrives meanwhile waits in the
inbox, so:

* administrative requests are served one after the other, behind what the supervisor is doing;
* a restart that failed is tried again through the inbox, behind everything that was asked meanwhile;
* the end of a child that the supervisor is about to stop is consumed, not taken for a crash later.

Only a stop goes first: a child that is still starting is killed, what waits in the inbox is not served any more.

Backoff (off by default): the attempt after an end waits, with the siblings as they are, and counts against the
intensity when it is made. Whoever terminates the child cancels it. A child that was up for longer than the backoff's
cap begins anew.
"""

from __future__ import annotations

from shmrt.decide.machine import Machine
from shmrt.decide.member import DEAD, DOWN, STARTING, STOPPING, UP, Ending, Member, is_orderly
from shmrt.decide.specs import ChildSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Any

    from shmrt.decide.specs import SupervisorSpec
    from shmrt.decide.tree import Tree

    Steps = Generator[Member | None, None, Any]

__all__ = ["StaticSupervisor"]


class StaticSupervisor(Machine):
    """Children in an order: one_for_one, one_for_all, rest_for_one."""

    __slots__ = ("_children", "_inbox", "_serving", "_steps", "_wanted")

    def __init__(self, tree: Tree, key: int, spec: SupervisorSpec, parent: Machine | None, id: Any) -> None:
        super().__init__(tree, key, spec, parent, id)
        self._children: dict[Any, Member] = {child.id: self.add(child) for child in spec.children}
        self._inbox: list[tuple[Any, ...]] = []
        self._wanted: Member | None = None
        self._serving: list[Any] = []
        """The token of the request that is being served."""
        self._steps: Steps = self._life()

    # ------------------------------------------------------------------ what the tree tells

    def boot(self) -> None:
        self._go_on()

    def on_started(self, member: Member) -> None:
        if member.state == STARTING:
            self.set_up(member)
            self._news_of(member)

    def on_exited(self, member: Member, reason: Any) -> None:
        if not member.has_process:
            return
        expected = member.state != UP
        self.set_down(member, reason)
        if self.killing:
            self.one_buried()
        elif expected:
            self._news_of(member)
        else:
            member.state = DEAD
            self._put(("exited", member, member.incarnation))

    def on_timer(self, member: Member | None, what: str) -> None:
        if member is None:
            return
        if what == "retry":
            member.wait_timer = None
            self._put(("retry", member))
        else:
            self.out_of_time(member, what)

    def on_ask(self, token: Any, verb: str, args: tuple[Any, ...]) -> None:
        if self.stop_reason is not None or self.killing:
            self.refuse([token])
        else:
            self._put(("ask", token, verb, args))

    def on_stop(self, reason: Any) -> None:
        if self.ended or self.killing or self.stop_reason is not None:
            return
        self.stop_reason = reason
        member = self._wanted
        if member is None:
            self._go_on()
        elif member.state == STARTING:
            self.cut_short(member)

    def abandon(self) -> list[Any]:
        tokens = self._serving + [message[1] for message in self._inbox if message[0] == "ask"]
        self._serving = []
        self._inbox.clear()
        return tokens

    def ordered(self) -> list[Member]:
        return list(self._children.values())

    def find(self, id: Any) -> Member | None:
        return self._children.get(id)

    # ------------------------------------------------------------------ the actor

    def _put(self, message: tuple[Any, ...]) -> None:
        self._inbox.append(message)
        if self._wanted is None and not self.killing:
            self._go_on()

    def _news_of(self, member: Member) -> None:
        if member is self._wanted:
            self._go_on()

    def _go_on(self) -> None:
        """Lets the routine run until it waits again."""
        try:
            self._wanted = next(self._steps)
        except StopIteration as stop:
            self.finish(stop.value)

    def _life(self) -> Steps:
        try:
            yield from self._init()
            while True:
                yield from self._serve((yield from self._receive()))
        except Ending as ending:
            self.stop_reason = ending.reason
        yield from self._stop_members(self.ordered())
        return self.stop_reason

    def _receive(self) -> Steps:
        while True:
            self._check_stop()
            if self._inbox:
                return self._inbox.pop(0)
            yield None

    def _check_stop(self) -> None:
        if self.stop_reason is not None:
            raise Ending(self.stop_reason)

    def _init(self) -> Steps:
        for member in self.ordered():
            if not (yield from self._start(member)):
                self.report("start_error", member, member.reason)
                raise Ending(("shutdown", ("failed_to_start_child", member.spec.id, member.reason)))
        self.is_up = True
        self.tree.on_machine_up(self)

    def _serve(self, message: tuple[Any, ...]) -> Steps:
        kind, subject, *rest = message
        if kind == "ask":
            verb, args = rest
            self._serving = [subject]
            ok, value = yield from getattr(self, f"_{verb}")(*args)
            self._serving = []
            self.answer(subject, ok, value)
        elif kind == "retry":
            if subject.restarting and subject.state == DOWN:
                yield from self._restart(subject)
        elif subject.state == DEAD and subject.incarnation == rest[0]:
            yield from self._ended(subject)

    # ------------------------------------------------------------------ one child

    def _start(self, member: Member) -> Steps:
        """Starts it and waits until it is up. True also for one that chose to be ignored; False: see its reason."""
        self._check_stop()
        self.begin(member)
        while member.state != UP:
            yield member
            if member.state == DOWN:
                # A stop that came meanwhile is why it is down.
                self._check_stop()
                if not member.ignored:
                    return False
                member.restarting = False
                if member.spec.restart == "temporary":
                    self._remove(member)
                else:
                    self.lose(member)
                break
        return True

    def _stop(self, member: Member) -> Steps:
        """The shutdown protocol for one child; nothing happens to one that is down, but it will not restart."""
        self.cancel_restart(member)
        if member.state == DOWN:
            return
        if member.state == UP:
            self.ask_to_end(member)
            self.limit_end(member)
        while member.state == STOPPING:
            yield member
        member.state = DOWN
        self.judge(member)

    def _stop_members(self, members: list[Member]) -> Steps:
        """Strictly one after the other, the newest first. Temporary ones are gone for good."""
        for member in reversed(members):
            yield from self._stop(member)
            if member.spec.restart == "temporary" and member.spec.id in self._children:
                self._remove(member)
            elif self.stop_reason is not None:
                self.lose(member)

    def _remove(self, member: Member) -> None:
        self._children.pop(member.spec.id, None)
        self.forget(member)

    # ------------------------------------------------------------------ ends and restarts

    def _ended(self, member: Member) -> Steps:
        """A child is gone and nobody had asked for it."""
        member.state = DOWN
        spec = member.spec
        orderly = is_orderly(member.reason)
        if spec.restart == "permanent" or not orderly:
            self.report_end(member)
        if spec.restart == "permanent" or (spec.restart == "transient" and not orderly):
            if delay := self.restart_delay(member, was_up=True):
                self._wait(member, delay)
            else:
                yield from self._restart(member)
            return
        if spec.restart == "temporary":
            self._remove(member)
        else:
            self.lose(member)
        if self.wants_shutdown(member):
            raise Ending("shutdown")

    def _wait(self, member: Member, delay: int) -> None:
        member.restarting = True
        member.wait_timer = self.arm(delay, member, "retry")

    def _restart(self, member: Member) -> Steps:
        """One attempt, if the intensity allows it."""
        if not self.intensity.allow(self.tree.now):
            self.report_limit(member)
            raise Ending("shutdown")
        self.restarts += 1
        group = [member]
        if self.spec.strategy != "one_for_one":
            group = self.ordered()
            if self.spec.strategy == "rest_for_one":
                group = group[group.index(member) :]
            member.restarting = False
            yield from self._stop_members(group)
        for other in group:
            if other.spec.id in self._children and not (yield from self._start(other)):
                self.report("start_error", other, other.reason)
                self._try_again(other)
                return

    def _try_again(self, member: Member) -> None:
        if delay := self.restart_delay(member, was_up=False):
            self._wait(member, delay)
        else:
            member.restarting = True
            self._inbox.append(("retry", member))

    # ------------------------------------------------------------------ requests

    def _start_child(self, spec: ChildSpec) -> Steps:
        if (problem := self.problem_of(spec)) is not None:
            return False, problem
        known = self._children.get(spec.id)
        if known is not None:
            if known.state in (UP, DEAD):
                return False, ("already_started", known.key)
            return False, ("already_present", None)
        member = self.add(spec)
        if not (yield from self._start(member)):
            self.forget(member)
            return False, ("start_error", member.reason)
        if member.key in self.members:
            self._children[spec.id] = member
        return True, member.key if member.state == UP else None

    def _terminate_child(self, id: Any) -> Steps:
        member = self._children.get(id)
        if member is None:
            return False, ("not_found", None)
        yield from self._stop(member)
        if member.spec.restart == "temporary":
            self._remove(member)
        else:
            self.lose(member)
        self._give_up_group()
        return True, None

    def _give_up_group(self) -> None:
        """Members that wait for the restart of another which is cancelled now stay down."""
        members = self.ordered()
        if not any(member.restarting for member in members):
            for member in members:
                if member.state == DOWN:
                    self.lose(member)

    def _restart_child(self, id: Any) -> Steps:
        member = self._children.get(id)
        if member is None:
            return False, ("not_found", None)
        if member.restarting:
            return False, ("restarting", None)
        if member.state != DOWN:
            return False, ("running", None)
        if not (yield from self._start(member)):
            self.lose(member)
            return False, ("start_error", member.reason)
        return True, member.key if member.state == UP else None

    def _delete_child(self, id: Any) -> Steps:
        member = self._children.get(id)
        if member is None:
            return False, ("not_found", None)
        if member.restarting:
            return False, ("restarting", None)
        if member.state != DOWN:
            return False, ("running", None)
        self._remove(member)
        return True, None
        yield None

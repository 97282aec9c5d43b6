"""The dynamic supervisor: children come and go by request, each on its own.

Nothing here waits for anything else: children start concurrently, and one that is slow to start or to end holds up
nobody. A child keeps its key while it restarts. Its end is everybody's end at once: all children are asked together,
with one timer for each distinct shutdown time.

A start that is still going on when the supervisor ends, or when somebody terminates the child, is cut short.
"""

from __future__ import annotations

from shmrt.decide.machine import Machine
from shmrt.decide.member import DOWN, STARTING, UP, Member, is_orderly
from shmrt.decide.specs import ChildSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shmrt.decide.specs import SupervisorSpec
    from shmrt.decide.tree import Tree

__all__ = ["DynamicSupervisor"]


class DynamicSupervisor(Machine):
    """one_for_one without an order; `max_children` counts those that are starting or restarting too."""

    __slots__ = ("_end_timers",)

    def __init__(self, tree: Tree, key: int, spec: SupervisorSpec, parent: Machine | None, id: Any) -> None:
        super().__init__(tree, key, spec, parent, id)
        self._end_timers: list[tuple[int, int]] = []

    # ------------------------------------------------------------------ what the tree tells

    def boot(self) -> None:
        self.is_up = True
        self.tree.on_machine_up(self)

    def on_started(self, member: Member) -> None:
        if member.state == STARTING:
            self.set_up(member)
            if member.start_token is not None:
                self.answer(member.start_token, True, member.key)
                member.start_token = None

    def on_exited(self, member: Member, reason: Any) -> None:
        if not member.has_process:
            return
        was = member.state
        self.set_down(member, reason)
        if self.killing:
            self.one_buried()
        elif self.stop_reason is not None:
            if member.ready:
                self.judge(member)
            self.forget(member)
            self._end_if_empty()
        elif member.stop_tokens:
            self._terminated(member)
        elif member.start_token is not None:
            self._not_started(member)
        elif was == UP:
            self._ended(member)
        elif member.ignored:
            self.forget(member)
        else:
            self.report("start_error", member, member.reason)
            self._try_again(member)

    def on_timer(self, member: Member | None, what: str) -> None:
        if what == "retry" and member is not None:
            member.wait_timer = None
            self._restart(member)
        elif member is None:
            for other in reversed(self.ordered()):
                if other.spec.shutdown == int(what):
                    self.kill_member(other)
        else:
            self.out_of_time(member, what)

    def on_ask(self, token: Any, verb: str, args: tuple[Any, ...]) -> None:
        if self.stop_reason is not None or self.killing:
            self.refuse([token])
        elif verb == "start_child":
            self._start_child(token, args[0])
        elif verb == "terminate_child":
            self._terminate_child(token, args[0])
        else:
            self.answer(token, False, ("dynamic", None))

    def on_stop(self, reason: Any) -> None:
        if self.ended or self.killing or self.stop_reason is not None:
            return
        self.stop_reason = reason
        self.refuse(self.abandon())
        lengths: dict[int, None] = {}
        for member in reversed(self.ordered()):
            self.cancel_restart(member)
            if member.state == UP:
                self.ask_to_end(member)
                if isinstance(member.spec.shutdown, int) and member.has_process:
                    lengths[member.spec.shutdown] = None
            elif member.state == STARTING:
                self.cut_short(member)
            elif member.state == DOWN:
                self.forget(member)
        self._end_timers = [self.arm(length, None, str(length)) for length in lengths]
        self._end_if_empty()

    def abandon(self) -> list[Any]:
        tokens = []
        for member in self.members.values():
            if member.start_token is not None:
                tokens.append(member.start_token)
                member.start_token = None
            tokens += member.stop_tokens
            member.stop_tokens = []
        return tokens

    def finish(self, reason: Any) -> None:
        for timer in self._end_timers:
            self.tree.timers.cancel(timer)
        super().finish(reason)

    def ordered(self) -> list[Member]:
        return list(self.members.values())

    def find(self, id: Any) -> Member | None:
        return self.members.get(id)

    # ------------------------------------------------------------------ requests

    def _start_child(self, token: Any, spec: ChildSpec) -> None:
        if (problem := self.problem_of(spec)) is not None:
            self.answer(token, False, problem)
            return
        most = self.spec.max_children
        if most is not None and len(self.members) >= most:
            self.answer(token, False, ("max_children", most))
            return
        member = self.add(spec)
        member.start_token = token
        self.begin(member)

    def _not_started(self, member: Member) -> None:
        token, member.start_token = member.start_token, None
        self.forget(member)
        if member.ignored:
            self.answer(token, True, None)
        else:
            self.answer(token, False, ("start_error", member.reason))

    def _terminate_child(self, token: Any, key: Any) -> None:
        member = self.members.get(key)
        if member is None:
            self.answer(token, False, ("not_found", None))
            return
        member.stop_tokens.append(token)
        if member.state == DOWN:
            self._terminated(member)
        elif member.state == STARTING:
            self.cut_short(member)
        elif member.state == UP:
            self.ask_to_end(member)
            self.limit_end(member)

    def _terminated(self, member: Member) -> None:
        if member.start_token is not None:
            self.answer(member.start_token, False, ("start_error", member.reason))
            member.start_token = None
        elif member.ready:
            self.judge(member)
        tokens, member.stop_tokens = member.stop_tokens, []
        self.forget(member)
        for token in tokens:
            self.answer(token, True, None)

    # ------------------------------------------------------------------ ends and restarts

    def _ended(self, member: Member) -> None:
        spec = member.spec
        orderly = is_orderly(member.reason)
        if spec.restart == "permanent" or not orderly:
            self.report_end(member)
        if spec.restart == "permanent" or (spec.restart == "transient" and not orderly):
            member.restarting = True
            if delay := self.restart_delay(member, was_up=True):
                member.wait_timer = self.arm(delay, member, "retry")
            else:
                self._restart(member)
            return
        self.forget(member)
        if self.wants_shutdown(member):
            self.on_stop("shutdown")

    def _restart(self, member: Member) -> None:
        """One attempt, if the intensity allows it and nobody terminated the child meanwhile."""
        if not member.restarting or member.state != DOWN or self.stop_reason is not None or self.killing:
            return
        if not self.intensity.allow(self.tree.now):
            self.report_limit(member)
            self.on_stop("shutdown")
            return
        self.restarts += 1
        self.begin(member)

    def _try_again(self, member: Member) -> None:
        member.restarting = True
        if delay := self.restart_delay(member, was_up=False):
            member.wait_timer = self.arm(delay, member, "retry")
        else:
            self.tree.post(self._restart, member)

    def _end_if_empty(self) -> None:
        if not self.members and not self.ended:
            self.finish(self.stop_reason)

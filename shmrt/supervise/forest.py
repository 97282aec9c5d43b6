"""Where the root's loop meets the trees: nothing of them is loaded before somebody speaks of one.

A pool needs none of this, and its root is to be ready in a few milliseconds.
"""

from __future__ import annotations

import os

from shmrt.supervise.protocol import FIRST_KIN

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.asks import Asks
    from shmrt.supervise.crew import Crew, Worker
    from shmrt.supervise.health import Health
    from shmrt.supervise.nested import Nested
    from shmrt.supervise.staff import Staff
    from shmrt.supervise.starting import Starting
    from shmrt.supervise.tree import Trees

__all__ = ["Forest"]


class Forest:
    """Every call of the root's loop; cheap while there is no tree."""

    def __init__(self, staff: Staff, starting: Starting, nested: Nested) -> None:
        self._parts = (staff, starting, nested)
        self.staff = staff
        self.trees: Trees | None = None
        self.asks: Asks | None = None
        self._health: Health | None = None

    def grow(self) -> Trees:
        """Loads what trees need, once."""
        if self.trees is None:
            from shmrt.supervise.asks import Asks
            from shmrt.supervise.tree import Trees

            self.trees = Trees(*self._parts)
            self.asks = Asks(self.trees)
            self.trees.on_watched = lambda kin: self.health().watching.watch(kin)
        return self.trees

    def health(self) -> Health:
        """The root's half of health checks, made at first use."""
        if self._health is None:
            from shmrt.supervise.health import Health

            trees = self.grow()
            assert self.asks is not None
            self._health = Health(trees, self.asks)
        return self._health

    @staticmethod
    def owns(crew: Crew) -> bool:
        return crew.id >= FIRST_KIN

    def hear(self, who: Worker | None, verb: str, rest: list[Any], fds: list[int]) -> bool:
        """Whether the message was about trees or health. `who` is None for the program."""
        if self._hear_health(who, verb, rest):
            return True
        if verb == "mailboxes" and who is None:
            # Of the root before this one; what is not asked for by the time the trees are planted is closed with this
            # process.
            self.grow().registry.adopted.update(zip((tuple(path) for path in rest[0]), fds, strict=True))
            return True
        if verb == "ask":
            self.grow()
            assert self.asks is not None
            self.asks.hear(who, rest[0], rest[1], rest[2:])
        elif self.trees is None or self.asks is None:
            return False
        elif verb == "exit" and who is not None and self.owns(who.crew):
            who.crew.kin.said = tuple(rest)  # type: ignore[attr-defined]
        elif verb == "log" and who is not None and self.owns(who.crew):
            self.staff.channel.tell(("log", who.crew.kin.data["label"], rest[0]))  # type: ignore[attr-defined]
        elif verb == "system_reply":
            self.asks.system_reply(*rest)
        elif verb == "child_ready" and who is None:
            self.trees.ready_in_program(*rest)
        elif verb == "child_exited" and who is None:
            self.trees.exited_in_program(*rest)
        else:
            return False
        for fd in fds:
            os.close(fd)
        return True

    def _hear_health(self, who: Worker | None, verb: str, rest: list[Any]) -> bool:
        if verb == "ask" and rest[1] in ("health", "health_wait"):
            try:
                (self.health().ask if rest[1] == "health" else self.health().wait)(who, rest[0], *rest[2:])
            except (TypeError, ValueError, LookupError) as error:  # of a process that does not speak as ours do
                self.grow().send_to(who, ("answer", rest[0], False, ("bad_request", f"{rest[1]}: {error!r}")))
        elif verb == "checks" and who is None:
            self.health().heard_checks(*rest)
        elif who is None or not hasattr(who.crew, "checker"):
            return False
        elif verb == "checked":
            self.health().checkers.answered(who, *rest)
        elif verb == "log":
            self.staff.channel.tell(("log", who.crew.spec["name"], rest[0]))
        else:
            return False  # it asks for other things, as any worker does
        return True

    def settle(self, now: int) -> None:
        if self.trees is not None and self.asks is not None:
            self.trees.settle(now)
            self.asks.timers.settle(now)
        if self._health is not None:
            self._health.settle(now)

    def waits_ns(self, now: int) -> list[int]:
        if self.trees is None or self.asks is None:
            return []
        waits = (self.trees.wait_ns(now), self.asks.timers.wait_ns(now), self.trees.nudges.wait_ns(now))
        more = [] if self._health is None else self._health.waits_ns(now)
        return more + [wait for wait in waits if wait is not None]

    def forgive(self, late_ns: int) -> None:
        if self.trees is not None:
            self.trees.tree.forgive(late_ns)
        if self._health is not None:
            self._health.forgive(late_ns)

    def fell(self) -> None:
        """The runtime ends: everything that is left of trees is killed."""
        if self.trees is not None:
            self.trees.fell()
        if self._health is not None:
            self._health.fell()

    def farewell(self, one: Worker) -> None:
        """A process of the root's is dead and about to be forgotten."""
        if self.trees is not None and self.asks is not None:
            self.trees.caller_gone(one)
            self.asks.forget(one)

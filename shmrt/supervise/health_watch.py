"""The checks of children: run again and again while their child is up, and what comes of their failures.

`decide/health.py` says when a check is due and when its failures end the child's process. That is a kill by the root
with a reason of its own, ("unhealthy", check): the child's supervisor decides about it, and counts it, as about any
other end. A child that is being stopped is left alone. If the process of a check dies, the check has failed, and the
child is none the worse for it but by that.
"""

from __future__ import annotations

from time import monotonic_ns

from shmrt import _native
from shmrt.decide.health import UNHEALTHY, Watch

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from shmrt.supervise.checkers import Checker, Checkers
    from shmrt.supervise.kin import Kin
    from shmrt.supervise.tree import Trees

    Then = Callable[[dict[str, Any]], None]

__all__ = ["Watching", "state_of"]


def state_of(trees: Trees, kin: Kin) -> str | None:
    """Of a child in its supervisor; None: it is there no more."""
    if kin.key not in trees.tree.owners:
        return None
    found: dict[str, Any] = trees.tree.describe(kin.key)
    return str(found["state"])


class Watched:
    """One child with its checks."""

    __slots__ = ("incarnation", "kin", "pairs")

    def __init__(self, kin: Kin, pairs: list[tuple[Checker, Watch]]) -> None:
        self.kin = kin
        self.pairs = pairs
        self.incarnation = -1  # the one that its watches know; -1: it is down for them


class Watching:
    """All of them. `run(checker, then, now)` runs a check and calls `then(result)`."""

    def __init__(self, trees: Trees, checkers: Checkers, run: Callable[[Checker, Then, int], None]) -> None:
        self.trees = trees
        self._checkers = checkers
        self._run = run
        self._watched: dict[int, Watched] = {}

    def checkers(self) -> Iterator[tuple[str, Checker]]:
        """Each with the path of its child below its top supervisor."""
        for watched in self._watched.values():
            path = "/".join(str(part) for part in watched.kin.path[1:])
            for checker, _ in watched.pairs:
                yield path, checker

    def watch(self, kin: Kin) -> None:
        """A child with checks is about to start for the first time."""
        pairs = []
        for row in kin.data["health"]:
            self.trees.warm(row["what"] if row["kind"] == "call" else b"", kin.surroundings)
            checker = self._checkers.make(row, kin.surroundings, kin)
            machine = Watch(
                interval_ns=row["interval_ns"],
                failures=row["failures"],
                grace_ns=row["grace_ns"],
                restarts=row["restarts"],
            )
            pairs.append((checker, machine))
        self._watched[kin.key] = Watched(kin, pairs)

    def _settle_one(self, watched: Watched, now: int) -> None:
        kin = watched.kin
        if self.trees.kin.get(kin.key) is not kin:
            del self._watched[kin.key]
            for checker, _ in watched.pairs:
                self._checkers.drop(checker)
            return
        up = kin.in_program or (kin.worker is not None and not kin.worker.dying)
        up = up and state_of(self.trees, kin) == "up"
        incarnation = kin.incarnation if up else -1
        if watched.incarnation != incarnation:
            watched.incarnation = incarnation
            for _, machine in watched.pairs:
                machine.ended()
                if up:
                    machine.up(now)
        for checker, machine in watched.pairs:
            if machine.due(now) == "run":
                self._run(checker, self._judge(watched, checker, machine, incarnation), now)

    def _judge(
        self, watched: Watched, checker: Checker, machine: Watch, incarnation: int
    ) -> Callable[[dict[str, Any]], None]:
        def then(result: dict[str, Any]) -> None:
            if watched.incarnation != incarnation:
                return  # of a process that is gone
            now = monotonic_ns()
            if result["status"] != UNHEALTHY:
                machine.passed(now)
            elif machine.failed(now) == "restart":
                self._end(watched.kin, str(checker.row["name"]))

        return then

    def _end(self, kin: Kin, check: str) -> None:
        """Unless somebody else is at it."""
        if kin.asked_to_end or kin.unhealthy is not None or state_of(self.trees, kin) != "up":
            return
        kin.unhealthy = check
        if kin.in_program:
            self.trees.staff.channel.send(("kill_child", kin.key, kin.incarnation))
        elif kin.worker is not None and not kin.worker.dying:
            self.trees.staff.order_and_kill(kin.worker, _native.KILL_STOP)

    # ---- what time brings -------------------------------------------------------------------------------------------
    def settle(self, now: int) -> None:
        for watched in list(self._watched.values()):
            self._settle_one(watched, now)

    def waits_ns(self, now: int) -> list[int]:
        pairs = [pair for watched in self._watched.values() for pair in watched.pairs]
        return [wait for _, machine in pairs if (wait := machine.wait_ns(now)) is not None]

    def forgive(self, late_ns: int) -> None:
        for watched in self._watched.values():
            for _, machine in watched.pairs:
                machine.forgive(late_ns)

    def fell(self) -> None:
        self._watched.clear()

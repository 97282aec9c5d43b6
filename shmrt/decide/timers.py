"""Timers as data: who is to be told what, and when. Asked, never waiting.

>>> timers = Timers()
>>> first = timers.arm(0, 10, "a"); second = timers.arm(5, 10, "b"); third = timers.arm(5, 2, "c")
>>> timers.next_ns(), timers.due(10)
(7, ['c', 'a'])
>>> timers.forgive(100); timers.next_ns()
115
>>> timers.cancel(second); timers.next_ns() is None
True
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Timers"]


class Timers:
    """Timers of equal length end in the order in which they began, so each length is a queue of its own: the next
    timer is found by looking at the heads only."""

    __slots__ = ("_last", "_queues")

    def __init__(self) -> None:
        self._queues: dict[int, dict[int, tuple[int, Any]]] = {}
        self._last = 0

    def arm(self, now: int, length: int, what: Any) -> tuple[int, int]:
        """Tells `what` once `length` has passed. The answer is for `cancel`."""
        self._last += 1
        self._queues.setdefault(length, {})[self._last] = (now + length, what)
        return length, self._last

    def cancel(self, timer: tuple[int, int] | None) -> None:
        """Forgets it; nothing happens if it is over."""
        if timer is not None and (queue := self._queues.get(timer[0])) is not None:
            queue.pop(timer[1], None)
            if not queue:
                del self._queues[timer[0]]

    def next_ns(self) -> int | None:
        heads = [next(iter(queue.values()))[0] for queue in self._queues.values()]
        return min(heads) if heads else None

    def due(self, now: int) -> list[Any]:
        """What is to be told by `now`, the earliest first; those timers are over."""
        found = []
        for length, queue in list(self._queues.items()):
            while queue:
                serial, (at, what) = next(iter(queue.items()))
                if at > now:
                    break
                del queue[serial]
                found.append((at, serial, what))
            if not queue:
                del self._queues[length]
        found.sort(key=lambda entry: entry[:2])
        return [what for _, _, what in found]

    def forgive(self, late_ns: int) -> None:
        """Nobody could look for a while: every timer moves by it."""
        for queue in self._queues.values():
            for serial, (at, what) in queue.items():
                queue[serial] = (at + late_ns, what)

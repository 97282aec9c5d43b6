"""Monitors and links between processes of a runtime, as OTP has them.

A *monitor* is one way: whoever made it hears ("down", monitor, key, reason) once, when the incarnation that lived then
is gone; at once with "noproc" if there was none. A *link* is mutual, between two children: the abnormal end of one is
an exit signal to the other. Both belong to incarnations: a restarted child has none. Whoever made a monitor takes it
along when it dies.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Bonds"]


class Bonds:
    """`who` is whoever asked: a process of the root's, or None for the program."""

    __slots__ = ("_by_key", "_links", "_monitors", "_next")

    def __init__(self) -> None:
        self._next = 1
        self._monitors: dict[int, tuple[int, Any]] = {}  # monitor -> (key, who)
        self._by_key: dict[int, list[int]] = {}
        self._links: dict[int, set[int]] = {}

    def monitor(self, key: int, who: Any) -> int:
        number, self._next = self._next, self._next + 1
        self._monitors[number] = (key, who)
        self._by_key.setdefault(key, []).append(number)
        return number

    def demonitor(self, number: int, who: Any) -> bool:
        """False: it has fired, or is somebody else's."""
        found = self._monitors.get(number)
        if found is None or found[1] is not who:
            return False
        del self._monitors[number]
        self._by_key[found[0]].remove(number)
        return True

    def link(self, one: int, other: int) -> None:
        self._links.setdefault(one, set()).add(other)
        self._links.setdefault(other, set()).add(one)

    def unlink(self, one: int, other: int) -> None:
        self._links.get(one, set()).discard(other)
        self._links.get(other, set()).discard(one)

    def linked(self, key: int) -> list[int]:
        return sorted(self._links.get(key, ()))

    def down(self, key: int) -> tuple[list[tuple[int, Any]], list[int]]:
        """That incarnation is gone: (monitor, who) of each to be told, and the keys that were linked to it."""
        monitors = [(number, self._monitors.pop(number)[1]) for number in self._by_key.pop(key, [])]
        linked = sorted(self._links.pop(key, ()))
        for other in linked:
            self._links.get(other, set()).discard(key)
        return monitors, linked

    def forget(self, who: Any) -> None:
        """Whoever made them is dead."""
        for number, (key, owner) in list(self._monitors.items()):
            if owner is who:
                del self._monitors[number]
                self._by_key[key].remove(number)

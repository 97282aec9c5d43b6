"""A tree as the program remembers it: what the next root is told when this one is killed."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["NEXT_ROOTS", "Planted"]

NEXT_ROOTS = -1
"""The key of one that the present root is about to be given: the dead root's numbers mean others there."""


class Planted:
    """One top supervisor. Its number stays; each root gives it another key."""

    __slots__ = ("_key", "again", "extra", "keys", "number", "of_runtime", "spec", "surroundings")

    def __init__(
        self, number: int, spec: Any, surroundings: Any, extra: bytes | None, of_runtime: bool, again: bool
    ) -> None:
        self.number = number
        self.spec = spec
        self.surroundings = surroundings
        self.extra = extra
        self.of_runtime = of_runtime
        self.again = again  # the next root gets it, too
        self.keys: set[int] = set()  # every one that it has had
        self._key = 0

    @property
    def key(self) -> int:
        """In the present root; 0 before its children are up for the first time."""
        return self._key

    @key.setter
    def key(self, key: int) -> None:
        self._key = key
        if key != NEXT_ROOTS:
            self.keys.add(key)

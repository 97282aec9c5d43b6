"""Messages that are due later: `send_after`. The root keeps them, so they outlive whoever asked for them.

A due message goes into the mailbox like any other info. A mailbox that is full and blocks is tried again every 10 ms,
so that the root never waits; what its policy drops, it counts. A timer for a child that is gone for good is dropped.
"""

from __future__ import annotations

from time import monotonic_ns

from shmrt import _native

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from shmrt.supervise.tree import Trees

__all__ = ["Timers"]

_AGAIN_NS = 10_000_000


class Timers:
    """(due, key, payload) by number."""

    def __init__(self, trees: Trees) -> None:
        self.trees = trees
        self._waiting: dict[int, tuple[int, int, bytes]] = {}
        self._count = 0

    def add(self, key: int, due_ns: int, payload: bytes) -> int:
        self._count += 1
        self._waiting[self._count] = (due_ns, key, payload)
        return self._count

    def cancel(self, number: int, now_ns: int) -> int | None:
        """Nanoseconds that were left; None: it is sent or was cancelled."""
        found = self._waiting.pop(number, None)
        return None if found is None else max(0, found[0] - now_ns)

    def wait_ns(self, now_ns: int) -> int | None:
        due = min((found[0] for found in self._waiting.values()), default=None)
        return None if due is None else max(0, due - now_ns)

    def settle(self, now_ns: int) -> None:
        due = sorted((found[0], number) for number, found in self._waiting.items() if found[0] <= now_ns)
        for _, number in due:
            _, key, payload = self._waiting.pop(number)
            kin = self.trees.kin.get(key)
            if kin is None or kin.mailbox is None:
                continue
            try:
                kin.mailbox.cast(_native.MAIL_INFO, "pickled", (payload,), None, 0.0)
            except Exception as error:
                if type(error).__name__ == "Overloaded" and kin.data["mailbox"][2] == "block":
                    self._waiting[number] = (monotonic_ns() + _AGAIN_NS, key, payload)

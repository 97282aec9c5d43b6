"""Signals that nobody sleeps over.

Python runs a handler between two steps of its own: a signal that arrives after the last such step and before the system
call that sleeps is noted, and the sleep begins all the same, for as long as it lasts. So whoever was sent a signal that
matters is nudged after a moment, again and again at growing distances, until it is gone: URG, which does nothing but
end the sleep (`process/signals.py`), so that the noted handler runs. Functions with handlers of their own gain, too.
"""

from __future__ import annotations

from shmrt import _native
from shmrt.process import signals

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from shmrt.supervise.crew import Worker

__all__ = ["Nudges"]

_FIRST_NS = 20_000_000
_GROWTH = 3


class Nudges:
    """Of processes that were asked to end."""

    __slots__ = ("_due", "_ends")

    def __init__(self) -> None:
        self._due: dict[Worker, tuple[int, int]] = {}  # when next, and how long after the one before
        self._ends: dict[Worker, int] = {}  # when whoever is deaf to its exit signal is killed

    def send(self, one: Worker, number: int, now: int, *, ends_ns: int = 0) -> None:
        """A signal, and nudges from now on; SIGKILL at `ends_ns`, 0 is never."""
        _native.pidfd_signal(one.pidfd, number)
        self._due[one] = (now + _FIRST_NS, _FIRST_NS)
        if ends_ns:
            self._ends.setdefault(one, ends_ns)

    def forget(self, one: Worker) -> None:
        """It is gone."""
        self._due.pop(one, None)
        self._ends.pop(one, None)

    def deaf(self, now: int) -> list[Worker]:
        """Those whose time is over, once."""
        over = [one for one, end in self._ends.items() if end <= now]
        for one in over:
            del self._ends[one]
        return over

    def settle(self, now: int) -> None:
        for one, (due, distance) in list(self._due.items()):
            if due <= now:
                _native.pidfd_signal(one.pidfd, signals.URG)
                self._due[one] = (now + distance * _GROWTH, distance * _GROWTH)

    def wait_ns(self, now: int) -> int | None:
        due = [due for due, _ in self._due.values()] + list(self._ends.values())
        return max(0, min(due) - now) if due else None

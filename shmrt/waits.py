"""Waits of the main thread that a Ctrl-C always ends.

Python runs signal handlers in the main thread, between two steps of it. A signal interrupts a wait there only if it
comes while the kernel has the thread asleep, and to that very thread. One that comes between Python's last look for
signals and the sleep, or that the kernel gives to another thread, is noted and looked at when the wait is over; and a
wait for something that never happens is never over. So the main thread looks again four times a second while it waits,
as it does in `Future.result()` (native/py_hub_origin.c). Other threads run no handlers, and sleep as long as they are
asked to.

Rule: signal(7) and "Signals and threads" in the documentation of Python's signal module.
"""

from __future__ import annotations

import threading
from queue import Empty
from time import monotonic

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from queue import SimpleQueue
    from typing import Any

__all__ = ["SIGNAL_S", "next_of", "until_set"]

SIGNAL_S = 0.25
"""How late a signal may be noticed, at worst."""


def next_of(queue: SimpleQueue[Any], timeout: float | None = None) -> Any:
    """The next object in the queue. queue.Empty if there is none within so many seconds; None: no limit.

    >>> from queue import SimpleQueue
    >>> words = SimpleQueue()
    >>> words.put("first")
    >>> next_of(words)
    'first'
    """
    end = None if timeout is None else monotonic() + timeout
    while True:
        step = _step(end)
        try:
            return queue.get(timeout=step)
        except Empty:
            if _is_over(end):
                raise


def until_set(event: threading.Event, timeout: float | None = None) -> bool:
    """Whether the event was set within so many seconds; None: no limit."""
    end = None if timeout is None else monotonic() + timeout
    while not event.wait(_step(end)):
        if _is_over(end):
            return False
    return True


def _step(end: float | None) -> float | None:
    """How long to sleep now; None: for ever."""
    left = None if end is None else max(end - monotonic(), 0.0)
    if threading.current_thread() is not threading.main_thread():
        return left
    return SIGNAL_S if left is None else min(left, SIGNAL_S)


def _is_over(end: float | None) -> bool:
    return end is not None and monotonic() >= end

"""Who may submit to a pool with `max_pending`, who waits, and who is refused.

Pending is accepted minus finished, exactly: a task counts from the moment that `submit` accepts it until it has an
outcome, whoever runs it and however often. Of two threads that find one place, one gets it.

    caller                                     on_full="block"      on_full="raise"
    a thread of the program                    waits for a place    Overloaded at once
    the thread of a running event loop         Overloaded at once   Overloaded at once
    a worker of this pool (by `whereis`)       Overloaded at once   Overloaded at once
    another process (by `whereis`)             its future waits     its future gets Overloaded

A wait ends with the deadline of the call, if it has one: the future then ends in TaskTimeout, and the call is counted
as expired like one that was dropped from the backlog. A pool that breaks, or whose runtime ends, ends every wait.

These counts are the program's own: they end with it, and outlive every worker and the pool itself.
"""

from __future__ import annotations

import threading
from time import monotonic_ns

from shmrt import _native
from shmrt.errors import Overloaded, TaskTimeout

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.pool_opened import OpenedPool

__all__ = ["Admission"]

_REPORT_NS = 1_000_000_000


class Admission:
    """Of one pool. `capacity` None: everybody may submit."""

    def __init__(self, opened: OpenedPool, max_pending: int | None, on_full: str) -> None:
        self._opened = opened
        self.name = opened.name
        self.runtime = opened.runtime
        self.capacity = max_pending
        self.on_full = on_full
        self._refused = self._expired = self._blocked_ns = 0
        self._told = (0, 0)
        self._told_ns = 0
        self._lock = threading.RLock()  # the pickling of an argument may submit, too
        self._counting = threading.Lock()

    @property
    def number(self) -> int:
        return self._opened.number

    # ---- calls ------------------------------------------------------------------------------------------------------
    def submit(self, wait: bool, submit: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """`submit(*args, **kwargs)` once there is a place. wait: even where the pool raises Overloaded."""
        future = self.try_submit(submit, *args, **kwargs)
        if future is not None:
            return future
        if not wait and (self.on_full == "raise" or _in_event_loop()):
            raise self.refusal()
        begun_ns = monotonic_ns()
        end_ns = _end_ns(submit, args, begun_ns)
        try:
            while future is None:
                if not self._wait(end_ns):
                    return self._too_late(begun_ns)
                future = self.try_submit(submit, *_with_rest(args, end_ns), **kwargs)
        finally:
            with self._counting:
                self._blocked_ns += monotonic_ns() - begun_ns
        return future

    def try_submit(self, submit: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The future; None if there is no place."""
        limit = self.capacity
        if limit is None:
            return submit(*args, **kwargs)
        with self._lock:
            if self._opened.core.wait_pending(limit - 1, 0):
                return submit(*args, **kwargs)
        return None

    def _wait(self, end_ns: int | None) -> bool:
        """For a place; False if it does not come in time."""
        assert self.capacity is not None
        left_ns = -1 if end_ns is None else max(end_ns - monotonic_ns(), 0)
        return bool(self._opened.core.wait_pending(self.capacity - 1, left_ns))

    def refusal(self) -> Overloaded:
        """Counts one, and is what the refused get."""
        with self._counting:
            self._refused += 1
        self.look()
        return Overloaded(
            f"pool {self.name} has {self.capacity} tasks pending, its max_pending; wait for some or raise the bound",
            capacity=self.capacity,
            where=self.name,
        )

    def _too_late(self, begun_ns: int) -> Any:
        from shmrt.pool import Future

        elapsed = (monotonic_ns() - begun_ns) / 1e9
        with self._counting:
            self._expired += 1
        future = Future()
        what = f"the deadline of a call to pool {self.name} passed after {elapsed:.3f} s, while it waited for a place"
        future.set_exception(
            TaskTimeout(f"{what} among its {self.capacity} pending (max_pending): it never began", elapsed=elapsed)
        )
        self.look()
        return future

    # ---- counts -----------------------------------------------------------------------------------------------------
    def counters(self) -> dict[str, int]:
        """refused, expired (those that never were accepted) and blocked_submit_ns."""
        return {"refused": self._refused, "expired": self._expired, "blocked_submit_ns": self._blocked_ns}

    def look(self) -> None:
        """Has it reported that some were refused or have expired, unless that was done just now."""
        if monotonic_ns() - self._told_ns >= _REPORT_NS:
            from shmrt import overloads

            overloads.due(self)

    def close(self) -> None:
        """The pool ends: what was not reported yet is now."""
        if self._refused or self._opened.stats().get("expired"):
            from shmrt import overloads

            self._told_ns = 0
            overloads.report(self)

    def _overload(self) -> tuple[int, int, int] | bool | None:
        """For `overloads`."""
        expired = int(self._opened.stats().get("expired", 0))
        with self._counting:
            refused, (told_refused, told_expired) = self._refused, self._told
            if (refused, expired) == self._told:
                return None
            now = monotonic_ns()
            if self._told_ns and now - self._told_ns < _REPORT_NS:
                return True
            self._told, self._told_ns = (refused, expired), now
        return refused - told_refused, 0, expired - told_expired


def _end_ns(submit: Callable[..., Any], args: tuple[Any, ...], now_ns: int) -> int | None:
    """When the call is wanted no more: what its options say, and what is left to the task that makes it."""
    packed = args[0] if args and type(args[0]) is tuple and submit.__name__ == "submit_with" else (0, -2)
    own_ns: int = packed[1]
    left, passes_on = _native.turn()
    ends = [now_ns + own_ns] if own_ns >= 0 else []
    if own_ns != -1 and passes_on and left is not None:
        ends.append(now_ns + int(left * 1e9))
    return min(ends, default=None)


def _with_rest(args: tuple[Any, ...], end_ns: int | None) -> tuple[Any, ...]:
    """The deadline counts from the call, not from the end of its wait."""
    if end_ns is None or not args or type(args[0]) is not tuple or args[0][1] < 0:
        return args
    packed = args[0]
    return ((packed[0], max(end_ns - monotonic_ns(), 0), *packed[2:]), *args[1:])


def _in_event_loop() -> bool:
    import sys

    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None

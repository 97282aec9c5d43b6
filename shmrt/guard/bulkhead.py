"""A bulkhead: so many calls of one kind at once, over all processes of a runtime.

    >>> from shmrt import Bulkhead, BulkheadFull
    >>> bulkhead = Bulkhead("doctest-disk", 1)
    >>> with bulkhead:
    ...     try:
    ...         bulkhead.call(print, "never")
    ...     except BulkheadFull as refusal:
    ...         print(refusal.capacity)
    1

A permit names the process that holds it: one that is killed gives its permits back (`native/bulkhead.h`). Source:
resilience4j's Bulkhead (maxConcurrentCalls, maxWaitDuration); the number that may wait is shmrt's own.
"""

from __future__ import annotations

import functools
import inspect
from time import monotonic

from shmrt import _native
from shmrt.guard import place
from shmrt.guard.following import follow
from shmrt.guard.wrapping import check_function, wrap_call
from shmrt.memory.guard_words import BULKHEAD, counters
from shmrt.memory.names import check_name
from shmrt.spec import FOREVER, check_count, check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Any, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["Bulkhead"]

_PERMITS_MAX = 65536
_WAITERS_MAX = 4096
_ROOM_LEAST = 64  # permits that one may be resized to, whatever it begins with
_FIRST_LOOK_S, _LAST_LOOK_S = 0.0005, 0.01  # how often an event loop looks for a permit


class Bulkhead(_native.PermitPool):
    """At most `max_concurrent` calls at once in all processes of the runtime that name it; in this process alone
    outside any.

    name: 1 to 180 bytes. max_waiting: calls that may wait for a permit, over all processes (default none: who finds
    none free is refused at once). timeout: seconds that one waits at most, None without limit. Who came first goes
    first; a process that is stopped is passed by.

    Works as `call`, as a decorator, in `with` and `async with`, and by hand: `acquire`, `release`. Raises BulkheadFull
    (also an Overloaded and a queue.Full), with `capacity` and `where`. A process that dies gives back all it held; who
    waits notices within 20 ms. A stack of permits belongs to the object: threads may share one.

    `resize` makes it larger or smaller while it is used: permits that are out stay out. Equal names with other
    settings in one runtime are a ConfigError at first use. Creating one starts nothing.
    """

    kind = "bulkhead"
    _look_again = 0.0  # when `place.refused` next looks whether there is a report to make

    def __init__(self, name: str, max_concurrent: int, max_waiting: int = 0, timeout: float | None = None) -> None:
        self._given = (check_name(name), max_concurrent, max_waiting, timeout)
        most = check_count(max_concurrent, "max_concurrent", least=1, most=_PERMITS_MAX)
        line = check_count(max_waiting, "max_waiting", least=0, most=_WAITERS_MAX)
        seconds = check_seconds(timeout, "timeout")
        self._timeout = seconds
        room = _ROOM_LEAST
        while room < 4 * most and room < _PERMITS_MAX:
            room *= 2
        text = f"max_concurrent={most} max_waiting={line}"
        self._set_up(name, text, most, max(room, most), line, _nanoseconds(seconds))
        place.know(self)

    def __reduce__(self) -> Any:
        return (type(self), self._given)

    def __repr__(self) -> str:
        return f"<Bulkhead {self.name!r} {self.in_use}/{self.max_concurrent}>"

    # ---- around calls -----------------------------------------------------------------------------------------------
    def __call__(self, function: F) -> F:
        """As a decorator: of functions, methods, async functions, generators and async generators; the last two hold
        their permit from the call until they have ended, or nobody can go on with them."""
        check_function(function, "a bulkhead")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                return await self.acall(function, *args, **kwargs)

            return guarded_async  # type: ignore[return-value]
        return wrap_call(self, function)  # type: ignore[no-any-return]

    async def acall(self, function: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        """`call` of something to be awaited: the permit is held until it has ended."""
        async with self:
            return await function(*args, **kwargs)

    async def __aenter__(self) -> Bulkhead:
        if not await self.aacquire(self._timeout):
            raise self._refusal()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    # ---- by hand ----------------------------------------------------------------------------------------------------
    def acquire(self, timeout: float | None = None) -> bool:
        """A permit, for `release`; False if there is none within `timeout` seconds (None: as long as it takes), or at
        once if as many wait as may."""
        if self._acquire(_nanoseconds(check_seconds(timeout, "timeout"))):
            return True
        place.refused(self)
        return False

    async def aacquire(self, timeout: float | None = None) -> bool:
        """`acquire` in an event loop, which goes on meanwhile."""
        import asyncio

        seconds = check_seconds(timeout, "timeout")
        end = None if seconds is None else monotonic() + seconds
        spot, pause = None, _FIRST_LOOK_S
        try:
            while True:
                answer = self._poll(spot)
                if answer is None:
                    break
                taken, spot = answer
                if taken:
                    spot = None
                    return True
                if end is not None and monotonic() >= end:
                    self._give_up(spot, True)
                    spot = None
                    break
                await asyncio.sleep(pause)
                pause = min(pause * 1.5, _LAST_LOOK_S)
        finally:
            if spot is not None:
                self._give_up(spot, False)
        place.refused(self)
        return False

    # ---- its state --------------------------------------------------------------------------------------------------
    @property
    def max_concurrent(self) -> int:
        """Permits that may be out at once."""
        return self._look()[2]

    @property
    def in_use(self) -> int:
        """Permits that living processes hold now."""
        return self._look()[0]

    @property
    def available(self) -> int:
        """Permits that are free now."""
        used, _, limit = self._look()[:3]
        return max(limit - used, 0)

    def resize(self, max_concurrent: int) -> None:
        """From now on so many, for all processes; up to the room it was made with (four times its first size, at least
        64), else ValueError."""
        self._resize(check_count(max_concurrent, "max_concurrent", least=1, most=_PERMITS_MAX))

    def stats(self) -> dict[str, Any]:
        """in_use, waiting, max_concurrent, high_water, and its counters of all processes: taken, refused (at once),
        waited, timed_out, lost (permits whose process died)."""
        used, waiting, limit, _, high, _ = self._look()
        return {
            "in_use": used,
            "waiting": waiting,
            "max_concurrent": limit,
            "high_water": high,
            "counters": counters(BULKHEAD, self._counters),
        }

    # ---- called by the native half ----------------------------------------------------------------------------------
    def _follow(self, made: Any) -> Any:
        return follow(_Held(self), made)

    def _refusal(self) -> Exception:
        from shmrt.errors import BulkheadFull

        place.refused(self)
        used, waiting, limit, *_ = self._look()
        line = self._given[2]
        if line == 0:
            remedy = "nobody may wait; try again later, or give it max_waiting"
        elif waiting >= line:
            remedy = f"{waiting} of {line} that may wait do; try again later"
        else:
            remedy = f"none came back within {self._timeout:g} s" if self._timeout is not None else "try again later"
        text = f"bulkhead {self.name!r} is full: {used} of {limit} permits are out; {remedy}"
        return BulkheadFull(text, capacity=limit, where=f"bulkhead {self.name}")


class _Held:
    """The permit of something that runs later."""

    __slots__ = ("_bulkhead",)

    def __init__(self, bulkhead: Bulkhead) -> None:
        self._bulkhead: Bulkhead | None = bulkhead

    def end(self, error: BaseException | None, value: Any = None) -> None:
        bulkhead, self._bulkhead = self._bulkhead, None
        if bulkhead is not None:
            bulkhead.__exit__(None, None, None)

    def __del__(self) -> None:
        self.end(None)


def _nanoseconds(seconds: float | None) -> int:
    return -1 if seconds is None or seconds > FOREVER else int(seconds * 1_000_000_000)

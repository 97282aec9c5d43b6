"""A rate limit: a token bucket that all processes of a runtime draw from.

    >>> from shmrt import Overloaded, RateLimit
    >>> limit = RateLimit("doctest-api", rate=1.0, burst=2)
    >>> limit.try_acquire(), limit.try_acquire(), limit.try_acquire()
    (True, True, False)

A token comes every 1/rate seconds; a bucket that nobody draws from holds `burst` of them. One word in shared memory is
all there is (`native/bucket.h`: the generic cell rate algorithm, ITU-T I.371), so no death can leave it half changed;
tokens that a killed process had taken are used up.
"""

from __future__ import annotations

import functools
import inspect
import time

from shmrt import _native
from shmrt.guard import place
from shmrt.guard.wrapping import check_function
from shmrt.memory.guard_words import BUCKET, counters, number
from shmrt.memory.names import check_name
from shmrt.spec import FOREVER, check_count, check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Any, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["RateLimit"]

_NS = 1_000_000_000


class RateLimit(_native.TokenBucket):
    """`rate` calls a second on average, `burst` at once, over all processes of the runtime that name it; in this
    process alone outside any.

    name: 1 to 180 bytes. rate: tokens a second, up to 10**9. burst: tokens that a full bucket holds. timeout: seconds
    that a call, a decorated function or a `with` block waits for its token at most (default 0: refused at once; None:
    as long as it takes). Who waits has its token already: who came first goes first.

    Raises Overloaded, with `capacity` (burst), `where` and `retry_after` (seconds). Equal names with other settings in
    one runtime are a ConfigError at first use. Creating one starts nothing.
    """

    kind = "rate_limit"
    _look_again = 0.0  # when `place.refused` next looks whether there is a report to make

    def __init__(
        self,
        name: str,
        rate: float,
        burst: int = 1,
        *,
        timeout: float | None = 0.0,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self._given = (check_name(name), rate, burst)
        if isinstance(rate, bool) or not isinstance(rate, (int, float)):
            raise TypeError(f"rate must be tokens a second, not {rate!r}")
        if not 1e-6 <= rate <= 1e9:
            raise ValueError(f"rate={rate!r} must be from 0.000001 to 10**9 tokens a second")
        size = check_count(burst, "burst", least=1, most=2**31 - 1)
        token_ns = max(round(_NS / rate), 1)
        if size > 2**62 // token_ns:
            raise ValueError(
                f"burst={burst!r} of rate={rate!r} would take {size / rate:.3g} seconds to fill; make it less"
            )
        if clock is not None and not callable(clock):
            raise TypeError(f"clock must be a callable or None, not {clock!r}")
        self._timeout = check_seconds(timeout, "timeout")
        self.rate, self.burst = float(rate), size
        self._set_up(name, f"rate={number(rate)} burst={size}", clock, token_ns, size)
        place.know(self)

    def __reduce__(self) -> Any:
        return (_again, (type(self), self._given, self._timeout))

    def __repr__(self) -> str:
        return f"<RateLimit {self.name!r} {self.rate:g}/s, {self.tokens} of {self.burst}>"

    # ---- tokens -----------------------------------------------------------------------------------------------------
    def acquire(self, tokens: int = 1, timeout: float | None = None) -> float:
        """Takes them and sleeps until they are there; the seconds slept. Overloaded, at once and with nothing taken, if
        that would be more than `timeout` (None: as long as it takes). ValueError for more than burst."""
        wait = self._draw(tokens, check_seconds(timeout, "timeout"))
        if wait:
            time.sleep(wait)
        return wait

    async def aacquire(self, tokens: int = 1, timeout: float | None = None) -> float:
        """`acquire` in an event loop, which goes on meanwhile. What a cancelled task had taken is used up."""
        wait = self._draw(tokens, check_seconds(timeout, "timeout"))
        if wait:
            import asyncio

            await asyncio.sleep(wait)
        return wait

    def _draw(self, tokens: int, timeout: float | None) -> float:
        patience = -1 if timeout is None or timeout > FOREVER else int(timeout * _NS)
        taken, wait_ns = self._take(tokens, patience)
        if taken:
            return wait_ns / _NS
        place.refused(self)
        from shmrt.errors import Overloaded

        wait = wait_ns / _NS
        error = Overloaded(
            f"rate limit {self.name!r} lets {self.rate:g} calls a second pass, {self.burst} at once: try again in "
            f"{wait:.3g} s, or give it a timeout to wait",
            capacity=self.burst,
            where=f"rate limit {self.name}",
        )
        error.retry_after = wait  # type: ignore[attr-defined]
        raise error

    # ---- around calls -----------------------------------------------------------------------------------------------
    def call(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Calls it once it has a token. Overloaded: not in time, and nothing was called."""
        self.acquire(1, self._timeout)
        return function(*args, **kwargs)

    async def acall(self, function: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        """`call` of something to be awaited."""
        await self.aacquire(1, self._timeout)
        return await function(*args, **kwargs)

    def __call__(self, function: F) -> F:
        """As a decorator: of functions and methods, also async ones."""
        check_function(function, "a rate limit")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def limited_async(*args: Any, **kwargs: Any) -> Any:
                return await self.acall(function, *args, **kwargs)

            return limited_async  # type: ignore[return-value]

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            return self.call(function, *args, **kwargs)

        return limited  # type: ignore[return-value]

    def __enter__(self) -> RateLimit:
        self.acquire(1, self._timeout)
        return self

    def __exit__(self, *error: object) -> None: ...

    async def __aenter__(self) -> RateLimit:
        await self.aacquire(1, self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def stats(self) -> dict[str, Any]:
        """tokens, burst, rate, and its counters of all processes: taken (tokens), refused and waited (calls)."""
        return {
            "tokens": self.tokens,
            "burst": self.burst,
            "rate": self.rate,
            "counters": counters(BUCKET, self._counters),
        }


def _again(kind: type, given: tuple[Any, ...], timeout: float | None) -> Any:
    return kind(*given, timeout=timeout)

"""One source of a `Fallback`: a function, where it runs, how long it may take, and what guards it.

What is around the function, from the outside: retry, breaker, timeout. So each attempt is counted by the breaker, and
a timeout is a failure to both.

Where it runs, and what its timeout then does:

    a coroutine function    in the event loop; `asyncio.timeout` cancels it
    pool= given             in a worker of that pool, which is killed
    a timeout, no pool=     in a worker of the Fallback's own pool, which is killed
    neither                 here; nothing ends it but itself

A thread cannot be killed in Python, so none is used. If a worker dies of the call, that is `WorkerCrashed`, one more
failure of the source. If whoever waits is interrupted or cancelled, the call is killed: nobody else knows of it.
"""

from __future__ import annotations

import types

from shmrt.errors import CircuitOpen, TaskTimeout
from shmrt.spec import check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from typing import Any

__all__ = ["OWN", "Limit", "Misuse", "Source", "is_async", "per_source"]

REACTION_S = 0.25
"""A worker that overstays is killed within 0.1 s, and its error says more than ours. Only then do we end the wait."""
OWN = object()
"""As a pool: the Fallback's own, which is opened at the first call that needs it."""
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


def is_async(fn: Any) -> bool:
    """Whether calling it makes a coroutine: an `async def`, a partial of one, or an object whose call is one."""
    from inspect import iscoroutinefunction

    call = getattr(type(fn), "__call__", None)  # noqa: B004 (of the class: what an instance's call will run)
    return iscoroutinefunction(fn) or (not isinstance(fn, type) and iscoroutinefunction(call))


def per_source(value: Any, option: str, names: tuple[str, ...], first_only: bool) -> dict[str, Any]:
    """An option by source: a mapping says it for each; one value is for all, or for the first alone."""
    if value is None:
        return {}
    if isinstance(value, dict):
        for name in value:
            if name not in names:
                raise ValueError(f"{option} names {name!r}, which is no source; there are {', '.join(names)}")
        return {name: one for name, one in value.items() if one is not None}
    return {names[0]: value} if first_only else dict.fromkeys(names, value)


class Misuse(TypeError):
    """A mistake of whoever made or calls the Fallback, which no other source can make good."""


class Source:
    """See the module. `timeout` in seconds; each guard is None where there is none. timed: there is a deadline for all.
    pool_by_name: the pool was given for this source by name."""

    __slots__ = ("breaker", "fn", "is_async", "name", "pool", "retry", "timeout")

    def __init__(
        self,
        name: str,
        fn: Callable[..., Any],
        *,
        timeout: Any,
        pool: Any,
        breaker: Any,
        retry: Any,
        pool_by_name: bool,
        timed: bool,
    ) -> None:
        self.name = name
        self.fn = fn
        self.is_async = is_async(fn)
        self.timeout = check_seconds(timeout, "timeout", allow_zero=False)
        if pool is not None and self.is_async:
            if pool_by_name:
                raise TypeError(f"source {name!r} is a coroutine function, which runs in the event loop, not in a pool")
            pool = None  # it was given for all that can run in one
        if pool is not None and pool is not OWN:
            _check_pool(pool, timed=timed or self.timeout is not None)
        self.pool = pool
        if breaker is not None and not callable(getattr(breaker, "call", None)):
            raise TypeError(f"breaker must have a function call(fn, *args), as CircuitBreaker has, not {breaker!r}")
        self.breaker = breaker
        self.retry = retry
        if retry is not None:
            _check_retry(retry)

    def _in_own_pool(self, seconds: float | None) -> bool:
        return self.pool is OWN or (self.pool is None and seconds is not None and not self.is_async)

    # ---- in a thread ------------------------------------------------------------------------------------------------
    def call(self, limit: Limit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The function's value. Raises what it raises, and what its guards raise."""

        def attempt() -> Any:
            seconds = limit.seconds(self)
            if self.breaker is None:
                return self._run(limit, seconds, args, kwargs)
            return self.breaker.call(self._run, limit, seconds, args, kwargs)

        if self.retry is None:
            return attempt()
        return _retrying(self.retry, limit, in_loop=False)(attempt)

    def _run(self, limit: Limit, seconds: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        pool = limit.own_pool(True) if self._in_own_pool(seconds) else self.pool
        if pool is None:
            value = self.fn(*args, **kwargs)
            if isinstance(value, types.CoroutineType):
                value.close()
                raise Misuse(f"source {self.name!r} returned a coroutine; use `await fallback.acall(...)`")
            return value
        future = _submit(pool, seconds, self.fn, args, kwargs)
        try:
            return future.result(None if seconds is None else seconds + REACTION_S)
        except TimeoutError as error:
            if future.done() or seconds is None:
                return future.result(0)  # it ended this moment, or TimeoutError is what the function raised
            raise self._late(seconds) from error
        finally:
            _end(future)

    # ---- in an event loop -------------------------------------------------------------------------------------------
    async def acall(self, limit: Limit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `call`, for coroutine functions too."""

        async def attempt() -> Any:
            seconds = limit.seconds(self)
            if self.breaker is None:
                return await self._arun(limit, seconds, args, kwargs)
            return await self.breaker.acall(self._arun, limit, seconds, args, kwargs)

        if self.breaker is not None and not callable(getattr(self.breaker, "acall", None)):
            raise Misuse(f"breaker {self.breaker!r} has no acall(fn, *args), which a call in an event loop needs")
        if self.retry is None:
            return await attempt()
        return await _retrying(self.retry, limit, in_loop=True)(attempt)

    async def _arun(self, limit: Limit, seconds: float | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        import asyncio

        pool = self.pool
        if self._in_own_pool(seconds):
            # To open it takes as long as to start a process, for which no loop should wait.
            pool = limit.own_pool(False) or await asyncio.to_thread(limit.own_pool, True)
        if pool is not None:
            future = _submit(pool, seconds, self.fn, args, kwargs)
            try:
                return await self._within(
                    asyncio.wrap_future(future), None if seconds is None else seconds + REACTION_S
                )
            finally:
                _end(future)
        value = self.fn(*args, **kwargs)
        return await self._within(value, seconds) if hasattr(type(value), "__await__") else value

    async def _within(self, awaitable: Any, seconds: float | None) -> Any:
        import asyncio

        try:
            async with asyncio.timeout(seconds) as bound:
                return await awaitable
        except TimeoutError as error:
            if seconds is None or not bound.expired():
                raise
            raise self._late(seconds) from error

    def _late(self, seconds: float) -> TaskTimeout:
        return TaskTimeout(f"source {self.name!r} had no answer after {seconds:.3g} s", elapsed=seconds)


class Limit:
    """What one call of a `Fallback` allows its sources: the time that is left, the own pool, what may be retried."""

    __slots__ = ("counts", "left", "own_pool")

    def __init__(
        self,
        left: Callable[[float | None], float | None],
        own_pool: Callable[[bool], Any],
        counts: Callable[[BaseException], bool],
    ) -> None:
        self.left = left
        self.own_pool = own_pool
        self.counts = counts

    def seconds(self, source: Source) -> float | None:
        """What an attempt that begins now may take. TaskTimeout if nothing is left."""
        seconds = self.left(source.timeout)
        if seconds is not None and seconds <= 0:
            raise TaskTimeout(f"the deadline passed before source {source.name!r} began")
        return seconds


# ---- pools ----------------------------------------------------------------------------------------------------------
def _check_pool(pool: Any, *, timed: bool) -> None:
    if not callable(getattr(pool, "submit", None)):
        raise TypeError(f"pool must be a Pool or a number of workers, not {pool!r}")
    if not timed:
        return
    if not callable(getattr(pool, "options", None)):
        raise TypeError(
            f"a timeout or deadline needs a pool whose workers can be killed, a shmrt.Pool, not {type(pool).__name__}; "
            "leave that out, or pool="
        )
    opened: Any = getattr(getattr(pool, "_pool", pool), "_opened", None)
    if getattr(opened, "max_pending", None) is not None and opened.admission.on_full == "block":
        raise ValueError(
            f"pool {opened.name} makes callers wait when it is full, for which no timeout can be kept; give that pool "
            "on_full='raise'"
        )


def _submit(pool: Any, seconds: float | None, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if seconds is None:
        return pool.submit(fn, *args, **kwargs)
    return pool.options(timeout=seconds, deadline=seconds).submit(fn, *args, **kwargs)


def _end(future: Any) -> None:
    """Nobody waits for it any more."""
    if not future.done():
        getattr(future, "kill", future.cancel)()


# ---- retry timing: tenacity's ---------------------------------------------------------------------------------------
def _tenacity() -> Any:
    try:
        import tenacity
    except ImportError as error:
        raise ImportError(
            f'retry= needs tenacity ({error}): pip install "shmrt[resilience]", or tenacity itself'
        ) from error
    return tenacity


def _check_retry(retry: Any) -> None:
    if isinstance(retry, int) and not isinstance(retry, bool):
        if not 1 <= retry <= 1000:
            raise ValueError(f"retry={retry!r} must be from 1 to 1000 attempts in all")
        _tenacity()
    elif not (hasattr(retry, "stop") and hasattr(retry, "wait") and hasattr(retry, "retry")):
        raise TypeError(f"retry must be a number of attempts or a tenacity.Retrying, not {retry!r}")


def _retrying(retry: Any, limit: Limit, *, in_loop: bool) -> Callable[..., Coroutine[Any, Any, Any] | Any]:
    """A caller that tries again by `retry`, what counts as a failure only, and only while time is left."""
    tenacity = _tenacity()
    if isinstance(retry, int):
        wait = tenacity.wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S)
        retry = tenacity.Retrying(stop=tenacity.stop_after_attempt(retry), wait=wait)

    def may(state: Any) -> Any:
        error = state.outcome.exception()
        if error is not None and (not limit.counts(error) or isinstance(error, CircuitOpen)):
            return False  # an open breaker says itself when to come again
        return retry.retry(state)

    def wait_s(state: Any) -> float:
        seconds, left = float(retry.wait(state)), limit.left(None)
        return seconds if left is None else min(seconds, left)

    def ends(state: Any) -> Any:
        left = limit.left(None)
        return (left is not None and left <= 0) or retry.stop(state)

    options: dict[str, Any] = {"retry": may, "wait": wait_s, "stop": ends, "reraise": True}
    if in_loop:
        options |= {"retry": _awaited(may), "stop": _awaited(ends)}
        if isinstance(retry, tenacity.AsyncRetrying):
            return retry.copy(**options)  # type: ignore[no-any-return]
        hooks = {name: getattr(retry, name) for name in ("before", "after", "before_sleep", "retry_error_callback")}
        return tenacity.AsyncRetrying(**options, **hooks)  # type: ignore[no-any-return]
    if isinstance(retry, tenacity.AsyncRetrying):
        raise Misuse("an AsyncRetrying retries in an event loop only; use `await fallback.acall(...)`, or a Retrying")
    return retry.copy(**options)  # type: ignore[no-any-return]


def _awaited(predicate: Callable[[Any], Any]) -> Callable[[Any], Coroutine[Any, Any, bool]]:
    """Of an AsyncRetrying, which may ask with a coroutine."""

    async def ask(state: Any) -> bool:
        verdict = predicate(state)
        return bool(await verdict) if hasattr(type(verdict), "__await__") else bool(verdict)

    return ask

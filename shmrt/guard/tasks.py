"""A breaker around the tasks of a pool: `pool.options(breaker=...)`.

Each submit asks the breaker first. How the task ends is told to it before anybody else hears of it, so that whoever has
a result finds the breaker knowing it: exceptions of the task, deaths of its worker, poison and timeouts count as
failures; a task that was cancelled, that never began, or that ended with its pool or runtime, says nothing. Once the
breaker is open, what it let through and has not begun is refused as well.
"""

from __future__ import annotations

from functools import partial

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.guard.breaker import CircuitBreaker

__all__ = ["check_breaker", "submit_guarded"]

_EXCEPTION, _CANCELLED = 2, 3  # enum shmrt_outcome of native/py_future.h
_OPEN = ("open", "forced_open")


def check_breaker(breaker: Any) -> CircuitBreaker | None:
    """A CircuitBreaker or None, else TypeError."""
    if breaker is None:
        return None
    from shmrt.guard.breaker import CircuitBreaker

    if not isinstance(breaker, CircuitBreaker):
        raise TypeError(f"breaker must be a CircuitBreaker or None, not {breaker!r}")
    return breaker


def submit_guarded(breaker: CircuitBreaker, submit: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """submit(*args, **kwargs), if the breaker lets it; CircuitOpen otherwise."""
    ticket = breaker._begin()
    try:
        future = submit(*args, **kwargs)
    except BaseException:
        breaker._end(ticket, GeneratorExit(), None)  # it never ran, which says nothing
        raise
    breaker._pending.add(future)
    future._set_guard(partial(_ended, breaker, ticket), breaker._failure_if is not None)
    return future


def _ended(breaker: CircuitBreaker, ticket: Any, future: Any, outcome: int, found: Any) -> None:
    breaker._pending.discard(future)
    if outcome == _CANCELLED:
        breaker._end(ticket, GeneratorExit(), None)
    elif outcome == _EXCEPTION:
        breaker._end(ticket, GeneratorExit() if _says_nothing(found) else found, None)
        if breaker._pending and breaker.state in _OPEN:
            _refuse_pending(breaker)
    else:
        breaker._end(ticket, None, found)


def _refuse_pending(breaker: CircuitBreaker) -> None:
    """What has not begun ends with CircuitOpen; what has is looked after on."""
    pending, breaker._pending = breaker._pending, set()
    refusal = breaker._refusal(breaker.retry_after)
    for future in pending:
        if not future._refuse(refusal) and not future.done():
            breaker._pending.add(future)


def _says_nothing(error: BaseException) -> bool:
    from shmrt.errors import CircuitOpen, PoolBroken, RuntimeDown, TaskTimeout

    expired = isinstance(error, TaskTimeout) and error.worker is None  # its deadline passed before it began
    return expired or isinstance(error, (CircuitOpen, RuntimeDown, PoolBroken))

"""A circuit breaker: what keeps failing is not called for a while.

    >>> from shmrt import CircuitBreaker, CircuitOpen
    >>> breaker = CircuitBreaker("doctest-store", failure_threshold=2)
    >>> for _ in range(2):
    ...     try:
    ...         breaker.call(int, "not a number")
    ...     except ValueError:
    ...         pass
    >>> breaker.state
    'open'
    >>> try:
    ...     breaker.call(int, "1")
    ... except CircuitOpen as refusal:
    ...     0 < refusal.retry_after <= 60
    True

It is closed, open, or half-open: after `reset_timeout` some calls are tried, and their results decide. In a runtime
all processes that use a breaker of one name share one state in shared memory (`native/breaker.h`); outside any it is
this process's own. No lock is held while the protected call runs. Rules: resilience4j's CircuitBreaker, for
consecutive failures pybreaker's; Nygard, *Release It!*.
"""

from __future__ import annotations

import functools
import inspect

from shmrt import _native
from shmrt.guard import place
from shmrt.guard.breaker_settings import Settings
from shmrt.guard.following import follow
from shmrt.guard.wrapping import check_function, wrap_call
from shmrt.memory.guard_words import BREAKER, EVENTS, STATES, counters

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType
    from typing import Any, TypeVar

    F = TypeVar("F", bound=Callable[..., Any])

__all__ = ["CircuitBreaker"]

_FORCED_OPEN, _DISABLED = STATES.index("forced_open"), STATES.index("disabled")


class CircuitBreaker(_native.Breaker):
    """One breaker for all processes of the runtime that name it; the process's own outside any.

    name: 1 to 180 bytes. failure_threshold: so many failures in a row open it. reset_timeout: seconds that it stays
    open; `backoff` makes that grow by a factor, up to `max_reset_timeout`, each time the trials fail. half_open_max:
    trials at once. success_threshold: good trials that close it.

    window: rates over a window decide instead of failures in a row: an int is that many last calls, a float (or
    "10s") that many seconds. failure_rate, slow_rate: fractions at which it opens, once the window has min_calls
    results (100, or a smaller window of calls). A call slower than slow_call seconds is slow; without a window it
    counts as a failure. With only slow_rate set, failures count for nothing; the default is a failure_rate of 0.5.

    exclude: exceptions, or callables of one, that say nothing about the callee. failure_if(value): whether a result
    is a failure all the same. What is no `Exception` (Ctrl-C, cancellation, exit) is never counted.

    trial_timeout: seconds after which a trial without a result counts as failed (default ten times reset_timeout, at
    least a minute). A process that dies inside a trial counts as failed at once: no trial is ever stuck.

    on_state_change(breaker, old, new) is called in the process whose call changed the state; what it raises is told
    to `sys.unraisablehook`. In a runtime the change is also an event ("breaker.open", ...).

    Raises CircuitOpen (`retry_after`: seconds, None if only a reset helps) instead of calling. Equal names with other
    settings in one runtime are a ConfigError at first use. Creating one starts nothing. `clock`, a callable that
    gives seconds, is for tests.
    """

    kind = "breaker"
    _look_again = 0.0  # when `place.refused` next looks whether there is a report to make

    def __init__(
        self,
        name: str,
        *,
        failure_threshold: int = 5,
        reset_timeout: float | str = 60.0,
        half_open_max: int = 1,
        success_threshold: int = 1,
        window: int | float | str | None = None,
        failure_rate: float | None = None,
        min_calls: int | None = None,
        slow_call: float | str | None = None,
        slow_rate: float | None = None,
        exclude: Any = (),
        failure_if: Callable[[Any], object] | None = None,
        on_state_change: Callable[[CircuitBreaker, str, str], object] | None = None,
        backoff: float = 1.0,
        max_reset_timeout: float | str | None = None,
        trial_timeout: float | str | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        settings = Settings(
            name,
            failure_threshold=failure_threshold,
            reset_timeout=reset_timeout,
            half_open_max=half_open_max,
            success_threshold=success_threshold,
            window=window,
            failure_rate=failure_rate,
            min_calls=min_calls,
            slow_call=slow_call,
            slow_rate=slow_rate,
            exclude=exclude,
            backoff=backoff,
            max_reset_timeout=max_reset_timeout,
            trial_timeout=trial_timeout,
        )
        for what, given in (("failure_if", failure_if), ("on_state_change", on_state_change), ("clock", clock)):
            if given is not None and not callable(given):
                raise TypeError(f"{what} must be a callable or None, not {given!r}")
        self._settings = settings
        self._failure_if = failure_if
        self._on_state_change = on_state_change
        self._pending: set[Any] = set()  # futures of tasks that it let through
        self._set_up(name, settings.text, clock, *settings.packed(), settings.types, settings.excluded_if, failure_if)
        place.know(self)

    def __reduce__(self) -> Any:
        return (
            _again,
            (type(self), self._settings.name, self._settings.given, self._failure_if, self._on_state_change),
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} {self.state}>"

    # ---- around calls -----------------------------------------------------------------------------------------------
    def __call__(self, function: F) -> F:
        """As a decorator: of functions, methods, async functions, generators and async generators."""
        check_function(function, "a breaker")
        if inspect.iscoroutinefunction(function):
            return self._wrap_async(function)  # type: ignore[no-any-return]
        return wrap_call(self, function)  # type: ignore[no-any-return]

    def _wrap_async(self, function: Any) -> Any:
        @functools.wraps(function)
        async def guarded(*args: Any, **kwargs: Any) -> Any:
            return await self.acall(function, *args, **kwargs)

        return guarded

    async def acall(self, function: Callable[..., Awaitable[Any]], /, *args: Any, **kwargs: Any) -> Any:
        """`call` of something to be awaited. A cancelled call says nothing: its trial is given back."""
        ticket = self._begin()
        try:
            value = await function(*args, **kwargs)
        except BaseException as error:
            self._end(ticket, error, None)
            raise
        self._end(ticket, None, value)
        return value

    async def __aenter__(self) -> CircuitBreaker:
        self.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _follow(self, ticket: Any, made: Any) -> Any:
        """A call gave something that has not run yet: how it ends is how the call ended."""
        return follow(_Held(self, ticket), made)

    # ---- its state --------------------------------------------------------------------------------------------------
    @property
    def state(self) -> str:
        """closed, open, half_open, forced_open or disabled, as the next call will find it."""
        return STATES[self._state]

    @property
    def retry_after(self) -> float | None:
        """Seconds until a call may be tried; 0 if it may now, None if only a reset helps."""
        state, left = self._look()[:2]
        return None if state == _FORCED_OPEN else left

    def trip(self) -> None:
        """Opens it for its reset timeout, as failures would."""
        self._set(STATES.index("open"))

    def reset(self) -> None:
        """Closed, nothing remembered; also after `force_open` and `disable`."""
        self._set(STATES.index("closed"))

    def force_open(self) -> None:
        """Refuses every call until `reset`."""
        self._set(_FORCED_OPEN)

    def disable(self) -> None:
        """Lets every call through and looks at no result until `reset`."""
        self._set(_DISABLED)

    def stats(self) -> dict[str, Any]:
        """How it stands: state, retry_after, since (seconds in that state), failures_in_row, attempt (times opened
        since it was closed), trials (under way), the window's calls, failed and slow, and its counters of all
        processes, which a process that is killed may leave one short: successes, failures, ignored, slow, refused,
        trials_begun, lost, late, opened, closed."""
        state, left, in_row, attempt, results, failed, slow, trials, since, _ = self._look()
        counted = counters(BREAKER, self._counters)
        counted["trials_begun"] = counted.pop("trials")
        return {
            "state": STATES[state],
            "retry_after": None if state == _FORCED_OPEN else left,
            "since": since,
            "failures_in_row": in_row if state == 0 else 0,
            "attempt": attempt,
            "trials": trials,
            "window": {"calls": results, "failed": failed, "slow": slow},
            "counters": counted,
        }

    # ---- called by the native half ----------------------------------------------------------------------------------
    def _refusal(self, retry_after: float | None) -> Exception:
        from shmrt.errors import CircuitOpen

        place.refused(self)
        state = self.state
        if retry_after is None:
            remedy = "it stays so until reset()"
        elif state == "half_open":
            remedy = f"{self._settings.half_open_max} trial calls are under way; try again in {retry_after:.3g} s"
        else:
            remedy = f"try again in {retry_after:.3g} s, or reset() it"
        return CircuitOpen(f"breaker {self.name!r} is {state.replace('_', ' ')}: {remedy}", retry_after=retry_after)

    def _changed(self, old: int, new: int) -> None:
        before, after = STATES[old], STATES[new]
        if self.is_shared:
            place.report(f"breaker.{EVENTS.get(after, after)}", self.name, "breaker", after, before)
        if self._on_state_change is not None:
            self._on_state_change(self, before, after)


class _Held:
    """A ticket of something that runs later. What is dropped before its end says nothing: a trial is given back."""

    __slots__ = ("_breaker", "_ticket")

    def __init__(self, breaker: CircuitBreaker, ticket: Any) -> None:
        self._breaker, self._ticket = breaker, ticket

    def end(self, error: BaseException | None, value: Any = None) -> None:
        ticket, self._ticket = self._ticket, None
        if ticket is not None:
            self._breaker._end(ticket, error, value)

    def __del__(self) -> None:
        self.end(GeneratorExit())


def _again(kind: type, name: str, given: dict[str, Any], failure_if: Any, on_state_change: Any) -> Any:
    return kind(name, **given, failure_if=failure_if, on_state_change=on_state_change)

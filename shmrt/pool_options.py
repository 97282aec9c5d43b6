"""Per-call options of a pool and the view that carries them.

>>> TaskOptions(timeout=2.0).replace(max_attempts=3).max_attempts
3
"""

from __future__ import annotations

from shmrt.spec import FOREVER, check_count, check_seconds

TYPE_CHECKING = False  # `typing` and `dataclasses` would cost as much as starting the workers
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from shmrt.guard.breaker import CircuitBreaker
    from shmrt.pool import Pool

__all__ = ["PoolView", "TaskOptions", "check_attempts", "nanoseconds"]

_NS = 1_000_000_000


def nanoseconds(seconds: float | None, *, none: int = -1) -> int:
    """Whole nanoseconds; None becomes `none`, and more than a century is as good as for ever."""
    return none if seconds is None or seconds > FOREVER else max(int(seconds * _NS), 0)


def check_attempts(value: int) -> int:
    return check_count(value, "max_attempts", most=1000)


class TaskOptions:
    """How one call is run. Seconds; None is no limit. Not changed after it was made.

    inherits: it has no more time than the task that submits it; a deadline of None that was asked for says no."""

    __slots__ = ("affinity", "breaker", "deadline", "inherits", "max_attempts", "priority", "retry_on", "timeout")

    def __init__(
        self,
        *,
        timeout: float | None = None,
        deadline: float | None = None,
        max_attempts: int = 1,
        retry_on: tuple[type[BaseException], ...] = (),
        priority: int = 0,
        affinity: int = -1,
        inherits: bool = True,
        breaker: CircuitBreaker | None = None,
    ) -> None:
        self.timeout = timeout
        self.deadline = deadline
        self.max_attempts = max_attempts
        self.retry_on = retry_on
        self.priority = priority
        self.affinity = affinity
        self.inherits = inherits
        self.breaker = breaker

    def replace(self, **options: Any) -> TaskOptions:
        """These options with some changed; each is checked and named if wrong."""
        known = set(self.__slots__) - {"affinity", "inherits"}
        for name in options:
            if name not in known:
                raise TypeError(f"options() has no option {name!r}; there are {', '.join(sorted(known))}")
        if "timeout" in options:
            options["timeout"] = check_seconds(options["timeout"], "timeout", allow_zero=False)
        if "deadline" in options:
            options["deadline"] = check_seconds(options["deadline"], "deadline")
            options["inherits"] = options["deadline"] is not None
        if "max_attempts" in options:
            options["max_attempts"] = check_attempts(options["max_attempts"])
        if "priority" in options:
            options["priority"] = check_count(options["priority"], "priority", least=-(2**31))
        if "breaker" in options:
            from shmrt.guard.tasks import check_breaker

            options["breaker"] = check_breaker(options["breaker"])
        if "retry_on" in options:
            retry_on = options["retry_on"]
            if isinstance(retry_on, type):
                retry_on = (retry_on,)
            elif isinstance(retry_on, str) or not hasattr(retry_on, "__iter__"):
                raise TypeError(f"retry_on must name exception types, not {retry_on!r}")
            retry_on = tuple(retry_on)
            for kind in retry_on:
                if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                    raise TypeError(f"retry_on must name exception types, not {kind!r}")
            options["retry_on"] = retry_on
        return TaskOptions(**{name: options.get(name, getattr(self, name)) for name in self.__slots__})

    def submit(self, submit: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """submit(packed, *args, **kwargs), if the breaker, if there is one, lets it."""
        if self.breaker is None:
            return submit(self.packed(), *args, **kwargs)
        from shmrt.guard.tasks import submit_guarded

        return submit_guarded(self.breaker, submit, self.packed(), *args, **kwargs)

    def is_plain(self) -> bool:
        """Whether nothing of a call has to be watched or done again by itself."""
        return (
            self.timeout is None
            and self.deadline is None
            and self.max_attempts == 1
            and not self.retry_on
            and self.affinity < 0
            and self.breaker is None
        )

    def packed(self) -> tuple[Any, ...]:
        """What the C side takes."""
        from shmrt.errors import TaskTimeout

        on_timeout = any(issubclass(TaskTimeout, kind) for kind in self.retry_on)
        return (
            nanoseconds(self.timeout),
            nanoseconds(self.deadline, none=-2 if self.inherits else -1),
            self.max_attempts,
            self.priority,
            self.affinity,
            self.retry_on or None,
            on_timeout,
        )


class PoolView:
    """The same pool, with other options for the calls made through it (`Pool.options`)."""

    def __init__(self, pool: Pool, options: TaskOptions) -> None:
        self._pool = pool
        self._options = options

    def options(self, **options: Any) -> PoolView:
        return PoolView(self._pool, self._options.replace(**options))

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """As `Pool.submit`, with these options."""
        return self._pool._submit_with(self._options, fn, args, kwargs)

    def call(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self.submit(fn, *args, **kwargs).result()

    def map(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Any) -> Iterator[Any]:
        """As `Pool.map`, with these options for every item."""
        from shmrt.pool_map import Results

        return Results(self._pool, self._options, fn, iterables, *_map_options(options))

    def map_unordered(
        self, fn: Callable[..., Any], /, *iterables: Iterable[Any], return_exceptions: bool = False, **options: Any
    ) -> Iterator[Any]:
        from shmrt.pool_map import UnorderedResults

        given = _map_options(options)
        return UnorderedResults(self._pool, self._options, fn, iterables, *given, return_exceptions=return_exceptions)

    imap_unordered = map_unordered

    def amap(self, fn: Callable[..., Any], /, *iterables: Iterable[Any], **options: Any) -> Any:
        from shmrt.pool_map import AsyncResults

        return AsyncResults(self._pool, self._options, fn, iterables, *_map_options(options))


def _map_options(options: dict[str, Any]) -> tuple[Any, ...]:
    """timeout, chunksize, buffersize."""
    given: dict[str, Any] = {"timeout": None, "chunksize": "auto", "buffersize": None}
    for name, value in options.items():
        if name not in given:
            raise TypeError(f"map() has no option {name!r}; there are {', '.join(given)}")
        given[name] = value
    return tuple(given.values())

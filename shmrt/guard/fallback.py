"""An answer from the first source that has one: the primary, then named alternatives, then a default.

    >>> def live(city):
    ...     raise ConnectionError("refused")
    >>> weather = Fallback(live, ("yesterday", {"Bonn": "rain"}.__getitem__), default="unknown")
    >>> weather("Bonn").value, weather("Bonn").source
    ('rain', 'yesterday')
    >>> value, source, errors = weather("Oslo")
    >>> value, source, errors["primary"], errors["yesterday"]
    ('unknown', 'default', ConnectionError('refused'), KeyError('Oslo'))

An exception that counts (`on`, not `exclude`) hands over to the next source. If all fail and there is no default, the
primary's exception is raised, so that the `except` clauses around a bare call of the primary still hold: its notes name
the other failures, and its attribute `fallback_errors` has them. What does not count is raised at once.
KeyboardInterrupt, SystemExit and cancellation are never taken for a failure.

If the process of a call dies (`pool=`, `timeout=`), that is a failure of that source; the next one is asked. The
counters and remembered answers belong to one process and die with it. Order of sources: `shmrt.decide.fallback`.
"""

from __future__ import annotations

import threading

from shmrt.clock import MONOTONIC
from shmrt.decide.fallback import DEFAULT, FRESH, PRIMARY, STALE, change, order, time_left
from shmrt.errors import CircuitOpen, Overloaded, RuntimeDown, ServerDown, TaskTimeout, WorkerCrashed
from shmrt.guard.fallback_words import MISSING, attach, loaded, named, tell, types_of
from shmrt.guard.outcome import Errors, Outcome
from shmrt.guard.sources import OWN, Limit, Misuse, Source, is_async, per_source
from shmrt.spec import check_count, check_name, check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType
    from typing import Any

    from shmrt.clock import Clock
    from shmrt.guard.stale import StaleCache

__all__ = ["Fallback", "fallback"]

_NS = 1_000_000_000
_OF_GUARDS = (CircuitOpen, Overloaded, RuntimeDown, ServerDown, TaskTimeout, WorkerCrashed)
"""What breaker, timeout and pool raise counts also where `on` names other types: that is what they are given for."""


class Fallback:
    """primary(*args, **kwargs), or else what the next source says. Calling it gives an `Outcome`.

    alternatives: (name, function) pairs, asked in this order with the same arguments. default: the value if all fail,
    as it is, also None and also a function. default_factory: called without arguments to make it instead.
    on: exception types that hand over to the next source; exclude: those that do not, although `on` has them.
    timeout: seconds for each attempt of each source, or a mapping of sources to seconds. deadline: seconds for all of
    them together; a source whose turn comes later is not begun.
    pool: a Pool (or a number of workers, for one of its own) in which sources that are no coroutine functions run, or
    a mapping. A timed one without it runs in a pool of the Fallback's own, of as many workers as usable CPUs, started
    at the first such call: it sees copies of this process's variables, and is killed when its time is up.
    breaker: a CircuitBreaker around the primary, or a mapping. retry: attempts in all of the primary, or a
    tenacity.Retrying, or a mapping; needs tenacity.
    cache: a StaleCache for the primary's answers; needs cachetools. name: for the log, by default the primary's.
    on_change(name, before, now, errors): called when another source answers than the last time; None is nobody.

    With a coroutine function among the sources, calling it gives a coroutine; `acall` always does. Raises TypeError or
    ValueError for a wrong argument, ImportError where a library is missing.
    """

    def __init__(
        self,
        primary: Callable[..., Any],
        *alternatives: tuple[str, Callable[..., Any]],
        default: Any = MISSING,
        default_factory: Callable[[], Any] | None = None,
        on: type[Exception] | tuple[type[Exception], ...] = (Exception,),
        exclude: type[Exception] | tuple[type[Exception], ...] = (),
        timeout: float | dict[str, float] | None = None,
        deadline: float | None = None,
        pool: Any = None,
        breaker: Any = None,
        retry: Any = None,
        cache: StaleCache | None = None,
        name: str | None = None,
        on_change: Callable[[str, str | None, str | None, Errors], object] | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        given = {key: value for key, value in locals().items() if key not in ("self", "primary", "alternatives")}
        self._made_of = ((primary, *alternatives), given)
        functions = named(primary, alternatives)
        names = tuple(functions)
        if default is not MISSING and default_factory is not None:
            raise TypeError("default and default_factory exclude each other; give one")
        if default_factory is not None and not callable(default_factory):
            raise TypeError(f"default_factory must be a function without arguments, not {default_factory!r}")
        check_name(name, "name")
        self.name = name or str(getattr(primary, "__name__", None) or type(primary).__name__)
        self._on, self._exclude = types_of(on, "on"), types_of(exclude, "exclude")
        self._deadline = check_seconds(deadline, "deadline", allow_zero=False)
        self._pool_size = check_count(pool, "pool") if isinstance(pool, int) else None
        guards = {
            "timeout": per_source(timeout, "timeout", names, False),
            "pool": per_source(pool if self._pool_size is None else OWN, "pool", names, False),
            "breaker": per_source(breaker, "breaker", names, True),
            "retry": per_source(retry, "retry", names, True),
        }
        self._sources = {
            source: Source(
                source,
                fn,
                pool_by_name=isinstance(pool, dict),
                timed=self._deadline is not None,
                **{key: by.get(source) for key, by in guards.items()},
            )
            for source, fn in functions.items()
        }
        if cache is not None and not all(hasattr(cache, part) for part in ("key", "look", "store", "fresh_answer")):
            raise TypeError(f"cache must be a StaleCache, not {cache!r}")
        if on_change is not None and not callable(on_change):
            raise TypeError(f"on_change must be a function, not {on_change!r}")
        self._cache = cache
        self._default, self._factory = default, default_factory
        self._on_change = on_change
        self._clock = clock
        has_default = default is not MISSING or default_factory is not None
        self.sources = order(names[1:], remembers=cache is not None, has_default=has_default)
        self.is_async = is_async(default_factory) or any(source.is_async for source in self._sources.values())
        self._token = object()  # tells its answers from those of others in the same cache
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._own: Any = None
        self._last: str | None = PRIMARY
        self._calls = self._failed = self._changes = 0
        self._answers = dict.fromkeys(self.sources, 0)
        self._errors = dict.fromkeys((*names, *([DEFAULT] if default_factory else [])), 0)

    # ---- calls ------------------------------------------------------------------------------------------------------
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """The Outcome; a coroutine of it if a source is a coroutine function."""
        if self.is_async:
            return self.acall(*args, **kwargs)
        return _answer(self._ask(args, kwargs))

    async def acall(self, /, *args: Any, **kwargs: Any) -> Outcome:
        """The same in an event loop. Sources that are no coroutine functions are called in the loop's thread, unless
        they have a pool or a timeout."""
        return _answer(await self._aask(args, kwargs))

    # These return the exception, too, and keep nothing: a frame that an exception's traceback leads to, also by its
    # caller, and that has a variable with that exception is not freed before the collector comes.
    def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome | BaseException:
        limit, walk = self._limit(), self._walk(args, kwargs)
        told: Any = None
        while True:
            try:
                ask = walk.send(told)
            except StopIteration as end:
                told = None
                return end.value  # type: ignore[no-any-return]
            told = _told(ask, limit, args, kwargs)

    async def _aask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome | BaseException:
        limit, walk = self._limit(), self._walk(args, kwargs)
        told: Any = None
        while True:
            try:
                ask = walk.send(told)
            except StopIteration as end:
                told = None
                return end.value  # type: ignore[no-any-return]
            told = await _atold(ask, limit, args, kwargs)

    def value(self, /, *args: Any, **kwargs: Any) -> Any:
        """The value alone; a coroutine of it if a source is a coroutine function."""
        if self.is_async:
            return self.avalue(*args, **kwargs)
        return self(*args, **kwargs).value

    async def avalue(self, /, *args: Any, **kwargs: Any) -> Any:
        """The value alone, as `acall` gives the outcome."""
        return (await self.acall(*args, **kwargs)).value

    def _walk(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Generator[Source | Callable[[], Any], tuple[bool, Any], Outcome | BaseException]:
        """Yields what is to be called, is sent (True, value) or (False, exception), returns what to answer."""
        cache = self._cache
        key = None if cache is None else (self._token, cache.key(args, kwargs))
        failed: list[tuple[str, BaseException]] = []
        for name in self.sources:
            age = None
            if name in (FRESH, STALE) and cache is not None:
                found = cache.fresh_answer(key) if name == FRESH else (cache.look(key) or ("", None, None))[1:]
                if found is None or found[1] is None:
                    continue
                value, age = found
            elif name == DEFAULT and self._factory is None:
                value = self._default
            else:
                ok, value = yield self._sources[name] if name != DEFAULT else self._factory  # type: ignore[misc]
                if not ok:
                    failed.append((name, value))
                    if not self._counts(value):
                        return self._gave_up(value, failed)
                    continue
                if name == PRIMARY and cache is not None:
                    cache.store(key, value)
            errors = Errors(failed)
            self._note(name, errors)
            return Outcome(value, name, errors, age)
        return self._gave_up(failed[0][1], failed)

    def _gave_up(self, error: BaseException, failed: list[tuple[str, BaseException]]) -> BaseException:
        self._note(None, Errors(failed))
        others = [(name, other) for name, other in failed if other is not error]
        if others:
            attach(error, others)
        return error

    def _counts(self, error: BaseException) -> bool:
        if not isinstance(error, Exception) or isinstance(error, (Misuse, loaded("CancelledError"), *self._exclude)):
            return False
        return isinstance(error, (*self._on, *_OF_GUARDS, loaded("BrokenExecutor")))

    def _limit(self) -> Limit:
        clock = self._clock
        ends_ns = None if self._deadline is None else clock.now_ns() + int(self._deadline * _NS)

        def left(timeout: float | None) -> float | None:
            timeout_ns = None if timeout is None else int(timeout * _NS)
            left_ns = time_left(clock.now_ns() if ends_ns is not None else 0, timeout_ns=timeout_ns, ends_ns=ends_ns)
            return None if left_ns is None else left_ns / _NS

        return Limit(left, self._own_pool, self._counts)

    def _own_pool(self, may_open: bool = True) -> Any:
        """Opened at the first call that needs it, in the runtime that is current then; None where it may not be."""
        from shmrt import runtimes
        from shmrt.pool import Pool

        with self._opening:
            runtime, own = runtimes.current(), self._own
            if own is not None and own._runtime is runtime and not own._shutdown and not own._opened.is_broken:
                return own
            if not may_open:
                return None
            self._own = own = Pool(self._pool_size, name=f"fallback-{self.name[:64]}", runtime=runtime)
            own.submit(int).result()  # once a worker serves: its start is no part of anybody's timeout
            return own

    # ---- what it did ------------------------------------------------------------------------------------------------
    def _note(self, source: str | None, errors: Errors) -> None:
        """Counts a call, and tells of it if another source answered than the last time."""
        with self._lock:
            self._calls += 1
            if source is None:
                self._failed += 1
            else:
                self._answers[source] += 1
            for name in errors.sources:
                self._errors[name] += 1
            before, self._last = self._last, source
            what = change(before, source)
            self._changes += bool(what)
        if what:
            tell(self.name, what, before, source, errors)
            if self._on_change is not None:
                try:
                    self._on_change(self.name, before, source, errors)
                except Exception:  # whoever asked for a value has nothing to do with it
                    import logging

                    logging.getLogger("shmrt.fallback").exception("on_change of %s failed", self.name)

    def stats(self) -> dict[str, Any]:
        """calls; answers and errors by source; failed (nobody answered); degraded; changes of source; source, the last
        that answered (None: nobody). Of this process."""
        with self._lock:
            answers, errors = dict(self._answers), dict(self._errors)
            good = answers.get(PRIMARY, 0) + answers.get(FRESH, 0)
            counts = {"calls": self._calls, "failed": self._failed, "degraded": self._calls - self._failed - good}
            told = {"changes": self._changes, "source": self._last}
        return {**counts, **told, "answers": answers, "errors": errors}

    # ---- life -------------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """Ends its own pool, if it has opened one; the next call that needs it opens another."""
        with self._opening:
            own, self._own = self._own, None
        if own is not None:
            own.shutdown()

    def __enter__(self) -> Fallback:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._opening:
            own, self._own = self._own, None
        if own is not None:
            own.__exit__(kind, value, traceback)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """In a class it is a method, as a function would be."""
        from types import MethodType

        return self if instance is None else MethodType(self, instance)

    def __reduce__(self) -> Any:
        """By name where it stands in for a function of a module, else by what it was made of; a copy counts from 0."""
        import sys

        module, path = str(self.__module__), str(getattr(self, "__qualname__", ""))
        found: Any = sys.modules.get(module) if module != "__main__" else None
        for part in path.split("."):
            found = getattr(found, part, None)
        return path if found is self else (_remake, self._made_of)

    def __repr__(self) -> str:
        return f"<Fallback {self.name}: {', '.join(self.sources)}>"


def _remake(functions: tuple[Any, ...], options: dict[str, Any]) -> Fallback:
    return Fallback(*functions, **options)


def fallback(*alternatives: tuple[str, Callable[..., Any]], **options: Any) -> Callable[[Callable[..., Any]], Fallback]:
    """The decorated function becomes the primary of a `Fallback`; arguments are those of the class.

    >>> @fallback(default=0)
    ... def half(n):
    ...     return n // 2
    >>> half(8).value, half("x").source, half.__name__
    (4, 'default', 'half')
    """
    if any(not isinstance(pair, tuple) for pair in alternatives):
        raise TypeError('fallback must be called: @fallback(("name", function), ..., default=value)')

    def decorate(primary: Callable[..., Any]) -> Fallback:
        from functools import update_wrapper

        made = Fallback(primary, *alternatives, **options)
        update_wrapper(made, primary, updated=())
        return made

    return decorate


def _answer(result: Outcome | BaseException) -> Outcome:
    if isinstance(result, Outcome):
        return result
    try:
        raise result
    finally:
        del result


def _told(ask: Any, limit: Limit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    """(True, value) or (False, exception) of a source or of the default's factory."""
    try:
        return True, ask.call(limit, args, kwargs) if isinstance(ask, Source) else ask()
    except Exception as error:
        return False, error


async def _atold(ask: Any, limit: Limit, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    try:
        if isinstance(ask, Source):
            return True, await ask.acall(limit, args, kwargs)
        value = ask()
        return True, await value if hasattr(type(value), "__await__") else value
    except Exception as error:
        return False, error

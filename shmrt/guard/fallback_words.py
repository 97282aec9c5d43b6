"""What a `Fallback` is given and what it tells: names of sources, types of exceptions, notes, and the log.

>>> list(named(abs, [("replica", round)]))
['primary', 'replica']
>>> error = OSError("gone")
>>> attach(error, [("replica", KeyError("x"))])
>>> error.__notes__, error.fallback_errors["replica"]
(["fallback: source 'replica' failed too: KeyError: 'x'"], KeyError('x'))
"""

from __future__ import annotations

import sys

from shmrt.decide.fallback import PRIMARY, RESERVED
from shmrt.guard.outcome import Errors

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["MISSING", "attach", "loaded", "named", "tell", "types_of"]

_NOTE = "fallback: "


class _Missing:
    """None is a default, too."""

    def __repr__(self) -> str:
        return "<no default>"

    def __reduce__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()


def named(primary: Callable[..., Any], alternatives: Iterable[Any]) -> dict[str, Callable[..., Any]]:
    """The functions by the names of their sources, the primary first. Raises TypeError or ValueError."""
    sources = {PRIMARY: _function(primary, "primary")}
    for pair in alternatives:
        if not (isinstance(pair, tuple) and len(pair) == 2):
            raise TypeError(f'an alternative is a pair of a name and a function, ("cache", cached), not {pair!r}')
        name, fn = pair
        if not isinstance(name, str) or not name:
            raise TypeError(f"the name of an alternative must be a string with something in it, not {name!r}")
        if name in RESERVED:
            raise ValueError(f"an alternative cannot be called {name!r}: {', '.join(RESERVED)} have a meaning already")
        if name in sources:
            raise ValueError(f"two alternatives are called {name!r}; an outcome could not say which of them answered")
        sources[name] = _function(fn, f"alternative {name!r}")
    return sources


def _function(fn: Any, what: str) -> Any:
    if not callable(fn):
        raise TypeError(f"{what} must be a function, not {fn!r}; a plain value is what default= is for")
    # Another Fallback as a source gives its value: an outcome within an outcome helps nobody.
    if hasattr(type(fn), "avalue"):
        return fn.avalue if fn.is_async else fn.value
    return fn


def types_of(value: Any, argument: str) -> tuple[type[Exception], ...]:
    """Exception types, one or several. BaseExceptions end things; they are no failures of a source."""
    kinds = (value,) if isinstance(value, type) or not hasattr(value, "__iter__") else tuple(value)
    for kind in kinds:
        if not (isinstance(kind, type) and issubclass(kind, Exception)):
            raise TypeError(f"{argument} must name types of Exception, not {kind!r}")
    return kinds


def loaded(name: str) -> type[BaseException] | tuple[()]:
    """An exception type of concurrent.futures; nothing while nobody has imported that, and so nobody can raise it."""
    futures = sys.modules.get("concurrent.futures._base")
    return () if futures is None else getattr(futures, name, ())


def attach(error: BaseException, others: list[tuple[str, BaseException]]) -> None:
    """Adds the other failures to the exception that is raised: a note for each, and all as `fallback_errors`. One that
    is raised again and again has those of the last time."""
    notes = getattr(error, "__notes__", None)
    if isinstance(notes, list):
        notes[:] = [note for note in notes if not str(note).startswith(_NOTE)]
    try:
        error.fallback_errors = Errors(others)  # type: ignore[attr-defined]
        for source, other in others:
            error.add_note(f"{_NOTE}source {source!r} failed too: {in_words(other)}")
    except Exception:
        pass  # an exception class that forbids it still says what it has to say


def in_words(error: BaseException) -> str:
    """Type and message, whatever its __str__ does."""
    try:
        text = str(error)
    except Exception:
        text = "<cannot be shown>"
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def tell(name: str, what: str, before: str | None, now: str | None, errors: Errors) -> None:
    """Logs a change of source."""
    import logging

    logger = logging.getLogger("shmrt.fallback")
    level = {"recovered": logging.INFO, "degraded": logging.WARNING}.get(what, logging.ERROR)
    if not logger.isEnabledFor(level):
        return
    failed = "; ".join(f"{source}: {in_words(error)}" for source, error in errors.items())
    text = "no source has an answer" if now is None else f"{now} answers instead of {before or 'none'}"
    facts = {"fallback": name, "before": before, "now": now}
    logger.log(level, "%s %s: %s%s", name, what, text, failed and f" ({failed})", extra=facts)

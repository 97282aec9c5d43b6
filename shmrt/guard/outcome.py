"""What a `Fallback` answers: the value, which source it is from, and what failed before.

    >>> outcome = Outcome(7, "cache", [("primary", ConnectionError("refused"))])
    >>> value, source, errors = outcome
    >>> value, source, errors["primary"], outcome.degraded
    (7, 'cache', ConnectionError('refused'), True)

Plain data: frozen, compared by what it says, and it pickles. An exception that does not survive pickling is replaced
by a `RemoteError` on the way.
"""

from __future__ import annotations

from shmrt.decide.fallback import FRESH, PRIMARY

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

__all__ = ["Errors", "Outcome"]


class Errors(tuple):  # type: ignore[type-arg]
    """The exceptions in the order in which they came, a tuple; each is also found by the name of its source.

        >>> errors = Errors([("primary", OSError("gone")), ("replica", KeyError("x"))])
        >>> errors[0] is errors["primary"], errors.sources, "default" in errors
        (True, ('primary', 'replica'), False)
        >>> dict(errors.items())
        {'primary': OSError('gone'), 'replica': KeyError('x')}

    Equal to others that have the same sources with exceptions of the same type and arguments.
    """

    sources: tuple[str, ...]

    def __new__(cls, errors: Mapping[str, BaseException] | Iterable[Any] = ()) -> Errors:
        """From pairs of source and exception, or a mapping; an exception alone has no source."""
        if isinstance(errors, Errors):
            return errors
        rows = list(errors.items() if hasattr(errors, "items") else errors)
        pairs = [row if isinstance(row, tuple) else ("", row) for row in rows]
        for pair in pairs:
            if not (len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], BaseException)):
                raise TypeError(f"errors must be pairs of a source's name and its exception, not {pair!r}")
        made = super().__new__(cls, [error for _, error in pairs])
        made.__dict__["sources"] = tuple(source for source, _ in pairs)
        return made

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"errors cannot be changed; {name} cannot be set")

    def __getitem__(self, which: Any) -> Any:
        if not isinstance(which, str):
            return super().__getitem__(which)
        if which not in self.sources:
            raise KeyError(f"{which!r} is no source that failed; there are {', '.join(self.sources) or 'none'}")
        return super().__getitem__(self.sources.index(which))

    def __contains__(self, what: object) -> bool:
        return what in self.sources if isinstance(what, str) else super().__contains__(what)

    def get(self, source: str, default: Any = None) -> Any:
        """The exception of a source, or `default`."""
        return self[source] if source in self.sources else default

    def keys(self) -> tuple[str, ...]:
        return self.sources

    def values(self) -> tuple[BaseException, ...]:
        return tuple(self)

    def items(self) -> tuple[tuple[str, BaseException], ...]:
        """Pairs of source and exception."""
        return tuple(zip(self.sources, self, strict=True))

    def _key(self) -> tuple[Any, ...]:
        return tuple((source, type(error), error.args) for source, error in self.items())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Errors):
            return self._key() == other._key()
        return tuple(self) == other

    def __ne__(self, other: object) -> bool:
        return not self == other  # a tuple has its own

    def __hash__(self) -> int:
        return hash(self.sources)

    def __repr__(self) -> str:
        return "Errors({})".format(", ".join(f"{source}={error!r}" for source, error in self.items()))

    def __reduce__(self) -> Any:
        return (Errors, ([(source, _portable(error)) for source, error in self.items()],))


def _portable(error: BaseException) -> BaseException:
    """An exception that pickles: this one if it does, else what says which one it was."""
    from shmrt.process.packing import pack_exception
    from shmrt.process.remote import unpack_from

    packed = pack_exception(error)
    return error if packed[0] is not None else unpack_from((None, *packed[1:]), "before it was pickled")


class Outcome:
    """value; source: "primary", "fresh", "stale", an alternative's name, or "default"; errors: see `Errors`.

    age: seconds since the primary gave a remembered value ("fresh" and "stale"), else None. Unpacks as (value, source,
    errors). Two outcomes are equal if all four are.
    """

    __slots__ = ("age", "errors", "source", "value")
    __match_args__ = ("value", "source", "errors")

    value: Any
    source: str
    errors: Errors
    age: float | None

    def __init__(
        self,
        value: Any,
        source: str = PRIMARY,
        errors: Mapping[str, BaseException] | Iterable[Any] = (),
        age: float | None = None,
    ) -> None:
        if not isinstance(source, str):
            raise TypeError(f"source must be the name of a source, not {source!r}")
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "source", source)
        object.__setattr__(self, "errors", Errors(errors))
        object.__setattr__(self, "age", age)

    @property
    def degraded(self) -> bool:
        """Whether it is not the primary's answer of now or of within the fresh time."""
        return self.source not in (PRIMARY, FRESH)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.value, self.source, self.errors))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"an Outcome cannot be changed; {name} cannot be set")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"an Outcome cannot be changed; {name} cannot be deleted")

    def _key(self) -> tuple[Any, ...]:
        return (self.value, self.source, self.errors, self.age)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Outcome) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        age = "" if self.age is None else f", age={self.age:.3f}"
        return f"Outcome({self.value!r}, {self.source!r}, {self.errors!r}{age})"

    def __reduce__(self) -> Any:
        return (Outcome, (*self, self.age))

"""The program's warning filters in its workers, without the imports that they stand for.

A filter names a class of warnings, and packages add filters with classes of their own: numpy does, so that sending the
classes would make every worker of a program that uses numpy import numpy. A warning of a class cannot be given before
the module of that class is imported; until then its filter is kept back, and put in its place after the import.

Left out: filters whose class cannot be found by its name, and those of `__main__`, which is another one in a worker.
"""

from __future__ import annotations

import sys

from shmrt.process.after_import import after_import

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    Words = str | tuple[str, int] | None
    Row = tuple[str, Words, str, str, Words, int]

__all__ = ["apply_filters", "describe_filters"]


def describe_filters() -> list[Row]:
    """A plain row for each filter, taken now: action, message, module and name of the class, module, line."""
    import _warnings

    rows = []
    for action, message, category, module, line in _warnings.filters:
        home, name = category.__module__, category.__qualname__
        if home != "__main__" and _find(home, name) is category:
            rows.append((action, _plain(message), home, name, _plain(module), line))
    return rows


def apply_filters(rows: list[Row]) -> None:
    """Makes them this process's filters, those of classes that are not here yet as soon as they are."""
    import _warnings

    filters = [found for row in rows if (found := _filter(tuple(row))) is not None]  # type: ignore[arg-type]
    if list(_warnings.filters) != filters:
        _warnings.filters[:] = filters
        _changed()
    for home in {row[2] for row in rows if row[2] not in sys.modules}:
        after_import(home, lambda module: _put_back(rows, module.__name__))


def _put_back(rows: list[Row], home: str) -> None:
    """Puts the filters of one module before the first of those that stood behind them."""
    warnings: Any = sys.modules.get("warnings")
    if warnings is None:
        import _warnings as warnings
    filters = warnings.filters
    known = [_filter(tuple(row)) for row in rows]  # type: ignore[arg-type]
    for at, row in enumerate(rows):
        found = known[at]
        if row[2] != home or found is None:
            continue
        if found in filters:
            filters.remove(found)  # by the module itself, which put it first
        behind = [filters.index(later) for later in known[at + 1 :] if later in filters]
        filters.insert(min(behind, default=len(filters)), found)
    _changed()


def _changed() -> None:
    import _warnings

    changed = getattr(_warnings, "_filters_mutated", None) or getattr(_warnings, "_filters_mutated_lock_held", None)
    if changed is not None:
        changed()


def _filter(row: Row) -> tuple[Any, ...] | None:
    action, message, home, name, module, line = row
    category = _find(home, name)
    return None if category is None else (action, _pattern(message), category, _pattern(module), line)


def _find(home: str, name: str) -> Any:
    thing: Any = sys.modules.get(home)
    for part in name.split("."):
        thing = getattr(thing, part, None)
    return thing if isinstance(thing, type) else None


def _plain(words: Any) -> Words:
    return words if words is None or isinstance(words, str) else (str(words.pattern), int(words.flags))


def _pattern(words: Words | list[Any]) -> Any:
    return words if words is None or isinstance(words, str) else _Pattern(*words)


class _Pattern:
    """A regular expression that is compiled at its first use: most workers warn of nothing."""

    __slots__ = ("_compiled", "flags", "pattern")

    def __init__(self, pattern: str, flags: int) -> None:
        self.pattern = pattern
        self.flags = flags
        self._compiled: Any = None

    def match(self, text: str) -> Any:
        if self._compiled is None:
            import re

            self._compiled = re.compile(self.pattern, self.flags)
        return self._compiled.match(text)

    def __eq__(self, other: object) -> bool:
        words = (getattr(other, "pattern", None), getattr(other, "flags", None))
        return words == (self.pattern, self.flags)

    def __hash__(self) -> int:
        return hash((self.pattern, self.flags))

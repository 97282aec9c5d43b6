"""Functions with a guard around them: how they are made and pickled.

>>> from shmrt import CircuitBreaker
>>> @CircuitBreaker("doctest-wrapping")
... def double(value):
...     "Twice the value."
...     return 2 * value
>>> double(2), double.__name__, double.__doc__
(4, 'double', 'Twice the value.')
"""

from __future__ import annotations

import functools
import sys

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["check_function", "reduce_call", "wrap_call"]


def check_function(function: Any, guard: str) -> None:
    """Whether it can be decorated."""
    if isinstance(function, (staticmethod, classmethod)):
        raise TypeError(f"{guard} goes below @{type(function).__name__}, next to the function, not above it")
    if not callable(function):
        raise TypeError(f"{guard} decorates a function, not {function!r}; call(fn, ...) calls one")


def wrap_call(guard: Any, function: Any) -> Any:
    """A callable that looks like the function, with the guard around it."""
    return functools.update_wrapper(guard._wrap(function), function)


def reduce_call(wrapped: Any, guard: Any, function: Any) -> Any:
    """For pickle: its name, where others find it under that name; else guard and function."""
    module = getattr(wrapped, "__module__", None)
    path = getattr(wrapped, "__qualname__", None)
    if module is not None and path is not None and module != "__main__":
        found: Any = sys.modules.get(module)
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is wrapped:
            return path
    return (wrap_call, (guard, function))

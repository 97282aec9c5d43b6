"""The functions a pool knows: each is pickled once and sent once to a worker, then named by its number.

An importable function is found again by its name, which is all that is sent (a worker that has only such functions and
plain values never loads pickle). A function by value (a lambda,
a closure, whatever lives in `__main__`) is the sum of its code, defaults, closure cells and the globals it names;
as long as these are the same immutable objects its pickle is the same, and it is not made again. If one of
them is mutable, the pickle is made each time and compared.

The table is bounded: the function used longest ago makes room, and workers learn it anew should it come back.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType

from shmrt import _native

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    Parts: TypeAlias = tuple[tuple[Any, ...], tuple[Any, ...], tuple[Any, ...]]
    Sent: TypeAlias = bytes | tuple[str, str]  # a pickle of (function, retry_on), or module and qualified name

__all__ = ["FunctionTable", "dumps"]

_FUNCTIONS_MAX = 512
_BY_NAME = (FunctionType, BuiltinFunctionType, type)  # what plain pickle, too, would send as module and name
_IMMUTABLE = (int, float, complex, str, bytes, bool, type(None), CodeType, ModuleType, BuiltinFunctionType, range)


def dumps(value: object) -> bytes:
    """Plain pickle; cloudpickle where that fails or where the value lives in `__main__`.

    Raises what pickling raises, with a note that names the value.
    """
    from _pickle import dumps as plain_dumps  # the module around it costs more than it does

    try:
        data = plain_dumps(value, 5)
        if b"__main__" not in data:
            return data
    except Exception:
        pass
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(value, 5))
    except Exception as error:
        error.add_note(f"shmrt: {_describe(value)} cannot be sent to a worker")
        raise


def _describe(value: object) -> str:
    try:
        return repr(value)[:200]
    except Exception:
        return f"an object of type {type(value).__name__}"


def is_importable(function: object) -> bool:
    """Whether a worker finds this very object by module and name."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__" or "<" in name:
        return False
    found: object = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is function


class _Finder:
    """Finds the objects that make up a function by value, and where each of them is."""

    def __init__(self) -> None:
        self.functions: list[tuple[FunctionType, CodeType, tuple[Any, ...] | None]] = []  # with those that it names
        self.names: list[tuple[dict[str, Any], str, object]] = []
        self.cells: list[tuple[CellType, object]] = []

    def take(self, function: FunctionType, depth: int) -> bool:
        """Adds those of one more. False: something may change in place, or it goes too deep."""
        code, defaults = function.__code__, function.__defaults__
        if depth > 4 or function.__kwdefaults__ or function.__dict__:
            return False
        self.functions.append((function, code, defaults))
        found: list[object] = list(defaults or ())
        for cell in function.__closure__ or ():
            try:
                found.append(cell.cell_contents)
            except ValueError:
                return False
            self.cells.append((cell, found[-1]))
        for name in _global_names(code):
            found.append(function.__globals__.get(name))
            self.names.append((function.__globals__, name, found[-1]))
        return all(self._may_have(value, depth) for value in found)

    def _may_have(self, value: object, depth: int) -> bool:
        if type(value) in _IMMUTABLE or (isinstance(value, (FunctionType, type)) and is_importable(value)):
            return True
        if not isinstance(value, FunctionType):
            return False
        return any(known is value for known, _, _ in self.functions) or self.take(value, depth + 1)


def parts_of(function: object) -> Parts | None:
    """For `_native.parts_are_same`. None for what is no plain function, or has parts that may change in place."""
    if not isinstance(function, FunctionType):
        return None
    finder = _Finder()
    if not finder.take(function, 0):
        return None
    return tuple(finder.functions), tuple(finder.names), tuple(finder.cells)


def _global_names(code: CodeType) -> tuple[str, ...]:
    names = list(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names += _global_names(constant)
    return tuple(names)


class _Entry:
    __slots__ = ("fixed", "function", "number", "parts", "retry_on", "sent")

    def __init__(self, function: object, retry_on: object, sent: Sent, number: int, fixed: bool) -> None:
        self.function = function  # kept alive, so that its id stays its own
        self.retry_on = retry_on
        self.sent = sent
        self.number = number
        self.fixed = fixed
        self.parts = None if fixed else parts_of(function)


class FunctionTable:
    """Numbers for functions. `add` and `drop` are the hub's. What is sent alike shares a number."""

    def __init__(self, add: Callable[[object], int], drop: Callable[[int], None]) -> None:
        self._add = add
        self._drop = drop
        self._entries: OrderedDict[tuple[int, int], _Entry] = OrderedDict()
        self._numbers: dict[Sent, list[int]] = {}  # what is sent -> [number, entries that use it]

    def number(self, function: Any, retry_on: Any) -> tuple[int, Parts | bool | None]:
        """(number, how long it is this object's: True for good, as long as these parts are the same, or only now)."""
        key = (id(function), id(retry_on))
        if isinstance(function, MethodType):  # a new object at each access
            key = (id(function.__func__) ^ id(function.__self__), id(retry_on))
        entry = self._entries.get(key)
        if entry is not None:
            if entry.fixed:
                self._entries.move_to_end(key)
                return entry.number, True
            if entry.parts is not None and _native.parts_are_same(entry.parts):
                self._entries.move_to_end(key)
                return entry.number, entry.parts
        fixed = is_importable(function)
        sent: Sent
        if fixed and retry_on is None and type(function) in _BY_NAME:
            sent = (function.__module__, function.__qualname__)
        else:
            sent = dumps((function, retry_on))
        if entry is not None:
            if entry.sent == sent:
                entry.parts = parts_of(function)
                self._entries.move_to_end(key)
                return entry.number, entry.parts
            del self._entries[key]
            self._leave(entry)
        known = self._numbers.get(sent)
        if known is None:
            number = self._add(Pickled(sent) if isinstance(sent, bytes) else sent)
            known = self._numbers[sent] = [number, 0]
        known[1] += 1
        entry = self._entries[key] = _Entry(function, retry_on, sent, known[0], fixed)
        while len(self._entries) > _FUNCTIONS_MAX:
            self._leave(self._entries.popitem(last=False)[1])
        return known[0], True if fixed else entry.parts

    def _leave(self, entry: _Entry) -> None:
        known = self._numbers[entry.sent]
        known[1] -= 1
        if known[1] == 0:
            del self._numbers[entry.sent]
            self._drop(entry.number)


class Pickled:
    """Something pickled already: it unpickles as what it holds, and is not pickled twice."""

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> Any:
        from _pickle import loads

        return (loads, (self.data,))

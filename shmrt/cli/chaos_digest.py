"""One number for a value, the same for equal values: what `chaos` compares outputs by.

It goes by value, not by bytes of a pickle: how often an object is shared inside the value, the order in sets and dicts,
and whether bytes come as bytes, bytearray or memoryview make no difference. Arrays count by type, shape and content;
other objects by what pickle would keep of them. Two values that no pickle could tell apart have one number.

    >>> digest({"a": 1, "b": [2.5, "c"]}) == digest({"b": [2.5, "c"], "a": 1})
    True
    >>> digest(1) == digest(1.0), digest([1, 2]) == digest([2, 1]), digest(b"x") == digest("x")
    (False, False, False)
"""

from __future__ import annotations

import copyreg
import struct
import types
from hashlib import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    _Take = Callable[[bytes], None]

__all__ = ["digest"]

_BYTES = 8
_NAMED = (type, types.FunctionType, types.BuiltinFunctionType, types.ModuleType)


def digest(value: Any) -> int:
    """64 bits. Never raises: of a value that cannot be taken apart only the type counts."""
    try:
        return int.from_bytes(_part(value, ()), "little")
    except Exception:  # the value's own methods failed, or it is nested too deep
        return int.from_bytes(blake2b(_name(type(value)), digest_size=_BYTES).digest(), "little")


def _part(value: Any, above: tuple[int, ...]) -> bytes:
    state = blake2b(digest_size=_BYTES)
    _feed(state.update, value, above)
    return state.digest()


def _name(thing: Any) -> bytes:
    module, name = getattr(thing, "__module__", ""), getattr(thing, "__qualname__", getattr(thing, "__name__", ""))
    return f"{module}.{name}".encode("utf-8", "surrogatepass")


def _sized(take: _Take, tag: bytes, content: bytes) -> None:
    take(tag + struct.pack("<Q", len(content)))
    take(content)


def _feed(take: _Take, value: Any, above: tuple[int, ...]) -> None:
    kind = type(value)
    if value is None or kind is bool:
        take(b"N" if value is None else b"T" if value else b"F")
    elif kind is int:
        _sized(take, b"i", value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True))
    elif kind is float:
        take(b"f" + struct.pack("<d", value))
    elif kind is str:
        _sized(take, b"s", value.encode("utf-8", "surrogatepass"))
    elif kind is bytes or kind is bytearray:
        _sized(take, b"b", value)
    elif kind is memoryview:
        _sized(take, b"b", value.tobytes())
    elif isinstance(value, _NAMED):
        _sized(take, b"n", _name(value))
        code = getattr(value, "__code__", None)
        if code is not None:  # lambdas share a name
            _sized(take, b"c", code.co_code)
    elif id(value) in above:  # it lies in itself: so many levels up
        take(b"^" + struct.pack("<Q", len(above) - above.index(id(value))))
    else:
        _feed_parts(take, value, kind, (*above, id(value)))


def _feed_parts(take: _Take, value: Any, kind: type, above: tuple[int, ...]) -> None:
    if kind is list or kind is tuple:
        take((b"l" if kind is list else b"t") + struct.pack("<Q", len(value)))
        for part in value:
            _feed(take, part, above)
    elif kind is dict:
        _any_order(take, b"d", value.items(), above)
    elif kind is set or kind is frozenset:
        _any_order(take, b"e", value, above)
    elif hasattr(value, "dtype") and hasattr(value, "tobytes") and hasattr(value, "shape"):  # numpy's, unimported
        _sized(take, b"a", repr((value.dtype.str, value.dtype.descr, tuple(value.shape))).encode())
        if value.dtype.hasobject:
            _feed(take, value.tolist(), above)
        else:
            _sized(take, b"b", value.tobytes())
    else:
        _feed_object(take, value, kind, above)


def _any_order(take: _Take, tag: bytes, parts: Iterable[Any], above: tuple[int, ...]) -> None:
    found = sorted(_part(part, above) for part in parts)
    take(tag + struct.pack("<Q", len(found)))
    for one in found:
        take(one)


def _feed_object(take: _Take, value: Any, kind: type, above: tuple[int, ...]) -> None:
    """By what pickle would keep: how to make it, its state, and what it contains."""
    reduce: Any = copyreg.dispatch_table.get(kind)
    reduced = value.__reduce_ex__(4) if reduce is None else reduce(value)
    _sized(take, b"o", _name(kind))
    if isinstance(reduced, str):
        _sized(take, b"s", reduced.encode())
        return
    make, arguments, state, items, pairs = (*reduced[:5], None, None, None)[:5]
    _feed(take, make, above)
    _feed(take, arguments, above)
    _feed(take, state, above)
    _feed(take, None if items is None else list(items), above)
    if pairs is not None:
        _any_order(take, b"d", pairs, above)

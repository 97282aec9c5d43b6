"""Decides which worker a key belongs to, and what an item weighs.

`route` gives equal keys equal workers. Strings, bytes and tuples of them get the same worker in every run
whatever the hash seed; every other key is hashed by its own `__hash__`, in one process, so that equality and
route cannot disagree between processes. `weigh` is a cheap estimate in bytes for bounding what is in flight:
it never walks deep, because it runs once per item.

    >>> route("alice", 4) == route("alice", 4), route(1, 3) == route(1.0, 3)
    (True, True)
    >>> weigh(b"x" * 1000) >= 1000
    True
"""

from __future__ import annotations

import sys
import zlib
from typing import Any

__all__ = ["route", "weigh"]

_MASK = 2**64 - 1
_OBJECT = 64


def _hash(key: Any) -> int:
    own: Any = type(
        key
    ).__hash__  # a subclass that keeps it (a named tuple, say) equals the plain value, so goes with it
    if own is str.__hash__:
        return zlib.crc32(str.encode(key, "utf-8", "surrogatepass"))
    if own is bytes.__hash__:
        return zlib.crc32(key)
    if own is tuple.__hash__:
        mixed = 0x9E3779B9
        for part in tuple.__iter__(key):
            mixed = (mixed * 1_000_003 ^ _hash(part)) & _MASK
        return mixed
    return hash(key)


def route(key: Any, workers: int) -> int:
    """The worker of `key`, from 0 to `workers` - 1. Raises TypeError for a key that cannot be hashed."""
    mixed = _hash(key) & _MASK
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & _MASK  # else keys that share a factor share a worker
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & _MASK
    return (mixed ^ (mixed >> 31)) % workers


def weigh(item: Any, depth: int = 2) -> int:
    """About how many bytes `item` holds."""
    kind = type(item)
    if kind is int or kind is float or kind is bool or item is None:
        return 32
    if kind is str or kind is bytes or kind is bytearray:
        return 56 + len(item)
    if kind is list or kind is tuple or kind is set or kind is frozenset:
        count = len(item)
        if not count or not depth:
            return _OBJECT + 40 * count
        total = seen = 0
        for part in item:
            total += weigh(part, depth - 1)
            seen += 1
            if seen == 8:
                break
        return _OBJECT + 8 * count + total * count // seen
    if kind is dict:
        return _OBJECT + 2 * weigh(list(item.items())[:8], depth) * max(1, len(item) // 8)
    try:
        nbytes = getattr(item, "nbytes", None)
        if type(nbytes) is int:
            return _OBJECT + nbytes
        attributes = getattr(item, "__dict__", None)
        if type(attributes) is dict and depth:
            return _OBJECT + weigh(list(attributes.values()), depth - 1)
        return max(_OBJECT, sys.getsizeof(item))
    except Exception:  # an object may break its own attributes; an estimate must not fail for it
        return _OBJECT

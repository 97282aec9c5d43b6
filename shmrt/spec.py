"""Specifications: plain data that says how a ring, a pool or a size is meant to be.

Durations are float seconds; sizes are int bytes or strings such as `"64MiB"`. A wrong value raises
`ValueError` or `TypeError` that names the argument, the value and what is allowed.

    >>> parse_size("64MiB")
    67108864
    >>> parse_duration("250ms")
    0.25
    >>> RingSpec(slots=8).slot_bytes
    512
"""

from __future__ import annotations

import math

TYPE_CHECKING = False  # `typing` and `dataclasses` would be half of what importing this package costs
if TYPE_CHECKING:
    from typing import Any, Literal

    OnFull = Literal["block", "raise", "drop_oldest", "drop_newest"]

__all__ = [
    "OnFull",
    "RingSpec",
    "check_chunk",
    "check_count",
    "check_modules",
    "check_name",
    "check_seconds",
    "check_spin",
    "parse_duration",
    "parse_size",
]

ON_FULL: tuple[OnFull, ...] = ("block", "raise", "drop_oldest", "drop_newest")
NAME_BYTES = 179  # what the registry of names (`native/names.h`) has room for, beside a letter that says what has it

_UNITS = {"": 1, "b": 1}
for _power, _letter in enumerate("kmgt", start=1):
    _UNITS[_letter] = _UNITS[f"{_letter}ib"] = 1024**_power
    _UNITS[f"{_letter}b"] = 1000**_power

_TIMES = {
    "": 1.0,
    "s": 1.0,
    "sec": 1.0,
    "ms": 1e-3,
    "us": 1e-6,
    "ns": 1e-9,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "d": 86400.0,
}


def _split(text: str) -> tuple[str, str]:
    text = text.strip().lower()
    end = len(text)
    while end and not (text[end - 1].isdigit() or text[end - 1] == "."):
        end -= 1
    return text[:end].strip(), text[end:].strip()


def parse_size(value: int | str, argument: str = "size") -> int:
    """Bytes from an int or a string: `4096`, `"64KiB"`, `"8MB"`. Raises ValueError or TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"{argument} must be an int of bytes or a string such as '64MiB', not {value!r}")
    if isinstance(value, int):
        size = value
    else:
        number, unit = _split(value)
        try:
            exact = float(number) * _UNITS[unit]
        except (ValueError, KeyError):
            raise ValueError(f"{argument}={value!r} is not a size; write bytes or a string such as '64MiB'") from None
        if not exact < 2**63 or exact != int(exact):
            raise ValueError(f"{argument}={value!r} is not a whole number of bytes below 2**63")
        size = int(exact)
    if not 0 < size < 2**63:
        raise ValueError(f"{argument}={value!r} must be at least 1 byte and below 2**63")
    return size


def parse_duration(value: float | str, argument: str = "duration") -> float:
    """Seconds from a number or a string: `0.5`, `"250ms"`, `"2h"`. Must be finite and at least 0."""
    if isinstance(value, str):
        number, unit = _split(value)
        try:
            seconds = float(number) * _TIMES[unit]
        except (ValueError, KeyError):
            raise ValueError(
                f"{argument}={value!r} is not a duration; write seconds or a string such as '250ms'"
            ) from None
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be seconds or a string such as '250ms', not {value!r}")
    else:
        try:
            seconds = float(value)
        except OverflowError:  # an int beyond every float
            seconds = math.inf
    if not math.isfinite(seconds) or seconds < 0:
        raise ValueError(f"{argument}={value!r} must be finite and at least 0 seconds")
    return seconds


FOREVER = 3e9
"""Seconds, 95 years: a longer time has no end, and would not fit the nanoseconds that the native core counts."""


def check_seconds(value: float | None, argument: str, *, allow_zero: bool = True) -> float | None:
    """A timeout: None (no limit, also for more than FOREVER, such as inf) or seconds that are not negative."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{argument} must be seconds or None, not {value!r}")
    if value > FOREVER:  # compared first: an int may be too large for a float
        return None
    if value != value or value < 0 or (value == 0 and not allow_zero):
        raise ValueError(f"{argument}={value!r} must be {'at least' if allow_zero else 'more than'} 0 seconds, or None")
    return float(value)


SPIN_MOST = 0.01  # a worker that looks is using a CPU
CHUNK_MOST = 2**16


def check_spin(value: float | None, argument: str = "spin") -> float | None:
    """How long an idle worker looks for its next task before it sleeps: None (as built: 5 microseconds) or seconds."""
    seconds = check_seconds(value, argument)
    if value is not None and (seconds is None or seconds > SPIN_MOST):
        raise ValueError(f"{argument}={value!r} must be from 0 to {SPIN_MOST} seconds")
    return seconds


def check_chunk(value: int | str, argument: str = "chunk") -> int | None:
    """How many items travel in one task: None for `"auto"` (by measured times), or the most."""
    if value == "auto":
        return None
    if isinstance(value, str):
        raise ValueError(f"{argument}={value!r} must be 'auto' or a whole number from 1 to {CHUNK_MOST}")
    return check_count(value, argument, most=CHUNK_MOST)


def check_name(value: object, name: str) -> None:
    """Of a pool or a runtime: None, or something that can be shown and be part of a path."""
    if value is None:
        return
    if not (isinstance(value, str) and value and value.isprintable() and "/" not in value):
        raise ValueError(f"{name}={value!r} must be a printable string without '/'")
    if len(value.encode()) > NAME_BYTES:
        raise ValueError(f"{name}={value!r:.40}... must have at most {NAME_BYTES} bytes, not {len(value.encode())}")


def check_modules(value: Any, name: str) -> tuple[str, ...]:
    """A sequence of module names, which a string is not. Used up once, if it is a generator."""
    modules = tuple(value) if not isinstance(value, str) and hasattr(value, "__iter__") else ()
    if isinstance(value, str) or not hasattr(value, "__iter__") or not all(isinstance(one, str) for one in modules):
        raise TypeError(f"{name} must be a sequence of module names, not {value!r}")
    return modules


def check_count(value: int, argument: str, *, least: int = 1, most: int = 2**31 - 1) -> int:
    """A whole number within bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{argument} must be a whole number, not {value!r}")
    value = value.__index__()
    if not least <= value <= most:
        raise ValueError(f"{argument}={value!r} must be from {least} to {most}")
    return value


class RingSpec:
    """The capacity of a ring and what a `put` does when it is full.

    `slots` is the exact number of messages held; `slot_bytes` is what a message may take inside the ring
    (int or string); larger payloads travel by reference. `on_full`: `block`, `raise`, `drop_oldest`, `drop_newest`.
    """

    __slots__ = ("on_full", "slot_bytes", "slots")
    __match_args__ = ("slots", "slot_bytes", "on_full")

    slots: int
    slot_bytes: int
    on_full: OnFull

    def __init__(self, slots: int = 1024, slot_bytes: int | str = 512, on_full: OnFull = "block") -> None:
        slots = check_count(slots, "slots", most=2**24)
        size = parse_size(slot_bytes, "slot_bytes")
        if not 16 <= size <= 2**26:
            raise ValueError(f"slot_bytes={slot_bytes!r} must be from 16 bytes to 64 MiB")
        if on_full not in ON_FULL:
            raise ValueError(f"on_full={on_full!r} must be one of {', '.join(ON_FULL)}")
        if slots * (size + 64) >= 2**40:
            raise ValueError(f"slots={slots} of slot_bytes={size} take more than 1 TiB; use fewer")
        object.__setattr__(self, "slots", slots)
        object.__setattr__(self, "slot_bytes", size)
        object.__setattr__(self, "on_full", on_full)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a RingSpec cannot be changed; make another one with {name}={value!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a RingSpec cannot be changed; {name} cannot be deleted")

    def _key(self) -> tuple[int, int, str]:
        return (self.slots, self.slot_bytes, self.on_full)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, RingSpec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        return f"RingSpec(slots={self.slots}, slot_bytes={self.slot_bytes}, on_full={self.on_full!r})"

    def __reduce__(self) -> Any:
        return (RingSpec, self._key())

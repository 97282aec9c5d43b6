"""The words of guards: states and counters by number, as `native/breaker.h`, `bulkhead.h` and `bucket.h` count them.

>>> STATES[2]
'half_open'
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["BREAKER", "BUCKET", "BULKHEAD", "COUNTERS", "EVENTS", "STATES", "STEERING", "counters", "number", "row"]

BREAKER, BULKHEAD, BUCKET = 1, 2, 3
KINDS = {BREAKER: "breaker", BULKHEAD: "bulkhead", BUCKET: "rate_limit"}

STATES = ("closed", "open", "half_open", "forced_open", "disabled")
STEERING = {"open": 3, "close": 4, "auto": 0}  # the command line's verbs, and the states that they set

EVENTS = {"closed": "close", "forced_open": "open", "disabled": "disable"}  # `breaker.` and this, else the state itself

COUNTERS = {
    BREAKER: (
        "successes",
        "failures",
        "ignored",
        "slow",
        "refused",
        "trials",
        "lost",
        "late",
        "opened",
        "closed",
    ),
    BULKHEAD: ("taken", "refused", "waited", "timed_out", "lost"),
    BUCKET: ("taken", "refused", "waited"),
}


def number(value: float) -> str:
    """As others must say it: exactly, and the same whether it was given as an int or as a float.

    >>> number(60), number(60.0), number(0.1)
    ('60', '60', '0.1')
    """
    return repr(float(value)).removesuffix(".0")


def counters(kind: int, numbers: tuple[int, ...] | list[int]) -> dict[str, int]:
    """By name."""
    return dict(zip(COUNTERS[kind], numbers, strict=False))


def row(kind: int, name: str, settings: str, facts: tuple[Any, ...], numbers: tuple[int, ...]) -> dict[str, Any]:
    """One guard as people read it. `facts` is empty when its memory is not what shmrt writes."""
    found: dict[str, Any] = {"kind": KINDS.get(kind, "unknown"), "name": name, "settings": settings}
    if not facts or kind not in KINDS:
        return {**found, "state": "corrupt"}
    if kind == BREAKER:
        found["state"] = STATES[facts[0]] if facts[0] < len(STATES) else "corrupt"
        found["retry_after"] = facts[1] / 1e9
    elif kind == BULKHEAD:
        found["state"] = "full" if facts[0] >= facts[2] else "free"
        found.update(in_use=facts[0], waiting=facts[1], max_concurrent=facts[2])
    else:
        found["state"] = "free" if facts[0] else "empty"
        found.update(tokens=facts[0], burst=facts[1])
    return {**found, "counters": counters(kind, numbers)}

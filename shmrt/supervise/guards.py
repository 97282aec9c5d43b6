"""What the root knows and does of breakers, bulkheads and rate limits: it looks at their shared memory, as anybody may.

It maps that memory for the moment of a question only, so that no process forked later inherits it.
"""

from __future__ import annotations

from shmrt import _native
from shmrt.memory.guard_words import EVENTS, STATES, STEERING, row

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["rows", "steer", "steered"]


def rows(slots: _native.Slots) -> list[dict[str, Any]]:
    """One for each guard that a process of the runtime has used, in the order of their first use."""
    return [row(*facts) for facts in _native.GuardArea(slots).list()]


def steer(slots: _native.Slots, name: str, to: str) -> dict[str, Any]:
    """open: forced open; close: disabled, every call passes; auto: closed, and its own master again. The body of the
    answer. KeyError: no breaker of that name; ValueError: no such verb; TimeoutError: a stopped process holds it."""
    if to not in STEERING:
        raise ValueError(to)
    known = [found["name"] for found in rows(slots) if found["kind"] == "breaker"]
    if name not in known:
        raise KeyError(name, known)
    before, now = _native.GuardArea(slots).set_breaker(name, STEERING[to])
    return {"name": name, "was": STATES[before], "state": STATES[now], "already": before == now}


def steered(body: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The notice of it: name, measurements, metadata."""
    about = {"where": body["name"], "kind": "breaker", "state": body["state"], "was": body["was"], "by": "command"}
    return f"breaker.{EVENTS.get(body['state'], body['state'])}", {}, about

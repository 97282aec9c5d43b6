"""Many producers, many consumers: what a shared channel carries from 1 to 4, 4 to 1 and 4 to 4 processes.

Messages a second in all, of a small tuple and of 64 KiB, as in `messages` and beside the channels that several
processes may share; pipes and iceoryx2's Python publisher are not among them. PUSH/PULL of pyzmq has no shared queue:
every consumer has its own, and each producer deals out in turn. Each consumer takes the same number. With fewer CPUs
than processes this is also a measurement of the scheduler, which is why the spread is wide. Not measured: fairness.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench._peers import present
from bench._peers.channels import CHANNELS
from bench._streams import Case, in_turns
from bench._views import GUARANTEES, Pivot

SMOKE = {"shapes": [[4, 1]], "kinds": ["tuple"], "turns": 1, "seconds": 0.01}
FULL = {"shapes": [[1, 4], [4, 1], [4, 4]], "kinds": ["tuple", 1 << 16], "turns": 3, "seconds": 0.2}

VIEWS = (
    Pivot(
        "Tuples/s, one by one",
        "per_s",
        "shape",
        where={"batch": 1, "payload": "tuple"},
        better="more",
        beside=GUARANTEES,
    ),
    Pivot("Tuples/s, 32 at once", "per_s", "shape", where={"batch": 32, "payload": "tuple"}, better="more"),
    Pivot("64 KiB of bytes, messages/s", "per_s", "shape", where={"batch": 1, "payload": 1 << 16}, better="more"),
)


def run(shapes: list[list[int]], kinds: list[int | str], turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    channels, missing = present([channel for channel in CHANNELS if channel.many_to_many])
    yield from missing
    cases = [
        Case(channel, (shape[0], shape[1]), kind, batch)
        for shape in shapes
        for kind in kinds
        for batch in (False, True)
        if not batch or kind == "tuple"
        for channel in channels
    ]
    yield from in_turns(cases, turns, seconds)

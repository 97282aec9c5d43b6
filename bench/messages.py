"""Messages from one process to another, by size, one by one and 32 at once, through each channel that is here.

Messages a second from one producer to one consumer, both in processes of their own and not pinned, which take what the
package offers: `bytes` of a size, or a tuple of seven plain values (112 bytes as a pickle). All channels hold the same
number of messages and wait when full. Median of the turns, with the lowest and highest. `32 at once` uses the
package's own call for many (`own`) or one list as one message (`list`). What arrived is added up, and compared byte
for byte in the warm-up. Not measured: more processes (message_shapes), time of one message (round_trips), arrays
(array_messages), what a message costs in CPU time: iceoryx2 looks all the time, and mp.Queue has a thread that sends.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench._peers import present
from bench._peers.channels import CHANNELS
from bench._streams import Case, in_turns, size_of
from bench._views import GUARANTEES, Pivot, Plot

SMOKE = {"kinds": ["tuple", 16], "turns": 1, "seconds": 0.01}
FULL = {"kinds": ["tuple", 16, 256, 4096, 1 << 16, 1 << 20], "turns": 3, "seconds": 0.15}

BATCHED_MOST = 1 << 16
VIEWS = (
    Pivot("One by one, messages/s by size", "per_s", "payload", where={"batch": 1}, better="more", beside=GUARANTEES),
    Pivot(
        "32 at once, messages/s by size",
        "per_s",
        "payload",
        where={"batch": 32},
        better="more",
        beside={"batched": "by calls of its own, or as one list"},
    ),
    Pivot("One by one, GB/s", "gb_per_s", "payload", where={"batch": 1}, better="more"),
    Plot("messages", "One by one", "per_s", where={"batch": 1, "payload": "tuple"}, y_label="tuples/s", log_y=True),
    Plot("messages-32", "32 at once", "per_s", where={"batch": 32, "payload": "tuple"}, y_label="tuples/s", log_y=True),
)


def run(kinds: list[int | str], turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    channels, missing = present(CHANNELS)
    yield from missing
    cases = [
        Case(channel, (1, 1), kind, batch)
        for kind in kinds
        for batch in (False, True)
        if not batch or size_of(kind) <= BATCHED_MOST
        for channel in channels
    ]
    yield from in_turns(cases, turns, seconds)

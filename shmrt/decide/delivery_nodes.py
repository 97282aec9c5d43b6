"""What is inside the nodes of a pipeline run: entries and their bytes, locks of lanes, open batches, and credit.

A `Work` node holds *entries*: each waits in a queue, runs as part of a task, then holds its outputs until the next
node has room. A `Batch` node holds plain items. The `Outlet` is the consumer's side: what was handed out and not yet
taken. All three answer the same question about themselves, `credit`: how many more items they would take.

Nothing here looks at a neighbour or asks for anything: what moves between nodes is decided in `delivery_flow`, what
runs in `delivery_tasks`.

    >>> work = Work(Node(kind="map", row=0, slots=2), ordered=True, row=Row())
    >>> _ = work.enter("a", None), work.enter("b", None)
    >>> work.held, work.row.taken, work.has_room(), work.credit(1.0)
    (2, 2, False, 0)
    >>> entry = work.queue.popleft()
    >>> work.hold(entry, ["A"], None)
    >>> entry is work.line[0], entry.done
    (True, True)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shmrt.decide.chunking import Pace
from shmrt.decide.delivery_words import Node, Row
from shmrt.decide.routing import weigh

__all__ = ["Batch", "Entry", "Group", "Outlet", "Task", "Work"]

_BATCHED = 64
"""What an item in a batch counts for when the source is asked for more: a batch is bounded by its size alone."""


class Entry:
    """One item inside a work node. `outs is None` until its task came back."""

    __slots__ = ("at", "done", "item", "keys", "lane", "number", "outs", "size", "token")

    def __init__(self, number: int, item: Any, lane: int, size: int) -> None:
        self.number = number
        self.item = item
        self.lane = lane
        self.size = size
        self.outs: Sequence[Any] | None = None
        self.keys: Sequence[tuple[bool, Any]] | None = None
        self.at = 0
        self.done = False
        self.token: Any = None


class Group:
    """Items of one dead task that run again alone, one after the other; `escrow` is the unpaid death."""

    __slots__ = ("entries", "escrow", "lane")

    def __init__(self, entries: Sequence[Entry], escrow: int, lane: int | None) -> None:
        self.entries = deque(entries)
        self.escrow = escrow
        self.lane = lane


@dataclass(slots=True)
class Task:
    """Entries that were sent off together. `stream`: its one entry goes on giving outputs."""

    node: int
    entries: list[Entry]
    lane: int | None
    group: Group | None = None
    stream: bool = False


class Work:
    """The changing half of a work node."""

    __slots__ = (
        *("bytes", "held", "lanes", "line", "load", "locked", "ordered", "pace", "pinned", "plan", "queue"),
        *("row", "running", "stalled", "starving"),
    )

    def __init__(self, plan: Node, ordered: bool, row: Row) -> None:
        self.plan = plan
        self.row = row
        self.ordered = ordered
        self.pinned = plan.keyed or plan.kind == "flat_map"  # a stream must find its worker again
        self.pace = Pace(chosen=plan.chunk)
        self.queue: deque[Entry] = deque()
        self.lanes: list[deque[Entry]] = [deque() for _ in range(plan.workers)] if plan.keyed else []
        self.load = [0] * plan.workers
        self.locked = [0] * plan.workers  # open groups and streams: while there are some, a lane starts nothing new
        self.line: deque[Entry] = deque()  # ordered: every entry, as it came; else: those with something to give
        self.held = 0
        self.bytes = 0
        self.running = 0
        self.stalled = False
        self.starving = False

    def has_room(self) -> bool:
        """An empty node takes an item of any size, else one larger than the bound would never get in."""
        return self.held < self.plan.slots and (self.bytes < self.plan.bytes_most or not self.held)

    def credit(self, mean_size: float) -> int:
        """How many more items of `mean_size` bytes fit (0.0: nothing is known about them yet)."""
        mean = mean_size or self.plan.bytes_most / 16  # nothing known yet: ask for a handful
        room = min(self.plan.slots - self.held, int((self.plan.bytes_most - self.bytes) / mean))
        return room if self.held else max(room, 1)

    def enter(self, item: Any, lane: int | None) -> int:
        """Takes an item in, at the end of its queue; how many bytes it weighs."""
        self.row.taken += 1
        entry = Entry(self.row.taken, item, lane or 0, weigh(item))
        self.held += 1
        self.bytes += entry.size
        if self.ordered:
            self.line.append(entry)
        if self.plan.keyed:
            self.lanes[entry.lane].append(entry)
        else:
            self.queue.append(entry)
        return entry.size

    def enter_outs(self, outs: Sequence[Any]) -> None:
        """Takes in what is no item: outputs that only wait for their turn behind those that came before."""
        entry = Entry(0, None, 0, 0)
        entry.outs, entry.done = outs, True
        self.held += 1
        self.line.append(entry)

    def hold(
        self,
        entry: Entry,
        outs: Sequence[Any],
        keys: Sequence[tuple[bool, Any]] | None,
        *,
        finished: bool = True,
        same: bool = False,
    ) -> None:
        """The entry has outputs now. `same`: they are its item, which was weighed already."""
        entry.outs, entry.keys, entry.at, entry.done = outs, keys, 0, finished
        if not same:
            size = sum(map(weigh, outs))
            self.bytes += size - entry.size
            entry.size = size
        if finished:
            entry.item = None  # the outputs stand for it now
        if not self.ordered:
            self.line.append(entry)

    def leave(self) -> None:
        """The first of the line has given everything."""
        entry = self.line.popleft()
        self.held -= 1
        self.bytes -= entry.size

    def requeue(self, entries: Sequence[Entry], lane: int | None) -> None:
        """Puts back what was not begun.

        In order of arrival, whatever came back before: else a stream that waits for its turn could hold the last
        worker while the item whose turn it is waits for a worker.
        """
        if not entries:
            return
        queue = self.lanes[lane or 0] if self.plan.keyed else self.queue
        merged = sorted((*entries, *queue), key=lambda entry: entry.number)
        queue.clear()
        queue.extend(merged)

    def lock(self, entry: Entry, lane: int | None, token: Any) -> None:
        """The entry is a stream that goes on in this lane's worker; nothing new starts there meanwhile."""
        if entry.token is None:
            entry.lane = lane or 0
            self.locked[entry.lane] += 1
        entry.token = token

    def unlock(self, entry: Entry) -> None:
        """The entry is no stream any more."""
        if entry.token is not None:
            self.locked[entry.lane] -= 1
            entry.token = None


class Batch:
    """The changing half of a batch node: the batch that fills, and the full one that waits for room."""

    __slots__ = ("full", "open", "plan", "row", "since_ns", "stalled", "starving")

    def __init__(self, plan: Node, row: Row) -> None:
        self.plan = plan
        self.row = row
        self.open: list[Any] = []
        self.full: list[Any] | None = None
        self.since_ns = 0
        self.stalled = False
        self.starving = False

    def is_full(self) -> bool:
        return len(self.open) >= self.plan.size

    def credit(self, mean_size: float) -> int:
        """How many more items the open batch takes, whatever their size."""
        return self.plan.size - len(self.open)

    def enter(self, item: Any, now_ns: int) -> int:
        """Takes an item in; a batch's time runs from its first one."""
        self.row.taken += 1
        if not self.open:
            self.since_ns = now_ns
        self.open.append(item)
        return _BATCHED

    def close(self) -> None:
        """The open batch becomes the full one, unless that place is taken or there is nothing to close."""
        if self.full is None and self.open:
            self.full, self.open = self.open, []
            self.row.done += len(self.full)

    def due_ns(self) -> int | None:
        """When the open batch goes out as it is; None: never, or it waits for the full one in front of it."""
        if not self.open or self.full is not None or self.plan.timeout_ns is None:
            return None
        return self.since_ns + self.plan.timeout_ns


class Outlet:
    """The consumer's side: outputs of this step, and the sizes of those that the consumer has not taken yet."""

    __slots__ = ("_bytes", "_bytes_most", "_items", "_sizes", "_slots", "count")

    def __init__(self, slots: int, bytes_most: int) -> None:
        self.count = 0  # outputs in all
        self._slots = slots
        self._bytes_most = bytes_most
        self._bytes = 0
        self._sizes: deque[int] = deque()
        self._items: list[Any] = []

    def has_room(self) -> bool:
        """An empty outlet takes an output of any size."""
        held = len(self._sizes)
        return held < self._slots and (self._bytes < self._bytes_most or not held)

    def credit(self, mean_size: float) -> int:
        """How many more outputs fit; asked only by a run without nodes."""
        return self._slots - len(self._sizes)

    def enter(self, item: Any) -> int:
        """Takes an output in; how many bytes it weighs."""
        size = weigh(item)
        self._items.append(item)
        self._sizes.append(size)
        self._bytes += size
        self.count += 1
        return size

    def taken(self, count: int) -> None:
        """The consumer took the first `count`."""
        for _ in range(min(count, len(self._sizes))):
            self._bytes -= self._sizes.popleft()

    def collect(self) -> list[Any]:
        """The outputs since the last call; they stay in the account until they are taken."""
        items, self._items = self._items, []
        return items

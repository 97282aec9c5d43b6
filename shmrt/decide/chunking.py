"""Decides how many small items travel in one task.

A *chunk* is a list of items that one worker runs in one task, each item with an outcome of its own. Chunks
spread the price of a message over many items; too long a chunk makes results late and a death expensive.
The size follows the measured time per item, so that a chunk takes about `target_ns`:

    nothing measured yet            1 item
    items got slower                believed at once
    items got faster                believed slowly, and a chunk grows at most to twice the last one
    few items wait                  an even share for every worker, so that none idles beside a full one
    a number was chosen             that many, whatever the times say, but no more than an even share

Pure: the caller measures.

    >>> pace = Pace()
    >>> pace.size(waiting=1000, workers=2)
    1
    >>> for _ in range(20):
    ...     count = pace.size(waiting=1000, workers=2)
    ...     pace.observe(count=count, elapsed_ns=count * 10_000)
    >>> pace.size(waiting=1000, workers=2)
    100
    >>> Pace(chosen=64).size(waiting=1000, workers=2), Pace(chosen=64).size(waiting=20, workers=2)
    (64, 5)
    >>> pace.observe(count=100, elapsed_ns=100_000_000)
    >>> pace.size(waiting=1000, workers=2)
    1
"""

from __future__ import annotations

__all__ = ["CHUNK_BYTES", "CHUNK_MOST", "DEPTH_MOST", "TARGET_NS", "Pace"]

TARGET_NS = 1_000_000  # a millisecond: 20 times a round trip, and unnoticeable as latency
CHUNK_MOST = 256
CHUNK_BYTES = 2**20  # bigger items gain nothing from company
DEPTH_MOST = 32


class Pace:
    """The measured pace of one stage, and the sizes that follow from it."""

    __slots__ = ("chosen", "item_ns", "last", "most", "target_ns")

    def __init__(self, target_ns: int = TARGET_NS, most: int = CHUNK_MOST, chosen: int | None = None) -> None:
        self.chosen = chosen
        self.target_ns = target_ns
        self.most = most
        self.item_ns: float | None = None
        self.last = 1

    def observe(self, *, count: int, elapsed_ns: int) -> None:
        """A task of `count` items took `elapsed_ns` in its worker."""
        if count < 1:
            return
        item_ns = max(elapsed_ns, 0) / count
        if self.item_ns is None or item_ns > self.item_ns:
            self.item_ns = item_ns
        else:
            self.item_ns += (item_ns - self.item_ns) * 0.25
        self.last = max(1, min(self.last, self._by_time()) if count < self.last else count)

    def _by_time(self) -> int:
        if self.item_ns is None:
            return 1
        return max(1, min(self.most, round(self.target_ns / max(self.item_ns, 1.0))))

    def size(self, *, waiting: int, workers: int) -> int:
        """How many of `waiting` items the next task takes."""
        share = -(-waiting // (2 * workers))
        if self.chosen is not None:
            return max(1, min(self.chosen, share))
        return max(1, min(self._by_time(), 2 * self.last, share))

    def depth(self) -> int:
        """How many tasks of one item a worker may hold, so that it has work while a result travels."""
        if self.item_ns is None:
            return 2
        return max(2, min(DEPTH_MOST, int(self.target_ns / max(self.item_ns, 1.0))))

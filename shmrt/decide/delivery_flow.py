"""What moves between the nodes of a pipeline run, in which order, and where it has to wait.

Order. A node that must keep order lets its entries leave in the order they came; another lets them leave as they get
outputs. A failure that ends the run travels like an output, behind those that came before it.

Bounds. Nothing moves into a full node. A full node so stops its neighbour, and that its own, up to the source; the
last node is stopped by the consumer. A node that cannot give what it has is *stalled*.

A batch goes out when it is full, when its time is up, or when nothing more can come.

    >>> from shmrt.decide.delivery_words import Node
    >>> book, outlet = Book(rows=1, on_error="skip"), Outlet(slots=1, bytes_most=100)
    >>> nodes = [Batch(Node(kind="batch", row=0, size=2), book.rows[0])]
    >>> flow = Flow(nodes, outlet, book, Tasks(nodes, book))
    >>> for item in "abcd":
    ...     _ = flow.push(0, item, None, 0)
    >>> outlet.collect(), nodes[0].full, nodes[0].stalled
    ([['a', 'b']], ['c', 'd'], True)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shmrt.decide.delivery_book import Book
from shmrt.decide.delivery_nodes import Batch, Entry, Outlet, Work
from shmrt.decide.delivery_tasks import Tasks
from shmrt.decide.delivery_words import Stop
from shmrt.decide.routing import route

__all__ = ["Flow"]


class Flow:
    """The edges of one run. The edge behind the last node, number `len(nodes)`, is the outlet."""

    __slots__ = ("_book", "_end", "_nodes", "_outlet", "_tasks")

    def __init__(self, nodes: Sequence[Work | Batch], outlet: Outlet, book: Book, tasks: Tasks) -> None:
        self._nodes = nodes
        self._end = len(nodes)
        self._outlet = outlet
        self._book = book
        self._tasks = tasks

    # -- entering

    def push(self, index: int, item: Any, lane: int | None, now_ns: int) -> int:
        """Moves an item into a node, or to the consumer behind the last one; how many bytes it counts for."""
        if index == self._end:
            return self._outlet.enter(item)
        node = self._nodes[index]
        if isinstance(node, Work):
            return node.enter(item, lane)
        size = node.enter(item, now_ns)
        if node.is_full():
            node.close()
            self._emit_batch(index, node, now_ns)
        return size

    def _has_room(self, index: int, now_ns: int) -> bool:
        if index == self._end:
            return self._outlet.has_room()
        node = self._nodes[index]
        if isinstance(node, Work):
            return node.has_room()
        return not node.is_full() or (self._emit_batch(index, node, now_ns) and not node.open)

    def _push_stop(self, index: int, stop: Stop, now_ns: int) -> None:
        """Lets a failure travel behind the outputs that came before it."""
        while index < self._end:
            node = self._nodes[index]
            if isinstance(node, Work):
                node.enter_outs((stop,))
                self.emit(index, now_ns)
                return
            index += 1  # a batch left open is not delivered: the failure comes first
        self._book.stop(stop)

    # -- leaving

    def emit(self, index: int, now_ns: int) -> None:
        """Moves on what the node has to give, as far as there is room for it."""
        node = self._nodes[index]
        if isinstance(node, Batch):
            if node.plan.timeout_ns is not None and node.open and now_ns - node.since_ns >= node.plan.timeout_ns:
                node.close()
            self._emit_batch(index, node, now_ns)
            return
        node.stalled = False
        line = node.line
        while line and not self._book.over:
            entry = line[0]
            if entry.outs is None:
                return
            if not self._pass_on(index, node, entry, now_ns):
                node.stalled = True
                return
            if entry.done:
                node.leave()
                continue
            entry.outs = None
            if not node.ordered:
                line.popleft()
            self._tasks.resume(index, node, entry)

    def _pass_on(self, index: int, node: Work, entry: Entry, now_ns: int) -> bool:
        """Moves the outputs of an entry from where it stands; False when some had to stay."""
        outs, keys = entry.outs or (), entry.keys
        row, key_row = node.row, node.plan.key_row
        target = index + 1
        following = self._nodes[target] if target < self._end else None
        while entry.at < len(outs):
            out = outs[entry.at]
            if type(out) is Stop:
                self._push_stop(target, out, now_ns)
                return True
            if not self._has_room(target, now_ns):
                return False
            lane, worked = None, True
            error: Any = None
            if keys is not None:
                worked, key = keys[entry.at]
                if not worked:
                    error = key
                elif following is not None and following.plan.keyed:
                    try:
                        lane = route(key, following.plan.workers)
                    except Exception as problem:  # a key that cannot be hashed fails its own item only
                        worked, error = False, problem
            entry.at += 1
            if node.plan.kind == "key":
                if not worked:  # counted as done when its task came back; it is a failure after all
                    row.done -= 1
                    self._refuse(target, node.plan.row, out, error, now_ns)
                    continue
                row.out += 1
            else:
                row.out += 1
                if key_row is not None:
                    account = self._book.rows[key_row]
                    account.taken += 1
                    if not worked:
                        self._refuse(target, key_row, out, error, now_ns)
                        continue
                    account.done += 1
                    account.out += 1
            self.push(target, out, lane, now_ns)
        return True

    def _refuse(self, target: int, row: int, item: Any, error: BaseException, now_ns: int) -> None:
        """An output whose key is no good fails on its way; the stage of the key is to blame."""
        stop = self._book.blame(row, item, error, 1)
        if stop is not None:
            self._push_stop(target, stop, now_ns)

    def _emit_batch(self, index: int, node: Batch, now_ns: int) -> bool:
        """True when no full batch waits (any more)."""
        while node.full is not None:
            node.stalled = not self._has_room(index + 1, now_ns)
            if node.stalled:
                return False
            batch, node.full = node.full, None
            node.row.out += 1
            self.push(index + 1, batch, None, now_ns)
            if node.is_full():
                node.close()
        node.stalled = False
        return True

    # -- ending

    def drain(self, now_ns: int) -> bool:
        """Once the source is exhausted: True when all is through. A batch that gets nothing more goes out as it is."""
        for index, node in enumerate(self._nodes):
            if isinstance(node, Work):
                if node.held:
                    return False
            else:
                while node.open or node.full is not None:
                    node.close()
                    if not self._emit_batch(index, node, now_ns):
                        return False
        return True

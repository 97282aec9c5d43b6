"""Decides everything about the items of one pipeline run: order, batches, routes, credit, retries, accounts.

The machine is a line of *nodes*. A *work* node's function runs in worker processes; a *batch* node only
collects. An item that enters a work node becomes an *entry*: queued, running, then holding its outputs until the
next node has room for them. Every fact comes in as an event, every wish goes out as an effect:

    event      says                                        effect     asks for
    Fed        the source gave items                       Submit     one task for a pool
    Ended      the source is exhausted, or raised          Deliver    outputs for the consumer
    Done       a task came back                            Letter     a dead letter for the list
    Failed     a task died, raised or could not be sent    Grant      this many more items from the source
    Taken      the consumer took outputs                   Stop       the end of the run with an error
    Tick       time passed (see `wake_ns`)                 Finished   the end of the run

Order. A node that must keep order lets its entries leave in the order they came: all nodes of an ordered run,
and otherwise those before the last routed node, because "same key in order" means the order of the source.

Bounds. A work node holds at most `slots` entries and about `bytes_most` bytes (queued, running and finished
ones together), the consumer's side `out_slots` outputs. A full node stops its neighbour, and so on up to the source.

Deaths. A task of one item is retried by the pool; a task of several whose worker died is sorted out here, by running
its items alone. So an item that always kills costs exactly its `max_attempts` deaths, and an item that never kills
is never charged.

    >>> machine = Delivery((Node(kind="map", row=0),), rows=1)
    >>> machine.step(Fed(["a", "b"]), 0)[0]
    Submit(task_id=0, node=0, items=['a'], lane=None, max_attempts=3, token=None)
    >>> _ = machine.step(Ended(), 1)
    >>> [e.items for e in machine.step(Done(1, ["B"]), 2) if isinstance(e, Deliver)]
    []
    >>> machine.step(Done(0, ["A"]), 3)
    [Deliver(items=['A', 'B']), Finished(error=None)]
    >>> machine.rows[0].done, machine.balanced()
    (2, True)

`Delivery` takes the events and ties the parts together, of which each has one job:

    delivery_nodes    what is inside a node: entries, bytes, batches, credit
    delivery_book     accounts, effects, and what a failure leads to
    delivery_tasks    what runs together, and what becomes of it: deaths, escrow, streams
    delivery_flow     what moves between nodes: order, bounds, the release of outputs
"""

from __future__ import annotations

from collections.abc import Sequence

from shmrt.decide.delivery_book import Book
from shmrt.decide.delivery_flow import Flow
from shmrt.decide.delivery_nodes import Batch, Outlet, Work
from shmrt.decide.delivery_tasks import Tasks
from shmrt.decide.delivery_words import (
    FILTERED,
    LOST,
    Deliver,
    Done,
    Effect,
    Ended,
    Event,
    Failed,
    Fed,
    Finished,
    Grant,
    Letter,
    Many,
    Node,
    OnError,
    Row,
    Stop,
    Submit,
    Taken,
    Tick,
    Wrong,
)

__all__ = [
    "Deliver",
    "Delivery",
    "Done",
    "Effect",
    "Ended",
    "Event",
    "FILTERED",
    "Failed",
    "Fed",
    "Finished",
    "Grant",
    "LOST",
    "Letter",
    "Many",
    "Node",
    "OnError",
    "Row",
    "Stop",
    "Submit",
    "Taken",
    "Tick",
    "Wrong",
]


class Delivery:
    """The state of one run. `step` is the only way to change it; `rows`, `balanced` and `wake_ns` only look."""

    def __init__(
        self,
        plan: Sequence[Node],
        rows: int,
        *,
        ordered: bool = True,
        on_error: OnError = "raise",
        out_slots: int = 1024,
        out_bytes_most: int = 2**26,
    ) -> None:
        last_keyed = max((index for index, node in enumerate(plan) if node.keyed), default=-1)
        self._book = Book(rows, on_error)
        self.rows = self._book.rows
        self.nodes: list[Work | Batch] = [
            Batch(node, self.rows[node.row])
            if node.kind == "batch"
            else Work(node, ordered or index < last_keyed, self.rows[node.row])
            for index, node in enumerate(plan)
        ]
        self.taken = 0  # items from the source
        self._outlet = Outlet(out_slots, out_bytes_most)
        self._tasks = Tasks(self.nodes, self._book)
        self._flow = Flow(self.nodes, self._outlet, self._book, self._tasks)
        self._granted = 0
        self._mean_size = 0.0
        self._source_open = True
        self._source_error: BaseException | None = None

    # -- looking

    @property
    def out(self) -> int:
        """Outputs towards the consumer."""
        return self._outlet.count

    @property
    def repeats(self) -> int:
        """Tasks that came back twice."""
        return self._tasks.repeats

    def balanced(self) -> bool:
        """Nothing is inside, and what each stage took is what the stage before it gave."""
        return self._book.balanced(self.taken, self.out)

    def wake_ns(self) -> int | None:
        """When a Tick is due, or None."""
        times = [node.due_ns() for node in self.nodes if isinstance(node, Batch)]
        return min((time for time in times if time is not None), default=None)

    # -- stepping

    def begin(self, now_ns: int) -> list[Effect]:
        """The effects of the start: the first grant."""
        return self.step(Tick(), now_ns)

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Takes one event; returns what is to be done now. After a Stop or Finished nothing happens any more."""
        self._book.pass_time(self.nodes, now_ns)
        if self._book.over:
            return []
        if isinstance(event, Done):
            self._tasks.done(event)
        elif isinstance(event, Failed):
            self._tasks.failed(event)
        elif isinstance(event, Fed):
            self._on_fed(event, now_ns)
        elif isinstance(event, Taken):
            self._outlet.taken(event.count)
        elif isinstance(event, Ended):
            self._source_open = False
            self._source_error = event.error
        elif not isinstance(event, Tick):
            raise TypeError(f"event must be one of Fed, Ended, Done, Failed, Taken, Tick, not {event!r}")
        return self._pump(now_ns)

    def _pump(self, now_ns: int) -> list[Effect]:
        """Moves everything that can move, from the consumer's end backwards, then starts what can start."""
        for index in range(len(self.nodes) - 1, -1, -1):
            self._flow.emit(index, now_ns)
        # Once a Stop is through, a batch left open is not delivered: the failure comes first.
        drained = not self._source_open and not self._book.over and self._flow.drain(now_ns)
        if not self._book.over:
            for index, node in enumerate(self.nodes):
                if isinstance(node, Work):
                    self._tasks.dispatch(index, node)
                    node.starving = self._source_open and not node.running and not node.held
                else:
                    node.starving = self._source_open and not node.open
            self._grant()
        return self._book.settle(self._outlet.collect(), Finished(self._source_error) if drained else None)

    # -- the source

    def _on_fed(self, event: Fed, now_ns: int) -> None:
        for item in event.items:
            self.taken += 1
            self._granted = max(0, self._granted - 1)
            size = self._flow.push(0, item, None, now_ns)
            self._mean_size = size if not self._mean_size else self._mean_size + (size - self._mean_size) * 0.1

    def _grant(self) -> None:
        """Asks the source for what the first node would take, less what is on its way already."""
        if not self._source_open or self._book.failing:
            return
        first = self.nodes[0] if self.nodes else self._outlet
        count = first.credit(self._mean_size) - self._granted
        if count > 0:
            self._granted += count
            self._book.effects.append(Grant(count))

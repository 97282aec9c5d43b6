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

Deaths. A task that comes back twice is counted and dropped. A task of one item is retried by the pool. When a
worker dies with several items, nobody knows yet which was running: the death goes into *escrow* and the items run
again, one at a time, in order. The first that kills again pays for both deaths and the others are free of suspicion;
if none does, the death came from outside and nobody pays. So an item that always kills costs exactly its
`max_attempts` deaths, and an item that never kills is never charged.

A function that makes more output than fits in one message is a *stream*: its entry gives a group, waits
until that has left the node, and asks its worker for more. A stream is never run again.

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
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shmrt.decide.chunking import CHUNK_BYTES, Pace
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
from shmrt.decide.routing import route, weigh

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


class _Entry:
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


class _Group:
    """Items of one dead task that run again alone, one after the other; `escrow` is the unpaid death."""

    __slots__ = ("entries", "escrow", "lane")

    def __init__(self, entries: Sequence[_Entry], escrow: int, lane: int | None) -> None:
        self.entries = deque(entries)
        self.escrow = escrow
        self.lane = lane


@dataclass(slots=True)
class _Task:
    node: int
    entries: list[_Entry]
    lane: int | None
    group: _Group | None = None
    stream: bool = False


class _Work:
    """The changing half of a work node."""

    __slots__ = (
        *("bytes", "held", "lanes", "line", "load", "locked", "ordered", "pace", "pinned", "plan", "queue"),
        *("running", "stalled", "starving"),
    )

    def __init__(self, plan: Node, ordered: bool) -> None:
        self.plan = plan
        self.ordered = ordered
        self.pinned = plan.keyed or plan.kind == "flat_map"  # a stream must find its worker again
        self.pace = Pace()
        self.queue: deque[_Entry] = deque()
        self.lanes: list[deque[_Entry]] = [deque() for _ in range(plan.workers)] if plan.keyed else []
        self.load = [0] * plan.workers
        self.locked = [0] * plan.workers  # open groups and streams: while there are some, a lane starts nothing new
        self.line: deque[_Entry] = deque()  # ordered: every entry, as it came; else: those with something to give
        self.held = 0
        self.bytes = 0
        self.running = 0
        self.stalled = False
        self.starving = False

    def waiting(self) -> bool:
        return bool(self.queue) or any(self.lanes)


class _Batch:
    """The changing half of a batch node."""

    __slots__ = ("full", "open", "plan", "since_ns", "stalled", "starving")

    def __init__(self, plan: Node) -> None:
        self.plan = plan
        self.open: list[Any] = []
        self.full: list[Any] | None = None
        self.since_ns = 0
        self.stalled = False
        self.starving = False


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
        self.nodes: list[_Work | _Batch] = [
            _Batch(node) if node.kind == "batch" else _Work(node, ordered or index < last_keyed)
            for index, node in enumerate(plan)
        ]
        self.rows = [Row() for _ in range(rows)]
        self.on_error = on_error
        self.taken = 0  # items from the source
        self.out = 0  # outputs towards the consumer
        self.repeats = 0  # tasks that came back twice
        self._end = len(self.nodes)
        self._out_slots = out_slots
        self._out_bytes_most = out_bytes_most
        self._out_bytes = 0
        self._out_sizes: deque[int] = deque()  # of what the consumer has not taken yet
        self._out: list[Any] = []
        self._tasks: dict[int, _Task] = {}
        self._next_task = 0
        self._granted = 0
        self._mean_size = 0.0
        self._source_open = True
        self._source_error: BaseException | None = None
        self._failing = False
        self._over = False
        self._effects: list[Effect] = []
        self._then_ns: int | None = None

    # -- looking

    def balanced(self) -> bool:
        """Nothing is inside, and what each stage took is what the stage before it gave."""
        given = self.taken
        for row in self.rows:
            if row.pending or row.taken != given:
                return False
            given = row.out
        return given == self.out

    def wake_ns(self) -> int | None:
        """When a Tick is due, or None."""
        times = [
            node.since_ns + node.plan.timeout_ns
            for node in self.nodes
            if isinstance(node, _Batch) and node.open and node.full is None and node.plan.timeout_ns is not None
        ]
        return min(times, default=None)

    # -- stepping

    def begin(self, now_ns: int) -> list[Effect]:
        """The effects of the start: the first grant."""
        return self.step(Tick(), now_ns)

    def step(self, event: Event, now_ns: int) -> list[Effect]:
        """Takes one event; returns what is to be done now. After a Stop or Finished nothing happens any more."""
        self._account(now_ns)
        if self._over:
            return []
        if isinstance(event, Done):
            self._on_done(event)
        elif isinstance(event, Failed):
            self._on_failed(event)
        elif isinstance(event, Fed):
            self._on_fed(event, now_ns)
        elif isinstance(event, Taken):
            for _ in range(min(event.count, len(self._out_sizes))):
                self._out_bytes -= self._out_sizes.popleft()
        elif isinstance(event, Ended):
            self._source_open = False
            self._source_error = event.error
        elif not isinstance(event, Tick):
            raise TypeError(f"event must be one of Fed, Ended, Done, Failed, Taken, Tick, not {event!r}")
        return self._pump(now_ns)

    def _account(self, now_ns: int) -> None:
        passed = 0 if self._then_ns is None else max(0, now_ns - self._then_ns)
        self._then_ns = now_ns
        if passed:
            for node in self.nodes:
                if node.stalled:
                    self.rows[node.plan.row].blocked_ns += passed
                elif node.starving:
                    self.rows[node.plan.row].starved_ns += passed

    def _pump(self, now_ns: int) -> list[Effect]:
        """Moves everything that can move, from the consumer's end backwards, then starts what can start."""
        for index in range(self._end - 1, -1, -1):
            self._emit(index, now_ns)
        drained = self._drain(now_ns)
        if not self._over:
            for index, node in enumerate(self.nodes):
                if isinstance(node, _Work):
                    self._dispatch(index, node)
                    node.starving = self._source_open and not node.running and not node.held
                else:
                    node.starving = self._source_open and not node.open
            self._grant()
        effects, self._effects = self._effects, []
        # A Stop ends the run wherever in this step it was decided: it comes last, and nothing is started beside it.
        stops = [effect for effect in effects if isinstance(effect, Stop)][:1]
        if stops:
            effects = [effect for effect in effects if not isinstance(effect, (Stop, Submit))]
        if self._out:
            effects.append(Deliver(self._out))
            self._out = []
        effects += stops
        if drained and not self._over:
            self._over = True
            effects.append(Finished(self._source_error))
        return effects

    def _drain(self, now_ns: int) -> bool:
        """True once all is through. A batch that gets nothing more goes out as it is."""
        if self._source_open:
            return False
        for index, node in enumerate(self.nodes):
            if isinstance(node, _Work):
                if node.held:
                    return False
            else:
                while node.open or node.full is not None:
                    self._close(node)
                    if not self._emit_batch(index, node, now_ns):
                        return False
        return True

    def _grant(self) -> None:
        if not self._source_open or self._failing:
            return
        if not self.nodes:
            room = self._out_slots - len(self._out_sizes)
        else:
            first = self.nodes[0]
            if isinstance(first, _Batch):
                room = first.plan.size - len(first.open)
            else:
                mean = self._mean_size or first.plan.bytes_most / 16  # nothing known yet: ask for a handful
                room = min(first.plan.slots - first.held, int((first.plan.bytes_most - first.bytes) / mean))
                if not first.held:
                    room = max(room, 1)
        count = room - self._granted
        if count > 0:
            self._granted += count
            self._effects.append(Grant(count))

    # -- entering

    def _on_fed(self, event: Fed, now_ns: int) -> None:
        for item in event.items:
            self.taken += 1
            self._granted = max(0, self._granted - 1)
            size = self._push(0, item, None, now_ns)
            self._mean_size = size if not self._mean_size else self._mean_size + (size - self._mean_size) * 0.1

    def _room(self, index: int, now_ns: int) -> bool:
        if index == self._end:
            held = len(self._out_sizes)
            return held < self._out_slots and (self._out_bytes < self._out_bytes_most or not held)
        node = self.nodes[index]
        if isinstance(node, _Batch):
            return len(node.open) < node.plan.size or (self._emit_batch(index, node, now_ns) and not node.open)
        return node.held < node.plan.slots and (node.bytes < node.plan.bytes_most or not node.held)

    def _push(self, index: int, item: Any, lane: int | None, now_ns: int) -> int:
        if index == self._end:
            size = weigh(item)
            self._out.append(item)
            self._out_sizes.append(size)
            self._out_bytes += size
            self.out += 1
            return size
        node = self.nodes[index]
        self.rows[node.plan.row].taken += 1
        if isinstance(node, _Batch):
            if not node.open:
                node.since_ns = now_ns
            node.open.append(item)
            if len(node.open) >= node.plan.size:
                self._close(node)
                self._emit_batch(index, node, now_ns)
            return 64
        entry = _Entry(self.rows[node.plan.row].taken, item, lane or 0, weigh(item))
        node.held += 1
        node.bytes += entry.size
        if node.ordered:
            node.line.append(entry)
        if node.plan.keyed:
            node.lanes[entry.lane].append(entry)
        else:
            node.queue.append(entry)
        return entry.size

    def _push_stop(self, index: int, stop: Stop, now_ns: int) -> None:
        """Lets a failure travel behind the outputs that came before it."""
        while index < self._end:
            node = self.nodes[index]
            if isinstance(node, _Work):
                entry = _Entry(0, None, 0, 0)
                entry.outs, entry.done = (stop,), True
                node.held += 1
                node.line.append(entry)
                self._emit(index, now_ns)
                return
            index += 1  # a batch left open is not delivered: the failure comes first
        if not self._over:
            self._over = True
            self._effects.append(stop)

    # -- leaving

    def _emit(self, index: int, now_ns: int) -> None:
        node = self.nodes[index]
        if isinstance(node, _Batch):
            due = node.plan.timeout_ns is not None and node.open and now_ns - node.since_ns >= node.plan.timeout_ns
            if due:
                self._close(node)
            self._emit_batch(index, node, now_ns)
            return
        node.stalled = False
        line = node.line
        while line and not self._over:
            entry = line[0]
            if entry.outs is None:
                return
            if not self._pass_on(index, node, entry, now_ns):
                node.stalled = True
                return
            if entry.done:
                line.popleft()
                node.held -= 1
                node.bytes -= entry.size
                continue
            entry.outs = None
            if not node.ordered:
                line.popleft()
            self._resume(index, node, entry)

    def _pass_on(self, index: int, node: _Work, entry: _Entry, now_ns: int) -> bool:
        outs, keys = entry.outs or (), entry.keys
        row, key_row = self.rows[node.plan.row], node.plan.key_row
        target = index + 1
        following = self.nodes[target] if target < self._end else None
        while entry.at < len(outs):
            out = outs[entry.at]
            if type(out) is Stop:
                self._push_stop(target, out, now_ns)
                return True
            if not self._room(target, now_ns):
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
                    account = self.rows[key_row]
                    account.taken += 1
                    if not worked:
                        self._refuse(target, key_row, out, error, now_ns)
                        continue
                    account.done += 1
                    account.out += 1
            self._push(target, out, lane, now_ns)
        return True

    def _close(self, node: _Batch) -> None:
        if node.full is None and node.open:
            node.full, node.open = node.open, []
            self.rows[node.plan.row].done += len(node.full)

    def _emit_batch(self, index: int, node: _Batch, now_ns: int) -> bool:
        """True when no full batch waits (any more)."""
        while node.full is not None:
            node.stalled = not self._room(index + 1, now_ns)
            if node.stalled:
                return False
            batch, node.full = node.full, None
            self.rows[node.plan.row].out += 1
            self._push(index + 1, batch, None, now_ns)
            if len(node.open) >= node.plan.size:
                self._close(node)
        node.stalled = False
        return True

    # -- running

    def _dispatch(self, index: int, node: _Work) -> None:
        plan, pace = node.plan, node.pace
        if plan.keyed:
            depth = pace.depth() if plan.single and plan.kind != "flat_map" else 1
            for lane, queue in enumerate(node.lanes):
                while queue and not node.locked[lane] and node.load[lane] < depth:
                    self._start(index, node, queue, lane)
            return
        if node.pinned:  # one task or stream per worker: a death then interrupts no stream but the one that ran
            for lane in range(plan.workers):
                if node.queue and not node.locked[lane] and not node.load[lane]:
                    self._start(index, node, node.queue, lane)
            return
        depth = pace.depth() if plan.single else 2
        while node.queue and node.running < plan.workers * depth:
            self._start(index, node, node.queue, None)

    def _start(self, index: int, node: _Work, queue: deque[_Entry], lane: int | None) -> None:
        workers = 1 if node.plan.keyed else node.plan.workers
        count = (
            1 if node.plan.single or node.plan.max_attempts < 2 else node.pace.size(waiting=len(queue), workers=workers)
        )
        entries = [queue.popleft()]
        size = entries[0].size
        while len(entries) < count and queue and size < CHUNK_BYTES:
            entries.append(queue.popleft())
            size += entries[-1].size
        attempts = node.plan.max_attempts if len(entries) == 1 else 1  # a shared death comes back here
        self._submit(_Task(index, entries, lane), node, attempts)

    def _submit(self, task: _Task, node: _Work, max_attempts: int) -> None:
        task_id, self._next_task = self._next_task, self._next_task + 1
        self._tasks[task_id] = task
        node.running += 1
        if task.lane is not None:
            node.load[task.lane] += 1
        items = [] if task.stream else [entry.item for entry in task.entries]
        token = task.entries[0].token if task.stream else None
        self._effects.append(Submit(task_id, task.node, items, task.lane, max_attempts, token))

    def _resume(self, index: int, node: _Work, entry: _Entry) -> None:
        self._submit(_Task(index, [entry], entry.lane, stream=True), node, 1)

    def _take(self, task_id: int) -> tuple[_Task, _Work] | None:
        task = self._tasks.pop(task_id, None)
        if task is None:
            self.repeats += 1
            return None
        node = self.nodes[task.node]
        assert isinstance(node, _Work)
        node.running -= 1
        if task.lane is not None:
            node.load[task.lane] -= 1
        return task, node

    def _on_done(self, event: Done) -> None:
        found = self._take(event.task_id)
        if found is None:
            return
        task, node = found
        row = self.rows[node.plan.row]
        started = len(task.entries) if event.started is None else max(1, min(event.started, len(task.entries)))
        retries = max(0, event.attempts - 1)
        row.retried += retries
        row.deaths += retries
        row.busy_ns += max(0, event.elapsed_ns)
        if not task.stream:
            node.pace.observe(count=started, elapsed_ns=event.elapsed_ns)
        passes = node.plan.kind in ("filter", "key")  # these give back what they were given
        marks, keys = event.marks, event.keys
        for place in range(started):
            entry = task.entries[place]
            mark = marks.get(place) if marks else None
            if mark is None:
                row.done += 1
                value = entry.item if passes else event.values[place]
                self._hold(node, entry, (value,), None if keys is None else (keys[place],), same=passes)
            else:
                self._on_mark(task, node, entry, mark, event.attempts)
        if started < len(task.entries):
            self._requeue(node, task.entries[started:], task.lane)
        if task.group is not None:
            self._after_single(task, node, guilty=retries > 0)

    def _on_mark(self, task: _Task, node: _Work, entry: _Entry, mark: Any, attempts: int) -> None:
        row = self.rows[node.plan.row]
        if mark is FILTERED:
            row.filtered += 1
            self._hold(node, entry, (), None)
        elif isinstance(mark, Many):
            if mark.token is None:
                row.done += 1
                self._unlock(node, entry)
            else:
                if entry.token is None:
                    entry.lane = task.lane or 0
                    node.locked[entry.lane] += 1
                entry.token = mark.token
            self._hold(node, entry, mark.outs, mark.keys, finished=mark.token is None)
        elif isinstance(mark, Wrong):
            self._fail(node, entry, mark.error, attempts)
        else:
            self._fail(node, entry, RuntimeError(f"the worker that held the rest of this stream is gone ({mark})"), 1)

    def _unlock(self, node: _Work, entry: _Entry) -> None:
        if entry.token is not None:
            node.locked[entry.lane] -= 1
            entry.token = None

    def _on_failed(self, event: Failed) -> None:
        if event.cause == "fatal":
            if not self._over:
                self._over = True
                self._effects.append(Stop(event.error))
            return
        found = self._take(event.task_id)
        if found is None:
            return
        task, node = found
        row = self.rows[node.plan.row]
        crashed = event.cause == "crashed"
        attempts = max(0, event.attempts)
        row.deaths += attempts if crashed else max(0, attempts - 1)
        row.retried += max(0, attempts - 1)
        if len(task.entries) > 1:
            row.retried += crashed
            group = _Group(task.entries, int(crashed), task.lane)
            if task.lane is not None:
                node.locked[task.lane] += 1
            self._next_single(task.node, node, group)
            return
        guilty = crashed or attempts > 1
        owed = task.group.escrow if task.group is not None and guilty else 0
        self._fail(node, task.entries[0], event.error, attempts + owed)
        if task.group is not None:
            self._after_single(task, node, guilty=guilty)

    def _after_single(self, task: _Task, node: _Work, *, guilty: bool) -> None:
        group = task.group
        assert group is not None
        stream = task.entries[0].token is not None
        if group.entries and not stream and not (guilty and group.escrow):
            self._next_single(task.node, node, group)
            return
        if group.lane is not None:
            node.locked[group.lane] -= 1
        self._requeue(node, group.entries, group.lane)

    def _next_single(self, index: int, node: _Work, group: _Group) -> None:
        entry = group.entries.popleft()
        task = _Task(index, [entry], group.lane, group=group)
        self._submit(task, node, max(1, node.plan.max_attempts - group.escrow))

    def _requeue(self, node: _Work, entries: Sequence[_Entry], lane: int | None) -> None:
        if not entries:
            return
        queue = node.lanes[lane or 0] if node.plan.keyed else node.queue
        # In order of arrival, whatever came back before: else a stream that waits for its turn could hold the
        # last worker while the item whose turn it is waits for a worker.
        merged = sorted((*entries, *queue), key=lambda entry: entry.number)
        queue.clear()
        queue.extend(merged)

    # -- outcomes

    def _hold(
        self,
        node: _Work,
        entry: _Entry,
        outs: Sequence[Any],
        keys: Sequence[tuple[bool, Any]] | None,
        *,
        finished: bool = True,
        same: bool = False,
    ) -> None:
        entry.outs, entry.keys, entry.at, entry.done = outs, keys, 0, finished
        if not same:
            size = sum(map(weigh, outs))
            node.bytes += size - entry.size
            entry.size = size
        if finished:
            entry.item = None  # the outputs stand for it now
        if not node.ordered:
            node.line.append(entry)

    def _fail(self, node: _Work, entry: _Entry, error: BaseException, attempts: int) -> None:
        row = node.plan.row
        self.rows[row].failed += 1
        item = entry.item
        self._unlock(node, entry)
        stop = self._blame(row, item, error, attempts)
        self._hold(node, entry, () if stop is None else (stop,), None)

    def _refuse(self, target: int, row: int, item: Any, error: BaseException, now_ns: int) -> None:
        self.rows[row].failed += 1
        stop = self._blame(row, item, error, 1)
        if stop is not None:
            self._push_stop(target, stop, now_ns)

    def _blame(self, row: int, item: Any, error: BaseException, attempts: int) -> Stop | None:
        if self.on_error == "raise":
            self._failing = True  # no more from the source; what came before the failure still goes out
            return Stop(error, item, attempts, row)
        if self.on_error == "dead_letter":
            self._effects.append(Letter(item, error, attempts, row))
        return None

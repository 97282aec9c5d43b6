"""Which entries of a node run as one task, and what becomes of them when it comes back, dies, or goes on.

A task takes as many entries as its node's pace allows, from one lane if the node has keys. It comes back once, as
`done` or `failed`; a task that comes back twice is counted and dropped.

Deaths. A task of one item is retried by the pool. When a worker dies with several items, nobody knows yet which was
running: the death goes into *escrow* and the items run again, one at a time, in order. The first that kills again
pays for both deaths and the others are free of suspicion; if none does, the death came from outside and nobody pays.

Streams. A `flat_map` with more output than fits in one message comes back with a token: its lane stays locked, the
entry holds what came, and `resume` asks the same worker for more. A stream is never run again.

    >>> from shmrt.decide.delivery_words import Node
    >>> book = Book(rows=1, on_error="skip")
    >>> work = Work(Node(kind="map", row=0), ordered=True, row=book.rows[0])
    >>> tasks = Tasks([work], book)
    >>> _ = work.enter("a", None)
    >>> tasks.dispatch(0, work)
    >>> book.effects
    [Submit(task_id=0, node=0, items=['a'], lane=None, max_attempts=3, token=None)]
    >>> tasks.done(Done(0, ["A"])), tasks.done(Done(0, ["A"])), tasks.repeats
    (None, None, 1)
    >>> work.line[0].outs, work.running
    (('A',), 0)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

from shmrt.decide.chunking import CHUNK_BYTES
from shmrt.decide.delivery_book import Book
from shmrt.decide.delivery_nodes import Batch, Entry, Group, Task, Work
from shmrt.decide.delivery_words import FILTERED, Done, Failed, Many, Stop, Submit, Wrong

__all__ = ["Tasks"]


class Tasks:
    """The tasks that are out. `repeats` counts those that came back twice."""

    __slots__ = ("_book", "_next", "_nodes", "_out", "repeats")

    def __init__(self, nodes: Sequence[Work | Batch], book: Book) -> None:
        self.repeats = 0
        self._nodes = nodes
        self._book = book
        self._out: dict[int, Task] = {}
        self._next = 0

    # -- starting

    def dispatch(self, index: int, node: Work) -> None:
        """Starts as much of the node's queue as its workers can hold."""
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

    def resume(self, index: int, node: Work, entry: Entry) -> None:
        """Asks the worker that holds the rest of a stream for more of it."""
        self._submit(Task(index, [entry], entry.lane, stream=True), node, 1)

    def _start(self, index: int, node: Work, queue: deque[Entry], lane: int | None) -> None:
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
        self._submit(Task(index, entries, lane), node, attempts)

    def _submit(self, task: Task, node: Work, max_attempts: int) -> None:
        task_id, self._next = self._next, self._next + 1
        self._out[task_id] = task
        node.running += 1
        if task.lane is not None:
            node.load[task.lane] += 1
        items = [] if task.stream else [entry.item for entry in task.entries]
        token = task.entries[0].token if task.stream else None
        self._book.effects.append(Submit(task_id, task.node, items, task.lane, max_attempts, token))

    # -- coming back

    def _take(self, task_id: int) -> tuple[Task, Work] | None:
        """The task that came back and its node; None for one that did before."""
        task = self._out.pop(task_id, None)
        if task is None:
            self.repeats += 1
            return None
        node = self._nodes[task.node]
        assert isinstance(node, Work)
        node.running -= 1
        if task.lane is not None:
            node.load[task.lane] -= 1
        return task, node

    def done(self, event: Done) -> None:
        """Every entry that was begun gets its outcome; the others wait again."""
        found = self._take(event.task_id)
        if found is None:
            return
        task, node = found
        row = node.row
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
                node.hold(entry, (value,), None if keys is None else (keys[place],), same=passes)
            else:
                self._on_mark(task, node, entry, mark, event.attempts)
        if started < len(task.entries):
            node.requeue(task.entries[started:], task.lane)
        if task.group is not None:
            self._after_single(task, node, guilty=retries > 0)

    def _on_mark(self, task: Task, node: Work, entry: Entry, mark: Any, attempts: int) -> None:
        """The outcome of an entry that is not just a value."""
        if mark is FILTERED:
            node.row.filtered += 1
            node.hold(entry, (), None)
        elif isinstance(mark, Many):
            if mark.token is None:
                node.row.done += 1
                node.unlock(entry)
            else:
                node.lock(entry, task.lane, mark.token)
            node.hold(entry, mark.outs, mark.keys, finished=mark.token is None)
        elif isinstance(mark, Wrong):
            self._fail(node, entry, mark.error, attempts)
        else:
            self._fail(node, entry, RuntimeError(f"the worker that held the rest of this stream is gone ({mark})"), 1)

    # -- failing

    def failed(self, event: Failed) -> None:
        """A task of one item has failed for good; the items of a larger one run again, each alone."""
        if event.cause == "fatal":
            self._book.stop(Stop(event.error))
            return
        found = self._take(event.task_id)
        if found is None:
            return
        task, node = found
        row = node.row
        crashed = event.cause == "crashed"
        attempts = max(0, event.attempts)
        row.deaths += attempts if crashed else max(0, attempts - 1)
        row.retried += max(0, attempts - 1)
        if len(task.entries) > 1:
            row.retried += crashed
            group = Group(task.entries, int(crashed), task.lane)
            if task.lane is not None:
                node.locked[task.lane] += 1
            self._next_single(task.node, node, group)
            return
        guilty = crashed or attempts > 1
        owed = task.group.escrow if task.group is not None and guilty else 0
        self._fail(node, task.entries[0], event.error, attempts + owed)
        if task.group is not None:
            self._after_single(task, node, guilty=guilty)

    def _fail(self, node: Work, entry: Entry, error: BaseException, attempts: int) -> None:
        """The entry has no outputs; at most a Stop, which leaves the node in its place."""
        item = entry.item
        node.unlock(entry)
        stop = self._book.blame(node.plan.row, item, error, attempts)
        node.hold(entry, () if stop is None else (stop,), None)

    def _after_single(self, task: Task, node: Work, *, guilty: bool) -> None:
        """The next of the group, unless the death is paid for or this one became a stream: then the rest is free."""
        group = task.group
        assert group is not None
        stream = task.entries[0].token is not None
        if group.entries and not stream and not (guilty and group.escrow):
            self._next_single(task.node, node, group)
            return
        if group.lane is not None:
            node.locked[group.lane] -= 1
        node.requeue(group.entries, group.lane)

    def _next_single(self, index: int, node: Work, group: Group) -> None:
        entry = group.entries.popleft()
        task = Task(index, [entry], group.lane, group=group)
        self._submit(task, node, max(1, node.plan.max_attempts - group.escrow))

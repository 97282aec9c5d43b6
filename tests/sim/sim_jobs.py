"""The work of a pool: the real `Delivery` machine with a source, a consumer and workers that die, and its account.

Every item is a number in a tuple, so that its way can be followed. What becomes of it is drawn when the job begins: it
comes out, a filter drops it, a function raises for it, or it kills every worker that runs it. The account knows one
outcome of each item and accepts no second one, and it knows how often a worker died with it: nobody fails for the death
of a worker that had never held it.
"""

from __future__ import annotations

from typing import Any

from sim_world import MS, S, World

from shmrt.decide.delivery import (
    FILTERED,
    Deliver,
    Delivery,
    Done,
    Ended,
    Failed,
    Fed,
    Finished,
    Grant,
    Letter,
    Node,
    Stop,
    Submit,
    Taken,
    Tick,
    Wrong,
)


class Crash(Exception):
    """A worker died with the item."""


class Raised(Exception):
    """The item's own function raised."""


class Refused(Exception):
    """A guard in front of the dependency did not let the item's call pass, or the dependency failed it."""


class Task:
    """What was submitted, and how often a worker died with it."""

    __slots__ = ("deaths", "id", "items", "job", "lane", "most", "node", "published")

    def __init__(self, job: Job, submit: Submit) -> None:
        self.job = job
        self.id = submit.task_id
        self.node = submit.node
        self.items = submit.items
        self.lane = submit.lane
        self.most = submit.max_attempts
        self.deaths = 0


def plan_of(work: Any, workers: int) -> tuple[list[Node], int]:
    """The nodes, and the number of rows. A batch comes last."""
    kinds = sorted(work.kinds, key=lambda kind: kind == "batch")
    if "batch" in kinds:
        kinds = kinds[: kinds.index("batch") + 1]
    nodes: list[Node] = []
    row = 0
    for place, kind in enumerate(kinds):
        if kind == "batch":
            nodes.append(Node(kind="batch", row=row, size=3, timeout_ns=S // 2))
            row += 1
            continue
        feeds_keys = kinds[place + 1 : place + 2] == ["keyed"]
        nodes.append(
            Node(
                kind="filter" if kind == "filter" else "map",
                row=row,
                workers=workers,
                slots=work.slots,
                max_attempts=work.attempts,
                single=work.attempts == 1 or (work.guarded and place == 0),
                keyed=kind == "keyed",
                key_row=row + 1 if feeds_keys else None,
            )
        )
        row += 1 + feeds_keys
    return nodes, row


class Job:
    """One run over one pool."""

    def __init__(self, world: World, pools: Any, crew: Any) -> None:
        self.w = world
        self.pools = pools
        self.crew = crew
        self.work = work = crew.plan.work
        self.nodes, rows = plan_of(work, crew.plan.workers)
        self.machine = Delivery(self.nodes, rows, ordered=work.ordered, on_error=work.on_error, out_slots=8)
        self.over = False
        self.fed = 0
        self.untaken = 0
        self.ended = False
        self.out: list[int] = []
        self.outcomes: dict[int, str] = {}
        self.held: dict[int, int] = {}  # deaths of workers that held it
        self.own: dict[int, int] = {}  # deaths that it caused
        self.outside = 0
        self.fate = [self._fate(number) for number in range(work.count)]

    def _fate(self, number: int) -> tuple[str, int]:
        """What happens to an item, and in which node."""
        w, last = self.w, len(self.nodes) - (self.nodes[-1].kind == "batch")
        if w.fault(self.work.poison):
            return "poison", int(w.draw() * last)
        if w.fault(self.work.wrong):
            return "wrong", int(w.draw() * last)
        filters = [place for place, node in enumerate(self.nodes) if node.kind == "filter"]
        return ("filtered", filters[0]) if filters and number % 3 == 0 else ("out", -1)

    def __repr__(self) -> str:
        return f"<job {len(self.outcomes)} of {self.work.count}, {self.machine.rows}>"

    # ---- driving the machine ----------------------------------------------------------------------------------------
    def begin(self) -> None:
        self.w.note("job", self.crew.body.id, self.work)
        self._apply(self.machine.begin(self.w.now))

    def tick(self) -> None:
        due = self.machine.wake_ns()
        if due is not None and due <= self.w.now:
            self.step(Tick())

    def step(self, event: Any) -> None:
        if not self.over:
            self.w.stale = True
            self._apply(self.machine.step(event, self.w.now))
            self.pools.dispatch(self.crew)

    def _apply(self, effects: list[Any]) -> None:
        w = self.w
        for effect in effects:
            if self.over:
                w.broken("delivery", f"{effect} after the end")
            if isinstance(effect, Submit):
                if effect.lane is not None and not 0 <= effect.lane < self.crew.plan.workers:
                    w.broken("delivery", f"no lane {effect.lane}")
                self.pools.submit(self.crew, Task(self, effect))
            elif isinstance(effect, Deliver):
                for value in effect.items:
                    for item in value if isinstance(value, list) else [value]:
                        self._settle(item[0], "out")
                self.untaken += len(effect.items)
                w.later(w.spread(20 * MS), self._take)
            elif isinstance(effect, Letter):
                self._failed(effect.item[0], effect.error)
            elif isinstance(effect, Grant):
                w.later(w.spread(5 * MS), self._feed, effect.count)
            else:
                self._end(effect)
        stops = sum(row.failed for row in self.machine.rows) if self.work.on_error == "raise" else 0  # on their way
        for node in self.machine.nodes:
            if node.plan.kind != "batch" and node.held > node.plan.slots + stops:
                w.broken("bounds", f"{node.held} entries in a node of {node.plan.slots}")

    def _feed(self, count: int) -> None:
        if self.over:
            return
        first, self.fed = self.fed, min(self.fed + count, self.work.count)
        if self.fed > first:
            self.step(Fed([(number,) for number in range(first, self.fed)]))
        if self.fed == self.work.count and not self.ended:
            self.ended = True
            self.step(Ended())

    def _take(self) -> None:
        count, self.untaken = self.untaken, 0
        if count:
            self.step(Taken(count))

    def lose_pool(self) -> None:
        """Whatever is under way ends with the pool."""
        if not self.over:
            self.w.note("job lost its pool", self.crew.body.id)
            self._apply(self.machine.step(Failed(0, RuntimeError("the pool is gone"), "fatal"), self.w.now))
            if not self.over:
                self.w.broken("delivery", "a run goes on without its pool")

    # ---- workers and the hub ----------------------------------------------------------------------------------------
    def run(self, worker: Any, task: Task) -> None:
        """The worker begins it."""
        w = self.w
        for place, item in enumerate(task.items):
            if self.fate[item[0]] == ("poison", task.node):
                w.later(w.spread(self.work.cost_ns * (place + 1)), self._kill, worker, task, item[0])
                return
        if w.fault(self.pools.mix.die):
            w.later(w.spread(self.work.cost_ns * len(task.items)), self._kill, worker, task, None)
        elif self.work.guarded and task.node == 0:
            self.pools.guards.call(worker, lambda good: self._finish(worker, task, good))
        else:
            w.later(w.spread(self.work.cost_ns * len(task.items)), self._finish, worker, task, True)

    def _kill(self, worker: Any, task: Task, guilty: int | None) -> None:
        if worker.stopped:
            worker.waiting.append((self._kill, (worker, task, guilty)))
        elif worker.task is task and not worker.gone:
            if guilty is not None:
                self.own[guilty] = self.own.get(guilty, 0) + 1
            self.pools.die(worker, "killed")

    def _finish(self, worker: Any, task: Task, good: bool) -> None:
        """The result is published: from now on it counts, whatever becomes of the worker."""
        if worker.stopped:
            worker.waiting.append((self._finish, (worker, task, good)))
            return
        if worker.task is not task or worker.gone:
            return
        w = self.w
        worker.task, worker.served = None, True
        values: list[Any] = []
        marks: dict[int, Any] = {}
        for place, item in enumerate(task.items):
            what, node = self.fate[item[0]]
            values.append(item)
            if not good:
                marks[place] = Wrong(Refused())
            elif node == task.node and what in ("wrong", "filtered"):
                marks[place] = FILTERED if what == "filtered" else Wrong(Raised())
            if marks.get(place) is FILTERED:
                self._settle(item[0], "filtered")
        keys = [(True, item[0] % 5) for item in task.items] if self.nodes[task.node].key_row is not None else None
        cost = self.work.cost_ns * len(task.items)
        done = Done(task.id, values, marks, keys, elapsed_ns=cost, attempts=task.deaths + 1)
        w.later(w.spread(MS), self.step, done)
        if w.fault(self.pools.mix.again):
            w.later(w.spread(50 * MS), self.step, done)
        self.pools.dispatch(self.crew)

    def hub_lost(self, task: Task) -> bool:
        """Its worker died with it: whether it is begun again."""
        task.deaths += 1
        self.outside += 1
        for item in task.items:
            self.held[item[0]] = self.held.get(item[0], 0) + 1
        if task.deaths < task.most:
            return True
        self.w.later(self.w.spread(MS), self.step, Failed(task.id, Crash(), "crashed", task.deaths))
        return False

    # ---- the account ------------------------------------------------------------------------------------------------
    def _settle(self, number: int, outcome: str) -> None:
        w = self.w
        if number in self.outcomes:
            w.broken("two outcomes", f"item {number} is {outcome} and was {self.outcomes[number]}")
        if number >= self.fed:
            w.broken("delivery", f"item {number} was never accepted")
        what, node = self.fate[number]
        if outcome in ("out", "filtered") and what != outcome:
            w.broken("wrong outcome", f"item {number} is {outcome}; it should be {what} in node {node}")
        self.outcomes[number] = outcome
        if outcome == "out":
            if self.work.ordered and self.out and number < self.out[-1]:
                w.broken("order", f"item {number} came after {self.out[-1]}")
            self.out.append(number)

    def _failed(self, number: int, error: BaseException) -> None:
        """It failed: there has to be a reason."""
        w, what = self.w, self.fate[number][0]
        if isinstance(error, Crash):
            if self.held.get(number, 0) < self.work.attempts:
                w.broken("charged", f"item {number} failed after {self.held.get(number, 0)} of {self.work.attempts}")
            if self.own.get(number, 0) > self.work.attempts + self.outside:
                w.broken("charged", f"item {number} killed {self.own[number]} workers")
        elif isinstance(error, Raised) and what != "wrong":
            w.broken("wrong outcome", f"item {number} raised; it should be {what}")
        elif isinstance(error, Refused) and not self.work.guarded:
            w.broken("wrong outcome", f"item {number} was refused by nobody")
        self._settle(number, "failed")

    def _end(self, effect: Stop | Finished) -> None:
        w = self.w
        self.over = True
        w.note("job ends", self.crew.body.id, effect)
        if isinstance(effect, Finished):
            rows, missing = self.machine.rows, self.work.count - len(self.outcomes)
            if not self.machine.balanced() or any(row.pending for row in rows):
                w.broken("balance", rows)
            if sum(row.deaths for row in rows) != self.outside:
                w.broken("deaths", f"{rows} and {self.outside} workers died")
            if self.work.on_error == "skip":
                missing -= sum(row.failed for row in rows)
            if missing or self.machine.taken != self.work.count:
                w.broken("lost items", f"{missing} of {self.work.count} have no outcome: {self.outcomes}")
        elif effect.row is not None:
            self._failed(effect.item[0], effect.error)
            if self.work.on_error != "raise":
                w.broken("delivery", f"{effect} although on_error is {self.work.on_error}")
        elif not self.crew.closed:
            w.broken("delivery", f"{effect} and the pool is there")
        self.pools.job_ended(self.crew)

"""Pools: the real `Keeper` decides when a worker is started; what hands out tasks and counts attempts is a model.

The hub (`native/hub_*.c`) is no pure decision, so here it is as plain as it can be: a task that its worker had not
begun goes back, one that was running costs an attempt and is begun again while it has some, a result that was
published counts even if its worker dies right after. Who hears of a death first, the hub or the root, is chance.

The keeper's judge keeps its own count: a pool breaks when, and only when, its starts or restarts say so, and a worker
is started neither before the backoff allows it nor after.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from sim_jobs import Job, Task
from sim_tree import Body, TreePart
from sim_world import MS, S, World

from shmrt.decide.health import HEALTHY
from shmrt.decide.health_facts import pool_rows
from shmrt.decide.keeper import Keeper

PERIOD = 10 * S


class Worker:
    __slots__ = (
        *("crew", "doomed", "gone", "held", "news_at", "number", "reason", "ready", "served", "stopped"),
        *("task", "told_ready", "waiting"),
    )

    def __init__(self, crew: Crew, number: int) -> None:
        self.crew = crew
        self.number = number
        self.news_at = 0
        self.ready = self.told_ready = self.gone = self.stopped = self.served = self.doomed = False
        self.task: Task | None = None
        self.reason = ""
        self.waiting: list[tuple[Any, ...]] = []
        self.held: list[Any] = []  # permits and trials of guards, which die with it


class Crew:
    """One incarnation of a pool."""

    def __init__(self, body: Body) -> None:
        self.body = body
        self.plan = body.plan
        self.keeper = Keeper(body.plan.workers, max_restarts=body.plan.max_restarts, period_ns=PERIOD)
        self.workers: list[Worker] = []  # until the root knows that they are gone
        self.queue: deque[Task] = deque()
        self.lanes: list[deque[Task]] = [deque() for _ in range(body.plan.workers)]
        self.job: Job | None = None
        self.closed = self.told = False
        self.done = 0  # jobs that came to their end in the liveness phase
        # the judge's
        self.weight = self.fruitless = 0
        self.spent = False  # it has to be broken
        self.restarts: list[int] = []
        self.not_before = self.not_after = 0

    @property
    def ready(self) -> int:
        return sum(worker.told_ready for worker in self.workers)


class PoolPart:
    def __init__(self, world: World, tree: TreePart, guards: Any) -> None:
        self.w = world
        self.tree = tree
        self.mix = tree.mix
        self.guards = guards
        self.crews: list[Crew] = []
        self.broken = self.jobs_done = 0
        tree.pools = self

    # ---- as a part of the world -------------------------------------------------------------------------------------
    def due(self) -> int | None:
        found = None
        now = self.w.now
        for crew in self.crews:
            times = []
            wait = crew.keeper.wait_ns(now, alive=len(crew.workers))
            if wait is not None:
                times.append(now + wait)
            if crew.job is not None and (wake := crew.job.machine.wake_ns()) is not None:
                times.append(wake)
            if times and (found is None or min(times) < found):
                found = min(times)
        return found

    def tick(self) -> None:
        for crew in list(self.crews):
            if crew.job is not None:
                crew.job.tick()
            self.settle(crew)

    def forgive(self, late: int) -> None:
        """A keeper has no deadline that somebody could miss."""

    # ---- the root ---------------------------------------------------------------------------------------------------
    def open(self, body: Body) -> None:
        crew = body.crew = Crew(body)
        self.crews.append(crew)
        self.settle(crew)
        self.w.later(self.w.spread(100 * MS), self.employ, crew)

    def close(self, crew: Crew) -> None:
        """The pool is gone, with its workers; whoever waits for results hears that."""
        crew.closed = True
        self.crews.remove(crew)
        for worker in crew.workers:
            worker.gone = True
            worker.task = None
        if crew.job is not None:
            crew.job.lose_pool()

    def settle(self, crew: Crew) -> None:
        if crew.closed:
            return
        w, alive = self.w, len(crew.workers)
        w.stale = True
        count = crew.keeper.starts(w.now, alive=alive)
        self._judge_starts(crew, count, alive)
        for _ in range(count):
            self._hire(crew)
        if crew.keeper.broken and not crew.told:
            crew.told = True
            self.broken += 1
            w.note("pool broken", crew.body.id)
            w.later(w.spread(MS), self.tree.die, crew.body, "broken")

    def _hire(self, crew: Crew) -> None:
        w, mix = self.w, self.mix
        numbers = [worker.number for worker in crew.workers]
        number = next(number for number in range(len(numbers) + 1) if number not in numbers)
        worker = Worker(crew, number)
        crew.workers.append(worker)
        w.note("hire", crew.body.id, number)
        if w.fault(mix.fail) or (crew.plan.cursed and w.fault(0.5)):
            w.later(w.spread(30 * MS), self.die, worker, w.pick(("exit", "exit", "killed")))
        else:
            w.later(w.spread(3 * S if w.fault(mix.slow) else 30 * MS), self._ready, worker)

    def _hear_ready(self, worker: Worker) -> None:
        crew = worker.crew
        if crew.closed:
            return
        worker.told_ready = True
        crew.weight = 0
        crew.keeper.on_ready()
        self.settle(crew)

    def _reap(self, worker: Worker) -> None:
        crew, w = worker.crew, self.w
        if crew.closed:
            return
        crew.workers.remove(worker)
        if worker.ready:
            if not worker.told_ready:  # ready and dead between two looks
                crew.weight = 0
                crew.keeper.on_ready()
            self._judge_gone(crew, progressed=worker.served)
            crew.keeper.on_gone(w.now, worker.reason, ordered=False, progressed=worker.served, random=w.draw())
        else:
            outside = worker.reason == "killed"
            ready = crew.ready
            self._judge_failed(crew, ready, outside)
            crew.keeper.on_start_failed(w.now, worker.reason, ready=ready, random=w.draw(), from_outside=outside)
        self._judge_broken(crew)
        self.settle(crew)

    # ---- the keeper's judge -----------------------------------------------------------------------------------------
    def _judge_failed(self, crew: Crew, ready: int, outside: bool) -> None:
        crew.weight += 1 if outside else 30
        crew.restarts.append(self.w.now)
        if not outside:
            steps = crew.weight // 30 - 1
            full = 0 if steps <= 0 else min(10 * MS * 2 ** (steps - 1), S)
            self._allow(crew, full)
        if not ready and crew.weight >= 30 * max(3, crew.plan.workers):
            crew.spent = True

    def _judge_gone(self, crew: Crew, progressed: bool) -> None:
        crew.restarts.append(self.w.now)
        crew.fruitless = 0 if progressed else crew.fruitless + 1
        if not progressed:
            steps = crew.fruitless - 3
            self._allow(crew, 0 if steps <= 0 else min(MS * 2 ** (steps - 1), 20 * MS))

    def _allow(self, crew: Crew, full: int) -> None:
        now = self.w.now
        crew.not_before = max(crew.not_before, now + full - int(full * 0.5) - 1)
        crew.not_after = max(crew.not_after, now + full)

    def _judge_broken(self, crew: Crew) -> None:
        limit, now = crew.plan.max_restarts, self.w.now
        if limit is not None and sum(at >= now - PERIOD for at in crew.restarts) > limit:
            crew.spent = True
        if crew.keeper.broken != crew.spent:
            self.w.broken("pool", f"{crew.body.id} broken: {crew.keeper.broken}, weight {crew.weight}")

    def _judge_starts(self, crew: Crew, count: int, alive: int) -> None:
        now, wanted = self.w.now, crew.plan.workers
        if count and now < crew.not_before:
            self.w.broken("pool", f"{crew.body.id} hires {crew.not_before - now} ns too early")
        if alive + count > wanted:
            self.w.broken("pool", f"{crew.body.id} has {alive}, hires {count}, wants {wanted}")
        if alive + count < wanted and not crew.keeper.broken and now >= crew.not_after:
            self.w.broken("pool", f"{crew.body.id} has {alive} of {wanted} and hires nobody")

    # ---- workers ----------------------------------------------------------------------------------------------------
    def _ready(self, worker: Worker) -> None:
        if worker.gone:
            return
        w, mix = self.w, self.mix
        worker.ready = True
        w.news(worker, self._hear_ready, worker)
        if worker.crew.plan.cursed and w.fault(0.8):
            w.later(w.spread(20 * MS), self.fall, worker)
        elif mix.kill and not w.calm:
            w.later(w.spread(mix.kill), self.fall, worker)
        if w.fault(mix.stop):
            w.later(w.spread(3 * S), self._halt, worker)
        self.dispatch(worker.crew)

    def fall(self, worker: Worker) -> None:
        if not self.w.calm:
            self.die(worker, self.w.pick(("killed", "exit")))

    def _halt(self, worker: Worker) -> None:
        if not worker.gone and not self.w.calm:
            worker.stopped = True
            self.w.later(self.w.spread(2 * S), self._resume, worker)

    def _resume(self, worker: Worker) -> None:
        worker.stopped = False
        waiting, worker.waiting = worker.waiting, []
        for call, args in waiting:
            call(*args)
        self.dispatch(worker.crew)

    def die(self, worker: Worker, reason: str) -> None:
        if worker.gone:
            return
        w = self.w
        worker.gone, worker.reason = True, reason
        w.note("worker dies", worker.crew.body.id, worker.number, reason)
        w.news(worker, self._reap, worker)
        w.later(w.spread(3 * MS), self._hub_hears, worker)

    # ---- the hub ----------------------------------------------------------------------------------------------------
    def employ(self, crew: Crew) -> None:
        """Somebody has work for the pool, if it is free."""
        w = self.w
        if crew.closed or crew.told or crew.job is not None or (w.calm and crew.done):
            return
        crew.job = Job(w, self, crew)
        crew.job.begin()

    def job_ended(self, crew: Crew) -> None:
        crew.job = None
        crew.queue.clear()
        for lane in crew.lanes:
            lane.clear()
        for worker in crew.workers:
            worker.task = None
        self.jobs_done += 1
        crew.done += self.w.calm
        self.w.later(self.w.spread(3 * S), self.employ, crew)

    def submit(self, crew: Crew, task: Task) -> None:
        (crew.queue if task.lane is None else crew.lanes[task.lane]).append(task)

    def dispatch(self, crew: Crew) -> None:
        if crew.closed:
            return
        for worker in crew.workers:
            if worker.ready and not worker.gone and not worker.stopped and worker.task is None:
                queue = crew.lanes[worker.number] or crew.queue
                if queue:
                    worker.task = queue.popleft()
                    worker.task.job.run(worker, worker.task)

    def _hub_hears(self, worker: Worker) -> None:
        crew, task = worker.crew, worker.task
        worker.task = None
        if crew.closed or task is None or crew.job is not task.job:
            return
        if task.job.hub_lost(task):
            (crew.queue if task.lane is None else crew.lanes[task.lane]).appendleft(task)
        self.dispatch(crew)

    def restless(self) -> str | None:
        for crew in self.crews:
            if crew.told:
                return f"{crew.body.id} is broken and still there"
            if crew.ready != crew.plan.workers:
                return f"{crew.body.id} has {crew.ready} of {crew.plan.workers} workers"
            if not crew.done:
                return f"{crew.body.id} has finished no work: {crew.job}"
        return None

    def look_at_all(self) -> None:
        """At rest: a pool that has its workers is well."""
        facts = [{"name": crew.body.id, "wanted": crew.keeper.workers, "ready": crew.ready} for crew in self.crews]
        for row in pool_rows([fact | {"broken": False, "reasons": [], "number": 0} for fact in facts]):
            if row["status"] != HEALTHY:
                self.w.broken("health of a pool", row)
        for crew in self.crews:
            if crew.keeper.reasons and crew.plan.max_restarts is None:
                self.w.broken("pool", f"{crew.body.id} still gives {crew.keeper.reasons}")

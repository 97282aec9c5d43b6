"""One run of a pipeline: threads and pools around the machine of `shmrt.decide.delivery`.

    feeder thread       pulls the source, only as many items as the machine granted; may block in it for ever
    coordinator thread  owns the machine: takes events from one inbox, submits tasks, fills the outbox
    pool dispatchers    put finished futures into the inbox and do nothing else
    consumer            whoever iterates: takes from the outbox, says how much it took

Nobody but the coordinator changes the machine, under a lock that `report` takes too. The consumer waits in the outbox
only, so Ctrl-C reaches it. Leaving early stops the feeder, cancels what is queued and ends the workers; a source
that blocks keeps its (daemon) thread until it returns, and no item that it gives then is used.

If a worker dies, its pool retries or reports; the machine decides. If a pool breaks or the runtime goes down, the
consumer gets that error. If this module itself fails, the consumer gets that too, instead of waiting for ever.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError
from functools import partial
from typing import TYPE_CHECKING, Any

from shmrt.clock import MONOTONIC
from shmrt.decide.delivery import (
    FILTERED,
    LOST,
    Deliver,
    Delivery,
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
    OnError,
    Row,
    Stop,
    Submit,
    Taken,
    Tick,
    Wrong,
)
from shmrt.errors import PoisonMessage, RuntimeDown, WorkerCrashed
from shmrt.pipeline_plan import Work, make_plan, out_ring, pickle_functions
from shmrt.pipeline_report import DeadLetter, Progress, Report, make_report
from shmrt.pipeline_serial import blame
from shmrt.process.stage import install, run_chunk, run_more, unpack_error

if TYPE_CHECKING:
    from shmrt.pipeline import Pipeline

__all__ = ["Run"]

ACK_MOST = 64  # taken items are told in handfuls, or when there is nothing else to do
POLL_S = 0.1  # only while a progress line is drawn

_FED = "fed"
_STOP = "stop"


def _pool_factory(engine: Any) -> Callable[..., Any]:
    name = engine if isinstance(engine, str) else getattr(engine, "name", None)
    if name == "local":
        make: Callable[..., Any] | None = getattr(engine, "pool", None)
        if callable(make):
            return make
        from shmrt.pool import Pool

        return Pool
    raise ValueError(f"engine={engine!r} cannot run a pipeline; there is the engine 'local'")


def _letter_error(effect: Letter | Stop) -> BaseException:
    """The error with the attempts of the item, which a pool that saw only the last of them cannot know."""
    error = effect.error
    if isinstance(error, WorkerCrashed) and effect.attempts:
        if effect.attempts > 1 and type(error) is WorkerCrashed:
            poison = PoisonMessage(*error.args)
            poison.__dict__.update(error.__dict__)
            poison.__cause__ = error.__cause__
            error = poison
        error.attempts = effect.attempts
    return error


class Run:
    """The outputs of one run: iterate it inside a `with` block."""

    def __init__(
        self, pipe: Pipeline, source: Any, *, ordered: bool, on_error: OnError, progress: bool, engine: Any
    ) -> None:
        self._make_pool = _pool_factory(engine)
        self._pipe = pipe
        self._source = source
        self._nodes, self._works = make_plan(pipe.stages)
        self._functions = [None if work is None else pickle_functions(pipe.name, work) for work in self._works]
        ring = out_ring(pipe.stages)
        self._machine = Delivery(
            self._nodes, len(pipe.stages), ordered=ordered, on_error=on_error, out_slots=ring.slots
        )
        self._lock = threading.Lock()
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._credit: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._fed: deque[Any] = deque()
        self._fed_told = False
        self._buffer: deque[Any] = deque()
        self._unacked = 0
        self._pools: list[Any] = []  # beside the nodes; None for a batch
        self._restarts: dict[int, int] = {}
        self._threads: list[threading.Thread] = []
        self._started = self._closing = self._closed = self._over = False
        self._ended = self._completed = False
        total = len(source) if progress and hasattr(source, "__len__") else None
        self._progress = Progress(total, MONOTONIC.now_ns()) if progress else None
        self.dead_letters: list[DeadLetter] = []

    # -- what the user holds

    def __enter__(self) -> Run:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Any:
        if not self._started:
            self._start()
        while True:
            if self._buffer:
                self._unacked += 1
                if self._unacked >= ACK_MOST:
                    self._acknowledge()
                return self._buffer.popleft()
            if self._ended or self._closed:
                raise StopIteration
            self._acknowledge()
            message = self._outbox.get()
            if isinstance(message, list):
                self._buffer.extend(message)
                continue
            self._ended = True
            self._completed = message is None
            self.close()
            if message is not None:
                raise message

    @property
    def report(self) -> Report:
        """The accounts as they are now; final once the run is over."""
        with self._lock:
            rows = [Row(*(getattr(row, name) for name in Row.__slots__)) for row in self._machine.rows]
            taken, out = self._machine.taken, self._machine.out
        restarts = {row: 0 for row in range(len(rows))}
        for index, node in enumerate(self._nodes):
            restarts[node.row] = self._restarts_of(index)
        lines = [
            (stage.name, stage.kind, row, restarts[place])
            for place, (stage, row) in enumerate(zip(self._pipe.stages, rows, strict=True))
        ]
        return make_report(self._pipe.name, lines, taken, out, len(self.dead_letters))

    def close(self) -> None:
        """Ends the run; early, if it is not over: what is queued is cancelled and the workers end."""
        if self._closed:
            return
        self._closed = self._closing = True
        if not self._completed:
            self._buffer.clear()
        if not self._started:
            return
        self._credit.put(None)
        self._inbox.put(_STOP)
        for thread in self._threads[:1]:  # the coordinator; the feeder may sit in the user's source for ever
            if thread is not threading.current_thread():
                thread.join()
        self._end_pools(early=not self._completed)
        if self._progress is not None:
            with self._lock:
                self._draw(last=True)

    # -- start and end

    def _start(self) -> None:
        if self._started or self._closed:
            if self._closed:
                raise RuntimeError(f"this run of pipeline {self._pipe.name!r} is over; call run() again")
            return
        self._started = True
        try:
            for work, functions in zip(self._works, self._functions, strict=True):
                self._pools.append(None if work is None or functions is None else self._open_pool(work, functions))
        except BaseException:
            self._closed = True
            self._end_pools(early=True)
            raise
        for target in (self._coordinate, self._feed):
            name = f"shmrt-{self._pipe.name}-{target.__name__.strip('_')}"
            self._threads.append(threading.Thread(target=target, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def _open_pool(self, work: Work, functions: bytes) -> Any:
        stage = work.stage
        return self._make_pool(
            max_workers=stage.workers,
            name=f"{self._pipe.name}/{stage.name}",
            ring=stage.ring,
            initializer=install,
            initargs=(stage.name, work.kind, functions, stage.group_bytes),
        )

    def _end_pools(self, *, early: bool) -> None:
        for index, pool in enumerate(self._pools):
            if pool is not None:
                self._restarts[index] = self._restarts_of(index)
        problem: BaseException | None = None
        for pool in self._pools:
            if pool is None:
                continue
            try:
                if early:
                    pool.shutdown(wait=False, cancel_futures=True)
                    pool.terminate_workers()
                pool.shutdown(wait=True)
            except Exception as error:  # a broken pool must not keep the others from being closed
                problem = problem or error
        self._pools = []
        if problem is not None and not isinstance(problem, (BrokenExecutor, RuntimeDown)):
            raise problem

    def _restarts_of(self, index: int) -> int:
        if index in self._restarts:
            return self._restarts[index]
        deaths = self._machine.rows[self._nodes[index].row].deaths
        pool = self._pools[index] if index < len(self._pools) else None
        if pool is None:
            return deaths
        try:
            stats = pool.stats()
            found = stats["restarts"] if isinstance(stats, dict) else stats.restarts
        except Exception:
            return deaths
        return found if isinstance(found, int) else deaths

    # -- the feeder

    def _feed(self) -> None:
        from shmrt.pipeline import open_source

        made = not hasattr(self._source, "__iter__")
        iterator: Any = None
        problem: BaseException | None = None
        try:
            iterator = iter(open_source(self._source))
            credit = 0
            while True:
                while credit == 0:
                    more = self._credit.get()
                    if more is None:
                        return
                    credit = more
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                if self._closing:
                    return
                credit -= 1
                self._fed.append(item)
                if not self._fed_told:
                    self._fed_told = True
                    self._inbox.put(_FED)
        except BaseException as error:
            problem = error
        finally:
            if made and hasattr(iterator, "close"):  # a generator made for this run is ours to close
                with contextlib.suppress(Exception):
                    iterator.close()
            self._inbox.put(Ended(problem))

    # -- the coordinator

    def _coordinate(self) -> None:
        try:
            self._step(Tick())
            while not self._over:
                message = self._next_message()
                if message is _STOP:
                    return
                if message is _FED:
                    self._take_fed()
                elif isinstance(message, Ended):
                    self._take_fed()
                    self._step(message)
                elif isinstance(message, tuple):
                    self._step(self._outcome(*message))
                else:
                    self._step(message)
                if self._progress is not None:
                    self._draw()
        except BaseException as error:
            self._outbox.put(error)

    def _next_message(self) -> Any:
        wake_ns = self._machine.wake_ns()
        timeout = None if wake_ns is None else max(0.0, (wake_ns - MONOTONIC.now_ns()) / 1e9)
        if self._progress is not None and self._progress.shown:
            timeout = POLL_S if timeout is None else min(timeout, POLL_S)
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return Tick()

    def _take_fed(self) -> None:
        self._fed_told = False  # before looking: what is added from now on is told again
        items = []
        while self._fed:
            items.append(self._fed.popleft())
        if items:
            self._step(Fed(items))

    def _step(self, event: Event) -> None:
        with self._lock:
            effects = self._machine.step(event, MONOTONIC.now_ns())
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Submit):
            self._submit(effect)
        elif isinstance(effect, Deliver):
            self._outbox.put(effect.items)
        elif isinstance(effect, Grant):
            self._credit.put(effect.count)
        elif isinstance(effect, Letter):
            stage = self._pipe.stages[effect.row].name
            self.dead_letters.append(DeadLetter(effect.item, _letter_error(effect), effect.attempts, stage))
        elif isinstance(effect, Stop):
            self._over = True
            error = _letter_error(effect)
            if effect.row is not None:
                error = blame(error, self._pipe.name, self._pipe.stages[effect.row].name, effect.item)
            self._outbox.put(error)
        elif isinstance(effect, Finished):
            self._over = True
            self._outbox.put(effect.error)

    def _submit(self, effect: Submit) -> None:
        work = self._works[effect.node]
        assert work is not None
        stage = work.stage
        fn, load = (run_chunk, effect.items) if effect.token is None else (run_more, effect.token)
        try:
            future = self._pools[effect.node].submit_stage(
                fn, stage.name, load, affinity=effect.lane, timeout=stage.timeout, max_attempts=effect.max_attempts
            )
        except Exception as error:
            # An item that does not pickle fails alone: the machine sends the others of its chunk again without it.
            cause = "fatal" if isinstance(error, (BrokenExecutor, RuntimeDown)) else "error"
            self._inbox.put(Failed(effect.task_id, error, cause))  # type: ignore[arg-type]
            return
        future.add_done_callback(partial(_tell, weakref.ref(self), effect.task_id))

    def _outcome(self, task_id: int, future: Any) -> Event:
        attempts = max(1, int(getattr(future, "attempts", 1) or 1))
        try:
            values, marks, keys, elapsed_ns, started = future.result()
        except (BrokenExecutor, RuntimeDown) as error:
            return Failed(task_id, error, "fatal", attempts)
        except WorkerCrashed as error:
            return Failed(task_id, error, "crashed", attempts)
        except (Exception, CancelledError) as error:
            return Failed(task_id, error, "error", attempts)
        opened = {place: _open_mark(mark) for place, mark in marks.items()} if marks else marks
        return Done(task_id, values, opened, _open_keys(keys), elapsed_ns, started, attempts)

    def _draw(self, *, last: bool = False) -> None:
        assert self._progress is not None
        failed = sum(row.failed for row in self._machine.rows)
        self._progress.draw(
            self._pipe.name, self._machine.taken, self._machine.out, failed, MONOTONIC.now_ns(), last=last
        )

    def _acknowledge(self) -> None:
        if self._unacked:
            self._inbox.put(Taken(self._unacked))
            self._unacked = 0


def _tell(run: weakref.ref[Run], task_id: int, future: Any) -> None:
    """Runs in a pool's dispatcher thread; a run that nobody holds any more gets no word."""
    alive = run()
    if alive is not None:
        alive._inbox.put((task_id, future))


def _open_mark(mark: tuple[Any, ...]) -> Any:
    kind = mark[0]
    if kind == "no":
        return FILTERED
    if kind == "many":
        return Many(mark[1], _open_keys(mark[2]), mark[3])
    if kind == "wrong":
        return Wrong(unpack_error(mark[1]))
    return LOST


def _open_keys(keys: list[tuple[bool, Any]] | None) -> list[tuple[bool, Any]] | None:
    if keys is None:
        return None
    return [pair if pair[0] or pair[1] is None else (False, unpack_error(pair[1])) for pair in keys]

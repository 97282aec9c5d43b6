"""What drives one run of a pipeline: threads and pools around the machine of `shmrt.decide.delivery`.

    feeder thread       pulls the source, only as many items as the machine granted; may block in it for ever
    coordinator thread  owns the machine: takes events from one inbox, submits tasks, fills the outbox
    pool dispatchers    put finished futures into the inbox and do nothing else
    consumer            whoever iterates: takes from the outbox, says how much it took

The consumer's side is `shmrt.pipeline_run`. Nobody but the coordinator changes the machine, under a lock that `report`
takes too. Leaving early stops the feeder, cancels what is queued and ends the workers; a source that blocks keeps its
(daemon) thread until it returns, and no item that it gives then is used.
If a worker dies, its pool retries or reports; the machine decides. If a pool breaks or the runtime goes down, the
consumer gets that error. If this module itself fails, the consumer gets that too, instead of waiting for ever.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from shmrt import _native
from shmrt.clock import MONOTONIC
from shmrt.decide.delivery import Delivery
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
    OnError,
    Stop,
    Submit,
    Tick,
    Wrong,
)
from shmrt.errors import PoisonMessage, RuntimeDown, WorkerCrashed
from shmrt.pipeline_plan import EDGE_BYTES, Work, make_plan, out_ring, pickle_functions
from shmrt.pipeline_report import DeadLetter, Progress, Report, make_report
from shmrt.pipeline_serial import blame
from shmrt.process.stage import install, run_chunk, run_more, unpack_error
from shmrt.runtimes import innermost

if TYPE_CHECKING:
    from shmrt.pipeline import Pipeline

__all__ = ["Motor"]

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


def _printable(name: str) -> str:
    return "".join(letter if letter.isprintable() and letter != "/" else "_" for letter in name)


def _letter_error(effect: Letter | Stop) -> BaseException:
    """The error with the attempts of the item, which a pool that saw only the last of them cannot know."""
    error = effect.error
    if isinstance(error, WorkerCrashed) and effect.attempts:
        if effect.attempts > 1:
            poison = PoisonMessage(_poison_text(error, effect.attempts))
            poison.__dict__.update(error.__dict__)
            poison.__cause__ = error.__cause__
            error = poison
        error.attempts = effect.attempts
    return error


def _poison_text(error: WorkerCrashed, attempts: int) -> str:
    how = f"was killed by {error.signal.name}" if error.signal else f"exited with code {error.exitcode}"
    return f"this item killed its worker {attempts} times; the last, {error.worker} (pid {error.pid}), {how}"


class Motor:
    """The machine, its threads and its pools."""

    def __init__(
        self, pipe: Pipeline, source: Any, *, ordered: bool, on_error: OnError, progress: bool, engine: Any
    ) -> None:
        self._make_pool = _pool_factory(engine)
        self._pipe = pipe
        self._source = source
        runtime = innermost()
        memory = (runtime and runtime.shm_limit) or int(_native.Arena.default().stats()["limit"])
        self._nodes, self._works = make_plan(pipe.stages, memory)
        self._functions = [None if work is None else pickle_functions(pipe.name, work) for work in self._works]
        ring = out_ring(pipe.stages)
        self._machine = Delivery(
            self._nodes,
            len(pipe.stages),
            ordered=ordered,
            on_error=on_error,
            out_slots=ring.slots,
            out_bytes_most=min(EDGE_BYTES, memory // 4),
        )
        self._lock = threading.Lock()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()  # lists of outputs, then None or an exception
        self._credit: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._fed: deque[Any] = deque()
        self._fed_told = False
        self._pools: list[Any] = []  # beside the nodes; None for a batch
        self._restarts: dict[int, int] = {}
        self.threads: list[threading.Thread] = []
        self._started = self._closing = self._over = self._abandoned = False
        total = len(source) if progress and hasattr(source, "__len__") else None
        self._progress = Progress(total, MONOTONIC.now_ns()) if progress else None
        self.dead_letters: list[DeadLetter] = []

    def report(self) -> Report:
        """The accounts as they are now."""
        with self._lock:
            rows = [replace(row) for row in self._machine.rows]
            taken, out = self._machine.taken, self._machine.out
        restarts = {node.row: self._restarts_of(index) for index, node in enumerate(self._nodes)}
        lines = [
            (stage.name, stage.kind, row, restarts.get(place, 0))
            for place, (stage, row) in enumerate(zip(self._pipe.stages, rows, strict=True))
        ]
        return make_report(self._pipe.name, lines, taken, out, len(self.dead_letters))

    # -- start and end

    def start(self) -> None:
        """Opens the pools, then lets the threads go."""
        self._started = True
        try:
            for work, functions in zip(self._works, self._functions, strict=True):
                self._pools.append(None if work is None or functions is None else self._open_pool(work, functions))
        except BaseException:
            self._end_pools(early=True)
            raise
        for target in (self._coordinate, self._feed):
            name = f"shmrt-{self._pipe.name}-{target.__name__.strip('_')}"
            self.threads.append(threading.Thread(target=target, name=name, daemon=True))
        for thread in self.threads:
            thread.start()

    def close(self, *, early: bool) -> None:
        """Ends threads and pools, and waits for them; not for a feeder that sits in the user's source."""
        if not self.threads:
            return
        self._stop()
        self.threads[0].join()
        self._end_pools(early=early)
        if self._progress is not None:
            self._draw(last=True)

    def abandon(self) -> None:
        """Ends everything without waiting: nobody holds the run any more, and this may be any thread."""
        if self.threads:
            self._abandoned = True
            self._stop()

    def _stop(self) -> None:
        self._closing = True
        self._credit.put(None)
        self.inbox.put(_STOP)

    def _open_pool(self, work: Work, functions: bytes) -> Any:
        stage = work.stage
        chosen = {} if stage.spin is None else {"spin": stage.spin}
        return self._make_pool(
            max_workers=stage.workers,
            name=_printable(f"{self._pipe.name}.{stage.name}"),
            ring=stage.ring,
            initializer=install,
            initargs=(stage.name, work.kind, functions, stage.group_bytes),
            **chosen,
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
                    self.inbox.put(_FED)
        except BaseException as error:
            problem = error
        finally:
            if made and hasattr(iterator, "close"):  # a generator made for this run is ours to close
                with contextlib.suppress(Exception):
                    iterator.close()
            self.inbox.put(Ended(problem))

    # -- the coordinator

    def _coordinate(self) -> None:
        try:
            self._step(Tick())
            while not self._over:
                message = self._next_message()
                if message is _STOP:
                    break
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
            self.outbox.put(error)
        if self._abandoned:
            self._end_pools(early=True)

    def _next_message(self) -> Any:
        wake_ns = self._machine.wake_ns()
        timeout = None if wake_ns is None else max(0.0, (wake_ns - MONOTONIC.now_ns()) / 1e9)
        if self._progress is not None and self._progress.shown:
            timeout = POLL_S if timeout is None else min(timeout, POLL_S)
        try:
            return self.inbox.get(timeout=timeout)
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
            self.outbox.put(effect.items)
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
            self.outbox.put(error)
        elif isinstance(effect, Finished):
            self._over = True
            self.outbox.put(effect.error)

    def _submit(self, effect: Submit) -> None:
        work = self._works[effect.node]
        assert work is not None
        stage = work.stage
        fn, load = (run_chunk, effect.items) if effect.token is None else (run_more, effect.token)
        try:
            future = self._pools[effect.node].submit_stage(
                fn,
                stage.name,
                load,
                affinity=effect.lane,
                timeout=stage.timeout,
                max_attempts=effect.max_attempts,
                passes_on=work.passes_on,
            )
        except Exception as error:
            # An item that does not pickle fails alone: the machine sends the others of its chunk again without it.
            cause = "fatal" if isinstance(error, (BrokenExecutor, RuntimeDown)) else "error"
            self.inbox.put(Failed(effect.task_id, error, cause))  # type: ignore[arg-type]
            return
        future.add_done_callback(partial(_tell, self.inbox, effect.task_id))

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


def _tell(inbox: queue.SimpleQueue[Any], task_id: int, future: Any) -> None:
    """Runs in a pool's dispatcher thread."""
    inbox.put((task_id, future))


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

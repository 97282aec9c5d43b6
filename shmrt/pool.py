"""A pool of worker processes that is a `concurrent.futures.Executor` and does not break.

    >>> from shmrt import Pool
    >>> with Pool(2) as pool:
    ...     sorted(pool.map(abs, [-3, 1, -2]))
    [1, 2, 3]

Each submitted call has exactly one outcome. If the process that runs it dies, that call alone fails with
`WorkerCrashed` (or is tried again, with `max_attempts`); calls that had not begun go to another worker, and the
worker is replaced. Rules follow `concurrent.futures`; restarts follow OTP's `supervisor`.

While the pool lives: what `submit` accepted is done, failed with a typed error, or cancelled by you. If this
program dies, its workers are gone within a second. A forked child of the program owns nothing of the pool.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from concurrent.futures import Executor
from functools import partial

from shmrt import _native
from shmrt.pool_options import PoolView, TaskOptions, check_attempts, nanoseconds
from shmrt.spec import (
    FOREVER,
    RingSpec,
    check_count,
    check_modules,
    check_name,
    check_seconds,
    check_spin,
    parse_size,
)

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
    from types import TracebackType
    from typing import Any, TypeVar

    from shmrt.pool_map import Results
    from shmrt.runtimes import Runtime

    T = TypeVar("T")

__all__ = ["Future", "Pool"]

Future: Any = _native.future_class()

_numbers = itertools.count(1)
_GRACE_S = 5.0


def _default_workers() -> int:
    """The usable CPUs; inside a worker divided by its siblings, at least 1."""
    cpus = int(_native.usable_cpus())
    siblings = getattr(sys.modules.get("shmrt.process.worker"), "siblings", 0)  # loaded wherever somebody is a worker
    return max(cpus // siblings, 1) if siblings else max(cpus, 1)


class Pool(_native.PoolFront, Executor):
    """Worker processes that run your functions.

    max_workers: how many at once; None is the usable CPUs (affinity and cgroup quota), inside a worker at
    least 1. mp_context is accepted and ignored. initializer(*initargs) runs in each worker before its first task; a
    failing one is a start failure. max_tasks_per_child, max_rss (bytes or "512MiB"), max_age (seconds): a worker that
    passes one is replaced, the new one first, but not before it was given a task. max_attempts: how often a task may be
    begun when its worker dies of it (1: never twice). task_timeout: seconds a task may run. spares: workers kept ready
    beyond max_workers.
    preload: module names imported once in a template that workers are forked from. max_restarts within max_seconds
    breaks the pool; None never does. threads_per_worker bounds BLAS and OpenMP threads. max_pending: how many tasks may
    be accepted and not done; then `submit` blocks or raises `Overloaded` by on_full. seed fixes their randomness.
    ring: RingSpec that sizes the lanes to and from each worker. spin: seconds that an idle worker looks for its next
    task before it sleeps (None: 5 microseconds; 0: not at all; with one usable CPU it never looks).

    Raises ValueError or TypeError for a wrong argument, SegmentError if shared memory is short.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: object = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
        name: str | None = None,
        ring: RingSpec | None = None,
        max_attempts: int = 1,
        task_timeout: float | None = None,
        max_rss: int | str | None = None,
        max_age: float | None = None,
        spares: int = 0,
        preload: Sequence[str] = (),
        max_restarts: int | None = None,
        max_seconds: float = 60,
        worker_exit: Callable[[], object] | None = None,
        threads_per_worker: int | None = 1,
        max_pending: int | None = None,
        on_full: str = "block",
        seed: int | None = None,
        spin: float | None = None,
        runtime: Runtime | None = None,
    ) -> None:
        from shmrt import runtimes

        if max_workers is None:
            max_workers = _default_workers()
        elif isinstance(max_workers, int) and max_workers <= 0 and not isinstance(max_workers, bool):
            raise ValueError("max_workers must be greater than 0")
        check_count(max_workers, "max_workers", most=runtimes.WORKERS_MAX)
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be a callable, not {initializer!r}")
        if not hasattr(initargs, "__iter__"):
            raise TypeError(f"initargs must be a tuple of arguments for the initializer, not {initargs!r}")
        if worker_exit is not None and not callable(worker_exit):
            raise TypeError(f"worker_exit must be a callable, not {worker_exit!r}")
        if max_tasks_per_child is not None:
            check_count(max_tasks_per_child, "max_tasks_per_child")
        if on_full not in ("block", "raise"):
            raise ValueError(f"on_full={on_full!r} must be 'block' or 'raise'")
        if ring is not None and not isinstance(ring, RingSpec):
            raise TypeError(f"ring must be a RingSpec, not {ring!r}")
        preload = check_modules(preload, "preload")
        check_name(name, "name")
        if max_seconds is None:
            raise TypeError("max_seconds must be seconds, not None; max_restarts=None is what never breaks a pool")
        period = check_seconds(max_seconds, "max_seconds", allow_zero=False)
        if runtime is not None and not isinstance(runtime, runtimes.Runtime):
            raise TypeError(f"runtime must be a Runtime, not {runtime!r}")
        self.name = name or f"pool-{next(_numbers)}"
        self._max_workers = max_workers
        self._max_pending = None if max_pending is None else check_count(max_pending, "max_pending")
        self._defaults = TaskOptions(
            timeout=check_seconds(task_timeout, "task_timeout", allow_zero=False),
            max_attempts=check_attempts(max_attempts),
        )
        self._spares = check_count(spares, "spares", least=0, most=runtimes.WORKERS_MAX)
        self._lock = threading.RLock()
        self._shutdown = False
        self._aborted = False
        self._maps: weakref.WeakSet[Results] = weakref.WeakSet()
        self._runtime = runtime if runtime is not None else runtimes.current()
        limits = {
            "timeout_ns": nanoseconds(self._defaults.timeout),
            "max_attempts": self._defaults.max_attempts,
            "max_tasks": max_tasks_per_child or 0,
            "max_rss": 0 if max_rss is None else parse_size(max_rss, "max_rss"),
            "max_age_ns": nanoseconds(check_seconds(max_age, "max_age", allow_zero=False), none=0),
        }
        threads = threads_per_worker
        spin = check_spin(spin)
        spec = {
            "options": {} if spin is None else {"spin_ns": nanoseconds(spin)},
            "initializer": (initializer, tuple(initargs)) if initializer is not None else None,
            "worker_exit": worker_exit,
            "preload": preload,
            "max_restarts": None if max_restarts is None else check_count(max_restarts, "max_restarts", least=0),
            # The root counts it in nanoseconds; what cannot be counted would end it and every one after it.
            "max_seconds": FOREVER if period is None else period,
            "threads_per_worker": None if threads is None else check_count(threads, "threads_per_worker"),
            "seed": None if seed is None else check_count(seed, "seed", least=0, most=2**63 - 1),
        }
        from shmrt.pool_opened import OpenedPool  # after the root's start, which takes longer

        self._opened = OpenedPool(self._runtime, self, max_workers, self._spares, self._max_pending, on_full)
        self._opened.open(ring=ring or RingSpec(), spares=self._spares, limits=limits, spec=spec)
        self._core = self._opened.core
        self._is_bounded = self._max_pending is not None

    # ---- calls: submit itself is native/py_front.c ------------------------------------------------------------------
    def _submit_with(self, options: TaskOptions, fn: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._max_pending is None:
            return options.submit(self._core.submit_with, fn, *args, **kwargs)
        return options.submit(partial(self._submit_bounded, self._core.submit_with), fn, *args, **kwargs)

    def _submit_bounded(self, submit: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return self._opened.submit_bounded(False, submit, *args, **kwargs)

    def call(self, fn: Callable[..., T], /, *args: Any, timeout: float | None = None, **kwargs: Any) -> T:
        """fn(*args, **kwargs) in a worker, waited for here: the round trip of lowest latency. `timeout` is the
        task's running time; past it the worker is killed and TaskTimeout raised."""
        if timeout is None:
            return self.submit(fn, *args, **kwargs).result()  # type: ignore[no-any-return]
        return self.options(timeout=timeout).submit(fn, *args, **kwargs).result()  # type: ignore[no-any-return]

    def options(self, **options: Any) -> PoolView:
        """A view on this pool whose calls have these options: timeout, deadline (seconds), max_attempts, retry_on
        (exception types), priority (higher first), breaker (a CircuitBreaker: `submit` raises CircuitOpen while it
        refuses; exceptions, deaths of workers and timeouts count as failures). deadline=None: none, also where the
        task that submits has one."""
        return PoolView(self, self._defaults.replace(**options))

    def submit_stage(
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        affinity: int | None = None,
        timeout: float | None = None,
        max_attempts: int = 3,
        passes_on: bool = False,
    ) -> Any:
        """What a pipeline stage submits: `affinity` pins the task to one logical worker, in order. passes_on: its
        arrays came from a worker and nobody else has them, so they go on by reference, and are read-only from then
        on."""
        options = TaskOptions(
            timeout=timeout, inherits=False, max_attempts=max_attempts, affinity=-1 if affinity is None else affinity
        )
        packed = options.packed()
        return self._core.submit_with((*packed[:-1], 2) if passes_on else packed, fn, *args)

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | str = "auto",
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Results in order of the input, lazily and bounded: at most `buffersize` items are under way (None: chosen).

        Every item has an outcome of its own, so an exception or a death concerns its item alone, and iteration may
        go on after it. Small items whose calls are short travel and run many at a time: as many as take about 0.2 ms,
        as measured, or `chunksize`; still none is run twice, and those behind one that takes longer go to other
        workers. With a timeout, a deadline, a breaker or further attempts each is a task of its own. Never iterated,
        it still runs to its end by shutdown(wait=True); started and dropped, what has not begun is cancelled.
        """
        from shmrt.pool_map import Results

        return Results(self, self._defaults, fn, iterables, timeout, chunksize, buffersize)

    def map_unordered(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | str = "auto",
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> Iterator[T]:
        """As `map`, in order of completion. return_exceptions: exceptions are yielded instead of raised."""
        options = (timeout, chunksize, buffersize)
        from shmrt.pool_map import UnorderedResults

        return UnorderedResults(self, self._defaults, fn, iterables, *options, return_exceptions=return_exceptions)

    imap_unordered = map_unordered

    def amap(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int | str = "auto",
        buffersize: int | None = None,
    ) -> AsyncIterator[T]:
        """As `map`, for `async for`."""
        from shmrt.pool_map import AsyncResults

        return AsyncResults(self, self._defaults, fn, iterables, timeout, chunksize, buffersize)

    # ---- state ----------------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, int]:
        """Counters: submitted, pending, running, completed, failed, crashed, timed_out, retried, restarts, ... They
        outlive the pool. Of a full pool: refused (calls that got Overloaded), blocked_submit_ns (time that callers
        waited for a place, summed), pending_most (the most that were pending at once). expired: calls whose deadline
        passed before they began; those that had been accepted are in timed_out, too."""
        return self._opened.stats()

    def health(self) -> dict[str, Any]:
        """`status`: healthy (all workers ready), degraded (some) or unhealthy (none); and the numbers behind it."""
        return self._opened.health()

    @property
    def exit_values(self) -> list[Any]:
        """What `worker_exit` returned in each worker that has ended, in the order of their ends."""
        return self._opened.exit_values

    def resize(self, max_workers: int) -> None:
        """Another number of workers. More start now; surplus ones end after what is in their lanes.

        RuntimeError after shutdown; ValueError beyond twice the first number of workers and spares, plus two: so many
        slots the pool has."""
        count = check_count(max_workers, "max_workers")
        if self._shutdown:
            raise RuntimeError(f"cannot resize pool {self.name} after shutdown")
        self._core.resize(count, count + self._spares)
        self._max_workers = self._opened.max_workers = count
        self._runtime._link.resize(self._opened.number, count)

    def drain(self, timeout: float | None = None) -> bool:
        """Waits until nothing is pending; whether that was reached in time."""
        return bool(self._core.wait_pending(0, nanoseconds(check_seconds(timeout, "timeout"))))

    def chaos_kill(self, rng: Any) -> bool:
        """SIGKILLs one ready worker, chosen by rng and ordered through the root; whether there was one."""
        return self._opened.chaos_kill(rng) is not None

    # ---- end ------------------------------------------------------------------------------------------------------
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """As `concurrent.futures.Executor.shutdown`. Afterwards no worker is left (with wait=False: soon)."""
        with self._lock:
            first, self._shutdown = not self._shutdown, True
            maps = list(self._maps)
        failure: Exception | None = None
        if wait and not cancel_futures:
            for results in maps:
                results._run_to_end(keep=True)
            try:
                self._opened.run_unread()
            except Exception as error:  # of somebody's input; raised when all is done
                failure = error
        self._core.close()
        if cancel_futures:
            self._cancel_maps()
            self._core.fail_backlog(True)
        if wait:
            self._opened.finish(None)
        elif first:
            threading.Thread(
                target=self._opened.finish, args=(None,), daemon=True, name=f"shmrt-end-{self.name}"
            ).start()
        if failure is not None:
            raise failure

    def terminate_workers(self) -> None:
        """Ends the pool now: what runs is killed, what waits is failed with PoolBroken. SIGKILL, as `kill_workers`."""
        with self._lock:
            self._shutdown = True
        self._core.close()
        if not self._opened.is_broken:
            from shmrt.process import remote

            remote.keep_reasons(self.name, ["terminated by terminate_workers() or kill_workers()"])
        self._core.break_pool()
        self._opened.finish(0.0)

    kill_workers = terminate_workers

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._abort(_GRACE_S)
            return
        try:
            self.shutdown(wait=True)
        except BaseException:  # Ctrl-C during the wait: from here on as if it had come before
            self._abort(_GRACE_S)
            raise

    def _cancel_queue(self) -> None:
        """Takes no more and cancels what has not begun; what runs goes on."""
        self._shutdown = True
        self._core.close()
        self._cancel_maps()
        self._core.fail_backlog(True)

    def _cancel_maps(self) -> None:
        self._opened.unread.clear()
        with self._lock:
            maps = list(self._maps)
        for results in maps:
            results._cancel()

    def _abort(self, grace: float) -> None:
        """By an exception or Ctrl-C: nobody waits for what was queued; what runs has `grace` seconds to end. Another
        Ctrl-C during that time kills it at once."""
        if self._aborted:
            grace = 0.0  # a second Ctrl-C came at any point of the first one's way out
        self._aborted = True
        try:
            self._cancel_queue()
            self._core.wait_pending(0, nanoseconds(grace))
        finally:
            self._opened.finish(0.0)

    def __repr__(self) -> str:
        return f"<shmrt.Pool {self.name} of {self._max_workers} workers{', shut down' if self._shutdown else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError(f"pool {self.name} belongs to this process and cannot be pickled; make one where it is used")

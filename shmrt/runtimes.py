"""A runtime: one root supervisor process, the shared memory of its workers, and this program's hub.

    >>> from shmrt import Pool, Runtime
    >>> with Runtime() as runtime, Pool(2) as pool:
    ...     pool.submit(pow, 2, 10).result()
    1024

`with Runtime(...)` makes it the program's current runtime until it closes. Pools use the current one, else the default
one (`shmrt.runtime()`), which starts at first use. Importing starts nothing.

Threads of the program: the hub (C, never takes the GIL), `shmrt-dispatch` (completes watched futures, runs callbacks,
log handlers) and `shmrt-link` (talks to the root). None of them wakes up while nothing happens.

If the root is killed, its workers end with it; a new root starts, the pools' workers start afresh, and every
message that was not done goes on by the rules of its pool. If the program dies, everything ends within a second.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from time import monotonic

from shmrt import _native
from shmrt.errors import PoolBroken, RuntimeDown, SegmentError
from shmrt.spec import parse_size

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any

    from shmrt.pool import Pool
    from shmrt.spec import RingSpec

__all__ = ["WORKERS_MAX", "Runtime", "current", "default_workers"]

_SLOTS = 1024
WORKERS_MAX = 256
_LANE_MIN = 64 << 10  # a smaller lane could not hold what a result with many buffers needs
_FIRST_WORKER = 2
_LOG_TAIL = 20
# What a process needs of its own before it does anything for the user; without that much left nothing is started,
# since the kernel would have to kill somebody, perhaps the program.
_ROOT_BYTES = 12 << 20
_WORKER_BYTES = 3 << 20
_GRACE_S = 5.0  # what runs may take this long to end when its pool is left by an exception

_lock = threading.RLock()
_default: Runtime | None = None
_current: list[Runtime] = []


_open: weakref.WeakSet[Runtime] = weakref.WeakSet()
_registered = False


def _finish_at_exit(runtime: Runtime) -> None:
    """Once for all runtimes, and weakly: a runtime that was stopped is not kept alive by this."""
    global _registered
    with _lock:
        _open.add(runtime)
        if not _registered:
            threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
            _registered = True


def _finish_all() -> None:
    for runtime in list(_open):
        runtime._at_exit()


def default_workers() -> int:
    """The usable CPUs; inside a worker divided by its siblings, at least 1."""
    from shmrt.process import worker

    cpus = int(_native.usable_cpus())
    siblings = getattr(worker, "siblings", 0)
    return max(cpus // siblings, 1) if siblings else max(cpus, 1)


def current() -> Runtime:
    """The program's current runtime: the innermost `with Runtime()`, else the default one, started now if need be."""
    global _default
    with _lock:
        for runtime in reversed(_current):
            if runtime._is_mine:
                return runtime
        if _default is None or not _default._is_mine or _default._stopped:
            _default = Runtime()
        runtime = _default
    runtime.start()
    return runtime


class _Opened:
    """One pool inside a runtime: its core, its slots, its descriptors."""

    def __init__(self, runtime: Runtime, pool: Pool, number: int, first: int, count: int) -> None:
        self.runtime = runtime
        self.pool = pool
        self.number = number
        self.first = first
        self.count = count
        self.core: Any = None
        self.lanes_fd = -1
        self.stacks_fd = -1
        self.removed = threading.Event()
        self.start_failures: list[str] = []
        self._ending = threading.Lock()
        self._ended = False

    def finish(self, grace: float | None) -> None:
        """Waits for what is pending (grace None), then ends the workers and gives everything back. Idempotent."""
        if not self.runtime._is_mine:
            return
        if grace is None and not self.runtime._stopped:
            self.core.wait_pending(0, -1)
        with self._ending:
            if self._ended:
                return
            link = self.runtime._link
            if not self.runtime._stopped and link.down is None:
                link.remove_pool(self.number, _GRACE_S if grace is None else grace)
                try:
                    self.removed.wait()
                except BaseException:  # Ctrl-C: the workers get no more time; whoever comes next does the rest
                    link.remove_pool(self.number, 0.0)
                    raise
            while not self.core.remove():
                if self.runtime._stopped:
                    break
                self.core.wait_pending(0, 1_000_000)
            self.runtime._close_pool(self)
            self._ended = True  # last: an interrupted end is taken up again by the next call


class Runtime:
    """The root supervisor process and what belongs to it.

    shm_limit bounds the payload memory (bytes or "2GiB"; None: half of what is available). on_event(event) is called
    in a daemon thread with what the root tells: ("started", slot, epoch, pid), ("gone", ...), ("root_lost", ...).
    preload: modules imported once in a template for every pool that names none of its own.

    Raises SegmentError if shared memory is short, naming needed, free and whose limit it is.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        shm_limit: int | str | None = None,
        preload: tuple[str, ...] | list[str] = (),
        on_event: Callable[[tuple[Any, ...]], None] | None = None,
    ) -> None:
        if name is not None and not (isinstance(name, str) and name and name.isprintable() and "/" not in name):
            raise ValueError(f"name={name!r} must be a printable string without '/'")
        self.name = name
        self.shm_limit = None if shm_limit is None else parse_size(shm_limit, "shm_limit")
        self.preload = tuple(preload)
        self._on_event = on_event
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()
        self._pools: dict[int, _Opened] = {}
        self._next_pool = 1
        self._started = False
        self._stopped = False
        self._down: str | None = None
        self._ended = threading.Event()
        self._link: Any = None
        self._hub: Any = None
        self._slots: Any = None

    # ---- life -----------------------------------------------------------------------------------------------------
    @property
    def _is_mine(self) -> bool:
        return os.getpid() == self._owner_pid

    @property
    def is_own_worker(self) -> bool:
        """Whether this process is a worker of shmrt itself, where a submit must not block for ever."""
        from shmrt.process import worker

        return getattr(worker, "_loop", None) is not None

    @property
    def pid(self) -> int | None:
        """The root's process id."""
        return self._link.root_pid if self._link is not None else None

    def start(self) -> Runtime:
        """Starts the root process. Idempotent."""
        with self._lock:
            if self._started:
                self._check()
                return self
            from shmrt.supervise.link import RootLink

            _native.check_memory(_ROOT_BYTES)
            try:
                self._start(RootLink)
            except BaseException:
                self._undo_start()
                raise
            _finish_at_exit(self)
            self._started = True
        return self

    def _start(self, link: Any) -> None:
        self._slots = _native.Slots.create(_SLOTS)
        self._arena = _native.Arena.default() if self.shm_limit is None else _native.Arena.create(self.shm_limit)
        self._link = link.start(
            self._slots,
            self._arena.fd,
            on_event=self._handle_event,
            on_down=self._handle_down,
        )
        self._slots.claim(_native.SLOT_PROGRAM, 0, 0)
        self._slots.set_process(_native.SLOT_PROGRAM, os.getpid())
        self._hub = _native.Hub(self._slots.fd, self._arena)
        self._hub.start()
        self._slots.ring(_native.SLOT_ROOT)
        self._dispatcher = threading.Thread(target=self._dispatch, name="shmrt-dispatch", daemon=True)
        self._dispatcher.start()

    def _undo_start(self) -> None:
        """No thread or descriptor was left for one of the steps: what the others made goes away."""
        if self._link is not None:
            self._link.close(0.0)
        if self._hub is not None:
            self._hub.stop()
        if self._slots is not None:
            self._slots.close()
        self._link = self._hub = self._slots = None

    def stop(self, grace: float = 5.0) -> None:
        """Ends every pool (what is pending is lost with RuntimeDown), then the root. Nothing is left afterwards."""
        with self._lock:
            if not self._started or self._stopped or not self._is_mine:
                return
            pools = list(self._pools.values())
        for opened in pools:
            opened.core.close()
            opened.core.fail_backlog(False)
            opened.finish(0.0)
        with self._lock:
            self._stopped = True
        self._link.close(grace)
        self._hub.stop()
        if threading.current_thread() is not self._dispatcher:
            self._dispatcher.join()
        self._slots.close()
        self._ended.set()

    def wait(self, timeout: float | None = None) -> str | None:
        """Waits until the runtime has ended; why, or None if it has not in time."""
        self._ended.wait(timeout)
        return (self._down or "shutdown") if self._ended.is_set() else None

    def __enter__(self) -> Runtime:
        self.start()
        with _lock:
            _current.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _lock:
            if self in _current:
                _current.remove(self)
        try:
            if kind is None:
                for opened in list(self._pools.values()):
                    opened.pool.shutdown(wait=True)
            else:
                self._abort()
        except BaseException as error:
            if kind is None and not isinstance(error, Exception):  # Ctrl-C during the wait
                self._abort()
            raise
        finally:
            self.stop()

    def _abort(self) -> None:
        """By an exception or Ctrl-C: what is queued is cancelled, what runs in any pool has the same few seconds."""
        pools = [opened.pool for opened in list(self._pools.values())]
        for pool in pools:
            pool._cancel_queue()
        end = monotonic() + _GRACE_S
        for pool in pools:
            pool._abort(max(end - monotonic(), 0.0))

    def _check(self) -> None:
        if not self._is_mine:
            raise RuntimeDown(
                f"this runtime belongs to process {self._owner_pid}, and this is its forked child {os.getpid()}, which "
                "owns nothing of it; make a Runtime or Pool of its own here",
                reason="forked",
            )
        if self._stopped or self._down is not None:
            raise RuntimeDown(f"this runtime has ended: {self._down or 'it was stopped'}", reason=self._down)

    def _at_exit(self) -> None:
        """A pool left open at interpreter exit finishes accepted work, unless Ctrl-C is what ended the program."""
        if not self._is_mine or self._stopped:
            return
        try:
            if getattr(sys, "last_type", None) is KeyboardInterrupt and not hasattr(sys, "ps1"):
                self._abort()
            for opened in list(self._pools.values()):
                try:
                    opened.pool.shutdown(wait=True)
                except Exception:
                    sys.excepthook(*sys.exc_info())
        except KeyboardInterrupt:
            self._abort()
            raise
        finally:
            self.stop()

    # ---- pools ----------------------------------------------------------------------------------------------------
    def _open_pool(
        self,
        pool: Pool,
        *,
        max_workers: int,
        spares: int,
        ring: RingSpec,
        timeout_ns: int,
        max_attempts: int,
        max_tasks: int,
        max_rss: int,
        max_age_ns: int,
        spec: dict[str, Any],
    ) -> _Opened:
        from shmrt.process.functions import FunctionTable, dumps
        from shmrt.supervise.link import make_spec

        self.start()
        for key in ("initializer", "worker_exit"):
            spec[key] = dumps(spec[key]) if spec[key] is not None else None
        spec["preload"] = spec["preload"] or self.preload
        capacity = max(1 << (ring.slots * ring.slot_bytes - 1).bit_length(), _LANE_MIN)
        # Twice the workers: a replacement starts while the dead one is still torn down, a recycled one before the old
        # one leaves, and resize has room.
        count = min(2 * (max_workers + spares) + 2, _SLOTS - _FIRST_WORKER)
        with self._lock:
            self._check()
            first = self._free_range(count)
            number = self._next_pool
            self._next_pool += 1
            opened = _Opened(self, pool, number, first, count)
            self._pools[number] = opened
        try:
            _native.check_memory(max_workers * _WORKER_BYTES)
            opened.lanes_fd = _native.lanes_create(count, capacity, capacity)
            opened.stacks_fd = _native.memfd_create("shmrt-stacks", count * 65536)
            table: list[Any] = []
            opened.core = _native.PoolCore(
                hub=self._hub,
                name=pool.name,
                pool=number,
                first_slot=first,
                slot_count=count,
                max_workers=max_workers,
                lanes_fd=opened.lanes_fd,
                stacks_fd=opened.stacks_fd,
                register_function=lambda fn, retry_on: table[0].number(fn, retry_on),
                timeout_ns=timeout_ns,
                max_attempts=max_attempts,
                max_tasks=max_tasks,
                max_rss=max_rss,
                max_age_ns=max_age_ns,
            )
            table.append(FunctionTable(opened.core.add_function, opened.core.drop_function))
            self._link.add_pool(
                number,
                make_spec(pool.name, max_workers, spares=spares, **spec),
                first_slot=first,
                slot_count=count,
                lanes_fd=opened.lanes_fd,
                stacks_fd=os.dup(opened.stacks_fd),
            )
        except BaseException:
            if opened.core is not None:
                opened.core.remove()
            self._close_pool(opened)
            raise
        return opened

    def _free_range(self, count: int) -> int:
        taken = sorted((opened.first, opened.first + opened.count) for opened in self._pools.values())
        start = _FIRST_WORKER
        for first, end in taken:
            if first - start >= count:
                break
            start = end
        if start + count > _SLOTS:
            raise SegmentError(
                f"the process table has no {count} slots in a row left; close a pool, or use a second Runtime",
                needed=count,
                free=_SLOTS - start,
                hint="close a pool",
            )
        return start

    def _close_pool(self, opened: _Opened) -> None:
        with self._lock:
            self._pools.pop(opened.number, None)
        for fd in (opened.lanes_fd, opened.stacks_fd):
            if fd >= 0:
                os.close(fd)
        opened.lanes_fd = opened.stacks_fd = -1

    # ---- events ---------------------------------------------------------------------------------------------------
    def _handle_event(self, event: tuple[Any, ...]) -> None:
        """In the thread shmrt-link."""
        verb = event[0]
        opened = self._pools.get(event[1]) if verb in ("removed", "pool_broken", "start_failed") else None
        if opened is not None and verb == "removed":
            opened.removed.set()
        elif opened is not None and verb == "start_failed":
            opened.start_failures.append(str(event[4]))
            del opened.start_failures[:-50]
        elif opened is not None and verb == "pool_broken":
            self._break(opened, [str(reason) for reason in event[2]])
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                sys.excepthook(*sys.exc_info())

    def _break(self, opened: _Opened, reasons: list[str]) -> None:
        from shmrt.process import remote

        # The workers' own words come through their result lanes, just before they end.
        self._hub.pump()
        remote.broken_reasons[opened.pool.name] = (opened.start_failures + reasons)[-50:]
        opened.core.break_pool()

    def _handle_down(self, reason: str) -> None:
        self._down = reason
        for opened in list(self._pools.values()):
            self._break(opened, [f"the root supervisor is gone: {reason}"])
            opened.removed.set()
        self._ended.set()

    def _dispatch(self) -> None:
        """The thread shmrt-dispatch: completions of watched futures and notes of the hub."""
        while True:
            try:
                notes = self._hub.dispatch_once()
                if notes is None:
                    return
                for note in notes:
                    self._handle_note(*note)
            except Exception:
                sys.excepthook(*sys.exc_info())

    def _handle_note(
        self, kind: int, number: int, slot: int, epoch: int, worker: int, task: int, value: Any, crash: dict[str, Any]
    ) -> None:
        opened = self._pools.get(number)
        if opened is None:
            return
        pool = opened.pool
        if kind == _native.NOTE_LOG and value is not None:
            self._handle_log(pool, worker, value)
        elif kind == _native.NOTE_EXIT:
            pool.exit_values.append(value)
        elif kind == _native.NOTE_START_FAILED and value is not None:
            opened.start_failures.append(value[3].strip() or f"{value[1]}: {value[2]}")
            del opened.start_failures[:-50]
        elif kind == _native.NOTE_REPLACE:
            self._link.replace(slot, epoch)

    @staticmethod
    def _handle_log(pool: Pool, worker: int, row: tuple[Any, ...]) -> None:
        """Gives a worker's log record to this program's own handlers."""
        import logging

        from shmrt.process import remote

        name, level, created, path, line, function, text, exc_text, thread, pid = row
        record = logging.LogRecord(name, level, path, line, text, None, None, function)
        record.created = created
        record.msecs = (created - int(created)) * 1000
        record.exc_text = exc_text
        record.threadName = thread
        record.process = pid
        record.processName = f"{pool.name}/{worker}"
        tail = remote.log_tails.setdefault((pool.name, worker), [])
        tail.append(f"{logging.getLevelName(level)} {name}: {text}")
        del tail[:-_LOG_TAIL]
        logger = logging.getLogger(name)
        if logger.isEnabledFor(level):
            logger.handle(record)

    def chaos_kill(self, rng: Any) -> bool:
        """SIGKILLs one ready worker of any pool, chosen by rng, ordered through the root; whether there was one."""
        pools = [opened.pool for opened in self._pools.values()]
        rng.shuffle(pools)
        return any(pool.chaos_kill(rng) for pool in pools)

    def health(self) -> dict[str, Any]:
        """Status of the runtime and of each pool."""
        pools = {opened.pool.name: opened.pool.health() for opened in list(self._pools.values())}
        statuses = {pool["status"] for pool in pools.values()}
        if self._stopped or self._down is not None:
            status = "unhealthy"
        else:
            status = "healthy" if statuses <= {"healthy"} else "degraded"
        return {"status": status, "pools": pools, "root_pid": self.pid, "timestamp": monotonic()}


_ = PoolBroken  # made here once, so that no thread makes it while it is needed

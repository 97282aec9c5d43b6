"""A runtime: one root supervisor process, the shared memory of its workers, and this program's hub.

    >>> from shmrt import Pool, Runtime
    >>> with Runtime() as runtime, Pool(2) as pool:
    ...     pool.submit(pow, 2, 10).result()
    1024

`with Runtime(...)` makes it the program's current runtime until it closes. Pools use the current one, else the default
one (`shmrt.runtime()`), which starts at first use. Importing starts nothing.

Threads of the program: the hub (C, never takes the GIL), `shmrt-dispatch` (watched futures, callbacks, logging),
`shmrt-link` (talks to the root). None of them wakes up while nothing happens.
If the root is killed, its workers end with it; a new root starts, the pools' workers start afresh, and every
message that was not done goes on by the rules of its pool. If the program dies, everything ends within a second.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from collections import deque
from time import monotonic

from shmrt import _native
from shmrt.runtime_events import RuntimeEvents
from shmrt.runtime_health import RuntimeHealth
from shmrt.runtime_pools import RuntimePools
from shmrt.spec import check_modules, check_name, parse_size

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any

    from shmrt.children import Supervisor
    from shmrt.guard.health import HealthCheck
    from shmrt.handles import SupervisorRef
    from shmrt.home import Home
    from shmrt.pool_opened import OpenedPool
    from shmrt.runtime_tree import TreeSide

__all__ = ["WORKERS_MAX", "Runtime", "current"]

SLOTS = 1024
WORKERS_MAX = 256
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


def known() -> list[Runtime]:
    """Every runtime that was started and not stopped, in a forked child also those of its parent."""
    return list(_open)


def living() -> list[Runtime]:
    """Every runtime of this process that was started and not stopped."""
    return [runtime for runtime in list(_open) if runtime._is_mine and not runtime._stopped]


def innermost() -> Runtime | None:
    """The runtime of the innermost `with Runtime()` of this process."""
    with _lock:
        return next((runtime for runtime in reversed(_current) if runtime._is_mine), None)


def _use_arena() -> None:
    """What `shmrt.empty` makes lies where the current runtime's payloads are; the caller has the lock."""
    runtime = innermost()
    _native.Arena.use(None if runtime is None else runtime._arena)


def current() -> Runtime:
    """The program's current runtime: the innermost `with Runtime()`, else the default one, started now if need be.

    In a worker the default one is the runtime that owns the worker."""
    global _default
    with _lock:
        if (runtime := innermost()) is not None:
            return runtime
        if _default is None or not _default._is_mine or _default._stopped:
            job = getattr(sys.modules.get("shmrt.process.worker"), "job_of_this", None)
            if job is not None and job.own_pid == os.getpid():
                from shmrt.runtime_inner import InnerRuntime

                _default = InnerRuntime(job)
            else:
                _default = Runtime()
        runtime = _default
    runtime.start()
    return runtime


class Runtime(RuntimeEvents, RuntimePools, RuntimeHealth):
    """The root supervisor process and what belongs to it.

    tree: a Supervisor; `start` (and `with`) returns when all of it is up, StartError says which child was not. When it
    gives up, the runtime ends with its reason. name: for people, and for the command line's verbs. shm_limit bounds the
    payload memory (bytes or "2GiB"; None: half of what is available). on_event(event) is called in a daemon thread with
    each report of the trees (see `events`), and with what the root tells of workers: ("started", slot, epoch, pid),
    ("gone", ...), ("root_lost", ...). preload: modules imported once in a template for every pool that names none.
    health: checks of this runtime alone (`HealthCheck`). http: a port, or "HOST:PORT", where /livez, /readyz, /startupz
    and /healthz are served; the host is 127.0.0.1 by default, port 0 takes a free one (`http_address`).

    Raises SegmentError if shared memory is short, naming needed, free and whose limit it is.
    """

    # What a root needs; without that much left nothing is started: the kernel might have to kill the program.
    _START_BYTES = 12 << 20

    def __init__(
        self,
        tree: Supervisor | None = None,
        *,
        name: str | None = None,
        shm_limit: int | str | None = None,
        preload: tuple[str, ...] | list[str] = (),
        on_event: Callable[[Any], None] | None = None,
        health: Iterable[HealthCheck] = (),
        http: str | int | None = None,
    ) -> None:
        check_name(name, "name")
        preload = check_modules(preload, "preload")
        if on_event is not None and not callable(on_event):
            raise TypeError(f"on_event must be a callable that takes an event, not {on_event!r}")
        if tree is not None and not hasattr(tree, "specification"):
            raise TypeError(f"tree must be a Supervisor, not {tree!r}")
        self._describe_health(health, http)
        self.tree = tree
        self.name = name
        self.shm_limit = None if shm_limit is None else parse_size(shm_limit, "shm_limit")
        self.preload = preload
        self._on_event = on_event
        self._owner_pid = os.getpid()
        self._lock = threading.RLock()
        self._pools: dict[int, OpenedPool] = {}
        self._next_pool = 1
        self._started = False
        self._stopped = False
        self._down: Any = None
        self._ended = threading.Event()
        self._ending = threading.RLock()  # held by whoever stops it
        self._hearing = threading.RLock()
        self._to_dispatch = deque()
        self._home: Home | None = None
        self._trees: TreeSide | None = None
        self._notices: list[dict[str, Any]] = []
        self._link: Any = None
        self._hub: Any = None
        self._slots: Any = None
        self._guards: Any = None  # its breakers, bulkheads and rate limits, once one is used here

    # ---- life -----------------------------------------------------------------------------------------------------
    @property
    def _is_mine(self) -> bool:
        return os.getpid() == self._owner_pid

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
            _native.check_memory(self._START_BYTES)
            try:
                self._take_port()
                self._take_name(self.name)
                self._start()
                self._serve_name()
            except BaseException:
                self._undo_start()
                raise
            _finish_at_exit(self)
            self._started = True
            _native.guards_moved()
        try:
            self._serve_http()
            if self.tree is not None:
                self.trees.start_tree(self.tree)
        except BaseException:
            self.stop(0.0)
            raise
        return self

    def _start(self) -> None:
        """The root first: its interpreter starts while the rest is imported and made. The dispatcher goes on then."""
        from shmrt.supervise.launch import launch

        self._dispatcher = threading.Thread(target=self._dispatch, name="shmrt-dispatch", daemon=True)
        self._dispatcher.start()
        launched = launch()
        try:
            from shmrt.supervise.link import RootLink
        except BaseException:
            launched.end()
            raise
        self._link = RootLink.start(
            self._make_memory, on_event=self._handle_event, on_down=self._handle_down, launched=launched
        )

    def _make_memory(self) -> tuple[_native.Slots, int]:
        """While the root's interpreter starts."""
        self._slots = _native.Slots.create(SLOTS)
        self._arena = _native.Arena.default() if self.shm_limit is None else _native.Arena.create(self.shm_limit)
        self._slots.claim(_native.SLOT_PROGRAM, 0, 0)
        self._slots.set_process(_native.SLOT_PROGRAM, os.getpid())
        self._hub = _native.Hub(self._slots.fd, self._arena)
        self._hub.start()
        return self._slots, self._arena.fd

    def _undo_start(self) -> None:
        """No thread, descriptor or memory was left for one of the steps: what the others made goes away."""
        if self._hub is not None:
            self._hub.stop()
        if self._slots is not None:
            self._slots.close()
        self._link = self._hub = self._slots = None
        self._end_name()
        self._close_port()

    def stop(self, grace: float = 5.0) -> None:
        """Ends its trees in order (each child has the time of its `shutdown`), then every pool (what is pending is lost
        with RuntimeDown), then the root. Nothing is left afterwards. Ctrl-C kills what is left of the trees."""
        if not self._started or not self._is_mine:
            return
        try:
            if self._trees is not None and not self._stopped:
                self._trees.stop_all()
        finally:
            self._finish_once(grace)

    def _finish_once(self, grace: float) -> None:
        me = threading.current_thread()
        if not self._ending.acquire(blocking=me is not self._dispatcher and me.name != "shmrt-link"):
            return  # another thread is at it, and waits for this one
        try:
            if not self._stopped:
                self._finish(grace)
        finally:
            self._ending.release()

    def _finish(self, grace: float) -> None:
        for opened in list(self._pools.values()):
            opened.core.close()
            opened.core.fail_backlog(False)
            opened.finish(0.0)
        with self._lock:
            self._stopped = True
        self._end(grace)
        if threading.current_thread() is not self._dispatcher:
            self._dispatcher.join()
        self._ended.set()

    def _end_with_tree(self) -> None:
        """Its tree has given up: whoever waits for anything of this runtime hears why."""
        for opened in list(self._pools.values()):
            self._break(opened, [f"the runtime's tree ended: {self._down!r}"])
        self.stop(0.0)

    def _end(self, grace: float) -> None:
        if self._home is not None:
            self._home.close(self._down or "it was stopped")
        if self._trees is not None:
            self._trees.leave()
        if self._guards is not None:
            from shmrt.guard import place

            place.leave(self)
        self._link.close(grace)
        self._hub.stop()
        self._slots.close()
        self._end_name()
        self._close_port()

    def wait(self, timeout: float | None = None) -> Any:
        """Waits until the runtime has ended; the exit reason of its tree, "shutdown" if it was stopped, None if it has
        not ended in time."""
        from shmrt.waits import until_set

        until_set(self._ended, timeout)
        return (self._down or "shutdown") if self._ended.is_set() else None

    def __enter__(self) -> Runtime:
        self.start()
        with _lock:
            _current.append(self)
            _use_arena()
        _native.guards_moved()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with _lock:
            if self in _current:
                _current.remove(self)
            _use_arena()
        _native.guards_moved()
        try:
            if kind is None:
                for opened in self._loose_pools():
                    opened.shutdown()
            else:
                self._abort()
        except BaseException as error:
            if kind is None and not isinstance(error, Exception):  # Ctrl-C during the wait
                self._abort()
            raise
        finally:
            self.stop()

    def _abort(self) -> None:
        """By an exception or Ctrl-C: what is queued is cancelled, what runs in any pool or tree has the same few
        seconds."""
        pools = self._loose_pools()
        for opened in pools:
            opened.cancel_queue()
        end = monotonic() + _GRACE_S
        if self._trees is not None:
            self._trees.stop_all(_GRACE_S)
        for opened in pools:
            opened.abort(max(end - monotonic(), 0.0))

    def _check(self) -> None:
        from shmrt.errors import RuntimeDown

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
            for opened in self._loose_pools():
                try:
                    opened.shutdown()
                except Exception:
                    sys.excepthook(*sys.exc_info())
        except KeyboardInterrupt:
            self._abort()
            raise
        finally:
            self.stop()

    # ---- trees ----------------------------------------------------------------------------------------------------
    @property
    def trees(self) -> TreeSide:
        """This program's half of the trees."""
        with self._lock:
            if self._trees is None:
                from shmrt.runtime_tree import TreeSide

                self._trees = TreeSide(self)
            return self._trees

    def supervisor(self, name: str | None = None) -> SupervisorRef:
        """The handle of a running supervisor by its name; without one, of the runtime's own tree. NotFound."""
        return self.trees.supervisor(name)

"""A pool of a tree, from any process of the runtime: `whereis("hash").submit(f, x)` in a worker.

Such a pool is dispatched by the program. A worker puts its call into the pool's mailbox; a thread of the program
(`shmrt-door-...`) takes it, submits it, and sends back what came of it. In the program `whereis` gives the `Pool`
itself, which is faster.

If the calling worker dies, its task goes on and the result is dropped. If the program dies, all of it ends. A pool that
its supervisor restarts keeps its mailbox: what was not taken is done by the next one. What a full pool with a bound
(`max_pending`) does to whom is told in `pool_admission.py`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from time import monotonic_ns

from shmrt import _native
from shmrt.errors import RingClosed
from shmrt.process.functions import dumps
from shmrt.process.packing import pack_exception
from shmrt.server_ref import ServerRef

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any

    from shmrt.home import Home
    from shmrt.pool_admission import Admission

__all__ = ["Door", "PoolRef"]

_SLOT = 2


class PoolRef(ServerRef):
    """What a worker holds of a pool of its runtime's tree. Pickles to any process of the runtime."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """fn(*args, **kwargs) in the pool. The future raises what the pool's own would: Overloaded where the pool is
        full and its policy is "raise", or this is one of its own workers; ServerDown if the pool is gone. A task that
        has a deadline passes it on."""
        left, passes_on = _native.turn()
        end_ns = monotonic_ns() + int(left * 1e9) if passes_on and left is not None else 0
        return self.request("submit", dumps((fn, args, kwargs)), _own_slot(), end_ns)

    def stop(self, reason: Any = "shutdown", timeout: float | None = None) -> None:
        """A pool ends with its supervisor, or by `terminate_child`."""
        raise TypeError(f"{self!r} is stopped by its supervisor: terminate_child")

    def __repr__(self) -> str:
        return f"<PoolRef {self._label()} key={self._key}>"


def _own_slot() -> int:
    """By which the program knows the workers of its pools; -1 elsewhere."""
    job = getattr(sys.modules.get("shmrt.process.worker"), "job_of_this", None)
    return job.index if job is not None and job.own_pid == os.getpid() else -1


def run_blob(blob: bytes) -> Any:
    """In a worker of the pool: what `PoolRef.submit` was given."""
    from _pickle import loads

    fn, args, kwargs = loads(blob)
    return fn(*args, **kwargs)


class Door:
    """The program's end of a pool's mailbox: one thread, asleep while nobody sends anything.

    It never waits for a place in a full pool, since workers of that very pool may be behind it in the mailbox, and wait
    for what they send: those are refused. What others send is held until there is a place, by a second thread that is
    there only meanwhile; as many as there are waiting callers, whose number the runtime bounds.
    """

    def __init__(self, home: Home, mailbox: Any, pool: Any) -> None:
        self._calls = home.calls
        self._mailbox = mailbox
        self._pool = pool
        self._admission: Admission = pool._opened.admission
        self._slots = _native.Slots.create(_SLOT + 1)  # its own, to sleep by: the program's slot is the hub's
        self._closed = False
        self._held: deque[tuple[int, bytes, int]] = deque()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"shmrt-door-{pool.name}")
        self._thread.start()

    def close(self) -> None:
        """Takes nothing more; what was taken is answered when it is done, or when the pool takes no more."""
        self._closed = True
        self._slots.send_control(_SLOT)
        self._mailbox.ring()
        if self._thread is not threading.current_thread():
            self._thread.join()
        self._slots.close()

    def _run(self) -> None:
        seen = 0
        while not self._closed:
            try:
                got = self._mailbox.take(self._calls, self._slots, _SLOT, seen, None)
            except RingClosed:
                return
            if isinstance(got, int):
                seen = got
            elif got is not None:
                self._take(got[1], got[2], got[3])

    def _take(self, reference: int, name: str | None, args: Any) -> None:
        try:
            if name != "submit":
                raise AttributeError(f"pool {self._pool.name} can only be asked to submit, not to {name!r}")
            blob, slot, end_ns = args
            opened = self._pool._opened
            own = opened.first <= slot < opened.first + opened.count
            with self._lock:
                behind = bool(self._held) and not own
            future = None
            if not behind:
                future = self._admission.try_submit(self._pool._core.submit_with, *self._call(blob, end_ns))
            if future is None:
                if own or self._admission.on_full == "raise":
                    raise self._admission.refusal()
                self._hold(reference, blob, end_ns)
                return
        except BaseException as error:
            self._fail(reference, error)
        else:
            self._watch(reference, future)

    # ---- what there is no place for yet -----------------------------------------------------------------------------
    def _hold(self, reference: int, blob: bytes, end_ns: int) -> None:
        with self._lock:
            self._held.append((reference, blob, end_ns))
            first = len(self._held) == 1
        if first:
            threading.Thread(target=self._let_in, daemon=True, name=f"shmrt-held-{self._pool.name}").start()

    def _let_in(self) -> None:
        while True:
            reference, blob, end_ns = self._held[0]
            try:
                future = self._admission.submit(True, self._pool._core.submit_with, *self._call(blob, end_ns))
            except BaseException as error:
                self._fail(reference, error)
            else:
                self._watch(reference, future)
            with self._lock:
                self._held.popleft()
                if not self._held:
                    return

    def _call(self, blob: bytes, end_ns: int) -> tuple[Any, ...]:
        """For `submit_with`: what is left of the deadline goes along."""
        left = max(end_ns - monotonic_ns(), 0) / 1e9 if end_ns else None
        return (self._pool._defaults.replace(deadline=left).packed(), run_blob, blob)

    # ---- answers ----------------------------------------------------------------------------------------------------
    def _watch(self, reference: int, future: Any) -> None:
        future.add_done_callback(lambda done: self._answer(reference, done))

    def _answer(self, reference: int, future: Any) -> None:
        try:
            self._calls.reply(reference, _native.CALL_REPLY, future.result())
        except BaseException as error:  # CancelledError, too
            self._fail(reference, error)

    def _fail(self, reference: int, error: BaseException) -> None:
        where = f"in pool {self._pool.name}"
        try:
            self._calls.reply(reference, _native.CALL_ERROR, (*pack_exception(error), where))
        except Exception:
            pass  # the runtime has ended, and with it whoever waited

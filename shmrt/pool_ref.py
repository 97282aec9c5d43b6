"""A pool of a tree, from any process of the runtime: `whereis("hash").submit(f, x)` in a worker.

Such a pool is dispatched by the program. A worker puts its call into the pool's mailbox; a thread of the program
(`shmrt-door-...`) takes it, submits it, and sends back what came of it. In the program `whereis` gives the `Pool`
itself, which is faster.

If the calling worker dies, its task goes on and the result is dropped. If the program dies, all of it ends. A pool that
its supervisor restarts keeps its mailbox: what was not taken is done by the next one.
"""

from __future__ import annotations

import threading

from shmrt import _native
from shmrt.errors import RingClosed
from shmrt.process.functions import dumps
from shmrt.process.remote import pack_exception
from shmrt.server_ref import ServerRef

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any

    from shmrt.home import Home

__all__ = ["Door", "PoolRef"]

_SLOT = 2


class PoolRef(ServerRef):
    """What a worker holds of a pool of its runtime's tree. Pickles to any process of the runtime."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """fn(*args, **kwargs) in the pool. The future raises what the pool's own would; ServerDown if the pool is
        gone."""
        return self.request("submit", dumps((fn, args, kwargs)))

    def stop(self, reason: Any = "shutdown", timeout: float | None = None) -> None:
        """A pool ends with its supervisor, or by `terminate_child`."""
        raise TypeError(f"{self!r} is stopped by its supervisor: terminate_child")

    def __repr__(self) -> str:
        return f"<PoolRef {self._label()} key={self._key}>"


def run_blob(blob: bytes) -> Any:
    """In a worker of the pool: what `PoolRef.submit` was given."""
    from _pickle import loads

    fn, args, kwargs = loads(blob)
    return fn(*args, **kwargs)


class Door:
    """The program's end of a pool's mailbox: one thread, asleep while nobody sends anything."""

    def __init__(self, home: Home, mailbox: Any, pool: Any) -> None:
        self._calls = home.calls
        self._mailbox = mailbox
        self._pool = pool
        self._slots = _native.Slots.create(_SLOT + 1)  # its own, to sleep by: the program's slot is the hub's
        self._closed = False
        self._thread = threading.Thread(target=self._run, daemon=True, name=f"shmrt-door-{pool.name}")
        self._thread.start()

    def close(self) -> None:
        """Takes nothing more; what was taken is answered when it is done."""
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
            future = self._pool.submit(run_blob, args[0])
        except BaseException as error:
            self._fail(reference, error)
        else:
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

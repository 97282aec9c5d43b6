"""The runtime inside a worker: pools that a task makes, with workers of the same root.

In a worker `shmrt.runtime()` is the runtime that owns the worker. Its pools are dispatched by a hub of this process,
their workers are forked by the root that forked this one, and payloads lie in the same arena, under the same limit.
They end with this process, however that ends; a death among them concerns this process as little as its own death
concerns the program's other workers. Servers that it starts are not its own: they go on, however it ends.
"""

from __future__ import annotations

import os
import threading

from shmrt import _native
from shmrt.runtimes import Runtime

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from shmrt.pool_opened import OpenedPool
    from shmrt.process.spawn import Job

__all__ = ["InnerRuntime"]


class InnerRuntime(Runtime):
    """Made at first use, one for each worker; ends with the worker's normal exit, after its pools' work."""

    _START_BYTES = 1 << 20
    _is_program = False

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    @property
    def pid(self) -> int | None:
        """The root's process id."""
        return os.getppid()

    def _start(self) -> None:
        from shmrt.supervise.inner import link_of

        self._dispatcher = threading.Thread(target=self._dispatch, name="shmrt-dispatch", daemon=True)
        self._dispatcher.start()
        self._link = link_of(self._job)
        self._link.listen(self._handle_event, self._handle_down)
        slot = self._link.open_hub()
        if not slot:
            raise self._no_slots(1)
        self._slots = self._job.slots
        self._arena = _native.Arena.default()
        self._hub = _native.Hub(self._slots.fd, self._arena, slot)
        self._hub.start()

    def stop(self, grace: float = 5.0) -> None:
        """Ends this process's pools. Servers that it started beside any tree are the runtime's and go on, as they do
        when it is killed."""
        self._trees = None
        super().stop(grace)

    def _undo_start(self) -> None:
        if self._link is not None:
            self._link.close()
        if self._hub is not None:
            self._hub.stop()
        self._link = self._hub = self._slots = None

    def _end(self, grace: float) -> None:
        self._link.close()
        self._hub.stop()

    def _forget_pool(self, opened: OpenedPool) -> None:
        if not opened.removed.is_set():  # it failed to open, and its slots are still its own
            self._link.remove_pool(opened.number, 0.0)
        super()._forget_pool(opened)

    def _add_pool(self, opened: OpenedPool) -> None:
        with self._lock:
            self._check()
            number, first = self._link.allot(opened.count)
            if not number:
                raise self._no_slots(opened.count)
            opened.number, opened.first = number, first
            self._pools[number] = opened

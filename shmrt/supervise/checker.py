"""What the process of a health check does: it waits for the root to say "run", runs the check, and says what came of
it.

    root to process    ("check", number, pickle or None, target)     None: the one that it has
    process to root    ("checked", number, status, detail, value, unit, error)

The check runs in the main thread and may do anything: raise, exit, fork, hang. Whatever ends this process, or keeps it
from answering in time, the root makes a result of that.
"""

from __future__ import annotations

import os

from shmrt import _native
from shmrt.process import worker
from shmrt.process.findings import failure, find
from shmrt.process.spawn import leave_copy
from shmrt.supervise.inner import link_of

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.inner import InnerLink

__all__ = ["CheckerLoop"]


class CheckerLoop:
    """As `process/worker.py` wants it."""

    def __init__(self, slots: Any, index: int, *_: Any) -> None:
        job = worker.job_of_this
        assert job is not None
        self.job = job
        self.link: InnerLink = link_of(job)
        self._came = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._fn: Any = None

    def start_failed(self, error: BaseException) -> None:
        """The root sees the exit."""

    def run(self) -> int:
        self.link.on_control = lambda: os.eventfd_write(self._came, 1)
        while True:
            for message in self.link.take():
                if message[0] == "check":
                    self._check(*message[1:])
            if self.link.over:
                return 0
            wanted = [(self._came, _native.POLLIN)]
            if not self.link.has_thread:  # else that one reads, and says so
                wanted.append((self.link.fd, _native.POLLIN))
            _native.poll(wanted, -1)
            try:
                os.eventfd_read(self._came)
            except BlockingIOError:
                pass

    def _check(self, number: int, what: bytes | None, target: Any) -> None:
        try:
            if what is not None:
                from _pickle import loads

                self._fn = None
                self._fn = loads(what)
            finding = find(self._fn() if target is None else self._fn(target))
        except BaseException as error:
            if os.getpid() != self.job.own_pid:
                leave_copy(error)
            finding = failure(error)
        if os.getpid() != self.job.own_pid:
            leave_copy()
        self.link.send_last(("checked", number, *finding))

    def log(self, row: tuple[Any, ...]) -> None:
        self.link.send(("log", row))

    def exit_value(self, value: object) -> None:
        """Checks have none."""

"""What a child's process does between its bring-up and its exit: it runs a function, or serves a mailbox.

`process/worker.py` brings it up like any worker and calls, in this order, `prepare` (unpickle, and a server's `init`;
whatever it raises is a failed start), READY, `run`. The last thing said to the root is ("exit", reason): how this
process meant to end. If it is killed before, the kernel's word counts.

A function is asked to end by SIGTERM: it sees `Shutdown`, raised wherever its main thread is, unless it has set a
handler of its own. A server hears of it between two messages; a handler in progress sees `Shutdown` like a function,
unless the server traps exits.
"""

from __future__ import annotations

import os

from shmrt import _native
from shmrt.process import packing, worker
from shmrt.process.server_words import plain
from shmrt.process.signals import TERM, USR2, die_by
from shmrt.process.spawn import leave_copy
from shmrt.supervise.inner import link_of

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.inner import InnerLink
    from shmrt.supervise.kin import Kin

__all__ = ["ChildLoop", "this_child"]

_this: ChildLoop | None = None


def this_child() -> ChildLoop | None:
    """The child of a tree that this process is, if it is one and not a fork of one."""
    job = worker.job_of_this
    return _this if _this is not None and job is not None and job.own_pid == os.getpid() else None


class ChildLoop:
    """As `worker.py` wants it."""

    def __init__(self, slots: Any, index: int, *_: Any) -> None:
        global _this
        job = worker.job_of_this
        assert job is not None
        self.job = job
        self.kin: Kin = job.spec["child"]  # type: ignore[assignment]
        self.key = self.kin.key
        self.slots = slots
        self.index = index
        self.link: InnerLink = link_of(job)
        self.mailbox = self.kin.mailbox
        self.calls = _native.Calls(slots)
        self.says_ready = self.kin.is_server
        self._inside = self._asked_to_end = self._signalled = False
        self._start: tuple[Any, tuple[Any, ...], dict[str, Any]] | None = None
        _this = self

    def deliver(self, message: tuple[Any, ...]) -> None:
        """A control message of this process's own, for a server."""
        self.link.deliver(message)

    # ---- before READY -----------------------------------------------------------------------------------------------
    def prepare(self) -> None:
        """A function is unpickled before the child counts as started. A server does all of this itself."""
        if self.kin.is_server:
            return
        from _pickle import loads

        start, args, kwargs = loads(self.kin.data["blob"])
        extra = self.kin.data.get("extra")
        self._start = (start, args if extra is None else (*loads(extra), *args), kwargs)
        _on_signal(TERM, self._on_term)
        _on_signal(USR2, self._on_exit_signal)

    def start_failed(self, error: BaseException) -> None:
        self.link.send_last(("exit", *reason_of(error)))

    # ---- after it ---------------------------------------------------------------------------------------------------
    def run(self) -> int:
        """The exit code. Says why before it returns."""
        if self.kin.is_server:
            return self._serve()
        assert self._start is not None
        start, args, kwargs = self._start
        self._start = None
        try:
            self._inside = True
            if self._asked_to_end:
                self._on_term(TERM, None)
            start(*args, **kwargs)
            self._inside = False
            if os.getpid() != self.job.own_pid:
                leave_copy()
        except BaseException as error:
            self._inside = False
            if os.getpid() != self.job.own_pid:
                leave_copy(error)
            if isinstance(error, SystemExit) and not _is_shutdown(error):
                raise  # sys.exit(3) is exit code 3
            reason = reason_of(error)[0]
            if self._signalled and _is_shutdown(error):
                found = self.link.take_exit_signal()
                if found is None:
                    die_by(USR2)
                reason = found
            self.link.send_last(("exit", reason))
            return 0 if _is_shutdown(error) else 1
        self.link.send_last(("exit", "normal"))
        return 0

    def _on_term(self, number: int, frame: object) -> None:
        """Raises wherever the function is; once, and neither before it has begun nor after it has ended."""
        self._asked_to_end = True
        if self._inside:
            self._inside = False
            from shmrt.errors import Shutdown

            raise Shutdown

    def _on_exit_signal(self, number: int, frame: object) -> None:
        """A linked process ended abnormally: so does this one, for the same reason."""
        if self._inside:
            self._signalled = True
            self._on_term(number, frame)

    def _ready(self) -> None:
        if not worker.ready(self.job):
            os._exit(1)  # given up by the root while it got ready

    def _serve(self) -> int:
        from shmrt.process.serve import serve

        assert self.mailbox is not None
        self.link.on_control = self._wake
        data = self.kin.data
        reason = serve(
            data["blob"],
            self.mailbox,
            self.calls,
            self.slots,
            self.index,
            self.link,
            on_ready=self._ready,
            name=data["label"],
            runtime=os.fstat(self.slots.fd).st_ino,
            extra=data.get("extra"),
        )
        self.link.send_last(("exit", reason))
        if isinstance(reason, tuple) and reason[0] == "exit":
            return int(reason[1])
        return 0 if reason in ("normal", "shutdown") or reason[0] == "shutdown" else 1

    def _wake(self) -> None:
        """The thread of the link may have read a message after the loop looked for it in vain, and the root raised the
        count before that: raised once more, the loop looks again."""
        assert self.mailbox is not None
        self.slots.send_control(self.index)
        self.mailbox.ring()

    def log(self, row: tuple[Any, ...]) -> None:
        self.link.send(("log", row))

    def exit_value(self, value: object) -> None:
        """Children have none."""


def reason_of(error: BaseException) -> tuple[Any]:
    """The exit reason of whoever ends by this exception, in plain values, alone in a tuple."""
    if _is_shutdown(error):
        info = getattr(error, "info", None)
        return ("shutdown" if info is None else ("shutdown", plain(info)),)
    _, name, message, text = packing.pack_exception(error)
    return (("error", name, message, text),)


def _is_shutdown(error: BaseException) -> bool:
    from shmrt.errors import Shutdown

    return isinstance(error, Shutdown)


def _on_signal(number: int, handler: Any) -> None:
    import _signal  # type: ignore[import-not-found]

    _signal.signal(number, handler)

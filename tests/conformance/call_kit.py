"""A runtime of bare memory: slots, calls, one mailbox, and servers forked and buried by hand, as the root does it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shmrt import _native
from shmrt._native import Calls, Mailbox, Slots

PATIENCE = 60.0  # only a hang is longer
TARGET = 7
REPLY, ERROR, DOWN = _native.CALL_REPLY, _native.CALL_ERROR, _native.CALL_DOWN
TIMEOUT, OVERLOADED, CLOSED = _native.CALL_TIMEOUT, _native.CALL_OVERLOADED, _native.CALL_CLOSED
BLOCK, RAISE, DROP_OLDEST, DROP_NEWEST = (
    _native.LAYOUT[f"RING_{name}"] for name in ("BLOCK", "RAISE", "DROP_OLDEST", "DROP_NEWEST")
)

Handler = Callable[["Office", int, int, Any, Any, Any], None]


class Unreadable:
    """A value that is sent and cannot be read."""

    def __reduce__(self) -> Any:
        return _fail, ()


def _fail() -> None:
    raise ZeroDivisionError("this value cannot be read")


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.001)


def echo(office: Office, kind: int, reference: int, name: Any, args: Any, kwargs: Any) -> None:
    """Answers with what it was asked; some names do something else."""
    if name == "forget" or kind != _native.MAIL_CALL:
        return
    if name == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if name is None:
        office.calls.reply(reference, ERROR, repr(args))
    elif name == "unreadable":
        office.calls.reply(reference, REPLY, Unreadable())
    else:
        office.calls.reply(reference, REPLY, (name, args, kwargs))


class Office:
    def __init__(self, capacity: int = 64, on_full: int = BLOCK, slot_bytes: int = 1024) -> None:
        self.slots = Slots.create(32)
        self.calls = Calls(self.slots)
        self.mailbox = Mailbox.create(capacity, slot_bytes, on_full, None, self.calls)
        self.children: dict[int, int] = {}
        self.next_slot = _native.SLOT_FIRST_WORKER

    def call(self, name: str, *args: Any, timeout: float | None = PATIENCE, **kwargs: Any) -> tuple[int, Any]:
        return self.calls.call(self.mailbox, TARGET, name, args, kwargs or None, timeout)

    def begin(self, name: str, *args: Any, timeout: float | None = PATIENCE) -> int:
        return self.calls.begin(self.mailbox, TARGET, name, args, None, timeout)

    def cast(self, name: str, *args: Any, timeout: float | None = PATIENCE) -> bool:
        return self.mailbox.cast(_native.MAIL_CAST, name, args, None, timeout)

    def take(self, timeout: float | None = 0, seen: int = 0) -> Any:
        """In this process, as if it had slot 2."""
        return self.mailbox.take(self.calls, self.slots, 2, seen, timeout)

    def fork(self, function: Callable[[], None]) -> int:
        """A child process that runs this and ends."""
        pid = os.fork()
        if pid:
            self.children[pid] = _owner_of(pid)
            return pid
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)

    def serve(self, handler: Handler = echo, mailbox: Mailbox | None = None) -> int:
        """A server in a child process; ends when its control count is raised. Its slot is `slot_of(pid)`."""
        index = self.next_slot
        self.next_slot += 1
        box = mailbox or self.mailbox

        def loop() -> None:
            self.slots.claim(index, 0, 0)
            self.slots.set_process(index, os.getpid())
            self.slots.ready(index)
            while True:
                message = box.take(self.calls, self.slots, index, 0, None)
                if isinstance(message, int):
                    return
                assert message is not None
                handler(self, *message)
                message = None  # its blocks are held as long as it is
                box.done(self.slots, index)

        pid = self.fork(loop)
        wait_until(lambda: self.slots.state(index) == _native.SLOT_READY)
        return pid

    def bury(self, pid: int, reason: Any = "killed") -> int:
        """What the root does after a death."""
        status = os.waitpid(pid, 0)[1]
        assert status == 0 or os.WIFSIGNALED(status), f"a child failed: {status}"
        owner = self.children.pop(pid)
        failed = self.calls.fail_taken(owner, reason)
        self.calls.reclaim()
        _native.Arena.default().reclaim_dead()
        return failed

    def close(self) -> None:
        for pid in list(self.children):
            os.kill(pid, signal.SIGKILL)
            self.bury(pid)
        self.slots.close()


def _owner_of(pid: int) -> int:
    """As the native core makes it: pid and ten bits of the start time."""
    with open(f"/proc/{pid}/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return pid | (1 + ticks % 1023) << 22


@contextmanager
def office(capacity: int = 64, on_full: int = BLOCK, slot_bytes: int = 1024) -> Iterator[Office]:
    made = Office(capacity, on_full, slot_bytes)
    try:
        yield made
    finally:
        made.close()

"""What a process needs to talk to servers: call slots, mailboxes, the link to its root. One `Home` per runtime.

    home()           of the runtime that is current in this process
    home(runtime)    of the runtime with that word, as refs and senders carry it

`shmrt/home.py` knows the runtimes of a process and says how they are found, with `use(finder)`. Nothing is opened
before it is needed.

A mailbox is found by its address (root pid, number of its descriptor there, inode, token) and opened through /proc.
The root may have died and its pid may be another's by now, so what was opened must have the inode and the token; if
not, that mailbox is gone, and with it the server: LookupError.

If the process that holds a home dies, the root gives its call slots back; a fork of it owns nothing of this.
"""

from __future__ import annotations

import os
from _thread import allocate_lock, get_ident  # `threading` is more than a server's process needs
from collections import OrderedDict
from weakref import WeakValueDictionary

from shmrt import _native
from shmrt.errors import RuntimeDown
from shmrt.supervise.asking import AskError

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol, TypeAlias

    from shmrt.server_requests import Requests

    Address: TypeAlias = tuple[int, int, int, bytes]  # root pid, descriptor there, inode, token

    class Link(Protocol):
        """The way to the root. `ask` waits for the answer; AskError for one that says no, RuntimeDown for none."""

        def ask(self, verb: str, *args: Any, timeout: float | None = None) -> Any: ...

        def watch(self, number: int, call: Callable[[int, Any], None]) -> None: ...

        def unwatch(self, number: int) -> None: ...


__all__ = ["Address", "AskError", "Home", "home", "use"]

_RECENT = 16  # each open mailbox is a mapping and a descriptor; a ref keeps the one it uses


class Opened:
    """An open mailbox; closed when nobody refers to it any more."""

    __slots__ = ("__weakref__", "box")

    def __init__(self, box: Any) -> None:
        self.box = box


class Home:
    """One runtime as this process sees it. `key` is the child that this process is, None if it is none; `start` and
    `find` are what `shmrt.start` and `shmrt.whereis` do."""

    start: Callable[..., Any]
    find: Callable[[str], Any]

    def __init__(
        self, calls: Any, link: Link, arena: Any = None, *, runtime: Any = None, key: int | None = None
    ) -> None:
        self.calls = calls
        self.link = link
        self.arena = arena
        self.runtime = runtime
        self.key = key
        self.owner_pid = os.getpid()
        self.thread = get_ident()  # of a server: where its handlers run
        self.down: str | None = None
        self._lock = allocate_lock()
        self._boxes: WeakValueDictionary[bytes, Opened] = WeakValueDictionary()
        self._recent: OrderedDict[bytes, Opened] = OrderedDict()  # so that `whereis` again and again opens once
        self._requests: Requests | None = None

    def check(self) -> None:
        """RuntimeDown in a fork of the process that this belongs to, and after the end."""
        if os.getpid() != self.owner_pid:
            raise RuntimeDown(
                f"this runtime belongs to process {self.owner_pid}; process {os.getpid()} is a fork of it and must"
                " start its own",
                reason="forked",
            )
        if self.down is not None:
            raise RuntimeDown(f"the runtime is gone: {self.down}", reason=self.down)

    def opened(self, address: Address) -> Opened:
        """The mailbox with this address, opened once while anybody refers to it. LookupError if it is gone."""
        token = address[3]
        with self._lock:
            found = self._boxes.get(token)
            if found is None:
                found = self._boxes[token] = Opened(self._open(address))
            self._recent[token] = found
            self._recent.move_to_end(token)
            if len(self._recent) > _RECENT:
                self._recent.popitem(last=False)
            return found

    def mailbox(self, address: Address) -> Any:
        """The same without what keeps it: for who holds it himself."""
        return self.opened(address).box

    def forget(self, token: bytes) -> None:
        """That mailbox is closed: nothing of it is kept here."""
        with self._lock:
            self._boxes.pop(token, None)
            self._recent.pop(token, None)

    def _open(self, address: Address) -> Any:
        root_pid, number, inode, token = address
        try:
            fd = os.open(f"/proc/{root_pid}/fd/{number}", os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise LookupError(f"mailbox {token.hex()} is gone: {error}") from None
        try:
            if os.fstat(fd).st_ino != inode:
                raise LookupError(f"mailbox {token.hex()} is gone: its descriptor is another's")
            box = _native.Mailbox.attach(fd, self.arena, self.calls)
        finally:
            os.close(fd)
        if box.token != token:
            raise LookupError(f"mailbox {token.hex()} is gone: another one has its place")
        return box

    @property
    def requests(self) -> Requests:
        """The calls of this process that somebody watches instead of waiting; its thread starts with the first."""
        with self._lock:
            if self._requests is None:
                from shmrt.server_requests import Requests

                self._requests = Requests(self.calls)
            return self._requests

    def close(self, reason: str) -> None:
        """Ends the thread of the requests, and every request that is open in RuntimeDown."""
        with self._lock:
            self.down = self.down or reason
            requests, self._requests = self._requests, None
            self._recent.clear()
        if requests is not None:
            requests.close(reason)


_finder: Callable[[Any], Home] | None = None


def use(finder: Callable[[Any], Home]) -> None:
    """Says how homes are found in this process: `finder(runtime)`, with None for the current one."""
    global _finder
    _finder = finder


def home(runtime: Any = None) -> Home:
    """The home of a runtime in this process."""
    if _finder is None:
        __import__("shmrt.home")  # says how
    assert _finder is not None
    return _finder(runtime)

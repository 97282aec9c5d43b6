"""A worker's or child's end of its own socket to the root.

One per process. What it says and hears of the pools that it makes is as in a program's link; it asks the root about
trees (`asking.py`); and a child of a tree hears control messages through it: `take` gives them to its main loop.

The root is this process's parent: when it dies, so does this process. When this process dies, the root ends its pools
(`nested.py`). If the socket fails while both live (user code closed it, say), `on_down` ends this process's pools, and
whoever asks gets RuntimeDown.

A thread reads the socket from the first question on. Before that the main loop of a child reads it, when its slot's
control count says that something came; a process that never asks needs no thread.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from queue import SimpleQueue

from shmrt import _native
from shmrt.supervise.asking import Asking
from shmrt.supervise.commands import Commands
from shmrt.supervise.protocol import Channel

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.process.spawn import Job

__all__ = ["InnerLink", "link_of"]

_ANSWERS = ("hub", "allotted")
_CONTROLS = ("shutdown", "exit_signal", "system", "check")

_link: InnerLink | None = None
_making = threading.Lock()


def link_of(job: Job) -> InnerLink:
    """This process's link, made at first use."""
    global _link
    with _making:
        if _link is None or _link.owner_pid != os.getpid():
            _link = InnerLink(job.control_fd)
        return _link


class InnerLink(Commands, Asking):
    """Events come in the daemon thread `shmrt-link`, as those of a program's link do."""

    down: str | None = None

    def __init__(self, control_fd: int) -> None:
        Commands.__init__(self)
        Asking.__init__(self)
        self.root_pid = os.getppid()
        self.owner_pid = os.getpid()
        self.on_control: Callable[[], None] = lambda: None  # something is there for `take`
        self._channel = Channel(control_fd)
        self._on_event: Callable[[tuple[Any, ...]], None] = lambda event: None
        self._on_down: Callable[[str], None] = lambda reason: None
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._answers: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._controls: deque[tuple[Any, ...]] = deque()
        self._stacks: dict[int, int] = {}  # by pool: a descriptor that must stay open until it is sent
        self._closing = False
        self._wake = -1
        self._thread: threading.Thread | None = None

    @property
    def fd(self) -> int:
        return int(self._channel.fd)

    @property
    def has_thread(self) -> bool:
        return self._thread is not None

    @property
    def over(self) -> bool:
        """Nothing comes any more."""
        return bool(self._channel.closed)

    def listen(self, on_event: Callable[[tuple[Any, ...]], None], on_down: Callable[[str], None]) -> None:
        """What becomes of the events of this process's pools. Starts the thread."""
        self._on_event, self._on_down = on_event, on_down
        self._start()

    def _start(self) -> None:
        with self._lock:
            if self._thread is not None or self._channel.closed:
                return
            self._closing = False
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            thread = threading.Thread(target=self._run, name="shmrt-link", daemon=True)
            try:
                thread.start()
            except BaseException:
                os.close(self._wake)
                self._wake = -1
                raise
            self._thread = thread

    # ---- control messages -------------------------------------------------------------------------------------------
    def take(self) -> list[tuple[Any, ...]]:
        """Control messages that have come, in order. Without a thread it reads the socket itself. ("deaf", error) is
        the last one when a part of what the root said could not be received: it may have been the order to end."""
        if self._thread is None:
            with self._lock:
                messages = self._channel.receive() if self._thread is None else []
            for message, _ in messages:
                self._route(message)
        found = []
        while self._controls:
            found.append(self._controls.popleft())
        if why := self._channel.failed:
            from shmrt.errors import RuntimeDown

            found.append(("deaf", RuntimeDown(f"the root supervisor cannot be heard: {why}", reason=why)))
        return found

    def take_exit_signal(self) -> Any:
        """The reason of the exit signal that interrupted this process. It was sent before the interrupt, but the thread
        may not have read it yet; None if it does not come."""
        for _ in range(1000):
            for message in self.take():
                if message[0] == "exit_signal" and message[2] != "normal":
                    return message[2]
            if self._thread is None:
                break  # it would have been there
            _native.poll([], 1)
        return None

    def deliver(self, message: tuple[Any, ...]) -> None:
        """Something for the main loop of this child."""
        self._controls.append(message)
        self.on_control()

    def send(self, message: tuple[Any, ...]) -> None:
        """To the root. Returns when it is on its way; a root that does not read holds this process up."""
        with self._lock:
            self._channel.send(message)
            while self._channel.pending and self._thread is None:
                _native.poll([(self._channel.fd, _native.POLLOUT)], -1)
                self._channel.flush()
        self._poke()

    def send_last(self, message: tuple[Any, ...]) -> None:
        """The last words of this process: on their way before this returns, thread or not."""
        with self._lock:
            self._channel.send(message)
            while self._channel.pending and not self._channel.closed:
                _native.poll([(self._channel.fd, _native.POLLOUT)], -1)
                self._channel.flush()

    # ---- pools ------------------------------------------------------------------------------------------------------
    def open_hub(self) -> int:
        """The slot of this process's hub; 0 when the process table is full."""
        return int(self._ask_for("open_hub")[1])

    def allot(self, slot_count: int) -> tuple[int, int]:
        """(number, first slot) for a pool; number 0 when the process table is full."""
        _, number, first = self._ask_for("allot", slot_count)
        return number, first

    def add_pool(
        self, id: int, spec: dict[str, Any], *, first_slot: int, slot_count: int, lanes_fd: int, stacks_fd: int
    ) -> None:
        """As `RootLink.add_pool`, with what `allot` gave."""
        self._stacks[id] = stacks_fd
        self._send("add_pool", id, spec, first_slot, slot_count, fds=(lanes_fd, stacks_fd))

    def close(self) -> None:
        """Ends the thread; the socket stays, for as long as the process."""
        self._closing = True
        self._poke()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()
            os.close(self._wake)
            self._wake = -1
            self._thread = None
        for fd in self._stacks.values():
            os.close(fd)
        self._stacks.clear()

    def _ask_for(self, *question: object) -> tuple[Any, ...]:
        with self._asking:
            self._send(*question)
            answer = self._answers.get()
        if answer[0] not in _ANSWERS:
            from shmrt.errors import RuntimeDown

            self._answers.put(answer)  # for whoever asks next
            raise RuntimeDown(f"the root supervisor cannot be asked: {self.down}", reason=self.down)
        return answer

    def _send(self, *message: object, fds: tuple[int, ...] = ()) -> None:
        if self.down is not None:
            from shmrt.errors import RuntimeDown

            raise RuntimeDown(f"the root supervisor cannot be asked: {self.down}", reason=self.down)
        self._start()
        with self._lock:
            try:
                self._channel.send(message, fds)
            except OSError:
                self._channel.closed = True  # the thread hears of it, and says what that means
            busy = self._channel.pending or self._channel.closed
        if busy:
            self._poke()

    def _poke(self) -> None:
        if self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # ---- the thread -------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        reason = "its socket was closed"
        try:
            self._serve()
        except OSError as error:
            reason = f"its socket failed: {error}"
        finally:
            if not self._closing:
                self.down, self.cut_off = reason, True
                self._answers.put(("down",))
                self.root_gone(reason)
                self._on_down(reason)

    def _serve(self) -> None:
        channel = self._channel
        while not self._closing:
            with self._lock:
                events = _native.POLLIN | (_native.POLLOUT if channel.pending else 0)
            found = dict(_native.poll([(channel.fd, events), (self._wake, _native.POLLIN)], -1))
            if self._wake in found:
                os.eventfd_read(self._wake)
            while self._notes:
                self._on_event(self._notes.popleft())
            with self._lock:
                channel.flush()
                messages = channel.receive() if channel.fd in found else []
            for message, _ in messages:
                self._route(message)
            if channel.failed:
                self.on_control()  # whoever waits for the root's word hears in `take` that it will not come
                raise OSError(channel.failed)
            if channel.closed:
                return  # the root is gone, and this process about to be

    def _route(self, message: tuple[Any, ...]) -> None:
        verb = message[0]
        if verb == "answer":
            self.answered(message)
        elif verb in _CONTROLS:
            self.deliver(message)
        elif verb == "down":
            self.fell(message)
        elif verb in _ANSWERS:
            self._answers.put(message)
        else:
            if verb == "removed" and message[1] in self._stacks:
                os.close(self._stacks.pop(message[1]))
            self._on_event(message)

"""A worker's end of its own socket to the root, for the pools that it makes.

The root is this process's parent: when it dies, so does this process. When this process dies, the root ends its pools
(`nested.py`). If the socket fails while both live (user code closed it, say), `on_down` ends this process's pools, and
whoever asks gets RuntimeDown.
"""

from __future__ import annotations

import os
import threading
from queue import SimpleQueue

from shmrt import _native
from shmrt.supervise.commands import Commands
from shmrt.supervise.protocol import Channel

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["InnerLink"]

_ANSWERS = ("hub", "allotted")


class InnerLink(Commands):
    """Events come in the daemon thread `shmrt-link`, as those of a program's link do."""

    down: str | None = None

    def __init__(
        self, control_fd: int, on_event: Callable[[tuple[Any, ...]], None], on_down: Callable[[str], None]
    ) -> None:
        super().__init__()
        self.root_pid = os.getppid()
        self._channel = Channel(control_fd)
        self._on_event = on_event
        self._on_down = on_down
        self._lock = threading.Lock()
        self._asking = threading.Lock()
        self._answers: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._stacks: dict[int, int] = {}  # by pool: a descriptor that must stay open until it is sent
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._run, name="shmrt-link", daemon=True)
        try:
            self._thread.start()
        except BaseException:
            os.close(self._wake)
            raise

    def open_hub(self) -> int:
        """The slot of this process's hub; 0 when the process table is full."""
        return int(self._ask("open_hub")[1])

    def allot(self, slot_count: int) -> tuple[int, int]:
        """(number, first slot) for a pool; number 0 when the process table is full."""
        _, number, first = self._ask("allot", slot_count)
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
        if self._thread is not threading.current_thread():
            self._thread.join()
            os.close(self._wake)
        for fd in self._stacks.values():
            os.close(fd)
        self._stacks.clear()

    def _ask(self, *question: object) -> tuple[Any, ...]:
        with self._asking:
            self._send(*question)
            answer = self._answers.get()
        if answer[0] not in _ANSWERS:
            from shmrt.errors import RuntimeDown

            self._answers.put(answer)  # for whoever asks next
            raise RuntimeDown(f"the root supervisor cannot be asked: {self.down}", reason=self.down)
        return answer

    def _send(self, *message: object, fds: tuple[int, ...] = ()) -> None:
        with self._lock:
            try:
                self._channel.send(message, fds)
            except OSError:
                self._channel.closed = True  # the thread hears of it, and says what that means
            busy = self._channel.pending or self._channel.closed
        if busy:
            self._poke()

    def _poke(self) -> None:
        os.eventfd_write(self._wake, 1)

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
                if message[0] in _ANSWERS:
                    self._answers.put(message)
                    continue
                if message[0] == "removed" and message[1] in self._stacks:
                    os.close(self._stacks.pop(message[1]))
                self._on_event(message)
            if channel.closed:
                return  # the root is gone, and this process about to be

"""What whoever has pools asks of the root, over whatever channel: the program (`link.py`) or a worker (`inner.py`)."""

from __future__ import annotations

import os
from collections import deque

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    import threading
    from typing import Any

    from shmrt.supervise.protocol import Channel

__all__ = ["Commands", "Controlled"]


class Commands:
    """Commands only queue bytes, from any thread. The thread behind a link delivers its notes like events."""

    cut_off = False  # the root lives and cannot be asked: it ends this process's workers when this process ends

    def __init__(self) -> None:
        self._notes: deque[tuple[Any, ...]] = deque()

    if TYPE_CHECKING:  # each link has its own
        owner_pid: int
        _lock: Any
        _channel: Any  # a Channel; None while there is no root

        def _send(self, *message: object) -> None: ...

        def _poke(self) -> None: ...

    def tell(self, message: tuple[Any, ...]) -> None:
        """What the root can do without: left out while there is no root, or too much waits for one that does not
        read. Holds up nobody."""
        with self._lock:
            if self._channel is not None and os.getpid() == self.owner_pid:
                self._channel.tell(message)
        self._poke()

    def resize(self, id: int, workers: int) -> None:
        self._send("resize", id, workers)

    def replace(self, slot: int, epoch: int) -> None:
        """One more worker now; `replaced` says when it is ready and this one may be retired."""
        self._send("replace", slot, epoch)

    def kill(self, slot: int, epoch: int, reason: int, task_id: int = 0, *, stack: bool = False) -> None:
        """SIGKILL for this life of the slot; with `stack` its Python stacks are written first (30 ms)."""
        self._send("kill", slot, epoch, reason, task_id, stack)

    def remove_pool(self, id: int, grace_s: float) -> None:
        """TERM for each worker (finish the message, leave), SIGKILL after the grace; then the event `removed`."""
        self._send("remove_pool", id, float(grace_s))

    def note(self, event: tuple[Any, ...]) -> None:
        """Has the link's thread deliver this event. Takes no lock: a finalizer may call it anywhere."""
        self._notes.append(event)
        self._poke()


class Controlled:
    """Mixed into a program's link: its roots answer control clients, once there is a socket for them."""

    _control: tuple[str, int] | None = None

    if TYPE_CHECKING:  # the link's
        owner_pid: int
        _lock: threading.RLock
        _channel: Channel | None

        def _poke(self) -> None: ...

    def serve_control(self, name: str, listener: int) -> None:
        """This root and every later one. The socket stays open as long as the link."""
        with self._lock:
            self._control = (name, listener)
            self._send_control()

    def _send_control(self) -> None:
        if self._control is not None and self._channel is not None:
            name, listener = self._control
            self._channel.send(("control", name, self.owner_pid), (listener,))
            self._poke()

"""The mailboxes that the program keeps for its root, so that none is lost with a root that dies.

The root makes a mailbox with a child's first start and sends its descriptor here; the next root gets them all, by the
paths of the children they belong to, before it is given the trees again. What is still in them is then taken by the new
processes.
"""

from __future__ import annotations

import os

from shmrt import _native

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.protocol import Channel

__all__ = ["KeptMailboxes"]


class KeptMailboxes:
    """(path, descriptor) by the key of the child. Not thread-safe: the link's lock is around it."""

    def __init__(self) -> None:
        self._kept: dict[int, tuple[tuple[Any, ...], int]] = {}

    def keep(self, key: int, path: tuple[Any, ...], fd: int) -> None:
        self.drop(key)
        self._kept[key] = (path, fd)

    def drop(self, key: int) -> None:
        """Nobody will serve it any more."""
        kept = self._kept.pop(key, None)
        if kept is not None:
            os.close(kept[1])

    def hand_over(self, channel: Channel) -> None:
        """All of them to a new root; returns when they are sent, or that root is dead, too."""
        kept, self._kept = list(self._kept.values()), {}
        if kept:
            channel.send(("mailboxes", [path for path, _ in kept]), tuple([fd for _, fd in kept]))
        while channel.pending and not channel.closed:
            _native.poll([(channel.fd, _native.POLLOUT)], -1)
            channel.flush()
        for _, fd in kept:
            os.close(fd)

    def clear(self) -> None:
        for key in list(self._kept):
            self.drop(key)

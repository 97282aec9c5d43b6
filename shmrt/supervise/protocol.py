"""What the program and its root say to each other, and how: a Unix stream socket.

Each message is a tuple whose first item is its verb, encoded by marshal (both ends run the same
interpreter, and only plain values are sent: no user object ever passes here), behind eight bytes of
length and count of descriptors. Descriptors travel with the first byte of their message.

Each worker has such a socket of its own: what it says of the pools that it has made, and hears of them, is the same.

Program to root
    ("memory", oom_kills)                 first of all; descriptors: slots, arena (if there is one)
    ("add_pool", pool, spec, first_slot, slot_count)   descriptors: lanes, stacks
    ("resize", pool, workers)
    ("replace", slot, epoch)              start one more now; this one will be retired by the hub
    ("kill", slot, epoch, reason, task_id, stack)      stack: let it write its Python stack first
    ("remove_pool", pool, grace_s)
    ("freed",)                            slots became EMPTY (ringing the root's bell does the same)
    ("stop", grace_s)
    ("control", name, program_pid)        descriptor: the listening socket of a named runtime
    ("command_waits", number, text)       of a "command": its orders are given
    ("command_done", number, ok, value)   and this is what came of it
    ("ask", number, verb, ...)            about trees (`asks.py`); answer: ("answer", number, ok, value)
    ("checks", number, rows, surroundings)             its health checks, as it was asked for (`health.py`)
    ("mailboxes", paths)                  of the root before; descriptors: one each
    ("notice", name, measurements, metadata)           a place was full, say; from workers and children, too
    ("child_ready", key, incarnation)     a pool or pipeline of a tree is open
    ("child_exited", key, incarnation, reason)         it is closed, or could not be opened

Child of a tree to root, besides "ask"
    ("exit", reason)                      how it means to end; its last words
    ("log", row)
    ("system_reply", number, ok, payload)

Root to child of a tree, each with a rise of its slot's control count
    ("shutdown",)
    ("exit_signal", key, reason)          somebody linked to it has ended
    ("system", number, verb, payload)     stop, get_state, replace_state

Process of a health check to root     ("checked", number, status, detail, value, unit, error)
Root to process of a health check     ("check", number, pickle or None, target)

Worker to root, besides all of these but the first and the last
    ("open_hub",)                         answer: ("hub", slot)
    ("allot", slot_count)                 answer: ("allotted", pool, first_slot), for its "add_pool"

Root to program
    ("started", slot, epoch, pid)
    ("ready", slot, epoch)
    ("start_failed", pool, slot, epoch, reason)        before the "gone" of that slot; slot -1: the template
    ("gone", slot, epoch, wait_status, oom)
    ("replaced", slot, epoch, new_slot, new_epoch)     the worker asked for by "replace" is ready
    ("preload_threads", pool, native_count, names)     the preload left threads behind
    ("template_gone", pool, wait_status)
    ("pool_broken", pool, reasons)
    ("removed", pool)
    ("open_child", key, incarnation, data, path), ("close_child", key, incarnation), ("kill_child", key, incarnation)
    ("down", monitor, key, reason)        also to workers and children
    ("event", report)                     what a tree decided
    ("log", key, row)                     a child logged this
    ("top_ended", key, reason)
    ("mailbox", key, path), ("mailbox_closed", key)    descriptor: the mailbox
    ("orphaned",)                         pools of a dead worker are gone: their blocks can be reclaimed
    ("command", number, verb, args)       of a control client, for the program
    ("checks", number)                    somebody wants to know how it is: which health checks has it?
    ("stopped",)

Both ends are non-blocking: what the socket does not take stays in `pending` until it is writable. A
peer that does not read therefore stops nobody. "event" and "log" come without being asked for, as long as the peer
does not read: they go by `tell`, which leaves them out while TELL_MAX messages wait.
"""

from __future__ import annotations

import marshal
import os

from shmrt import _native

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["FIRST_KIN", "FIRST_NESTED", "FIRST_WORKER", "TELL_MAX", "Channel", "ProtocolError"]

FIRST_WORKER = 2  # slots 0 and 1 are the program's and the root's
FIRST_NESTED = 512  # from here on slots are the root's to give: to children of trees, and to workers that make pools
FIRST_KIN = 1 << 25  # crews of children of trees are numbered from here; those of pools below

_HEADER = 8  # 5 bytes of length, 3 bytes of descriptor count
_MESSAGE_MAX = 1 << 30
TELL_MAX = 4096


class ProtocolError(Exception):
    """Bytes that no peer of this version sends."""


class Channel:
    """One end of the socket. Not thread-safe: the owner serialises `send` and `flush`."""

    __slots__ = ("_deaf", "_fds", "_in", "_out", "closed", "failed", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.closed = False
        self.failed = ""  # why a part of what a living peer said could not be received
        self._deaf = False  # the peer takes nothing any more; what it said before may still be unread
        self._in = bytearray()
        self._fds: list[int] = []
        self._out: list[tuple[bytes, tuple[int, ...]]] = []

    @property
    def pending(self) -> bool:
        return bool(self._out)

    def send(self, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        """Queues one message and sends what the socket takes. The descriptors must stay open until `pending` is
        False; callers that close theirs pass duplicates. After the peer is gone nothing is sent and nothing raised:
        the end of the stream says so."""
        if self.closed or self._deaf:
            return
        body = marshal.dumps(message)
        header = len(body).to_bytes(5, "little") + len(fds).to_bytes(3, "little")
        self._out.append((header + body, fds))
        self.flush()

    def tell(self, message: tuple[Any, ...]) -> bool:
        """Sends what the peer can do without. False, and nothing queued, while TELL_MAX messages wait for it."""
        if len(self._out) >= TELL_MAX:
            self.flush()
        if len(self._out) >= TELL_MAX:
            return False
        self.send(message)
        return True

    def flush(self) -> None:
        while self._out and not self.closed:
            data, fds = self._out[0]
            try:
                sent = _native.send_fds(self.fd, data, fds)
            except (BrokenPipeError, ConnectionResetError):
                self._deaf = True
                self._out.clear()
                return
            if sent is None:
                return
            if sent == len(data):
                del self._out[0]
            else:  # the descriptors went with the first byte
                self._out[0] = (data[sent:], ())

    def shut(self) -> None:
        """Closes it, and what came and was not asked for."""
        for fd in (self.fd, *self._fds):
            os.close(fd)
        self._fds.clear()

    def receive(self) -> list[tuple[tuple[Any, ...], list[int]]]:
        """Every whole message that has arrived, with its descriptors. `closed` is True at the end of the stream, and
        when a part of it could not be received: who cannot hear a peer ends it, as one that died."""
        while not self.closed:
            try:
                received = _native.recv_fds(self.fd, 65536)
            except ConnectionResetError:
                received = (b"", [])
            except OSError as error:  # memory or descriptors ran out, and part of what it said is lost
                self.failed = str(error)
                received = (b"", [])
            if received is None:
                break
            data, fds = received
            self._fds += fds
            if not data:
                self.closed = True
            self._in += data
        return self._split()

    def _split(self) -> list[tuple[tuple[Any, ...], list[int]]]:
        messages: list[tuple[tuple[Any, ...], list[int]]] = []
        start = 0
        while len(self._in) - start >= _HEADER:
            length = int.from_bytes(self._in[start : start + 5], "little")
            count = int.from_bytes(self._in[start + 5 : start + _HEADER], "little")
            end = start + _HEADER + length
            if length > _MESSAGE_MAX:
                raise ProtocolError(f"a message of {length} bytes cannot be")
            if len(self._in) < end:
                break
            message = marshal.loads(bytes(self._in[start + _HEADER : end]))
            if not isinstance(message, tuple) or not message or count > len(self._fds):
                raise ProtocolError(f"not a message: {message!r} with {count} descriptors")
            messages.append((message, self._fds[:count]))
            del self._fds[:count]
            start = end
        del self._in[:start]
        return messages

"""The program's end of its root: starts it, talks to it, and starts another when it was killed.

    link = RootLink.start(lambda: (slots, arena_fd), on_event=print)
    link.add_pool(1, spec, first_slot=2, slot_count=4, lanes_fd=fd)
    ...
    link.close(grace=5.0)

Commands may come from any thread; they only queue bytes. Events (`protocol.py` lists them) are delivered by
one daemon thread, `shmrt-link`, which sleeps on the socket and the root's pidfd and has no timer. Besides
the root's own events it tells ("root_lost", pid) and ("root_started", pid, generation).

When the root is gone, the thread first makes sure that nothing of it is left (workers, templates, what they
started), marks their slots GONE with reason ROOT_LOST, calls `on_root_lost`, starts another root and gives it
the same pools. More than `max_restarts` roots in `max_seconds` end in `on_down(reason)`.

A forked child of the program owns nothing of this: every call raises RuntimeDown there.
"""

from __future__ import annotations

import os
import sys
import threading
from time import monotonic_ns

from shmrt import _native
from shmrt.decide.intensity import Intensity
from shmrt.process.signals import KILL
from shmrt.process.spawn import STACK_BYTES
from shmrt.supervise.asking import Asking
from shmrt.supervise.commands import Commands, Controlled
from shmrt.supervise.kept import KeptMailboxes
from shmrt.supervise.launch import Launched, explain, launch
from shmrt.supervise.protocol import FIRST_NESTED, Channel

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["RootLink", "make_spec"]


def make_spec(name: str, workers: int, **more: Any) -> dict[str, Any]:
    """A pool's specification for the root, with the program's surroundings as they are now.

    `more`: spares, initializer (pickle of (function, args)), worker_exit (pickle of a function), preload (module
    names), threads_per_worker, seed, max_restarts, max_seconds, start_timeout, options (for the loop), loop.
    """
    from shmrt.process.surroundings import describe

    logging = sys.modules.get("logging")
    level = logging.getLogger().level if logging is not None else None
    return {"name": name, "workers": workers, "inherit": describe(), "log_level": level, **more}


class _Pool:
    __slots__ = ("count", "first", "id", "lanes_fd", "removing", "spec", "stacks_fd")

    def __init__(self, id: int, spec: dict[str, Any], first: int, count: int, lanes_fd: int, stacks_fd: int) -> None:
        self.id = id
        self.spec = spec
        self.first = first
        self.count = count
        self.lanes_fd = lanes_fd
        self.stacks_fd = stacks_fd
        self.removing = False  # asked of a root; should that die first, the next one need not know of the pool


class RootLink(Commands, Controlled, Asking):
    """See the module. Made by `start`."""

    slots: _native.Slots
    arena_fd: int

    def __init__(
        self,
        memory: Callable[[], tuple[_native.Slots, int]],
        on_event: Callable[[tuple[Any, ...]], None] | None,
        on_root_lost: Callable[[], None] | None,
        on_down: Callable[[str], None] | None,
        max_restarts: int,
        max_seconds: float,
        launched: Launched | None,
    ) -> None:
        Commands.__init__(self)
        Asking.__init__(self)
        self._memory: Callable[[], tuple[_native.Slots, int]] | None = memory
        self._launched = launched
        self.root_pid = 0
        self.generation = 0
        self.lost_owners: list[int] = []  # of blocks that nobody but this program can free
        self.owner_pid = os.getpid()
        self.down: str | None = None  # why there will be no root any more
        self._on_event = on_event
        self._on_root_lost = on_root_lost
        self._on_down = on_down
        self._intensity = Intensity(max_restarts, int(max_seconds * 1e9))
        self._lock = threading.RLock()
        self._pools: dict[int, _Pool] = {}
        self.mailboxes = KeptMailboxes()
        self._channel: Channel | None = None
        self._root_pidfd = -1
        self._closing = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread: threading.Thread | None = None

    @classmethod
    def start(
        cls,
        memory: Callable[[], tuple[_native.Slots, int]],
        *,
        on_event: Callable[[tuple[Any, ...]], None] | None = None,
        on_root_lost: Callable[[], None] | None = None,
        on_down: Callable[[str], None] | None = None,
        max_restarts: int = 10,
        max_seconds: float = 60.0,
        launched: Launched | None = None,
    ) -> RootLink:
        """Starts the thread and the first root, or takes over one that was launched, in any case. `memory` makes the
        slots and the descriptor of the arena (or -1)."""
        link = cls(memory, on_event, on_root_lost, on_down, max_restarts, max_seconds, launched)
        link._thread = threading.Thread(target=link._run, name="shmrt-link", daemon=True)
        try:
            with link._lock:
                # The thread first, while the CPUs are idle: beside a root that starts, it would wait for its turn.
                link._thread.start()
                try:
                    link._start_root()
                except BaseException:
                    link._end_root()
                    raise
        except BaseException:
            link._undo_start()
            raise
        return link

    def _undo_start(self) -> None:
        """There is no thread to serve a root with, no root, or no memory to give it."""
        if self._launched is not None:
            self._launched.end()
        assert self._thread is not None
        if self._thread.ident is not None:
            self._thread.join()
        os.close(self._wake)
        self._wake = -1

    def _end_root(self) -> None:
        if self._channel is not None:
            _native.pidfd_signal(self._root_pidfd, KILL)
            _native.poll([(self._root_pidfd, _native.POLLIN)], -1)
            self._reap(self.root_pid)
            os.close(self._root_pidfd)
            self._channel.shut()
            self._channel, self._root_pidfd = None, -1

    # ---- commands ---------------------------------------------------------------------------------------------------
    def add_pool(
        self, id: int, spec: dict[str, Any], *, first_slot: int, slot_count: int, lanes_fd: int, stacks_fd: int = -1
    ) -> None:
        """Starts the pool's workers in slots [first_slot, first_slot + slot_count). The descriptor of the lanes must
        stay open until the pool is removed. Python stacks go into a file of this link's own unless one is given,
        which this takes over, also when it raises."""
        try:
            self._check()
        except BaseException:
            if stacks_fd >= 0:
                os.close(stacks_fd)
            raise
        if stacks_fd < 0:
            stacks_fd = _native.memfd_create("shmrt-stacks", slot_count * STACK_BYTES)
        with self._lock:
            pool = self._pools[id] = _Pool(id, spec, first_slot, slot_count, lanes_fd, stacks_fd)
            self._add(pool)

    def resize(self, id: int, workers: int) -> None:
        with self._lock:
            if id in self._pools:
                self._pools[id].spec = {**self._pools[id].spec, "workers": workers}
        super().resize(id, workers)

    def remove_pool(self, id: int, grace_s: float) -> None:
        with self._lock:
            if id in self._pools:
                self._pools[id].removing = True
        super().remove_pool(id, grace_s)

    def freed(self) -> None:
        """Says that slots became EMPTY. `slots.ring(SLOT_ROOT)` does the same."""
        self.slots.ring(_native.SLOT_ROOT)

    def stack_of(self, slot: int) -> str | None:
        """The Python stacks that the worker in this slot has written, None when there are none."""
        with self._lock:
            for pool in self._pools.values():
                if pool.first <= slot < pool.first + pool.count and pool.stacks_fd >= 0:
                    data = os.pread(pool.stacks_fd, STACK_BYTES, (slot - pool.first) * STACK_BYTES)
                    return data.split(b"\0", 1)[0].decode("utf-8", "replace") or None
        return None

    def say(self, *message: object) -> None:
        """One message of the program's half of trees; nothing if the root is gone, which has its own consequences."""
        if self.down is None and os.getpid() == self.owner_pid:
            self._send(*message)

    def hand_over_mailboxes(self) -> None:
        """Gives the next root the mailboxes of the one before, before the trees are planted again."""
        with self._lock:
            if self._channel is not None:
                self.mailboxes.hand_over(self._channel)

    def close(self, grace_s: float = 0.0, *, timeout_s: float | None = None) -> None:
        """Ends every pool, then the root; waits until both are gone and nothing of them is left."""
        if os.getpid() != self.owner_pid:
            return
        with self._lock:
            self._closing = True
            if self._channel is not None:
                self._channel.send(("stop", float(grace_s)))
            self._poke()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(grace_s + 5.0 if timeout_s is None else timeout_s)
            if thread.is_alive():  # a stopped root, or a callback that does not return
                with self._lock:
                    if self._root_pidfd >= 0:
                        _native.pidfd_signal(self._root_pidfd, KILL)
                thread.join(10.0)
        with self._lock:
            for pool in self._pools.values():
                os.close(pool.stacks_fd)
            self._pools.clear()
            self.mailboxes.clear()
            self.down = self.down or "it was closed"
            if self._wake >= 0 and (thread is None or not thread.is_alive()):
                os.close(self._wake)
                self._wake = -1

    def _check(self) -> None:
        from shmrt.errors import RuntimeDown

        if os.getpid() != self.owner_pid:
            raise RuntimeDown(
                f"this runtime belongs to process {self.owner_pid}; process {os.getpid()} is a fork of it and must"
                " start its own",
                reason="forked",
            )
        if self.down is not None:
            raise RuntimeDown(f"the root supervisor is gone: {self.down}", reason=self.down)

    def _send(self, *message: object) -> None:
        self._check()
        with self._lock:
            if self._channel is not None:
                self._channel.send(message)
                self._poke(self._channel.pending)
            elif message[0] == "ask":  # between two roots: neither would answer
                self.answered(("answer", message[1], None, "there is none just now"))

    def _add(self, pool: _Pool) -> None:
        if self._channel is not None:
            row = ("add_pool", pool.id, pool.spec, pool.first, pool.count)
            self._channel.send(row, (pool.lanes_fd, pool.stacks_fd))
            self._poke(self._channel.pending)

    def _poke(self, needed: object = True) -> None:
        if needed and self._wake >= 0:
            os.eventfd_write(self._wake, 1)

    # ---- the root's life --------------------------------------------------------------------------------------------
    def _start_root(self) -> None:
        """Starts a root's process and hands it the shared memory; does not wait for it."""
        launched, self._launched = self._launched or launch(), None
        self.root_pid, self._root_pidfd = launched.pid, launched.pidfd
        self._channel = Channel(launched.control)
        if self._memory is not None:  # made while the first root's interpreter starts
            self.slots, self.arena_fd = self._memory()
            self._memory = None
        self.generation = self.slots.raise_generation()
        self.slots.claim(_native.SLOT_ROOT, 0, 0)
        fds = (self.slots.fd,) if self.arena_fd < 0 else (self.slots.fd, self.arena_fd)
        self._channel.send(("memory", _native.oom_kills()), fds)
        self._send_control()
        for pool in self._pools.values():
            self._add(pool)

    def _run(self) -> None:
        with self._lock:  # held while the first root is started
            if self._channel is None:
                return
        try:
            while self._serve_one_root():
                pass
        except BaseException as error:
            what = "the thread that serves it failed"
            known = str(explain(error, what)) if isinstance(error, OSError) else None
            self._give_up(self.down or known or f"{what}: {error!r}")
            self.root_gone(str(self.down))
            if known is None:  # no descriptors, no memory: the reason says which limit to raise
                raise
        finally:
            self._end_root()  # nobody would hear it

    def _serve_one_root(self) -> bool:
        """From a root's start to its end. True when another one was started."""
        channel, pidfd = self._channel, self._root_pidfd
        assert channel is not None
        self._tell(("root_started", self.root_pid, self.generation))
        while True:
            with self._lock:
                events = _native.POLLIN | (_native.POLLOUT if channel.pending else 0)
            sources = [(channel.fd, events), (pidfd, _native.POLLIN), (self._wake, _native.POLLIN)]
            found = dict(_native.poll(sources, -1))
            if self._wake in found:
                try:
                    os.eventfd_read(self._wake)
                except BlockingIOError:
                    pass
            while self._notes:
                self._tell(self._notes.popleft())
            with self._lock:
                channel.flush()
                # After the root's death this empties the socket: nothing it has said is lost.
                messages = channel.receive() if channel.fd in found or pidfd in found else []
            for message, fds in messages:
                if message[0] == "mailbox":
                    self.mailboxes.keep(*message[1:], *fds)
                elif message[0] == "mailbox_closed":
                    self.mailboxes.drop(message[1])
                elif message[0] == "answer":
                    self.answered(message)
                elif message[0] == "down":
                    self.fell(message)
                else:
                    self._tell(message)
            if channel.closed or pidfd in found:
                break
        return self._after_root(pidfd, channel)

    def _after_root(self, pidfd: int, channel: Channel) -> bool:
        _native.pidfd_signal(pidfd, KILL)  # an end of the socket alone does not end the process
        _native.poll([(pidfd, _native.POLLIN)], -1)
        from shmrt.process import death

        slots, pid = self.slots, self.root_pid
        # Before the root is reaped: its session's number is its own until then.
        gone = death.kill_survivors(slots, pid)
        self.lost_owners = death.free_after_root(slots, gone, FIRST_NESTED)
        status = self._reap(pid)
        with self._lock:
            os.close(pidfd)
            channel.shut()
            self._channel, self._root_pidfd = None, -1
            slots.gone(_native.SLOT_ROOT, status, False)
            slots.free(_native.SLOT_ROOT)
        slots.ring_all()
        self.root_gone("the root supervisor died" if not self._closing else "the runtime was stopped")
        for slot in gone:
            self._tell(("gone", slot, slots.epoch(slot), KILL, False))
        if self._closing:
            return False
        self._tell(("root_lost", pid, status))
        for pool in [pool for pool in list(self._pools.values()) if pool.removing]:
            self._tell(("removed", pool.id))  # nothing of it is left
        if self._on_root_lost is not None:
            self._on_root_lost()
        if not self._intensity.allow(monotonic_ns()):
            return self._give_up(f"it died more than {self._intensity.max_restarts} times in a short while")
        try:
            with self._lock:
                if self._closing:
                    return False
                self._start_root()
        except OSError as error:
            return self._give_up(f"another one could not be started: {error}")
        return True

    def _give_up(self, reason: str) -> bool:
        self.down = reason
        if self._on_down is not None:
            self._on_down(reason)
        return False

    @staticmethod
    def _reap(pid: int) -> int:
        try:
            return os.waitpid(pid, 0)[1]
        except ChildProcessError:
            return 0  # somebody else in the program waits for any child

    def _tell(self, message: tuple[Any, ...]) -> None:
        if message[0] == "removed":
            with self._lock:
                pool = self._pools.pop(message[1], None)
                if pool is not None:
                    os.close(pool.stacks_fd)
        if self._on_event is not None:
            self._on_event(message)

"""What is tried with failing resources: each operation from start to end, and what must hold whatever became of it.

`run` may raise one of `DOCUMENTED`. Then, without faults, `after` says whether the state is right, and once `run` has
been repeated with success the process must be as it was before: descriptors, mappings, threads, children, names.
"""

from __future__ import annotations

import functools
import os
import pickle
import queue
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import shmrt
from shmrt import Bulkhead, CircuitBreaker, RateLimit, Ring, RingSpec, _native
from shmrt.errors import ShmrtError

DOCUMENTED = (ShmrtError, OSError, MemoryError, queue.Empty)
"""OSError and MemoryError are what the system itself says; everything else has to be in shmrt's own words."""
BIG = b"x" * 3000  # travels in a block


def is_documented(error: BaseException) -> bool:
    # A thread that cannot be started is a RuntimeError in the standard library, too.
    return isinstance(error, DOCUMENTED) or (isinstance(error, RuntimeError) and "thread" in str(error))


class Operation:
    """`scope` of the shim: whose calls are counted."""

    def run(self) -> None:
        raise NotImplementedError

    def after(self) -> None:
        """Raises AssertionError if what a failure left is wrong."""

    def close(self) -> None:
        """The end of all tries."""


class RingCreate(Operation):
    def run(self) -> None:
        ring = Ring.create(RingSpec(slots=4, slot_bytes=96))
        ring.put(1)
        assert ring.get(0) == 1


class RingNamed(Operation):
    name = f"inject-nth-{os.getpid()}"

    def run(self) -> None:
        ring = Ring.create(RingSpec(slots=4, slot_bytes=96), name=self.name, limit=1 << 20)
        try:
            other = Ring.attach(self.name)
            other.put_many([1, BIG])
            assert ring.get_many(2, 0) == [1, BIG]
        finally:
            shim().shim_disarm()  # taking the name away is no part of what may fail
            ring.unlink()

    def after(self) -> None:
        left = [
            name for name in os.listdir("/dev/shm") if f"-{os.getpid()}" in name or ("-new-" in name and is_mine(name))
        ]
        assert not left, left


def is_mine(name: str) -> bool:
    owner = name.partition("-new-")[2].partition("-")[0]
    return owner.isdigit() and int(owner) == _native.owner_self()


class RingPickled(Operation):
    """Another handle of the same ring; there is one object for each in a process, so that one goes first."""

    def __init__(self) -> None:
        self.ring = Ring.create(RingSpec(slots=4, slot_bytes=96))
        self.data = pickle.dumps(self.ring)
        from shmrt.memory import ring

        self.known = ring._known

    def run(self) -> None:
        self.known.clear()
        other = pickle.loads(self.data)
        other.put(1)
        assert self.ring.get(0) == 1


class RingUse(Operation):
    """A put that failed has put nothing, a get that failed took nothing; none of it is half done."""

    def __init__(self) -> None:
        self.arena = _native.Arena.create(4 << 20)
        self.arena.set_default()
        self.ring = Ring.create(RingSpec(slots=8, slot_bytes=96))
        self.messages = (1, BIG, "word", [BIG, BIG + b"y"])
        self.got: list[object] = [None] * len(self.messages)  # no list grows where memory fails
        self.sent = self.count = 0

    def run(self) -> None:
        for message in self.messages:
            self.ring.put(message, 0)
            self.sent += 1
        with self.ring.lease(0) as first:
            self.got[0] = first
        self.count = 1
        while self.count < self.sent:
            self.got[self.count] = self.ring.get(0)
            self.count += 1

    def after(self) -> None:
        # What `get` was about to return is lost with its error: at most once. Nothing comes twice, nothing out of
        # order.
        try:
            rest = self.ring.get_many(99, 0)
        except queue.Empty:
            rest = []
        came = self.got[: self.count] + rest
        position = 0
        for message in came:
            while self.messages[position] != message:
                position += 1
            position += 1
        assert position <= self.sent, "a put that failed has put something"
        assert self.sent - len(came) <= 1, (self.sent, len(came))
        assert self.ring._check() and self.arena.check(), "the memory is not sound"
        self.sent = self.count = 0


class ArenaUse(Operation):
    def run(self) -> None:
        arena = _native.Arena.create(8 << 20)
        blocks = [arena.allocate(size) for size in (100, 5000, 300_000, 2_000_000)]
        del blocks
        arena.trim()
        assert arena.check()


class Table(Operation):
    def run(self) -> None:
        slots = _native.Slots.create(8)
        try:
            other = _native.Slots.attach(slots.fd)
            try:
                calls = _native.Calls(other)
                calls.reserve()
                names = _native.Names(other)
                assert names.put("a", b"1") == 0 and names.find("a") == b"1"
                box = _native.Mailbox.create(4, 256, 0, None, calls)
                again = _native.Mailbox.attach(box.fd, None, calls)
                again.cast(_native.MAIL_CAST, "tell", (BIG,), None, 0.0)
                taken = box.take(calls, slots, 2, 0, 0.0)
                if isinstance(taken[3], MemoryError):  # how a message says that it could not be read
                    raise taken[3]
                assert taken[3] == (BIG,), taken
            finally:
                other.close()
        finally:
            slots.close()


class GuardsJoin(Operation):
    def run(self) -> None:
        slots = _native.Slots.create(8)
        try:
            with guarded(slots):
                breaker = CircuitBreaker("one", window=4, failure_rate=0.5, min_calls=2)
                hull = Bulkhead("two", 3, max_waiting=2)
                drops = RateLimit("three", rate=10.0, burst=2)
                assert breaker.call(int) == 0 and hull.call(int) == 0 and drops.try_acquire()
                assert breaker.is_shared and hull.is_shared and drops.is_shared
        finally:
            slots.close()


@contextmanager
def guarded(slots: Any) -> Iterator[None]:
    area = _native.GuardArea(slots, 0)
    _native.guards_ask(lambda: area)
    _native.guards_moved()
    try:
        yield
    finally:
        _native.guards_ask(lambda: None)
        _native.guards_moved()


class RuntimeLife(Operation):
    def run(self) -> None:
        with shmrt.Runtime() as runtime:
            assert runtime.pid


class PoolLife(Operation):
    def run(self) -> None:
        with shmrt.Runtime(), shmrt.Pool(1) as pool:
            assert pool.submit(len, BIG).result() == len(BIG)


class ServerLife(Operation):
    def run(self) -> None:
        with shmrt.Runtime():
            ref = shmrt.start(Adder, name="adder")
            assert ref.add(2) == 2
            ref.stop()


class Adder(shmrt.Server):
    def init(self) -> None:
        self.n = 0

    @shmrt.call
    def add(self, by: int) -> int:
        self.n += by
        return self.n


OPERATIONS: dict[str, Callable[[], Operation]] = {
    "ring-create": RingCreate,
    "ring-named": RingNamed,
    "ring-pickled": RingPickled,
    "ring-use": RingUse,
    "arena": ArenaUse,
    "table": Table,
    "guards": GuardsJoin,
    "runtime": RuntimeLife,
    "pool": PoolLife,
    "server": ServerLife,
}


@functools.cache
def shim() -> Any:
    import ctypes

    library = ctypes.CDLL(None)
    library.shim_arm.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_int, ctypes.c_char_p]
    library.shim_last.restype = ctypes.c_char_p
    library.shim_disarm.restype = library.shim_count.restype = library.shim_fired.restype = ctypes.c_long
    return library


def main_module_of_children() -> None:
    """Classes of this file travel by name to processes that never saw its folder."""
    sys.path.insert(0, os.path.dirname(__file__))

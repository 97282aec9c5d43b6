"""Shared memory of every kind, whole and at rest, and everything that this package does with what it finds there.

A subject is made once. Its memory is copied; then, again and again, one thing in it is changed, it is attached anew by
its descriptor, and `use` does all that can be done with it. What may come out: a value, or one of `DOCUMENTED`.
"""

from __future__ import annotations

import mmap
import os
import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shmrt import Bulkhead, CircuitBreaker, RateLimit, Ring, RingSpec, _native
from shmrt.errors import ShmrtError

DOCUMENTED = (ShmrtError, queue.Empty)
LAYOUT = _native.LAYOUT
MUTEX_OF_RING = 256
FUTEX_WAITERS, FUTEX_OWNER_DIED = 1 << 31, 1 << 30
NOBODY = (1 << 30) - 16  # no thread has such a number
NOW = 0.0  # no call waits: what is broken must not be waited for


def attempt(*calls: Callable[[], object]) -> list[str]:
    """Each of them; the names of the documented errors that came."""
    came = []
    for call in calls:
        try:
            call()
        except DOCUMENTED as error:
            came.append(type(error).__name__)
    return came


def arena_words(memory: mmap.mmap, base: int = 0) -> list[tuple[int, int]]:
    """Where its header, the words of its granules and those of the blocks of the first six are."""
    words, blocks = (base + int.from_bytes(memory[base + at : base + at + 8], "little") for at in (136, 144))
    return [(base, base + 2560), (words, words + 128), (blocks, blocks + 6 * 256 * 8)]


class Subject:
    """`parts`: (mapping, begin, end) of what is changed and put back; positions of a mutation count through them.

    `locks`: where mutexes begin. Their first word names the thread that holds them. One that lives would rightly be
    waited for, as every stopped holder is; so a change there always names a thread that does not exist, and since that
    takes a tenth of a second to find out, most changes there are left out.
    """

    def __init__(self) -> None:
        self.parts: list[tuple[mmap.mmap, int, int]] = []
        self.beside: list[tuple[mmap.mmap, int, int]] = []  # put back, too, but never changed
        self.locks: list[int] = []
        self.late: list[tuple[int, bytes | int]] = []
        self.build()
        self.pristine = [bytes(memory[begin:end]) for memory, begin, end in self.parts + self.beside]
        self.size = sum(end - begin for _, begin, end in self.parts)

    def build(self) -> None:
        raise NotImplementedError

    def use(self) -> list[str]:
        raise NotImplementedError

    def add(self, fd: int, *ranges: tuple[int, int]) -> None:
        memory = mmap.mmap(fd, max(end for _, end in ranges))
        self.parts += [(memory, begin, end) for begin, end in ranges]

    def restore(self) -> None:
        for (memory, begin, end), content in zip(self.parts + self.beside, self.pristine, strict=True):
            memory[begin:end] = content

    def keep_arena(self, arena: Any) -> None:
        memory = mmap.mmap(arena.fd, 1 << 16)
        self.beside += [(memory, begin, end) for begin, end in arena_words(memory, arena.offset)]

    def now(self) -> None:
        """Called by `use` when all is attached: what was held back until then is changed under its feet."""
        late, self.late = self.late, []
        for position, content in late:
            self.write(position, content)
        if late:
            self.let_nobody_hold_it(keep=False)

    def at(self, position: int) -> tuple[mmap.mmap, int]:
        for memory, begin, end in self.parts:
            if position < end - begin:
                return memory, begin + position
            position -= end - begin
        raise IndexError(position)

    def let_nobody_hold_it(self, keep: bool) -> None:
        for lock in self.locks:
            memory, at = self.at(lock)
            word = int.from_bytes(memory[at : at + 4], "little")
            if word and not word & FUTEX_OWNER_DIED:
                word = (word & FUTEX_WAITERS | NOBODY) if keep else 0
                memory[at : at + 4] = word.to_bytes(4, "little")

    def write(self, position: int, content: bytes | int) -> None:
        """Bytes, or a number that is added to the word there."""
        memory, at = self.at(position)
        if isinstance(content, int):
            word = int.from_bytes(memory[at : at + 8], "little") + content
            content = (word % (1 << 64)).to_bytes(8, "little")
        content = content[: len(memory) - at]
        memory[at : at + len(content)] = content


MESSAGES = (None, 7, -1.5, "word", b"x" * 40, [1, {"a": (2, 3)}], b"y" * 3000)
"""The last one travels in a block."""


def use_ring(ring: Ring) -> list[str]:
    came = attempt(ring.qsize, ring._stats, ring._check, ring._overload, lambda: ring.spec)
    came += attempt(
        lambda: ring.get(NOW), lambda: _lease(ring), lambda: ring.put("z" * 30, NOW), lambda: ring.put(b"z" * 2000, NOW)
    )
    came += attempt(
        lambda: ring.put_many([1, 2, 3], NOW), lambda: ring.get_many(3, NOW), lambda: ring.get_many(99, NOW)
    )
    came += attempt(ring.close, lambda: ring.get(NOW), lambda: ring.put(1, NOW), ring._stats, ring._check)
    return came


def _lease(ring: Ring) -> None:
    with ring.lease(NOW):
        pass


class OneRing(Subject):
    """An anonymous ring; its messages are in a memfd of their own, the payloads in an arena."""

    def build(self) -> None:
        self.arena = _native.Arena.create(1 << 20)
        self.arena.set_default()
        self.ring = Ring.create(RingSpec(slots=len(MESSAGES) + 1, slot_bytes=96))
        self.ring.put_many(MESSAGES)
        self.fd = self.ring._fd
        self.add(self.fd, (0, os.fstat(self.fd).st_size))
        self.locks = [MUTEX_OF_RING]
        self.keep_arena(self.arena)

    def use(self) -> list[str]:
        ring = Ring.__new__(Ring)
        ring._join(self.fd, self.arena, False)
        ring._set_up(RingSpec(), None)
        self.now()
        return use_ring(ring)


class DroppingRing(OneRing):
    """Full, and each put drops the oldest; one message is leased, one came back."""

    def build(self) -> None:
        self.arena = _native.Arena.create(1 << 20)
        self.arena.set_default()
        self.ring = Ring.create(RingSpec(slots=4, slot_bytes=96, on_full="drop_oldest"))
        self.ring.put_many(MESSAGES[1:5])
        self.lease = self.ring.lease(NOW)
        self.lease.__enter__()
        self.fd = self.ring._fd
        self.add(self.fd, (0, os.fstat(self.fd).st_size))
        self.locks = [MUTEX_OF_RING]
        self.keep_arena(self.arena)


class OneArena(Subject):
    """The words of an arena, and a ring whose messages refer to its blocks."""

    def build(self) -> None:
        self.arena = _native.Arena.create(2 << 20)
        self.arena.set_default()
        self.ring = Ring.create(RingSpec(slots=4, slot_bytes=96))
        self.ring.put_many([b"a" * 1000, b"b" * 5000, b"c" * 300_000])
        self.held = self.arena.allocate(2000)
        self.fd, self.ring_fd = os.dup(self.arena.fd), os.dup(self.ring._fd)
        memory = mmap.mmap(self.fd, 4096)
        self.add(self.fd, *arena_words(memory))
        memory.close()
        self.locks = [sum(end - begin for _, begin, end in self.parts) + MUTEX_OF_RING]
        self.add(self.ring_fd, (0, os.fstat(self.ring_fd).st_size))
        del self.held, self.ring, self.arena

    def use(self) -> list[str]:
        arena = _native.Arena.attach(self.fd)
        came = attempt(arena.stats, arena.check)
        ring = Ring.__new__(Ring)
        ring._join(self.ring_fd, arena, False)
        ring._set_up(RingSpec(), None)
        self.now()
        came += attempt(lambda: ring.get(NOW), lambda: arena.allocate(1500), lambda: arena.allocate(200_000))
        came += attempt(lambda: arena.allocate(600_000), arena.reclaim_dead, lambda: arena.reclaim_of(1234), arena.trim)
        return came + use_ring(ring) + attempt(arena.stats, arena.check)


class NamedRing(Subject):
    """A file below /dev/shm: the ring, and behind it its arena. Files have no seals."""

    def build(self) -> None:
        self.name = f"inject-{os.getpid()}"
        ring = Ring.create(RingSpec(slots=4, slot_bytes=96), name=self.name, limit=1 << 20)
        ring.put_many([1, b"y" * 3000])
        fd = os.dup(ring._fd)
        offset = ring._size
        memory = mmap.mmap(fd, offset + (1 << 16))
        header, *words = arena_words(memory, offset)
        self.add(fd, (0, offset), header)
        self.beside += [(memory, begin, end) for begin, end in words]
        self.locks = [MUTEX_OF_RING]
        self.ring = ring

    def use(self) -> list[str]:
        ring = Ring.attach(self.name, pickle=False)
        self.now()
        return use_ring(ring)

    def close(self) -> None:
        self.ring.unlink()


class Table(Subject):
    """The process table: slots, call slots and the registry of names."""

    count = 6

    def build(self) -> None:
        self.slots = _native.Slots.create(self.count)
        self.arena = _native.Arena.create(1 << 20)
        self.calls = _native.Calls(self.slots, self.arena)
        self.calls.reserve()
        names = _native.Names(self.slots)
        for name in ("one", "two", "three"):
            names.put(name, name.encode() * 5)
        self.slots.claim(2, 1, 0)
        self.slots.claim(3, 1, 1)
        self.slots.set_process(3, os.getpid())
        self.fd = self.slots.fd
        memory = mmap.mmap(self.fd, 4096)
        calls, table = (int.from_bytes(memory[at : at + 8], "little") for at in (144, 152))
        memory.close()
        guards = 256 + 1024 * self.count
        hashes = table + 256
        entries = hashes + 8 * LAYOUT.get("NAMES_DEFAULT", 1024)
        self.add(self.fd, (0, guards + 256), (calls, calls + 2048), (table, hashes + 64), (entries, entries + 4 * 448))

    def use(self) -> list[str]:
        slots = _native.Slots.attach(self.fd)
        names, calls = _native.Names(slots), _native.Calls(slots, self.arena)
        index = range(slots.count)
        self.now()
        came = attempt(lambda: [slots.info(at) for at in index], lambda: slots.scan(list(index)), slots.ring_all)
        came += attempt(
            lambda: [(slots.state(at), slots.epoch(at), slots.control_count(at)) for at in index],
            slots.raise_generation,
        )
        came += attempt(lambda: [slots.is_abandoned(at) for at in index], lambda: slots.park(4, 0))
        for step in (
            lambda: slots.claim(4, 1, 2),
            lambda: slots.gone(3, 0, False),
            lambda: slots.free(3),
            lambda: slots.claim(2, 0, 0),
        ):
            try:
                came += attempt(step)
            except RuntimeError as error:  # the state forbids it, in words
                assert "a slot in state" in str(error), error
        came += attempt(lambda: use_names(names), lambda: use_calls(calls), lambda: _native.GuardArea(slots, 0).list())
        slots.close()
        return came


def use_names(names: Any) -> None:
    attempt(
        lambda: [names.find(name) for name in ("one", "two", "three", "four")],
        lambda: names.find_all("two"),
        names.check,
    )
    attempt(lambda: names.put("four", b"4"), names.clear)
    for change in (lambda: names.replace(0, b"x"), lambda: names.remove(1)):
        try:
            attempt(change)
        except IndexError as error:  # its hash is gone
            assert "no name is at index" in str(error), error


def use_calls(calls: Any) -> None:
    attempt(calls.stats, calls._check, lambda: calls.cancel(1), lambda: calls.is_waiting(1 << 32), calls.reclaim)
    attempt(lambda: calls.fail_taken(77, "gone"), lambda: calls.fail_waiting(7, "gone"), lambda: calls.fail_all("over"))
    attempt(lambda: calls.collect(NOW), calls.reserve)


class OneMailbox(Subject):
    """A mailbox with a call, a cast and an info in it, and the call slot that waits."""

    def build(self) -> None:
        self.slots = _native.Slots.create(8)
        self.arena = _native.Arena.create(1 << 20)
        self.calls = _native.Calls(self.slots, self.arena)
        self.box = _native.Mailbox.create(6, 256, 2, self.arena, self.calls)
        self.calls.begin(self.box, 7, "ask", (1, "two"), {"three": b"3" * 3000}, 1000.0)
        self.box.cast(_native.MAIL_CAST, "tell", (1,), None, NOW)
        self.box.cast(_native.MAIL_INFO, "info", ("x" * 40,), None, NOW, 1000.0)
        self.fd = self.box.fd
        memory = mmap.mmap(self.slots.fd, 4096)
        calls = int.from_bytes(memory[144:152], "little")
        memory.close()
        self.add(self.fd, (0, os.fstat(self.fd).st_size))
        self.locks = [MUTEX_OF_RING]
        self.keep_arena(self.arena)
        self.add(self.slots.fd, (calls, calls + 1024))

    def use(self) -> list[str]:
        box = _native.Mailbox.attach(self.fd, self.arena, self.calls)
        self.now()
        came = attempt(box.qsize, box.stats, box._overload)
        for _ in range(3):
            came += attempt(lambda: box.take(self.calls, self.slots, 2, 0, NOW), lambda: box.done(self.slots, 2))
        for _ in range(7):
            came += attempt(lambda: box.cast(_native.MAIL_CAST, "again", (), None, NOW))
        came += attempt(
            lambda: self.calls.collect(NOW), lambda: box.drop_all(self.calls, "restart"), box.ring, box.close, box.stats
        )
        return came


class Guards(Subject):
    """Breakers of every window, a bulkhead with one permit out, a bucket: entries of a control segment."""

    def build(self) -> None:
        self.slots = _native.Slots.create(6)
        self.fd = self.slots.fd
        with self.area(self.slots):
            for guard in self.guards():
                self.exercise(guard)
        head = mmap.mmap(self.fd, 16384)
        offset = int.from_bytes(head[256 + 6144 + 16 : 256 + 6144 + 24], "little")
        used = int.from_bytes(head[256 + 6144 : 256 + 6144 + 8], "little")
        head.close()
        self.add(self.fd, (256 + 6144, 256 + 6144 + 256), (offset, offset + used))
        self.locks = [128]
        memory, at = self.at(256)
        end, position = at + used, 256
        while at < end:
            self.locks.append(position + 768)
            size = int.from_bytes(memory[at + 4 : at + 8], "little")
            at, position = at + size, position + size

    @staticmethod
    def guards() -> list[Any]:
        return [
            CircuitBreaker("rows", failure_threshold=3, half_open_max=2),
            CircuitBreaker("calls", window=4, failure_rate=0.5, min_calls=2, slow_call=9.0, slow_rate=0.5),
            CircuitBreaker("time", window=3.0, failure_rate=0.5, min_calls=2),
            Bulkhead("hulls", 2, max_waiting=3, timeout=0.0),
            RateLimit("drops", rate=1000.0, burst=5),
        ]

    @staticmethod
    @contextmanager
    def area(slots: Any) -> Iterator[Any]:
        area = _native.GuardArea(slots, 0)
        _native.guards_ask(lambda: area)
        _native.guards_moved()
        try:
            yield area
        finally:
            _native.guards_ask(lambda: None)
            _native.guards_moved()

    @staticmethod
    def exercise(guard: Any) -> list[str]:
        def fail() -> None:
            raise ZeroDivisionError

        def failing() -> None:
            try:
                guard.call(fail)
            except ZeroDivisionError:
                pass

        if isinstance(guard, RateLimit):
            return attempt(guard.try_acquire, lambda: guard.tokens, lambda: guard._counters)
        came = attempt(
            lambda: guard.call(int), failing, failing, lambda: guard.call(int), lambda: guard._look(), guard._overload
        )
        if isinstance(guard, CircuitBreaker):
            return came + attempt(guard.trip, lambda: guard.state, guard.reset, lambda: guard.call(int), guard.stats)
        try:
            return came + attempt(guard.try_acquire, guard.try_acquire, guard.try_acquire, guard.release, guard.release)
        except RuntimeError as error:  # it is lost in what was changed
            assert "has no permit of this process" in str(error), error
            return came

    def use(self) -> list[str]:
        slots = _native.Slots.attach(self.fd)
        came = []
        with self.area(slots) as area:
            came += attempt(area.list)
            for name in ("rows", "none"):
                try:
                    came += attempt(lambda name=name: area.set_breaker(name, 1))  # type: ignore[misc]
                except (LookupError, TimeoutError):
                    pass  # documented: no such breaker, or its mutex is held
            guards = self.guards()
            came += attempt(*(lambda guard=guard: guard._counters for guard in guards))  # type: ignore[misc]
            self.now()
            for guard in guards:
                came += self.exercise(guard)
                guard._leave(area)
            came += attempt(area.list)
        slots.close()
        return came


SUBJECTS: dict[str, type[Subject]] = {
    "ring": OneRing,
    "dropping": DroppingRing,
    "arena": OneArena,
    "named": NamedRing,
    "table": Table,
    "mailbox": OneMailbox,
    "guards": Guards,
}

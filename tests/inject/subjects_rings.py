"""Rings and arenas, whole and at rest, and everything that this package does with what it finds there."""

from __future__ import annotations

import mmap
import os

from subject import MUTEXES_OF_RING, NOW, Subject, arena_words, attempt

from shmrt import Ring, RingSpec, _native

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
        self.locks = list(MUTEXES_OF_RING)
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
        self.locks = list(MUTEXES_OF_RING)
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
        before = sum(end - begin for _, begin, end in self.parts)
        self.locks = [before + mutex for mutex in MUTEXES_OF_RING]
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
        self.locks = list(MUTEXES_OF_RING)
        self.ring = ring

    def use(self) -> list[str]:
        ring = Ring.attach(self.name, pickle=False)
        self.now()
        return use_ring(ring)

    def close(self) -> None:
        self.ring.unlink()

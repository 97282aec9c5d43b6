"""The process table with its call slots and names, and a mailbox with the call slot that waits for its answer."""

from __future__ import annotations

import mmap
import os
from typing import Any

from subject import MUTEXES_OF_RING, NOW, Subject, attempt

from shmrt import _native

LAYOUT = _native.LAYOUT


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
        self.locks = list(MUTEXES_OF_RING)
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

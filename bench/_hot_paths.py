"""What `bench/instructions.py` runs under callgrind: each hot path a fixed number of times, alone in one thread.

    python -m bench._hot_paths COUNT

`getppid`, which nothing else calls, is where callgrind begins a new part: one before and one after each path. The
names of the paths, in order, are printed.
"""

from __future__ import annotations

import gc
import os
import posixpath
import sys
from collections.abc import Callable, Iterator
from typing import Any

from shmrt import Bulkhead, CircuitBreaker, RateLimit, Ring, RingSpec, _native, empty
from shmrt.process.functions import FunctionTable

Path = Callable[[int], object]

WARM = 64  # caches, lazy imports and specialised bytecode are there afterwards
_TUPLE = (7, "a name", 3.5)
_BYTES = bytes(4096)
_TARGET = 5  # the key of the server that is called: this process itself


def identity(value: int) -> int:
    return value


def rings() -> Iterator[tuple[str, Path]]:
    ring = Ring.create(RingSpec(slots=128, slot_bytes=8192))
    put, get, put_many, get_many = ring.put, ring.get, ring.put_many, ring.get_many

    def one(value: Any) -> Path:
        def path(count: int) -> None:
            for _ in range(count):
                put(value)
                get()

        return path

    def many(count: int) -> None:
        batch = [_TUPLE] * 64
        for _ in range(count // 64):
            put_many(batch)
            get_many(64)

    yield "ring, a tuple", one(_TUPLE)
    yield "ring, 4 KiB of bytes", one(_BYTES)
    yield "ring, tuples by 64", many


def arrays() -> Iterator[tuple[str, Path]]:
    def path(count: int) -> None:
        for _ in range(count):
            empty((64, 64))

    yield "an array in shared memory, made and dropped", path


def messages() -> Iterator[tuple[str, Path]]:
    def path(count: int) -> None:
        for _ in range(count):
            _native.decode(_native.encode(_TUPLE))

    yield "a tuple as a message, written and read", path


def calls() -> Iterator[tuple[str, Path]]:
    """Both ends of a call in one process."""
    slots = _native.Slots.create(16)
    table = _native.Calls(slots)
    mailbox = _native.Mailbox.create(64, 1024, 0, None, table)

    def call(count: int) -> None:
        for _ in range(count):
            table.begin(mailbox, _TARGET, "echo", _TUPLE, None, 60.0)
            message = mailbox.take(table, slots, 2, 0, 0)
            table.reply(message[1], _native.CALL_REPLY, message[3])
            table.collect(0)

    def cast(count: int) -> None:
        for _ in range(count):
            mailbox.cast(_native.MAIL_CAST, "note", _TUPLE, None, None)
            mailbox.take(table, slots, 2, 0, 0)

    yield "a call, its answer and its collection", call
    yield "a cast and its taking", cast
    slots.close()


def guards() -> Iterator[tuple[str, Path]]:
    breaker, bulkhead, limit = CircuitBreaker("hot"), Bulkhead("hot", 4), RateLimit("hot", 1e9, burst=2**30)

    def around(call: Callable[..., Any]) -> Path:
        def path(count: int) -> None:
            for number in range(count):
                call(identity, number)

        return path

    yield "breaker, closed", around(breaker.call)
    yield "bulkhead, free", around(bulkhead.call)
    yield "rate limit, full", around(limit.call)


def pools() -> Iterator[tuple[str, Path]]:
    """The submitting thread's part, up to the backlog: no worker is there to take anything."""
    slots = _native.Slots.create(16)
    slots.claim(_native.SLOT_PROGRAM, 0, 0)
    slots.set_process(_native.SLOT_PROGRAM, os.getpid())
    hub = _native.Hub(slots.fd, _native.Arena.default())
    lanes = _native.lanes_create(2, 1 << 16, 1 << 16)
    table: list[FunctionTable] = []
    core = _native.PoolCore(
        hub=hub,
        name="hot",
        pool=1,
        first_slot=_native.SLOT_FIRST_WORKER,
        slot_count=2,
        max_workers=1,
        lanes_fd=lanes,
        stacks_fd=-1,
        timeout_ns=-1,
        max_attempts=1,
        max_tasks=0,
        max_rss=0,
        max_age_ns=0,
        register_function=lambda function, retry_on: table[0].number(function, retry_on),
    )
    table.append(FunctionTable(core.add_function, core.drop_function))
    futures: list[Any] = []

    def of(function: Callable[..., Any]) -> Path:
        def path(count: int) -> None:
            submit = core.submit
            for number in range(count):
                futures.append(submit(function, number))

        return path

    def chunks(count: int) -> None:
        items = list(range(64))
        for _ in range(count // 64):
            futures.append(core.submit_chunk((True, 0), posixpath.basename, items, False))

    yield "submit of an importable function, up to the backlog", of(posixpath.basename)
    yield "an item of a map, up to the backlog", chunks
    yield "submit of a function of the main program, up to the backlog", of(identity)
    core.close()
    core.fail_backlog(True)
    core.remove()
    os.close(lanes)
    slots.close()


def main() -> None:
    count = int(sys.argv[1])
    names = []
    for group in (rings, arrays, messages, calls, guards, pools):
        for name, path in group():
            path(WARM)
            gc.collect()
            gc.disable()
            os.getppid()
            path(count)
            os.getppid()
            gc.enable()
            names.append(name)
    print("\n".join(names))


if __name__ == "__main__":
    main()

"""In a process of its own: a pool whose workers write over the memory that they share, while it has work to do.

    python scribble.py PLACE SEED FIRST COUNT PROGRESS

Try k sends one task that writes random bytes over one PLACE of its own worker's (`SCRIBBLES`), among ordinary tasks
whose values are known. What must come of it: every task ends, with its value, or with WorkerCrashed or another
documented error; the root and the program live on, and so does every other worker; then the pool works as before.
The last line of output is a report in JSON.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import json
import mmap
import os
import random
import signal
import struct
import sys
import threading
import traceback
import warnings
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

import shmrt  # noqa: E402
from shmrt.errors import ShmrtError  # noqa: E402

WORKERS = 3
TASKS = 24
HEADER, SLOT, LINE = 256, 1024, 128
CALL_S = 2.0


# ---- in the worker -------------------------------------------------------------------------------------------------
def mapped(name: str) -> int:
    """Where this process has that segment."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f"/memfd:shmrt-{name}" in line:
            return int(line.partition("-")[0], 16)
    raise LookupError(name)


def number_at(address: int, size: int) -> int:
    return int.from_bytes(ctypes.string_at(address, size), "little")


def own_slot() -> int:
    """Its address: the one with this pid, as long as that is there."""
    kept = vars(sys).setdefault("scribble_slots", {})
    if os.getpid() not in kept:
        table = mapped("slots") + HEADER
        found = [at for at in range(table, table + 64 * SLOT, SLOT) if number_at(at + 8, 4) == os.getpid()]
        (kept[os.getpid()],) = found
    return int(kept[os.getpid()])


def own_lanes() -> tuple[int, int, int, int]:
    """(task lane, its capacity, result lane, its capacity)"""
    lanes = mapped("lanes")
    tasks, results = number_at(lanes + LINE + 8, 8), number_at(lanes + LINE + 16, 8)
    pair = (own_slot() - mapped("slots") - HEADER) // SLOT - 2  # the first pool of its program
    first = lanes + HEADER + pair * (512 + tasks + results)
    return first, tasks, first + 256 + tasks, results


def records(lane: int, capacity: int) -> list[int]:
    """Where the newest records begin, as far as they can be told."""
    tail, head = number_at(lane, 8), number_at(lane + LINE, 8)
    at, found = head if tail - head else max(0, tail - 64), []
    while at < tail and len(found) < 64:
        place = lane + 256 + at % capacity
        found.append(place)
        at += max(16, number_at(place, 4) & ~15)
    return found or [lane + 256 + tail % capacity]


def own_calls() -> list[int]:
    """Its call slots: those that name it as their caller."""
    table = mapped("slots")
    first, owner = table + number_at(table + LINE + 16, 8), number_at(own_slot() + 16, 4)
    slots = [at for at in range(first, first + 64 * SLOT, SLOT) if number_at(at + 8, 4) == owner]
    return slots or [first]


def places(what: str, rng: random.Random) -> int:
    """One address within that place."""
    tasks, task_bytes, results, result_bytes = own_lanes()
    if what == "positions":
        return rng.choice((tasks, results)) + rng.choice((0, LINE)) + rng.randrange(8)
    if what == "records":
        lane, capacity = rng.choice(((tasks, task_bytes), (results, result_bytes)))
        # Not the number of the function: another function is called, and nobody can tell that from the truth.
        return rng.choice(records(lane, capacity)) + rng.choice((0, 4, 5, 6, 8, 12, 16, 24, 28))
    if what == "slot":
        return own_slot() + rng.randrange(7) * LINE + rng.randrange(64)
    if what == "arena":
        return mapped("arena") + rng.choice((0, LINE, 2 * LINE, 3 * LINE)) + rng.randrange(LINE)
    if what == "calls":
        return rng.choice(own_calls()) + rng.choice((0, LINE, 2 * LINE)) + rng.randrange(32)
    raise ValueError(what)


POWERS = {1 << at for at in (0, 1, 2, 3, 4, 5, 6, 8, 16, 31, 32)}
NUMBERS = sorted(POWERS | {power - 1 for power in POWERS} | {(1 << 64) - 1})


def write_over(what: str, rng: random.Random) -> None:
    address = places(what, rng)
    kind = rng.randrange(4)
    if kind == 0:
        content = rng.randbytes(rng.choice((1, 2, 4, 8)))
    elif kind == 1:
        address &= ~3
        content = struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)
    elif kind == 2:
        address &= ~3 if what == "records" else ~7
        content = struct.pack("<Q", rng.choice(NUMBERS))
    else:
        address &= ~3 if what == "records" else ~7
        word = number_at(address, 8) + rng.choice((-1, 1, 16, -16, 32, -32, 64, -64, 1 << 20, 1 << 32))
        content = (word % (1 << 64)).to_bytes(8, "little")
    ctypes.memmove(address, content, min(len(content), 4) if what == "records" else len(content))


def scribble(what: str, seed: int) -> int:
    """At once, or by a thread that goes on while other tasks run."""
    rng = random.Random(seed)
    times = rng.choice((1, 1, 2, 4))
    if rng.randrange(3):
        for _ in range(times):
            write_over(what, rng)
        return seed
    wait = threading.Event()

    def go_on() -> None:
        for _ in range(times):
            wait.wait(rng.random() * 0.002)
            write_over(what, rng)

    threading.Thread(target=go_on, daemon=True).start()
    return seed


class Echo(shmrt.Server):
    @shmrt.call
    def echo(self, value: object) -> object:
        return value


def ordinary(number: int, given: bytes, ref: shmrt.ServerRef | None) -> tuple[int, bytes]:
    if ref is not None:
        number, given = ref.call("echo", (number, given), timeout=CALL_S)
    return number, given + b"%d" % (number * 7)


def given(number: int) -> bytes:
    """Some of them travel in blocks."""
    return bytes([number % 251]) * (number % 97 if number % 4 else 3000 + number)


def right(number: int, value: object) -> bool:
    return value == (number, given(number) + b"%d" % (number * 7))


# ---- in the program ------------------------------------------------------------------------------------------------
SCRIBBLES = ("positions", "records", "slot", "calls", "arena")


def main() -> None:
    place, seed, first, count, progress = sys.argv[1:6]
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    warnings.simplefilter("ignore")
    with open(progress, "r+b") as file:
        at = mmap.mmap(file.fileno(), 8)
    outcomes: collections.Counter[str] = collections.Counter()
    unexpected: list[tuple[int, str]] = []
    tried = 0
    with shmrt.Runtime() as runtime, shmrt.Pool(WORKERS) as pool:
        root = runtime.pid
        ref = shmrt.start(Echo) if place == "calls" else None
        for index in range(int(first), int(first) + int(count)):
            at[:] = struct.pack("<Q", index)
            attempts = 1 + index % 3
            some = pool.options(max_attempts=attempts)
            tried += attempts
            numbers = range(TASKS)
            tasks = [(number, some.submit(ordinary, number, given(number), ref)) for number in numbers[::2]]
            bad = some.submit(scribble, place, int(seed) * 1_000_003 + index)
            tasks += [
                (number, some.submit(ordinary, number, given(number), ref)) for number in range(TASKS // 2, TASKS)
            ]
            for number, task in [*tasks, (-1, bad)]:
                try:
                    value = task.result()
                except ShmrtError as error:
                    outcomes[type(error).__name__] += 1
                except Exception:
                    unexpected.append((index, traceback.format_exc()[-1500:]))
                else:
                    fine = right(number, value) if number >= 0 else value == int(seed) * 1_000_003 + index
                    outcomes["right" if fine else "another value"] += 1
                    if not fine:
                        unexpected.append((index, f"task {number} gave {value!r}"[:300]))
            if runtime.pid != root:
                unexpected.append((index, f"the root {root} is now {runtime.pid}"))
                root = runtime.pid
            ended = pool.stats()["restarts"]
            if ended > tried:  # each of them hurts one worker, and that ends once; it may do so later
                unexpected.append((index, f"{ended} workers ended of {tried} attempts"))
            if len(unexpected) >= 10:
                break
        again = pool.options(max_attempts=50)  # the last thread may still write
        after = [(number, again.submit(ordinary, number, given(number), None)) for number in range(4 * TASKS)]
        whole = all(right(number, task.result()) for number, task in after)
        if ref is not None and ref.echo(1) != 1:
            unexpected.append((-1, "the server answers wrongly"))
        restarts = pool.stats()["restarts"]
    print(
        json.dumps({"outcomes": outcomes, "unexpected": unexpected, "whole": whole, "restarts": restarts}), flush=True
    )


if __name__ == "__main__":
    main()

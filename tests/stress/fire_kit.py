"""Messages that know whether they are whole, and whoever kills the processes they go through.

A message is (sequence number, random bytes, CRC of both). Workers, servers and other programs import the functions
from here. `Ledger` counts what comes out: each number once, nothing else, every byte as it was sent.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SEED = int(os.environ.get("SHMRT_SEED", str(random.SystemRandom().randrange(2**32))))
MESSAGES = int(os.environ.get("SHMRT_MESSAGES", "100000"))
"""Of each run of the long tier; SHMRT_MESSAGES=1000000 for the big one."""
FEW = 2_000

Message = tuple[int, bytes, int]


def message(number: int) -> Message:
    """The sizes go from nothing to a block of its own."""
    size = number % 97 if number % 101 else 9_000
    body = random.Random(number).randbytes(size)
    return number, body, zlib.crc32(body, number)


def is_whole(thing: Any) -> bool:
    return (
        isinstance(thing, tuple)
        and len(thing) == 3
        and isinstance(thing[0], int)
        and isinstance(thing[1], bytes)
        and zlib.crc32(thing[1], thing[0]) == thing[2]
    )


def hand_on(thing: Message) -> Message:
    """The work of a stage: looks, and makes the message anew."""
    assert is_whole(thing), thing
    number, body, _ = thing
    return number, bytes(body), zlib.crc32(body, number)


class Ledger:
    """What was sent and what came out of it."""

    def __init__(self) -> None:
        self.seen: set[int] = set()
        self.duplicated = self.unexpected = self.corrupted = 0

    def take(self, thing: Any, sent: int) -> None:
        """`sent`: all numbers below it may come."""
        if not is_whole(thing):
            self.corrupted += 1
        elif thing[0] in self.seen:
            self.duplicated += 1
        elif not 0 <= thing[0] < sent:
            self.unexpected += 1
        else:
            self.seen.add(thing[0])

    def verdict(self, sent: int, excused: int = 0) -> dict[str, int]:
        """`excused`: messages whose loss was told to whoever sent them."""
        return {
            "lost": sent - excused - len(self.seen),
            "duplicated": self.duplicated,
            "unexpected": self.unexpected,
            "corrupted": self.corrupted,
        }


NOTHING = {"lost": 0, "duplicated": 0, "unexpected": 0, "corrupted": 0}


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError):
                found += map(int, Path(f"/proc/{pid}/task/{thread}/children").read_text().split())
    return found


def family(root: int) -> list[int]:
    """All descendants of a process."""
    found, todo = [], [root]
    while todo:
        for child in children_of(todo.pop()):
            found.append(child)
            todo.append(child)
    return found


@contextlib.contextmanager
def killing(choose: Callable[[random.Random], int | None], pause_s: float, seed: int) -> Iterator[list[int]]:
    """SIGKILLs whoever `choose(rng)` names, after pauses of `pause_s` in the mean; gives the pids it killed."""
    over = threading.Event()
    killed: list[int] = []

    def kill() -> None:
        rng = random.Random(seed)
        while not over.wait(min(rng.expovariate(1 / pause_s), 10 * pause_s)):
            pid = choose(rng)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


class Roots:
    """Which root may be killed now: a runtime is given up after ten of them in a minute, so there are seven at most."""

    def __init__(self, least_s: float) -> None:
        self.least_s = least_s
        self.deaths: list[float] = []

    def may_die(self) -> bool:
        now = time.monotonic()
        self.deaths = [death for death in self.deaths if now - death < 70]
        if len(self.deaths) >= 7 or (self.deaths and now - self.deaths[-1] < self.least_s):
            return False
        self.deaths.append(now)
        return True

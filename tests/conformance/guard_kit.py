"""What the tests of breakers, bulkheads and rate limits share: what workers do with them, and who holds a mutex."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tree_kit import Journal, kill, until

from shmrt import Bulkhead, CircuitBreaker, CircuitOpen, WorkerCrashed, _native


class Oops(Exception):
    """What a callee raises."""


def fail() -> None:
    raise Oops("the callee is ill")


def attempt(breaker: CircuitBreaker, error: bool = True) -> str:
    """One call: passed, failed or refused."""
    try:
        breaker.call(fail if error else int)
    except Oops:
        return "failed"
    except CircuitOpen:
        return "refused"
    return "passed"


def try_together(breaker: CircuitBreaker, journal: Journal, callers: int, ending: str = "") -> str:
    """One of many callers that ask at once. Who is let through stays until all have asked."""
    journal.note("here")
    journal.wait("here", callers)
    try:
        with breaker:
            journal.note("in", os.getpid())
            journal.note("asked")
            journal.wait("asked", callers)
            if ending == "raise":
                fail()
    except CircuitOpen as refusal:
        assert refusal.retry_after is not None
        journal.note("asked")
        journal.wait("asked", callers)
        return "refused"
    except Oops:
        return "failed"
    return "passed"


def hold(guard: Any, journal: Journal, *words: object) -> None:
    """Inside, until it is killed."""
    with guard:
        journal.note("in", *words, os.getpid())
        while True:
            signal.pause()


def pid_in(journal: Journal, count: int = 1) -> int:
    """Of the process that is the count-th to come in."""
    lines = until(lambda: journal.lines("in ")[count - 1 : count])
    return int(lines[0].split()[-1])


def half_open(breaker: CircuitBreaker) -> None:
    """Opens it, and waits until the next call will be a trial."""
    breaker.trip()
    until(lambda: breaker.state == "half_open")


# ---- the mutex of a guard, held by a process that is stopped -------------------------------------------------------
def _address_of_entry(name: str) -> int:
    """Of a guard's entry in a mapping of this process: behind the area's begin, found by its name."""
    layout = _native.LAYOUT
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "memfd:shmrt" not in line:
            continue
        begin, end = (int(part, 16) for part in line.split()[0].split("-"))
        for fd in os.listdir("/proc/self/fd"):
            try:
                if os.stat(f"/proc/self/fd/{fd}").st_ino != int(line.split()[4]):
                    continue
            except OSError:
                continue
            base = 0
            while True:
                try:
                    base = os.lseek(int(fd), base, os.SEEK_DATA)
                    hole = os.lseek(int(fd), base, os.SEEK_HOLE)
                except OSError:
                    break
                found = os.pread(int(fd), hole - base, base).find(name.encode() + b"\0")
                if found >= 0 and base + found < end - begin:
                    return begin + base + found - layout["guard.name"]
                base = hole
    raise AssertionError(f"no entry named {name} in this process")


def stop_with_mutex(guard: Any, journal: Journal) -> None:
    """Takes the mutex of a guard as the C code does, and is stopped."""
    assert guard.is_shared
    mutex = _address_of_entry(guard.name) + _native.LAYOUT["guard.mutex"]
    assert ctypes.CDLL(None).pthread_mutex_lock(ctypes.c_void_p(mutex)) == 0
    journal.note("in", os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    signal.pause()


class Interrupt(Exception):
    """What a signal handler raises, as Ctrl-C does."""


@contextmanager
def interrupted() -> Iterator[None]:
    """A signal after a while, whose handler raises; the block must be left by that."""

    def handle(number: int, frame: object) -> None:
        raise Interrupt

    old = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
        try:
            yield
        except Interrupt:
            return
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise AssertionError("it came back by itself")
    finally:
        signal.signal(signal.SIGALRM, old)


def traces() -> dict[str, int]:
    """What a runtime may leave in its program: mappings, descriptors, threads."""
    maps = Path("/proc/self/maps").read_text()
    return {
        "mappings of a runtime": maps.count("memfd:shmrt-control") + maps.count("memfd:shmrt-runtime"),
        "mappings": maps.count("memfd:shmrt") - maps.count("memfd:shmrt-arena"),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
    }


# ---- what hammers do until they are killed -------------------------------------------------------------------------
def hammer_breaker(breaker: CircuitBreaker, journal: Journal, number: int) -> None:
    """Calls that fail now and then; whoever is refused comes again at once."""
    journal.note("up", os.getpid())
    turn = number
    while "stop" not in journal.lines("stop"):
        for _ in range(200):
            turn += 1
            attempt(breaker, turn % 7 == 0)


def hammer_permits(bulkhead: Bulkhead, journal: Journal, folder: str, number: int) -> None:
    """Every holder also takes one of as many file locks, which die with it: who finds none free is one too many."""
    import fcntl

    draw = random.Random(number)
    files = [os.open(f"{folder}/{n}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600) for n in range(bulkhead._given[1])]
    journal.note("up", os.getpid())
    while "stop" not in journal.lines("stop"):
        for _ in range(50):
            if not bulkhead.acquire(timeout=None if number % 3 else 0.001):
                continue
            end = time.monotonic() + 5
            held = None
            while held is None and time.monotonic() < end:  # of who has just died the lock goes a moment later
                for fd in files:
                    try:
                        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        held = fd
                        break
                    except BlockingIOError:
                        continue
            if held is None:
                journal.note("too many")
            else:
                time.sleep(draw.random() * 0.001)  # its work: the others come meanwhile
                fcntl.flock(held, fcntl.LOCK_UN)
            bulkhead.release()


def under_fire(journal: Journal, draw: random.Random, kills: int, start: Any, progress: Any, hammers: int = 4) -> None:
    """Hammers at work, of which one is killed at a random moment, again and again; another takes its place."""
    ends = [start(number) for number in range(hammers)]
    dead: set[int] = set()

    def living() -> list[int]:
        return [pid for line in journal.lines("up ") if (pid := int(line.split()[1])) not in dead]

    for number in range(hammers, hammers + kills):
        until(lambda: len(living()) == hammers)
        seen = progress()
        until(lambda seen=seen: progress() > seen + hammers, "they are at work")
        time.sleep(draw.random() * 0.002)
        victim = draw.choice(living())
        dead.add(victim)
        kill(victim)
        over = until(lambda: [end for end in ends if end.done()])
        assert len(over) == 1 and isinstance(over[0].exception(), WorkerCrashed), over[0].exception()
        ends.remove(over[0])
        ends.append(start(number))
    journal.note("stop")
    for end in ends:
        end.result()

"""From SIGKILL of the only worker to the next result.

Milliseconds between the kill and the result of a task submitted right after it, over `kills`; the worker is idle when
it is killed, and has been for `rest` seconds. The task is a builtin, so that no import of its module is in the time.
`one process` is the machine's own share: a process of this program that sleeps, from its kill to its end. `MB` means
that the dead worker held so much touched memory, `numpy` that the workers come from a template that has imported it,
`spares=1` that a worker stands by. A pool that breaks is made anew, which its program must do, and that is in the time:
`made anew` counts it. `hung` counts the kills after which no result came within `patience_s`: a worker of
multiprocessing.Pool waits with the queue's lock held, and dies with it. Peers are killed less often, since each takes
longer. Not measured: the fate of a task that was running (one_death).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from bench._apart import GivenUpError, apart
from bench._measure import check, latency
from bench._peers import present
from bench._peers.pools import POOLS, Multiprocessing, Shmrt
from bench._pools import TOO_LONG, failed, outcome
from bench._views import Table
from bench._work import pid_of_worker, seven

SMOKE = {"kills": 3, "few": 1, "rest": 0.02, "megabytes": 32, "patience_s": 1.0, "heavy": False}
FULL = {"kills": 60, "few": 8, "rest": 0.1, "megabytes": 1024, "patience_s": 2.0, "heavy": True}

VIEWS = (
    Table(
        "From the kill to the next result",
        {
            "impl": "pool",
            "p50_ms": "median, ms",
            "p99_ms": "99th percentile, ms",
            "kills": "kills",
            "made_anew": "made anew",
            "hung": "hung",
            "errors": "errors on the way",
        },
    ),
)

ANSWER_S = 60.0
OF_THE_TASK = ("WorkerCrashed", "WorkerCrashedError", "ProcessExpired")
"""Errors that say that this one task is lost, and nothing else."""

_held: list[bytearray] = []


def hold(megabytes: int) -> int:
    """Fills memory of its worker, and touches every page of it."""
    _held.append(bytearray(b"x") * (megabytes << 20))
    return os.getpid()


class Killed:
    """A pool of one worker whose worker is killed again and again."""

    def __init__(self, make: Callable[[], Any], fn: Callable[[int], int] = abs) -> None:
        self._make = make
        self._fn = fn
        self.made_anew = 0
        self.errors: set[str] = set()
        self._pool = make()

    def ask(self, fn: Callable[[int], int] = pid_of_worker, item: int = 0) -> int:
        for _ in range(100):
            try:
                return int(outcome(self._pool, self._pool.submit(fn, item), ANSWER_S))
            except Exception as error:  # the pool is broken, or this task fell to the killed worker
                self.errors.add(type(error).__name__)
                if type(error).__name__ in OF_THE_TASK:
                    continue
            self.made_anew += 1
            self._pool.close()
            self._pool = self._make()
        raise RuntimeError("a hundred attempts brought no result")

    def times(self, kills: int, rest: float, megabytes: int) -> list[float]:
        taken = []
        pid = self.ask()
        for _ in range(kills):
            if megabytes:
                pid = self.ask(hold, megabytes)
            time.sleep(rest)
            os.kill(pid, signal.SIGKILL)
            begin = time.perf_counter()
            check(self.ask(self._fn, -7), 7, "the answer")  # by another process: the killed one runs no code any more
            taken.append(time.perf_counter() - begin)
            pid = self.ask()
        return taken

    def close(self) -> None:
        self._pool.close()


def kill_once(make: Callable[[], Any], rest: float) -> float:
    """For a pool that may hang: what it is left in is not touched again."""
    return Killed(make).times(1, rest, 0)[0]


def kill_a_sleeper() -> float:
    """What the kernel takes to end the smallest child there is."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    time.sleep(0.01)  # until it sleeps
    os.kill(pid, signal.SIGKILL)
    begin = time.perf_counter()
    os.waitpid(pid, 0)
    return time.perf_counter() - begin


def run(kills: int, few: int, rest: float, megabytes: int, patience_s: float, heavy: bool) -> Iterator[dict[str, Any]]:
    here, missing = present([pool for pool in POOLS if pool.can("submit") and pool is not Shmrt])
    yield from missing
    cases: dict[str, tuple[Callable[[], Any], int, int]] = {
        "shmrt.Pool": (partial(Shmrt, 1, max_attempts=3), kills, 0),
        f"shmrt.Pool {megabytes} MB": (partial(Shmrt, 1, max_attempts=3), kills, megabytes),
        "shmrt.Pool numpy": (partial(Shmrt, 1, max_attempts=3, preload=("numpy",)), kills, 0),
        "shmrt.Pool spares=1": (partial(Shmrt, 1, max_attempts=3, spares=1), kills, 0),
    }
    for make in here:
        if make.heavy and not heavy:
            yield {"impl": make.impl, "skipped": TOO_LONG}
        elif make is Multiprocessing:
            times: list[float] = []
            for _ in range(few):
                try:
                    times.append(apart(kill_once, partial(make, 1), rest, seconds=patience_s + rest))
                except GivenUpError:
                    continue
            row = {"impl": make.impl, "kills": few, "made_anew": 0, "hung": few - len(times)}
            yield row | (latency([times], "ms") if times else {})
        elif make.package != "mpire":  # its workers start with the first call of a kind, and it ends with one death
            cases[make.impl] = (partial(make, 1), few if make.heavy else min(kills, few * 3), 0)
    yield {"impl": "one process", "kills": kills} | latency([[kill_a_sleeper() for _ in range(kills)]], "ms")
    for impl, (opened, count, memory) in cases.items():
        try:
            killed = Killed(opened, seven if impl in ("ray", "dask") else abs)  # ray wants a function in Python
            taken = killed.times(count, rest, memory)
            killed.close()
        except Exception as error:
            if impl not in ("ray", "dask"):
                raise
            yield failed(impl, error)
            continue
        row = {"impl": impl, "kills": count, "made_anew": killed.made_anew, "hung": 0}
        yield row | latency([taken], "ms") | {"errors": ", ".join(sorted(killed.errors)) or None}

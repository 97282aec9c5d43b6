"""From SIGKILL of the only worker to the next result, and what else was in flight.

Milliseconds between the kill and the result of a task submitted right after it, median and p99 over `kills`; the worker
is idle when it is killed, and has been for `rest` seconds. `1024 MB` means that the dead worker held so much touched
memory, `numpy` that the workers come from a template that has imported it. The peers cannot do this:
ProcessPoolExecutor is broken for good by one death (its row is the time to notice and make a new pool),
multiprocessing.Pool replaces an idle worker at its next poll.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import shmrt

SMOKE = {"kills": 3, "rest": 0.02, "megabytes": 32}
FULL = {"kills": 100, "rest": 0.1, "megabytes": 1024}

_held: list[bytearray] = []


def hold(megabytes: int) -> int:
    """Fills memory of its worker, and touches every page of it."""
    _held.append(bytearray(b"x") * (megabytes << 20))
    return os.getpid()


def row(name: str, taken: list[float]) -> dict[str, Any]:
    taken.sort()
    return {
        "impl": name,
        "p50_ms": round(taken[len(taken) // 2] * 1e3, 2),
        "p99_ms": round(taken[len(taken) * 99 // 100] * 1e3, 2),
    }


def killed(ask: Callable[[], int], kills: int, rest: float, prepare: Callable[[], int] | None = None) -> list[float]:
    taken = []
    pid = ask()
    for _ in range(kills):
        if prepare is not None:
            prepare()
        time.sleep(rest)
        os.kill(pid, signal.SIGKILL)
        begin = time.perf_counter()
        while True:
            now = ask()
            if now != pid:
                break
        taken.append(time.perf_counter() - begin)
        pid = now
    return taken


def run(kills: int, rest: float, megabytes: int) -> Iterator[dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {
        "shmrt.Pool": {},
        f"shmrt.Pool {megabytes} MB": {},
        "shmrt.Pool numpy": {"preload": ("numpy",)},
        "shmrt.Pool spares=1": {"spares": 1},
    }
    for name, options in cases.items():
        with shmrt.Pool(1, max_attempts=3, **options) as pool:
            fill = partial(pool.call, hold, megabytes) if name.endswith("MB") else None
            yield row(name, killed(partial(pool.call, os.getpid), kills, rest, fill))

    context = multiprocessing.get_context("fork")
    peer = concurrent.futures.ProcessPoolExecutor(1, context)

    def ask_peer() -> int:
        nonlocal peer
        try:
            return peer.submit(os.getpid).result()
        except concurrent.futures.BrokenExecutor:
            peer.shutdown()
            peer = concurrent.futures.ProcessPoolExecutor(1, context)
            return peer.submit(os.getpid).result()

    yield row("ProcessPoolExecutor, made anew", killed(ask_peer, kills, rest))
    peer.shutdown()

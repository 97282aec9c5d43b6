"""From SIGKILL of the only worker to the next result, and what else was in flight.

Milliseconds between the kill and the result of a task submitted right after it, median and p99 over `kills`; the worker
is idle when it is killed. The peers cannot do this: ProcessPoolExecutor is broken for good by one death (its row is the
time to notice and make a new pool), multiprocessing.Pool replaces an idle worker at its next poll.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import shmrt

SMOKE = {"kills": 3}
FULL = {"kills": 100}


def row(name: str, taken: list[float]) -> dict[str, Any]:
    taken.sort()
    return {
        "impl": name,
        "p50_ms": round(taken[len(taken) // 2] * 1e3, 2),
        "p99_ms": round(taken[len(taken) * 99 // 100] * 1e3, 2),
    }


def killed(ask: Callable[[], int], kills: int) -> list[float]:
    taken = []
    pid = ask()
    for _ in range(kills):
        os.kill(pid, signal.SIGKILL)
        begin = time.perf_counter()
        while True:
            now = ask()
            if now != pid:
                break
        taken.append(time.perf_counter() - begin)
        pid = now
    return taken


def run(kills: int) -> Iterator[dict[str, Any]]:
    with shmrt.Pool(1, max_attempts=3) as pool:
        yield row("shmrt.Pool", killed(lambda: int(pool.submit(os.getpid).result()), kills))
    with shmrt.Pool(1, max_attempts=3, spares=1) as pool:
        yield row("shmrt.Pool spares=1", killed(lambda: int(pool.submit(os.getpid).result()), kills))

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

    yield row("ProcessPoolExecutor, made anew", killed(ask_peer, kills))
    peer.shutdown()

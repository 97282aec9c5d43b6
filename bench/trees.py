"""What a supervision tree costs: starting a child, restarting one, bringing ten back after the kill of their
supervisor.

Milliseconds, median and p99 over `rounds`. The children run time.sleep, so nothing is imported. `start_child` and
`terminate` are one request each, answered when the process is ready, or gone. `restart` is from SIGKILL to the
replacement being ready. `ten back` is `handle.stop("killed")` of a supervisor with ten children until all ten run
again, started one after the other as OTP does. The peer starts one process of multiprocessing and ends it, without
supervision. Not measured: what user code does at its start.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench._views import Table
from shmrt import Child, DynamicSupervisor, Runtime, ServerDown, Supervisor

SMOKE = {"rounds": 3}
FULL = {"rounds": 100}

VIEWS = (Table("Milliseconds", {"impl": "what", "p50_ms": "median, ms", "p99_ms": "99th percentile, ms"}),)

MANY = {"max_restarts": 1_000_000, "max_seconds": 1.0}


def row(name: str, taken: list[float]) -> dict[str, Any]:
    taken.sort()
    return {
        "impl": name,
        "p50_ms": round(taken[len(taken) // 2] * 1e3, 2),
        "p99_ms": round(taken[len(taken) * 99 // 100] * 1e3, 2),
    }


def timed(action: Callable[[], object], rounds: int) -> list[float]:
    taken = []
    for _ in range(rounds):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return taken


def pids(supervisor: Any) -> list[Any]:
    try:
        return [pid for _, pid, _, _ in supervisor.which_children()]
    except ServerDown:
        return []  # it is restarted just now


def is_up(found: list[Any], count: int) -> bool:
    return len(found) == count and all(isinstance(pid, int) for pid in found)


def run(rounds: int) -> Iterator[dict[str, Any]]:
    ten = Supervisor([Child(time.sleep, 3600, id=number) for number in range(10)], name="ten", **MANY)
    one = Supervisor([Child(time.sleep, 3600)], name="one", **MANY)
    tree = Supervisor([Child(ten), Child(one), Child(DynamicSupervisor(name="many", **MANY))], **MANY)
    with Runtime(tree) as runtime:
        many, single, group = (runtime.supervisor(name) for name in ("many", "one", "ten"))
        begun: list[Any] = []
        yield row("start_child", timed(lambda: begun.append(many.start_child(time.sleep, 3600)), rounds))
        yield row("terminate_child", timed(lambda: many.terminate_child(begun.pop()), rounds))

        def kill_one() -> None:
            before = pids(single)
            os.kill(before[0], signal.SIGKILL)
            while not is_up(now := pids(single), 1) or now == before:
                pass

        yield row("restart after SIGKILL", timed(kill_one, rounds))

        def kill_ten() -> None:
            group.stop("killed")
            while not is_up(pids(group), 10):
                pass

        yield row("ten back", timed(kill_ten, max(3, rounds // 5)))

    context = multiprocessing.get_context("fork")

    def peer() -> None:
        process = context.Process(target=time.sleep, args=(3600,))
        process.start()
        process.kill()
        process.join()

    yield row("multiprocessing: start, kill, join", timed(peer, rounds))

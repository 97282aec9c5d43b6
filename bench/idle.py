"""What warm workers use while nothing happens: CPU time, wake-ups and memory of the pool's processes.

Over `seconds`, after a rest in which whatever looks for more work goes to sleep. `cpu_percent` and `wakeups_per_s` are
of the program and all its processes, without the thread that measures; `busiest_ms_in_10_s` is the process that used
most. Memory is of the processes below the program: `worker_uss_mb` is what one worker's end would give back (median of
all processes that are not `extra`), `pss_mb` all of them together with shared pages divided, `extra_mb` what is not a
worker: shmrt's root and whoever stands by, loky's tracker, ray's and dask's servers. Forked workers share the program's
pages until they write, and so they do its modules. A worker of shmrt imports a task's module itself, unless `preload`
names it; here that imports `os` and `time` only (`enum` alone would be 1 MB). Not measured: memory after work, or under
load.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from statistics import median
from typing import Any

from bench._measure import rounded
from bench._peers import present
from bench._peers.pools import POOLS
from bench._pools import TOO_LONG, failed, warm
from bench._processes import below, memory_mb, used
from bench._views import Table
from bench._work import pid_of_worker, wait_a_little

SMOKE = {"seconds": 0.1, "rest": 0.1, "workers": 2, "heavy": False}
FULL = {"seconds": 5.0, "rest": 1.0, "workers": 4, "heavy": True}

VIEWS = (
    Table(
        "Idle for a while, four workers",
        {
            "impl": "pool",
            "processes": "processes",
            "cpu_percent": "CPU %",
            "wakeups_per_s": "wake-ups/s",
            "busiest_ms_in_10_s": "busiest, ms in 10 s",
            "worker_uss_mb": "a worker's own, MB",
            "extra_mb": "beside workers, MB",
            "pss_mb": "all, MB",
        },
    ),
)


def workers_of(pool: Any) -> set[int]:
    if pool.can("submit"):
        handles = [pool.submit(wait_a_little, number) for number in range(pool.workers * 3)]
        return {pool.result(handle) for handle in handles}
    return set(pool.map(pid_of_worker, range(pool.workers * 8)))


def idle(make: Any, seconds: float, rest: float, workers: int) -> dict[str, Any]:
    before = set(below(os.getpid()))
    with make(workers) as pool:
        warm(pool)
        known = workers_of(pool)
        time.sleep(rest)
        children = [pid for pid in below(os.getpid()) if pid not in before]
        cpu, switches = used([os.getpid(), *children])
        begin = time.perf_counter()
        time.sleep(seconds)
        elapsed = time.perf_counter() - begin
        cpu_after, switches_after = used([os.getpid(), *children])
        memory = {pid: memory_mb(pid) for pid in children}
    taken = {pid: cpu_after[pid] - cpu[pid] for pid in cpu}
    own = [memory[pid]["uss"] for pid in children if pid in known]
    return {
        "processes": len(children),
        "cpu_percent": round(sum(taken.values()) / 1e9 / elapsed * 100, 4),
        "busiest_ms_in_10_s": round(max(taken.values()) / 1e6 / elapsed * 10, 3),
        "wakeups_per_s": round((switches_after - switches) / elapsed, 2),
        "worker_uss_mb": rounded(median(own), 3) if own else None,
        "extra_mb": rounded(sum(memory[pid]["uss"] for pid in children if pid not in known), 3),
        "pss_mb": rounded(sum(values["pss"] for values in memory.values()), 3),
    }


def run(seconds: float, rest: float, workers: int, heavy: bool) -> Iterator[dict[str, Any]]:
    here, missing = present(POOLS)
    yield from missing
    for make in here:
        if make.heavy and not heavy:
            yield {"impl": make.impl, "skipped": TOO_LONG}
            continue
        try:
            yield {"impl": make.impl, **idle(make, seconds, rest, workers)}
        except Exception as error:
            if not make.heavy:
                raise
            yield failed(make.impl, error)

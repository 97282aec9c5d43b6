"""The cost of more workers: 1 to 16, on as many CPUs as there are, which on most machines is fewer.

Tasks that do nothing and tasks that burn 200 microseconds of CPU time, per second, submitted one by one, by the
number of workers. `of_cpus` is the share of the CPUs that the work itself got: what is missing went to the pool, the
program and the scheduler. With more workers than CPUs a good pool stays level. `idle_pss_mb` is the memory of all its
processes but the program's, shared pages divided among those that share them. Median of the turns; results are added
up. Not measured: ray and dask, which take seconds for each number, and pinning.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

from bench._measure import check, figure, rounded, sized
from bench._peers import present
from bench._peers.pools import LIGHT
from bench._pools import warm
from bench._processes import below, pss_mb
from bench._views import Pivot, Plot
from bench._work import burn, nothing

SMOKE = {"counts": [1, 3], "turns": 1, "seconds": 0.01}
FULL = {"counts": [1, 2, 4, 8, 16], "turns": 3, "seconds": 0.15}

WORK_US = 200
VIEWS = (
    Pivot("Tasks that do nothing, per second, by workers", "nothing_per_s", "workers", better="more"),
    Pivot("Tasks of 200 µs: share of the CPUs that worked, by workers", "of_cpus", "workers", better="more"),
    Pivot("Idle memory of the pool's processes, MB, by workers", "idle_pss_mb", "workers", better="less"),
    Plot(
        "workers",
        "Tasks that do nothing, by workers",
        "nothing_per_s",
        x="workers",
        x_label="workers",
        y_label="tasks/s",
        log_x=True,
        log_y=True,
    ),
)


def run(counts: list[int], turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    cpus = len(os.sched_getaffinity(0))
    here, missing = present([pool for pool in LIGHT if pool.can("submit")])
    yield from missing
    found: dict[tuple[str, int], tuple[list[float], list[float], list[float]]] = {}
    for _ in range(turns):
        for workers in counts:
            for make in here:
                before = set(below(os.getpid()))
                with make(workers) as pool:
                    warm(pool)
                    memory = sum(pss_mb(pid) for pid in below(os.getpid()) if pid not in before)
                    values = found.setdefault((make.impl, workers), ([], [], []))
                    values[2].append(memory)
                    for at, (work, item) in enumerate(((nothing, 1), (burn, WORK_US))):

                        def timed(count: int, work: Any = work, item: int = item, pool: Any = pool) -> float:
                            begin = time.perf_counter()
                            handles = [pool.submit(work, item) for _ in range(count)]
                            check(sum([pool.result(handle) for handle in handles]), count * item, "sum of results")
                            return time.perf_counter() - begin

                        count = sized(timed, seconds, 16, 200_000)
                        values[at].append(count / timed(count))
    for (impl, workers), (nothings, burns, memories) in found.items():
        row = {"impl": impl, "workers": workers, **figure("nothing_per_s", nothings), **figure("burn_per_s", burns)}
        shares = [rate * WORK_US / 1e6 / min(cpus, workers) for rate in burns]
        yield row | figure("of_cpus", shares, 3) | {"idle_pss_mb": rounded(min(memories), 3)}

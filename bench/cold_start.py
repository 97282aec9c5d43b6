"""From nothing to the first result, and back to nothing: a new pool of two workers, one task, close.

Median milliseconds of `to_first` (until the result of the first task) and of `whole` (until everything is closed).
`shmrt, first` includes the root process of a runtime of its own; `shmrt, next` is another pool in a runtime that is
there; `with numpy` has workers forked from a template that imports it. `python -c pass` is a bare interpreter's start
and end, which the machine sets. Pools of the standard library, pebble and mpire fork from this process, which is the
fastest that they can start; loky, ray and dask start interpreters. Not measured: importing the packages (import_time).
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench._measure import check, figure
from bench._peers import present
from bench._peers.pools import POOLS
from bench._pools import TOO_LONG, ask, failed
from bench._views import Table
from bench._work import nothing

SMOKE = {"runs": 2, "heavy_runs": 0}
FULL = {"runs": 15, "heavy_runs": 2}

VIEWS = (
    Table(
        "A pool of two workers",
        {"impl": "pool", "to_first_ms": "to the first result, ms", "whole_ms": "and closed, ms"},
    ),
)

Times = tuple[float, float]


def with_runtime() -> Times:
    import shmrt

    begin = time.perf_counter()
    with shmrt.Runtime(), shmrt.Pool(2) as pool:
        check(pool.submit(pow, 2, 5).result(), 32, "the first result")
        first = time.perf_counter() - begin
    return first, time.perf_counter() - begin


def one_more_pool(**options: Any) -> Times:
    import shmrt

    begin = time.perf_counter()
    with shmrt.Pool(2, **options) as pool:
        check(pool.submit(pow, 2, 5).result(), 32, "the first result")
        first = time.perf_counter() - begin
    return first, time.perf_counter() - begin


def bare() -> Times:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    taken = time.perf_counter() - begin
    return taken, taken


def of(make: Any) -> Callable[[], Times]:
    def start() -> Times:
        begin = time.perf_counter()
        with make(2) as pool:
            check(ask(pool, nothing, 7), 7, "the first result")
            first = time.perf_counter() - begin
        return first, time.perf_counter() - begin

    return start


def run(runs: int, heavy_runs: int) -> Iterator[dict[str, Any]]:
    import shmrt

    here, missing = present([pool for pool in POOLS if pool.package != "shmrt"])
    yield from missing
    cases: dict[str, tuple[int, Callable[[], Times]]] = {"python -c pass": (runs, bare)}
    cases["shmrt, first"] = (runs, with_runtime)
    cases["shmrt, next"] = (runs, one_more_pool)
    cases["shmrt, next with numpy"] = (runs, lambda: one_more_pool(preload=("numpy",)))
    cases |= {make.impl: (heavy_runs if make.heavy else runs, of(make)) for make in here}
    found: dict[str, list[Times]] = {}
    for number in range(runs):
        for impl, (times, start) in cases.items():
            if number < times:
                if impl.startswith("shmrt, next"):
                    with shmrt.Runtime():
                        one_more_pool()
                        taken = start()
                else:
                    try:
                        taken = start()
                    except Exception as error:
                        if impl not in ("ray", "dask"):
                            raise
                        found.setdefault(impl, [])
                        yield failed(impl, error)
                        continue
                found.setdefault(impl, []).append(taken)
    for impl, (times, _) in cases.items():
        if not times:
            yield {"impl": impl, "skipped": TOO_LONG}
            continue
        if not found[impl]:
            continue
        first = figure("to_first_ms", [one[0] * 1e3 for one in found[impl]])
        yield {"impl": impl, "runs": times} | first | figure("whole_ms", [one[1] * 1e3 for one in found[impl]])

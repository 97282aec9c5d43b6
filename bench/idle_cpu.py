"""What a runtime with warm workers uses while nothing happens: CPU time and wake-ups of all its processes.

Per second over `seconds`, summed over program, root and workers, and the CPU time of the busiest one, scaled to ten
seconds, from /proc. It begins once the root has got ready for the next death. Not measured: a runtime under load.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

import shmrt

SMOKE = {"seconds": 0.2, "workers": 2}
FULL = {"seconds": 10.0, "workers": 4}


def used(pids: list[int]) -> tuple[dict[int, int], int]:
    """CPU nanoseconds of each process, and voluntary context switches of all their threads; this thread, which
    measures, is left out."""
    cpu, switches = dict.fromkeys(pids, 0), 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            if int(task.name) == threading.get_native_id():
                continue
            cpu[pid] += int((task / "schedstat").read_text().split()[0])
            for line in (task / "status").read_text().splitlines():
                if line.startswith("voluntary_ctxt_switches"):
                    switches += int(line.split()[1])
    return cpu, switches


def run(seconds: float, workers: int) -> Iterator[dict[str, Any]]:
    with shmrt.Runtime(), shmrt.Pool(workers) as pool:
        if sum(pool.map(abs, range(100))) != 4950:
            raise AssertionError("sum is wrong")
        time.sleep(min(0.2, seconds))  # whatever spins after work has gone to sleep by then
        pids = [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]
        cpu, switches = used(pids)
        begin = time.perf_counter()
        time.sleep(seconds)
        elapsed = time.perf_counter() - begin
        cpu_after, switches_after = used(pids)
    taken = {pid: cpu_after[pid] - cpu[pid] for pid in pids}
    yield {
        "impl": "shmrt",
        "processes": len(pids),
        "cpu_percent": round(sum(taken.values()) / 1e9 / elapsed * 100, 4),
        "busiest_ms_in_10_s": round(max(taken.values()) / 1e6 / elapsed * 10, 3),
        "wakeups_per_s": round((switches_after - switches) / elapsed, 2),
    }

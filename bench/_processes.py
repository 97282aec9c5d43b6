"""What processes use, from /proc: their memory, their CPU time, and how often they woke."""

from __future__ import annotations

import os
import threading
from pathlib import Path


def below(pid: int) -> list[int]:
    """Every descendant that lives."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            state, parent = stat.rpartition(")")[2].split()[:2]
            if state != "Z":
                parents.setdefault(int(parent), []).append(int(name))
    found: list[int] = []
    left = [pid]
    while left:
        children = parents.get(left.pop(), [])
        found += children
        left += children
    return found


def memory_mb(pid: int) -> dict[str, float]:
    """rss, pss (shared pages divided among those that share them) and uss (what its end would give back).
    All 0 for a process that is gone."""
    kilobytes = {"Rss": 0, "Pss": 0, "Private_Clean": 0, "Private_Dirty": 0}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, rest = line.partition(":")
        if name in kilobytes:
            kilobytes[name] += int(rest.split()[0])
    private = kilobytes["Private_Clean"] + kilobytes["Private_Dirty"]
    return {"rss": kilobytes["Rss"] / 1024, "pss": kilobytes["Pss"] / 1024, "uss": private / 1024}


def pss_mb(pid: int) -> float:
    return memory_mb(pid)["pss"]


def used(pids: list[int]) -> tuple[dict[int, int], int]:
    """CPU nanoseconds of each process, and how often all their threads slept and woke; the calling thread, which
    measures, is left out, and so is a process that is gone."""
    cpu, switches = dict.fromkeys(pids, 0), 0
    for pid in pids:
        try:
            for task in Path(f"/proc/{pid}/task").iterdir():
                if int(task.name) == threading.get_native_id():
                    continue
                cpu[pid] += int((task / "schedstat").read_text().split()[0])
                for line in (task / "status").read_text().splitlines():
                    if line.startswith("voluntary_ctxt_switches"):
                        switches += int(line.split()[1])
        except OSError:
            continue
    return cpu, switches

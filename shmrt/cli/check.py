"""`check`: reads the configuration, imports the target, and compares the memory it needs with what is free."""

from __future__ import annotations

import argparse
from typing import Any

from shmrt.cli.screen import Screen

DOES = "Parse the configuration, import TARGET, compare memory needed with memory free"


def options(parser: argparse.ArgumentParser) -> None:
    from shmrt.cli.run import target_options

    target_options(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.cli import drive
    from shmrt.cli.run import load_target, settings_of

    settings = settings_of(arguments)
    target = load_target(settings)
    drive.source_of(target)
    stages = stages_of(target.pipeline)
    free = free_bytes()
    needed = sum(stage["bytes"] for stage in stages)
    fits = needed <= free
    body = {"target": target.name, "stages": stages, "needed": needed, "free": free, "fits": fits}
    if screen.json:
        screen.document("shmrt.check/1", body)
        return 0 if fits else 6
    from shmrt.cli.doctor import size

    screen.line(f"target {target.name}: a pipeline of {len(stages)} stages with workers")
    for stage in stages:
        screen.line(f"  {stage['name']}: {stage['workers']} workers, lanes {size(stage['bytes'])}")
    screen.line(f"shared memory at start: {size(needed)} needed, {size(free)} free: {'ok' if fits else 'TOO LITTLE'}")
    return 0 if fits else 6


def stages_of(pipeline: Any) -> list[dict[str, Any]]:
    """What the pool of each stage reserves when it starts: its lanes and the page of its workers' stacks."""
    from shmrt.pipeline_plan import make_plan

    _nodes, works = make_plan(pipeline.stages)
    return [
        {
            "name": work.stage.name,
            "workers": work.stage.workers,
            "bytes": pool_bytes(work.stage.workers, work.stage.ring),
        }
        for work in works
        if work is not None
    ]


def pool_bytes(workers: int, ring: Any) -> int:
    """As `pool_opened.py` sizes a pool; a test compares the two."""
    from shmrt import _native
    from shmrt.pool_opened import LANE_MIN

    capacity = max(1 << (ring.slots * ring.slot_bytes - 1).bit_length(), LANE_MIN)
    slots = 2 * workers + 2
    lane = int(_native.LAYOUT["lane_shared.data"]) + capacity
    return int(int(_native.LAYOUT["lanes"]) + slots * 2 * lane + slots * 65536)


def free_bytes() -> int:
    """What can still be had: the machine's available memory, cut by every memory cgroup on the own path."""
    from shmrt.cli.doctor import cgroups, number_of, text_of

    rooms = []
    for line in (text_of("/proc/meminfo") or "").splitlines():
        if line.startswith("MemAvailable:"):
            rooms.append(int(line.split()[1]) * 1024)
    for directory in cgroups("memory"):
        for limit, used in (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")):
            most, now = number_of(directory, limit), number_of(directory, used)
            if most is not None and now is not None:
                rooms.append(max(0, most - now))
    return min(rooms, default=0)

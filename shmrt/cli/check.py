"""`check`: reads the configuration, imports the target, and compares the memory it needs with what is free."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from shmrt.cli.screen import Screen

DOES = "Parse the configuration, import TARGET, compare memory needed with memory free"


def options(parser: argparse.ArgumentParser) -> None:
    from shmrt.cli.run import target_options

    target_options(parser)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.cli import drive
    from shmrt.cli.run import load_target, only_of_trees, settings_of

    settings = settings_of(arguments)
    target = load_target(settings)
    if target.tree is not None:
        return check_tree(target, settings, screen)
    only_of_trees(settings)
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


def check_tree(target: Any, settings: dict[str, Any], screen: Screen) -> int:
    """Every child's description is made as the root would get it, so that what cannot be pickled is found, too."""
    from shmrt.cli.doctor import size
    from shmrt.cli.naming import name_for
    from shmrt.cli.screen import CliError
    from shmrt.cli.serve import shaped
    from shmrt.supervise.place import check_runtime_name

    name = settings["runtime.name"] or name_for(target.name)
    check_runtime_name(name)
    tree = shaped(target.tree, settings)
    try:
        tree.specification()
    except Exception as error:
        text = f"target {target.name!r}: {type(error).__name__}: {error}"
        raise CliError(text, hint="what a child starts, and its arguments, must be picklable", code=2) from None
    rows = list(children_of(tree, ()))
    free, needed = free_bytes(), sum(row["bytes"] for row in rows)
    fits = needed <= free
    body = {"target": target.name, "name": name, "children": rows, "needed": needed, "free": free, "fits": fits}
    if screen.json:
        screen.document("shmrt.check/1", body)
        return 0 if fits else 6
    budget = f"{tree.max_restarts} restarts in {tree.max_seconds:g} s"
    screen.line(f"target {target.name}: a supervision tree, {getattr(tree, 'strategy', 'dynamic')}, {budget}")
    for row in rows:
        memory = f", lanes {size(row['bytes'])}" if row["bytes"] else ""
        screen.line(f"  {row['path']}: {row['kind']}, {row['restart']}{memory}")
    screen.line(f"shared memory at start: {size(needed)} needed, {size(free)} free: {'ok' if fits else 'TOO LITTLE'}")
    return 0 if fits else 6


def children_of(tree: Any, above: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Of a description, from the top down, with what their pools reserve."""
    from shmrt.children import kind_of
    from shmrt.pool import _default_workers
    from shmrt.spec import RingSpec

    for child in getattr(tree, "children", ()):
        kind, path = kind_of(child.start), (*above, str(child.id))
        reserved = 0
        if kind == "pool":
            workers = child.kwargs.get("max_workers") or (child.args[0] if child.args else None) or _default_workers()
            reserved = pool_bytes(workers + child.kwargs.get("spares", 0), child.kwargs.get("ring") or RingSpec())
        elif kind == "server":
            mailbox = child.mailbox or RingSpec()
            reserved = mailbox.slots * (mailbox.slot_bytes + 64)
        yield {"path": "/".join(path), "kind": kind, "restart": child.restart, "bytes": reserved}
        if kind == "supervisor":
            yield from children_of(child.start, path)


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

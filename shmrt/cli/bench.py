"""`bench`: how fast this machine is with shmrt, and which ring sizes are enough here."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.screen import CliError, Screen

DOES = "Measure throughput and latency on this machine; advice for ring sizes"
MORE = """Messages through a ring one by one and in batches, round trips of rings and of Pool.call, tasks, and items of
a pipeline; then rings of other sizes. Each figure is the median of the repetitions, with the least and the most: where
these lie far apart the machine had something else to do, and the figure says little. A cache line's way to another CPU
and back is measured before and after; it says how fast the machine itself was.

Functions and payloads do nothing, so this is what shmrt costs, not what your work gains: for that see `tune`. It is
compared with nothing else here; the peers are in bench/ of the source.

quick takes about 15 seconds, full some minutes. -o json gives one document with the facts of the machine."""

PROFILES = {"quick": (0.1, 3), "full": (0.5, 9)}
"""Seconds of a repetition, and repetitions."""
PAYLOAD = 64
PAUSE_S = 0.1
ROUNDS = 20_000


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", choices=tuple(PROFILES), default="quick", help="how long (default quick)")
    parser.add_argument("--payload", type=kinds.payload, default=PAYLOAD, metavar="SIZE", help="of a message (64)")
    parser.add_argument(
        "--workers", type=kinds.workers, metavar="N", help="of the pool and the stage (default: the usable CPUs)"
    )


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt import _native
    from shmrt.cli.bench_measure import Plan, measure, sweep
    from shmrt.cli.check import free_bytes
    from shmrt.runtimes import Runtime

    seconds, repeats = PROFILES[arguments.profile]
    workers = _native.usable_cpus() if arguments.workers is None else arguments.workers
    plan = Plan(arguments.payload, workers, seconds, repeats)
    free = free_bytes()
    if 64 * plan.payload > free:
        text = f"payload={plan.payload} needs {64 * plan.payload:,} bytes of shared memory, and {free:,} are free"
        raise CliError(text, hint="a smaller --payload", code=6)
    facts = machine()
    if not screen.json:
        screen.line(f"{facts['cpus']} CPUs ({facts['cpu']}), {facts['kernel']}, Python {facts['python']}")
        screen.line(f"payload {plan.payload:,} bytes, {workers} workers, {repeats} repetitions: median (least to most)")
    lines = {"before": cache_line()}
    results: list[dict[str, Any]] = []
    rates: dict[str, dict[int, list[float]]] = {"slots": {}, "slot_bytes": {}}
    with Runtime():
        memory = min(free, int(_native.Arena.default().stats()["limit"]))
        for row in measure(plan, memory):
            results.append(figure(row))
            show(results[-1], screen)
        for knob, value, row in sweep(plan, memory):
            rates[knob][value] = row.values
            results.append(figure(row))
            show(results[-1], screen)
    lines["after"] = cache_line()
    advice = advise(rates, plan.payload)
    body = {
        "profile": arguments.profile,
        "payload": plan.payload,
        "workers": workers,
        "machine": {**facts, "cache_line_ns": lines, "load_after": load()},
        "results": results,
        "advice": advice,
    }
    if screen.json:
        screen.document("shmrt.bench/1", body)
        return 0
    for line in closing(body):
        screen.line(line)
    return 0


def figure(row: Any) -> dict[str, Any]:
    from shmrt.decide.tune_compare import median

    digits = 2 if row.unit == "us" else 0
    values = [round(value, digits) for value in row.values]
    return {
        "name": row.name,
        "unit": row.unit,
        "median": round(median(row.values), digits),
        "least": min(values),
        "most": max(values),
        "values": values,
    }


def show(found: Mapping[str, Any], screen: Screen) -> None:
    if screen.json:
        return
    digits = 1 if found["unit"] == "us" else 0
    middle, least, most = (f"{found[key]:,.{digits}f}" for key in ("median", "least", "most"))
    screen.line(f"  {found['name']:<28} {middle:>12} {found['unit']}  ({least} to {most})")


def advise(rates: Mapping[str, Mapping[int, list[float]]], payload: int) -> dict[str, Any]:
    """The smallest ring that is as fast as any, and what a consumer that pauses needs."""
    from shmrt.decide.ring_advice import burst_slots, smallest_good
    from shmrt.decide.tune_compare import median

    if not rates["slots"] or not rates["slot_bytes"]:
        return {"slots": None, "slot_bytes": None, "burst_slots": None, "pause_s": PAUSE_S, "payload": payload}
    slots = smallest_good(rates["slots"])
    rate = median(rates["slots"][slots])
    return {
        "slots": slots,
        "slot_bytes": smallest_good(rates["slot_bytes"]),
        "burst_slots": burst_slots(rate, PAUSE_S),
        "pause_s": PAUSE_S,
        "payload": payload,
    }


def closing(body: Mapping[str, Any]) -> Iterator[str]:
    lines = body["machine"]["cache_line_ns"]
    if lines["before"] is not None and lines["after"] is not None:
        yield f"a cache line to another CPU and back: {lines['before']:.0f} ns before, {lines['after']:.0f} ns after"
    loads = body["machine"]["load"], body["machine"]["load_after"]
    if min(loads) > body["machine"]["cpus"]:
        yield f"the machine has other work to do (load {loads[0]:.1f} to {loads[1]:.1f}): these figures are low"
    advice = body["advice"]
    if advice["slots"] is None:
        yield "no advice for ring sizes: the payload is too large for the memory that is free"
        return
    spec = f"RingSpec(slots={advice['slots']}, slot_bytes={advice['slot_bytes']})"
    yield f"advice for {advice['payload']:,} bytes: {spec} is the smallest ring that was not seen to be slower than any"
    pause, slots = advice["pause_s"], advice["burst_slots"]
    yield f"  a consumer that pauses for {pause:g} s at this rate needs slots={slots} to hold nobody up"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    from shmrt import _native
    from shmrt.cli.check import free_bytes
    from shmrt.cli.version import facts

    return {
        "cpus": _native.usable_cpus(),
        "cpus_online": os.cpu_count(),
        "cpu": cpu_model(),
        "machine": platform.machine(),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "shmrt": facts()["shmrt"],
        "memory_free": free_bytes(),
        "load": load(),
        "executable": sys.executable,
    }


def load() -> float:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return 0.0


def cpu_model() -> str:
    from shmrt.cli.doctor import text_of

    for line in (text_of("/proc/cpuinfo") or "").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def cache_line() -> float | None:
    """Nanoseconds; None with one CPU, or where the other did not answer."""
    from shmrt import _native

    if len(os.sched_getaffinity(0)) < 2:
        return None
    try:
        return round(_native.ping_pong_ns(ROUNDS), 1)
    except (OSError, ValueError):
        return None

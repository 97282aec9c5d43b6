"""Runs the benchmarks of this folder and prints one JSON line per measurement.

    python -m bench list
    python -m bench run [--smoke] [NAME ...]

A benchmark is a module `bench/NAME.py`: its docstring says what it measures and what it does not, `SMOKE` and
`FULL` are its parameters, and `run(**parameters)` yields dicts. Peers run in the same process of measurements,
with the same payload and duty. Around each, the round trip of one cache line between two CPUs is measured: on a
shared machine it moves by a factor of several, and a figure is worth only what the line beside it says.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def ping_pong_ns(rounds: int) -> float | None:
    """Median nanoseconds for a cache line to travel there and back; None with one CPU or without the extension."""
    try:
        from shmrt import _native
    except ImportError:
        return None
    measure = getattr(_native, "ping_pong_ns", None)
    if measure is None or len(os.sched_getaffinity(0)) < 2:
        return None
    return float(measure(rounds))


def machine() -> dict[str, Any]:
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return {
        "commit": commit,
        "cpu": model or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Runs benchmarks, one JSON line each.")
    parser.add_argument("verb", choices=("run", "list"))
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--smoke", action="store_true", help="small parameters: does it work, not how fast is it")
    arguments = parser.parse_intermixed_args()
    if arguments.verb == "list":
        for name in names():
            print(f"{name:<16}{(importlib.import_module(f'bench.{name}').__doc__ or '').splitlines()[0]}")
        return 0
    unknown = set(arguments.names) - set(names())
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    failed = []
    facts = machine()
    rounds = 1_000 if arguments.smoke else 100_000
    for name in arguments.names or names():
        module = importlib.import_module(f"bench.{name}")
        parameters = module.SMOKE if arguments.smoke else module.FULL
        before = ping_pong_ns(rounds)
        started = time.perf_counter()
        rows: list[dict[str, Any]] = []
        try:
            rows = list(module.run(**parameters))
        except Exception:
            traceback.print_exc()
            failed.append(name)
        after = ping_pong_ns(rounds)
        seconds = round(time.perf_counter() - started, 3)
        for row in rows:
            line = {"bench": name, **row, "parameters": parameters, "smoke": arguments.smoke}
            line |= {"line_rtt_ns": [before, after], "seconds": seconds}
            print(json.dumps(line | facts, default=str), flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

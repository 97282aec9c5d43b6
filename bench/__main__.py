"""Runs the benchmarks of this folder and prints one JSON line per measurement.

    python -m bench list
    python -m bench run [--smoke] [--peers a,b] [--append FILE] [NAME ...]
    python -m bench page [--results FILE]

A benchmark is a module `bench/NAME.py`: its docstring says what it measures and what it does not, `SMOKE` and
`FULL` are its parameters, and `run(**parameters)` yields dicts. It runs in an interpreter of its own. Peers run in the
same measurement, with the same payload and duty; `--peers` names them (`none` is only shmrt), all that are installed
are the default (`pip install '.[bench]'`). Around each benchmark, the round trips of one cache line and of one wake
between two CPUs are measured: on a shared machine they move by a factor of several, and a figure is worth only what
the ones beside it say. `page` makes docs/benchmarks.md and its plots of the newest full results.
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from bench import _machine, _peers, _results

HERE = Path(__file__).parent
LIMIT_S = {True: 240.0, False: 900.0}
"""For one benchmark, in smoke size and in full: some peers can hang."""


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.py") if not path.stem.startswith("_"))


def probe(smoke: bool) -> tuple[float | None, float | None]:
    return _machine.line_ns(1_000 if smoke else 100_000), _machine.wake_us(101 if smoke else 2_020)


def rows_of(name: str, smoke: bool, peers: str | None) -> tuple[list[dict[str, Any]], bool]:
    """The rows that `name` printed in an interpreter of its own, and whether it ended well."""
    there, here = os.pipe()
    command = [sys.executable, "-m", "bench", "rows", name, "--to", str(here)]
    command += ["--smoke"] * smoke + (["--peers", peers] if peers is not None else [])
    path = [str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path)}  # for workers that start as interpreters
    process = subprocess.Popen(
        command, cwd=HERE.parent, env=environment, pass_fds=(here,), stdout=sys.stderr, process_group=0
    )
    os.close(here)
    try:
        with open(there) as lines:
            watch = _Limit(process, LIMIT_S[smoke])
            rows = [json.loads(line) for line in lines]
            return rows, process.wait() == 0 and not watch.ended()
    except BaseException:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise


class _Limit:
    """Ends a process and its group when it takes too long."""

    def __init__(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        self._process, self._fired = process, False
        self._timer = threading.Timer(seconds, self._fire)
        self._timer.daemon = True
        self._timer.start()

    def _fire(self) -> None:
        self._fired = True
        os.killpg(self._process.pid, signal.SIGKILL)

    def ended(self) -> bool:
        self._timer.cancel()
        if self._fired:
            print(f"ended after {self._timer.interval:.0f} s", file=sys.stderr)
        return self._fired


def write_rows(name: str, smoke: bool, peers: str | None, to: int) -> int:
    """The inner interpreter: one benchmark, its rows to a descriptor."""
    module = importlib.import_module(f"bench.{name}")
    _peers.select(None if peers is None else [peer for peer in peers.split(",") if peer != "none"])
    with open(to, "w", buffering=1) as out:
        for row in module.run(**(module.SMOKE if smoke else module.FULL)):
            out.write(json.dumps(row, default=str) + "\n")
    return 0


def run(arguments: argparse.Namespace) -> int:
    failed = []
    facts = _machine.facts()
    begun = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    for name in arguments.names or names():
        module = importlib.import_module(f"bench.{name}")
        parameters = module.SMOKE if arguments.smoke else module.FULL
        before = probe(arguments.smoke)
        started = time.perf_counter()
        rows, well = rows_of(name, arguments.smoke, arguments.peers)
        after = probe(arguments.smoke)
        if not well:
            failed.append(name)
        about = {"parameters": parameters, "smoke": arguments.smoke}
        about["line_rtt_ns"] = [before[0], after[0]]
        about["wake_rtt_us"] = [before[1], after[1]]
        about["seconds"] = round(time.perf_counter() - started, 3)
        for row in rows:
            print(json.dumps({"bench": name, **row} | about | facts, default=str), flush=True)
        if arguments.append is not None and well:
            line = {"bench": name, "run": begun} | facts | _machine.build() | {"versions": _peers.versions()}
            _results.append(arguments.append, line | about | {"rows": rows})
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Runs benchmarks, one JSON line each.")
    parser.add_argument("verb", choices=("run", "list", "page", "rows"), metavar="run|list|page")
    parser.add_argument("names", nargs="*", help="default: all")
    parser.add_argument("--smoke", action="store_true", help="small parameters: does it work, not how fast is it")
    parser.add_argument("--peers", help=f"comma-separated, or none; of {', '.join(_peers.FAMILIES)}")
    parser.add_argument("--append", type=Path, metavar="FILE", help="append the results there as NDJSON")
    parser.add_argument("--results", type=Path, metavar="FILE", default=_results.RESULTS, help="what page reads")
    parser.add_argument("--to", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_intermixed_args()
    unknown = set(arguments.names) - set(names())
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(names())}")
    strange = set((arguments.peers or "").split(",")) - {*_peers.FAMILIES, "none", ""}
    if strange:
        parser.error(f"no peer {', '.join(sorted(strange))}; there are {', '.join(_peers.FAMILIES)}, and none")
    return parser, arguments


def main() -> int:
    parser, arguments = parse()
    if arguments.verb == "list":
        for name in names():
            print(f"{name:<16}{(importlib.import_module(f'bench.{name}').__doc__ or '').splitlines()[0]}")
        return 0
    if arguments.verb == "page":
        from bench import _page

        return _page.write(arguments.results)
    if arguments.verb == "run":
        return run(arguments)
    if arguments.to is None or len(arguments.names) != 1:
        parser.error("rows is what run starts by itself")
    try:
        return write_rows(arguments.names[0], arguments.smoke, arguments.peers, arguments.to)
    except Exception:
        traceback.print_exc()
        return 1


if __name__ == "__main__":
    raise SystemExit(main())

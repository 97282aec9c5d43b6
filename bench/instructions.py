"""Instructions of the hot paths, counted by callgrind, beside those recorded in `instructions.toml`: a gate.

Times on a shared machine move by a factor; the number of instructions does not. Each path of `_hot_paths.py` runs a
fixed number of times in one thread; its instructions are divided by that number: those in the extension itself
(`native`) and all of them, with the interpreter's and the system's libraries (`all`). `native` may grow by 5 percent
over what is recorded, with a compiler of the same version; `all` likewise, under the same Python. Not counted: the
kernel, caches, waiting, and what other processes do, so that a worker's side of a task is not here: callgrind cannot
follow a runtime's start (pidfd_open). A change that makes a path cheaper, or dearer for a good reason, is recorded:

    python -m bench.instructions record
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._views import Table
from shmrt import _native

SMOKE = {"count": 128}
FULL = {"count": 640}

VIEWS = (
    Table(
        "Instructions of one pass",
        {"path": "path", "native": "in the extension", "all": "in all", "of_recorded": "of those recorded"},
    ),
)

ROOT = Path(__file__).resolve().parents[1]
RECORD = Path(__file__).with_suffix(".toml")
MOST = 1.05
LIMIT_S = 900
_COUNT = re.compile(r"[+\-*\d]")


class NotCounted(Exception):
    """Why nothing could be counted here."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Instructions of one pass."""

    native: float
    all: float


def compiler() -> str:
    """That made the extension, as it says itself."""
    found = re.search(rb"(?:GCC: \([^)]*\)|clang version) [\d.]+", Path(_native.__file__).read_bytes())
    return found.group().decode() if found else "unknown"


def interpreter() -> str:
    return f"{sys.implementation.name} {sys.version.split()[0]}"


def measure(count: int) -> dict[str, Cost]:
    """By path. NotCounted without valgrind, or where it cannot run this interpreter."""
    valgrind = shutil.which("valgrind")
    if valgrind is None:
        raise NotCounted("valgrind is not installed")
    with tempfile.TemporaryDirectory(prefix="shmrt-instructions-") as place:
        command = [valgrind, "--tool=callgrind", "--separate-threads=yes", "--dump-before=getppid"]
        command += [f"--callgrind-out-file={place}/part", sys.executable, "-m", "bench._hot_paths", str(count)]
        environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        if done.returncode != 0:
            raise NotCounted(f"callgrind ended with {done.returncode}: {done.stderr[-2000:]}")
        names = done.stdout.splitlines()
        # Odd parts are what lies between two paths; thread 1 is the one that runs them.
        return {name: _cost(Path(place, f"part.{2 * at + 2}-01"), count) for at, name in enumerate(names)}


def _cost(part: Path, count: int) -> Cost:
    """of one part, in the format of cl-format.html of the manual: a name is given once and then by its number."""
    native, everything, inside, skip = 0, 0, False, False
    objects: dict[str, bool] = {}
    for line in part.read_text().splitlines():
        if line.startswith("ob="):
            number, _, name = line[3:].partition(" ")
            inside = objects.setdefault(number, "/_native." in name)
        elif line.startswith("cob=") and " " in line:
            number, _, name = line[4:].partition(" ")
            objects.setdefault(number, "/_native." in name)
        elif line.startswith("calls="):
            skip = True  # the next line is what the callee cost
        elif _COUNT.match(line):
            if not skip:
                cost = int(line.split()[-1])
                everything += cost
                native += cost if inside else 0
            skip = False
    return Cost(native / count, everything / count)


def recorded() -> dict[str, Any]:
    return tomllib.loads(RECORD.read_text())


def judge(found: dict[str, Cost], record: dict[str, Any], compiled_by: str, run_by: str) -> Iterator[str]:
    """What is wrong: one line for each path that costs too much, or that only one of the two knows.

    >>> record = {"compiler": "c", "python": "p", "path": {"put": {"native": 100.0, "all": 300.0}}}
    >>> list(judge({"put": Cost(104.0, 300.0)}, record, "c", "p"))
    []
    >>> list(judge({"put": Cost(106.0, 300.0)}, record, "c", "p"))
    ['put: 106.0 native instructions, 100.0 are recorded']
    """
    known: dict[str, dict[str, float]] = record["path"]
    for name in sorted(found.keys() ^ known.keys()):
        yield f"{name}: {'not recorded' if name in found else 'recorded, and not counted any more'}"
    for name in sorted(found.keys() & known.keys()):
        cost, before = found[name], known[name]
        if compiled_by == record["compiler"] and cost.native > before["native"] * MOST:
            yield f"{name}: {cost.native:.1f} native instructions, {before['native']:.1f} are recorded"
        elif compiled_by == record["compiler"] and run_by == record["python"] and cost.all > before["all"] * MOST:
            yield f"{name}: {cost.all:.1f} instructions in all, {before['all']:.1f} are recorded"


def run(count: int) -> Iterator[dict[str, Any]]:
    known = recorded()["path"]
    try:
        found = measure(count)
    except NotCounted as reason:
        yield {"skipped": str(reason).splitlines()[0]}
        return
    for name, cost in found.items():
        before = known.get(name)
        ratio = round(cost.native / before["native"], 3) if before else None
        yield {"path": name, "native": round(cost.native, 1), "all": round(cost.all, 1), "of_recorded": ratio}


def record() -> None:
    lines = ["# Instructions of one pass of each hot path: see instructions.py, which writes this.", ""]
    lines += [f'compiler = "{compiler()}"', f'python = "{interpreter()}"', f"count = {FULL['count']}"]
    for name, cost in measure(FULL["count"]).items():
        lines += ["", f'[path."{name}"]', f"native = {cost.native:.1f}", f"all = {cost.all:.1f}"]
    RECORD.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["record"]:
        sys.exit("usage: python -m bench.instructions record; to compare: python -m bench run instructions")
    record()

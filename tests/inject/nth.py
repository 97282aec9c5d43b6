"""In a process of its own: lets the 1st, 2nd, 3rd ... call fail until an operation goes through without any failure.

    python nth.py OPERATION FUNCTIONS CALLER MODES PROGRESS

MODES: 0 for once, 1 for ever after, 01 for one after the other. FUNCTIONS "python": its own allocator; once only, since
an interpreter that never gets memory again may loop for ever in a `finally` (CPython 3.11 does). SQLite's loop. After
each try: the error was documented, the state is right, the operation works without faults, and the process has what it
had before. One line of JSON for each finding, one at the end.
"""

from __future__ import annotations

import collections
import faulthandler
import gc
import json
import mmap
import os
import struct
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

TRIES_MAX = 3000
SETTLE_S = 20.0


def belongings() -> dict[str, collections.Counter[str]]:
    """What a leak would show in."""
    gc.collect()
    descriptors = []
    for number in os.listdir("/proc/self/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/self/fd/{number}"))
        except OSError:
            pass  # the one that the list itself was read by
    maps = Path("/proc/self/maps").read_text()
    found = {
        "descriptors": [what.partition(":[")[0] for what in descriptors if not what.startswith("/proc")],
        "segments": [
            line.split(None, 5)[5] for line in maps.splitlines() if "/memfd:shmrt" in line or "/dev/shm" in line
        ],
        "threads": ["a thread"] * len(os.listdir("/proc/self/task")),
        "children": Path("/proc/self/task", str(os.getpid()), "children").read_text().split(),
    }
    return {key: collections.Counter(values) for key, values in found.items()}


def settled(before: dict[str, collections.Counter[str]]) -> dict[str, Any]:
    """What there is more than before, once it will not go. A process that ends takes a moment to be gone."""
    end = time.monotonic() + SETTLE_S
    while True:
        now = belongings()
        more = {key: list((now[key] - before[key]).elements()) for key in now if now[key] - before[key]}
        if not more or time.monotonic() > end:
            return more
        os.sched_yield()


class Faults:
    """Arms the shim in this process, or in the roots that it starts (caller "root"), or Python's own allocator."""

    def __init__(self, functions: str, caller: str, forever: bool) -> None:
        from operations import shim

        self.functions, self.caller, self.forever = functions, caller, forever
        self.shim = shim()
        self.hooks: Any = None
        if functions == "python":
            import _testcapi  # type: ignore[import-not-found]

            self.hooks = _testcapi
        self.fired = 0

    def arm(self, n: int) -> None:
        if self.caller == "root":
            self.seen = os.fstat(2).st_size
            os.environ["SHIM_PLAN"] = f"{self.functions}:{n}:{int(self.forever)}::shmrt.supervise.root"
            os.environ["SHIM_TRACE"] = "1"
        elif self.hooks is not None:
            self.hooks.set_nomemory(n, 0 if self.forever else n + 1)
        else:
            self.shim.shim_arm(self.functions.encode(), n, self.forever, self.caller.encode())

    def disarm(self) -> str:
        """Which function failed; empty: none did, the operation never got so far."""
        if self.caller == "root":
            os.environ.pop("SHIM_PLAN", None)
            told = Path("/proc/self/fd/2").read_bytes()[self.seen :]
            return told.partition(b"shim: ")[2].partition(b" ")[0].decode()
        if self.hooks is not None:
            self.hooks.remove_mem_hooks()
            return "?"
        fired = self.shim.shim_fired()
        self.shim.shim_disarm()
        return self.shim.shim_last().decode() if fired else ""


def sweep(operation: Any, faults: Faults, before: dict[str, Any], errors: dict[str, int], at: mmap.mmap) -> int:
    """Every n; how many there were."""
    from operations import is_documented

    tried = quiet = 0
    for n in range(1, TRIES_MAX):
        at[:] = struct.pack("<Q", n)
        error: BaseException | None = None
        faults.arm(n)
        try:
            operation.run()
        except BaseException as came:
            what = faults.disarm()
            error = came
        else:
            what = faults.disarm()
        tried += 1
        said = "" if error is None else f"{type(error).__name__}: {error}"
        problem = ""
        if error is not None and not is_documented(error):
            problem = "".join(traceback.format_exception(error))[-3000:]
        error = None
        try:
            operation.after()
        except BaseException as wrong:
            problem += "".join(traceback.format_exception(wrong))[-2000:]
        try:
            operation.run()
            operation.after()
        except BaseException as wrong:
            problem += "the next try: " + "".join(traceback.format_exception(wrong))[-2000:]
        left = settled(before)
        if left:
            problem += f"left behind: {left}"
            before.update(belongings())
        if problem:
            print(json.dumps({"n": n, "function": what, "said": said, "problem": problem}), flush=True)
        errors[f"{what}: {said.partition(':')[0] or 'none'}"] = (
            errors.get(f"{what}: {said.partition(':')[0] or 'none'}", 0) + 1
        )
        # Python's hooks do not tell whether they failed anything: some successes in a row are the end.
        quiet = quiet + 1 if not said else 0
        if what == "" or (what == "?" and quiet >= 40):
            break
    return tried


def main() -> None:
    name, functions, caller, modes, progress = sys.argv[1:6]
    from operations import OPERATIONS

    faulthandler.enable()
    warnings.simplefilter("ignore")
    unraisable: list[str] = []
    sys.unraisablehook = lambda about: unraisable.append(repr(about.exc_value))
    with open(progress, "r+b") as file:
        at = mmap.mmap(file.fileno(), 8)
    operation = OPERATIONS[name]()
    for _ in range(2):  # what is made once stays
        operation.run()
        operation.after()
    before = belongings()
    errors: dict[str, int] = {}
    tried = 0
    for mode in modes:
        tried += sweep(operation, Faults(functions, caller, mode == "1"), before, errors, at)
    operation.close()
    print(json.dumps({"end": True, "tried": tried, "errors": errors, "unraisable": unraisable[:10]}), flush=True)


if __name__ == "__main__":
    main()

"""Check functions of the tests of health, and ways to wait for reports."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tree_kit import Journal, until

from shmrt import Degraded, HealthCheck, HealthReport, health


def fine() -> None:
    """All is well."""


def hang() -> None:
    time.sleep(3600)


def hang_with_gil() -> None:
    ctypes.PyDLL(None).sleep(3600)


def loop() -> None:
    while True:
        pass


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def fail() -> None:
    raise LookupError("no such table")


def leave_in_order() -> None:
    sys.exit(4)


def close_everything() -> None:
    os.closerange(3, 1 << 16)


def close_and_hang() -> None:
    os.closerange(3, 1 << 16)
    time.sleep(3600)


def come_back_twice() -> str:
    """A fork of the check must not answer in its place."""
    pid = os.fork()
    if pid == 0:
        return "from the copy"
    os.waitpid(pid, 0)
    return "from the check"


def leave_somebody(journal: Journal) -> None:
    """A process of the check's own outlives no kill of the check."""
    pid = os.fork()
    if pid == 0:
        time.sleep(3600)
    journal.note("left", pid)
    time.sleep(3600)


async def patient() -> Degraded:
    import asyncio

    await asyncio.sleep(0)
    return Degraded("slow", 2.5, "s")


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not to be sent")

    def __call__(self) -> None: ...


class Odd:
    def __str__(self) -> str:
        raise ValueError("cannot be shown")


def raise_odd() -> None:
    class Strange(Exception):
        def __str__(self) -> str:
            raise ValueError("cannot be shown")

    raise Strange


def unless_exists(path: str) -> bool:
    return not Path(path).exists()


def count(journal: Journal, path: str) -> bool:
    """Writes down that it ran, and by which process."""
    journal.note("checked", os.getpid())
    return not Path(path).exists()


def hang_if_exists(path: str, journal: Journal) -> None:
    journal.note("running", os.getpid())
    if Path(path).exists():
        time.sleep(3600)


def look_at(ref: Any, journal: Journal) -> bool:
    journal.note("looked", ref.pid, type(ref).__name__)
    return True


def ask_health() -> str:
    return health().status


class Fake:
    """As much of a breaker as a check looks at."""

    def __init__(self, name: str, state: str) -> None:
        self.name = name
        self.state = state


@contextmanager
def registered(*checks: HealthCheck) -> Iterator[None]:
    """They are the program's as long as this lasts."""
    try:
        yield
    finally:
        for check in checks:
            check.unregister()


def once(report: Any, wanted: Any) -> HealthReport:
    """Asks again until a report is as wanted."""

    def look() -> HealthReport | None:
        found: HealthReport = report()
        return found if wanted(found) else None

    found: HealthReport = until(look, lambda: report())
    return found


def processes_of_checks(root: int) -> list[int]:
    """Those that the root has now, by the name that they have."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            name = Path(f"/proc/{entry}/comm").read_text()
        except OSError:
            continue
        if int(fields[1]) == root and fields[0] not in "ZX" and name.startswith("shmrt check"):
            found.append(int(entry))
    return found

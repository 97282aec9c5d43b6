"""Functions that the tests of fallbacks and bulkheads run in workers: importable there, and quickly."""

from __future__ import annotations

import os
import signal
from typing import Any

from shmrt import fallback


def hang(*_: Any) -> None:
    while True:
        pass


def hang_and_say(path: str) -> None:
    """Its process id stands in `path`.done before it hangs."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    os.rename(path, path + ".done")
    hang()


def die(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def pid_or_hang(what: str) -> int:
    if what == "hang":
        hang()
    return os.getpid()


def pid(*_: Any) -> int:
    return os.getpid()


def late(*_: Any) -> None:
    raise TimeoutError("mine")


def leave(*_: Any) -> None:
    raise SystemExit(3)


@fallback(("pid", pid), timeout=60)
def in_module(n: int) -> int:
    return n


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True

"""Who owns the directory of a named runtime, and whether that process is still the same one.

A process is known by boot id, pid and start time: a pid alone is used again sooner or later. Pids and start times
mean something in their own namespaces only, so the record names these too; whoever reads it elsewhere cannot judge,
and says so instead of guessing.

    >>> me = describe_process(os.getpid())
    >>> is_alive(me)
    True
    >>> is_alive({**me, "start": me["start"] + 1})
    False
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["describe_machine", "describe_process", "is_alive", "same_machine"]


def _text(path: str) -> str:
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _namespace(kind: str) -> str:
    try:
        return os.readlink(f"/proc/self/ns/{kind}")
    except OSError:
        return ""  # a kernel without it


def describe_machine() -> dict[str, str]:
    """This boot of this machine, and the namespaces in which pids and start times are read here."""
    return {
        "boot": _text("/proc/sys/kernel/random/boot_id").strip(),
        "pids": _namespace("pid"),
        "times": _namespace("time"),
    }


def same_machine(machine: Any) -> bool | None:
    """Whether pids of that record can be looked up here; None: it is of another namespace, so nobody can tell here."""
    mine = describe_machine()
    if not isinstance(machine, dict) or machine.get("boot") != mine["boot"]:
        return False
    return True if machine == mine else None


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State, number of threads and start time, in clock ticks since the boot."""
    text = _text(f"/proc/{pid}/stat")
    fields = text[text.rfind(")") + 2 :].split()  # the name before may hold anything
    if len(fields) < 20:
        return None
    return fields[0], int(fields[17]), int(fields[19])


def describe_process(pid: int) -> dict[str, int]:
    """What tells this process from every other one with its pid."""
    stat = _stat(pid)
    return {"pid": pid, "start": stat[2] if stat else -1}


def is_alive(process: Any) -> bool:
    """Whether a process that `describe_process` described on this machine still runs; a zombie does not."""
    if not isinstance(process, dict) or not isinstance(process.get("pid"), int):
        return False
    stat = _stat(process["pid"])
    if stat is None or stat[2] != process.get("start"):
        return False
    state, threads, _ = stat
    return state not in "ZX" or threads > 1  # a main thread that left while others run looks like a zombie

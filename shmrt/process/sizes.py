"""How much memory processes use, and how much shared memory is left, as a process of a runtime sees it."""

from __future__ import annotations

import os

from shmrt import _native
from shmrt.process.death import stat_fields

__all__ = ["memory_of", "shared_memory_free"]


def memory_of(leader: int | None) -> int:
    """Bytes of the processes in that one's group; without one those of the program and everybody in its root's session.
    What several share is divided among them. LookupError if there is none."""
    from shmrt.process import worker

    job = worker.job_of_this
    if leader is None and job is not None:
        program = job.slots.info(_native.SLOT_PROGRAM)["pid"]
        pids = [program, *(pid for pid in _pids() if (fields := stat_fields(pid)) and fields[3] == job.root_pid)]
    elif leader is None:
        pids = [os.getpid()]
    else:
        pids = [pid for pid in _pids() if (fields := stat_fields(pid)) and fields[2] == leader]
    sizes = [size for pid in pids if (size := _size(pid)) is not None]
    if not sizes:
        raise LookupError(f"there is no process {leader} any more")
    return sum(sizes)


def _pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _size(pid: int) -> int | None:
    """None when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            return sum(int(line.split()[1]) << 10 for line in file if line.startswith(b"Pss:"))
    except ProcessLookupError:
        return None
    except OSError:
        pass  # a process that may not be looked into, or an old kernel
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")
    except OSError:
        return None


def shared_memory_free() -> int:
    """Bytes for payloads: what the runtime's limit leaves, and what /dev/shm has for named rings."""
    stats = _native.Arena.default().stats()
    left = max(0, stats["limit"] - stats["bytes_used"])
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return left  # there is none: named rings cannot be had, and everything else can
    return min(left, status.f_bavail * status.f_frsize)

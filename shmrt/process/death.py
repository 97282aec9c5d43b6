"""Finding and ending what is left of a process: children, groups, sessions.

The root leads a session that every worker and everything that user code starts belongs to, unless it made
one of its own. A session's number cannot be taken by others while a member lives or the root has not been
reaped, so "everybody in the root's session" never names a stranger.
"""

from __future__ import annotations

import os

from shmrt import _native
from shmrt.process.signals import KILL

__all__ = [
    "children",
    "describe_status",
    "free_after_root",
    "kill_group",
    "kill_session",
    "kill_survivors",
    "stat_fields",
    "wait_gone",
]


def stat_fields(pid: int) -> tuple[str, int, int, int] | None:
    """(state, parent, group, session) of a process; None when there is none. While other threads of it still run, a
    zombie of a main thread is told as R."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 1024)
    except OSError:
        return None
    finally:
        os.close(fd)
    # The name may hold anything, parentheses too: fields start behind the last one.
    fields = text[text.rfind(b")") + 2 :].split()
    if len(fields) < 18:
        return None
    state = "R" if fields[0] == b"Z" and int(fields[17]) > 1 else fields[0].decode()
    return state, int(fields[1]), int(fields[2]), int(fields[3])


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def children() -> list[int]:
    """Every child of this process, zombies included."""
    found: list[int] = []
    try:
        for task in os.listdir("/proc/self/task"):
            with open(f"/proc/self/task/{task}/children", "rb", buffering=0) as file:
                found += [int(pid) for pid in file.read().split()]
        return found
    except OSError:
        own = os.getpid()
        return [pid for pid in _pids() if (fields := stat_fields(pid)) is not None and fields[1] == own]


def kill_group(leader: int) -> None:
    """SIGKILL to a group whose leader has not been reaped, so the number is certainly its own."""
    try:
        os.killpg(leader, KILL)
    except OSError:
        pass  # it never made the group, or nobody is left in it


def kill_session(session: int) -> list[int]:
    """SIGKILL to everybody in a session but this process; pidfds of those that were alive (to be closed)."""
    own = os.getpid()
    pidfds: list[int] = []
    for pid in _pids():
        if pid == own or not _in_session(pid, session):
            continue
        try:
            pidfd = _native.pidfd_open(pid)
        except OSError:
            continue
        # Looked at again, now that the pidfd pins who is meant.
        if _in_session(pid, session) and _native.pidfd_signal(pidfd, KILL):
            pidfds.append(pidfd)
        else:
            os.close(pidfd)
    return pidfds


def _in_session(pid: int, session: int) -> bool:
    fields = stat_fields(pid)
    return fields is not None and fields[3] == session and fields[0] not in "ZX"


def wait_gone(pidfds: list[int], timeout_s: float = 10.0) -> bool:
    """Waits until every one of these processes is gone; closes the pidfds. False after the timeout."""
    from time import monotonic

    end = monotonic() + timeout_s
    left = list(pidfds)
    while left:
        rest_ms = int((end - monotonic()) * 1000)
        if rest_ms <= 0:
            break
        _native.poll([(left[0], _native.POLLIN)], rest_ms)
        left = [pidfd for pidfd in left if not _native.pidfd_is_gone(pidfd)]
    for pidfd in pidfds:
        os.close(pidfd)
    return not left


def kill_survivors(slots: _native.Slots, root_pid: int) -> list[int]:
    """After the death of the root, by the program, before it reaps the root: ends every worker, template and what
    they started, waits until the kernel has torn them down, and marks their slots GONE. Returns those slots.

    Nothing of the old root can write to any shared byte when this returns.
    """
    lived = [
        slot
        for slot in range(_native.SLOT_FIRST_WORKER, slots.count)
        if slots.state(slot) not in (_native.SLOT_EMPTY, _native.SLOT_GONE)
    ]
    for slot in lived:
        slots.order_kill(slot, _native.KILL_ROOT_LOST)
    # A process may fork while the list is read: again until a look finds nobody.
    while pidfds := kill_session(root_pid):
        wait_gone(pidfds)
    gone = []
    for slot in lived:
        if slots.state(slot) != _native.SLOT_GONE:  # as far as that the root had got itself
            slots.gone_anyway(slot, slots.epoch(slot), KILL, False)
            gone.append(slot)
    slots.ring_all()
    return gone


def free_after_root(slots: _native.Slots, gone: list[int], first: int) -> list[int]:
    """Frees those from `first` on, whose hubs are among the dead: children of trees, and workers of nested pools. What
    they and the root were as owners of blocks."""
    owners = [int(slots.info(_native.SLOT_ROOT)["owner"])]
    for slot in gone:
        if slot >= first:
            owners.append(int(slots.info(slot)["owner"]))
            slots.free(slot)
    return owners


def describe_status(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exited with code {os.waitstatus_to_exitcode(status)}"

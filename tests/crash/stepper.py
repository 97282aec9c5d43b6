"""Kills a process after exactly so many machine instructions, with ptrace through ctypes.

Only the main thread of the target is stepped; it is the one that owns its lanes. A target that sleeps in a system
call is woken by the attach, looks around, and is stepped from there; a step over a blocking call ends when that does.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_ATTACH, _SINGLESTEP, _DETACH = 16, 9, 17
_WALL = 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_libc.ptrace.restype = ctypes.c_long


def may_trace() -> str | None:
    """Why ptrace of a process that is not our child cannot work here; None: it can."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    try:
        if _libc.ptrace(_ATTACH, pid, None, None) != 0:
            return f"ptrace is refused here: {os.strerror(ctypes.get_errno())}"
        os.waitpid(pid, _WALL)
        return None
    finally:
        os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while not os.WIFSIGNALED(os.waitpid(pid, _WALL)[1]):
                pass


def kill_after(pid: int, steps: int, meanwhile: Callable[[], None]) -> int:
    """Stops `pid`, calls `meanwhile`, lets it take `steps` instructions, SIGKILLs it and takes note of its death.

    Returns how many steps it took: fewer than asked if it blocked in a system call, which then is where it dies.
    """
    if _libc.ptrace(_ATTACH, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), f"cannot attach to {pid}")
    os.waitpid(pid, _WALL)
    taken = 0
    try:
        meanwhile()
        while taken < steps:
            if _libc.ptrace(_SINGLESTEP, pid, None, None) != 0:
                raise OSError(ctypes.get_errno(), f"cannot step {pid}")
            # A step over a sleeping system call does not come back: 1000 looks, then it counts as asleep.
            for _ in range(1000):
                done, status = os.waitpid(pid, _WALL | os.WNOHANG)
                if done:
                    break
                os.sched_yield()
            else:
                break
            if not os.WIFSTOPPED(status):
                return taken
            taken += 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while not os.WIFSIGNALED(os.waitpid(pid, _WALL)[1]):
                pass
    return taken

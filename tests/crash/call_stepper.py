"""Kills a forked child at a system call of its main thread, or some instructions behind one, with ptrace.

    >>> stops = run(lambda: os.getppid(), at=None)         # how many stops there are
    >>> run(lambda: os.getppid(), at=1, then=7).killed     # dies 7 instructions behind its second stop
    True

Each system call stops twice: before the kernel does it and after. An operation of 10^5 instructions has some dozens of
these, and between two of them nothing but its own memory changes: so all that others can see is visited.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepper import _WALL, _libc

_TRACEME, _CONT, _SINGLESTEP, _SYSCALL, _SETOPTIONS = 0, 7, 9, 24, 0x4200
_TRACESYSGOOD, _EXITKILL = 1, 0x100000
_CALL_STOP = signal.SIGTRAP | 0x80


@dataclass(frozen=True, slots=True)
class Outcome:
    pid: int
    stops: int
    """System call stops that it came to."""
    killed: bool
    """False: the operation had ended before."""


def _trace(request: int, pid: int, data: int = 0) -> None:
    if _libc.ptrace(request, pid, None, data) != 0:
        raise OSError(ctypes.get_errno(), f"ptrace request {request} for {pid} is refused")


def _child(operation: Callable[[], Any], prepare: Callable[[], Any]) -> None:
    """Never returns."""
    try:
        gc.disable()  # a collection would be somebody else's calls
        prepare()
        _trace(_TRACEME, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        operation()
        os.kill(os.getpid(), signal.SIGSTOP)
    finally:
        os._exit(1)


def run(
    operation: Callable[[], Any],
    *,
    at: int | None,
    then: int = 0,
    prepare: Callable[[], Any] = lambda: None,
    killed: Callable[[int], None] = lambda pid: None,
) -> Outcome:
    """Runs `operation` in a forked child and SIGKILLs it at stop number `at`, counted from 0, and `then` instructions.

    `at=None` lets it come to its end. `prepare` runs in the child first and is not counted. `killed(pid)` is called
    after the SIGKILL, when the kernel has said that the child is gone. Signals for the child reach it.
    """
    pid = os.fork()
    if pid == 0:
        _child(operation, prepare)
    stops = 0
    ended = False
    try:
        _, status = os.waitpid(pid, _WALL)
        assert os.WIFSTOPPED(status), f"the child ended in its preparations: {status:#x}"
        _trace(_SETOPTIONS, pid, _TRACESYSGOOD | _EXITKILL)
        pending = 0
        while not ended and stops != at:
            _trace(_SYSCALL, pid, pending)
            _, status = os.waitpid(pid, _WALL)
            assert os.WIFSTOPPED(status), f"the child ended by itself: {status:#x}"
            number = os.WSTOPSIG(status)
            ended = number == signal.SIGSTOP
            stops += number == _CALL_STOP
            pending = 0 if number in (_CALL_STOP, signal.SIGTRAP) else number
        while not ended and then > 0:
            _trace(_SINGLESTEP, pid, pending)
            _, status = os.waitpid(pid, _WALL)
            assert os.WIFSTOPPED(status), f"the child ended by itself: {status:#x}"
            number = os.WSTOPSIG(status)
            ended = number == signal.SIGSTOP
            pending = 0 if number in (_CALL_STOP, signal.SIGTRAP) else number
            then -= 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while not os.WIFSIGNALED(os.waitpid(pid, _WALL)[1]):
                pass
    killed(pid)
    return Outcome(pid, stops, not ended)

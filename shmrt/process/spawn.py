"""Forking workers and templates from the root.

Only `os.fork`, from the root's main thread: a raw clone leaves glibc with a stale thread id, and the
parent-death signal is bound to the *thread* that forked. The child never returns into the root's loop.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable

    from shmrt import _native

__all__ = ["STACK_BYTES", "Job", "close_all_but", "die_first", "fork_child", "leave_copy"]

#: Bytes of the pool's stack file that belong to each worker, at pair * STACK_BYTES.
STACK_BYTES = 65536


class Job:
    """What a worker needs to know about itself."""

    __slots__ = (
        "arena_fd",
        "control_fd",
        "epoch",
        "hub_slot",
        "index",
        "lanes_fd",
        "number",
        "own_pid",
        "pair",
        "restarts",
        "root_pid",
        "slots",
        "spec",
        "stacks_fd",
    )

    def __init__(
        self,
        *,
        slots: _native.Slots,
        index: int,
        epoch: int,
        pair: int,
        number: int,
        restarts: int,
        spec: dict[str, object],
        lanes_fd: int,
        stacks_fd: int,
        arena_fd: int,
        control_fd: int,
        hub_slot: int,
        root_pid: int,
    ) -> None:
        self.slots = slots
        self.index = index
        self.epoch = epoch
        self.pair = pair
        self.number = number
        self.restarts = restarts
        self.spec = spec
        self.lanes_fd = lanes_fd
        self.stacks_fd = stacks_fd
        self.arena_fd = arena_fd
        self.control_fd = control_fd  # its own socket to the root, for the pools that it makes
        self.hub_slot = hub_slot  # of the hub that it works for: the program's, or that of a worker
        self.root_pid = root_pid
        self.own_pid = 0  # of the worker, set by itself: a process that it forks is another


def fork_child(run: Callable[[], int]) -> int:
    """Forks; the child calls `run`, exits with its answer and nothing else. Returns the child's pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 70  # a bug of the bootstrap itself
    try:
        code = run()
    except BaseException:
        try:
            import sys

            sys.excepthook(*sys.exc_info())
        except BaseException:
            pass
    finally:
        os._exit(code)


def leave_copy(error: BaseException | None = None) -> None:
    """Ends a fork of a child that comes back from the user's code: it is nobody's child and must neither serve nor
    speak in the name of the process that it is a copy of."""
    import sys

    code = 0
    if error is not None:
        code = 1
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
        else:
            sys.excepthook(type(error), error, error.__traceback__)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass
    os._exit(code & 0xFF)


def die_first(adjustment: int = 1000) -> None:
    """Asks the kernel to take this process first when memory ends: a worker costs one task, and its replacement
    serves in milliseconds; the program holds everybody's work."""
    try:
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # no /proc: the kernel chooses by size
    try:
        os.write(fd, b"%d" % adjustment)
    except OSError:
        pass
    finally:
        os.close(fd)


def close_all_but(keep: list[int]) -> None:
    """Closes every descriptor but the standard three and these."""
    last = 2
    for fd in sorted({fd for fd in keep if fd > 2}):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, 1 << 30)

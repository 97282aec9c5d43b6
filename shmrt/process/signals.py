"""Which signal does what in the root, in a template and in a worker.

Only `_signal` is used: the module `signal` imports `enum`, which costs more than the whole start of the root.

root      TERM, INT, HUP, USR1, USR2, QUIT and CHLD write their number into a pipe and are handled by the
          loop; nothing of it dies. Terminal signals do not reach it: it leads a session of its own.
template  INT is ignored; everything else has its default.
worker    INT is ignored, since Ctrl-C belongs to the program, which then ends its workers in order. TERM:
          finish the message in hand, then leave; while it stands by, and so has none, it dies of TERM at once.
          USR1: write the Python stacks of all threads.
child     of a tree, besides: TERM asks it to end (`supervise/child.py`, `serve.py`); USR2 says that an exit signal of a
          linked process lies in its socket, and interrupts what it is doing.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os

from shmrt import _native

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from shmrt.process.spawn import Job

__all__ = [
    "CHLD",
    "KILL",
    "TERM",
    "URG",
    "USR1",
    "USR2",
    "die_by",
    "for_root",
    "for_template",
    "for_worker",
    "leave_on_term",
]

CHLD = int(_signal.SIGCHLD)
KILL = int(_signal.SIGKILL)
TERM = int(_signal.SIGTERM)
URG = int(_signal.SIGURG)
USR1 = int(_signal.SIGUSR1)
USR2 = int(_signal.SIGUSR2)


def _noted(number: int, frame: object) -> None:
    """The number is in the wake-up pipe already."""


def for_root(wakeup_fd: int) -> None:
    _signal.set_wakeup_fd(wakeup_fd, warn_on_full_buffer=False)
    for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT", "SIGCHLD"):
        _signal.signal(getattr(_signal, name), _noted)
    for name in ("SIGPIPE", "SIGWINCH", "SIGTTIN", "SIGTTOU", "SIGTSTP"):
        _signal.signal(getattr(_signal, name), _signal.SIG_IGN)


def die_by(number: int) -> None:
    """As if the signal had had its default: it came from somebody who is not the root."""
    _signal.signal(number, _signal.SIG_DFL)
    os.kill(os.getpid(), number)


def for_template() -> None:
    _signal.set_wakeup_fd(-1)
    _native.reset_signals()
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)


def for_worker() -> None:
    _signal.set_wakeup_fd(-1)
    _native.reset_signals()
    _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
    _signal.signal(_signal.SIGURG, _noted)  # ends a sleep that began with a signal noted (`supervise/nudges.py`)
    # Python's own table still names the root's handlers; a worker that asks finds the default.
    for name in ("SIGTERM", "SIGHUP", "SIGUSR2", "SIGQUIT", "SIGCHLD", "SIGWINCH", "SIGTTIN", "SIGTTOU", "SIGTSTP"):
        _signal.signal(getattr(_signal, name), _signal.SIG_DFL)


def leave_on_term(job: Job) -> None:
    """Not before the worker has its slot. A handler of Python's only takes note of the signal: who waits for a slot
    could fall asleep with the note in hand and would not be gone before it is given one."""
    _signal.signal(_signal.SIGTERM, lambda number, frame: job.slots.request_stop(job.index))

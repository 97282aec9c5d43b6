"""Which runtime the guards of this process belong to now, and what they report to it.

    a worker or child     the runtime that owns it; inside a `with Runtime()` of its own, that one
    the program           the innermost `with Runtime()`, else the default runtime if it was started
    otherwise             none: a guard is this process's own

A forked child of either has none. Asking starts nothing. `native/py_guard.h` says when a guard asks again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import weakref

from shmrt import _native

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.process.spawn import Job
    from shmrt.runtimes import Runtime

__all__ = ["area_of", "know", "leave", "refused", "report", "table", "way"]

_LOOK_S = 1.0  # between two looks whether there is a report to make

_known: weakref.WeakSet[Any] = weakref.WeakSet()  # every guard of this process
_of_job: tuple[int, _native.GuardArea] | None = None


def _job() -> Job | None:
    job: Job | None = getattr(sys.modules.get("shmrt.process.worker"), "job_of_this", None)
    return job if job is not None and job.own_pid == os.getpid() else None


def _runtime() -> Runtime | None:
    """The program's, if there is one; None in a worker without a runtime of its own."""
    runtimes = sys.modules.get("shmrt.runtimes")
    if runtimes is None:
        return None
    runtime: Runtime | None = runtimes.innermost()
    if runtime is None and _job() is None:
        runtime = runtimes._default
    if runtime is None or not runtime._is_mine or not runtime._started or runtime._stopped or runtime._slots is None:
        return None
    return runtime


def area_of(runtime: Runtime) -> _native.GuardArea:
    """The guards of this runtime, as the program that started it sees them."""
    area: _native.GuardArea | None = runtime._guards
    if area is None:
        area = runtime._guards = _native.GuardArea(runtime._slots, _native.SLOT_PROGRAM)
    return area


def _area() -> _native.GuardArea | None:
    global _of_job
    runtime = _runtime()
    if runtime is not None:
        return area_of(runtime)
    job = _job()
    if job is None:
        return None
    if _of_job is None or _of_job[0] != os.getpid():
        _of_job = (os.getpid(), _native.GuardArea(job.slots, job.index))
    return _of_job[1]


def know(guard: Any) -> None:
    """A guard was made: it is told when its runtime ends."""
    _known.add(guard)


def leave(runtime: Runtime) -> None:
    """The runtime ends: what its guards know here goes on in this process alone."""
    area, runtime._guards = runtime._guards, None
    _native.guards_moved()
    if area is not None:
        for guard in list(_known):
            guard._leave(area)


def table(area: _native.GuardArea | None = None) -> list[dict[str, Any]]:
    """A row of every guard of the runtime that this process belongs to: kind, name, settings, and how it stands."""
    from shmrt.memory.guard_words import row

    area = _area() if area is None else area
    return [] if area is None else [row(*facts) for facts in area.list()]


def report(event: str, name: str, kind: str, state: str, was: str) -> None:
    """Into the log of the runtime, without waiting for anybody: `events()` and `python -m shmrt events` show it."""
    about = {"where": name, "kind": kind, "state": state, "was": was, "pid": os.getpid()}
    with contextlib.suppress(OSError, ValueError):  # the runtime ends just now: nobody reads its log any more
        tell = way()
        if tell is not None:
            tell(("notice", event, {}, about))


def way() -> Callable[[tuple[Any, ...]], object] | None:
    """How the root of that runtime is told something."""
    runtime = _runtime()
    if runtime is not None:
        tell: Callable[[tuple[Any, ...]], object] = runtime._link.tell
        return tell
    job = _job()
    if job is None:
        return None
    from shmrt.supervise.inner import link_of

    return link_of(job).tell


def refused(guard: Any) -> None:
    """A call was refused, and is counted: it is reported, as `shmrt/overloads.py` does."""
    now = time.monotonic()
    if now < guard._look_again or not guard.is_shared:
        return
    guard._look_again = now + _LOOK_S
    from shmrt import overloads

    with contextlib.suppress(OSError, ValueError):  # as above
        overloads.due(guard)


_native.guards_ask(_area)

"""Reports of places that were full: who makes them, how often, and where they go.

A ring, a mailbox or a pool counts what it refuses, drops and finds expired, a breaker, bulkhead or rate limit the calls
that it refuses. That it did so is reported, as an event named "overload" ("breaker.reject", "bulkhead.reject",
"rate_limit.reject"): at once for the first, then at most once a second for each place with how many there were since,
however many processes meet it. The event goes to the root, which numbers it and tells the program (`Runtime.events`)
and whoever follows `python -m shmrt events`.

`due(place)` is called by a process that met a full place, at most once a second. It reports, and has a daemon
thread, `shmrt-overload`, look once a second for what comes after, until nothing does. A process without a runtime
counts and reports nothing: the next one that has one reports for both.

A place has `_overload()`: (refused, dropped, expired) since the last report if it is the caller's turn to make one (of
a guard the refusals alone), True if it is not and there is something to be told, None if there is nothing. Shared
places keep their turn in shared memory (`native/ring_report.h`, `native/guards.h`). If the process dies meanwhile,
somebody else's next report tells the rest.
"""

from __future__ import annotations

import os
import sys
from time import sleep
from weakref import ref as weak

TYPE_CHECKING = False  # `typing` costs a child more than all else
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Tell = Callable[[tuple[Any, ...]], object]

__all__ = ["due", "report"]

PERIOD_S = 1.02  # a little more than between two reports of a place

_followed: dict[Any, Callable[[], Any]] = {}
_follower = 0  # the process whose thread follows; 0: none does


def due(place: Any) -> None:
    """Reports what there is to tell of `place`, and goes on until there is no more."""
    if report(place):
        _follow(place)


def report(place: Any) -> bool:
    """Whether there was anything to report. For a place that goes away, since nobody will come any more."""
    tell = _way(place)
    news = None if tell is None else place._overload()
    if tell is None or news is None:
        return False
    if news is not True and hasattr(place, "settings_text"):
        about = {"where": place.name, "kind": place.kind, "pid": os.getpid()}
        tell(("notice", f"{place.kind}.reject", {"count": news}, about))
    elif news is not True:
        refused, dropped, expired = news
        measured = {"count": sum(news), "refused": refused, "dropped": dropped, "expired": expired}
        tell(("notice", "overload", measured, _about(place)))
    return True


def _about(place: Any) -> dict[str, Any]:
    """Plain values that say which place it is; a mailbox is found by its token, which the root can turn into a name."""
    if hasattr(place, "calls"):
        from shmrt.spec import ON_FULL

        about = {"where": None, "kind": "mailbox", "policy": ON_FULL[place.on_full], "token": place.token}
    elif hasattr(place, "counters"):
        about = {"where": place.name, "kind": "pool", "policy": place.on_full}
        about["pool"] = {"number": place.number, **place.counters()}
    else:
        about = {"where": place.name or "ring", "kind": "ring", "policy": place.spec.on_full}
    return {**about, "capacity": place.capacity, "pid": os.getpid()}


def _way(place: Any) -> Tell | None:
    """How a root is told of it: that of the runtime which the place belongs to, or the process's own."""
    if hasattr(place, "settings_text"):
        from shmrt.guard.place import way

        return way()
    job = getattr(sys.modules.get("shmrt.process.worker"), "job_of_this", None)
    if job is not None and job.own_pid == os.getpid():
        from shmrt.supervise.inner import link_of

        return link_of(job).tell
    runtimes = sys.modules.get("shmrt.runtimes")
    if runtimes is None:
        return None
    runtime = getattr(place, "runtime", None)
    calls = getattr(place, "calls", None)
    living = runtimes.living()
    if runtime is None and calls is not None:
        runtime = next((one for one in living if one._home is not None and one._home.calls is calls), None)
    if runtime is None:
        runtime = runtimes.innermost() or next(iter(living), None)
    link = None if runtime is None or not runtime._is_mine else runtime._link
    return None if link is None else link.tell


def _follow(place: Any) -> None:
    global _follower
    if _follower != os.getpid():
        _followed.clear()  # of the process that this one was forked from
    if hasattr(place, "settings_text"):  # it may have come with a message, and go with it
        _followed[place.kind, place.name] = lambda: place
    else:
        _followed[id(place)] = weak(place)
    if _follower != os.getpid():
        from threading import Thread

        _follower = os.getpid()
        try:
            Thread(target=_run, name="shmrt-overload", daemon=True).start()
        except BaseException:
            _follower = 0
            raise


def _run() -> None:
    global _follower
    while True:
        sleep(PERIOD_S)
        for key, reference in list(_followed.items()):
            place = reference()
            try:
                more = place is not None and report(place)
            except Exception:  # its runtime has ended
                more = False
            if not more and _followed.get(key) is reference:
                del _followed[key]
            del place
        if not _followed:
            _follower = 0  # whoever follows from here on starts a thread of its own
            if not _followed or _follower:
                return
            _follower = os.getpid()

"""The checks of this process that belong to no child and to no runtime: in a program, the program's.

They are kept as they are and pickled each time somebody asks, so that a function by value is run with what it closes
over at that moment.

If a thread dies while it adds one, nothing is half done: each step is one assignment.
"""

from __future__ import annotations

import threading
import weakref

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from shmrt.guard.health import HealthCheck

__all__ = ["add", "describe", "known", "remove", "row_of", "unplaced"]

_lock = threading.Lock()
_checks: dict[str, list[HealthCheck]] = {}  # by name, the newest last
_unplaced: weakref.WeakSet[HealthCheck] = weakref.WeakSet()  # with on_fail="restart", and no child yet


def add(check: HealthCheck) -> None:
    with _lock:
        if check.on_fail is not None:
            _unplaced.add(check)  # it waits for its child; if nobody keeps it, it was not meant
        else:
            _checks.setdefault(check.name, []).append(check)


def remove(check: HealthCheck) -> None:
    with _lock:
        _unplaced.discard(check)
        row = [other for other in _checks.get(check.name, ()) if other is not check]
        if row:
            _checks[check.name] = row
        else:
            _checks.pop(check.name, None)


def known() -> list[HealthCheck]:
    """The newest of each name, in the order in which the names came."""
    with _lock:
        return [row[-1] for row in _checks.values()]


def unplaced() -> HealthCheck | None:
    """One that says on_fail="restart" and was given to no child."""
    with _lock:
        return next(iter(_unplaced), None)


def row_of(check: HealthCheck, *, beside: bool = False, runtime: Any = None) -> dict[str, Any]:
    """A check as the root knows it: plain values, its function a pickle. beside: of a child; raises what pickling
    raises then. `runtime` is who is asked."""
    row: dict[str, Any] = {
        "name": check.name,
        "groups": check.groups,
        "critical": check.critical,
        "timeout_ns": int(check.timeout * 1e9),
        "restarts": check.on_fail == "restart",
        "interval_ns": int(check.interval * 1e9),
        "failures": check.failures,
        "grace_ns": int(check.grace * 1e9),
        "kind": "call",
        "what": b"",
    }
    said = getattr(check.fn, "said", None)  # of our own checks: what the root, or this process, knows better
    if said is not None and (found := said(runtime, beside)) is not None:
        row["kind"], row["what"] = found
        return row
    from shmrt.process.functions import dumps

    if beside:
        from shmrt.guard.beside import Beside

        row["what"] = dumps(Beside(check.fn))
        return row
    try:
        row["what"] = dumps(check.fn)
    except Exception as error:
        text = f"it cannot be sent to the process that would run it: {type(error).__name__}: {error}"
        row["kind"], row["what"] = "said", ("unhealthy", None, None, None, text[:1000])
    return row


def describe(row: dict[str, Any]) -> HealthCheck:
    """The check of a child that `row_of` made a row of."""
    from _pickle import loads

    from shmrt.guard.health import _rebuild

    if row["kind"] == "call":
        fn = loads(row["what"]).fn
    else:
        from shmrt.guard.checks import PoolCheck

        fn = PoolCheck(row["what"])
    times = (row["interval_ns"] / 1e9, row["failures"], row["grace_ns"] / 1e9)
    on_fail = "restart" if row["restarts"] else None
    return _rebuild(row["name"], fn, row["timeout_ns"] / 1e9, row["groups"], row["critical"], on_fail, *times)


def rows(checks: Iterable[HealthCheck], runtime: Any = None) -> list[dict[str, Any]]:
    return [row_of(check, runtime=runtime) for check in checks]

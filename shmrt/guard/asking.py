"""Asking the root how it is, from any process of the runtime; and what the program says when the root asks it.

Two questions are asked, so that nobody waits longer than needed for a root that does not run: `health` is answered
almost at once, with how long the checks may take, `health_wait` when all of them are done.

    program    ask health group checks surroundings          its own checks come along
    others     ask health group None None                    the root asks the program for them, ("checks", number)
    root       (number, most_ns)
    all        ask health_wait number                        {"status": ..., "checks": [...]}
"""

from __future__ import annotations

import os
import sys
from time import monotonic_ns

from shmrt.decide.health import UNHEALTHY
from shmrt.decide.health_facts import row as plain_row
from shmrt.errors import RuntimeDown
from shmrt.guard import registry
from shmrt.guard.report import HealthReport, report_of

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.runtimes import Runtime

__all__ = ["ask_health", "down_report", "snapshot"]

ROOT_S = 5.0
"""A root that runs answers in a millisecond; one on a machine that is out of memory may take its time."""


def ask_health(runtime: Runtime | None, group: str | None) -> HealthReport:
    """See `shmrt.health`."""
    from shmrt.home import home, home_of

    if _is_checker():
        raise RuntimeError("a health check cannot ask for health(): it would wait for itself")
    if runtime is not None and not runtime._started:
        return down_report("the runtime is not started")
    try:
        place = home() if runtime is None else home_of(runtime)
        checks, surroundings = None, None
        if place.owner is not None and place.owner._is_program:
            checks, surroundings = snapshot(place.owner)
        return _ask(place, group, checks, surroundings)
    except RuntimeDown as error:
        if error.reason == "forked":
            raise
        return down_report(str(error))
    except TimeoutError:
        return down_report(f"the root supervisor did not answer within {ROOT_S:g} s")


def _ask(place: Any, group: str | None, checks: Any, surroundings: Any) -> HealthReport:
    from shmrt.supervise.asking import AskError

    try:
        number, most_ns = place.ask("health", group, checks, surroundings, timeout=ROOT_S)
        return report_of(place.ask("health_wait", number, timeout=most_ns / 1e9 + ROOT_S))
    except AskError as error:
        if error.code == "no_group":
            known = ", ".join(repr(word) for word in error.more)
            raise ValueError(f"group={group!r}: no check is in it; there are {known}") from None
        raise


def snapshot(runtime: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The program's checks as they are now, and the surroundings in which they run."""
    from shmrt.guard.health import misplaced
    from shmrt.supervise.link import make_spec

    _ = runtime.trees  # who keeps what the root reports, changes of health among it
    unplaced = registry.unplaced()
    if unplaced is not None:
        raise misplaced(unplaced)
    own = {check.name: check for check in runtime._checks}
    chosen = [check for check in registry.known() if check.name not in own] + list(own.values())
    return registry.rows(chosen, runtime), make_spec("check", 1)


def down_report(error: str) -> HealthReport:
    """Of a runtime that cannot be asked."""
    row = {**plain_row("runtime:loop", ("live",), UNHEALTHY, error=error), "ns": monotonic_ns()}
    return report_of({"status": UNHEALTHY, "checks": [row]})


def _is_checker() -> bool:
    job = getattr(sys.modules.get("shmrt.process.worker"), "job_of_this", None)
    return job is not None and job.own_pid == os.getpid() and "check" in job.spec

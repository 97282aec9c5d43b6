"""Health checks: functions that say whether something works, run in processes of their own, each with a deadline.

    >>> from shmrt import HealthCheck, Runtime, health
    >>> check = HealthCheck("arithmetic", lambda: 2 + 2 == 4)
    >>> with Runtime():
    ...     report = health()
    >>> report.status, report.checks["arithmetic"].status
    ('healthy', 'healthy')
    >>> check.unregister()

A check that hangs, with or without the GIL, crashes its process or raises is *unhealthy*; its result says why, and the
other checks are answered all the same: they run at the same time, each in a process of its own that the root starts,
watches and kills. A process stays for the next run of its check, and is replaced after it was killed or died.

Whose a check is:

    of a child       `Child(..., health=[check])`: runs beside it, again and again, also when nobody asks
    of a runtime     `Runtime(..., health=[check])`: runs when somebody asks that runtime
    of the program   every other one, from its creation to `unregister()`; runs when somebody asks any runtime of the
                     program. Of those with equal names the newest counts.

Whoever asks (the program, a worker, the command line, a probe over HTTP) gets all of them, and what the runtime knows
by itself (`shmrt/decide/health_facts.py`). If the root dies while it is asked, the report says that; if the program
hangs, its checks run as they were the last time.
"""

from __future__ import annotations

from shmrt.errors import SpecError
from shmrt.guard import registry
from shmrt.guard.report import CheckResult, HealthReport
from shmrt.process.findings import Degraded

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from shmrt.runtimes import Runtime

__all__ = ["CheckResult", "Degraded", "HealthCheck", "HealthReport", "health"]

NAME_MOST = 120
TIMEOUT_MOST = 3600.0


class HealthCheck:
    """A named function that says whether something works.

    name: what the report calls it. fn: called without arguments, in another process; the check of a child may take one,
    a reference to the child. Returns None, True or any value: healthy; False: unhealthy; `Degraded(...)`: it works, but
    not as it should; whatever it raises: unhealthy. timeout: seconds for one run, then its process is killed. group: a
    word or several, "live", "ready", "startup" or your own. critical: without it a failure only makes the whole
    degraded.

    Of a child's checks: on_fail="restart" kills the child's process when the check fails; its exit reason is
    ("unhealthy", name), and its supervisor decides as about any other. interval: seconds from the end of one run to
    the next. failures: only so many failures in a row restart it. grace: seconds after the child's start in which
    failures do not count, unless a check has passed before.

    Raises ValueError and TypeError; SpecError, a ValueError, if on_fail="restart" is given to a check of anything but a
    child, where that check is used.
    """

    __slots__ = (
        *("critical", "failures", "fn", "grace", "group", "groups", "interval", "name", "on_fail", "timeout"),
        "__weakref__",
    )

    def __init__(
        self,
        name: str,
        fn: Callable[..., Any],
        timeout: float = 5.0,
        group: str | Iterable[str] = "ready",
        critical: bool = True,
        on_fail: str | None = None,
        *,
        interval: float = 1.0,
        failures: int = 1,
        grace: float = 0.0,
    ) -> None:
        from shmrt.spec import check_count, parse_duration

        if not isinstance(name, str):
            raise TypeError(f"name must be a string, not {name!r}")
        if not name or not name.isprintable() or len(name) > NAME_MOST:
            raise ValueError(f"name={name!r} must be a printable string of 1 to {NAME_MOST} characters")
        if not callable(fn):
            raise TypeError(f"fn must be a function that says whether something works, not {fn!r}")
        if not isinstance(critical, bool):
            raise TypeError(f"critical={critical!r} must be True or False")
        if on_fail not in (None, "restart"):
            raise ValueError(f"on_fail={on_fail!r} must be None or 'restart'")
        self.name = name
        self.fn = fn
        self.timeout = parse_duration(timeout, "timeout")
        if not 0 < self.timeout <= TIMEOUT_MOST:
            raise ValueError(f"timeout={timeout!r} must be more than 0 and at most {TIMEOUT_MOST:g} seconds")
        self.group = group
        self.groups = groups_of(group)
        self.critical = critical
        self.on_fail = on_fail
        self.interval = parse_duration(interval, "interval")
        if self.interval < 0.01:
            raise ValueError(f"interval={interval!r} must be at least 0.01 seconds")
        self.failures = check_count(failures, "failures")
        self.grace = parse_duration(grace, "grace")
        registry.add(self)

    def unregister(self) -> None:
        """From here on it is no check of the program. One of the same name that it stood in front of is it again."""
        registry.remove(self)

    def __repr__(self) -> str:
        restart = ", on_fail='restart'" if self.on_fail else ""
        return f"HealthCheck({self.name!r}, timeout={self.timeout:g}, group={self.group!r}{restart})"

    def __reduce__(self) -> Any:
        values = (self.name, self.fn, self.timeout, self.groups, self.critical, self.on_fail)
        return _rebuild, (*values, self.interval, self.failures, self.grace)


def _rebuild(*values: Any) -> HealthCheck:
    """A copy in another process, or of a child's description: nobody's but its holder's."""
    name, fn, timeout, group, critical, on_fail, interval, failures, grace = values
    check = HealthCheck(name, fn, timeout, group, critical, on_fail, interval=interval, failures=failures, grace=grace)
    registry.remove(check)
    return check


def groups_of(group: Any) -> tuple[str, ...]:
    words = (group,) if isinstance(group, str) else group
    try:
        found = tuple(words)
    except TypeError:
        found = ()
    if not found or not all(
        isinstance(word, str) and word and word.isprintable() and " " not in word for word in found
    ):
        raise ValueError(f"group={group!r} must be a word, or several, such as 'ready' or ('live', 'ready')")
    return found


def of_child(kind: str, id: object, checks: Any) -> tuple[HealthCheck, ...]:
    """The checks of a child, which are no longer the program's. Raises SpecError."""
    if kind == "supervisor":
        raise SpecError(
            f"child {id!r}: a supervisor has no process that a check could stand beside; give health= to its children",
            problem="invalid_health",
        )
    found = _several(checks, f"child {id!r}: health")
    for check in found:
        registry.remove(check)
    return found


def of_runtime(checks: Any) -> tuple[HealthCheck, ...]:
    """The checks of a runtime, which are no longer the program's."""
    found = _several(checks, "health")
    for check in found:
        if check.on_fail is not None:
            raise misplaced(check)
        registry.remove(check)
    return found


def misplaced(check: HealthCheck) -> SpecError:
    return SpecError(
        f"check {check.name!r} has on_fail='restart', and there is no child that it could restart: give it to one, "
        "Child(..., health=[...]), or leave on_fail out",
        problem="invalid_health",
    )


def _several(checks: Any, what: str) -> tuple[HealthCheck, ...]:
    try:
        found = tuple(checks)
    except TypeError:
        found = (None,)
    names: set[str] = set()
    for check in found:
        if not isinstance(check, HealthCheck):
            raise SpecError(f"{what}={checks!r} must be a list of HealthCheck(...)", problem="invalid_health")
        if check.name in names:
            raise SpecError(f"{what}: two checks have the name {check.name!r}", problem="invalid_health")
        names.add(check.name)
    return found


def health(runtime: Runtime | None = None, group: str | None = None) -> HealthReport:
    """How a runtime is: its own checks, those of its children, and those of the program.

    runtime: the program's current one, else the default one, which is started if need be; in a worker the one that owns
    it. group: only the checks of this group; ValueError if there is no such group.

    Returns when every check has answered or was killed at the end of its own timeout: they run at the same time, so it
    takes about as long as the longest timeout at most. Never raises because something is down: a runtime that has
    ended or a root that does not answer is an unhealthy report. SpecError for a check with on_fail="restart" that was
    given to no child.
    """
    from shmrt.guard.asking import ask_health

    if group is not None and not isinstance(group, str):
        raise TypeError(f"group must be a word such as 'ready', or None, not {group!r}")
    if runtime is not None and not hasattr(runtime, "shm_limit"):
        raise TypeError(f"runtime must be a Runtime or None, not {runtime!r}")
    return ask_health(runtime, group)

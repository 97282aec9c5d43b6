"""What a health report holds, and how it looks as JSON.

`HealthReport.as_json` follows the draft that probes and dashboards know (draft-inadarei-api-health-check-06, media type
`application/health+json`): healthy is `pass`, degraded `warn`, unhealthy `fail`; each check lies under
`component:measurement`.

    >>> from datetime import datetime, timezone
    >>> at = datetime(2024, 5, 1, 12, tzinfo=timezone.utc)
    >>> result = CheckResult("db", "degraded", timestamp=at, detail="slow", value=1.5, unit="s")
    >>> HealthReport("degraded", {"db": result}, at).as_json()["checks"]["db:health"][0]["status"]
    'warn'
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic_ns

from shmrt.decide.health import HEALTHY

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["MEDIA_TYPE", "WORDS", "CheckResult", "HealthReport", "report_of"]

MEDIA_TYPE = "application/health+json"
WORDS = {"healthy": "pass", "degraded": "warn", "unhealthy": "fail"}


class CheckResult:
    """What came of one check.

    status: "healthy", "degraded" or "unhealthy". critical, group: as the check was made; `group` is a tuple. detail: in
    words, None if there is nothing to say. value, unit: what was measured. error: why it failed: its exception, its
    timeout, or how its process died. duration: seconds. timestamp: when it ended, in UTC.
    """

    __slots__ = (
        "critical",
        "detail",
        "duration",
        "error",
        "group",
        "key",
        "name",
        "status",
        "timestamp",
        "unit",
        "value",
    )

    def __init__(
        self,
        name: str,
        status: str,
        *,
        timestamp: datetime,
        critical: bool = True,
        group: tuple[str, ...] = ("ready",),
        duration: float = 0.0,
        detail: str | None = None,
        value: Any = None,
        unit: str | None = None,
        error: str | None = None,
        key: str | None = None,
    ) -> None:
        self.name = name
        self.status = status
        self.timestamp = timestamp
        self.critical = critical
        self.group = group
        self.duration = duration
        self.detail = detail
        self.value = value
        self.unit = unit
        self.error = error
        self.key = key or (name if ":" in name else f"{name}:health")
        """`component:measurement`, by which JSON calls it."""

    @property
    def ok(self) -> bool:
        """Healthy."""
        return self.status == HEALTHY

    def as_json(self) -> dict[str, Any]:
        """One entry of the draft's `checks`."""
        body: dict[str, Any] = {"status": WORDS[self.status], "componentId": self.name, "time": _text(self.timestamp)}
        if self.value is not None:
            body["observedValue"] = _finite(self.value)
        if self.unit is not None:
            body["observedUnit"] = self.unit
        output = "; ".join(part for part in (self.error, self.detail) if part)
        if output:
            body["output"] = output
        if not self.critical:
            body["critical"] = False
        return body

    def __repr__(self) -> str:
        more = self.error or self.detail
        return f"<CheckResult {self.name} {self.status}{f': {more}' if more else ''}>"


class HealthReport:
    """The answer of `health()`.

    status: "healthy"; "degraded": something does not work as it should, or a check that is not critical failed;
    "unhealthy": a critical one failed. checks: `CheckResult` by name. timestamp: when it was complete, in UTC.
    """

    __slots__ = ("checks", "status", "timestamp")

    def __init__(self, status: str, checks: dict[str, CheckResult], timestamp: datetime) -> None:
        self.status = status
        self.checks = checks
        self.timestamp = timestamp

    def as_json(self, *, verbose: bool = True) -> dict[str, Any]:
        """The body of `application/health+json`; without `verbose` only the status and the time."""
        body: dict[str, Any] = {"status": WORDS[self.status], "time": _text(self.timestamp)}
        if verbose:
            checks: dict[str, list[dict[str, Any]]] = {}
            for result in self.checks.values():
                checks.setdefault(result.key, []).append(result.as_json())
            body["checks"] = checks
        return body

    def __repr__(self) -> str:
        bad = [repr(result) for result in self.checks.values() if not result.ok]
        return f"<HealthReport {self.status}, {len(self.checks)} checks{': ' if bad else ''}{', '.join(bad)}>"


def report_of(body: dict[str, Any]) -> HealthReport:
    """A report of what the root says: `status`, `checks` in plain values, each with the time of the monotonic clock at
    which it ended."""
    now, now_ns = datetime.now(UTC), monotonic_ns()
    checks: dict[str, CheckResult] = {}
    names = [row["name"] for row in body["checks"]]
    for row in body["checks"]:
        ago = max(0, now_ns - row["ns"]) if row["ns"] else 0
        name = _name_of(row, names.count(row["name"]) == 1, checks)
        checks[name] = CheckResult(
            name,
            row["status"],
            timestamp=now - timedelta(microseconds=ago // 1000),
            critical=bool(row["critical"]),
            group=tuple(row["groups"]),
            duration=row["seconds"],
            detail=row["detail"],
            value=row["value"],
            unit=row["unit"],
            error=row["error"],
            key=row["key"],
        )
    return HealthReport(body["status"], checks, now)


def _name_of(row: dict[str, Any], unique: bool, checks: dict[str, CheckResult]) -> str:
    """Equal names of several children are told apart by the children's paths."""
    wanted = str(row["name"]) if unique or not row.get("of") else f"{row['of']}/{row['name']}"
    number, name = 2, wanted
    while name in checks:
        name, number = f"{wanted}#{number}", number + 1
    return name


def _text(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _finite(value: Any) -> Any:
    return value if not isinstance(value, float) or value - value == 0 else str(value)

"""What health is put into: JSON, lines for people, and the results that the root makes of its own facts."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from shmrt.cli.health import BYTES_MOST, document, lines
from shmrt.cli.screen import Screen
from shmrt.decide import health_facts
from shmrt.guard.report import CheckResult, HealthReport, report_of

AT = datetime(2024, 5, 1, 12, 0, 0, 123456, tzinfo=UTC)


def result(name: str, status: str = "healthy", **more: Any) -> CheckResult:
    return CheckResult(name, status, timestamp=AT, **more)


def test_a_report_as_json() -> None:
    """The shape of the draft: status words, `component:measurement`, observed value and unit, output."""
    checks = {
        "db": result("db", "unhealthy", error="refused", detail="after 3 tries", critical=False),
        "pool.hash:ready": result("pool.hash:ready", "degraded", value=1, unit="workers"),
        "odd": result("odd", value=float("nan")),
    }
    body = json.loads(json.dumps(HealthReport("degraded", checks, AT).as_json()))
    assert body == {
        "status": "warn",
        "time": "2024-05-01T12:00:00.123Z",
        "checks": {
            "db:health": [
                {
                    "status": "fail",
                    "componentId": "db",
                    "time": "2024-05-01T12:00:00.123Z",
                    "output": "refused; after 3 tries",
                    "critical": False,
                }
            ],
            "pool.hash:ready": [
                {
                    "status": "warn",
                    "componentId": "pool.hash:ready",
                    "time": "2024-05-01T12:00:00.123Z",
                    "observedValue": 1,
                    "observedUnit": "workers",
                }
            ],
            "odd:health": [
                {"status": "pass", "componentId": "odd", "time": "2024-05-01T12:00:00.123Z", "observedValue": "nan"}
            ],
        },
    }
    assert set(HealthReport("healthy", checks, AT).as_json(verbose=False)) == {"status", "time"}


def test_equal_names_in_a_report() -> None:
    """Children's are told apart by their paths, and nothing is lost."""
    rows = [health_facts.row("x", ("ready",)) for _ in range(2)]
    rows += [{**health_facts.row("x", ("ready",)), "of": of} for of in ("a", "b")]
    report = report_of({"status": "healthy", "checks": rows})
    assert list(report.checks) == ["x", "x#2", "a/x", "b/x"]


@pytest.mark.parametrize("count", [0, 1, 10, 1000])
@pytest.mark.parametrize("status", ["healthy", "degraded", "unhealthy"])
def test_what_the_verb_prints_is_short(count: int, status: str) -> None:
    """Docker keeps 4,096 bytes; the worst stands first in both forms, and what was left out is counted."""
    checks = {
        f"check-{n}": result(
            f"check-{n}", status if n else "unhealthy", error="é" * 1000 if status != "healthy" else None
        )
        for n in range(count)
    }
    report = HealthReport(status, checks, AT)
    for verbose in (False, True):
        text = "\n".join(lines("shop", report, Screen(verbose=verbose)))
        assert len(text.encode()) < 4096 and text.startswith(f"{status}  shop")
        assert not count or "check-0" in text.splitlines()[1]
    text = document(report.as_json())
    assert len(text.encode()) <= BYTES_MOST and "\n" not in text
    body = json.loads(text)
    assert body["status"] and len(body["checks"]) + body.get("omitted", 0) == count
    assert not count or "check-0:health" in body["checks"]


def test_pools() -> None:
    def pool(ready: int, wanted: int, **more: Any) -> dict[str, Any]:
        return {"name": "p", "number": 1, "ready": ready, "wanted": wanted, "broken": False, "reasons": [], **more}

    def status(**facts: Any) -> str:
        [row] = health_facts.pool_rows([pool(**facts)])
        assert row["name"] == "pool.p:ready" and row["value"] == facts["ready"]
        return str(row["status"])

    assert status(ready=2, wanted=2) == status(ready=3, wanted=2) == status(ready=0, wanted=0) == "healthy"
    assert status(ready=1, wanted=2) == "degraded"
    assert status(ready=0, wanted=2) == status(ready=1, wanted=2, broken=True) == "unhealthy"
    assert not health_facts.pool_rows([pool(0, 2, removing=True)])
    names = [row["name"] for row in health_facts.pool_rows([pool(1, 1), pool(1, 1, number=7)])]
    assert names == ["pool.p:ready", "pool.p#7:ready"]


def test_trees() -> None:
    """Children that are restarting, budgets that run low, trees that are not up; what somebody stopped is fine."""

    def child(id: Any, state: str, reason: Any = None, below: Any = None) -> dict[str, Any]:
        return {"id": id, "state": state, "reason": reason, "supervisor": below}

    def node(state: str, used: int, limit: int, *children: Any) -> dict[str, Any]:
        return {"state": state, "used": used, "limit": limit, "period_ns": 5 * 10**9, "children": list(children)}

    def statuses(top: Any) -> dict[str, str]:
        return {row["name"]: row["status"] for row in health_facts.tree_rows([{**top, "path": ("tree",)}])}

    well = node("running", 0, 3, child("a", "up", "killed"), child("b", "down", "shutdown"), child("c", "starting"))
    assert statuses(well) == {"supervisor.tree:children": "healthy", "supervisor.tree:restarts": "healthy"}
    assert statuses(node("running", 0, 3, child("a", "restarting", "killed")))["supervisor.tree:children"] == "degraded"
    assert statuses(node("running", 1, 3, child("a", "starting", "killed")))["supervisor.tree:children"] == "degraded"
    assert statuses(node("stopping", 0, 3))["supervisor.tree:children"] == "unhealthy"
    assert [statuses(node("running", used, 3))["supervisor.tree:restarts"] for used in range(4)] == [
        *["healthy"] * 2,
        *["degraded"] * 2,
    ]
    assert statuses(node("running", 0, 0))["supervisor.tree:restarts"] == "healthy"
    nested = node("running", 0, 3, child(("x", 1), "up", None, node("starting", 0, 1)))
    assert statuses(nested)["supervisor.tree/('x', 1):children"] == "unhealthy"


def test_shared_memory() -> None:
    for used, status in ((0, "healthy"), (84, "healthy"), (85, "degraded"), (100, "degraded")):
        row = health_facts.memory_row(used, 100)
        assert (row["status"], row["value"], row["unit"]) == (status, float(used), "percent")
    assert health_facts.memory_row(0, 0)["status"] == "healthy"

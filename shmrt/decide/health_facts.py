"""The checks that every runtime has by itself: facts of its root in, results out. Nothing is looked at here.

| check                     | groups      | degraded                        | unhealthy                              |
|---------------------------|-------------|---------------------------------|----------------------------------------|
| `runtime:loop`            | live        | -                               | never: whoever hears it was answered   |
| `runtime:started`         | startup     | -                               | it was not ready yet, not even once    |
| `runtime:shared_memory`   | ready       | 85 % of `shm_limit` is in use   | -                                      |
| `breaker.NAME:state`      | ready       | it is not closed or disabled    | -                                      |
| `pool.NAME:ready`         | ready       | fewer workers than wanted       | none is ready, or the pool is broken   |
| `supervisor.PATH:children`| ready       | a child is restarting           | it is starting or stopping             |
| `supervisor.PATH:restarts`| ready       | less than half of them is left  | -                                      |

Liveness looks no further than the loop: a probe that restarts a whole program because something that it depends on is
down makes an outage of a hiccup.

>>> [row["name"] for row in pool_rows([{"name": "hash", "wanted": 2, "ready": 2, "broken": False, "reasons": []}])]
['pool.hash:ready']
"""

from __future__ import annotations

from shmrt.decide.health import DEGRADED, HEALTHY, UNHEALTHY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = [
    "breaker_rows",
    "key_of",
    "loop_row",
    "memory_row",
    "pool_finding",
    "pool_rows",
    "row",
    "row_of",
    "started_row",
    "tree_rows",
]

SHARED_MEMORY_FULL = 0.85
BUDGET_LOW = 0.5


def row(
    name: str,
    groups: tuple[str, ...],
    status: str = HEALTHY,
    *,
    detail: str | None = None,
    value: Any = None,
    unit: str | None = None,
    error: str | None = None,
    critical: bool = True,
    key: str | None = None,
) -> dict[str, Any]:
    """One result in plain values, as it travels. `key`: how JSON calls it, `component:measurement`."""
    return {
        "name": name,
        "key": key or name,
        "groups": groups,
        "status": status,
        "critical": critical,
        "detail": detail,
        "value": value,
        "unit": unit,
        "error": error,
        "seconds": 0.0,
        "ns": 0,
    }


def row_of(name: str, groups: tuple[str, ...], finding: tuple[Any, ...], critical: bool) -> dict[str, Any]:
    """The same of (status, detail, value, unit, error)."""
    status, detail, value, unit, error = finding
    return row(name, groups, status, detail=detail, value=value, unit=unit, error=error, critical=critical)


def key_of(name: str, of: str | None) -> str:
    """`component:measurement` of a check of the user's; `of` is the path of its child.

    >>> key_of("db", None), key_of("disk./:free", None), key_of("db", "web")
    ('check.db:health', 'disk./:free', 'child.web:db')
    """
    if of is not None:
        return f"child.{of}:{name.replace(':', '.')}"
    return name if ":" in name else f"check.{name}:health"


def loop_row() -> dict[str, Any]:
    return row("runtime:loop", ("live",))


def started_row(started: bool) -> dict[str, Any]:
    if started:
        return row("runtime:started", ("startup",))
    return row("runtime:started", ("startup",), UNHEALTHY, error="it has not been ready yet")


def memory_row(used: int, limit: int) -> dict[str, Any]:
    """Of the payloads in shared memory."""
    percent = round(100 * used / limit, 1) if limit else 0.0
    full = limit > 0 and used >= SHARED_MEMORY_FULL * limit
    detail = f"{used} of {limit} bytes" if full else None
    status = DEGRADED if full else HEALTHY
    return row("runtime:shared_memory", ("ready",), status, value=percent, unit="percent", detail=detail)


def breaker_rows(guards: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each breaker's that a process of the runtime has used. What it keeps off is not well; those who ask it are. One
    that somebody disabled is not looked at.

    >>> breaker_rows([{"kind": "breaker", "name": "db", "state": "open", "retry_after": 2.0}])[0]["status"]
    'degraded'
    """
    rows: list[dict[str, Any]] = []
    for guard in guards:
        if guard["kind"] != "breaker":
            continue
        state = guard["state"]
        well = state in ("closed", "disabled")
        wait = f"; tried again in {guard['retry_after']:.3g} s" if state == "open" else ""
        detail = None if well else f"{state.replace('_', ' ')}{wait}"
        name = f"breaker.{guard['name']}:state"
        rows.append(row(name, ("ready",), HEALTHY if well else DEGRADED, value=state, detail=detail, critical=False))
    return rows


def pool_finding(pool: dict[str, Any]) -> tuple[str, str | None, int, str, str | None]:
    """(status, detail, value, unit, error) of one pool: name, wanted, ready, broken, reasons."""
    ready, wanted = pool["ready"], pool["wanted"]
    detail = f"{ready} of {wanted} workers"
    why = f": {pool['reasons'][-1]}" if pool["reasons"] else ""
    if pool["broken"]:
        return UNHEALTHY, detail, ready, "workers", f"the pool is broken{why}"
    if not ready and wanted:
        return UNHEALTHY, detail, ready, "workers", f"no worker is ready{why}"
    if ready < wanted:
        return DEGRADED, detail + why, ready, "workers", None
    return HEALTHY, None, ready, "workers", None


def pool_rows(pools: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each pool's. One that is being removed is nobody's business any more. Of equal names each but the first has its
    number."""
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for pool in pools:
        if pool.get("removing"):
            continue
        name = str(pool["name"])
        if name in seen:
            name = f"{name}#{pool['number']}"
        seen.add(name)
        status, detail, value, unit, error = pool_finding(pool)
        found = row(f"pool.{name}:ready", ("ready",), status, detail=detail, value=value, unit=unit, error=error)
        rows.append(found)
    return rows


def tree_rows(tops: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each supervisor's, from the top down. `tops` are descriptions (`Machine.describe`) whose path is text."""
    rows: list[dict[str, Any]] = []
    for top in tops:
        _below(top, str(top["path"][0]), rows)
    return rows


def _below(node: dict[str, Any], path: str, rows: list[dict[str, Any]]) -> None:
    rows.append(_children_row(node, path))
    left = max(0, node["limit"] - node["used"])
    low = node["limit"] > 0 and left < BUDGET_LOW * node["limit"]
    status = DEGRADED if low else HEALTHY
    detail = f"{node['used']} of {node['limit']} in {node['period_ns'] / 1e9:g} s are used up" if low else None
    rows.append(row(f"supervisor.{path}:restarts", ("ready",), status, value=left, unit="restarts", detail=detail))
    for child in node["children"]:
        if child["supervisor"] is not None:
            _below(child["supervisor"], f"{path}/{_text(child['id'])}", rows)


def _children_row(node: dict[str, Any], path: str) -> dict[str, Any]:
    name = f"supervisor.{path}:children"
    up = sum(child["state"] == "up" or child["supervisor"] is not None for child in node["children"])
    if node["state"] != "running":
        return row(name, ("ready",), UNHEALTHY, value=up, unit="children", error=f"it is {node['state']}")
    bad = [_text(child["id"]) for child in node["children"] if _is_bad(child)]
    detail = f"down: {', '.join(bad[:8])}{' ...' if len(bad) > 8 else ''}" if bad else None
    return row(name, ("ready",), DEGRADED if bad else HEALTHY, value=up, unit="children", detail=detail)


def _is_bad(child: dict[str, Any]) -> bool:
    """It should run and does not. A child of a running supervisor that is simply down ended in order, or somebody has
    stopped it, or it waits for another one that is restarting."""
    return bool(child["state"] == "restarting" or (child["state"] == "starting" and child["reason"] is not None))


def _text(id: Any) -> str:
    return (
        id if isinstance(id, str) else "(an object)" if isinstance(id, tuple) and id[:1] == ("\0pickle",) else repr(id)
    )

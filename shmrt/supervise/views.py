"""What `status`, `tree` and `inspect` say, made of plain facts: no clock, no process, no memory is looked at here.

Everything that is expected has a row with a state, also when it is dead, and every bad state has a `next`: the command
that says more or does something about it.

    states of a child    starting, running, busy, idle, stopped (by a signal), stopping, restarting, ended, dead
    states of a pool     starting, running, degraded, paused, broken, stopping
    states of it all     starting, running, degraded, stopping

>>> reason_text(("error", "ValueError", "no such file", "...")), reason_text(("signal", "SIGSEGV"))
('ValueError: no such file', 'signal SIGSEGV')
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["event_of", "find", "inspect_body", "reason_text", "status_body", "tree_body"]

_BAD = ("degraded", "broken", "dead", "restarting", "stopped")


def reason_text(reason: Any) -> str | None:
    """An exit reason in one line; None stays None."""
    if reason is None or isinstance(reason, str):
        return reason
    if not isinstance(reason, (tuple, list)) or not reason:
        return repr(reason)
    kind, *more = reason
    if kind == "signal" and more:
        return f"signal {more[0]}"
    if kind == "exit" and more:
        return f"exit code {more[0]}"
    if kind == "error" and len(more) >= 2:
        first = str(more[1]).strip().splitlines()
        return f"{more[0]}: {first[0]}" if first else str(more[0])
    if kind == "unhealthy" and more:
        return f"unhealthy: check {more[0]}"
    if kind == "failed_to_start_child" and len(more) >= 2:
        return f"child {id_text(more[0])} could not be started: {reason_text(more[1])}"
    if kind == "shutdown" and more:
        inner = more[0] if len(more) == 1 else tuple(more)
        return f"shutdown: {reason_text(inner)}" if isinstance(inner, (tuple, list)) else f"shutdown: {inner}"
    return repr(reason)


def reason_detail(reason: Any) -> str | None:
    """The traceback that came with it, wherever it lies in the reason."""
    if not isinstance(reason, (tuple, list)):
        return None
    if len(reason) >= 4 and reason[0] == "error":
        return str(reason[3]) or None
    return next((found for part in reason if (found := reason_detail(part))), None)


def id_text(id: Any) -> str:
    if isinstance(id, tuple) and len(id) == 2 and id[0] == "\0pickle":  # an id that is an object of the user's
        return "(an object)"
    return id if isinstance(id, str) else repr(id)


def _command(name: str | None, words: str) -> str:
    """With quotes where a shell needs them."""
    if not name:
        return f"python -m shmrt {words}"
    plain = all(letter.isalnum() or letter in "-_.+" for letter in name)
    return f"python -m shmrt --name {name if plain else _quoted(name)} {words}"


def _quoted(text: str) -> str:
    plain = all(letter.isalnum() or letter in "-_.+/:@" for letter in text)
    return text if plain and text else "'" + text.replace("'", "'\\''") + "'"


# ---- the tree -------------------------------------------------------------------------------------------------------
def tree_rows(tree: dict[str, Any], processes: dict[int, dict[str, Any]], name: str | None) -> list[dict[str, Any]]:
    """Every top supervisor with all that is below it. `tree` is `Tree.describe()`, `processes` says of each child's
    key what its process is: kind, label, pid, phase, seconds and so on, what is known."""
    return [_supervisor_row(top, (), None, processes, name) for top in tree.get("supervisors", ())]


def _supervisor_row(
    node: dict[str, Any],
    above: tuple[str, ...],
    member: dict[str, Any] | None,
    processes: dict[int, dict[str, Any]],
    name: str | None,
) -> dict[str, Any]:
    label = id_text(node["path"][-1])
    path = (*above, label)
    children = [_child_row(child, path, processes, name) for child in node["children"]]
    state = str(node["state"])
    if state == "running" and any(row["state"] in _BAD for row in children):
        state = "degraded"
    row = {
        "id": label,
        "path": "/".join(path),
        "key": node["key"],
        "type": "supervisor",
        "kind": "supervisor",
        "state": state,
        "strategy": node["strategy"],
        "budget": {
            "used": node["used"],
            "limit": node["limit"],
            "left": max(0, node["limit"] - node["used"]),
            "seconds": node["period_ns"] / 1e9,
        },
        "auto_shutdown": node["auto_shutdown"],
        "restarts": node["restarts"],
        "last_exit": None,
        "last_exit_of_children": reason_text(node["reason"]),
        "children": children,
        "next": None,
    }
    if member is not None:
        row |= _spec_of(member)
        row["restarts_of_children"], row["restarts"] = row["restarts"], member["restarts"]
        row["last_exit"] = reason_text(member["reason"])
    return row


def _spec_of(member: dict[str, Any]) -> dict[str, Any]:
    shutdown = member["shutdown"]
    return {
        "restart": member["restart"],
        "shutdown": shutdown if isinstance(shutdown, str) else shutdown / 1e9,
        "significant": member["significant"],
    }


def _child_row(
    member: dict[str, Any], above: tuple[str, ...], processes: dict[int, dict[str, Any]], name: str | None
) -> dict[str, Any]:
    below = member.get("supervisor")
    if below is not None:
        return _supervisor_row({**below, "path": (id_text(member["id"]),)}, above, member, processes, name)
    known = processes.get(member["key"], {})
    state = _child_state(member, known)
    path = "/".join((*above, id_text(member["id"])))
    return {
        "id": id_text(member["id"]),
        "path": path,
        "key": member["key"],
        "type": member["type"],
        "kind": known.get("kind", member["type"]),
        "state": state,
        "pid": known.get("pid"),
        "seconds": known.get("seconds"),
        "mailbox": known.get("mailbox"),
        "restarts": member["restarts"],
        "last_exit": reason_text(member["reason"]),
        **_spec_of(member),
        "next": _next_of(state, path, name),
    }


def mailbox_row(stats: dict[str, Any]) -> dict[str, Any]:
    """How full a mailbox is, and what it had to turn away."""
    keys = ("depth", "capacity", "high_water", "refused", "drops", "expired")
    return {key: stats[key] for key in keys}


def _child_state(member: dict[str, Any], known: dict[str, Any]) -> str:
    state = member["state"]
    if state == "up":
        return str(known.get("activity") or "running")
    if state == "down":
        if member["reason"] is None and not member["restarts"]:
            return "ended" if known else "starting"
        reason = member["reason"]
        orderly = reason in (None, "normal", "shutdown") or (
            isinstance(reason, (tuple, list)) and reason[0] == "shutdown"
        )
        return "ended" if orderly else "dead"
    return str(state)


def _next_of(state: str, path: str, name: str | None) -> str | None:
    if state in ("restarting", "dead"):
        return _command(name, f"inspect worker {_quoted(path)}")
    if state == "ended":
        return _command(name, f"restart {_quoted(path)}")
    if state == "stopped":
        return "it got SIGSTOP: `kill -CONT` its pid"
    return None


def each(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row of a tree, from the top down."""
    found: list[dict[str, Any]] = []
    for row in rows:
        found.append(row)
        found += each(row.get("children", []))
    return found


# ---- pools ----------------------------------------------------------------------------------------------------------
def pool_row(pool: dict[str, Any], name: str | None) -> dict[str, Any]:
    """`pool`: name, number, wanted, spares, ready, broken, reasons, removing, paused, wait_ns, workers (rows of number,
    slot, pid, activity, seconds, restarts, done, rss_bytes)."""
    label = pool["name"]
    workers = [_worker_row(row, label, name) for row in pool["workers"]]
    here = {row["number"] for row in workers}
    absent = [number for number in range(pool["wanted"]) if number not in here]
    wait_ns = pool.get("wait_ns")
    for number in absent[: max(0, pool["wanted"] - len(workers))]:
        state = "failed" if pool["broken"] else "backoff" if wait_ns else "starting"
        workers.append(
            {
                "id": f"{label}/{number}",
                "number": number,
                "state": state,
                "pid": None,
                "seconds": None,
                "restarts": pool["restarts"].get(number, 0),
                "next_start_seconds": round(wait_ns / 1e9, 3) if state == "backoff" and wait_ns else None,
                "next": None,
            }
        )
    workers.sort(key=lambda row: int(row["number"]))
    if pool["removing"]:
        state = "stopping"
    elif pool["broken"]:
        state = "broken"
    elif pool.get("paused"):
        state = "paused"
    elif pool["ready"] >= pool["wanted"]:
        state = "running"
    else:
        state = "degraded" if pool["ready"] or any(pool["restarts"].values()) or pool["reasons"] else "starting"
    command = None
    if state == "paused":
        command = _command(name, f"resume {_quoted(label)}")
    elif state in ("broken", "degraded"):
        command = _command(name, f"inspect worker {_quoted(label)}")
    return {
        "name": label,
        "number": pool["number"],
        "state": state,
        "wanted": pool["wanted"],
        "ready": pool["ready"],
        "restarts": sum(pool["restarts"].values()),
        "reasons": list(pool["reasons"])[-3:],
        "overload": pool.get("overload"),
        "workers": workers,
        "next": command,
    }


def _worker_row(row: dict[str, Any], label: str, name: str | None) -> dict[str, Any]:
    state = row["activity"]
    return {"id": f"{label}/{row['number']}", **row, "state": state, "next": _next_of(state, "", name)}


# ---- the bodies -----------------------------------------------------------------------------------------------------
def status_body(
    facts: dict[str, Any],
    tree: dict[str, Any],
    processes: dict[int, dict[str, Any]],
    pools: list[dict[str, Any]],
    operations: list[dict[str, Any]],
) -> dict[str, Any]:
    """`facts`: name, pid (the root's), program, seconds, stopping."""
    name = facts.get("name")
    supervisors = tree_rows(tree, processes, name)
    pool_rows = [pool_row(pool, name) for pool in pools]
    rows = each(supervisors)
    states = [row["state"] for row in rows + pool_rows]
    if facts.get("stopping"):
        state = "stopping"
    elif any(one in (*_BAD, "paused") for one in states):
        state = "degraded"
    else:
        state = "starting" if "starting" in states else "running"
    return {
        "schema": "shmrt.status/1",
        **facts,
        "state": state,
        "supervisors": supervisors,
        "pools": pool_rows,
        "operations": operations,
        "problems": [
            _problem(row) for row in rows + pool_rows if row["state"] in (*_BAD, "paused") and row.get("next")
        ],
    }


def _problem(row: dict[str, Any]) -> dict[str, Any]:
    what = row.get("path") or f"pool {row['name']}"
    why = row.get("last_exit") or (row.get("reasons") or [None])[-1]
    return {"what": f"{what} is {row['state']}" + (f": {why}" if why else ""), "next": row["next"]}


def tree_body(
    facts: dict[str, Any], tree: dict[str, Any], processes: dict[int, dict[str, Any]], pools: list[dict[str, Any]]
) -> dict[str, Any]:
    name = facts.get("name")
    return {
        "schema": "shmrt.tree/1",
        **facts,
        "supervisors": tree_rows(tree, processes, name),
        "pools": [pool_row(pool, name) for pool in pools],
    }


def find(word: str, supervisors: list[dict[str, Any]], pools: list[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """What a person may mean: a path in the tree, the end of one, a child's id, a pool, a worker of a pool, a pid.
    (kind, row) of everything that fits best."""
    rows = [("child", row) for row in each(supervisors)]
    pool_rows = [("pool", row) for row in pools]
    workers = [("worker", row) for pool in pools for row in pool["workers"]]
    exact = [(kind, row) for kind, row in rows if row["path"] == word]
    exact += [(kind, row) for kind, row in pool_rows if row["name"] == word]
    exact += [(kind, row) for kind, row in workers if row["id"] == word]
    if exact:
        return exact
    ends = [(kind, row) for kind, row in rows if row["id"] == word or row["path"].endswith("/" + word)]
    if ends or not word.isdigit():
        return ends
    return [(kind, row) for kind, row in rows + workers if row.get("pid") == int(word)]


def inspect_body(
    facts: dict[str, Any], row: dict[str, Any], kind: str, reason: Any, more: dict[str, Any]
) -> dict[str, Any]:
    """Everything about one thing; `more` is what was looked up for it alone (its slot, its mailbox)."""
    detail = reason_detail(reason)
    return {
        "schema": "shmrt.inspect/1",
        "runtime": facts.get("name"),
        "what": kind,
        **row,
        "last_exit_detail": detail,
        **more,
    }


# ---- events ---------------------------------------------------------------------------------------------------------
_EVENTS = {
    "progress": "worker.ready",
    "child_terminated": "worker.exit",
    "start_error": "worker.spawn.exception",
    "shutdown_error": "worker.killed",
    "shutdown": "supervisor.restart.limit",
    "out_of_memory": "worker.oom",
    "health_change": "health.change",
}


def event_of(report: dict[str, Any]) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """A report of the tree as an event: name, measurements, metadata."""
    offender = report.get("offender") or {}
    measurements: dict[str, Any] = {key: report[key] for key in ("used", "limit") if key in report}
    if measurements:
        measurements["left"] = max(0, measurements.get("limit", 0) - measurements.get("used", 0))
    metadata = {
        "supervisor": "/".join(id_text(part) for part in report.get("supervisor", ())),
        "id": id_text(offender.get("id")) if offender else None,
        "context": report.get("context"),
        "reason": reason_text(report.get("reason")),
        "restart": offender.get("restart"),
        "pid": offender.get("pid"),
    }
    metadata |= {key: report[key] for key in ("from", "to") if key in report}  # of a change of health
    return _EVENTS.get(str(report.get("context")), "supervisor.report"), measurements, metadata

"""What `run` gives its runtime besides name and memory: the HTTP endpoints and the checks of the `[health]` table.

    [http]
    listen = "127.0.0.1:8765"     # or a port; as --http
    [health]
    memory = "2GiB"               # the program and all its processes use at most so much
    shared_memory = "64MiB"       # at least so much is free for payloads
    disk_path = "/var/spool"      # at least disk_free is free there
    disk_free = "1GiB"

and the checks of one child:

    [[child.web.health]]
    name = "answers"
    check = "app:answers"         # MODULE:OBJECT; the other keys are those of HealthCheck
    on_fail = "restart"
    interval = "5s"
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from shmrt.cli.screen import CliError
from shmrt.spec import parse_duration

__all__ = ["CHECK_KEYS", "child_check", "runtime_options"]


def runtime_options(settings: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of `Runtime`; each call makes the checks anew."""
    found: dict[str, Any] = {"shm_limit": settings["runtime.shm_limit"]}
    if settings["http.listen"] is not None:
        found["http"] = settings["http.listen"]
    path, free = settings["health.disk_path"], settings["health.disk_free"]
    if (path is None) != (free is None):
        given, other = ("disk_path", "disk_free") if free is None else ("disk_free", "disk_path")
        raise CliError(f"[health] has {given} without {other}", hint=f"add {other}", code=2)
    if any(settings[f"health.{key}"] is not None for key in ("memory", "shared_memory", "disk_path")):
        from shmrt import checks

        found["health"] = []
        if settings["health.memory"] is not None:
            found["health"].append(checks.memory(settings["health.memory"]))
        if settings["health.shared_memory"] is not None:
            found["health"].append(checks.shared_memory(settings["health.shared_memory"]))
        if path is not None:
            found["health"].append(checks.disk_space(path, free))
    return found


def _group(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _as_it_is(value: Any) -> Any:
    return value


CHECK_KEYS: dict[str, Callable[[Any], Any]] = {
    "name": _as_it_is,
    "check": _as_it_is,
    "timeout": parse_duration,
    "group": _group,
    "critical": _as_it_is,
    "on_fail": _as_it_is,
    "interval": parse_duration,
    "failures": _as_it_is,
    "grace": parse_duration,
}


def child_check(table: Any, find: Callable[[str], Any]) -> Any:
    """One check of a child. `find` gives what MODULE:OBJECT names. Raises ValueError and TypeError."""
    from shmrt.guard.health import HealthCheck

    if not isinstance(table, dict):
        raise TypeError(f"a check is a table with name and check, not {table!r}")
    for key in table:
        if key not in CHECK_KEYS:
            from shmrt.cli.main import nearest

            raise ValueError(f"unknown key {key!r} of a check{nearest(key, list(CHECK_KEYS))}")
    for key in ("name", "check"):
        if not isinstance(table.get(key), str):
            raise ValueError(f"a check needs {key}, a string")
    values = {key: CHECK_KEYS[key](value) for key, value in table.items()}
    return HealthCheck(values.pop("name"), find(values.pop("check")), **values)

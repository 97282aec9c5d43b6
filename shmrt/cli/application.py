"""An application as TOML: the supervision tree, its children, pools and rings, in tables.

    [runtime]                         # name, drain_timeout, ready_timeout, shm_limit
    [supervisor]                      # the top one: strategy, max_restarts, within, backoff, auto_shutdown
    strategy = "rest_for_one"
    backoff = { base = "100ms", max = "30s", jitter = 0.5 }
    [ring.docs]                       # a named ring, made when the application starts, removed when it stops
    slots = 4096
    [pool.hash]                       # a Pool; with `input` each message of that ring is a task of `target`
    target = "app:hash_one"
    workers = 4
    input = "docs"
    [child.feeder]                    # a process: a function or a Server
    start = "app:feed"
    args = ["/var/spool/docs"]
    restart = "transient"
    [supervisor.stores]               # a supervisor below it, with children of its own
    strategy = "one_for_all"
    [supervisor.stores.child.index]
    start = "app:Index"

Children start in the order in which they stand in the file. Keys have the names of the keyword arguments of `Child`,
`Supervisor`, `Pool` and `RingSpec`; times are seconds or "250ms", sizes bytes or "8MiB". An unknown key is an error
that names its line and the nearest known one; a key of a later version is refused in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shmrt.cli.screen import CliError
from shmrt.spec import parse_duration, parse_size

__all__ = ["TABLES", "Application", "Built", "PoolInput"]

TABLES = ("supervisor", "child", "pool", "ring")
_LATER = {
    "pool": ("hang_action", "nice", "cpus", "bulkhead", "breaker", "quarantine"),
    "child": ("breaker", "bulkhead", "nice", "cpus"),
    "supervisor": (),
    "ring": ("spin", "yield", "futex", "waits"),
}
_INSTEAD = {
    "breaker": "in the program: pool.options(breaker=CircuitBreaker(...)), or a breaker around the calls",
    "bulkhead": "in the program: a Bulkhead around the calls; max_pending bounds a pool",
}
_OVERFLOW = {"block": "block", "drop_new": "drop_newest", "drop_old": "drop_oldest", "error": "raise"}
"""The words of the configuration file beside those of RingSpec."""


def _seconds(value: Any) -> float:
    return parse_duration(value)


def _shutdown(value: Any) -> float | str:
    return str(value) if value in ("brutal_kill", "infinity") else parse_duration(value, "shutdown")


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"must be a string, not {value!r}")
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"must be a whole number, not {value!r}")
    return value


def _from(least: int, most: int = 2**31 - 1) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if not least <= _whole(value) <= most:
            raise ValueError(f"must be from {least} to {most}, not {value}")
        return int(value)

    return check


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"must be true or false, not {value!r}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"must be a list, not {value!r}")
    return value


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"must be a table, not {value!r}")
    return value


def _backoff(value: Any) -> Any:
    """Seconds before the first delayed restart, or a table with base, max and jitter."""
    if not isinstance(value, dict):
        return parse_duration(value, "backoff")
    return {key: part if key == "jitter" else parse_duration(part, f"backoff.{key}") for key, part in value.items()}


def _on_full(value: Any) -> str:
    if value not in _OVERFLOW and value not in _OVERFLOW.values():
        raise ValueError(f"{value!r} must be one of {', '.join(_OVERFLOW)}")
    return _OVERFLOW.get(value) or str(value)


_Key = tuple[str, Callable[[Any], Any]]
"""The keyword argument that a key of the file becomes, and what checks its value."""

_SPEC_KEYS: dict[str, _Key] = {
    "restart": ("restart", _word),
    "shutdown": ("shutdown", _shutdown),
    "significant": ("significant", _flag),
    "health": ("health", _list),
}
_KEYS: dict[str, dict[str, _Key]] = {
    "supervisor": {
        "strategy": ("strategy", _word),
        "max_restarts": ("max_restarts", _from(0)),
        "within": ("max_seconds", _seconds),
        "max_seconds": ("max_seconds", _seconds),
        "auto_shutdown": ("auto_shutdown", _word),
        "name": ("name", _word),
        "backoff": ("backoff", _backoff),
    },
    "child": {
        **_SPEC_KEYS,
        "start": ("start", _word),
        "args": ("args", _list),
        "kwargs": ("kwargs", _mapping),
        "name": ("name", _word),
        "type": ("type", _word),
        "mailbox": ("mailbox", _mapping),
        "mailbox_on_restart": ("mailbox_on_restart", _word),
        "start_timeout": ("start_timeout", _seconds),
    },
    "pool": {
        **_SPEC_KEYS,
        "target": ("target", _word),
        "input": ("input", _word),
        "workers": ("max_workers", _from(1, 256)),
        "max_workers": ("max_workers", _from(1, 256)),
        "task_timeout": ("task_timeout", _seconds),
        "max_tasks": ("max_tasks_per_child", _from(1)),
        "max_tasks_per_child": ("max_tasks_per_child", _from(1)),
        "max_rss": ("max_rss", parse_size),
        "max_age": ("max_age", _seconds),
        "max_attempts": ("max_attempts", _from(1)),
        "spares": ("spares", _from(0, 256)),
        "preload": ("preload", _list),
        "max_restarts": ("max_restarts", _from(0)),
        "within": ("max_seconds", _seconds),
        "max_seconds": ("max_seconds", _seconds),
        "threads_per_worker": ("threads_per_worker", _from(1)),
        "max_pending": ("max_pending", _from(1)),
        "on_full": ("on_full", _word),
        "seed": ("seed", _from(0, 2**63 - 1)),
        "spin": ("spin", _seconds),
        "initializer": ("initializer", _word),
        "retry": ("retry", _mapping),
    },
    "ring": {
        "slots": ("slots", _whole),
        "slot_bytes": ("slot_bytes", lambda value: parse_size(value, "slot_bytes")),
        "overflow": ("on_full", _on_full),
        "on_full": ("on_full", _on_full),
    },
}


@dataclass(frozen=True, slots=True)
class PoolInput:
    """Whose messages a pool works on, and with what."""

    pool: str
    ring: str
    target: Any


@dataclass(slots=True)
class Built:
    """What the tables describe."""

    tree: Any
    rings: dict[str, Any] = field(default_factory=dict)
    inputs: list[PoolInput] = field(default_factory=list)


class Application:
    """The tables of a file. `line(dotted key)` finds a key's line; `find(text)` gives what MODULE:OBJECT names."""

    def __init__(self, path: str, tables: Mapping[str, Any], line: Callable[[str], int]) -> None:
        self.path = path
        self.tables = tables
        self._line = line
        self._find: Callable[[str, str], Any] = lambda text, origin: None
        self._built = Built(None)

    def build(self, find: Callable[[str, str], Any]) -> Built:
        """Imports what is named, and makes the tree. CliError for whatever cannot be."""
        from shmrt.children import Supervisor

        self._find, self._built = find, Built(None)
        for name, table in self._named(self.tables.get("ring", {}), "ring"):
            self._built.rings[name] = self._ring(name, table)
        top = self._table(self.tables.get("supervisor", {}), "supervisor")
        self._check_name_of_children(top)
        children = self._children(self.tables, "", top)
        arguments = self._arguments("supervisor", "supervisor", _without_tables(top))
        self._built.tree = self._made("supervisor", lambda: Supervisor(children, **arguments))
        return self._built

    # ---- tables -----------------------------------------------------------------------------------------------------
    def _origin(self, dotted: str) -> str:
        return f"config {self.path}:{self._line(dotted)}"

    def _table(self, value: Any, dotted: str) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise CliError(f"{self._origin(dotted)}: {dotted} = {value!r} must be a table: [{dotted}]", code=2)
        return value

    def _named(self, value: Any, dotted: str) -> list[tuple[str, dict[str, Any]]]:
        tables = self._table(value, dotted)
        return [(name, self._table(table, f"{dotted}.{name}")) for name, table in tables.items()]

    def _check_name_of_children(self, top: dict[str, Any]) -> None:
        for kind in ("child", "pool"):
            if isinstance(top.get(kind), dict):
                raise CliError(
                    f"{self._origin(f'supervisor.{kind}')}: children of the top supervisor stand in [{kind}.NAME]",
                    hint=f"[supervisor.NAME.{kind}.CHILD] is one of a supervisor below it",
                    code=2,
                )

    def _children(self, tables: Mapping[str, Any], prefix: str, supervisors: Mapping[str, Any]) -> list[Any]:
        """Of one supervisor, in the order of the file."""
        found: list[tuple[int, Any]] = []
        for name, table in self._named(tables.get("child", {}), f"{prefix}child"):
            found.append((self._line(f"{prefix}child.{name}"), self._child(name, table, f"{prefix}child.{name}")))
        for name, table in self._named(tables.get("pool", {}), f"{prefix}pool"):
            found.append((self._line(f"{prefix}pool.{name}"), self._pool(name, table, f"{prefix}pool.{name}")))
        for name, table in supervisors.items():
            if isinstance(table, dict) and name != "backoff":
                dotted = f"{prefix}supervisor.{name}"
                found.append((self._first_line(dotted, table), self._supervisor(name, table, dotted)))
        return [child for _, child in sorted(found, key=lambda pair: pair[0])]

    def _first_line(self, dotted: str, table: Mapping[str, Any]) -> int:
        """Where a supervisor first stands, be it only by a child of its own."""
        below = [f"{dotted}.{kind}.{name}" for kind in ("child", "pool") for name in table.get(kind, {})]
        return min((line for line in map(self._line, [dotted, *below]) if line > 1), default=1)

    # ---- what they become -------------------------------------------------------------------------------------------
    def _supervisor(self, name: str, table: dict[str, Any], dotted: str) -> Any:
        from shmrt.children import Child, Supervisor

        spec = {key: value for key, value in table.items() if key in _SPEC_KEYS}
        own = {key: value for key, value in table.items() if key not in (*_SPEC_KEYS, "child", "pool", "supervisor")}
        below = self._table(table.get("supervisor", {}), f"{dotted}.supervisor")
        children = self._children(table, f"{dotted}.", below)
        arguments = self._arguments("supervisor", dotted, own)
        outer = self._arguments("child", dotted, spec)
        return self._made(dotted, lambda: Child(Supervisor(children, **arguments), id=name, **outer))

    def _child(self, name: str, table: dict[str, Any], dotted: str) -> Any:
        from shmrt.children import Child
        from shmrt.spec import RingSpec

        arguments = self._arguments("child", dotted, table)
        start = self._object(arguments, "start", dotted)
        mailbox = arguments.pop("mailbox", None)
        if mailbox is not None:
            given = self._arguments("ring", f"{dotted}.mailbox", mailbox)
            arguments["mailbox"] = self._made(f"{dotted}.mailbox", lambda: RingSpec(**given))
        positional = arguments.pop("args", [])
        self._checks(arguments, dotted)
        return self._made(dotted, lambda: Child(start, *positional, id=name, **arguments))

    def _pool(self, name: str, table: dict[str, Any], dotted: str) -> Any:
        from shmrt.children import Child
        from shmrt.pool import Pool

        arguments = self._arguments("pool", dotted, table)
        retry = arguments.pop("retry", {})
        for key, value in retry.items():
            if key != "max_attempts":
                raise self._unknown(f"{dotted}.retry", key, "pool", ["max_attempts"])
            arguments |= self._arguments("pool", f"{dotted}.retry", {key: value})
        target = self._object(arguments, "target", dotted) if "target" in arguments else None
        ring = arguments.pop("input", None)
        if ring is not None:
            if target is None:
                raise CliError(f"{self._origin(f'{dotted}.input')}: a pool with an input needs a target", code=2)
            if ring not in self._built.rings:
                rings = list(self._built.rings)
                hint = f"its rings: {', '.join(rings)}" if rings else f"add [ring.{ring}]"
                raise CliError(f"{self._origin(f'{dotted}.input')}: there is no [ring.{ring}]", hint=hint, code=2)
            self._built.inputs.append(PoolInput(name, ring, target))
        if "initializer" in arguments:
            arguments["initializer"] = self._object(arguments, "initializer", dotted)
        if target is not None and "preload" not in arguments and getattr(target, "__module__", None) != "__main__":
            arguments["preload"] = [target.__module__]  # a worker then starts with what it is for
        outer = {key: arguments.pop(key) for key in _SPEC_KEYS if key in arguments}
        self._checks(outer, dotted)
        return self._made(dotted, lambda: Child(Pool, id=name, name=name, kwargs=arguments, **outer))

    def _checks(self, arguments: dict[str, Any], dotted: str) -> None:
        """The tables of `health` become checks."""
        if "health" in arguments:
            from shmrt.cli.probes import child_check

            origin = self._origin(f"{dotted}.health")
            tables = arguments["health"]
            found = [
                self._made(f"{dotted}.health", lambda table=table: child_check(table, lambda t: self._find(t, origin)))  # type: ignore[misc]
                for table in tables
            ]
            arguments["health"] = found

    def _ring(self, name: str, table: dict[str, Any]) -> Any:
        from shmrt.spec import RingSpec

        given = self._arguments("ring", f"ring.{name}", table)
        return self._made(f"ring.{name}", lambda: RingSpec(**given))

    def _object(self, arguments: dict[str, Any], key: str, dotted: str) -> Any:
        if key not in arguments:
            raise CliError(
                f"{self._origin(dotted)}: [{dotted}] has no {key!r}", hint=f'add {key} = "MODULE:OBJECT"', code=2
            )
        return self._find(arguments.pop(key), self._origin(f"{dotted}.{key}"))

    def _arguments(self, kind: str, dotted: str, table: Mapping[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key not in _KEYS[kind]:
                raise self._unknown(dotted, key, kind, [*_KEYS[kind], *(TABLES[:3] if kind == "supervisor" else ())])
            name, check = _KEYS[kind][key]
            origin = self._origin(f"{dotted}.{key}")
            if name in found:
                raise CliError(f"{origin}: {key!r} and another key of [{dotted}] say the same", code=2)
            try:
                found[name] = check(value)
            except (ValueError, TypeError) as error:
                text = str(error)
                raise CliError(
                    f"{origin}: {key} {text if text.startswith('must') else f'= {value!r}: {text}'}", code=2
                ) from None
        return found

    def _unknown(self, dotted: str, key: str, kind: str, known: list[str]) -> CliError:
        from shmrt.cli.main import nearest

        origin = self._origin(f"{dotted}.{key}")
        if key in _LATER[kind]:
            return CliError(
                f"{origin}: {key!r} of [{dotted}] is not available in this version", hint=_INSTEAD.get(key), code=2
            )
        return CliError(f"{origin}: unknown key {key!r} in [{dotted}]{nearest(key, known)}", code=2)

    def _made(self, dotted: str, make: Callable[[], Any]) -> Any:
        try:
            return make()
        except (ValueError, TypeError) as error:  # SpecError is one
            raise CliError(f"{self._origin(dotted)}: [{dotted}]: {error}", code=2) from None


def _without_tables(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if not isinstance(value, dict) or key == "backoff"}

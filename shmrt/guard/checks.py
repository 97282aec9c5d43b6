"""Ready-made health checks: memory, disk, shared memory, pools, breakers, rings. Each call makes a `HealthCheck`.

    >>> from shmrt import checks
    >>> check = checks.disk_space("/", "1MiB")
    >>> check.name, check.group
    ('disk./:free', 'ready')
    >>> check.unregister()

Each takes, besides its own arguments, the options of `HealthCheck` by keyword (name, timeout, group, critical, ...).
They look at what they are named after from a process of their own: a file system that does not answer is a timeout.

| check                        | degraded                                | unhealthy                            |
|------------------------------|-----------------------------------------|--------------------------------------|
| `memory(limit)`              | 85 % of the limit                       | more than the limit                  |
| `disk_space(path, min_free)` | -                                       | less is free                         |
| `shared_memory(min_free)`    | -                                       | less is free                         |
| `pool(pool)`                 | fewer workers than wanted are ready     | none is, or the pool is broken       |
| `breaker(b)`                 | open, half open or forced open          | -                                    |
| `ring(r)`                    | 85 % full                               | full, and still full a second later  |
"""

from __future__ import annotations

import os

from shmrt.guard.health import HealthCheck
from shmrt.process.findings import Degraded
from shmrt.spec import check_seconds, parse_size

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["breaker", "disk_space", "memory", "pool", "ring", "shared_memory"]

NEARLY = 0.85
_LOOK_S = 0.01


def _make(name: str, fn: Any, options: dict[str, Any]) -> HealthCheck:
    return HealthCheck(options.pop("name", None) or name, fn, **options)


def memory(limit: int | str, **options: Any) -> HealthCheck:
    """The memory of a child and what it started, if it is a check of a child; else of the program and all processes of
    its runtime. What processes share is counted once. limit: bytes or "2GiB"."""
    return _make("memory:used", MemoryCheck(parse_size(limit, "limit")), options)


def disk_space(path: str | os.PathLike[str], min_free: int | str, **options: Any) -> HealthCheck:
    """What an ordinary user may still write to the file system of `path`. min_free: bytes or "1GiB"."""
    where = os.fspath(path)
    if not isinstance(where, str) or not where or "\0" in where:
        raise ValueError(f"path={path!r} must be a path")
    return _make(
        f"disk.{_shown(where)}:free", DiskCheck(os.path.abspath(where), parse_size(min_free, "min_free")), options
    )


def shared_memory(min_free: int | str, **options: Any) -> HealthCheck:
    """What is left for payloads: of the runtime's `shm_limit`, and of /dev/shm, where named rings are. min_free: bytes
    or "64MiB"."""
    return _make("shared_memory:free", ShmCheck(parse_size(min_free, "min_free")), options)


def pool(pool: Any, **options: Any) -> HealthCheck:
    """Whether a pool's workers are ready. pool: a Pool, a PoolRef, or the name of a pool of the runtime."""
    name = pool if isinstance(pool, str) else getattr(pool, "name", None) or getattr(pool, "label", None)
    if not isinstance(pool, str) and not hasattr(pool, "submit"):
        raise TypeError(f"pool must be a Pool, a PoolRef or the name of a pool, not {pool!r}")
    return _make(f"pool.{_shown(str(name))}:workers", PoolCheck(pool), options)


def breaker(b: Any, **options: Any) -> HealthCheck:
    """The state of a CircuitBreaker: anything with `state` and `name`."""
    if not hasattr(b, "state") or not hasattr(b, "name"):
        raise TypeError(f"b must be a CircuitBreaker, not {b!r}")
    return _make(f"breaker.{_shown(str(b.name))}:state", BreakerCheck(b), options)


def ring(r: Any, *, full_for: float = 1.0, **options: Any) -> HealthCheck:
    """How full a Ring is. full_for: seconds that it must stay full to be unhealthy; at most half of the timeout."""
    if not hasattr(r, "qsize") or not hasattr(r, "capacity"):
        raise TypeError(f"r must be a Ring, not {r!r}")
    seconds = check_seconds(full_for, "full_for") or 0.0
    if seconds > options.get("timeout", 5.0) / 2:
        raise ValueError(f"full_for={full_for!r} must be at most half of the timeout, {options.get('timeout', 5.0)!r}")
    name = getattr(r, "_name", None) or f"{id(r):x}"
    return _make(f"ring.{_shown(str(name))}:utilization", RingCheck(r, seconds), options)


def _shown(text: str) -> str:
    """As part of a name."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    return text if len(text) <= 80 else text[:40] + "..." + text[-37:]


# ---- what runs ------------------------------------------------------------------------------------------------------
class MemoryCheck:
    """Bytes, with what is shared divided among those who share it."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def __call__(self, ref: Any = None) -> Any:
        from shmrt.process.sizes import memory_of

        used = memory_of(None if ref is None else ref.pid)
        if used > self.limit:
            return {"status": "unhealthy", "detail": f"more than {self.limit} bytes", "value": used, "unit": "bytes"}
        if used >= NEARLY * self.limit:
            return Degraded(f"nearly {self.limit} bytes", used, "bytes")
        return {"value": used, "unit": "bytes"}


class _Free:
    """Something of which at least so much must be free."""

    def __init__(self, min_free: int) -> None:
        self.min_free = min_free

    def free(self) -> int:
        raise NotImplementedError

    def __call__(self) -> dict[str, Any]:
        free = self.free()
        found: dict[str, Any] = {"value": free, "unit": "bytes"}
        if free < self.min_free:
            found |= {"status": "unhealthy", "detail": f"less than {self.min_free} bytes are free"}
        return found


class DiskCheck(_Free):
    def __init__(self, path: str, min_free: int) -> None:
        super().__init__(min_free)
        self.path = path

    def free(self) -> int:
        status = os.statvfs(self.path)
        return status.f_bavail * status.f_frsize


class ShmCheck(_Free):
    def free(self) -> int:
        from shmrt.process.sizes import shared_memory_free

        return shared_memory_free()


class PoolCheck:
    """Never runs: the root knows the answer, or this process does."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def said(self, runtime: Any, beside: bool) -> tuple[str, Any]:
        opened = getattr(self.pool, "_opened", None)
        if opened is None:
            return "pool", str(getattr(self.pool, "name", None) or getattr(self.pool, "label", self.pool))
        if isinstance(self.pool, str) or beside or opened.runtime is runtime:
            return "pool", opened.number
        from shmrt.decide.health_facts import pool_finding

        found = opened.health()  # of another runtime, which that root knows nothing of
        facts = {"ready": found["workers_ready"], "wanted": found["workers_wanted"], "reasons": []}
        return "said", pool_finding({**facts, "broken": opened.is_broken})

    def __call__(self) -> Any:
        raise RuntimeError("the root answers this check")


class BreakerCheck:
    """By its state, as words that every breaker has."""

    def __init__(self, b: Any) -> None:
        self.b = b

    def said(self, runtime: Any, beside: bool) -> tuple[str, Any] | None:
        """Of our own kind, in the program: to read it is to read a word of memory, and a private one is nowhere
        else."""
        from shmrt.process.findings import find

        own = type(self.b).__module__.startswith("shmrt.")
        return ("said", find(self())) if own and not beside else None

    def __call__(self) -> Any:
        state = str(self.b.state)
        if state in ("open", "half_open", "forced_open"):
            return Degraded(f"it is {state}", state)
        if state not in ("closed", "disabled"):
            return {"status": "unhealthy", "detail": f"its state is {state!r}, which no breaker has"}
        return {"value": state}


class RingCheck:
    """A ring that stays full holds its producers up, or drops what they say."""

    def __init__(self, r: Any, full_for: float) -> None:
        self.r = r
        self.full_for = full_for

    def __call__(self) -> Any:
        from time import monotonic, sleep

        end = monotonic() + self.full_for
        while (depth := self.r.qsize()) >= self.r.capacity:
            if monotonic() >= end:
                detail = f"full for {self.full_for:g} s"
                return {"status": "unhealthy", "detail": detail, "value": 100.0, "unit": "percent"}
            sleep(_LOOK_S)
        percent = round(100 * depth / self.r.capacity, 1)
        if depth >= NEARLY * self.r.capacity:
            return Degraded(f"{depth} of {self.r.capacity} messages", percent, "percent")
        return {"value": percent, "unit": "percent"}

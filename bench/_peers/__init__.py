"""Other packages that do what shmrt does, behind one small adapter each, so that all get the same duty.

`channels` carry messages between processes, `pools` run functions in them. An adapter imports its package only when
it is made. One whose package is missing, or was not asked for, is skipped, and a row says so: a page that shows fewer
peers than it names would flatter us in silence.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypeVar

STANDARD = ("multiprocessing", "concurrent.futures")
PACKAGES = ("joblib", "loky", "mpire", "pebble", "faster-fifo", "pyzmq", "posix-ipc", "iceoryx2", "ray", "dask")
FAMILIES = (*STANDARD, *PACKAGES)
"""What `--peers` takes. posix-ipc comes with shmrt itself."""

_NEEDS = {"dask": "distributed"}
_wanted: frozenset[str] = frozenset(FAMILIES)


class Adapter(Protocol):
    impl: str
    package: str


A = TypeVar("A", bound=type[Adapter])


def select(families: Iterable[str] | None) -> None:
    """Only these are measured beside shmrt from now on; None is all."""
    global _wanted
    _wanted = frozenset(FAMILIES if families is None else families)


def version(package: str) -> str | None:
    """None when it is not installed. What comes with Python has Python's."""
    if package in STANDARD:
        return "with Python"
    try:
        return importlib.metadata.version(_NEEDS.get(package, package))
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    return {package: found for package in PACKAGES if (found := version(package)) is not None}


def present(adapters: Iterable[A]) -> tuple[list[A], list[dict[str, Any]]]:
    """Those that can be measured here, and a row for each that cannot because its package is missing."""
    here: list[A] = []
    rows: list[dict[str, Any]] = []
    for adapter in adapters:
        if adapter.package == "shmrt":
            here.append(adapter)
        elif adapter.package in _wanted:
            if version(adapter.package) is None:
                rows.append({"impl": adapter.impl, "skipped": f"{adapter.package} is not installed"})
            else:
                here.append(adapter)
    return here, rows


def each_once(rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """One row for each implementation that was skipped."""
    seen = set()
    for row in rows:
        if row["impl"] not in seen:
            seen.add(row["impl"])
            yield row

"""The words of a pipeline run: its nodes, what happens to them, what they ask for, and their accounts.

Plain data, shared by the machine in `shmrt.decide.delivery` and by whoever drives it.

    >>> Row(taken=5, done=2, filtered=1).pending
    2
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "FILTERED",
    "LOST",
    "Deliver",
    "Done",
    "Effect",
    "Ended",
    "Event",
    "Failed",
    "Fed",
    "Finished",
    "Grant",
    "Letter",
    "Many",
    "Node",
    "NodeKind",
    "OnError",
    "Row",
    "Stop",
    "Submit",
    "Taken",
    "Tick",
    "Wrong",
]

OnError = Literal["raise", "dead_letter", "skip"]
NodeKind = Literal["map", "filter", "flat_map", "key", "batch"]


@dataclass(frozen=True, slots=True)
class Node:
    """What the machine must know about one node. `row` is its line in the report, `key_row` that of a `key_by`
    whose function runs in the same task; `keyed` says that its items come with a key;
    `chunk` is how many items one task takes at most, if that was chosen."""

    kind: NodeKind
    row: int
    workers: int = 1
    slots: int = 1024
    bytes_most: int = 2**26
    max_attempts: int = 3
    single: bool = False
    keyed: bool = False
    key_row: int | None = None
    size: int = 1
    chunk: int | None = None
    timeout_ns: int | None = None


# ---- what a task brings back for an item, when it is not just a value


class _Sign:
    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


FILTERED = _Sign("FILTERED")  # the predicate said no
LOST = _Sign("LOST")  # the worker that held the rest of this stream is gone


@dataclass(frozen=True, slots=True)
class Wrong:
    """The function raised."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Many:
    """The outputs of a `flat_map`; a `token` means that there are more where these came from."""

    outs: Sequence[Any]
    keys: Sequence[tuple[bool, Any]] | None = None
    token: Any = None


# ---- events


@dataclass(frozen=True, slots=True)
class Fed:
    items: Sequence[Any]


@dataclass(frozen=True, slots=True)
class Ended:
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """`values[i]` belongs to the i-th item unless `marks` has something else for it. `keys` are pairs (worked, key or
    error). Items from `started` on were not begun."""

    task_id: int
    values: Sequence[Any]
    marks: dict[int, Any] = field(default_factory=dict)
    keys: Sequence[tuple[bool, Any]] | None = None
    elapsed_ns: int = 0
    started: int | None = None
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Failed:
    """`crashed`: its worker died. `fatal`: the pool is gone. `error`: anything else."""

    task_id: int
    error: BaseException
    cause: Literal["crashed", "error", "fatal"] = "error"
    attempts: int = 1


@dataclass(frozen=True, slots=True)
class Taken:
    count: int


@dataclass(frozen=True, slots=True)
class Tick:
    pass


Event = Fed | Ended | Done | Failed | Taken | Tick


# ---- effects


@dataclass(frozen=True, slots=True)
class Submit:
    """Run `items` as one task; with a `token`, go on with that stream instead."""

    task_id: int
    node: int
    items: list[Any]
    lane: int | None
    max_attempts: int
    token: Any = None


@dataclass(frozen=True, slots=True)
class Deliver:
    items: list[Any]


@dataclass(frozen=True, slots=True)
class Letter:
    item: Any
    error: BaseException
    attempts: int
    row: int


@dataclass(frozen=True, slots=True)
class Grant:
    count: int


@dataclass(frozen=True, slots=True)
class Stop:
    """The run ends here. `row` is the line of the stage that failed, None when no item is to blame."""

    error: BaseException
    item: Any = None
    attempts: int = 0
    row: int | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """Everything accepted has its outcome. `error` is what the source raised."""

    error: BaseException | None = None


Effect = Submit | Deliver | Letter | Grant | Stop | Finished


# ---- accounts


@dataclass(slots=True)
class Row:
    """The account of one stage: `taken` = `done` + `filtered` + `failed` + what is still inside."""

    taken: int = 0
    out: int = 0
    done: int = 0
    filtered: int = 0
    failed: int = 0
    retried: int = 0
    deaths: int = 0
    busy_ns: int = 0
    blocked_ns: int = 0
    starved_ns: int = 0

    @property
    def pending(self) -> int:
        return self.taken - self.done - self.filtered - self.failed

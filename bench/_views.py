"""How a benchmark shows its rows on the page: `VIEWS` of its module is a tuple of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Rows = list[dict[str, Any]]


def chosen(rows: Rows, where: Mapping[str, Any], needs: str) -> Rows:
    """Rows that have `needs` and, for each key of `where`, its value."""
    return [row for row in rows if row.get(needs) is not None and all(row.get(k) == v for k, v in where.items())]


@dataclass(frozen=True, slots=True)
class Table:
    """A line for each row. `columns` maps a field to its heading."""

    title: str
    columns: Mapping[str, str]
    where: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Pivot:
    """A line for each value of `rows`, a column for each value of `columns`, `value` in the cells. `better` ("more" or
    "less") adds the line that compares shmrt with the best of the others."""

    title: str
    value: str
    columns: str
    rows: str = "impl"
    where: Mapping[str, Any] = field(default_factory=dict)
    better: str | None = None
    beside: Mapping[str, str] = field(default_factory=dict)
    """Fields that belong to the whole line, as more columns: field to heading."""


@dataclass(frozen=True, slots=True)
class Plot:
    """A picture: `y` over `x` with a line for each of `series`, or bars if x is None."""

    name: str
    title: str
    y: str
    x: str | None = None
    series: str = "impl"
    where: Mapping[str, Any] = field(default_factory=dict)
    x_label: str = ""
    y_label: str = ""
    log_x: bool = False
    log_y: bool = False


View = Table | Pivot | Plot
OURS = "shmrt"
GUARANTEES = {"copies": "copies", "survives_kill": "lives on after kill -9"}

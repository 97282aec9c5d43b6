"""Columns, trees and times as text that fits the terminal."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

__all__ = ["branches", "clock_text", "duration_text", "fit", "table"]


def fit(text: str, width: int | None) -> str:
    """Cut to `width` columns, with a sign that it was."""
    if width is None or len(text) <= width:
        return text
    return text[: max(1, width - 3)] + "..."


def table(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """Left-aligned columns; what does not fit the width is cut on the right."""
    columns = [max(len(line[at]) for line in [head, *rows]) for at in range(len(head))]
    lines = []
    for line in [head, *rows]:
        cells = [cell.ljust(columns[at]) for at, cell in enumerate(line)]
        lines.append(fit("  ".join(cells).rstrip(), width))
    return lines


def duration_text(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.0f}s" if seconds >= 10 else f"{seconds:.1f}s"
    whole = int(seconds)
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def clock_text(wall_s: float) -> str:
    """ISO 8601 in UTC, to the millisecond."""
    return datetime.datetime.fromtimestamp(wall_s, datetime.UTC).isoformat(timespec="milliseconds")


def branches(rows: Sequence[dict[str, Any]], prefix: str = "") -> list[tuple[str, dict[str, Any]]]:
    """(lines of the branch before it, row) for each row of a tree, from the top down."""
    found = []
    for at, row in enumerate(rows):
        last = at == len(rows) - 1
        found.append((prefix + ("`- " if last else "|- "), row))
        found += branches(row.get("children", ()), prefix + ("   " if last else "|  "))
    return found

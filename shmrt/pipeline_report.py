"""What a pipeline run tells about itself: dead letters, the report, the progress line.

A report is a dict that also reads as attributes (`in` is a keyword, so it is `in_` there), so it prints, compares,
pickles and turns into JSON without help:

    >>> report = make_report("p", [("double", "map", Row(taken=3, out=2, done=2, failed=1), 0)], 3, 2, 1)
    >>> report["in"], report.in_, report.stages["double"].failed, report.balanced
    (3, 3, 1, True)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex, TextIO

from shmrt.decide.delivery_words import Row

__all__ = ["DeadLetter", "Progress", "Report", "Stages", "make_report"]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """An item that a stage could not handle, and why."""

    item: Any
    error: BaseException
    attempts: int
    stage: str


class Report(dict[str, Any]):
    """A dict whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        for key in (name, name.rstrip("_"), name.removesuffix("_seconds")):
            if key in self:
                return self[key]
        raise AttributeError(f"the report has no {name!r}; it has {', '.join(self)}")

    def __reduce__(self) -> Any:
        return (type(self), (dict(self),))


class Stages(list[Report]):
    """The stages' reports in order; a name works as an index as well."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, str):
            for stage in self:
                if stage["name"] == index:
                    return stage
            raise KeyError(f"no stage {index!r}; there are {', '.join(stage['name'] for stage in self)}")
        key: SupportsIndex | slice = index
        return super().__getitem__(key)


def make_report(
    name: str, lines: Sequence[tuple[str, str, Row, int]], taken: int, out: int, dead_letters: int
) -> Report:
    """From (name, kind, account, restarts) of each stage."""
    stages = Stages()
    given, balanced = taken, True
    for stage, kind, row, restarts in lines:
        stages.append(
            Report(
                {
                    "name": stage,
                    "kind": kind,
                    "in": row.taken,
                    "out": row.out,
                    "done": row.done,
                    "filtered": row.filtered,
                    "failed": row.failed,
                    "pending": row.pending,
                    "retried": row.retried,
                    "restarts": restarts,
                    "busy": row.busy_ns / 1e9,
                    "blocked": row.blocked_ns / 1e9,
                    "starved": row.starved_ns / 1e9,
                }
            )
        )
        balanced = balanced and row.taken == given and not row.pending
        given = row.out
    total = {key: sum(stage[key] for stage in stages) for key in ("filtered", "failed", "retried", "restarts")}
    return Report(
        {"name": name, "in": taken, "out": out, **total, "dead_letters": dead_letters}
        | {"balanced": balanced and given == out, "stages": stages}
    )


class Progress:
    """One line on a terminal, rewritten at most ten times a second; silent where stderr is none."""

    __slots__ = ("_begin_ns", "_drawn", "_next_ns", "_stream", "_total")

    def __init__(self, total: int | None, now_ns: int, stream: TextIO | None = None) -> None:
        stream = sys.stderr if stream is None else stream
        shown = stream is not None and hasattr(stream, "isatty") and stream.isatty()
        self._stream = stream if shown else None
        self._total = total
        self._begin_ns = self._next_ns = now_ns
        self._drawn = False

    @property
    def shown(self) -> bool:
        return self._stream is not None

    def draw(self, name: str, taken: int, out: int, failed: int, now_ns: int, *, last: bool = False) -> None:
        """Draws if it is time; the `last` line stays."""
        if self._stream is None or (now_ns < self._next_ns and not last):
            return
        self._next_ns = now_ns + 100_000_000
        rate = out / max((now_ns - self._begin_ns) / 1e9, 1e-3)
        text = f"{name}: {taken:,} in, {out:,} out, {failed:,} failed, {rate:,.0f}/s"
        if self._total:
            part = min(1.0, taken / self._total)
            text = f"[{'#' * int(part * 20):<20}] {part:4.0%} {text}"
        try:
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if last else ""))
            self._stream.flush()
        except (OSError, ValueError):  # a closed terminal must not end the run
            self._stream = None

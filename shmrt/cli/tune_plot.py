"""Plots of a tuning: bars of text for every terminal, and a PNG where matplotlib is installed.

>>> print(*bars([("as it is", 1.0, ""), ("slow: workers 2", 1.5, "faster")], 50), sep="\\n")
as it is         ##############        1.00
slow: workers 2  ##################### 1.50 faster
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from shmrt.cli.screen import CliError

__all__ = ["bars", "check_png", "write_png"]

LABEL_MOST = 44


def bars(rows: Sequence[tuple[str, float, str]], width: int, mark: str = "#") -> list[str]:
    """One line for each (label, value, remark); the longest bar has the largest value."""
    if not rows:
        return []
    label = min(max(len(text) for text, _, _ in rows), LABEL_MOST)
    most = max(value for _, value, _ in rows) or 1.0
    room = max(8, width - label - 2 - 6 - max(len(remark) for _, _, remark in rows))
    lines = []
    for text, value, remark in rows:
        short = text if len(text) <= label else text[: label - 3] + "..."
        bar = mark * max(0, round(room * value / most))
        lines.append(f"{short:<{label}}  {bar:<{room}} {value:.2f} {remark}".rstrip())
    return lines


def bar_mark(encoding: str | None) -> str:
    """A block where it can be written."""
    try:
        "\u2588".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return "#"
    return "\u2588"


def check_png(path: str | None) -> None:
    """Before any time is spent: can it be drawn, and written there? CliError if not."""
    if path is None:
        return
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore]  # noqa: F401
    except ImportError:
        raise CliError(
            "--png needs matplotlib, which is not installed",
            hint="pip install 'shmrt[plot]'; the plot in the terminal needs nothing",
            code=2,
        ) from None
    check_writable(path, "--png")


def check_writable(path: str | None, flag: str) -> None:
    """CliError if a file cannot be written there."""
    if path is None:
        return
    directory = os.path.dirname(path) or "."
    reason = None
    if os.path.isdir(path):
        reason = "it is a directory"
    elif not os.path.isdir(directory):
        reason = f"there is no directory {directory!r}"
    elif not os.access(path if os.path.exists(path) else directory, os.W_OK):
        reason = "it may not be written"
    if reason is not None:
        raise CliError(f"{flag} {path!r}: {reason}", hint="name a file in a directory that is there", code=2)


def write_png(path: str, body: dict[str, Any]) -> None:
    """Two panels: how fast each change was, and what the stages did with their time."""
    import matplotlib  # type: ignore[import-not-found,unused-ignore]

    matplotlib.use("Agg")
    from matplotlib import pyplot  # type: ignore[import-not-found,unused-ignore]

    tried = [row for row in body["changes"] if row["ratio"] is not None]
    stages = body["stages"]
    heights = [max(2.0, 0.34 * (len(tried) + 1)), max(1.6, 0.34 * len(stages))]
    figure, (upper, lower) = pyplot.subplots(
        2, 1, figsize=(9, sum(heights) + 1.6), gridspec_kw={"height_ratios": heights}, layout="constrained"
    )
    names = ["as it is", *(row["change"] for row in tried)]
    values = [1.0, *(row["ratio"] for row in tried)]
    colours = ["0.6", *("tab:green" if row["result"] in ("faster", "needed") else "tab:blue" for row in tried)]
    spread = [
        [0.0, *(row["ratio"] - row["low"] for row in tried)],
        [0.0, *(row["high"] - row["ratio"] for row in tried)],
    ]
    places = range(len(names))  # by number: a change that was tried twice has two bars
    upper.barh(places, values, color=colours, xerr=spread, error_kw={"lw": 1})
    upper.set_yticks(places, names)
    upper.axvline(1.0, color="0.3", lw=0.8)
    upper.invert_yaxis()
    upper.set_xlabel("rate against what it was compared with (lines: all of its pairs)")
    upper.set_title(f"{body['target']}: {body['sure']}", fontsize=10, wrap=True)
    labels = [f"{row['name']} ({row['workers']})" for row in stages]
    left = [0.0] * len(stages)
    for key, colour in (("busy", "tab:green"), ("blocked", "tab:red"), ("starved", "0.8")):
        shares = [min(row[key], max(0.0, 1.0 - before)) for row, before in zip(stages, left, strict=True)]
        lower.barh(labels, shares, left=left, color=colour, label=key)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    lower.invert_yaxis()
    lower.set_xlim(0, 1)
    lower.set_xlabel("part of the time, as it is (workers in brackets)")
    lower.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise CliError(f"--png {path!r}: {error.strerror}", hint="name another file") from None
    finally:
        pyplot.close(figure)

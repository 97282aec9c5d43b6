"""Where results are kept: one line of JSON for each benchmark of each run, only ever appended.

A line holds what the figures depend on once (`commit`, machine, versions, parameters, the machine's round trips before
and after) and the measurements as `rows`. `bench/results.ndjson` is what `docs/benchmarks.md` is made from.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results.ndjson")


def append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line, separators=(",", ":"), default=str) + "\n")


def read(path: Path) -> list[dict[str, Any]]:
    """Every line, oldest first. ValueError names the line that is none of ours."""
    found = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{path}:{number} is not a line of JSON: {error}") from None
        if not isinstance(line, dict) or not isinstance(line.get("rows"), list) or "bench" not in line:
            raise ValueError(f"{path}:{number} is not a benchmark's result: it has no bench or no rows")
        found.append(line)
    return found


def newest(lines: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """By benchmark, the last full run of each.

    >>> old, new = {"bench": "ring", "rows": [1]}, {"bench": "ring", "rows": [2]}
    >>> newest([old, new, {"bench": "ring", "rows": [3], "smoke": True}])["ring"]["rows"]
    [2]
    """
    return {line["bench"]: line for line in lines if not line.get("smoke")}

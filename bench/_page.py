"""Makes `docs/benchmarks.md` and its plots of the newest full result of each benchmark; nothing in them is by hand."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from bench import _results, _svg, _targets
from bench._svg import short
from bench._views import OURS, Pivot, Plot, Rows, Table, View, chosen

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
PLOTS = ROOT / "docs" / "benchmarks"

ORDER = (
    *("messages", "message_shapes", "round_trips", "array_messages"),
    *("tasks", "task_times", "skew", "workers", "arrays", "pipelines", "tiles"),
    *("cold_start", "idle", "recovery", "one_death", "hung"),
    *("calls", "guards", "bulkheads", "trees", "import_time", "instructions"),
)

HEAD = """\
# Benchmarks

<!-- Made by `python -m bench page` of bench/results.ndjson: change the benchmarks, not this page. -->

## Reasons to distrust this page

- **We wrote it.** The authors of one of the packages chose the questions, wrote the adapters of the others, and know
  their own best. The adapters are in `bench/_peers/`; if you know a faster way to use a package, it is a mistake of
  ours.
- **One machine, few CPUs.** With two CPUs a program, its two workers and whatever sends on their behalf share what a
  larger machine would give to each. Absolute figures are this machine's; read ratios, and those from one table only.
- **It moves.** On a shared machine a cache line takes 50 to 500 ns from CPU to CPU from one minute to the next, and
  everything between processes moves with it. Both the line's and a wake's round trip are printed for every benchmark,
  before and after. Below a median stands its lowest and highest value over the turns: where two ranges overlap, there
  is no difference.
- **Guarantees differ, and cost.** A queue that a kill leaves locked for ever may be faster than one that heals. What
  a package promises stands in a column beside its figure, as far as it could be tried.
- **Looking costs CPU.** Short round trips come from looking for the next message instead of sleeping. shmrt looks for
  some 50 µs and then sleeps; iceoryx2's Python subscriber cannot sleep. On a machine with other work to do such
  figures get worse.
- **Empty tasks are not work.** A pool that is 50 times faster for tasks that do nothing is 1 percent faster for tasks
  of 10 ms: see the curve of task lengths before you choose by the first table.
- **Defaults.** Every package is used as its documentation begins, with the `fork` start method where there is a
  choice. Tuning would help some of them.
- **ray and dask do more.** They span machines, spill and schedule by data; on one machine they pay for what is not
  asked here.

Repeat it: `pip install '.[bench]'`, then `python -m bench run --append bench/results.ndjson` on a machine with
nothing else to do (about twenty minutes), then `python -m bench page`. `python -m bench run --peers multiprocessing
tasks` is one question.
"""


def cell(row: dict[str, Any], field: str) -> str:
    value = row.get(field)
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    spread = row.get(f"{field}_range")
    return short(value) + (f"<br><sub>{short(spread[0])} to {short(spread[1])}</sub>" if spread else "")


def grid(head: list[str], lines: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(head) + " |"
    yield "|" + "|".join("---" if not at else "---:" for at in range(len(head))) + "|"
    for line in lines:
        yield "| " + " | ".join(line) + " |"
    yield ""


def size_name(value: Any) -> str:
    """
    >>> size_name(1 << 16), size_name(1 << 20), size_name(16), size_name("tuple"), size_name(1000)
    ('64 KiB', '1 MiB', '16', 'tuple', '1000')
    """
    if isinstance(value, int) and value >= 1024 and value % 1024 == 0:
        return f"{value >> 20} MiB" if value % (1 << 20) == 0 else f"{value >> 10} KiB"
    return str(value)


def table(view: Table, rows: Rows) -> Iterator[str]:
    fields = list(view.columns)
    kept = [row for row in chosen(rows, view.where, fields[0]) if all(name in row for name in fields[:2])]
    if kept:
        yield f"**{view.title}**"
        yield ""
        yield from grid(list(view.columns.values()), [[cell(row, name) for name in fields] for row in kept])


def pivot(view: Pivot, rows: Rows) -> Iterator[str]:
    kept = chosen(rows, view.where, view.value)
    if not kept:
        return
    columns = list(dict.fromkeys(row[view.columns] for row in kept))
    names = list(dict.fromkeys(row[view.rows] for row in kept))
    by_place = {(row[view.rows], row[view.columns]): row for row in kept}
    first = {name: next(row for row in kept if row[view.rows] == name) for name in names}
    lines = []
    for name in names:
        cells = [cell(by_place.get((name, column), {}), view.value) for column in columns]
        shown = f"**{name}**" if str(name).startswith(OURS) else str(name)
        lines.append([shown, *cells, *(cell(first[name], field) for field in view.beside)])
    if view.better is not None:
        compared = [against(view, by_place, names, column) for column in columns]
        lines.append(["*shmrt by the best other*", *compared, *("" for _ in view.beside)])
    yield f"**{view.title}**"
    yield ""
    yield from grid([view.rows if view.rows != "impl" else "", *map(size_name, columns), *view.beside.values()], lines)


def against(view: Pivot, by_place: dict[tuple[Any, Any], dict[str, Any]], names: list[Any], column: Any) -> str:
    """How much better the best of ours is than the best of theirs."""
    ours: list[float] = []
    theirs: list[float] = []
    for name in names:
        value = by_place.get((name, column), {}).get(view.value)
        if value:
            (ours if str(name).startswith(OURS) else theirs).append(value)
    if not ours or not theirs:
        return ""
    ratio = max(ours) / max(theirs) if view.better == "more" else min(theirs) / min(ours)
    return f"*{short(ratio)}*"


def plot(view: Plot, rows: Rows) -> str | None:
    """The picture, or None when no row is for it."""
    kept = chosen(rows, view.where, view.y)
    if not kept:
        return None
    if view.x is None:
        kept = sorted(kept, key=lambda row: -row[view.y])
        values = {str(row[view.series]): float(row[view.y]) for row in kept}
        spread = f"{view.y}_range"
        ranges = {str(row[view.series]): row[spread] for row in kept if spread in row}
        return _svg.bars(view.title, view.y_label, values, ranges, view.log_y)
    series: dict[str, list[tuple[float, float]]] = {}
    for row in kept:
        series.setdefault(str(row[view.series]), []).append((float(row[view.x]), float(row[view.y])))
    return _svg.lines(view.title, view.x_label, view.y_label, series, view.log_x, view.log_y)


def skipped(rows: Rows) -> Iterator[str]:
    missing = [f"{row['impl']} ({row['skipped']})" for row in rows if row.get("skipped") and row.get("impl")]
    if missing:
        yield f"Not measured: {'; '.join(missing)}."
        yield ""


def section(name: str, line: dict[str, Any], plots: dict[str, str]) -> Iterator[str]:
    module = importlib.import_module(f"bench.{name}")
    title, _, about = (module.__doc__ or name).strip().partition("\n")
    views: tuple[View, ...] = getattr(module, "VIEWS", ())
    yield f"## {title.rstrip('.')}"
    yield ""
    yield f"`python -m bench run {name}`"
    yield ""
    yield about.strip()
    yield ""
    for view in views:
        if isinstance(view, Table):
            yield from table(view, line["rows"])
        elif isinstance(view, Pivot):
            yield from pivot(view, line["rows"])
        elif (picture := plot(view, line["rows"])) is not None:
            plots[f"{view.name}.svg"] = picture
            yield f"![{view.title}](benchmarks/{view.name}.svg)"
            yield ""
    yield from skipped(line["rows"])


def targets(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    rows = {name: line["rows"] for name, line in found.items()}
    lines = []
    for target in _targets.TARGETS:
        bound = f"{'at least' if target.at_least else 'at most'} {short(target.limit)} {target.unit}".strip()
        try:
            value = target.value(rows)
        except _targets.Absent:
            lines.append([target.what, bound, "not measured", ""])
            continue
        lines.append([target.what, bound, short(value), "yes" if target.reached(value) else "**no**"])
    yield "## What was aimed at, and reached in this run"
    yield ""
    yield from grid(["target", "bound", "measured", "reached"], lines)


def machine(found: dict[str, dict[str, Any]]) -> Iterator[str]:
    some = next(iter(found.values()))
    yield "## The machine and the run"
    yield ""
    yield f"{some['cpu']}, {some['cpus']} CPUs; Linux {some['kernel']}; CPython {some['python']}; built by"
    yield f"{some['compiler']} with `{some['flags']}`."
    yield ""
    versions = {package: each for line in found.values() for package, each in line["versions"].items()}
    yield f"Peers: {', '.join(f'{package} {each}' for package, each in sorted(versions.items())) or 'none installed'}."
    yield ""
    lines = []
    for name, line in found.items():
        before, after = line["line_rtt_ns"], line["wake_rtt_us"]
        rtt = " → ".join("?" if value is None else short(value) for value in before)
        wake = " → ".join("?" if value is None else short(value) for value in after)
        lines.append(
            [name, str(line["run"])[:16].replace("T", " "), str(line["commit"]), short(line["seconds"]), rtt, wake]
        )
    yield from grid(["benchmark", "run", "commit", "seconds", "cache line, ns", "wake, µs"], lines)
    seen = [value for line in found.values() for value in line["line_rtt_ns"] if value]
    if seen:
        span = f"{short(min(seen))} to {short(max(seen))} ns during this run, median {short(median(seen))}"
        yield f"The cache line took {span}."
        yield ""


def render(found: dict[str, dict[str, Any]]) -> tuple[str, dict[str, str]]:
    """The page, and the plots by file name."""
    known = [name for name in ORDER if name in found] + sorted(name for name in found if name not in ORDER)
    found = {name: found[name] for name in known}
    plots: dict[str, str] = {}
    parts = [HEAD, *machine(found), *targets(found)]
    for name in known:
        parts += section(name, found[name], plots)
    return "\n".join(parts).rstrip() + "\n", plots


def write(results: Path) -> int:
    try:
        found = _results.newest(_results.read(results))
    except OSError as error:
        print(f"no results: {error}; python -m bench run --append {results}", file=sys.stderr)
        return 2
    if not found:
        print(f"{results} has smoke runs only; python -m bench run --append {results}", file=sys.stderr)
        return 2
    page, plots = render(found)
    PLOTS.mkdir(exist_ok=True)
    for old in PLOTS.glob("*.svg"):
        if old.name not in plots:
            old.unlink()
    for name, picture in plots.items():
        (PLOTS / name).write_text(picture)
    PAGE.write_text(page)
    print(f"{PAGE} and {len(plots)} plots, of {len(found)} benchmarks")
    return 0

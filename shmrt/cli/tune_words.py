"""What `tune` has found: a document for programs, lines and a file for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from shmrt.cli.tables import table
from shmrt.cli.toml_words import toml_text
from shmrt.decide.tune_compare import ALPHA, LOOKS, confirm, median
from shmrt.decide.tune_search import Bottleneck, Outcome, Tried
from shmrt.decide.tune_words import Knobs, differences, setting_text

__all__ = ["document", "lines", "sure", "toml_of"]


def sure(found: Outcome) -> str:
    """The verdict in one sentence, with how sure it is."""
    estimate = found.estimate
    changes = count(len(found.tried), "change")
    seen = f"{estimate.ratio:.2f} times as fast ({estimate.low:.2f} to {estimate.high:.2f} in {estimate.pairs} pairs)"
    if found.verdict == "faster":
        return f"{seen}; of two equal settings at most {ALPHA:.0%} are called different"
    if found.verdict == "same":
        return f"no difference seen: the best of {changes} was {seen}; the settings stay as they are"
    if found.verdict == "none":
        return f"no difference seen: none of {changes} seemed faster; the settings stay as they are"
    if found.best != found.start:
        if estimate.pairs < LOOKS[0]:
            seen = f"with {estimate.pairs} of the {LOOKS[0]} pairs that it takes at least"
        return f"not sure: something seems faster ({seen}), but the time was over; the settings stay as they are"
    return f"not sure: the time was over after {changes}, with {found.untried} more worth a trial"


def count(number: int, what: str) -> str:
    """
    >>> count(1, "change"), count(2, "change")
    ('1 change', '2 changes')
    """
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def bottleneck_text(found: Bottleneck, names: tuple[str, ...], setting: tuple[Knobs, ...]) -> str:
    """What everything waits for, and how many trials say so."""
    if not found.trials:
        return "not known"
    stage = "" if found.stage is None else names[found.stage]
    workers = "" if found.stage is None else count(setting[found.stage].workers, "worker")
    said = f"; {found.votes} of {found.trials} trials say so"
    if found.kind == "stage":
        return f"stage {stage!r}: its {workers} at work for {found.share:.0%} of the time{said}"
    if found.kind == "source":
        return f"the source: its own code takes {found.share:.0%} of the time, and no setting changes that{said}"
    if found.kind == "cpus":
        return f"the CPUs: all of them are at work, most for stage {stage!r}{said}"
    if found.kind == "program":
        return f"the program, which carries every message: at work for {found.share:.0%} of the time{said}"
    busy = f"; the busiest stage, {stage!r}, is at work for {found.share:.0%} of the time" if stage else ""
    return f"nothing stands out{busy}"


def document(
    found: Outcome, trials: Any, settings: Mapping[str, Any], asked: Mapping[str, Any], signal: str | None
) -> dict[str, Any]:
    """Everything; times in seconds, rates in inputs a second."""
    names = trials.names
    return {
        **asked,
        "inputs": trials.inputs,
        "whole_source": trials.whole,
        "trials": found.trials,
        "rate": round(found.rate, 1),
        "noise": round(found.noise, 4),
        "bottleneck": _bottleneck(found.before, names),
        "bottleneck_text": bottleneck_text(found.before, names, found.start),
        "stages": _stages(found),
        "changes": [_change(one, names, found) for one in found.tried],
        "untried": found.untried,
        "verdict": found.verdict,
        "sure": sure(found),
        "ratio": round(found.estimate.ratio, 4) if found.estimate.pairs else None,
        "low": round(found.estimate.low, 4) if found.estimate.pairs else None,
        "high": round(found.estimate.high, 4) if found.estimate.pairs else None,
        "pairs": found.estimate.pairs,
        "recommended": setting_text(names, found.start, found.setting) or None,
        "best": setting_text(names, found.start, found.best) or None,
        "bottleneck_then": bottleneck_text(found.after, names, found.setting) if found.verdict == "faster" else None,
        "notes": list(trials.notes),
        "toml": toml_of(found, trials, settings),
        "signal": signal,
    }


def _bottleneck(found: Bottleneck, names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "kind": found.kind,
        "stage": None if found.stage is None else names[found.stage],
        "share": round(found.share, 4),
        "votes": found.votes,
        "trials": found.trials,
    }


def _stages(found: Outcome) -> list[dict[str, Any]]:
    """The setting as it is: medians of its trials, shares of the time."""
    trials = found.looked
    rows = []
    for at, facts in enumerate(trials[0].stages if trials else ()):
        every = [(trial.wall_s, trial.stages[at]) for trial in trials]
        rows.append(
            {
                "name": facts.name,
                "kind": facts.kind,
                "workers": facts.workers,
                "in": facts.taken,
                "item_us": round(median([one.item_s for _, one in every]) * 1e6, 1),
                "bytes_each": round(median([one.bytes_each for _, one in every])),
                "busy": round(median([one.share(wall) for wall, one in every]), 4),
                "blocked": round(median([min(1.0, one.blocked_s / wall) for wall, one in every]), 4),
                "starved": round(median([min(1.0, one.starved_s / wall) for wall, one in every]), 4),
            }
        )
    return rows


def _change(one: Tried, names: tuple[str, ...], found: Outcome) -> dict[str, Any]:
    ratios = one.ratios
    return {
        "change": one.text,
        "why": one.why,
        "phase": one.phase,
        "setting": setting_text(names, found.start, one.setting),
        "pairs": len(ratios),
        "ratio": round(confirm(ratios).ratio, 4) if ratios else None,
        "low": round(min(ratios), 4) if ratios else None,
        "high": round(max(ratios), 4) if ratios else None,
        "rate": round(one.rate, 1) if ratios else None,
        "result": one.result,
    }


def toml_of(found: Outcome, trials: Any, settings: Mapping[str, Any]) -> str:
    """The recommended settings as a file for `run --config`."""
    from shmrt.cli.toml_words import carried

    stages: dict[str, dict[str, Any]] = {name: dict(values) for name, values in settings["stages"].items()}
    for name, old, new in zip(trials.names, found.start, found.setting, strict=True):
        stages.setdefault(name, {}).update(differences(old, new))
    head = [f"# {sure(found)}", f"# {trials.inputs:,} inputs a trial, {found.trials} trials"]
    return "".join(line + "\n" for line in head) + toml_text(carried(settings), stages)


def lines(body: Mapping[str, Any], width: int | None, mark: str) -> Iterator[str]:
    """The whole of it, for a terminal."""
    from shmrt.cli.tune_plot import bars

    room = width or 100
    of = "all of its source" if body["whole_source"] else "a sample"
    yield f"tune {body['target']}: {body['inputs']:,} inputs a trial ({of}), {body['trials']} trials, " + (
        f"{body['rate']:,.0f} inputs a second as it is, within {body['noise']:.0%} of each other"
    )
    yield f"bottleneck: {body['bottleneck_text']}"
    yield from (f"note: {note}" for note in body["notes"])
    yield ""
    head = ("STAGE", "WORKERS", "ITEM", "BUSY", "BLOCKED", "STARVED")
    rows = [
        (
            row["name"],
            str(row["workers"]),
            f"{row['item_us']:,.0f} us",
            *(f"{row[key]:.0%}" for key in ("busy", "blocked", "starved")),
        )
        for row in body["stages"]
    ]
    yield from table(head, rows, width)
    if body["changes"]:
        yield ""
        yield from table(
            ("CHANGE", "PAIRS", "RATE", "RATIO", "RESULT"), [_cells(row) for row in body["changes"]], width
        )
    measured = [row for row in body["changes"] if row["ratio"] is not None and row["phase"] == "search"]
    if measured:
        yield ""
        drawn = [("as it is", body["rate"], "")] + [(row["change"], row["rate"], row["result"]) for row in measured]
        top = max(rate for _, rate, _ in drawn)
        unit, by = ("1/s", 1.0) if top < 1000 else ("1000/s", 1e3)
        yield f"inputs a second ({unit}):"
        yield from bars([(text, rate / by, "" if said == "no" else said) for text, rate, said in drawn], room, mark)
    yield ""
    yield f"verdict: {body['sure']}"
    if body["bottleneck_then"]:
        yield f"bottleneck then: {body['bottleneck_then']}"
    elif body["verdict"] == "unsure" and body["best"]:
        yield f"what seems faster: {body['best']}"
    yield ""
    yield from body["toml"].rstrip("\n").split("\n")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    text = f"{row['change']} (taken back)" if row["phase"] == "prune" else row["change"]
    if row["ratio"] is None:
        return (text, "0", "-", "-", row["result"])
    ratio = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
    return (text, str(row["pairs"]), f"{row['rate']:,.0f}/s", ratio, row["result"])

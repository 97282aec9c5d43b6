"""What `chaos` has found, as a document for programs and as lines for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from shmrt.cli.plain import safe_repr
from shmrt.decide.chaos_recovery import summary

__all__ = ["WORDS", "counts", "document", "letter_line", "lines"]

WORDS = ("lost", "duplicated", "unexpected", "corrupted")
_MORE = ("out_of_order", "given_up", "pending", "regrouped", "changed_on_the_way", "unbalanced")


def counts(verdict: Any) -> dict[str, int]:
    """The numbers of a verdict."""
    return {word: getattr(verdict, word) for word in (*WORDS, *_MORE)}


def document(found: Any, striker: Any, asked: dict[str, Any], signal: str | None) -> dict[str, Any]:
    """Everything; times in seconds. `asked` is what the run was asked for."""
    recovery = striker.recovery
    return {
        **asked,
        "holds": found.holds,
        **counts(found.verdict),
        "stuck": found.stuck,
        "error": found.error,
        "examples": [
            {"what": word, "inputs": list(origin), "times": times}
            for (word, origin), times in found.verdict.examples.items()
        ],
        "without_faults_again": None if found.control is None else counts(found.control),
        "rounds": found.rounds,
        "inputs": found.inputs,
        "expected": found.expected,
        "outputs": found.outputs,
        "repeated": found.repeated,
        "dead_letters": found.letters,
        "dead_letters_without_faults": found.letters_calm,
        "faults": {
            "killed": striker.kills,
            "stopped": striker.stops,
            "stopped_seconds": round(striker.stopped_s, 3),
            "roots_killed": striker.roots,
            "missed": striker.missed,
        },
        "recovery": {
            "ready": summary(recovery.until_ready),
            "output": summary(recovery.until_output),
            "root": summary(recovery.until_root),
        },
        "inputs_per_second": {"without_faults": round(found.rate_calm, 1), "with_faults": round(found.rate, 1)},
        "signal": signal,
    }


def lines(body: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    word = "held" if body["holds"] else "BROKEN"
    runs = f"{body['rounds']} run{'s' * (body['rounds'] != 1)} of {body['inputs']:,} inputs under faults"
    yield f"chaos {body['target']}: {word}; {runs}, {body['outputs']:,} outputs, seed {body['seed']}"
    yield "  " + ", ".join(f"{name} {body[name]:,}" for name in WORDS) + f", out of order {body['out_of_order']:,}"
    yield from _wrong(body)
    alone = body["dead_letters_without_faults"]
    besides = f" (besides {alone:,} that fail without faults)" if alone else ""
    yield f"  given up as dead letters {body['given_up']:,}{besides}, executions repeated {body['repeated']:,}"
    if body["pending"]:
        yield f"  pending {body['pending']:,}: the last run was cut short"
    if body["regrouped"]:
        yield f"  batches of other members than without faults: {body['regrouped']:,}, their values not compared"
    faults = body["faults"]
    stops = f"{faults['stopped']:,} stopped for {faults['stopped_seconds']:.1f} s in all"
    yield f"  faults: {faults['killed']:,} workers killed, {stops}, {faults['roots_killed']:,} roots killed"
    yield from _recovery(body["recovery"])
    rates = body["inputs_per_second"]
    yield f"  {rates['with_faults']:,.0f} inputs a second under faults, {rates['without_faults']:,.0f} without"


def _wrong(body: dict[str, Any]) -> Iterator[str]:
    if body["error"]:
        yield f"  a run ended with {body['error']}"
    if body["stuck"]:
        yield "  stuck: the faults were over, and nothing moved any more"
    if body["unbalanced"]:
        yield f"  runs whose report does not account for every input: {body['unbalanced']}"
    for example in body["examples"]:
        numbers = example["inputs"]
        shown = ", ".join(map(str, numbers[:8])) + ", ..." * (len(numbers) > 8)
        what = f"{example['what'].replace('_', ' ')} {example['times']:,}"
        yield f"    {what}: of input {shown}" if numbers else f"    {what}"
    if body["changed_on_the_way"]:
        yield f"  on arrival another value than the function had returned: {body['changed_on_the_way']:,}"
    again = body["without_faults_again"]
    if again is not None:
        differs = any(again[word] for word in (*WORDS, "out_of_order"))
        yield (
            "  a second run without faults differs from the first, too: the target does not repeat itself"
            if differs
            else "  a second run without faults is as the first one: it comes with the faults"
        )


def _recovery(recovery: dict[str, Any]) -> Iterator[str]:
    names = {"ready": "a replacement was ready", "output": "the next output came", "root": "ready after a root's death"}
    for key, name in names.items():
        row = recovery[key]
        if row["count"]:
            p50, p99, most = (f"{1000 * row[part]:.1f}" for part in ("p50", "p99", "max"))
            yield f"  until {name}: p50 {p50} ms, p99 {p99} ms, at most {most} ms, of {row['count']:,}".replace(
                "until ready", "until workers were ready"
            )


def letter_line(row: dict[str, Any]) -> str:
    """A dead letter that only the run with faults has."""
    item = safe_repr(row["item"])
    shown = item if len(item) <= 120 else item[:117] + "..."
    how = f"signal {row['signal']}" if row["signal"] else row["message"]
    numbers = ", ".join(map(str, row["inputs"][:8]))
    where = f"after {row['attempts']} attempts in {row['stage']}"
    return f"given up: input {numbers}, {shown}, {where}: {row['error']} ({how})"

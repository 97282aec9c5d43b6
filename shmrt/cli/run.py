"""`run`: starts a pipeline in the foreground and prints what comes out."""

from __future__ import annotations

import argparse
import secrets
import sys
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.screen import CliError, Screen, json_text

DOES = "Run a pipeline in the foreground"
MORE = """TARGET is MODULE:OBJECT, a Pipeline with a source or a function that returns one.
If `consume(run)` lies beside it, that takes the outputs and what it returns is printed; else every output
is a line. --verify compares with `serial(**arguments)` beside it, else with the pipeline run in this process;
of two summaries the key "digest" decides."""


def options(parser: argparse.ArgumentParser) -> None:
    target_options(parser)
    parser.add_argument(
        "--chaos", type=kinds.chaos, metavar="kill=RATE", help="SIGKILL so many random workers a second"
    )
    parser.add_argument("--seed", type=kinds.seed, help="seed of --chaos (default: a new one, which is printed)")
    parser.add_argument("--verify", action="store_true", help="run serially too and compare the digests")
    parser.add_argument("--drain-timeout", type=kinds.duration, metavar="TIME", help="after TERM or INT (default 30s)")
    parser.add_argument(
        "--on-error", choices=("raise", "dead_letter", "skip"), default="dead_letter", help="default: dead_letter"
    )


def target_options(parser: argparse.ArgumentParser) -> None:
    """What `run` and `check` share: how to find and shape the target."""
    parser.add_argument("target", nargs="?", metavar="TARGET", help="MODULE:OBJECT, or `target` of the config file")
    parser.add_argument("--config", metavar="FILE", help="TOML (default: shmrt.toml here, if there is one)")
    parser.add_argument("--input", metavar="PATH", help="the same as --set input=PATH")
    parser.add_argument("--workers", type=kinds.workers, metavar="N")
    parser.add_argument("--ring-slots", type=kinds.ring_slots, metavar="N", help="messages that a lane holds")
    parser.add_argument("--slot-bytes", type=kinds.slot_bytes, metavar="SIZE", help="what a message takes in a lane")
    parser.add_argument(
        "--set", type=kinds.assignment, action="append", metavar="KEY=VALUE", help="keyword argument of the target"
    )
    parser.add_argument("--ready-timeout", type=kinds.duration, metavar="TIME", help="import and call (default 30s)")


def settings_of(arguments: argparse.Namespace) -> dict[str, Any]:
    from shmrt.cli.config import read_settings

    given = vars(arguments)
    names = {
        "target": "target",
        "workers": "workers",
        "input": "input",
        "runtime.drain_timeout": "drain_timeout",
        "runtime.ready_timeout": "ready_timeout",
        "ring.slots": "ring_slots",
        "ring.slot_bytes": "slot_bytes",
        "chaos.kill": "chaos",
        "chaos.seed": "seed",
    }
    flags: dict[str, Any] = {key: given.get(name) for key, name in names.items()}
    flags["set"] = given.get("set")
    return read_settings(flags, arguments.config)


def keywords_of(settings: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments that a target is called with."""
    shaped = {
        "input": settings["input"],
        "workers": settings["workers"],
        "ring_slots": settings["ring.slots"],
        "slot_bytes": settings["ring.slot_bytes"],
    }
    keywords: dict[str, Any] = settings["set"]
    return keywords | {key: value for key, value in shaped.items() if value is not None}


def load_target(settings: dict[str, Any]) -> Any:
    from shmrt.cli.target import load

    if settings["target"] is None:
        raise CliError("no target given", hint="python -m shmrt run MODULE:OBJECT, or `target` in the config", code=2)
    return load(settings["target"], keywords_of(settings), settings["runtime.ready_timeout"])


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.cli import drive

    settings = settings_of(arguments)
    target = load_target(settings)
    kill = settings["chaos.kill"] or 0.0
    seed = settings["chaos.seed"] if settings["chaos.seed"] is not None else secrets.randbelow(2**31)
    if kill:
        screen.note(f"chaos: {kill:g} workers a second, seed {seed}")

    outputs = Fingerprint() if arguments.verify and target.consume is None else None

    def show(item: Any) -> None:
        if outputs is not None:
            outputs.add(item)
        if screen.format == "jsonl":
            screen.line(json_text(item))
        elif not screen.json:
            screen.line(repr(item))

    if target.consume is None and hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # an output is seen when it is there, not when 8 KiB are
    outcome = drive.drive(
        target,
        screen,
        drain_timeout=settings["runtime.drain_timeout"],
        kill=kill,
        seed=seed,
        on_error=arguments.on_error,
        show=show,
    )
    equal = None
    if arguments.verify and outcome.signal is None:
        screen.note("serial run, to compare")
        mine = outputs.digest() if outputs is not None else answer_of(outcome.summary)
        equal = mine == serial_answer(target, arguments.on_error)
    return conclude(outcome, equal, screen, seed)


class Fingerprint:
    """One word for a sequence of outputs, in bounded memory."""

    def __init__(self) -> None:
        import hashlib

        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, item: Any) -> None:
        self._hash.update(repr(item).encode("utf-8", "backslashreplace") + b"\n")

    def digest(self) -> str:
        return self._hash.hexdigest()


def answer_of(summary: Any) -> Any:
    """What a consumer's summary is compared by: its `digest` if it has one."""
    return summary["digest"] if isinstance(summary, dict) and "digest" in summary else summary


def serial_answer(target: Any, on_error: str) -> Any:
    """The same work in this process: by the target's own `serial`, else by the pipeline's serial run."""
    if target.serial is not None:
        return answer_of(target.serial(**target.arguments))
    with target.pipeline.run_serial(on_error=on_error) as run:
        if target.consume is not None:
            return answer_of(target.consume(run))
        outputs = Fingerprint()
        for item in run:
            outputs.add(item)
        return outputs.digest()


def conclude(outcome: Any, equal: bool | None, screen: Screen, seed: int) -> int:
    from shmrt.cli import drive

    letters = [drive.evidence(letter) for letter in outcome.dead_letters]
    for letter in letters:
        screen.note(drive.evidence_line(letter), colour="yellow")
    if screen.json:
        body = {
            "summary": outcome.summary,
            "outputs": outcome.outputs,
            "seconds": round(outcome.seconds, 3),
            "killed": outcome.killed,
            "restarts": restarts(outcome.report),
            "seed": seed,
            "dead_letters": letters,
            "same_as_serial": equal,
            "drained": outcome.drained,
        }
        screen.document("shmrt.run/1", body)
    elif outcome.summary is not None:
        for key, value in outcome.summary.items():
            screen.line(f"{key}: {value}")
    screen.note(
        f"{outcome.outputs:,} outputs in {outcome.seconds:.1f} s, {len(letters)} given up, "
        f"{outcome.killed} workers killed, {restarts(outcome.report)} restarts"
    )
    if equal is not None:
        screen.note(f"same answer as the serial run: {'yes' if equal else 'NO'}", colour="green" if equal else "red")
    drive.finish(outcome)
    return 1 if letters or equal is False else 0


def restarts(report: Any) -> int:
    stages = getattr(report, "stages", ()) or ()
    rows = stages.values() if isinstance(stages, dict) else stages
    return sum(int(getattr(stage, "restarts", 0)) for stage in rows)

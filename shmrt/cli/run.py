"""`run`: starts a pipeline in the foreground and prints what comes out, or a supervision tree until it ends."""

from __future__ import annotations

import argparse
import functools
import os
import secrets
import sys
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.plain import json_text, safe_repr, safe_str
from shmrt.cli.screen import CliError, Screen

DOES = "Run a supervision tree or a pipeline in the foreground"
MORE = """TARGET is MODULE:OBJECT, a Supervisor or a Pipeline with a source or a function that returns one, or a TOML
file that describes an application. --workers, --input, --ring-slots, --slot-bytes and --set are arguments of such a
function; an object is run as it is.

The runtime has a name (--name, else one made of the target's), by which `status`, `tree`, `events`, `stop` and the
other verbs find it.

A tree runs until TERM or Ctrl-C, which stops it in order (exit code 0), or until it ends by itself: 5 when it gave up,
with the chain of reasons, else 0. HUP reads the configuration again, as `reload` does. Not up within --ready-timeout
is exit code 4.

If `consume(run)` lies beside it, that takes the outputs, and what it returns is printed: a dict line by line,
None not at all, anything else as its str. Without it every output is a line.

-o json   one document at the end: what `consume` returned is its `summary`; without `consume` it only
          has the number of outputs
-o jsonl  the same document in one line, and without `consume` every output in a line before it
Both write null for NaN and infinities, and the repr of what JSON has no word for. stdout holds nothing else:
what the target prints, here or in a worker, goes to stderr.

The first TERM or Ctrl-C ends the source and lets everything accepted come out: exit code 0. A second one, or
--drain-timeout, cuts that short, and the command ends by the signal.

--verify compares with `serial(**arguments)` beside the target, else with the pipeline run in this process; of
two summaries the key "digest" decides. A run that a signal stopped cannot be compared, since its source was not
read to the end: it then ends by that signal even if it was drained."""


def options(parser: argparse.ArgumentParser) -> None:
    target_options(parser)
    parser.add_argument(
        "--chaos", type=kinds.chaos, metavar="kill=RATE", help="SIGKILL so many random workers a second"
    )
    parser.add_argument("--seed", type=kinds.seed, help="seed of --chaos (default: a new one, which is printed)")
    parser.add_argument("--verify", action="store_true", help="run serially too and compare the answers")
    parser.add_argument(
        "--http", type=kinds.http, metavar="[HOST:]PORT", help="serve /livez, /readyz, /startupz and /healthz there"
    )
    parser.add_argument("--drain-timeout", type=kinds.duration, metavar="TIME", help="after TERM or INT (default 30s)")
    parser.add_argument(
        "--on-error",
        choices=("raise", "dead_letter", "skip"),
        default="dead_letter",
        help="an item that fails ends the run (raise), is listed and makes the exit code 1 (dead_letter, the default), "
        "or is only counted, as `failed` in JSON, and the exit code stays 0 (skip)",
    )


def target_options(parser: argparse.ArgumentParser) -> None:
    """What `run` and `check` share: how to find and shape the target."""
    parser.add_argument("target", nargs="?", metavar="TARGET", help="MODULE:OBJECT, or a TOML file")
    parser.add_argument("--config", metavar="FILE", help="TOML (default: shmrt.toml here, if there is one)")
    parser.add_argument("--input", metavar="PATH", help="the same as --set input=PATH")
    parser.add_argument("--workers", type=kinds.workers, metavar="N", help="the same as --set workers=N")
    parser.add_argument("--ring-slots", type=kinds.ring_slots, metavar="N", help="messages that a lane holds")
    parser.add_argument("--slot-bytes", type=kinds.slot_bytes, metavar="SIZE", help="what a message takes in a lane")
    parser.add_argument(
        "--set", type=kinds.assignment, action="append", metavar="KEY=VALUE", help="keyword argument of the target"
    )
    parser.add_argument(
        "--ready-timeout",
        type=kinds.ready_timeout,
        metavar="TIME",
        help="for importing and calling the target, and for a tree to be up (default 30s); beyond it exit code 4",
    )
    parser.add_argument(
        "--strategy", type=kinds.strategy, metavar="NAME", help="one_for_one, one_for_all, rest_for_one"
    )
    parser.add_argument("--max-restarts", type=kinds.max_restarts, metavar="N", help="more of them end the supervisor")
    parser.add_argument(
        *("--max-seconds", "--within"),
        dest="within",
        type=kinds.within_seconds,
        metavar="TIME",
        help="within that time",
    )


def settings_of(arguments: argparse.Namespace, origins: dict[str, str] | None = None) -> dict[str, Any]:
    from shmrt.cli.config import read_settings
    from shmrt.cli.remote import name_of

    given = dict(vars(arguments))
    given["name"] = name_of(arguments)
    path = arguments.config
    if given["target"] is not None and given["target"].endswith(".toml"):
        if path is not None:
            raise CliError(f"{given['target']!r} and --config {path!r} are two files", hint="give one of them", code=2)
        path, given["target"] = given["target"], None
    names = {
        "target": "target",
        "workers": "workers",
        "input": "input",
        "runtime.drain_timeout": "drain_timeout",
        "runtime.ready_timeout": "ready_timeout",
        "runtime.name": "name",
        "supervisor.strategy": "strategy",
        "supervisor.max_restarts": "max_restarts",
        "supervisor.within": "within",
        "ring.slots": "ring_slots",
        "ring.slot_bytes": "slot_bytes",
        "chaos.kill": "chaos",
        "chaos.seed": "seed",
        "chaos.kill_rate": "kill_rate",
        "chaos.stop_rate": "stop_rate",
        "chaos.duration": "duration",
        "http.listen": "http",
    }
    flags: dict[str, Any] = {key: given.get(name) for key, name in names.items()}
    flags["set"] = given.get("set")
    if getattr(arguments, "runtime_dir", None):
        from shmrt.supervise.place import VARIABLE

        os.environ[VARIABLE] = os.path.abspath(arguments.runtime_dir)  # for the runtime, and for whatever it starts
    settings = read_settings(flags, path, origins)
    if settings["runtime.name"] is not None:
        from shmrt.supervise.place import check_runtime_name

        check_runtime_name(settings["runtime.name"])
    return settings


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
    from shmrt.cli.shaping import shaped
    from shmrt.cli.target import load, load_application

    if settings["application"] is not None:
        return load_application(settings["application"], keywords_of(settings), settings["runtime.ready_timeout"])
    if settings["target"] is None:
        raise CliError("no target given", hint="python -m shmrt run MODULE:OBJECT, or `target` in the config", code=2)
    return shaped(load(settings["target"], keywords_of(settings), settings["runtime.ready_timeout"]), settings)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.cli import blame, drive
    from shmrt.cli.probes import runtime_options

    settings = settings_of(arguments)
    target = load_target(settings)
    if target.tree is not None:
        from shmrt.cli.serve import serve

        if arguments.verify:
            hint = "a supervision tree has no answer to compare"
            raise CliError("--verify is for pipelines", hint=hint, code=2)
        if settings["chaos.kill"]:
            hint = "`python -m shmrt demo kvstore --chaos kill=20` shows a tree under fire"
            raise CliError("--chaos is for pipelines: it kills workers of their pools", hint=hint, code=2)
        return serve(target, settings, screen, lambda: settings_of(arguments))
    only_of_trees(settings)
    if arguments.verify and target.serial is not None:
        blame.check_callable("serial", target.serial, target.name)
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
            screen.line(safe_repr(item))

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
        name=settings["runtime.name"],
        options=runtime_options(settings),
    )
    equal = None
    if arguments.verify and outcome.signal is None:
        screen.note("serial run, to compare")
        mine = outputs.digest() if outputs is not None else answer_of(outcome.summary)
        equal = mine == serial_answer(target, arguments.on_error)
    partial = "drained, but not compared with a serial run: the source was not read to the end"
    conclude(outcome, equal, screen, seed, skipping=arguments.on_error == "skip")
    drive.finish(outcome, partial=partial if arguments.verify else None)
    return 1 if outcome.dead_letters or equal is False else 0


def only_of_trees(settings: dict[str, Any]) -> None:
    for key, flag in (("strategy", "--strategy"), ("max_restarts", "--max-restarts"), ("within", "--max-seconds")):
        if settings[f"supervisor.{key}"] is not None:
            hint = "a pipeline replaces its workers without limit"
            raise CliError(f"{flag} shapes a Supervisor, and the target is a Pipeline", hint=hint, code=2)


class Fingerprint:
    """One word for a sequence of outputs, in bounded memory."""

    def __init__(self) -> None:
        import hashlib

        self._hash = hashlib.blake2b(digest_size=16)

    def add(self, item: Any) -> None:
        self._hash.update(safe_repr(item).encode("utf-8", "backslashreplace") + b"\n")

    def digest(self) -> str:
        return self._hash.hexdigest()


def answer_of(summary: Any) -> Any:
    """What a consumer's summary is compared by: its `digest` if it has one."""
    return summary["digest"] if isinstance(summary, dict) and "digest" in summary else summary


def serial_answer(target: Any, on_error: str) -> Any:
    """The same work in this process: by the target's own `serial`, else by the pipeline's serial run."""
    from shmrt.cli import blame

    if target.serial is not None:
        work = functools.partial(target.serial, **target.arguments)
        return answer_of(blame.call("its 'serial'", target.name, work, lambda _error: False))

    def compute() -> Any:
        with target.pipeline.run_serial(on_error=on_error) as run:
            if target.consume is not None:
                return answer_of(target.consume(run))
            outputs = Fingerprint()
            for item in run:
                outputs.add(item)
            return outputs.digest()

    return blame.call("the serial run to compare with", target.name, compute, lambda _error: False)


def conclude(outcome: Any, equal: bool | None, screen: Screen, seed: int, *, skipping: bool) -> None:
    """Prints what the run came to."""
    from shmrt.cli import drive

    letters = [drive.evidence(letter) for letter in outcome.dead_letters]
    failed = int(getattr(outcome.report, "failed", 0))
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
            "failed": failed,
            "dead_letters": letters,
            "same_as_serial": equal,
            "drained": outcome.drained,
            "signal": outcome.signal.name if outcome.signal else None,
        }
        screen.document("shmrt.run/1", body)
    elif isinstance(outcome.summary, dict):
        for key, value in outcome.summary.items():
            screen.line(f"{safe_str(key)}: {safe_str(value)}")
    elif outcome.summary is not None:
        screen.line(safe_str(outcome.summary))
    lost = f"{failed:,} skipped" if skipping else f"{len(letters):,} given up"
    screen.note(
        f"{outcome.outputs:,} outputs in {outcome.seconds:.1f} s, {lost}, "
        f"{outcome.killed} workers killed, {restarts(outcome.report)} restarts"
    )
    if equal is not None:
        screen.note(f"same answer as the serial run: {'yes' if equal else 'NO'}", colour="green" if equal else "red")


def restarts(report: Any) -> int:
    stages = getattr(report, "stages", ()) or ()
    rows = stages.values() if isinstance(stages, dict) else stages
    return sum(int(getattr(stage, "restarts", 0)) for stage in rows)

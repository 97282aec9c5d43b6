"""`demo dedup`: the flagship example under fire, ending in one line."""

from __future__ import annotations

import argparse
import secrets
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.screen import CliError, Screen

DOES = "Find near-duplicate source files while workers are killed, and check the answer"
MORE = """dedup reads Python files (default: a sample of this installation), and clusters near-duplicates. Meanwhile
random workers get SIGKILL, and a few generated files kill every worker that touches them: those are given up
after three attempts and listed. At the end the answer is compared with a serial run's. A demo that TERM or Ctrl-C
stops has no whole answer to compare, so it ends by that signal."""

SAMPLE = 500


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("example", choices=("dedup",), metavar="dedup")
    parser.add_argument("--input", metavar="DIR", help="directory with Python files (default: this installation)")
    parser.add_argument("--all", action="store_true", help=f"every file, not a sample of {SAMPLE}")
    parser.add_argument("--workers", type=kinds.workers, metavar="N", help="default: the CPUs of this process")
    parser.add_argument(
        "--chaos", type=kinds.chaos, default=10.0, metavar="kill=RATE", help="deaths a second (default kill=10)"
    )
    parser.add_argument("--poison", type=int, choices=range(0, 21), default=3, metavar="N", help="0 to 20, default 3")
    parser.add_argument("--seed", type=kinds.seed, help="of sample and chaos (default: a new one, which is printed)")
    parser.add_argument("--drain-timeout", type=kinds.duration, default=30.0, metavar="TIME")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.cli import drive
    from shmrt.cli.run import restarts
    from shmrt.cli.target import load

    seed = arguments.seed if arguments.seed is not None else secrets.randbelow(2**31)
    keywords: dict[str, Any] = {
        "input": arguments.input,
        "workers": arguments.workers,
        "sample": None if arguments.all else SAMPLE,
        "seed": seed,
        "poison": arguments.poison,
    }
    target = load("shmrt.examples.dedup:pipeline", keywords, 60.0)
    screen.note(f"dedup: chaos kill={arguments.chaos:g}/s, {arguments.poison} poison files, seed {seed}")
    outcome = drive.drive(target, screen, drain_timeout=arguments.drain_timeout, kill=arguments.chaos, seed=seed)
    letters = [drive.evidence(letter) for letter in outcome.dead_letters]
    for letter in letters:
        letter["item"] = letter["item"] if isinstance(letter["item"], str) else letter["item"][0]  # its path
        screen.note(drive.evidence_line(letter), colour="yellow")
    drive.finish(outcome, partial="not every file was read, so there is no answer to check")
    summary = outcome.summary
    if summary is None:
        raise CliError("the run gave no answer")
    serial_progress = drive.Pacer(screen, summary["files"], "serial run, to compare")
    serial = target.serial(**target.arguments, progress=serial_progress)
    screen.clear()
    poisoned = len(letters) == arguments.poison and all(letter["signal"] for letter in letters)
    equal = serial["digest"] == summary["digest"] and poisoned
    verdict = {
        "files": summary["files"],
        "clusters": summary["clusters"],
        "mb_per_second": round(summary["bytes"] / 1e6 / outcome.seconds, 2),
        "seconds": round(outcome.seconds, 2),
        "killed": outcome.killed,
        "restarts": restarts(outcome.report),
        "poison": letters,
        "seed": seed,
        "digest": summary["digest"],
        "same_as_serial": equal,
    }
    if screen.json:
        screen.document("shmrt.demo/1", verdict)
    else:
        screen.line(
            f"dedup: {verdict['files']:,} files, {verdict['clusters']} clusters, {verdict['mb_per_second']} MB/s, "
            f"{verdict['killed']} workers killed, {verdict['restarts']} restarts, "
            f"{len(letters)} poison files given up; same answer as the serial run: {'yes' if equal else 'NO'}"
        )
    return 0 if equal else 1

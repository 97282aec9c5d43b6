"""`demo dedup`, `kvstore`, `logmine` and `tiles`: the flagship examples under fire, each ending in a verdict."""

from __future__ import annotations

import argparse
import itertools
import secrets
import signal
from collections.abc import Callable
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.screen import CliError, Screen

DOES = "Run an example while its processes are killed, and check that nothing was lost"
MORE = """dedup reads Python files (default: a sample of this installation), and clusters near-duplicates. Meanwhile
random workers get SIGKILL, and a few generated files kill every worker that touches them: those are given up
after three attempts and listed. At the end the answer is compared with a serial run's. A demo that TERM or Ctrl-C
stops has no whole answer to compare, so it ends by that signal.

kvstore runs a tree of servers, a pool and a service that crashes by itself, with clients that call them. With --chaos
random processes of the tree get SIGKILL. The verdict: every acknowledged write is there, and no answer was another
call's. Ctrl-C ends it early and in order; the verdict is then about what was done.

logmine mines text of this machine with the regular expressions of many tenants. One of them backtracks for ever, one
wants more memory than there is, one crashes its parser. Deadlines, breakers, bulkheads and quarantine keep them from
the others: the verdict says whether those got the answers of a serial run and kept their throughput, and tells what
happened in order. A busy machine gets up to a minute more to show it.

tiles describes pieces of pictures with numpy (which it needs), in 64 MiB of shared memory and without copying one.
First in calm; then its last worker is stopped for some seconds and killed a few times while it holds memory. The
verdict says whether the rings filled and memory stood still, nobody was taken for dead, no memory was given back before
its time, and the answer is a serial run's."""

SAMPLE = 500


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "example", choices=("dedup", "kvstore", "logmine", "tiles"), metavar="dedup|kvstore|logmine|tiles"
    )
    parser.add_argument("--workers", type=kinds.workers, metavar="N", help="of the pool or stage (default: the CPUs)")
    parser.add_argument(
        "--chaos", type=kinds.chaos, metavar="kill=RATE", help="deaths a second (default: dedup kill=10, others none)"
    )
    parser.add_argument("--seed", type=kinds.seed, help="of sample and chaos (default: a new one, which is printed)")
    parser.add_argument("--seconds", type=kinds.duration, metavar="TIME", help="default: kvstore 10s, logmine 15s")
    parser.add_argument(
        "--input", metavar="DIR", help="what dedup, logmine or tiles reads (default: files of this machine)"
    )
    parser.add_argument("--poison", type=int, choices=range(0, 21), default=3, metavar="N", help="0 to 20, default 3")
    dedup = parser.add_argument_group("dedup")
    dedup.add_argument("--all", action="store_true", help=f"every file, not a sample of {SAMPLE}")
    dedup.add_argument("--drain-timeout", type=kinds.duration, default=30.0, metavar="TIME")
    store = parser.add_argument_group("kvstore")
    store.add_argument("--clients", type=int, choices=range(1, 101), default=4, metavar="N", help="1 to 100, default 4")
    mine = parser.add_argument_group("logmine")
    mine.add_argument("--tenants", type=int, choices=range(4, 27), default=8, metavar="N", help="4 to 26, default 8")
    mine.add_argument("--least", type=share, default=0.9, metavar="SHARE", help="of their throughput, default 0.9")
    cut = parser.add_argument_group("tiles")
    cut.add_argument(
        "--tiles", type=int, choices=range(32, 100_001), default=400, metavar="N", help="32 to 100000, default 400"
    )
    cut.add_argument("--stop", type=kinds.duration, default=5.0, metavar="TIME", help="of the last worker, default 5s")
    cut.add_argument("--kills", type=int, choices=range(0, 10), default=3, metavar="N", help="0 to 9, default 3")
    cut.add_argument("--ring-slots", type=kinds.ring_slots, metavar="N", help="tiles that a stage holds, default 16")
    cut.add_argument("--shm-limit", type=kinds.shm_limit, metavar="SIZE", help="bytes of shared memory, default 64MiB")


def share(text: str) -> float:
    """A fraction, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 1, such as 0.9")
    return value


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    if arguments.seed is None:
        arguments.seed = secrets.randbelow(2**31)
    examples: dict[str, Callable[[argparse.Namespace, Screen], int]]
    examples = {"dedup": dedup, "kvstore": kvstore, "logmine": logmine, "tiles": tiles}
    return examples[arguments.example](arguments, screen)


def logmine(arguments: argparse.Namespace, screen: Screen) -> int:
    import os

    from shmrt.examples.logmine_run import run

    name = f"logmine-{os.getpid()}"
    kill = arguments.chaos or 0.0
    notes = [
        f"logmine: chaos kill={kill:g}/s, {arguments.tenants} tenants, seed {arguments.seed}",
        f"watch it: python -m shmrt --name {name} events -f",
    ]

    def go(stop: Any) -> Any:
        return run(
            15.0 if arguments.seconds is None else arguments.seconds,
            arguments.tenants,
            kill,
            arguments.seed,
            input=arguments.input,
            workers=arguments.workers,
            poison=arguments.poison,
            least=arguments.least,
            name=name,
            stop=stop,
            progress=every(1 if screen.terminal else 20, screen.progress),
        )

    verdict, number = staged(go, arguments, screen, "its tenants", notes)
    show(verdict, screen, holds=verdict.holds)
    if number is not None and not verdict.wrong:  # too early for the rest
        raise CliError("", code=128 + number, signal=number)
    return 0 if verdict.holds else 1


def tiles(arguments: argparse.Namespace, screen: Screen) -> int:
    import importlib.util
    import os

    if importlib.util.find_spec("numpy") is None:
        raise CliError("demo tiles needs numpy, and it is not installed", hint="pip install numpy", code=3)
    if arguments.chaos is not None:
        raise CliError(
            "--chaos is not for tiles",
            hint="it stops and kills its last worker itself: --stop and --kills say how",
            code=2,
        )
    from shmrt.examples.tiles_images import pictures
    from shmrt.examples.tiles_run import run

    if arguments.input is not None:
        try:
            pictures(arguments.input)
        except (OSError, ValueError) as error:
            raise CliError(str(error), code=2) from None
    name = f"tiles-{os.getpid()}"
    notes = [
        f"tiles: {arguments.tiles} tiles, {arguments.stop:g} s of stop, {arguments.kills} kills, seed {arguments.seed}",
        f"watch it: python -m shmrt --name {name} status",
    ]
    given = {"slots": arguments.ring_slots, "limit": arguments.shm_limit}

    def go(stop: Any) -> Any:
        return run(
            arguments.tiles,
            arguments.stop,
            arguments.kills,
            arguments.seed,
            input=arguments.input,
            workers=arguments.workers,
            name=name,
            stop=stop,
            progress=every(1 if screen.terminal else 20, screen.progress),
            **{key: value for key, value in given.items() if value is not None},
        )

    verdict, number = staged(go, arguments, screen, "its run", notes)
    if verdict is None:
        signum = number or signal.SIGTERM
        text = f"{signum.name}: stopped before the end, so there is no verdict"
        raise CliError(text, code=128 + signum, signal=signum)
    show(verdict, screen, holds=verdict.holds)
    return 0 if verdict.holds else 1


def staged(
    go: Callable[[Any], Any], arguments: argparse.Namespace, screen: Screen, whose: str, notes: list[str]
) -> tuple[Any, signal.Signals | None]:
    """The verdict of go(stop), and the signal that stopped it if one did."""
    import logging

    from shmrt.cli.drive import Signals, StopNow

    # Every death is logged, and here they are the point: counted in the verdict, told with -v.
    logging.getLogger("shmrt").addHandler(logging.StreamHandler() if screen.verbose else logging.NullHandler())
    with Signals(arguments.drain_timeout, screen) as signals:
        for note in notes:
            screen.note(note)
        try:
            return go(signals.stopping), signals.first
        except StopNow:
            number = signals.first or signal.SIGALRM
            text = f"{number.name}: stopped before {whose} had ended, so there is no verdict"
            raise CliError(text, code=128 + number, signal=number) from None


def show(verdict: Any, screen: Screen, *, holds: bool) -> None:
    screen.clear()
    if screen.json:
        screen.document("shmrt.demo/1", {**verdict._asdict(), "holds": holds})
    else:
        screen.line(verdict.text())


def kvstore(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.examples.kvstore import main

    kill = arguments.chaos or 0.0
    options: dict[str, Any] = {} if arguments.workers is None else {"workers": arguments.workers}
    notes = [f"kvstore: chaos kill={kill:g}/s, {arguments.clients} clients, seed {arguments.seed}"]

    def go(stop: Any) -> Any:
        return main(
            10.0 if arguments.seconds is None else arguments.seconds,
            arguments.clients,
            kill,
            arguments.seed,
            stop=stop,
            progress=every(1 if screen.terminal else 5, screen.progress),
            **options,
        )

    verdict, number = staged(go, arguments, screen, "its clients", notes)
    show(verdict, screen, holds=verdict.holds)
    if number is not None and verdict.holds:
        raise CliError("", code=128 + number, signal=number)
    return 0 if verdict.holds else 1


def every(count: int, show: Callable[[str], None]) -> Callable[[str], None]:
    """Shows every so many of the lines."""
    lines = itertools.count(1)
    return lambda text: show(text) if next(lines) % count == 0 else None


def dedup(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.cli import drive
    from shmrt.cli.run import restarts
    from shmrt.cli.target import load

    seed = arguments.seed
    kill = 10.0 if arguments.chaos is None else arguments.chaos
    keywords: dict[str, Any] = {
        "input": arguments.input,
        "workers": arguments.workers,
        "sample": None if arguments.all else SAMPLE,
        "seed": seed,
        "poison": arguments.poison,
    }
    target = load("shmrt.examples.dedup:pipeline", keywords, 60.0)
    screen.note(f"dedup: chaos kill={kill:g}/s, {arguments.poison} poison files, seed {seed}")
    outcome = drive.drive(target, screen, drain_timeout=arguments.drain_timeout, kill=kill, seed=seed)
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

"""`tune`: runs a pipeline on a sample with other settings, and says which are faster, and how sure that is."""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.screen import CliError, Screen

DOES = "Find faster settings for a pipeline, by trials on a sample of its input"
MORE = """TARGET is MODULE:OBJECT, a Pipeline with a source or a function that returns one, or a TOML file that has
`target`. `consume` beside the target is not called.

YOUR FUNCTIONS RUN ON THE SAMPLE MANY TIMES, a hundred or more. A target that writes to a database, sends mail or moves
files does so each time: tune a copy that does not.

The sample runs with the settings as they are, then with one change after another: workers, ring slots, slot bytes,
chunk (items of one task) and spin of each stage. Each change is compared with the best so far in pairs of trials, side
by side. What is best in the end is compared with the settings as they are, again in pairs; only that decides. Each
trial must give the same outputs. If no difference is seen, that is the answer, and the settings stay as they are.

stdout has the bottleneck, a table, a plot, the verdict and the settings as TOML, which --save also writes to a file
for `run --config`. -o json gives all of it as one document. Ctrl-C ends the trials: what is known so far is printed,
and the command ends by that signal."""

BUDGET_S = 60.0
SAMPLE_PARTS = 100
"""A trial that takes a hundredth of the budget leaves room for some ten changes and what confirms them."""
SAMPLE_LEAST_S, SAMPLE_MOST_S = 0.1, 5.0


def options(parser: argparse.ArgumentParser) -> None:
    from shmrt.cli.run import target_options

    target_options(parser)
    parser.add_argument("--budget", type=kinds.budget, metavar="TIME", help="for all trials together (default 60s)")
    parser.add_argument(
        "--sample",
        type=kinds.sample,
        metavar="N|TIME",
        help="inputs of a trial, or as many as take about that time (default: a hundredth of the budget)",
    )
    parser.add_argument(
        "--max-workers", type=kinds.workers, metavar="N", help="of one stage, at most (default: twice the CPUs)"
    )
    parser.add_argument("--save", metavar="FILE", help="write the recommended settings there, as TOML")
    parser.add_argument("--png", metavar="FILE", help="draw the plot there, too; needs matplotlib (the extra `plot`)")
    parser.add_argument(
        "--on-error",
        choices=("raise", "dead_letter", "skip"),
        default="raise",
        help="an item that fails ends the command (raise, the default), or is left out of every trial",
    )
    parser.add_argument("--drain-timeout", type=kinds.duration, metavar="TIME", help="after TERM or INT (default 30s)")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    import logging
    import sys

    from shmrt import _native
    from shmrt.cli.drive import Signals, StopNow
    from shmrt.cli.naming import start_named
    from shmrt.cli.probes import runtime_options
    from shmrt.cli.repeated import loader_of
    from shmrt.cli.run import settings_of
    from shmrt.cli.tune_plot import bar_mark, check_png, check_writable, write_png
    from shmrt.cli.tune_trials import Interrupted, Sample, Trials
    from shmrt.cli.tune_words import document, lines
    from shmrt.decide.tune_search import Tuner
    from shmrt.runtimes import Runtime

    check_png(arguments.png)
    check_writable(arguments.save, "--save")
    settings = settings_of(arguments)
    hint = "tune the pipelines that it runs, one by one"
    again = loader_of(settings, "tune", "a tree has no inputs to measure by", hint)
    budget = BUDGET_S if arguments.budget is None else arguments.budget
    logging.getLogger("shmrt").addHandler(logging.StreamHandler() if screen.verbose else logging.NullHandler())
    cpus = _native.usable_cpus()
    if cpus == 1:
        text = "there is one usable CPU: more workers only help stages that wait, and nothing is gained by spinning"
        screen.note(text, colour="yellow")
    busy = os.getloadavg()[0]
    if busy > cpus:
        text = f"the machine has other work to do (load {busy:.1f}, {cpus} CPUs), so small gains will not be seen"
        screen.note(text, colour="yellow")
    tuner: Tuner | None = None
    with Signals(settings["runtime.drain_timeout"], screen) as signals:
        seconds = min(max(budget / SAMPLE_PARTS, SAMPLE_LEAST_S), SAMPLE_MOST_S)
        sample = arguments.sample or (None, seconds)
        trials = Trials(again, signals, screen, sample=Sample(*sample), on_error=arguments.on_error)
        allowed = room_for(trials, settings)
        try:
            with contextlib.ExitStack() as stack:
                more = runtime_options(settings)
                make = lambda name: Runtime(name=name, **more)  # noqa: E731
                runtime = start_named(settings["runtime.name"], trials.name, make, screen)
                stack.enter_context(runtime)
                runtime.on_stop_command(signals.stop)
                began = time.monotonic()
                screen.progress(f"first runs of {trials.name}, to size the sample")
                trials.first()
                tuner = Tuner(
                    trials.names,
                    trials.start,
                    cpus=cpus,
                    budget_s=budget,
                    workers_most=arguments.max_workers,
                    allowed=allowed,
                )
                search(tuner, trials, began, budget, screen)
        except (Interrupted, StopNow):
            pass
    screen.clear()
    number = signals.first if not signals.ordered else None
    if tuner is None:
        text = "stopped before the first run had ended, so nothing is known"
        ended_by = signals.first
        code = 1 if ended_by is None else 128 + ended_by
        raise CliError(f"{ended_by.name}: {text}" if ended_by else text, code=code, signal=ended_by)
    asked = {"target": trials.name, "budget": budget, "cpus": cpus, "seconds": round(time.monotonic() - began, 2)}
    body = document(tuner.outcome(), trials, settings, asked, number.name if number else None)
    if screen.json:
        screen.document("shmrt.tune/1", body)
    else:
        for line in lines(body, screen.columns(), bar_mark(getattr(sys.stdout, "encoding", None))):
            screen.line(line)
    if arguments.save is not None:
        save(arguments.save, body["toml"])
        screen.note(f"saved: {arguments.save}; use it with `python -m shmrt run --config {arguments.save}`")
    if arguments.png is not None:
        write_png(arguments.png, body)
        screen.note(f"drawn: {arguments.png}")
    if number is not None:
        raise CliError("", code=128 + number, signal=number)
    return 0


def search(tuner: Any, trials: Any, began: float, budget: float, screen: Screen) -> None:
    """Trial after trial, until the tuner asks for no more."""
    shown, number = 0.0, 0
    while (ask := tuner.ask(time.monotonic() - began)) is not None:
        at = time.monotonic()
        number += 1
        if at - shown >= (0.1 if screen.terminal else 5.0):
            shown = at
            left = max(0.0, budget - (at - began))
            screen.progress(f"{left:.0f} s left, trial {number}, {ask.phase}: {ask.what}")
        trial = trials.run(ask.setting)
        tuner.tell(trial, time.monotonic() - at)


def room_for(trials: Any, settings: dict[str, Any]) -> Callable[[Any], str | None]:
    """Says why there is no room for a setting, None where there is. CliError if there is none for that as it is."""
    from shmrt.cli.check import free_bytes, stages_of
    from shmrt.cli.doctor import size
    from shmrt.cli.tune_trials import with_setting

    free = free_bytes()

    def needed(setting: Any) -> int:
        return sum(stage["bytes"] for stage in stages_of(with_setting(trials.described, setting)))

    most = needed(trials.start)
    if most > free:
        raise CliError(
            f"target {trials.name!r} needs {size(most)} of shared memory for its lanes, and {size(free)} are free",
            hint="fewer ring slots, smaller slot bytes or fewer workers: `python -m shmrt check` shows each stage",
            code=6,
        )

    def allowed(setting: Any) -> str | None:
        wanted = needed(setting)
        # What the items themselves take is not in it, so some room is left.
        return f"no room: needs {size(wanted)}" if wanted > free // 2 and wanted > most else None

    return allowed


def save(path: str, text: str) -> None:
    """Whole or not at all."""
    beside = f"{path}.new"
    try:
        with open(beside, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(beside, path)
    except OSError as error:
        raise CliError(f"--save {path!r}: {error.strerror}", hint="the settings are on stdout, too") from None

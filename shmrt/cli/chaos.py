"""`chaos`: the faults of shmrt's own tests against a user's pipeline, ending in a verdict."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import signal
from collections.abc import Callable
from types import ModuleType
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.screen import CliError, Screen

DOES = "Kill and stop the workers of a pipeline, and judge what comes out"
MORE = """TARGET is MODULE:OBJECT, a Pipeline with a source or a function that returns one, or a TOML file that has
`target`; nothing else: a supervision tree has no outputs to compare. `consume` beside the target is not called.

The target must allow it, since its workers are killed and its functions run many times: by `chaos_allowed = True` as
an attribute of the function or of the module, or by the file, for its own target, with
    [chaos]
    allowed = true
Else nothing of it is called, and the exit code is 2.

The pipeline runs once without faults; that says what is expected. Then it runs again and again with the same inputs,
for --duration, while random workers are killed (SIGKILL) and stopped (SIGSTOP, for 1 ms to 2 s, then SIGCONT). A run
that is on then ends without. Each input has a number, each output a checksum. The verdict counts outputs that are

  lost         expected, not there, and not accounted for by a dead letter
  duplicated   there more often than expected
  unexpected   nobody expected them
  corrupted    another value in the place of an expected one

and says how long it took until a replacement was ready and until the next output came (p50, p99). Faults hit workers of
this run's own runtime only. The same --seed means the same faults, as far as timing allows.

The exit code is 0 if the verdict holds and 1 if it is broken: any of the four, outputs out of order, a run that raised
or got stuck. Ctrl-C ends the faults and the source; the verdict is then about what was done, and the command ends by
that signal unless it is broken."""

KILL_RATE, STOP_RATE, DURATION_S = 10.0, 1.0, 10.0


def options(parser: argparse.ArgumentParser) -> None:
    from shmrt.cli.run import target_options

    target_options(parser)
    parser.add_argument(
        "--kill-rate", type=kinds.kill_rate, metavar="RATE", help="workers that get SIGKILL, a second (default 10)"
    )
    parser.add_argument(
        "--stop-rate", type=kinds.stop_rate, metavar="RATE", help="workers that get SIGSTOP, a second (default 1)"
    )
    parser.add_argument(
        "--root-rate",
        type=kinds.root_rate,
        default=0.0,
        metavar="RATE",
        help="SIGKILL to the root supervisor, a second (default 0), but at most 9 a minute: a runtime bears 10",
    )
    parser.add_argument(
        "--from-outside",
        action="store_true",
        help="kill as a stranger would, not by order of the root: each death then counts as an attempt of the item "
        "that was running, and one that is hit max_attempts times becomes a dead letter",
    )
    parser.add_argument("--duration", type=kinds.chaos_duration, metavar="TIME", help="of the faults (default 10s)")
    parser.add_argument(
        "--runs", type=kinds.runs, metavar="N", help="under faults, at most (default: as --duration allows)"
    )
    parser.add_argument(
        "--inputs",
        type=kinds.inputs,
        metavar="N",
        help="of each run, at most (default: as --duration allows)",
    )
    parser.add_argument("--unordered", action="store_true", help="run with ordered=False, and judge no order")
    parser.add_argument("--seed", type=kinds.seed, help="of the faults (default: a new one, which is printed)")
    parser.add_argument(
        "--patience",
        type=kinds.patience,
        metavar="TIME",
        help="stuck is what does not move for so long after the faults (default 60s, or 20 times the longest silence "
        "without faults)",
    )
    parser.add_argument("--drain-timeout", type=kinds.duration, metavar="TIME", help="after TERM or INT (default 30s)")


def is_allowed(by_file: bool | None, by_module: object, by_object: object) -> bool:
    """Somebody says yes, and nobody no. Only True itself is a yes.

    >>> is_allowed(True, None, None), is_allowed(None, True, None), is_allowed(None, None, None)
    (True, True, False)
    >>> is_allowed(True, False, None), is_allowed(False, True, True), is_allowed(None, "yes", None)
    (False, False, False)
    """
    said = [by_file, by_module, by_object]
    return any(one is True for one in said) and all(one is True or one is None for one in said)


def permission(name: str, by_file: bool | None) -> Callable[[ModuleType, Any], None]:
    """What `load` asks before it calls anything of the target."""

    def permit(module: ModuleType, found: Any) -> None:
        if is_allowed(by_file, getattr(module, "chaos_allowed", None), getattr(found, "chaos_allowed", None)):
            return
        where = getattr(module, "__file__", None) or module.__name__
        raise CliError(
            f"target {name!r} does not allow chaos: its workers would be killed, and its functions run many times",
            hint=f"if that may happen here, say `chaos_allowed = True` in {where} (or on the function), or name a TOML "
            f'file with target = "{name}" and, under [chaos], allowed = true; a False anywhere forbids it',
            code=2,
        )

    return permit


def loader(settings: dict[str, Any]) -> Callable[[], Any]:
    """Gives the target for each run, once it allows that."""
    from shmrt.cli.repeated import loader_of

    hint = "`python -m shmrt demo kvstore --chaos kill=20` shows a tree under fire"
    permit = permission(settings["target"], settings["chaos.allowed"])
    return loader_of(settings, "chaos", "a tree has no outputs to compare", hint, permit)


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    import logging

    from shmrt.cli.chaos_items import Tally
    from shmrt.cli.chaos_rounds import Found, Rounds
    from shmrt.cli.chaos_strike import Striker
    from shmrt.cli.chaos_words import document, letter_line, lines
    from shmrt.cli.drive import Signals, StopNow
    from shmrt.cli.naming import start_named
    from shmrt.cli.probes import runtime_options
    from shmrt.cli.run import settings_of
    from shmrt.runtimes import Runtime

    settings = settings_of(arguments)
    again = loader(settings)
    asked = asked_for(arguments, settings)
    # Every death is logged, and here they are the point: counted in the verdict, told with -v.
    logging.getLogger("shmrt").addHandler(logging.StreamHandler() if screen.verbose else logging.NullHandler())
    rates = {f"{kind}_rate": asked[f"{kind}_rate"] for kind in ("kill", "stop", "root")}
    screen.note(f"again: {asked['again']}")
    found = Found()
    with Signals(settings["runtime.drain_timeout"], screen) as signals:
        striker = Striker(rates, asked["seed"], asked["duration"], outside=arguments.from_outside)
        try:
            with contextlib.ExitStack() as stack:
                more = runtime_options(settings) | {"on_event": striker.hear}
                runtime = start_named(
                    settings["runtime.name"], asked["target"], lambda name: Runtime(name=name, **more), screen
                )
                stack.enter_context(runtime)
                striker.attach(runtime)
                stack.enter_context(striker)
                runtime.on_stop_command(signals.stop)
                rounds = Rounds(
                    again,
                    striker,
                    signals,
                    screen,
                    stack.enter_context(Tally()),
                    duration=asked["duration"],
                    most=arguments.inputs,
                    runs=arguments.runs,
                    ordered=not arguments.unordered,
                    patience=arguments.patience,
                )
                found = rounds.found
                rounds.go()
        except StopNow:
            pass  # in the little that is not inside a run
    screen.clear()
    number = signals.first if not signals.ordered else None
    if not found.rounds:
        text = "stopped before the run without faults had ended, so there is no verdict"
        number = signals.first or signal.SIGTERM
        raise CliError(f"{number.name}: {text}", code=128 + number, signal=number)
    body = document(found, striker, asked, number.name if number else None)
    show(body, screen, lines, letter_line)
    if number is not None and found.holds:
        raise CliError("", code=128 + number, signal=number)
    return 0 if found.holds else 1


def asked_for(arguments: argparse.Namespace, settings: dict[str, Any]) -> dict[str, Any]:
    """What the faults are, and the command that asks for them again."""

    def given(key: str, default: float) -> float:
        return default if settings[key] is None else float(settings[key])

    asked: dict[str, Any] = {
        "target": settings["target"],
        "seed": secrets.randbelow(2**31) if settings["chaos.seed"] is None else settings["chaos.seed"],
        "kill_rate": given("chaos.kill_rate", KILL_RATE),
        "stop_rate": given("chaos.stop_rate", STOP_RATE),
        "root_rate": arguments.root_rate,
        "duration": given("chaos.duration", DURATION_S),
        "from_outside": arguments.from_outside,
        "ordered": not arguments.unordered,
    }
    return asked | {"again": command(arguments, asked)}


def command(arguments: argparse.Namespace, asked: dict[str, Any]) -> str:
    """What to type to have the same again."""
    import json
    import shlex

    words = ["python", "-m", "shmrt", "chaos", arguments.target or asked["target"]]
    for key in ("config", "input", "workers", "ring_slots", "slot_bytes"):
        if getattr(arguments, key) is not None:
            words += [f"--{key.replace('_', '-')}", str(getattr(arguments, key))]
    for key, value in arguments.set or ():
        as_it_is = isinstance(value, str) and kinds.literal(value) == value
        words += ["--set", f"{key}={value if as_it_is else json.dumps(value)}"]
    words += ["--seed", str(asked["seed"])]
    for key in ("kill_rate", "stop_rate", "root_rate"):
        if key != "root_rate" or asked[key]:
            words += [f"--{key.replace('_', '-')}", f"{asked[key]:g}"]
    words += ["--duration", f"{asked['duration']:g}s"]
    for key in ("inputs", "runs"):
        if getattr(arguments, key) is not None:
            words += [f"--{key}", str(getattr(arguments, key))]
    words += ["--from-outside"] * arguments.from_outside + ["--unordered"] * arguments.unordered
    return shlex.join(words)


def show(
    body: dict[str, Any], screen: Screen, lines: Callable[[dict[str, Any]], Any], letter_line: Callable[[Any], str]
) -> None:
    """The verdict to stdout, its evidence to stderr."""
    for letter in body["dead_letters"]:
        screen.note(letter_line(letter), colour="yellow")
    faults = body["faults"]
    if not (faults["killed"] or faults["stopped"] or faults["roots_killed"]):
        screen.note(
            "no fault hit anybody, so this proves nothing: a longer --duration, or higher rates", colour="yellow"
        )
    if screen.json:
        screen.document("shmrt.chaos/1", body)
        return
    for line in lines(body):
        screen.line(line)

"""Parses the command line, runs one verb, and turns every ending into a documented exit code.

    python -m shmrt [--name NAME] [--runtime-dir DIR] [-o text|wide|json|jsonl|name] [--no-color] [-q | -v] VERB ...

A verb is a module of this package, or an object in one, with `DOES` (one line), `options(parser)` and
`run(arguments, screen)`. Only the module of the verb that was asked for is imported, so `version` costs little more
than the interpreter.

| exit code | meaning                                                                       |
|-----------|-------------------------------------------------------------------------------|
| 0         | done; `run`: drained cleanly                                                  |
| 1         | failed; `run`: something failed or was given up, or the answer is wrong       |
|           | `health`: anything but healthy and degraded; `chaos`: the verdict is broken   |
| 2         | usage or configuration                                                        |
| 3         | no such runtime                                                               |
| 4         | timed out waiting                                                             |
| 5         | restart limit exceeded                                                        |
| 6         | no space or limit (shared memory, descriptors, processes)                     |
| 7         | shared memory corrupt or of an incompatible layout                            |
| 70        | a mistake in shmrt; a report file says more                                   |
| 128 + n   | ended by signal n; `run`: a drain that a second signal or the limit cut short |
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn, Protocol

from shmrt.cli.screen import CliError, Screen, claim_stdout, flush, guard_streams, silence_stdout, write_stdout

__all__ = ["VERBS", "main"]

VERBS = {
    "run": "shmrt.cli.run",
    "check": "shmrt.cli.check",
    "doctor": "shmrt.cli.doctor",
    "ls": "shmrt.cli.ls",
    "status": "shmrt.cli.look:status",
    "tree": "shmrt.cli.look:tree",
    "health": "shmrt.cli.health",
    "inspect": "shmrt.cli.inspecting",
    "events": "shmrt.cli.events",
    "stop": "shmrt.cli.steer:stop",
    "restart": "shmrt.cli.steer:restart",
    "scale": "shmrt.cli.steer:scale",
    "pause": "shmrt.cli.steer:pause",
    "resume": "shmrt.cli.steer:resume",
    "drain": "shmrt.cli.steer:drain",
    "reload": "shmrt.cli.steer:reload",
    "breaker": "shmrt.cli.breaker",
    "clean": "shmrt.cli.clean",
    "config": "shmrt.cli.configuration",
    "bench": "shmrt.cli.bench",
    "tune": "shmrt.cli.tune",
    "chaos": "shmrt.cli.chaos",
    "demo": "shmrt.cli.demo",
    "version": "shmrt.cli.version",
}
FORMATS = ("text", "wide", "json", "jsonl", "name")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CliError(message, hint=f"see `{self.prog} --help`", code=2)


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean X?` or nothing."""
    from difflib import get_close_matches

    close = get_close_matches(word, known, 1, 0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def _common(*, top: bool) -> argparse.ArgumentParser:
    """Flags that are understood before and after the verb; the later one wins."""
    parser = _Parser(add_help=False, allow_abbrev=False)

    def default(value: object) -> object:
        return value if top else argparse.SUPPRESS

    parser.add_argument(
        "--name",
        default=default(None),
        metavar="NAME",
        help="the runtime meant (default: SHMRT_NAME, else the only one)",
    )
    parser.add_argument(
        "--runtime-dir", default=default(None), metavar="DIR", help="where runtimes have their directories"
    )
    parser.add_argument(
        "-o", "--output", choices=FORMATS, default=default("text"), metavar="FORMAT", help=", ".join(FORMATS)
    )
    parser.add_argument("--no-color", action="store_true", default=default(False), help="no colour, even on a terminal")
    parser.add_argument("-q", "--quiet", action="store_true", default=default(False), help="no progress, no notes")
    parser.add_argument("-v", "--verbose", action="store_true", default=default(False), help="say more")
    return parser


class Verb(Protocol):
    """What a verb's module, or object, has."""

    DOES: str

    def options(self, parser: argparse.ArgumentParser) -> None: ...
    def run(self, arguments: argparse.Namespace, screen: Screen) -> int: ...


def _verb_of(word: str) -> Verb:
    path, _, attribute = VERBS[word].partition(":")
    module: Any = import_module(path)
    verb: Verb = getattr(module, attribute) if attribute else module
    return verb


def _top_help() -> str:
    lines = ["verbs:"]
    lines += [f"  {verb:<10}{_verb_of(verb).DOES}" for verb in VERBS]
    return "\n".join([*lines, "", "`python -m shmrt VERB --help` says more; docs: README.md"])


def _parse(argv: list[str]) -> tuple[argparse.Namespace, Verb | None]:
    top = _Parser(
        prog="python -m shmrt",
        parents=[_common(top=True)],
        add_help=False,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python -m shmrt [--name NAME] [--runtime-dir DIR] [-o FORMAT] [--no-color] [-q | -v] VERB ...",
    )
    top.add_argument("-h", "--help", action="store_true", help="show this and exit")
    top.add_argument("--version", action="store_true", help="as the verb `version`")
    first = next((at for at, word in enumerate(argv) if not word.startswith("-") and not _is_value(argv, at)), None)
    before, rest = (argv, []) if first is None else (argv[:first], argv[first:])
    arguments, unknown = top.parse_known_args(before)
    _refuse(top, unknown)
    if arguments.help:
        top.epilog = _top_help()
        write_stdout(top.format_help())
        return arguments, None
    if arguments.version:
        rest = ["version"]
    if not rest:
        raise CliError("no verb given", hint=f"one of {', '.join(VERBS)}; see `python -m shmrt --help`", code=2)
    verb = rest[0]
    if verb not in VERBS:
        raise CliError(f"unknown verb {verb!r}{nearest(verb, list(VERBS))}", hint=f"one of {', '.join(VERBS)}", code=2)
    module = _verb_of(verb)
    parser = _Parser(
        prog=f"python -m shmrt {verb}",
        parents=[_common(top=False)],
        description=module.DOES,
        epilog=getattr(module, "MORE", None),
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.options(parser)
    arguments, unknown = parser.parse_known_args(rest[1:], arguments)
    _refuse(parser, unknown)
    return arguments, module


def _is_value(argv: list[str], at: int) -> bool:
    return at > 0 and argv[at - 1] in ("-o", "--output", "--name", "--runtime-dir")


def _refuse(parser: argparse.ArgumentParser, unknown: list[str]) -> None:
    if not unknown:
        return
    word = unknown[0].split("=", 1)[0]
    if not word.startswith("-"):
        raise CliError(f"unexpected argument {word!r}", hint=f"see `{parser.prog} --help`", code=2)
    flags = [flag for action in parser._actions for flag in action.option_strings]
    raise CliError(f"unknown flag {word!r}{nearest(word, flags)}", hint=f"see `{parser.prog} --help`", code=2)


def _format_of(argv: list[str]) -> str:
    """The output format as far as it can be told when the command line itself is wrong."""
    for at, word in enumerate(argv):
        value = argv[at + 1] if word in ("-o", "--output") and at + 1 < len(argv) else word.partition("=")[2]
        if word.startswith(("-o", "--output")) and (value in ("json", "jsonl") or word in ("-ojson", "-ojsonl")):
            return "json"
    return "text"


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code. A signal that ended the work is raised again."""
    words = list(sys.argv[1:] if argv is None else argv)
    code = _main(words)
    return min(code, 1) if _is_probe(words) else code


def _is_probe(words: list[str]) -> bool:
    """Whether the verb is `health`, whose exit code is 0 or 1: container engines keep the others for themselves."""
    return next((w for at, w in enumerate(words) if not w.startswith("-") and not _is_value(words, at)), "") == "health"


def _main(words: list[str]) -> int:
    guard_streams()
    screen = Screen(format=_format_of(words))
    try:
        try:
            arguments, module = _parse(words)
            code = 0
            if module is not None:
                screen = Screen.of(arguments)
                if screen.json:
                    claim_stdout()
                code = int(module.run(arguments, screen))
            write_stdout()
            return code
        except SystemExit as stop:  # argparse after --help
            write_stdout()
            return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        silence_stdout()
        return _die_of(signal.SIGPIPE)
    except KeyboardInterrupt:
        silence_stdout()
        return _die_of(signal.SIGINT)
    except CliError as error:
        screen.error(error)
        if error.signal is not None:
            return _die_of(error.signal)
        return _flushed(error.code)
    except Exception as error:
        return _flushed(_explain(error, screen))


def _flushed(code: int) -> int:
    """A second failure of a stream that already failed is no news."""
    try:
        flush()
    except OSError:
        silence_stdout()
    return code


def _die_of(number: signal.Signals) -> int:
    """So that a shell sees what ended the command, and a script is ended by Ctrl-C too."""
    try:
        sys.stderr.flush()
        flush()
    except OSError:
        silence_stdout()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # only when the signal is blocked


_LIMITS = {errno.ENOSPC, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.EDQUOT}


def _explain(error: Exception, screen: Screen) -> int:
    """Exit codes of errors that are not the command line's own; anything unforeseen becomes a report file."""
    from shmrt import errors

    hint = getattr(error, "hint", None)
    known: list[tuple[type[Exception], int]] = [
        (errors.ConfigError, 2),
        (errors.SpecError, 2),
        (errors.SegmentError, 6 if getattr(error, "needed", None) is not None else 7),
        (errors.RuntimeDown, 5),
        (errors.PoolBroken, 1),
        (errors.ShmrtError, 1),
    ]
    for kind, code in known:
        if isinstance(error, kind):
            screen.error(CliError(f"{type(error).__name__}: {error}", hint=hint, code=code))
            return code
    if isinstance(error, OSError) and error.errno in _LIMITS:
        screen.error(CliError(f"{error.strerror}: {error}", hint="`python -m shmrt doctor` shows the limits", code=6))
        return 6
    from shmrt.cli.crash import write_report

    path = write_report(error)
    where = f"report: {path}" if path else "no report file could be written; run again with PYTHONDEVMODE=1"
    screen.error(CliError(f"internal error: {type(error).__name__}: {error}", hint=where, code=70))
    return 70

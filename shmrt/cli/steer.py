"""`stop`, `restart`, `scale`, `pause`, `resume`, `drain`, `reload`: commands, done in the order in which they come.

Without --wait a command returns when its orders are given, with it when they have come about, at most --timeout later
(exit code 4; the command goes on). What is so already is said to be, and is no failure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from shmrt.cli import options as kinds
from shmrt.cli.look import Verb
from shmrt.cli.remote import Remote, the_runtime
from shmrt.cli.screen import CliError, Screen

__all__ = ["drain", "pause", "reload", "restart", "resume", "scale", "stop"]

WAIT_S = 60.0


def _waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--wait", action="store_true", help="until it has come about")
    parser.add_argument("--timeout", type=kinds.duration, metavar="TIME", help="of --wait (default 60s): exit code 4")


def _pool_and_waiting(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", help="its name; `status` lists them")
    _waiting(parser)


def _give(verb: str, args: dict[str, Any], arguments: argparse.Namespace, screen: Screen, said: str) -> int:
    """Sends the command, and says what came of it."""
    if arguments.timeout is not None and not arguments.wait:
        raise CliError("--timeout is the time of --wait", hint="add --wait, or leave --timeout out", code=2)
    timeout = WAIT_S if arguments.timeout is None else arguments.timeout
    found = the_runtime(arguments)
    with Remote(found) as remote:
        answer = remote.command(verb, args, wait=arguments.wait, timeout=timeout)
    answer.pop("ok", None)
    if screen.json:
        screen.document(f"shmrt.{verb}/1", {"runtime": found.name, **answer})
    elif answer.get("already"):
        screen.line(f"{found.name}: {said}: already")
    elif answer.get("state") == "waiting":
        screen.line(f"{found.name}: {said}: begun, waits for {answer['waits_for']}")
    else:
        screen.line(f"{found.name}: {said}: done")
    return 0


def _pool_command(verb: str, words: str) -> Callable[[argparse.Namespace, Screen], int]:
    def run(arguments: argparse.Namespace, screen: Screen) -> int:
        said = words.format(pool=arguments.pool)
        return _give(verb, {"pool": arguments.pool}, arguments, screen, said)

    return run


def _stop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--now", action="store_true", help="do not wait for what was accepted")
    _waiting(parser)


def _stop(arguments: argparse.Namespace, screen: Screen) -> int:
    said = "stop now" if arguments.now else "stop"
    return _give("stop", {"now": arguments.now}, arguments, screen, said)


def _restart_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", nargs="?", metavar="W|POOL", help="a child of the tree, a pool, or POOL/0; else all")
    parser.add_argument(
        "--rolling", action="store_true", help="of a pool: one worker after the other, none idle before"
    )
    _waiting(parser)


def _restart(arguments: argparse.Namespace, screen: Screen) -> int:
    args = {"target": arguments.target, "rolling": arguments.rolling}
    said = "restart " + ("everything" if arguments.target is None else arguments.target)
    return _give("restart", args, arguments, screen, said)


def _scale_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", metavar="POOL", help="its name; `status` lists them")
    parser.add_argument("workers", type=kinds.workers, metavar="N", help="how many workers it is to have")
    _waiting(parser)


def _scale(arguments: argparse.Namespace, screen: Screen) -> int:
    args = {"pool": arguments.pool, "workers": arguments.workers}
    return _give("scale", args, arguments, screen, f"{arguments.pool} to {arguments.workers} workers")


def _drain_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pool", nargs="?", metavar="POOL", help="its name (default: every pool)")
    _waiting(parser)


def _drain(arguments: argparse.Namespace, screen: Screen) -> int:
    return _give("drain", {"pool": arguments.pool}, arguments, screen, f"drain {arguments.pool or 'every pool'}")


def _reload(arguments: argparse.Namespace, screen: Screen) -> int:
    return _give("reload", {}, arguments, screen, "reload")


stop = Verb(
    "Stop a runtime: what was accepted is done first, unless --now",
    _stop_options,
    _stop,
    "As TERM to its program: pools have its drain_timeout, then the tree ends in reverse order of its start.",
)
restart = Verb(
    "Restart a child, a worker, a pool, or everything; costs nothing of a restart budget",
    _restart_options,
    _restart,
    "A child is ended in order, then started. A task in the hand of a worker that is ended counts no attempt;\n"
    "--rolling lets it finish: the replacement is ready first.",
)
scale = Verb("Give a pool another number of workers", _scale_options, _scale)
pause = Verb(
    "Let a pool accept, but begin nothing",
    _pool_and_waiting,
    _pool_command("pause", "pause {pool}"),
    "What runs goes on. `resume` ends it.",
)
resume = Verb("Let a paused pool go on", _pool_and_waiting, _pool_command("resume", "resume {pool}"))
drain = Verb(
    "Wait until a pool has nothing left to do",
    _drain_options,
    _drain,
    "Nothing is refused meanwhile: if its program goes on submitting, this goes on waiting.",
)
reload = Verb(
    "Read the configuration again and restart what it changed; an invalid one changes nothing",
    _waiting,
    _reload,
    "As HUP to `python -m shmrt run`.",
)

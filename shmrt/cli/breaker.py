"""`breaker open|close|auto NAME`: a circuit breaker by hand; `breaker ls`: all of a runtime's."""

from __future__ import annotations

import argparse

from shmrt.cli.look import guard_text
from shmrt.cli.remote import Remote, the_runtime
from shmrt.cli.screen import CliError, Screen

DOES = "Open or close a circuit breaker by hand, or let it decide again"
MORE = """open NAME    refuses every call until `auto`
close NAME   lets every call pass and looks at no result until `auto`
auto NAME    closed, and its own master again
ls           the breakers of the runtime

A breaker is known once a process of the runtime has used it."""

_DOES = ("open", "close", "auto", "ls")


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("do", metavar="open|close|auto|ls", help="what to do")
    parser.add_argument("breaker", metavar="NAME", nargs="?", help="which breaker")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    do, name = arguments.do, arguments.breaker
    if do not in _DOES:
        from shmrt.cli.main import nearest

        raise CliError(f"breaker knows no {do!r}{nearest(do, _DOES)}", hint="python -m shmrt breaker ls", code=2)
    if (name is None) != (do == "ls"):
        text = "breaker ls takes no NAME" if name is not None else f"breaker {do} needs a NAME"
        raise CliError(text, hint="`breaker ls` lists them", code=2)
    found = the_runtime(arguments)
    with Remote(found) as remote:
        body = remote.ask("status") if do == "ls" else remote.ask("breaker", name=name, to=do)
    if do == "ls":
        rows = [row for row in body["guards"] if row["kind"] == "breaker"]
        if screen.json:
            screen.document("shmrt.breakers/1", {"runtime": found.name, "breakers": rows})
        for row in () if screen.json else rows:
            screen.line(row["name"] if screen.format == "name" else guard_text(row, screen).partition(" ")[2])
        if not rows and not screen.json and screen.format != "name":
            screen.line("no breakers")
        return 0
    body.pop("ok", None)
    if screen.json:
        screen.document("shmrt.breaker/1", {"runtime": found.name, **body})
    elif body["already"]:
        screen.line(f"{found.name}: breaker {name} is {body['state']}: already")
    else:
        screen.line(f"{found.name}: breaker {name} is {body['state']} now, it was {body['was']}")
    return 0

"""`ls`: the named runtimes of this user, the dead ones too."""

from __future__ import annotations

import argparse
import os
import time
from typing import TYPE_CHECKING, Any

from shmrt.cli.remote import Remote, place_of
from shmrt.cli.screen import CliError, Screen
from shmrt.cli.tables import duration_text, table

if TYPE_CHECKING:
    from shmrt.supervise.directory import Found

DOES = "List the named runtimes of this user; what a crash left behind is marked stale"
MORE = """Runtimes without a name (the default one of a program that uses Pool) have no directory and are not listed.

A stale one has no living owner; its name is free, and `clean` removes its directory."""


def options(parser: argparse.ArgumentParser) -> None:
    del parser


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.supervise.directory import find

    place = place_of(arguments)
    rows = [row_of(found) for found in find(place)]
    if screen.format == "jsonl":
        for row in rows:
            screen.document("shmrt.ls/1", row)
    elif screen.json:
        screen.document("shmrt.ls/1", {"place": place, "runtimes": rows})
    elif screen.format == "name":
        for row in rows:
            screen.line(row["name"])
    elif rows:
        wide = screen.format == "wide"
        head = ["NAME", "STATE", "PROGRAM", "ROOT", "UP", *(["DIRECTORY"] if wide else [])]
        cells = [
            [
                row["name"],
                row["state"],
                str(row["program"] or "-"),
                str(row["pid"] or "-"),
                duration_text(row["seconds"]),
                *([row["path"]] if wide else []),
            ]
            for row in rows
        ]
        for line in table(head, cells, None if wide else screen.columns()):
            screen.line(line)
        for row in rows:
            if row["next"]:
                screen.note(f"{row['name']}: {row['why']} -> {row['next']}")
    else:
        screen.note(f"no runtime (looked in {place}); `python -m shmrt run TARGET --name NAME` starts one")
    return 0


def row_of(found: Found) -> dict[str, Any]:
    """What its directory says, and if it lives what its root says, which has a second for it."""
    state, why, following = found.state, found.why, None
    if state == "running":
        state, why = _asked(found)
    elif state == "stale":
        following = "python -m shmrt clean"
    elif state == "foreign":
        following = "run `python -m shmrt ls` in the container that it belongs to"
    if state == "silent":
        following = f"python -m shmrt --name {found.name} status"
    lives = found.state in ("running", "foreign", "ending")
    try:
        seconds = max(0.0, time.time() - os.stat(os.path.join(found.path, "control")).st_mtime) if lives else None
    except OSError:
        seconds = None
    return {
        "name": found.name,
        "state": state,
        "pid": found.root,
        "program": found.program,
        "seconds": None if seconds is None else round(seconds, 1),
        "path": found.path,
        "why": why,
        "next": following,
    }


def _asked(found: Found) -> tuple[str, str]:
    try:
        with Remote(found) as remote:
            remote.send("status", {})
            answer = remote.receive(1.0)
    except (OSError, EOFError, CliError):
        return "silent", "its root does not listen"
    if answer is None:
        return "silent", "its root did not answer for 1 s"
    return str(answer.get("state", "running")), found.why

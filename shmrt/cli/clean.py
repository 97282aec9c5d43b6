"""`clean`: removes what dead runtimes left behind."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from shmrt.cli.remote import name_of, place_of
from shmrt.cli.screen import CliError, Screen

DOES = "Remove the directories of runtimes whose owners are provably dead"
MORE = """Dead is proved by boot id, pid and start time. --all also removes those of another pid namespace, of which
nobody can tell here; never one whose owner lives. Without a terminal it only says what it would do, unless --yes."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument("--yes", action="store_true", help="remove also where stdout is not a terminal")
    parser.add_argument("--all", action="store_true", help="also what belongs to another pid namespace")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.supervise.directory import find, remove_stale

    if arguments.dry_run and arguments.yes:
        raise CliError("--dry-run and --yes contradict each other", hint="give one of them", code=2)
    place, name = place_of(arguments), name_of(arguments)
    dry = arguments.dry_run or not (arguments.yes or sys.stdout.isatty())
    rows: list[dict[str, Any]] = []
    for found in find(place):
        if name is not None and found.name != name:
            continue
        if found.state == "stale" or (arguments.all and found.state == "foreign"):
            try:
                removed = not dry and remove_stale(found.name, place, foreign=arguments.all)
            except OSError as error:
                hint = "what is in it is not of a runtime; look, and remove it by hand"
                raise CliError(f"{found.path} cannot be removed: {error.strerror}", hint=hint) from None
            rows.append({"name": found.name, "path": found.path, "why": found.why, "removed": removed})
        elif name is not None:
            raise CliError(f"runtime {name!r} is not stale: {found.why}", hint="`stop` ends it", code=1)
    if screen.json:
        screen.document("shmrt.clean/1", {"place": place, "dry_run": dry, "directories": rows})
        return 0
    for row in rows:
        verb = "removed" if row["removed"] else "would remove" if dry else "has just been taken over:"
        screen.line(row["name"] if screen.format == "name" else f"{verb} {row['path']}: {row['why']}")
    if not rows:
        screen.note(f"nothing to remove in {place}")
    elif dry and not arguments.dry_run:
        screen.note("nothing was removed, since stdout is not a terminal; add --yes")
    return 0

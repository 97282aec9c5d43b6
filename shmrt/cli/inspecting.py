"""`inspect`: everything about one child, worker, pool or ring."""

from __future__ import annotations

import argparse
from typing import Any

from shmrt.cli.plain import json_text
from shmrt.cli.remote import Remote, the_runtime, unavailable
from shmrt.cli.screen import CliError, Screen

DOES = "Show everything about one worker, child, pool or named ring"
MORE = """worker W   a child of the tree by its path or id, a pool by its name, one of its workers as POOL/0, or a pid
ring R     a ring made by Ring.create(name=R); no runtime is needed

`tree -o name` lists what can be named."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", metavar="worker|ring", help="what it is")
    parser.add_argument("which", metavar="NAME", nargs="?", help="which one")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    kind, which = arguments.kind, arguments.which
    if kind == "task":
        raise unavailable("inspect task")
    if kind not in ("worker", "ring"):
        from shmrt.cli.main import nearest

        hint = f"python -m shmrt inspect worker {kind if which is None else which}"
        raise CliError(f"inspect knows no {kind!r}{nearest(kind, ('worker', 'ring'))}", hint=hint, code=2)
    if which is None:
        hint = "`tree -o name` lists what can be named" if kind == "worker" else "the name that Ring.create was given"
        raise CliError(f"inspect {kind} needs a NAME", hint=hint, code=2)
    if kind == "ring":
        body = ring_body(which)
    else:
        with Remote(the_runtime(arguments)) as remote:
            body = remote.ask("inspect", worker=which)
        body.pop("ok", None)
    if screen.json:
        screen.document("shmrt.inspect/1", body)
        return 0
    for line in lines_of(body):
        screen.line(line)
    return 0


def ring_body(name: str) -> dict[str, Any]:
    from shmrt.errors import NotFound
    from shmrt.memory.ring import Ring

    try:
        ring = Ring.attach(name, pickle=False)
    except NotFound as error:
        raise CliError(str(error), hint="rings without a name belong to their processes alone", code=2) from None
    except (ValueError, TypeError) as error:
        raise CliError(str(error), code=2) from None
    stats = ring.stats()
    return {"schema": "shmrt.inspect/1", "what": "ring", "name": name, "capacity": ring.capacity, "stats": stats}


def lines_of(body: dict[str, Any]) -> list[str]:
    """One fact a line; what is nested stands below its key, indented."""
    lines: list[str] = []
    for key, value in body.items():
        if key == "schema" or value is None or value == []:
            continue
        if isinstance(value, dict):
            lines.append(f"{key}:")
            lines += [f"  {line}" for line in lines_of(value)]
        elif isinstance(value, list) and all(isinstance(part, dict) for part in value):
            lines.append(f"{key}:")
            for part in value:
                name = part.get("path") or part.get("id")
                lines.append(f"  {name}  {part.get('state', '')}" + (f"  pid {part['pid']}" if part.get("pid") else ""))
        elif isinstance(value, str) and "\n" in value.strip():
            lines.append(f"{key}:")
            lines += [f"  {line}" for line in value.rstrip().splitlines()]
        else:
            lines.append(f"{key}: {value if isinstance(value, str) else json_text(value)}")
    return lines

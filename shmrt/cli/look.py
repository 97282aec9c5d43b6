"""`status` and `tree`: what a runtime is doing, asked of its root, which does not ask its workers."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from shmrt.cli.options import duration
from shmrt.cli.remote import Remote, the_runtime
from shmrt.cli.screen import Screen
from shmrt.cli.tables import branches, duration_text, fit, table

__all__ = ["Verb", "status", "tree"]

_COLOURS = {
    **dict.fromkeys(("running", "busy", "idle", "ready", "closed"), "green"),
    **dict.fromkeys(
        ("half_open", "disabled", "degraded", "restarting", "starting", "paused", "backoff", "stopping", "stopped"),
        "yellow",
    ),
    **dict.fromkeys(("dead", "broken", "failed", "open", "forced_open"), "red"),
}


class Verb:
    """One of several verbs of a module."""

    def __init__(
        self,
        does: str,
        options: Callable[[argparse.ArgumentParser], None],
        run: Callable[[argparse.Namespace, Screen], int],
        more: str | None = None,
    ) -> None:
        self.DOES = does
        self.MORE = more
        self.options = options
        self.run = run


def painted(screen: Screen, state: str, width: int = 0) -> str:
    text = state.ljust(width)
    colour = _COLOURS.get(state)
    return screen.paint(text, colour, sys.stdout) if colour else text


# ---- status ---------------------------------------------------------------------------------------------------------
def _status_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--check", action="store_true", help="exit code 1 unless it runs and nothing is wrong")
    parser.add_argument("--allow-starting", action="store_true", help="with --check: starting is good enough")
    parser.add_argument("--watch", type=duration, metavar="TIME", help="again and again, at least 200ms apart")


def _status(arguments: argparse.Namespace, screen: Screen) -> int:
    found = the_runtime(arguments)
    while True:
        with Remote(found) as remote:
            body = remote.ask("status")
        body.pop("ok", None)
        show_status(body, screen)
        if arguments.watch is None:
            break
        time.sleep(max(0.2, arguments.watch))
        if not screen.json and screen.columns() is not None:
            screen.line("\x1b[H\x1b[2J" if screen.terminal else "")
    if not arguments.check:
        return 0
    good = ("running", "starting") if arguments.allow_starting else ("running",)
    return 0 if body["state"] in good else 1


def show_status(body: dict[str, Any], screen: Screen) -> None:
    if screen.json:
        screen.document("shmrt.status/1", body)
        return
    rows = list(status_rows(body))
    if screen.format == "name":
        for row in rows:
            screen.line(row[0])
        return
    width = None if screen.format == "wide" else screen.columns()
    screen.line(
        f"{body['name']}  {painted(screen, body['state'])}  up {duration_text(body['seconds'])}  "
        f"root {body['pid']}  program {body['program']}"
    )
    if rows:
        for line in table(["WHAT", "STATE", "PID", "UP", "RESTARTS", "LAST EXIT"], rows, width):
            screen.line(line)
    else:
        screen.line("no tree and no pools")
    for row in body.get("guards", ()):
        screen.line(fit(guard_text(row, screen), width))
    for row in body["operations"]:
        waits = f", waits for {row['waits_for']}" if row.get("waits_for") else ""
        screen.line(fit(f"operation {row['id']}: {row['verb']} {row['state']}{waits}", width))
    for row in body["problems"]:
        screen.line(f"{screen.paint('!', 'yellow', sys.stdout)} {row['what']}\n  -> {row['next']}")


def guard_text(row: dict[str, Any], screen: Screen) -> str:
    """`breaker lsh-store  half_open  41 refused`."""
    counted = row.get("counters", {})
    if row["kind"] == "bulkhead":
        how = f"{row['in_use']}/{row['max_concurrent']} {'FULL' if row['state'] == 'full' else ''}".strip()
    elif row["kind"] == "rate_limit":
        how = f"{row['tokens']}/{row['burst']} tokens"
    else:
        how = painted(screen, row["state"])
        if row.get("retry_after"):
            how += f" {row['retry_after']:.3g}s"
    counts = [f"{value} {key}" for key, value in counted.items() if value and key in _SHOWN_COUNTS]
    return "  ".join([f"{row['kind'].replace('_', ' ')} {row['name']}", how, *counts])


_SHOWN_COUNTS = ("refused", "opened", "lost", "timed_out", "waited")


def status_rows(body: dict[str, Any]) -> Iterator[list[str]]:
    def walk(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
        for row in rows:
            yield cells_of(row["path"], row)
            yield from walk(row.get("children", []))

    yield from walk(body["supervisors"])
    for pool in body["pools"]:
        yield cells_of(f"pool {pool['name']}", {**pool, "last_exit": (pool["reasons"] or [None])[-1]})
        for row in pool["workers"]:
            yield cells_of(row["id"], row)


def cells_of(what: str, row: dict[str, Any]) -> list[str]:
    if "wanted" in row:
        state = f"{row['state']} {row['ready']}/{row['wanted']}"
    elif row.get("next_start_seconds") is not None:
        state = f"{row['state']} {row['next_start_seconds']:.1f}s"
    else:
        state = str(row["state"])
    return [
        what,
        state,
        str(row.get("pid") or "-"),
        duration_text(row.get("seconds")),
        str(row.get("restarts", 0)),
        str(row.get("last_exit") or "-"),
    ]


# ---- tree -----------------------------------------------------------------------------------------------------------
def _tree(arguments: argparse.Namespace, screen: Screen) -> int:
    with Remote(the_runtime(arguments)) as remote:
        body = remote.ask("tree")
    body.pop("ok", None)
    if screen.json:
        screen.document("shmrt.tree/1", body)
        return 0
    tops = list(body["supervisors"]) + [{**pool, "children": pool["workers"]} for pool in body["pools"]]
    width = None if screen.format == "wide" else screen.columns()
    if screen.format == "name":
        for _, row in branches(tops):
            screen.line(str(row.get("path") or row.get("id") or row["name"]))
        return 0
    screen.line(f"{body['name']}  root {body['pid']}  program {body['program']}  up {duration_text(body['seconds'])}")
    for before, row in branches(tops):
        screen.line(fit(before + tree_text(row, wide=screen.format == "wide"), width))
    if not tops:
        screen.line("no tree and no pools")
    return 0


def tree_text(row: dict[str, Any], *, wide: bool) -> str:
    """One line: who, how it is, what is left of its budget, why it last ended."""
    if "budget" in row:
        budget = row["budget"]
        words = [
            row["id"],
            row["strategy"],
            row["state"],
            f"{budget['left']} of {budget['limit']} restarts left in {budget['seconds']:g}s",
        ]
    elif "wanted" in row:
        words = [f"pool {row['name']}", row["state"], f"{row['ready']} of {row['wanted']} workers"]
    else:
        words = [row["id"], row["state"]]
        words += [f"pid {row['pid']}"] if row.get("pid") else []
        words += [row["restart"]] if row.get("restart") else []
    if row.get("restarts"):
        words.append(f"restarted {row['restarts']}x")
    if row.get("last_exit"):
        words.append(f"last exit: {row['last_exit']}")
    if row.get("last_exit_of_children"):
        words.append(f"last exit of a child: {row['last_exit_of_children']}")
    if wide:
        words += [
            f"{key} {row[key]}" for key in ("kind", "shutdown", "auto_shutdown", "key") if row.get(key) is not None
        ]
        words += [f"up {duration_text(row['seconds'])}"] if row.get("seconds") is not None else []
    return "  ".join(str(word) for word in words)


status = Verb(
    "Say what a runtime is doing: its tree, its pools, what is wrong and what to do about it",
    _status_options,
    _status,
    "Exit code 0 whenever it could report; --check judges: 0 if it runs and nothing is wrong, else 1.",
)
tree = Verb(
    "Show the supervision tree: strategy, restarts left, why each child last ended",
    lambda parser: None,
    _tree,
)

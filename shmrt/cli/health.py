"""`health`: how a runtime is, for probes: one answer, short, and an exit code of 0 or 1 and nothing else."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from shmrt.cli.options import duration
from shmrt.cli.plain import json_text
from shmrt.cli.remote import Remote, the_runtime
from shmrt.cli.screen import CliError, Screen, write_stdout

DOES = "Say whether a runtime is well: exit code 0 (healthy or degraded) or 1, for probes"
MORE = """All checks, or those of one group: live (the root answers), ready (pools, trees and your checks), startup (it
was ready once), or a group of your own. The checks run in processes of their own, each with its own time.

The exit code is 1 for everything but healthy and degraded: also when there is no such runtime, when the answer does not
come within --timeout, and for a wrong command line. What is printed is shorter than 4,096 bytes. -o json is
application/health+json, in one line. As a container's probe: HEALTHCHECK CMD python -m shmrt --name shop health"""

BYTES_MOST = 4000
_COLOURS = {"healthy": "green", "degraded": "yellow", "unhealthy": "red"}


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--group", metavar="GROUP", help="live, ready, startup, or one of your own (default: all checks)"
    )
    parser.add_argument("--timeout", type=duration, default=25.0, metavar="TIME", help="for the answer (default 25s)")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.guard.report import report_of

    body = ask(arguments)
    report = report_of(body)
    if screen.json:
        write_stdout(document(report.as_json()) + "\n")
    else:
        for line in lines(str(body["name"]), report, screen):
            screen.line(line)
    return 1 if report.status == "unhealthy" else 0


def ask(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the root says. Any failure is a CliError."""
    end = time.monotonic() + arguments.timeout
    with Remote(the_runtime(arguments)) as remote:
        remote.send("health", {"group": arguments.group})
        try:
            answer = remote.receive(max(0.0, end - time.monotonic()))
        except EOFError:
            raise CliError("the root hung up before it answered", hint="it ended just now", code=1) from None
        if answer is None:
            raise CliError(f"no answer within {arguments.timeout:g} s", hint="is its root stopped?", code=1)
        return remote.checked(answer)


def lines(name: str, report: Any, screen: Screen) -> list[str]:
    """The status, then what is wrong; with -v or -o wide every check. Cut where it would become too long."""
    found = [f"{screen.paint(report.status, _COLOURS[report.status], sys.stdout)}  {name}"]
    results = sorted(report.checks.values(), key=lambda result: -list(_COLOURS).index(result.status))
    shown = [result for result in results if not result.ok or screen.verbose or screen.format == "wide"]
    room = BYTES_MOST - len(found[0].encode()) - 40
    for at, result in enumerate(shown):
        more = "; ".join(part for part in (result.error, result.detail) if part)
        value = f" {result.value}{' ' + result.unit if result.unit else ''}" if result.value is not None else ""
        line = f"  {result.status:<9} {result.name}{value}{': ' + more if more else ''}"[:400]
        room -= len(line.encode()) + 1
        if room < 0:
            found.append(f"  ... and {len(shown) - at} more")
            break
        found.append(line)
    return found


def document(body: dict[str, Any]) -> str:
    """One line of JSON. What is well goes first where there is no room, then texts, then the rest."""
    checks = {key: rows for key, rows in body["checks"].items()}
    text = json_text({**body, "checks": checks})
    if len(text.encode()) <= BYTES_MOST:
        return text
    checks = {key: rows for key, rows in checks.items() if any(row["status"] != "pass" for row in rows)}
    kept: dict[str, Any] = {}
    for key, rows in sorted(checks.items(), key=lambda pair: min(row["status"] for row in pair[1])):
        short = [{**row, **({"output": row["output"][:200]} if "output" in row else {})} for row in rows[:3]]
        wider = {**body, "checks": {**kept, key: short}, "omitted": len(body["checks"])}
        if len(json_text(wider).encode()) > BYTES_MOST:
            break
        kept[key] = short
    return json_text({**body, "checks": kept, "omitted": len(body["checks"]) - len(kept)})

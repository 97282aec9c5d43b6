"""`events`: what happened in a runtime, and with -f what happens."""

from __future__ import annotations

import argparse
import time
from typing import Any

from shmrt.cli.options import duration, text_pair
from shmrt.cli.remote import Remote, the_runtime
from shmrt.cli.screen import Screen
from shmrt.cli.tables import clock_text, fit

DOES = "Show what happened: starts, exits, restarts, a supervisor that gave up; -f follows"
MORE = """The root keeps the last 1024. --filter compares whole values, of `name` or of any key of an event's
measurements and metadata; given several times, all must match. Where events are missing there is a line `dropped n`."""


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on with what comes, until Ctrl-C or the end")
    parser.add_argument("--since", type=duration, metavar="TIME", help="only of this last time, such as 10m")
    parser.add_argument(
        "--filter", type=text_pair, action="append", metavar="KEY=VALUE", help="such as name=worker.exit"
    )


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    wanted: list[tuple[str, str]] = arguments.filter or []
    with Remote(the_runtime(arguments)) as remote:
        body = remote.ask("events", follow=arguments.follow, since=arguments.since)
        # The clock that numbers events began at the boot; people read the one on the wall.
        origin_s = time.time() - body["now_ns"] / 1e9
        events = [timed(event, origin_s) for event in body["events"] if matches(event, wanted)]
        dropped = body["dropped"] if arguments.since is None else 0
        if screen.format == "json" and not arguments.follow:
            screen.document("shmrt.events/1", {"dropped": dropped, "events": events})
            return 0
        if dropped:
            show_dropped(dropped, screen)
        for event in events:
            show(event, screen)
        if arguments.follow:
            from shmrt.cli.screen import flush

            flush()
            for line in remote.lines():
                if "dropped" in line:
                    show_dropped(line["dropped"], screen)
                elif "event" in line and matches(line["event"], wanted):
                    show(timed(line["event"], origin_s), screen)
                flush()
            screen.note("the runtime has ended")
    return 0


def matches(event: dict[str, Any], wanted: list[tuple[str, str]]) -> bool:
    values = {**event["measurements"], **event["metadata"], "name": event["name"], "seq": event["seq"]}
    return all(key in values and str(values[key]) == value for key, value in wanted)


def timed(event: dict[str, Any], origin_s: float) -> dict[str, Any]:
    return {**event, "time": clock_text(origin_s + event["ns"] / 1e9)}


def show(event: dict[str, Any], screen: Screen) -> None:
    if screen.json:
        screen.format = "jsonl"  # one document a line: it has no end yet
        screen.document("shmrt.events/1", event)
        return
    values = {**event["metadata"], **event["measurements"]}
    words = [f"{key}={value}" for key, value in values.items() if value is not None]
    width = None if screen.format == "wide" else screen.columns()
    screen.line(fit(f"{event['time'][11:23]}  {event['name']}  {' '.join(words)}", width))


def show_dropped(count: int, screen: Screen) -> None:
    if screen.json:
        screen.format = "jsonl"
        screen.document("shmrt.events/1", {"dropped": count})
    else:
        screen.line(f"dropped {count}")

"""`config`: every setting of `run` with its value, and where that comes from."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from shmrt.cli.plain import json_text
from shmrt.cli.screen import Screen

DOES = "Show the settings that `run` would use, and where each comes from"
MORE = """Nothing of the target is imported. A setting that nobody gave shows its default, `-` where that is none.
--show-origin says for each: the line of the file, the variable, the command line, or the default."""


def options(parser: argparse.ArgumentParser) -> None:
    from shmrt.cli.run import target_options

    target_options(parser)
    parser.add_argument("--show-origin", action="store_true", help="where each value comes from")


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    from shmrt.cli.run import settings_of

    origins: dict[str, str] = {}
    settings = settings_of(arguments, origins)
    rows = list(rows_of(settings, origins))
    if screen.json:
        body = {"settings": {key: value for key, value, _ in rows}}
        if arguments.show_origin:
            body["origins"] = {key: origin for key, _, origin in rows}
        screen.document("shmrt.config/1", body)
        return 0
    lines = [f"{key} = {'-' if value is None else json_text(value)}" for key, value, _ in rows]
    width = max(map(len, lines))
    for line, (_, _, origin) in zip(lines, rows, strict=True):
        screen.line(f"{line.ljust(width)}  {origin}" if arguments.show_origin else line)
    return 0


def rows_of(settings: Mapping[str, Any], origins: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    """(key, value, origin), the keys in the order of the documentation."""
    from shmrt.cli.config import DEFAULTS

    for key in DEFAULTS:
        value = settings[key]
        yield key, value, origins.get(key, "default")
    for key, value in settings["set"].items():
        yield f"set.{key}", value, origins.get(f"set.{key}", "command line")
    for stage, values in settings["stages"].items():
        for key, value in values.items():
            shown = "auto" if key == "chunk" and value is None else value
            yield f"stage.{stage}.{key}", shown, origins.get(f"stage.{stage}.{key}", "default")
    application = settings["application"]
    if application is not None:
        for dotted, value in _leaves(application.tables, ""):
            yield dotted, value, f"{application.path}:{application._line(dotted)}"


def _leaves(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        elif value != {}:
            yield f"{prefix}{key}", value

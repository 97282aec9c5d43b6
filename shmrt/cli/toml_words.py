"""Writes a configuration that `run --config` reads: the settings of a target, and the knobs of its stages.

>>> print(toml_text({"target": "app:pipe", "set": {"n": 3}}, {"two words": {"workers": 2, "spin": 5e-05}}), end="")
target = "app:pipe"
[set]
n = 3
[stage."two words"]
workers = 2
spin = "50us"
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from shmrt.cli.screen import CliError

__all__ = ["carried", "toml_text"]

_CARRIED = ("target", "workers", "input", "runtime.drain_timeout", "runtime.ready_timeout", "runtime.shm_limit")
_RINGS = ("ring.slots", "ring.slot_bytes")


def carried(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What of the settings shapes a run of the target, without defaults and without stages."""
    from shmrt.cli.config import DEFAULTS

    keys = [key for key in (*_CARRIED, *_RINGS) if settings[key] != DEFAULTS[key]]
    found = {key: settings[key] for key in keys}
    if settings["set"]:
        found["set"] = dict(settings["set"])
    return found


def toml_text(settings: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]) -> str:
    """`settings` has dotted keys, of at most two parts. CliError for a value that TOML has no word for."""
    tables: dict[str, dict[str, Any]] = {"": {}}
    for key, value in settings.items():
        if isinstance(value, dict):
            tables.setdefault(key, {}).update(value)
        else:
            table, _, name = key.rpartition(".")
            tables.setdefault(table, {})[name] = value
    for stage, knobs in stages.items():
        words = {key: _knob(key, value) for key, value in knobs.items() if not (key == "spin" and value is None)}
        if words:
            tables[f"stage.{_key(stage)}"] = words
    lines = []
    for table, values in tables.items():
        if table:
            lines.append(f"[{table}]")
        lines += [f"{_key(key)} = {_value(key, value)}" for key, value in values.items()]
    return "".join(line + "\n" for line in lines)


def _knob(key: str, value: Any) -> Any:
    if key == "chunk" and value is None:
        return "auto"
    return f"{value * 1e6:g}us" if key == "spin" else value


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _string(name)


def _string(text: str) -> str:
    """JSON's escapes are TOML's, but for DEL and for characters beyond the first plane."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(key: str, value: Any) -> str:
    if isinstance(value, str):
        if re.search(r"\$\{\w+\}", value):
            text = f"{key} = {value!r} cannot be written to a file: it would be read as a variable of the environment"
            raise CliError(text, hint="give it with --set, beside --config", code=2)
        return _string(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, list):
        return f"[{', '.join(_value(key, part) for part in value)}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_key(str(name))} = {_value(key, part)}" for name, part in value.items()) + " }"
    text = f"{key} = {value!r} cannot be written to a file: TOML has no word for it"
    raise CliError(text, hint="give it with --set, beside --config", code=2)

"""Settings of `run` and `check`: flag > `SHMRT_*` variable > file > default.

The file is TOML: `--config FILE`, else `shmrt.toml` in the working directory if there is one. In a
`pyproject.toml` the settings lie under `[tool.shmrt]`. It is strict: an unknown key is an error that names
line and nearest key. The only interpolation is `${VARIABLE}` in strings.

    target = "shmrt.examples.dedup:pipeline"
    workers = 2
    input = "/usr/lib/python3"
    [runtime]                # name, drain_timeout = "30s", ready_timeout = "30s", shm_limit
    [ring]                   # slots = 1024, slot_bytes = "512"
    [supervisor]             # strategy, max_restarts, within: of a target that is a supervisor
    [set]                    # any keyword argument of the target
    [stage.NAME]             # of a stage of the pipeline: workers, slots, slot_bytes, chunk, spin; see shaping.py
    [chaos]                  # kill = 20, seed = 1; of the verb `chaos`: allowed, kill_rate, stop_rate, duration
    [http]                   # listen = "127.0.0.1:8765"
    [health]                 # memory, shared_memory, disk_path, disk_free: see probes.py

Instead of a target the file may describe the application itself: see `application.py`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from shmrt.cli import options
from shmrt.cli.application import TABLES, Application
from shmrt.cli.screen import CliError
from shmrt.cli.shaping import read_stages

__all__ = ["DEFAULTS", "read_settings"]

SIZE_MOST = 1 << 20

DEFAULTS: dict[str, Any] = {
    "target": None,
    "workers": None,
    "input": None,
    "runtime.drain_timeout": 30.0,
    "runtime.ready_timeout": 30.0,
    "runtime.name": None,
    "runtime.shm_limit": None,
    "supervisor.strategy": None,
    "supervisor.max_restarts": None,
    "supervisor.within": None,
    "ring.slots": None,
    "ring.slot_bytes": None,
    "chaos.kill": None,
    "chaos.seed": None,
    "chaos.allowed": None,
    "chaos.kill_rate": None,
    "chaos.stop_rate": None,
    "chaos.duration": None,
    "http.listen": None,
    "health.memory": None,
    "health.shared_memory": None,
    "health.disk_path": None,
    "health.disk_free": None,
}
_CONVERT: dict[str, Callable[[str], Any]] = {
    "target": str,
    "workers": options.workers,
    "input": str,
    "runtime.drain_timeout": options.duration,
    "runtime.ready_timeout": options.ready_timeout,
    "runtime.name": str,
    "runtime.shm_limit": options.shm_limit,
    "supervisor.strategy": options.strategy,
    "supervisor.max_restarts": options.max_restarts,
    "supervisor.within": options.within_seconds,
    "ring.slots": options.ring_slots,
    "ring.slot_bytes": options.slot_bytes,
    "chaos.kill": options.rate,
    "chaos.seed": options.seed,
    "chaos.allowed": options.allowed,
    "chaos.kill_rate": options.kill_rate,
    "chaos.stop_rate": options.stop_rate,
    "chaos.duration": options.chaos_duration,
    "http.listen": options.http,
    "health.memory": options.size,
    "health.shared_memory": options.size,
    "health.disk_path": str,
    "health.disk_free": options.size,
}
_TYPES: dict[str, tuple[type, ...]] = {
    "target": (str,),
    "workers": (int,),
    "input": (str,),
    "runtime.drain_timeout": (int, float, str),
    "runtime.ready_timeout": (int, float, str),
    "runtime.name": (str,),
    "runtime.shm_limit": (int, str),
    "supervisor.strategy": (str,),
    "supervisor.max_restarts": (int,),
    "supervisor.within": (int, float, str),
    "ring.slots": (int,),
    "ring.slot_bytes": (int, str),
    "chaos.kill": (int, float, str),
    "chaos.seed": (int,),
    "chaos.allowed": (bool,),
    "chaos.kill_rate": (int, float, str),
    "chaos.stop_rate": (int, float, str),
    "chaos.duration": (int, float, str),
    "http.listen": (int, str),
    "health.memory": (int, str),
    "health.shared_memory": (int, str),
    "health.disk_path": (str,),
    "health.disk_free": (int, str),
}


_KIND_NAMES = {int: "a whole number", bool: "true or false"}
_FILE_ONLY = ("chaos.allowed",)
"""What no variable of the environment says: it would hold for every target that is run there."""
_LATER = ("metrics", "log", "breaker", "bulkhead")
_NEVER = {"runtime.start_method": "there is no start method: workers are forked from the root"}


def variable_of(key: str) -> str:
    """The variable of the environment that says the same as a key of the file."""
    return "SHMRT_" + key.replace("runtime.", "").replace(".", "_").upper()


def read_settings(flags: Mapping[str, Any], path: str | None, origins: dict[str, str] | None = None) -> dict[str, Any]:
    """Every key of `DEFAULTS` plus `set`, the keyword arguments of the target, `stages`, what the file says of stages
    of a pipeline, and `application`: what the file describes, if it does. `origins` gets where each key's value comes
    from, where that is not the default."""
    origins = {} if origins is None else origins
    given = os.environ.get("SHMRT_CONFIG") if path is None else path
    if given is None and os.path.isfile("shmrt.toml"):
        given = "shmrt.toml"
    settings = dict(DEFAULTS)
    keywords: dict[str, Any] = {}
    application: Application | None = None
    stages: dict[str, Any] = {}
    if given is not None:
        from_file, keywords, application, stages = _read_file(given, origins)
        settings |= from_file
    allowed_for = settings["target"]
    for key in (key for key in DEFAULTS if key not in _FILE_ONLY):
        variable = variable_of(key)
        text = os.environ.get(variable)
        if text is not None:
            settings[key] = _converted(key, text, variable)
            origins[key] = variable
    by_flag = {key: value for key, value in flags.items() if key in DEFAULTS and value is not None}
    settings |= by_flag
    origins |= dict.fromkeys(by_flag, "command line")
    origins |= {f"set.{key}": "command line" for key, _ in flags.get("set") or ()}
    if settings["chaos.allowed"] and settings["target"] != allowed_for:
        settings["chaos.allowed"] = None  # a file allows it for its own target, not for whatever is named beside it
    settings["set"] = keywords | dict(flags.get("set") or ())
    settings["application"] = application
    settings["stages"], settings["stages_from"] = stages, f"config {given}"
    if application is not None and settings["target"] is not None:
        hint = "leave out the target, or take the [child], [pool] and [supervisor.NAME] tables out of the file"
        raise CliError(f"config {given}: it describes an application, so there can be no target", hint=hint, code=2)
    return settings


def _converted(key: str, value: Any, origin: str) -> Any:
    import argparse

    try:
        return _CONVERT[key](str(value))
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise CliError(f"{origin}: {error}", code=2) from None


def _read_file(
    path: str, origins: dict[str, str]
) -> tuple[dict[str, Any], dict[str, Any], Application | None, dict[str, Any]]:
    import tomllib

    text = _text_of(path)
    try:
        document: Any = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r"line (\d+)", str(error))
        lines = text.splitlines()
        bad = lines[int(found[1]) - 1].strip()[:80] if found and int(found[1]) <= len(lines) else ""
        hint = f"it must be valid TOML; that line is {bad!r}" if bad else "it must be valid TOML"
        raise CliError(f"config {path!r}: {error}", hint=hint, code=2) from None
    except RecursionError:
        raise CliError(f"config {path!r}: nested too deep", code=2) from None
    prefix = ""
    if os.path.basename(path) == "pyproject.toml":
        document, prefix = document.get("tool", {}).get("shmrt", {}), "tool.shmrt."
    settings: dict[str, Any] = {}
    application = _application(document, path, text, prefix)
    keywords = _table(document.pop("set", {}), "set", path)

    def where(dotted: str) -> str:
        origins[dotted] = f"{path}:{_line_of(text, prefix + dotted)}"
        return f"config {origins[dotted]}"

    stages = read_stages(document.pop("stage", {}), where, _expand)
    if stages and application is not None:
        hint = "a pool has its keys in [pool.NAME]"
        raise CliError(f"{where('stage.' + next(iter(stages)))}: an application has no stages", hint=hint, code=2)
    sections = {key.split(".")[0] for key in DEFAULTS if "." in key}
    for key, value in document.items():
        if key in sections:
            for inner, content in _table(value, key, path).items():
                settings[f"{key}.{inner}"] = content
        else:
            settings[key] = value
    for key, value in settings.items():
        origin = where(key)
        if key in _NEVER:
            raise CliError(f"{origin}: {key}: {_NEVER[key]}", hint="leave it out", code=2)
        if key.split(".")[0] in _LATER:
            raise CliError(f"{origin}: [{key.split('.')[0]}] is not available in this version", code=2)
        if key not in DEFAULTS:
            from shmrt.cli.main import nearest

            known = [*DEFAULTS, *sections, "set", "stage", *TABLES]
            raise CliError(f"{origin}: unknown key {key!r}{nearest(key, known)}", code=2)
        if isinstance(value, bool) != (bool in _TYPES[key]) or not isinstance(value, _TYPES[key]):
            names = " or ".join(_KIND_NAMES.get(kind, kind.__name__) for kind in _TYPES[key])
            raise CliError(f"{origin}: {key} = {value!r} must be {names}", code=2)
        settings[key] = _converted(key, _expand(value, origin), origin)
    expanded = {key: _expand(value, where(f"set.{key}")) for key, value in keywords.items()}
    return settings, expanded, application, stages


def _application(document: dict[str, Any], path: str, text: str, prefix: str) -> Application | None:
    """Takes the tables of an application out of the document; None where there are none. Scalars in [ring] and, with a
    target, in [supervisor] are settings like others."""
    rings = document.get("ring")
    named = {key: value for key, value in rings.items() if isinstance(value, dict)} if isinstance(rings, dict) else {}
    supervisor = document.get("supervisor")
    below = isinstance(supervisor, dict) and any(
        isinstance(value, dict) and key != "backoff" for key, value in supervisor.items()
    )
    if not (below or "child" in document or "pool" in document):
        return None
    tables: dict[str, Any] = {key: document.pop(key) for key in TABLES if key != "ring" and key in document}
    for key in named:
        del document["ring"][key]
    tables["ring"] = named
    whole: dict[str, Any] = _expand_all(tables, f"config {path}")
    return Application(path, whole, lambda dotted: _line_of(text, prefix + dotted))


def _expand_all(value: Any, origin: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand_all(inner, origin) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand_all(inner, origin) for inner in value]
    return _expand(value, origin)


def _text_of(path: str) -> str:
    try:
        if os.path.isdir(path):
            raise CliError(f"config {path!r} is a directory", hint="name the TOML file in it", code=2)
        with open(path, "rb") as file:
            raw = file.read(SIZE_MOST + 1)
    except OSError as error:
        raise CliError(f"config {path!r} cannot be read: {error.strerror}", code=2) from None
    if len(raw) > SIZE_MOST:
        raise CliError(f"config {path!r} is larger than 1 MiB", hint="is it the right file?", code=2)
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise CliError(f"config {path!r} is not UTF-8 text: {error.reason} at byte {error.start}", code=2) from None


def _table(value: Any, key: str, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise CliError(f"config {path!r}: {key} = {value!r} must be a table: [{key}]", code=2)
    return value


def _expand(value: Any, origin: str) -> Any:
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise CliError(f"{origin}: ${{{match[1]}}} is not set in the environment", code=2)
        return found

    return re.sub(r"\$\{(\w+)\}", variable, value)


def _line_of(text: str, dotted: str) -> int:
    """tomllib does not say where a key stood, so it is looked up; 1 if it is written in a way not foreseen."""
    section, _, name = dotted.rpartition(".")
    current = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[{1,2}\s*([^\[\]]+?)\s*\]", line)
        if header:
            current = header[1].replace('"', "").replace(" ", "")
            if current == dotted:
                return number
        elif re.match(rf"\s*[\"']?{re.escape(name)}[\"']?\s*[.=]", line) and current == section:
            return number
    return 1

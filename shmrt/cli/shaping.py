"""The `[stage.NAME]` tables of a configuration: what a pipeline's stages are run with, whatever their code says.

    [stage.shingle]
    workers = 4
    slots = 4096          # items that the stage holds, messages that a lane holds
    slot_bytes = "2KiB"   # what a message takes in a lane
    chunk = 16            # items of one task at most, or "auto"
    spin = "50us"         # how long an idle worker looks for work before it sleeps

They are laid over the description that the target gave, so they work for a Pipeline object as well as for a function.
A stage that the pipeline does not have is an error that names the nearest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shmrt.cli.options import WORKERS_MOST
from shmrt.cli.screen import CliError
from shmrt.spec import RingSpec, check_chunk, check_count, check_spin, parse_duration

__all__ = ["STAGE_KEYS", "WORKABLE", "is_workable", "read_stages", "shape", "shaped"]


WORKABLE = ("map", "filter", "flat_map")


def _workers(value: Any) -> int:
    return check_count(value, "workers", most=WORKERS_MOST)


def _slots(value: Any) -> int:
    return RingSpec(slots=value).slots


def _slot_bytes(value: Any) -> int:
    return RingSpec(slot_bytes=value).slot_bytes


def _spin(value: Any) -> float | None:
    seconds = check_spin(parse_duration(value, "spin"))
    return None if seconds is None else round(seconds, 9)  # "50us" in binary is not 5e-05


STAGE_KEYS: dict[str, Callable[[Any], Any]] = {
    "workers": _workers,
    "slots": _slots,
    "slot_bytes": _slot_bytes,
    "chunk": check_chunk,
    "spin": _spin,
}


def read_stages(tables: Any, origin: Callable[[str], str], expand: Callable[[Any, str], Any]) -> dict[str, Any]:
    """The tables of the file, checked. `origin(key)` says where a dotted key stands; CliError for what is wrong."""
    from shmrt.cli.main import nearest

    found: dict[str, Any] = {}
    if not isinstance(tables, dict):
        raise CliError(f"{origin('stage')}: stage = {tables!r} must be tables: [stage.NAME]", code=2)
    for name, table in tables.items():
        if not isinstance(table, dict):
            text = f"{origin(f'stage.{name}')}: stage.{name} = {table!r} must be a table: [stage.NAME]"
            raise CliError(text, hint=f"write [stage.NAME] and below it {name} = ...", code=2)
        found[name] = {}
        for key, value in table.items():
            where = origin(f"stage.{name}.{key}")
            if key not in STAGE_KEYS:
                known = nearest(key, list(STAGE_KEYS))
                hint = f"a stage has {', '.join(STAGE_KEYS)}"
                raise CliError(f"{where}: unknown key {key!r} in [stage.{name}]{known}", hint=hint, code=2)
            try:
                found[name][key] = STAGE_KEYS[key](expand(value, where))
            except (ValueError, TypeError) as error:
                raise CliError(f"{where}: {error}", code=2) from None
    return found


def is_workable(stage: Any) -> bool:
    """Whether a stage has workers of its own."""
    return stage.kind in WORKABLE


def shape(pipeline: Any, stages: Mapping[str, Mapping[str, Any]], where: str) -> Any:
    """A description like `pipeline` with these values; `where` says whose they are."""
    from shmrt.pipeline import Pipeline

    _check_names(pipeline.stages, stages, where)
    shaped = Pipeline(pipeline.name)
    shaped._source = pipeline._source
    shaped._stages = tuple(
        _one(stage, stages[stage.name], where) if stage.name in stages else stage for stage in pipeline.stages
    )
    return shaped


def _check_names(described: Sequence[Any], stages: Mapping[str, Any], where: str) -> None:
    from shmrt.cli.main import nearest

    names = [stage.name for stage in described if is_workable(stage)]
    for name in stages:
        if name in names:
            continue
        kind = next((stage.kind for stage in described if stage.name == name), None)
        if kind is not None:
            text = f"{where}: [stage.{name}] is a {kind}, which has no workers of its own"
            raise CliError(text, hint=f"stages with workers: {', '.join(names)}", code=2)
        raise CliError(
            f"{where}: the pipeline has no stage {name!r}{nearest(name, names)}",
            hint=f"its stages: {', '.join(names)}" if names else "it has no stages",
            code=2,
        )


def _one(stage: Any, values: Mapping[str, Any], where: str) -> Any:
    values = dict(values)
    try:
        ring = RingSpec(values.pop("slots", stage.ring.slots), values.pop("slot_bytes", stage.ring.slot_bytes))
    except ValueError as error:
        raise CliError(f"{where}: [stage.{stage.name}]: {error}", code=2) from None
    return replace(stage, ring=ring, **values)


def shaped(target: Any, settings: Mapping[str, Any]) -> Any:
    """The target with what the `[stage]` tables of its settings say."""
    stages = settings["stages"]
    if not stages:
        return target
    where = settings["stages_from"]
    if target.pipeline is None:
        text = f"{where}: [stage.{next(iter(stages))}] shapes a Pipeline, and the target is a supervision tree"
        raise CliError(text, hint="a pool of an application has its keys in [pool.NAME]", code=2)
    return replace(target, pipeline=shape(target.pipeline, stages, where))

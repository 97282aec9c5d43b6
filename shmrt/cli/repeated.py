"""A target that is run again and again with the same inputs: what `chaos` and `tune` need.

A description can be run many times, its source not always: an iterator can be read only once. A TARGET that is a
function then makes both anew for each run; anything else is refused before it has cost time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from shmrt.cli.screen import CliError

__all__ = ["loader_of"]


def loader_of(
    settings: dict[str, Any],
    verb: str,
    why: str,
    hint: str,
    permit: Callable[[ModuleType, Any], None] | None = None,
) -> Callable[[], Any]:
    """Gives the target for each run: the same one, or made anew where its source can be read only once. CliError for
    whatever `verb` cannot run; `why` and `hint` are about supervision trees."""
    from shmrt.cli import drive
    from shmrt.cli.run import keywords_of, only_of_trees
    from shmrt.cli.shaping import shaped
    from shmrt.cli.target import load

    if settings["application"] is not None:
        path = settings["application"].path
        text = f"config {path}: it describes a supervision tree, and {verb} is for pipelines"
        raise CliError(text, hint=hint, code=2)
    name = settings["target"]
    if name is None:
        raise CliError("no target given", hint=f"python -m shmrt {verb} MODULE:OBJECT, or a TOML file", code=2)

    def make() -> Any:
        return shaped(load(name, keywords_of(settings), settings["runtime.ready_timeout"], permit), settings)

    target = make()
    if target.tree is not None:
        text = f"target {name!r} is a supervision tree, and {verb} is for pipelines: {why}"
        raise CliError(text, hint=hint, code=2)
    only_of_trees(settings)
    source = drive.source_of(target)
    if isinstance(source, type) or not hasattr(source, "__next__"):
        return lambda: target
    made = [make(), target]  # taken from the end
    if made[0].pipeline._source is source:
        raise CliError(
            f"target {name!r}: its source is an iterator, which can be read only once",
            hint="give .source(...) a list, or a function that returns one, or name a function that makes both",
            code=2,
        )
    return lambda: made.pop() if made else make()

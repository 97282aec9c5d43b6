"""The name of what `run` runs: the one that was asked for, else one made of the target's that is free."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from shmrt.cli.screen import Screen
from shmrt.errors import ConfigError

__all__ = ["name_for", "start_named"]

_TRIES = 1000


def name_for(target: str) -> str:
    """
    >>> name_for("shop.app:tree"), name_for("/etc/shop.toml"), name_for("-.toml")
    ('app', 'shop', 'run')
    """
    module, colon, _ = target.partition(":")
    word = module.rpartition(".")[2] if colon else os.path.basename(target).removesuffix(".toml")
    word = "".join(letter if letter.isprintable() and letter != "/" else "_" for letter in word).lstrip(".-")
    return word[:100] or "run"


def start_named(chosen: str | None, target: str, make: Callable[[str | None], Any], screen: Screen) -> Any:
    """Starts `make(name)`. ConfigError if `chosen` is taken; a name of ours gets a number then. Where the directory of
    a name that nobody asked for cannot be made, it starts without one, and says so."""
    if chosen is not None:
        return make(chosen).start()
    base = name_for(target)
    for number in range(1, _TRIES):
        name = base if number == 1 else f"{base}-{number}"
        try:
            return make(name).start()
        except ConfigError as error:
            if error.key == "name":
                continue
            if error.key != "runtime_dir":
                raise
            screen.note(f"{error}; the runtime has no name, so `status` and its like cannot find it", colour="yellow")
            break
    return make(None).start()

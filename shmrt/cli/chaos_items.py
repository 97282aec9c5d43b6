"""Numbers for what flows through a pipeline, so that each output can be traced to the inputs that it was made of.

`numbered(pipeline)` is the same pipeline around *items*: tuples of the input's number, the value's checksum, whether it
is known to have changed on its way, and the value. The functions are the target's own and see only values. Checksums
are made where a value is made, in the worker, and looked at wherever it arrives.

    >>> double = Numbered(lambda x: 2 * x, "map", stateful=False)
    >>> origin, value, torn = opened(double(item(7, 21)))
    >>> origin, value, torn
    ((7,), 42, False)
"""

from __future__ import annotations

import os

from shmrt.cli.chaos_digest import digest

TYPE_CHECKING = False  # every replacement imports this before it is ready, so it imports little
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from shmrt.pipeline import Pipeline

    Origin = tuple[int, ...]
    Item = tuple[Origin, int, bool, Any]

__all__ = ["Numbered", "Tally", "item", "numbered", "opened", "received"]


def item(number: int, value: Any) -> Item:
    """An input, as it goes in."""
    return (number,), digest(value), False, value


def opened(thing: Any) -> tuple[Origin, Any, bool]:
    """Origin, value, and whether it is another value than was put into the item. A list is a batch of items."""
    if isinstance(thing, list):
        parts = [opened(part) for part in thing]
        origin = tuple(number for part in parts for number in part[0])
        return origin, [part[1] for part in parts], any(part[2] for part in parts)
    origin, check, torn, value = thing
    return origin, value, torn or digest(value) != check


def received(thing: Any) -> tuple[Origin, int, bool]:
    """Of an output: its origin, the checksum of what is there now, and whether it is another than it was."""
    if isinstance(thing, list):
        parts = [received(part) for part in thing]
        origin = tuple(number for part in parts for number in part[0])
        return origin, digest([part[1] for part in parts]), any(part[2] for part in parts)
    origin, check, torn, value = thing
    found = digest(value)
    return origin, found, torn or found != check


class Numbered:
    """A stage's function around items. Of a class it makes one instance in each worker, as the stage itself would."""

    __slots__ = ("_fn", "_kind", "_made", "_stateful", "_tally")

    def __init__(self, fn: Callable[..., Any], kind: str, *, stateful: bool, tally: str | None = None) -> None:
        self._fn, self._kind, self._stateful = fn, kind, stateful
        self._made: Any = None if stateful else fn
        self._tally: Any = tally

    def __reduce__(self) -> Any:
        return _load, (self._fn, self._kind, self._stateful, self._tally)

    def __call__(self, thing: Any) -> Any:
        if self._tally is not None:
            self._count()
        origin, value, torn = opened(thing)
        if self._made is None:
            self._made = self._fn()
        if self._kind == "flat_map":
            return self._outputs(origin, value, torn)
        found = self._made(value)
        if self._kind == "map":
            return origin, digest(found), torn, found
        return found  # of a filter or a key: the item itself goes on

    def _count(self) -> None:
        if isinstance(self._tally, str):  # the first item of this process
            self._tally = os.open(self._tally, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        os.write(self._tally, b"x")

    def _outputs(self, origin: Origin, value: Any, torn: bool) -> Iterator[Item]:
        for found in self._made(value):
            yield origin, digest(found), torn, found


def _load(fn: Callable[..., Any], kind: str, stateful: bool, tally: str | None) -> Numbered:
    return Numbered(fn, kind, stateful=stateful, tally=tally)


class Tally:
    """Counts calls of functions in all workers, those that died included: each appends a byte to memory of this
    process, which no death takes back. A context manager."""

    def __init__(self) -> None:
        self._fd = os.memfd_create("shmrt-tally", os.MFD_CLOEXEC)
        self.path = f"/proc/{os.getpid()}/fd/{self._fd}"

    def take(self) -> int:
        """The calls since the last time."""
        count = os.fstat(self._fd).st_size
        os.ftruncate(self._fd, 0)
        return count

    def __enter__(self) -> Tally:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def numbered(pipe: Pipeline, tally: str | None = None) -> Pipeline:
    """A description like `pipe`, for items; `tally` is the path of a `Tally` that calls are counted in."""
    from dataclasses import replace

    from shmrt.pipeline import Pipeline

    copy = Pipeline(pipe.name)
    copy._stages = tuple(
        stage
        if stage.kind == "batch"
        else replace(stage, fn=Numbered(stage.fn, stage.kind, stateful=stage.stateful, tally=tally), stateful=False)
        for stage in pipe.stages
    )
    return copy

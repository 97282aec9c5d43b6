"""Says whose mistake an exception is: the user's functions fail in one sentence that names the function and the line.

Only what nobody else can have caused is left to `main`, which calls it a mistake of shmrt's.
"""

from __future__ import annotations

import inspect
import os
import select
import sys
import sysconfig
import traceback
from collections.abc import Callable
from typing import Any

from shmrt.cli.plain import safe_str
from shmrt.cli.screen import CliError

__all__ = ["at", "call", "check_callable", "exception_text", "reader_left"]


def exception_text(error: BaseException) -> str:
    """`KeyError: 'x'` in one line."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    lines = safe_str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def at(error: BaseException) -> str | None:
    """`at FILE:LINE`, where the user's own code was last before the exception.

    Frames of shmrt, of the standard library and of installed packages are passed over, unless there are no others.
    """
    ours = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    others = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(f"{ours}/")]
    own = [
        frame
        for frame in frames
        if not frame.filename.startswith("<") and not any(frame.filename.startswith(f"{place}/") for place in others)
    ]
    chosen = own or frames
    return f"at {chosen[-1].filename}:{chosen[-1].lineno}" if chosen else None


def check_callable(name: str, function: Any, target: str) -> None:
    """A hook must be an ordinary function: an async one or a generator would seem to work and do nothing."""
    if not callable(function):
        raise CliError(
            f"target {target!r}: its {name!r} is of type {type(function).__name__}, not a function",
            hint=f"python -m shmrt calls {name!r} beside a target; make it a function, or give it another name",
            code=2,
        )
    for kind, test in (
        ("an async function", inspect.iscoroutinefunction),
        ("a generator", inspect.isgeneratorfunction),
        ("an async generator", inspect.isasyncgenfunction),
    ):
        if test(function):
            raise CliError(
                f"target {target!r}: its {name!r} is {kind}, so calling it would run nothing of it",
                hint=f"make {name!r} a plain function that returns its answer",
                code=2,
            )


def call(what: str, target: str, function: Callable[[], Any], passing: Callable[[BaseException], bool]) -> Any:
    """What the user's `function` returns; its exceptions end the command with code 1, but for those that are `passing`.

    KeyboardInterrupt passes always, since a Ctrl-C is nobody's mistake.
    """
    try:
        return function()
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if passing(error) or (isinstance(error, BrokenPipeError) and reader_left()):
            raise
        hints = [at(error)]
        if isinstance(error, SystemExit):
            happened = f"called sys.exit({error.code!r})"
            hints.append("let it return its answer; the exit code is the command's own")
        else:
            happened = f"failed: {exception_text(error)}"
        raise CliError(f"target {target!r}: {what} {happened}", hint="; ".join(filter(None, hints)) or None) from None


def reader_left() -> bool:
    """Whether stdout is a pipe that nobody reads any more, so that a BrokenPipeError of the user's prints is that."""
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):
        return False

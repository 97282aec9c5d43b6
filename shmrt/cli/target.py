"""Turns `module:object` into the pipeline or supervisor that it describes, or into one clear sentence.

The target's module is the user's code: it may print, exit, raise, or never return. What it prints while it is
imported goes to stderr, so that stdout stays data; importing and calling it together may take `ready_timeout`.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType, ModuleType
from typing import Any

from shmrt.cli.blame import check_callable
from shmrt.cli.screen import CliError

__all__ = ["Target", "load", "within"]


_FLAGS = {
    "workers": "--workers",
    "input": "--input",
    "ring_slots": "--ring-slots",
    "slot_bytes": "--slot-bytes",
}
"""The flag, or the setting of the same name, that an argument of a target comes from."""


@dataclass(frozen=True, slots=True)
class Target:
    """What was named, what it gave, and the hooks that lie beside it."""

    name: str
    pipeline: Any
    arguments: dict[str, Any]
    consume: Any
    serial: Any
    tree: Any = None
    """A supervisor, in the place of a pipeline."""
    rings: dict[str, Any] = field(default_factory=dict)
    inputs: list[Any] = field(default_factory=list)
    """What an application file says of rings, and of pools that work on their messages."""


class _TooLong(BaseException):
    """Not an Exception, so that the user's `except Exception` cannot swallow it."""


@contextlib.contextmanager
def within(seconds: float, doing: str) -> Iterator[None]:
    """Ends the block with exit code 4 after `seconds`, which are more than 0."""

    def ring(_number: int, _frame: FrameType | None) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, min(seconds, 1e8))  # three years; setitimer refuses much more
    try:
        yield
    except _TooLong:
        raise CliError(
            f"{doing} took longer than {seconds:g} s",
            hint="raise --ready-timeout, or move the work out of import time",
            code=4,
        ) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def load(
    name: str,
    arguments: Mapping[str, Any],
    ready_timeout: float,
    permit: Callable[[ModuleType, Any], None] | None = None,
) -> Target:
    """Imports the target and, if it is a callable, calls it with `arguments`; not before `permit(module, object)` has
    returned."""
    with within(ready_timeout, f"importing {name!r}"), contextlib.redirect_stdout(sys.stderr):
        module, found = _find(name)
        if permit is not None:
            permit(module, found)
        made = _make(name, found, arguments)
    if is_supervisor(made):
        return Target(name=name, pipeline=None, arguments=dict(arguments), consume=None, serial=None, tree=made)
    _check(name, made)
    consume = _hook("consume", found, module)
    if consume is not None:
        check_callable("consume", consume, name)
    serial = _hook("serial", found, module)
    return Target(name=name, pipeline=made, arguments=dict(arguments), consume=consume, serial=serial)


def load_application(application: Any, arguments: Mapping[str, Any], ready_timeout: float) -> Target:
    """Imports what the file names, and makes the tree that it describes."""

    def find(text: str, origin: str) -> Any:
        try:
            return _find(text)[1]
        except CliError as error:
            raise CliError(f"{origin}: {error.message}", hint=error.hint, code=error.code) from None

    if arguments:
        raise CliError(
            f"config {application.path}: {next(iter(arguments))!r} shapes a target that is a function",
            hint="an application's children have their arguments in their own tables",
            code=2,
        )
    with within(ready_timeout, f"importing what {application.path} names"), contextlib.redirect_stdout(sys.stderr):
        built = application.build(find)
    return Target(
        name=application.path,
        pipeline=None,
        arguments={},
        consume=None,
        serial=None,
        tree=built.tree,
        rings=built.rings,
        inputs=built.inputs,
    )


def _hook(hook: str, found: Any, module: ModuleType) -> Any:
    """What lies under that name at the target, else in its module."""
    own = getattr(found, hook, None)
    return getattr(module, hook, None) if own is None else own


def _find(name: str) -> tuple[ModuleType, Any]:
    module_name, colon, path = name.partition(":")
    if not colon or not module_name or not path or not all(part.isidentifier() for part in module_name.split(".")):
        raise CliError(
            f"target {name!r} is not MODULE:OBJECT", hint="for example shmrt.examples.dedup:pipeline", code=2
        )
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())  # the installed script `shmrt` does not have it, `python -m shmrt` does
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise CliError(
                f"target {name!r}: there is no module {error.name!r}",
                hint=f"looked in {os.getcwd()} and the installed packages; check the spelling or PYTHONPATH",
                code=2,
            ) from None
        raise _refused(f"target {name!r}: importing {module_name!r} failed", error) from None
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        raise _refused(f"target {name!r}: importing {module_name!r} failed", error) from None
    found: Any = module
    for part in path.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            from shmrt.cli.main import nearest

            public = [word for word in dir(found) if not word.startswith("_")]
            raise CliError(
                f"target {name!r}: {module_name!r} has no {part!r}{nearest(part, public)}",
                hint=f"the module is {getattr(module, '__file__', module_name)}",
                code=2,
            ) from None
    return module, found


def _refused(what: str, error: BaseException) -> CliError:
    """The user's mistake, with the last line of their own code instead of a traceback through ours."""
    if isinstance(error, SystemExit):
        return CliError(f"{what}: it called sys.exit({error.code!r})", hint="a target must only describe work", code=2)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "importlib" not in frame.filename]
    here = os.path.dirname(__file__)
    frames = [frame for frame in frames if not frame.filename.startswith(here)]
    where = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}:{error.lineno}"
    text = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    return CliError(f"{what}: {text}", hint=f"at {where}" if where else None, code=2)


def _make(name: str, found: Any, arguments: Mapping[str, Any]) -> Any:
    if not callable(found) or _is_pipeline(found) or is_supervisor(found):
        if arguments:
            given = ", ".join(_FLAGS.get(key, f"--set {key}") for key in arguments)
            kind = f"an object of type {type(found).__name__}"
            kind = "a Pipeline object" if _is_pipeline(found) else kind
            raise CliError(
                f"target {name!r} is {kind}, and {given} only shapes a target that is a function",
                hint=f"leave it out and set it in the code, such as .map(f, workers=2); or name a function that takes "
                f"{next(iter(arguments))!r} and returns the pipeline",
                code=2,
            )
        return found
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        signature = None
    if signature is not None:
        _check_arguments(name, signature, arguments)
    try:
        return found(**arguments)
    except (Exception, SystemExit) as error:
        raise _refused(f"target {name!r} failed", error) from None


def _check_arguments(name: str, signature: inspect.Signature, arguments: Mapping[str, Any]) -> None:
    accepted = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]
    anything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())
    for key in arguments:
        if key not in accepted and not anything:
            from shmrt.cli.main import nearest

            raise CliError(
                f"target {name!r} takes no {key!r}{nearest(key, accepted)}",
                hint=f"it takes {', '.join(accepted)}" if accepted else "it takes no arguments",
                code=2,
            )
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise CliError(f"target {name!r}: {error}", hint="give it with --set KEY=VALUE", code=2) from None


def is_supervisor(value: Any) -> bool:
    """Any of the descriptions of a supervisor; their classes are not made yet."""
    return hasattr(value, "specification") and not isinstance(value, type)


def _is_pipeline(value: Any) -> bool:
    from shmrt.pipeline import Pipeline

    return isinstance(value, Pipeline)


def _check(name: str, made: Any) -> None:
    if _is_pipeline(made):
        return
    kind = f"a{'n' * (type(made).__name__[0] in 'aeiouAEIOU')} {type(made).__name__}"
    if inspect.iscoroutine(made):
        made.close()
        kind = "a coroutine; it is an async function"
    raise CliError(
        f"target {name!r} gave {kind}, not a Pipeline or a Supervisor",
        hint="return shmrt.Pipeline(...).source(...) or shmrt.Supervisor([...])",
        code=2,
    )

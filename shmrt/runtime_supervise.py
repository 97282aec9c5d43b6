"""The functions of supervisors over the control socket: the command `supervise`, which the program carries out.

    {"verb": "supervise", "args": {"do": "start_child", "supervisor": "sessions",
                                   "child": {"start": "app.jobs:serve", "args": [7], "restart": "transient"}}}

    do              which_children, count_children, which_child, get_childspec,
                    start_child, terminate_child, restart_child, delete_child, stop
    supervisor      its name, or a list of ids from the runtime's own tree down; without it that tree's top
    id              which child; `pid` for one of a dynamic supervisor
    child           what `Child` takes, with start as MODULE:ATTRIBUTE, found as the program finds modules
    reason          of stop ("shutdown")
    wait            true: the answer comes when it is done; else as soon as the supervisor was told

Answers carry plain values: a child's start is shown by its name, a process by its pid.
"""

from __future__ import annotations

from shmrt.errors import ShmrtError
from shmrt.runtime_commands import CommandError

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.children import Child
    from shmrt.handles import SupervisorRef
    from shmrt.runtimes import Runtime

__all__ = ["supervise"]

_OPTIONS = ("id", "name", "restart", "shutdown", "significant", "type", "start_timeout", "mailbox_on_restart")


def supervise(runtime: Runtime, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
    """One request. CommandError says what is wrong with it, or why the supervisor refused."""
    verb = args.get("do")
    if verb not in _VERBS:
        raise CommandError("usage", f"do={verb!r} must be one of {', '.join(_VERBS)}")
    try:
        supervisor = _find(runtime, args.get("supervisor"))
        waits(f"{verb} of {supervisor!r}")
        return _VERBS[verb](supervisor, args)
    except ShmrtError as error:
        state = getattr(error, "state", None) or getattr(error, "problem", None)
        raise CommandError("refused" if state else "failed", f"{type(error).__name__}: {error}", state) from None
    except (TypeError, ValueError) as error:
        raise CommandError("usage", str(error)) from None


def _find(runtime: Runtime, which: Any) -> SupervisorRef:
    if which is None or isinstance(which, str):
        return runtime.supervisor(which)
    if not isinstance(which, list):
        raise CommandError("usage", f"supervisor={which!r} must be a name, or a list of ids from the top down")
    found = runtime.supervisor()
    for id in which:
        found = found.child(_hashable(id))
        if not hasattr(found, "which_children"):
            raise CommandError("usage", f"child {id!r} is no supervisor")
    return found


def _hashable(id: Any) -> Any:
    return tuple(map(_hashable, id)) if isinstance(id, list) else id


def _which(args: dict[str, Any]) -> Any:
    if "pid" in args:
        return args["pid"]
    if "id" not in args:
        raise CommandError("usage", f"{args['do']} needs `id`: which child")
    return _hashable(args["id"])


def _child(args: dict[str, Any]) -> Child:
    from importlib import import_module

    from shmrt.children import Child

    given = args.get("child")
    if not isinstance(given, dict) or not isinstance(given.get("start"), str):
        raise CommandError("usage", "start_child needs `child`, an object with at least start: 'MODULE:ATTRIBUTE'")
    unknown = given.keys() - {"start", "args", "kwargs", *_OPTIONS}
    if unknown:
        raise CommandError(
            "usage", f"a child has no {sorted(unknown)[0]!r}; it has start, args, kwargs, {', '.join(_OPTIONS)}"
        )
    module, colon, path = given["start"].partition(":")
    try:
        start: Any = import_module(module)
        for part in path.split("."):
            start = getattr(start, part)
    except (ImportError, AttributeError, ValueError) as error:
        what = str(error) if colon else "it has no ':'"
        raise CommandError(
            "usage", f"start={given['start']!r} is not MODULE:ATTRIBUTE of the program's: {what}"
        ) from None
    options = {key: given[key] for key in _OPTIONS if key in given}
    if "id" in options:
        options["id"] = _hashable(options["id"])
    return Child(start, *given.get("args", ()), kwargs=given.get("kwargs"), **options)


def _row(row: tuple[Any, Any, str, str]) -> dict[str, Any]:
    id, whom, type, restart = row
    shown = whom if whom is None or isinstance(whom, (int, str)) else "running"
    return {"id": id, "pid": shown, "type": type, "restart": restart}


def _ref(ref: Any) -> dict[str, Any]:
    return {"started": ref is not None, "pid": getattr(ref, "pid", None), "name": getattr(ref, "name", None)}


def _spec(child: Child) -> dict[str, Any]:
    start = child.start
    return {
        "id": child.id,
        "start": f"{start.__module__}:{start.__qualname__}" if hasattr(start, "__qualname__") else repr(start),
        "name": child.name,
        "restart": child.restart,
        "shutdown": child.shutdown,
        "significant": child.significant,
        "type": child.type,
    }


def _done(call: Callable[[], object]) -> dict[str, Any]:
    call()
    return {"done": True}


_VERBS: dict[str, Callable[[SupervisorRef, dict[str, Any]], dict[str, Any]]] = {
    "which_children": lambda supervisor, args: {"children": [_row(row) for row in supervisor.which_children()]},
    "count_children": lambda supervisor, args: dict(
        zip(("specs", "active", "supervisors", "workers"), supervisor.count_children(), strict=True)
    ),
    "which_child": lambda supervisor, args: _row(supervisor.which_child(_which(args))),
    "get_childspec": lambda supervisor, args: _spec(supervisor.get_childspec(_which(args))),
    "start_child": lambda supervisor, args: _ref(supervisor.start_child(_child(args))),
    "terminate_child": lambda supervisor, args: _done(lambda: supervisor.terminate_child(_which(args))),
    "restart_child": lambda supervisor, args: _ref(supervisor.restart_child(_which(args))),
    "delete_child": lambda supervisor, args: _done(lambda: supervisor.delete_child(_which(args))),
    "stop": lambda supervisor, args: {"reason": str(supervisor.stop(args.get("reason", "shutdown")))},
}

"""Reloading what `run` runs: the configuration is read again, and if it is valid the children follow it one by one.

Nothing is touched before all of it is known to be valid: file, imports, tree. Then, child by child:

    gone from the configuration       ended and forgotten
    new                               started
    other than before                 ended, then started as it is now; a pool that only changed its size is resized
    the same                          restarted, so that it runs the code as it is now; a pool worker by worker

What belongs to the top supervisor itself, or to the runtime, cannot change while it runs: that is refused as a whole. A
child that does not start in its new form is started in its old one, and that is an error of the reload.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from shmrt.cli.screen import CliError, Screen
from shmrt.cli.target import Target
from shmrt.runtime_commands import CommandError

__all__ = ["Reloader", "difference"]

_FIXED = ("strategy", "max_restarts", "max_seconds", "auto_shutdown", "name")


def difference(old: Any, new: Any) -> dict[str, list[Any]]:
    """Ids of children by what is to happen to them: gone, new, other, same, resized. CommandError for what cannot."""
    from shmrt.child_specs import specify

    for key in _FIXED:
        before, after = getattr(old, key, None), getattr(new, key, None)
        if before != after:
            raise CommandError(
                "failed",
                f"{key} of the top supervisor changed from {before!r} to {after!r}, which only a new start can do",
                "nothing was changed; stop and run it again",
            )
    befores = {child.id: child for child in getattr(old, "children", ())}
    afters = {child.id: child for child in getattr(new, "children", ())}
    found: dict[str, list[Any]] = {"gone": [id for id in befores if id not in afters], "new": [], "other": []}
    found |= {"same": [], "resized": []}
    for id, child in afters.items():
        if id not in befores:
            found["new"].append(id)
        elif specify(befores[id]).to_plain() == specify(child).to_plain():
            found["same"].append(id)
        elif _only_resized(befores[id], child):
            found["resized"].append(id)
        else:
            found["other"].append(id)
    return found


def _only_resized(old: Any, new: Any) -> bool:
    from shmrt.child_specs import specify
    from shmrt.children import Child, kind_of

    if kind_of(old.start) != "pool" or kind_of(new.start) != "pool" or not new.kwargs.get("max_workers"):
        return False
    kwargs = {**new.kwargs, "max_workers": old.kwargs.get("max_workers")}
    options = {"id": new.id, "name": new.name, "restart": new.restart, "shutdown": new.shutdown, "health": new.health}
    same = Child(new.start, *new.args, kwargs=kwargs, significant=new.significant, **options)
    return bool(specify(same).to_plain() == specify(old).to_plain())


class Reloader:
    """What runs now, and how to get at what is to run."""

    def __init__(
        self,
        runtime: Any,
        target: Target,
        tree: Any,
        settings: dict[str, Any],
        settings_again: Callable[[], dict[str, Any]],
    ) -> None:
        self._runtime, self._target, self._tree, self._settings = runtime, target, tree, settings
        self._again = settings_again
        self._busy = threading.Lock()

    def start(self, reply: SimpleQueue[Any] | None, screen: Screen) -> None:
        """Reads and checks here, since importing belongs to the main thread; what takes time is done in another."""
        if not self._busy.acquire(blocking=False):
            self._done(CommandError("busy", "a reload is under way", "try again when it is done"), reply, screen)
            return
        try:
            target, tree, settings = self._read()
            plan = difference(self._tree, tree)
        except Exception as error:
            self._busy.release()
            self._done(error, reply, screen)
            return

        def carry_out() -> None:
            try:
                result: Any = self._carry_out(tree, plan)
                self._target, self._tree, self._settings = target, tree, settings
            except Exception as error:
                result = error
            finally:
                self._busy.release()
            self._done(result, reply, screen)

        threading.Thread(target=carry_out, name="shmrt-reload", daemon=True).start()

    @staticmethod
    def _done(result: Any, reply: SimpleQueue[Any] | None, screen: Screen) -> None:
        if isinstance(result, Exception):
            hint = getattr(result, "hint", None)
            if not isinstance(result, CommandError):
                result = CommandError("failed", f"not reloaded: {result}", hint)
            screen.note(f"reload: {result}" + (f" ({hint})" if hint else ""), colour="red")
        else:
            counts = ", ".join(f"{len(ids)} {what}" for what, ids in result["children"].items() if ids)
            screen.note(f"reload: done ({counts or 'no children'})")
        if reply is not None:
            reply.put(result)

    def _read(self) -> tuple[Target, Any, dict[str, Any]]:
        from shmrt.cli.run import load_target
        from shmrt.cli.serve import shaped

        settings = self._again()
        fixed = [key for key in settings if key.startswith(("http.", "health."))]
        for key in ("runtime.name", "runtime.shm_limit", *fixed):
            if settings[key] != self._settings[key]:
                raise CliError(f"{key} changed, which only a new start can do", hint="stop and run it again")
        target = load_target(settings)
        if target.tree is None:
            raise CliError(f"target {target.name!r} is no supervision tree any more")
        if target.rings != self._target.rings or target.inputs != self._target.inputs:
            raise CliError("rings or inputs changed, which only a new start can do", hint="stop and run it again")
        return target, shaped(target.tree, settings), settings

    def _carry_out(self, tree: Any, plan: dict[str, list[Any]]) -> dict[str, Any]:
        top = self._runtime.supervisor()
        old = {child.id: child for child in getattr(self._tree, "children", ())}
        new = {child.id: child for child in getattr(tree, "children", ())}
        for id in plan["gone"]:
            self._end(top, id)
        for id in plan["other"]:
            self._end(top, id)
            self._start(top, new[id], old[id])
        for id in plan["new"]:
            self._start(top, new[id], None)
        for id in plan["resized"]:
            self._pool(old[id])._pool().resize(new[id].kwargs["max_workers"])
        for id in plan["same"]:
            self._renew(top, old[id])
        return {"children": {what: [str(id) for id in ids] for what, ids in plan.items()}}

    @staticmethod
    def _end(top: Any, id: Any) -> None:
        from shmrt.errors import NotFound

        try:
            top.terminate_child(id)
            top.delete_child(id)
        except NotFound:
            pass  # a temporary one that has ended is forgotten already

    def _start(self, top: Any, child: Any, old: Any) -> None:
        try:
            top.start_child(child)
        except Exception as error:
            if old is None:
                raise CommandError("failed", f"child {child.id!r} did not start: {error}") from None
            top.start_child(old)
            text = f"child {child.id!r} did not start as it is now, and runs as it was before: {error}"
            raise CommandError("failed", text) from None

    def _pool(self, child: Any) -> Any:
        for opened in list(self._runtime._pools.values()):
            if opened.name == (child.name or str(child.id)):
                return opened
        raise CommandError("failed", f"pool {child.id!r} is not open just now")

    def _renew(self, top: Any, child: Any) -> None:
        from shmrt.children import kind_of
        from shmrt.errors import ChildStateError, NotFound

        if kind_of(child.start) == "pool":
            opened = self._pool(child)
            for row in opened.core.workers():
                opened.core.retire(row["slot"], row["epoch"])
            return
        try:
            top.terminate_child(child.id)
            top.restart_child(child.id)
        except (NotFound, ChildStateError):
            pass  # it has ended for good, or its supervisor is restarting it just now

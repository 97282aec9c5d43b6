"""Commands from the control socket that the program carries out: it has the pools, and knows what it was told to run.

They come through the root (`supervise/answers.py`), already in order. Each runs in a thread of its own, because some
wait: `drain` for the last task, `restart --rolling` for one worker after the other. A command says as soon as its
orders are given (`waits`), so that the next may begin, and once more when it is done.

`python -m shmrt run` sets `on_stop` and `on_reload`. In any other program `stop` ends the runtime as `Runtime.stop`
does, after what was accepted is done, and `reload` is refused: only `run` knows a configuration.
"""

from __future__ import annotations

import threading
from time import monotonic, sleep

from shmrt import _native

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from shmrt.pool_opened import OpenedPool
    from shmrt.runtimes import Runtime

__all__ = ["CommandError", "RuntimeCommands"]

_LOOK_S = 0.005
_DRAIN_S = 30.0


class CommandError(Exception):
    """Why a command is refused: what the client reads."""

    def __init__(self, code: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.hint = hint


class RuntimeCommands:
    """One for each named runtime. `obey` is called with ("command", number, verb, args) of the root's."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._paused: set[int] = set()
        self.on_stop: Callable[[bool], None] | None = None
        """Called with `now`; ends whatever uses the runtime, and by that the runtime."""
        self.on_reload: Callable[[], dict[str, Any]] | None = None
        """Reads the configuration again; returns what changed. CommandError: the old one stays."""

    def obey(self, number: int, verb: str, args: dict[str, Any]) -> None:
        """Does not wait. Called in the thread shmrt-link."""
        name = f"shmrt-command-{number}"
        try:
            threading.Thread(target=self._carry_out, args=(number, verb, args), name=name, daemon=True).start()
        except RuntimeError as error:  # no thread can be had
            self._say("command_done", number, False, {"code": "failed", "message": str(error), "hint": None})

    def _carry_out(self, number: int, verb: str, args: dict[str, Any]) -> None:
        def waits(text: str) -> None:
            self._say("command_waits", number, text)

        try:
            method = getattr(self, f"_do_{verb}", None)
            if method is None:
                raise CommandError("unknown_verb", f"this program knows no command {verb!r}")
            self._say("command_done", number, True, method(args, waits))
        except CommandError as error:
            body = {"code": error.code, "message": str(error), "hint": error.hint}
            self._say("command_done", number, False, body)
        except Exception as error:
            body = {"code": "failed", "message": f"{type(error).__name__}: {error}", "hint": None}
            self._say("command_done", number, False, body)

    def _say(self, *message: object) -> None:
        from shmrt.errors import RuntimeDown

        try:
            self._runtime._link._send(*message)
        except RuntimeDown:
            pass  # whoever waits sees the end of the root

    def _do_supervise(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        from shmrt.runtime_supervise import supervise

        return supervise(self._runtime, args, waits)

    # ---- pools ------------------------------------------------------------------------------------------------------
    def _pool(self, args: dict[str, Any]) -> OpenedPool:
        for opened in list(self._runtime._pools.values()):
            if opened.name == args.get("pool"):
                return opened
        raise CommandError("not_found", f"there is no pool {args.get('pool')!r} any more")

    def _do_scale(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        opened, workers = self._pool(args), args.get("workers")
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise CommandError("usage", f"workers={workers!r} must be a whole number of at least 1")
        if workers == opened.max_workers and self._ready(opened) == workers:
            return {"already": True, "workers": workers}
        before = opened.max_workers
        pool = opened._pool()
        if pool is None:
            raise CommandError("failed", f"pool {opened.name} is ending: its program let go of it")
        try:
            pool.resize(workers)
        except (ValueError, RuntimeError) as error:
            raise CommandError("usage", str(error)) from None
        waits(f"pool {opened.name} to have {workers} workers")
        self._until(opened, lambda: self._ready(opened) == workers or opened.max_workers != workers)
        if opened.max_workers != workers:
            return {"superseded": True, "workers": opened.max_workers}
        return {"workers": workers, "before": before}

    @staticmethod
    def _ready(opened: OpenedPool) -> int:
        return int(dict(opened.core.stats()).get("workers_ready", 0))

    def _until(self, opened: OpenedPool, reached: Callable[[], bool]) -> None:
        """Raises CommandError if the pool, or all of it, ends before."""
        while not reached():
            if opened.is_broken:
                raise CommandError("failed", f"pool {opened.name} is broken: its workers do not start")
            if self._runtime._stopped or opened.number not in self._runtime._pools:
                raise CommandError("ending", f"pool {opened.name} ended meanwhile")
            sleep(_LOOK_S)

    def _do_pause(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        return self._pause(self._pool(args), True)

    def _do_resume(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        return self._pause(self._pool(args), False)

    def _pause(self, opened: OpenedPool, on: bool) -> dict[str, Any]:
        already = (opened.number in self._paused) == on
        opened.core.pause(on)
        (self._paused.add if on else self._paused.discard)(opened.number)
        return {"number": opened.number, "pool": opened.name, "paused": on, **({"already": True} if already else {})}

    def _do_drain(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        several = [self._pool(args)] if args.get("pool") is not None else list(self._runtime._pools.values())
        drained = 0
        for opened in several:
            if pending := self._pending(opened):
                drained += pending
                paused = " (it is paused)" if opened.number in self._paused else ""
                waits(f"{pending} tasks of pool {opened.name}{paused}")
                self._until(opened, lambda opened=opened: bool(opened.core.wait_pending(0, 0)))  # type: ignore[misc]
        return {"drained": drained} if drained else {"drained": 0, "already": True}

    @staticmethod
    def _pending(opened: OpenedPool) -> int:
        return int(dict(opened.core.stats()).get("pending", 0))

    def _do_restart(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        """Without `pool` every pool. Tasks in hand: rolling lets them finish, else they count no attempt."""
        several = [self._pool(args)] if args.get("pool") is not None else list(self._runtime._pools.values())
        if not several:
            raise CommandError("not_found", "there is nothing to restart: no tree and no pools")
        number = args.get("worker")
        count = 0
        for opened in several:
            rows = [row for row in opened.core.workers() if row["ready"]]
            if number is not None:
                rows = [row for row in rows if row["worker"] == number]
                if not rows:
                    raise CommandError("failed", f"worker {opened.name}/{number} is not ready; it is being started")
            waits(f"{len(rows)} workers of pool {opened.name} to be replaced")
            count += len(rows)
            if args.get("rolling"):
                for row in rows:
                    opened.core.retire(row["slot"], row["epoch"])
                    self._until(opened, lambda row=row: not self._lives(row))  # type: ignore[misc]
            else:
                for row in rows:
                    self._runtime._link.kill(row["slot"], row["epoch"], _native.KILL_RESTART)
                self._until(opened, lambda rows=rows: not any(map(self._lives, rows)))  # type: ignore[misc]
            self._until(opened, lambda opened=opened: self._ready(opened) >= opened.max_workers)  # type: ignore[misc]
        return {"restarted": count}

    def _lives(self, row: dict[str, Any]) -> bool:
        slots = self._runtime._slots
        return bool(slots.epoch(row["slot"]) == row["epoch"] and slots.state(row["slot"]) == _native.SLOT_READY)

    # ---- all of it --------------------------------------------------------------------------------------------------
    def _do_reload(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        if self.on_reload is None:
            raise CommandError(
                "failed",
                "this program has no configuration to reload: it was not started by `python -m shmrt run`",
                "`restart --rolling` replaces its workers",
            )
        return self.on_reload()

    def _do_stop(self, args: dict[str, Any], waits: Callable[[str], None]) -> dict[str, Any]:
        now = bool(args.get("now"))
        waits("the runtime to end")
        if self.on_stop is not None:
            self.on_stop(now)
        else:
            self._end(0.0 if now else float(args.get("timeout") or _DRAIN_S))
        self._runtime.wait()
        return {"stopped": True}

    def _end(self, seconds: float) -> None:
        end = monotonic() + seconds
        for opened in self._accepting():
            opened.core.wait_pending(0, max(0, int((end - monotonic()) * 1e9)))
        self._runtime.stop()

    def _accepting(self) -> Iterator[OpenedPool]:
        """Every pool, once none of them takes anything new."""
        several = list(self._runtime._pools.values())
        for opened in several:
            opened.core.close()
        yield from several

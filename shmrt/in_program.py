"""Children of a tree that live in the program: pools, which its hub dispatches, and pipelines.

The root says when to open and to close one; the program does it, each in a thread of its own, and says how it went. A
pool is open when a worker serves; it ends with `PoolBroken` when its workers cannot be kept running, with "normal" when
somebody shut it down. A pipeline is one run, whose outputs nobody takes; its end is "normal", its failure a crash.
"""

from __future__ import annotations

import sys
import threading

from shmrt.errors import RuntimeDown

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.runtime_tree import TreeSide

__all__ = ["InProgram", "in_thread"]


class InProgram:
    """A pool or a pipeline that is a child of a tree."""

    def __init__(self, side: TreeSide, label: str, path: tuple[Any, ...]) -> None:
        self.side = side
        self.label = label
        self.path = path
        self.key = self.incarnation = 0
        self.pool: Any = None
        self.run: Any = None
        self.door: Any = None
        self.is_closing = False
        self.is_over = False
        self._opening = threading.Lock()  # the next root may ask while what the last one asked for is being done
        self._lock = threading.Lock()  # of `door`

    def open(self, data: dict[str, Any]) -> None:
        """Says "ready" or how it failed."""
        with self._opening:
            self._open(data)

    def _open(self, data: dict[str, Any]) -> None:
        if self.pool is not None or self.run is not None:
            self._open_door(data)
            self._say("child_ready")  # it has outlived a root
            return
        try:
            from _pickle import loads

            start, args, kwargs = loads(data["blob"])
            if data["kind"] == "pool":
                pool = start(*args, **{"name": data["name"] or data["label"], **kwargs, "runtime": self.side.runtime})
                self.pool = pool
                pool.submit(int).result()  # some worker serves
                self._open_door(data)
            else:
                self.run = start.run()
                in_thread(f"shmrt-run-{self.label}", self._run)
        except BaseException as error:
            self.over(_reason(error))
            if self.pool is not None:
                self.pool.terminate_workers()
            return
        self._say("child_ready")

    def _open_door(self, data: dict[str, Any]) -> None:
        """From here on other processes reach it through its mailbox, unless its end has begun meanwhile."""
        self._close_door()
        if self.pool is None:
            return
        from shmrt.pool_ref import Door

        home = self.side.home
        door = Door(home, home.mailbox(data["address"]), self.pool)
        with self._lock:
            if not self.is_closing and not self.is_over:
                self.door = door
                return
        door.close()

    def _close_door(self) -> None:
        with self._lock:
            door, self.door = self.door, None
        if door is not None:
            door.close()

    def _run(self) -> None:
        try:
            with self.run as run:
                for _ in run:
                    pass
        except BaseException as error:
            self.over(_reason(error))
        else:
            self.over("normal")

    def close(self) -> None:
        """What was accepted is done first."""
        self.is_closing = True
        self._close_door()
        if self.pool is not None:
            self.pool.shutdown(wait=True)
        elif self.run is not None:
            self.run.close()
        self.over("shutdown")

    def kill(self) -> None:
        self.is_closing = True
        self._close_door()
        if self.pool is not None:
            self.pool.terminate_workers()
        elif self.run is not None:
            self.run.close()
        self.over("killed")

    def leave(self) -> None:
        """The runtime has ended, and with it the pools."""
        self.is_closing = self.is_over = True
        self._close_door()

    def forsake(self) -> None:
        """Its supervisor is gone for good: as `kill`, and nobody is told."""
        self.leave()
        if self.pool is not None:
            self.pool.terminate_workers()
        elif self.run is not None:
            self.run.close()

    def over(self, reason: Any) -> None:
        """Once."""
        with self._lock:
            first, self.is_over = not self.is_over, True
        if first:
            self.side.inside.pop(self.key, None)
            if self.door is not None:
                in_thread(f"shmrt-close-{self.label}", self._close_door)
            self._say("child_exited", reason)

    def _say(self, verb: str, *more: Any) -> None:
        try:
            self.side.runtime._link.say(verb, self.key, self.incarnation, *more)
        except RuntimeDown:
            pass  # nobody is there to hear it


def _reason(error: BaseException) -> tuple[Any, ...]:
    from shmrt.process.packing import pack_exception

    _, name, message, text = pack_exception(error)
    return ("error", name, message, text)


def in_thread(name: str, work: Callable[[], None]) -> None:
    def run() -> None:
        try:
            work()
        except Exception:
            sys.excepthook(*sys.exc_info())

    threading.Thread(target=run, daemon=True, name=name).start()

"""What a runtime hears: events of its root, in the thread `shmrt-link`, and notes of its hub, in `shmrt-dispatch`."""

from __future__ import annotations

import sys
import threading

from shmrt import _native

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable
    from typing import Any

    from shmrt.pool_opened import OpenedPool
    from shmrt.runtime_named import NamedSide
    from shmrt.runtime_tree import TreeSide

__all__ = ["RuntimeEvents"]

_OF_TREES = ("event", "log", "open_child", "close_child", "kill_child", "top_ended", "root_started", "root_lost")
_PATIENCE_S = 1.0
_INTERNAL = ("log", "command", "checks", "open_child", "close_child", "kill_child", "top_ended")
_NOTICES_MOST = 1000


class RuntimeEvents:
    """Mixed into Runtime."""

    if TYPE_CHECKING:

        def _hear_checks(self, number: int) -> None: ...

    _pools: dict[int, OpenedPool]
    _on_event: Callable[[Any], None] | None
    _ended: threading.Event
    _lock: Any
    _down: Any
    _link: Any
    _hub: Any
    _arena: Any
    _trees: TreeSide | None
    _notices: list[dict[str, Any]]  # what was reported before there was a tree
    _named: NamedSide | None = None
    _dispatcher: threading.Thread
    _hearing: Any  # held by whoever takes notes: one that is being unpickled is nowhere else
    _to_dispatch: deque[tuple[Callable[..., object], tuple[Any, ...]]]
    if TYPE_CHECKING:

        @property
        def _is_mine(self) -> bool: ...

    # ---- events ---------------------------------------------------------------------------------------------------
    def events(self) -> list[dict[str, Any]]:
        """The last thousand reports, oldest first: what happened to the trees and what was decided, and which places
        were full. Each has event, seq, monotonic_ns, supervisor (path), context, reason and offender; those named
        "overload" have `measurements` (count, refused, dropped, expired since the last one of that place) and
        `metadata` (where, kind, policy, capacity, pid). They survive the root."""
        found = list(self._notices)
        return found if self._trees is None else found + self._trees.reports()

    def _handle_event(self, event: tuple[Any, ...]) -> None:
        """In the thread shmrt-link."""
        verb = event[0]
        if self._trees is not None and verb in _OF_TREES:
            self._trees.hear(event)
        elif verb == "event":
            self._notices.append(event[1])
            del self._notices[:-_NOTICES_MOST]
        if self._named is not None:
            self._named.hear(event)
        if self._trees is not None and verb == "removed":
            self._trees.pool_removed(event[1])
        if verb == "checks":
            self._hear_checks(event[1])
        elif verb == "orphaned":
            self._arena.reclaim_dead()
        elif verb == "root_lost":
            for owner in self._link.lost_owners:
                self._arena.reclaim_of(owner)
        about_pool = verb in ("removed", "pool_broken", "start_failed", "dropped")
        opened = self._pools.get(event[1]) if about_pool else None
        if opened is not None and verb == "dropped":
            name = f"shmrt-end-{opened.name}"
            threading.Thread(target=opened.end_dropped, daemon=True, name=name).start()
        elif opened is not None and verb == "removed":
            opened.removed.set()
        elif opened is not None and verb == "start_failed":
            opened.start_failures.append(str(event[4]))
            del opened.start_failures[:-50]
        elif opened is not None and verb == "pool_broken":
            self._break(opened, [str(reason) for reason in event[2]])
        if self._on_event is not None and verb not in _INTERNAL:
            try:
                self._on_event(event[1] if verb == "event" else event)
            except BaseException:  # of its own; SystemExit, too, must not end this thread
                sys.excepthook(*sys.exc_info())

    def on_stop_command(self, stop: Callable[[bool], None]) -> None:
        """Has `python -m shmrt stop` call this, with whether it is to be at once, instead of ending the runtime."""
        if self._named is not None:
            self._named.commands.on_stop = stop

    def on_reload_command(self, reload: Callable[[], dict[str, Any]]) -> None:
        """Has `python -m shmrt reload` call this, in a thread of its own; what it returns is the answer."""
        if self._named is not None:
            self._named.commands.on_reload = reload

    def _take_name(self, name: str | None) -> None:
        """ConfigError if a living runtime has it."""
        if name is not None:
            from shmrt.runtime_named import NamedSide

            self._named = NamedSide(self, name)  # type: ignore[arg-type]

    def _serve_name(self) -> None:
        if self._named is not None:
            self._named.serve(self._link)

    def _end_name(self) -> None:
        """What a named runtime has on disk goes, unless it says why the runtime ended."""
        if self._named is not None:
            from shmrt.runtime_named import why_it_gave_up

            reports = [] if self._trees is None else self._trees.events
            self._named.end(None if self._down is None else why_it_gave_up(self._down, reports))
            self._named = None

    def _break(self, opened: OpenedPool, reasons: list[str]) -> None:
        from shmrt.process import remote
        from shmrt.supervise.launch import limit_in

        # The workers' own words come through their result lanes, just before they end.
        self._hub.pump()
        self.hear_notes(_PATIENCE_S)  # that code may be waiting for this thread
        opened.is_broken = True
        reasons = [reason + limit_in(reason) for reason in (opened.start_failures + reasons)[-50:]]
        remote.keep_reasons(opened.name, reasons)
        if opened.core is not None:  # else it is just being opened, and will find its root down
            opened.core.break_pool()
        if self._trees is not None:
            self._trees.pool_broken(opened.number, reasons)

    def _handle_down(self, reason: str) -> None:
        self._down = reason
        for opened in list(self._pools.values()):
            self._break(opened, [f"the root supervisor is gone: {reason}"])
            opened.removed.set()
        self._ended.set()

    def _dispatch(self) -> None:
        """The thread shmrt-dispatch: completions of watched futures, and what notes of the hub ask of it."""
        with self._lock:  # held while the runtime starts
            if self._hub is None:
                return
        going = True
        while going:
            try:
                going = self._hub.dispatch_once()
                self.hear_notes()
                while self._to_dispatch:
                    function, arguments = self._to_dispatch.popleft()
                    function(*arguments)
            except BaseException:  # of a handler, or of a value that was unpickled; it must not end this thread
                sys.excepthook(*sys.exc_info())

    def hear_notes(self, patience: float = -1) -> None:
        """Any thread. What workers have told until now is known when this returns, whatever the dispatcher thread is
        at; only what runs code of the user's is left to that. A pool that ends hears its notes before it is forgotten.

        patience: how many seconds another thread may be at it, which runs code of the user's while it unpickles a
        value; -1: as long as it takes."""
        if self._hub is None or not self._is_mine or not self._hearing.acquire(timeout=patience):
            return
        try:
            while (note := self._hub.take_note()) is not None:
                self._handle_note(*note)
        finally:
            self._hearing.release()

    def _handle_note(
        self, kind: int, number: int, slot: int, epoch: int, worker: int, task: int, value: Any, crash: dict[str, Any]
    ) -> None:
        opened = self._pools.get(number)
        if opened is None:
            return
        if kind == _native.NOTE_LOG and value is not None:
            from shmrt.process.remote import handle_log, keep_log

            keep_log(opened.name, worker, value)
            self._leave_to_dispatcher(handle_log, opened.name, worker, value)
        elif kind == _native.NOTE_EXIT:
            opened.exit_values.append(value)
        elif kind == _native.NOTE_START_FAILED and value is not None:
            opened.start_failures.append(value[3].strip() or f"{value[1]}: {value[2]}")
            del opened.start_failures[:-50]
        elif kind == _native.NOTE_REPLACE:
            self._leave_to_dispatcher(self._link.replace, slot, epoch)
        elif kind == _native.NOTE_EXPIRED:
            opened.admission.look()

    def _leave_to_dispatcher(self, function: Callable[..., object], *arguments: Any) -> None:
        self._to_dispatch.append((function, arguments))
        if threading.current_thread() is not self._dispatcher:
            self._hub.wake_dispatcher()

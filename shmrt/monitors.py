"""Monitors, links and groups: hearing of the end of processes, ending with them, finding them by what they do.

    with monitor(ref) as m: m.wait(timeout)   one way: Down(reason) when it ends (`erlang:monitor/2`)
    link(ref), unlink(ref)                    mutual, between children of a tree (`erlang:link/1`)
    join, leave, members (group)              any number of processes under one name (`pg`)

Each belongs to one incarnation of a child: after a restart it is made anew by whoever wants it. Who made a monitor
takes it along when it dies.
"""

from __future__ import annotations

import threading

from shmrt import _native
from shmrt.errors import NotFound, Overloaded, RuntimeDown
from shmrt.handles import Ref, make_ref, reason_from
from shmrt.home import home
from shmrt.process.server_words import Down
from shmrt.spec import check_name
from shmrt.supervise.asking import AskError

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from shmrt.home import Home

__all__ = ["Down", "Monitor", "join", "leave", "link", "members", "monitor", "unlink"]


class Monitor:
    """Watches one incarnation of a child (OTP's `erlang:monitor/2`). A context manager; leaving it stops the watch.

    If nothing runs, it falls at once with reason "noproc". In a server the Down comes to `handle_info`, too."""

    def __init__(self, ref: Any) -> None:
        self.ref = ref = _ref_of(ref)
        self._home: Home = _home_of(ref)
        self._fallen = threading.Event()
        self._down: Down | None = None
        self.number, alive = self._home.ask("monitor", ref.key)
        if alive:
            self._home.link.watch(self.number, self._fall)
        else:
            self._fall(ref.key, "noproc")

    def _fall(self, key: int, reason: Any) -> None:
        self._down = Down(reason_from(reason), self.number, self.ref.key)
        self._fallen.set()
        from shmrt.supervise.child import this_child

        child = this_child()
        if child is not None and child.mailbox is not None:
            child.deliver(("down", self.number, self.ref.key, self._down.reason))

    def wait(self, timeout: float | None = None) -> Down | None:
        """Down(reason) once it has ended; None if it has not in `timeout` seconds."""
        self._fallen.wait(timeout)
        return self._down

    def cancel(self) -> None:
        """Stops watching; no Down comes any more (OTP's demonitor with flush)."""
        if not self._fallen.is_set():
            self._home.link.unwatch(self.number)
            try:
                self._home.ask("demonitor", self.number)
            except RuntimeDown:
                pass  # with the root every monitor is gone

    def __enter__(self) -> Monitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.cancel()


def monitor(ref: Any) -> Monitor:
    """Watches the process that `ref` means now; `wait` on what it returns. See Monitor."""
    return Monitor(ref)


def _ref_of(ref: Any) -> Any:
    """The reference itself; an Agent has one. TypeError: it is none."""
    found = ref if _is_ref(ref) else getattr(ref, "ref", None)
    if not _is_ref(found):
        raise TypeError(f"this takes a reference to a server, process or supervisor, not {ref!r}")
    return found


def _is_ref(ref: Any) -> bool:
    return isinstance(ref, Ref) or hasattr(type(ref), "_reach")


def _home_of(ref: Any) -> Home:
    """The runtime of a reference of any kind."""
    found: Home = ref._home if isinstance(ref, Ref) else ref._reach()
    return found


def link(ref: Any) -> bool:
    """Ties this child's process to another's: if either ends abnormally, the other gets an exit signal
    (`erlang:link/1`).

    Only a child of a tree can; the program and pool workers use `monitor`. False if nothing runs there: the signal is
    then on its way."""
    ref = _ref_of(ref)
    return bool(_own("link", _home_of(ref), ref.key))


def unlink(ref: Any) -> bool:
    """Undoes `link`."""
    ref = _ref_of(ref)
    return bool(_own("unlink", _home_of(ref), ref.key))


def _own(verb: str, home: Home, *arguments: Any) -> Any:
    try:
        return home.ask(verb, *arguments)
    except AskError as error:
        if error.code == "not_a_child":
            instead = "name whom: ref=" if verb in ("join", "leave") else "use monitor()"
            raise RuntimeError(f"{verb}() is for the processes of a tree; this one is none ({instead})") from None
        if error.code == "full":
            raise Overloaded(error.more, capacity=_native.LAYOUT["NAMES_DEFAULT"], where="names") from None
        raise NotFound(f"{verb}(): {error.more!r} is gone") from None


# ---- groups --------------------------------------------------------------------------------------------------------
def _check_group(group: object) -> None:
    if not isinstance(group, str):
        raise TypeError(f"group must be a string, not {group!r}")
    check_name(group, "group")


def join(group: str, ref: Any = None) -> bool:
    """Makes this child, or the one of `ref`, a member of a group until it ends or leaves. False: it was one already."""
    _check_group(group)
    return _grouped("join", group, ref)


def leave(group: str, ref: Any = None) -> bool:
    """Undoes `join`. False: it was no member."""
    _check_group(group)
    return _grouped("leave", group, ref)


def _grouped(verb: str, group: str, ref: Any) -> bool:
    if ref is None:
        return bool(_own(verb, home(), group, None))
    ref = _ref_of(ref)
    return bool(_own(verb, _home_of(ref), group, ref.key))


def members(group: str) -> list[Any]:
    """References to the living members of a group, in the order of joining. Read from shared memory: nobody is
    asked."""
    _check_group(group)
    here = home()
    found = []
    for key, kind, _pid, address in here.entries(group):
        who = {"kind": kind, "name": None, "label": group, "mailbox": address, "handlers": None}
        found.append(make_ref(here, key, who))
    return found

"""Names, groups and mailboxes of children: the root writes them, every process of the runtime reads them without
asking.

The registry lies in shared memory (`native/names.h`); its only writer is the root. Three kinds of entries:

    a name     at most one living holder; entered when its process is started, gone before a restart is attempted
    supervisor a name, too, for whoever has no child of that name; while the supervisor is there
    a group    any number of members, each entered once; gone with the member's process

An entry's value says who it is (`address`), which is all that another process needs to send it a message. A mailbox
belongs to the child and not to its process: the root makes it at the first start and holds its descriptor, from which
others open it.
"""

from __future__ import annotations

import marshal
import os
from contextlib import suppress

from shmrt import _native
from shmrt.errors import Overloaded

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.supervise.kin import Kin

__all__ = ["GROUP", "NAME", "SUPERVISOR", "Registry", "read_entry"]

ON_FULL = ("block", "raise", "drop_oldest", "drop_newest")
NAME, GROUP, SUPERVISOR = "n", "g", "s"  # what an entry's name begins with


def read_entry(value: bytes) -> tuple[Any, ...]:
    """(key, kind, pid, address): address is (root's pid, descriptor, inode, token) of the mailbox, or None."""
    found = marshal.loads(value)
    return tuple(found)


class Registry:
    """Everything by the key of a child."""

    def __init__(self, slots: _native.Slots) -> None:
        self.names = _native.Names(slots)
        self.names.clear()
        self._holders: dict[str, int] = {}
        self._supervisors: dict[int, int] = {}  # by key: index
        self._groups: dict[int, dict[str, int]] = {}  # by key: group -> index
        self.own_pid = os.getpid()
        self.adopted: dict[tuple[Any, ...], int] = {}  # mailboxes of the root before this one, by path: descriptors
        self.on_mailbox: Callable[[Kin, int], None] = lambda kin, fd: None  # -1: it is closed

    # ---- names ------------------------------------------------------------------------------------------------------
    def refusal(self, kin: Kin) -> tuple[Any, ...] | None:
        """Why it cannot start under its name: somebody else has that, or there is room for no more."""
        name, most = kin.data["name"], _native.LAYOUT["NAMES_DEFAULT"]
        holder = None if name is None else self._holders.get(name)
        if holder is not None and holder != kin.key:
            return ("already_started", holder)
        if name is not None and kin.name_index < 0 and self.names.count >= most:
            return ("error", "shmrt.errors.Overloaded", f"the registry holds its {most} names", "")
        return None

    def enter(self, kin: Kin) -> None:
        name = kin.data["name"]
        if name is not None and kin.name_index < 0:
            try:
                kin.name_index = self.names.put(NAME + name, self.value(kin))
            except Overloaded:  # others came while it started: it lives without
                return
            self._holders[name] = kin.key

    def leave(self, kin: Kin) -> None:
        """Its process is gone: name and groups are free."""
        if kin.name_index >= 0:
            self.names.remove(kin.name_index)
            kin.name_index = -1
            del self._holders[kin.data["name"]]
        for index in self._groups.pop(kin.key, {}).values():
            self.names.remove(index)

    def name_supervisors(self, machines: dict[int, Any]) -> None:
        """These are all there are, by key."""
        names = {key: machine.spec.name for key, machine in machines.items() if machine.spec.name is not None}
        for key in self._supervisors.keys() - names.keys():
            self.names.remove(self._supervisors.pop(key))
        for key in names.keys() - self._supervisors.keys():
            value = marshal.dumps((key, "supervisor", 0, None), 2)
            with suppress(Overloaded):
                self._supervisors[key] = self.names.put(SUPERVISOR + names[key], value)

    def join(self, kin: Kin, group: str) -> bool:
        """False: it is a member already."""
        groups = self._groups.setdefault(kin.key, {})
        if group in groups:
            return False
        groups[group] = self.names.put(GROUP + group, self.value(kin))
        return True

    def quit(self, kin: Kin, group: str) -> bool:
        index = self._groups.get(kin.key, {}).pop(group, None)
        if index is not None:
            self.names.remove(index)
        return index is not None

    def value(self, kin: Kin) -> bytes:
        return marshal.dumps((kin.key, kin.data["kind"], kin.pid or 0, self.address(kin)), 2)

    def address(self, kin: Kin) -> tuple[int, int, int, bytes] | None:
        box = kin.mailbox
        return None if box is None else (self.own_pid, box.fd, box.inode, box.token)

    # ---- mailboxes --------------------------------------------------------------------------------------------------
    def open_mailbox(self, kin: Kin, calls: _native.Calls) -> None:
        """Before a start: made once, kept over restarts unless the child wants a fresh one."""
        shape = kin.data.get("mailbox")
        if shape is None:
            return
        if kin.mailbox is None:
            fd = self.adopted.pop(kin.path, -1)
            if fd >= 0:
                kin.mailbox = _native.Mailbox.attach(fd, _native.Arena.default(), calls)
                os.close(fd)
            else:
                slots, slot_bytes, on_full = shape
                kin.mailbox = _native.Mailbox.create(
                    slots, slot_bytes, ON_FULL.index(on_full), _native.Arena.default(), calls
                )
            self.on_mailbox(kin, kin.mailbox.fd)
        elif kin.data["drop_on_restart"]:
            kin.mailbox.drop_all(calls, "restarted")

    def close_mailbox(self, kin: Kin, calls: _native.Calls, reason: Any) -> None:
        """Nobody will serve it: whoever waits hears so, whoever comes finds it closed."""
        if kin.mailbox is not None:
            kin.mailbox.close()
            kin.mailbox.drop_all(calls, reason)
            calls.fail_waiting(kin.key, reason)
            kin.mailbox = None
            self.on_mailbox(kin, -1)

"""What the root knows of each pool: its workers, its template, what is asked of it."""

from __future__ import annotations

import os

from shmrt import _native
from shmrt.decide.keeper import Keeper

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.protocol import Channel
    from shmrt.supervise.standbys import Standby
    from shmrt.supervise.templates import Template

__all__ = ["Crew", "Worker"]


class Worker:
    """One process in one slot. `pid` is 0 while a template has not said it yet."""

    __slots__ = (
        "channel",
        "crew",
        "dying",
        "epoch",
        "judged",
        "kill_ns",
        "number",
        "pid",
        "pidfd",
        "ready",
        "replaces",
        "retiring",
        "slot",
        "start_ns",
        "unable",
    )

    def __init__(self, crew: Crew, slot: int, epoch: int, number: int, now_ns: int) -> None:
        self.crew = crew
        self.slot = slot
        self.epoch = epoch
        self.number = number
        self.start_ns = now_ns
        self.pid = 0
        self.pidfd = -1
        self.channel: Channel | None = None  # for the pools that it makes
        self.ready = False
        self.dying = False  # its end is certain
        self.judged = False  # the keeper knows why, so it may be replaced before it is torn down
        self.retiring = False  # the hub lets it finish once its replacement is ready
        self.replaces: tuple[int, int] | None = None
        self.unable: str | None = None  # why the root gave it up while it started
        self.kill_ns = 0  # when SIGKILL follows whatever was tried before; 0: not planned

    @property
    def stays(self) -> bool:
        return not self.judged and not self.retiring

    def close_channel(self) -> None:
        if self.channel is not None:
            os.close(self.channel.fd)
            self.channel.closed = True
            self.channel = None


class Crew:
    """One pool."""

    __slots__ = (
        "broken_told",
        "channel",
        "count",
        "end_ns",
        "first",
        "hub_slot",
        "id",
        "keeper",
        "lanes_fd",
        "orphaned",
        "owner",
        "removing",
        "replacing",
        "restarts",
        "spec",
        "stacks_fd",
        "standby",
        "standby_wanted",
        "template",
        "workers",
    )

    def __init__(
        self,
        id: int,
        spec: dict[str, Any],
        first: int,
        count: int,
        fds: list[int],
        channel: Channel,
        owner: Worker | None = None,
        hub_slot: int = _native.SLOT_PROGRAM,
    ) -> None:
        self.id = id
        self.hub_slot = hub_slot
        self.channel = channel  # to whoever made it: the program, or a worker
        self.owner = owner
        self.orphaned = False  # its owner is dead: it ends, and the root frees its slots
        self.spec = spec
        self.first = first
        self.count = count
        self.lanes_fd, self.stacks_fd = (*fds, -1, -1)[:2]
        self.keeper = Keeper(
            spec["workers"],
            spares=spec.get("spares", 0),
            max_restarts=spec.get("max_restarts"),
            period_ns=int(spec.get("max_seconds", 60) * 1e9),
        )
        self.workers: dict[int, Worker] = {}  # by slot, until reaped
        self.replacing: list[tuple[int, int]] = []
        self.restarts: dict[int, int] = {}  # by number: how often that worker was started
        self.template: Template | None = None
        self.standby: Standby | None = None
        self.standby_wanted = False  # some worker became ready since the last one was asked for
        self.removing = False
        self.end_ns = 0  # when the grace of a removal is over
        self.broken_told = False

    @property
    def alive(self) -> int:
        return sum(worker.stays for worker in self.workers.values())

    @property
    def ready(self) -> int:
        return sum(worker.ready and not worker.dying for worker in self.workers.values())

    @property
    def may_stand_by(self) -> bool:
        if self.standby is not None or not self.standby_wanted or self.removing or self.keeper.broken:
            return False
        return not self.spec.get("preload") or (self.template is not None and self.template.ready)

    def free_number(self) -> int:
        used = {worker.number for worker in self.workers.values() if worker.stays}
        return next(number for number in range(len(used) + 1) if number not in used)

    def claim(self, slots: _native.Slots, now_ns: int) -> Worker | None:
        """A worker in the first EMPTY slot of the pool's range; None when the hub has not freed any yet."""
        for slot in range(self.first, self.first + self.count):
            if slot in self.workers or slots.state(slot) != _native.SLOT_EMPTY:
                continue
            number = self.free_number()
            try:
                epoch = slots.claim(slot, self.id, number)
            except RuntimeError:
                continue
            return self.enlist(slot, epoch, number, now_ns)
        return None

    def enlist(self, slot: int, epoch: int, number: int, now_ns: int) -> Worker:
        """The worker that has claimed this slot."""
        worker = self.workers[slot] = Worker(self, slot, epoch, number, now_ns)
        self.restarts[number] = self.restarts.get(number, -1) + 1
        if self.replacing:
            worker.replaces = self.replacing.pop(0)
        return worker

    def close(self) -> None:
        for fd in (self.lanes_fd, self.stacks_fd):
            if fd >= 0:
                os.close(fd)

"""Everybody whom the root has started, and what its parts share: slots, channel, and how a process is ended.

`starting.py` adds to it, `reaping.py` takes from it, `root_loop.py` asks both; no other state of the root exists.
"""

from __future__ import annotations

import os

from shmrt import _native
from shmrt.process import signals
from shmrt.process.spawn import Job
from shmrt.supervise.crew import Crew, Worker
from shmrt.supervise.protocol import Channel

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.supervise.report import Reports

__all__ = ["Staff"]


class Staff:
    """The root's processes, by crew and by pid."""

    def __init__(self, channel: Channel, slots: _native.Slots, arena_fd: int) -> None:
        self.channel = channel
        self.slots = slots
        self.arena_fd = arena_fd
        self.pid = os.getpid()
        self.crews: dict[int, Crew] = {}
        self.workers: dict[int, Worker] = {}  # by pid
        self.served = False  # some worker became ready
        self.strays = False  # an adopted child may be there
        self.kept_reports: Reports | None = None  # once there was one
        self.full_pools: dict[int, dict[str, int]] = {}  # what pools that were full last said they had counted
        self.tell_clients: Callable[[str, dict[str, Any], dict[str, Any]], None] | None = None  # of a named runtime

    @property
    def reports(self) -> Reports:
        if self.kept_reports is None:
            from shmrt.supervise.report import Reports

            self.kept_reports = Reports()
        return self.kept_reports

    def notice(self, name: str, measurements: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Something that happened to no child: kept and told like a report, with the same keys."""
        report = {
            "event": name,
            "context": name,
            "supervisor": (),
            "reason": None,
            "offender": {"id": metadata.get("where"), "key": 0, "pid": metadata.get("pid")},
            "measurements": measurements,
            "metadata": metadata,
        }
        self.channel.tell(("event", self.reports.keep(report)))

    def job(self, crew: Crew, one: Worker | None, control: int = -1) -> Job:
        """What a worker must know; without a worker, what its template or a standby can know before."""
        return Job(
            slots=self.slots,
            index=one.slot if one else -1,
            epoch=one.epoch if one else 0,
            pair=one.slot - crew.first if one else -1,
            number=one.number if one else 0,
            restarts=crew.restarts[one.number] if one else 0,
            spec=crew.spec,
            lanes_fd=crew.lanes_fd,
            stacks_fd=crew.stacks_fd,
            arena_fd=self.arena_fd,
            control_fd=control,
            hub_slot=crew.hub_slot,
            root_pid=self.pid,
        )

    def find(self, slot: int, epoch: int) -> Worker | None:
        for crew in self.crews.values():
            one = crew.workers.get(slot)
            if one is not None and one.epoch == epoch:
                return one
        return None

    def kill(self, one: Worker) -> None:
        one.dying = True
        one.kill_ns = 0
        if one.pidfd >= 0:
            _native.pidfd_signal(one.pidfd, signals.KILL)

    def order_and_kill(self, one: Worker, reason: int, task_id: int = 0) -> None:
        self.slots.order_kill(one.slot, reason, task_id)
        one.judged = True  # an ordered death is nobody's fault
        self.kill(one)

    def tell_gone(self, one: Worker, status: int, oom: bool) -> None:
        """Nothing of it is left that could write: its slot is GONE from here on."""
        self.slots.gone_anyway(one.slot, one.epoch, status, oom)
        if one.crew.orphaned:
            self.slots.free(one.slot)  # no hub will
        self.slots.ring_all()
        one.crew.channel.send(("gone", one.slot, one.epoch, status, oom))
        self.note("worker.exit", one, status, oom)

    def note(self, name: str, one: Worker, status: int | None = None, oom: bool = False) -> None:
        """An event of a pool's worker, for whoever looks at a named runtime."""
        if self.tell_clients is None or getattr(one.crew, "kin", None) is not None:
            return  # a child of a tree has reports of its own
        from time import monotonic_ns

        from shmrt.process.death import describe_status

        info = self.slots.info(one.slot)
        measured = {"seconds": round((monotonic_ns() - one.start_ns) / 1e9, 3), "done": info["done"]}
        who = {"pool": one.crew.spec["name"], "worker": one.number, "pid": one.pid, "incarnation": one.epoch}
        if status is not None:
            who |= {"reason": "out of memory" if oom else describe_status(status), "ordered": info["kill_reason"] != 0}
        self.tell_clients(name, measured, who)

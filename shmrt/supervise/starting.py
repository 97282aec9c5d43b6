"""How the root starts workers.

A worker comes to be in one of three ways:

    forked by the root           a pool without `preload`
    forked by the template       a pool with it (`templates.py`)
    from standing by             forked in a quiet moment before (`standbys.py`)

Whoever dies on the way costs nobody a message: a worker before READY is a start failure, which the keeper counts.
"""

from __future__ import annotations

import os
from time import monotonic_ns

from shmrt import _native
from shmrt.process import signals, worker
from shmrt.process.spawn import fork_child
from shmrt.supervise.crew import Crew, Worker
from shmrt.supervise.protocol import Channel
from shmrt.supervise.staff import Staff

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from shmrt.supervise.standbys import Standbys
    from shmrt.supervise.templates import Templates

__all__ = ["Starting"]


class Starting:
    """Adds to the staff. The root's loop brings the other two ways; until then there are neither templates nor
    standbys."""

    standbys: Standbys
    templates: Templates

    def __init__(self, staff: Staff) -> None:
        self.staff = staff

    def start(self, crew: Crew, now: int) -> bool:
        """One more worker; False when none can be started now."""
        if not self.can_man(crew):
            return False
        one = crew.claim(self.staff.slots, now)
        if one is None:
            return False
        if crew.standby is not None and self.standbys.call(crew, one):
            return True
        return self.man(crew, one)

    def can_man(self, crew: Crew) -> bool:
        return not crew.spec.get("preload") or self.templates.can_fork(crew)

    def man(self, crew: Crew, one: Worker) -> bool:
        """Has a process forked for this worker, by the root or by a template that can."""
        staff = self.staff
        try:
            ours, theirs = _native.socketpair(False)
        except OSError as error:
            self.not_started(one, f"its channel: {error}")
            return False
        one.channel = Channel(ours)
        pid = 0
        try:
            job = staff.job(crew, one, theirs)
            if crew.spec.get("preload"):
                command = ("spawn", one.slot, one.epoch, job.pair, one.number, job.restarts)
                self.templates.tell(crew, command, (theirs,))
            else:
                pid = fork_child(lambda: worker.run(job))
        except OSError as error:
            self.not_started(one, f"fork: {error}")
            return False
        finally:
            os.close(theirs)
        if pid:
            self.started(one, pid)
        return True

    def started(self, one: Worker, pid: int) -> None:
        """Its process exists. It keeps its slot until the kernel has torn it down, whatever fails here."""
        staff = self.staff
        one.pid = pid
        one.pidfd = self._pidfd(one)
        try:
            os.setpgid(pid, pid)  # the child does it too; whoever comes first
        except OSError:
            pass
        staff.workers[pid] = one
        staff.slots.set_process(one.slot, pid)
        one.crew.channel.send(("started", one.slot, one.epoch, pid))
        if one.dying:  # given up before its pid was known, or just now
            _native.pidfd_signal(one.pidfd, signals.KILL)

    @staticmethod
    def _pidfd(one: Worker) -> int:
        """Of our own child, not reaped yet: it is certainly this one. Where there is no descriptor for it, its channel
        gives way, and it ends. That it runs unwatched while another takes its slot must not be: an error here ends
        the root, and with it all that it has started."""
        try:
            return _native.pidfd_open(one.pid)
        except OSError as error:
            one.close_channel()
            one.dying = True
            one.unable = f"worker {one.number} cannot be watched: {error}"
            return _native.pidfd_open(one.pid)

    def not_started(self, one: Worker, reason: str, *, from_outside: bool = False) -> None:
        """A slot was claimed and no process came of it."""
        one.crew.workers.pop(one.slot, None)
        one.close_channel()
        self.failed(one.crew, one.slot, one.epoch, reason, from_outside=from_outside)
        self.staff.tell_gone(one, 1 << 8, False)

    def failed(self, crew: Crew, slot: int, epoch: int, reason: str, *, from_outside: bool = False) -> None:
        """A worker or its template (slot -1) did not get ready."""
        crew.channel.send(("start_failed", crew.id, slot, epoch, reason))
        crew.keeper.on_start_failed(
            monotonic_ns(), reason, ready=crew.ready, random=self.random(), from_outside=from_outside
        )

    @staticmethod
    def random() -> float:
        return os.urandom(1)[0] / 255

    def break_crew(self, crew: Crew) -> None:
        crew.broken_told = True
        crew.channel.send(("pool_broken", crew.id, list(crew.keeper.reasons)))
        for one in list(crew.workers.values()):
            if not one.ready:
                self.staff.order_and_kill(one, _native.KILL_STOP)

"""Workers that stand by: forked in a quiet moment, settled in but for their slot, so that they serve 2 ms sooner.

One of each pool. A standby that dies is only forgotten, and the next worker is forked when it is needed.
"""

from __future__ import annotations

import os
import sys

from shmrt import _native
from shmrt.process import death, signals, worker
from shmrt.process.spawn import fork_child
from shmrt.supervise.protocol import Channel

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import TypeAlias

    from shmrt.supervise.crew import Crew, Worker
    from shmrt.supervise.staff import Staff
    from shmrt.supervise.starting import Starting

    Order: TypeAlias = tuple[int, int, int, int, list[tuple[int, int, int, int]]]

__all__ = ["Standby", "Standbys"]

_STANDBY_BYTES = 8 << 20  # less than that to spare, and nobody stands by


class Standby:
    """The process that will be the next worker of its pool: forked in a quiet moment, settled in, without a slot.

    `pid` is 0 while a template has not said it yet, `orders` the pipe that tells it its slot, `control` the socket that
    becomes the worker's channel."""

    __slots__ = ("control", "number", "orders", "pid")

    def __init__(self, number: int, orders: int, control: int) -> None:
        self.number = number
        self.orders = orders
        self.control = control
        self.pid = 0


class Standbys:
    """Those of all pools."""

    def __init__(self, staff: Staff, starting: Starting) -> None:
        self.staff = staff
        self.starting = starting
        self._count = 0

    def hire(self, crew: Crew) -> None:
        """In a quiet moment. Whatever comes of it, only another worker's success asks for the next one."""
        crew.standby_wanted = False
        try:
            _native.check_memory(_STANDBY_BYTES)
            theirs, ours = os.pipe2(os.O_CLOEXEC)
        except OSError:  # SegmentError is one
            return  # nothing to spare: the next worker starts when it is needed
        try:
            control, its_control = _native.socketpair(False)
        except OSError:
            os.close(theirs)
            os.close(ours)
            return
        self._count += 1
        standby = crew.standby = Standby(self._count, ours, control)
        try:
            if crew.template is not None:
                self.starting.templates.tell(crew, ("stand_by", standby.number), (its_control, theirs))
            else:
                job = self.staff.job(crew, None, its_control)
                standby.pid = fork_child(lambda: worker.run(job, orders=theirs))
        except OSError:
            self.forget(crew)
        finally:
            os.close(theirs)
            os.close(its_control)

    def call(self, crew: Crew, one: Worker) -> bool:
        """Has the one who stands by take the place of this worker; False when it cannot."""
        standby = crew.standby
        if standby is None or not standby.pid or _has_ended(standby.pid):
            return False
        try:
            os.write(standby.orders, message(one.slot, one.epoch, crew.first, one.number, crew.restarts[one.number]))
        except OSError:
            return False  # it is dead, and about to be reaped
        os.sched_yield()  # it was woken on this CPU, and work waits for it; what is left to do here can wait
        self._called(crew, one)
        return True

    def _called(self, crew: Crew, one: Worker) -> None:
        standby = crew.standby
        assert standby is not None
        one.channel, standby.control = Channel(standby.control), -1
        self.forget(crew)
        self.starting.started(one, standby.pid)

    # ---- what the death watch does while the root sleeps ------------------------------------------------------------
    def orders(self, now: int) -> list[Order]:
        """For each pool with a standby: whom that is to replace at once."""
        found: list[Order] = []
        for crew in self.staff.crews.values():
            standby = crew.standby
            if standby is None or not standby.pid or crew.removing or crew.replacing:
                continue
            if not crew.keeper.replaces_at_once(now, alive=crew.alive):
                continue
            restarts = crew.restarts
            watched = [
                (one.slot, one.epoch, one.number, restarts[one.number] + 1)
                for one in crew.workers.values()
                if one.ready and not one.dying and one.stays
            ]
            found.append((crew.id, crew.first, crew.count, standby.orders, watched))
        return found

    def hear(self, done: list[tuple[int, int, int, int, int, bool]], now: int) -> None:
        """What it has done meanwhile. The death itself is seen in the look that follows, as any other."""
        for pool, _, slot, epoch, number, told in done:
            crew = self.staff.crews[pool]
            one = crew.enlist(slot, epoch, number, now)
            if told:
                self._called(crew, one)
            elif self.starting.can_man(crew):  # whoever stood by had died, too, which is nobody's loss
                self.starting.man(crew, one)
            else:
                self.starting.not_started(one, "its template and whoever stood by had died, too", from_outside=True)

    def dismiss(self, crew: Crew) -> None:
        """Its end is waited for like any other's; while its pid is not known, the end of its pipe ends it."""
        if crew.standby is not None and crew.standby.pid:
            os.kill(crew.standby.pid, signals.KILL)  # our child: the number is its own until we reap it
        elif crew.standby is not None:
            self.forget(crew)

    def reaped(self, pid: int) -> None:
        """Called before a child that is no worker is reaped: maybe it stood by."""
        for crew in self.staff.crews.values():
            if crew.standby is not None and crew.standby.pid == pid:
                death.kill_group(pid)
                self.forget(crew)

    @staticmethod
    def forget(crew: Crew) -> None:
        if crew.standby is not None:
            os.close(crew.standby.orders)
            if crew.standby.control >= 0:
                os.close(crew.standby.control)
            crew.standby = None

    def heard(self, crew: Crew, number: int, pid: int) -> None:
        """What its template said; pid 0: it could not be forked."""
        standby = crew.standby
        if standby is None or standby.number != number:
            return
        standby.pid = pid
        if not pid:
            self.forget(crew)
        elif crew.removing:
            self.dismiss(crew)


def message(slot: int, epoch: int, first: int, number: int, restarts: int) -> bytes:
    """What a standby reads: five native words, as `struct shmrt_order_message` of `orders.h`."""
    return b"".join(word.to_bytes(4, sys.byteorder) for word in (slot, epoch, slot - first, number, restarts))


def _has_ended(pid: int) -> bool:
    """Of a standby that is not reaped yet. Its pipe tells only when whoever forked it has closed the other end, too."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the one between it and its template lives on for a moment
        fields = death.stat_fields(pid)
        return fields is None or fields[0] in "ZX"

"""How the root starts processes: workers, templates, and workers that stand by.

A worker comes to be in one of three ways:

    forked by the root           a pool without `preload`
    forked by the template       a pool with it; the template says the pid, and its end settles what it owes
    from standing by             forked in a quiet moment before, settled in but for its slot: it serves 2 ms sooner

Whoever dies on the way costs nobody a message: a worker before READY is a start failure, which the keeper counts; a
standby is only forgotten, and the next worker is forked when it is needed; with a template go the spawns that it has
not answered.
"""

from __future__ import annotations

import marshal
import os
from time import monotonic_ns

from shmrt import _native
from shmrt.process import death, signals, worker
from shmrt.process.spawn import fork_child
from shmrt.supervise.crew import Crew, Standby, Template, Worker
from shmrt.supervise.protocol import Channel
from shmrt.supervise.staff import Staff

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Starting"]

_STANDBY_BYTES = 8 << 20  # less than that to spare, and nobody stands by


class Starting:
    """Adds to the staff."""

    def __init__(self, staff: Staff) -> None:
        self.staff = staff
        self._standbys = 0

    # ---- workers ----------------------------------------------------------------------------------------------------
    def start(self, crew: Crew, now: int) -> bool:
        """One more worker; False when none can be started now."""
        staff = self.staff
        by_template = bool(crew.spec.get("preload"))
        if by_template and not self._has_template(crew):
            return False
        one = crew.claim(staff.slots, now)
        if one is None:
            return False
        if self._call_standby(crew, one):
            return True
        try:
            ours, theirs = _native.socketpair(False)
        except OSError as error:
            self._not_started(one, f"its channel: {error}")
            return False
        one.channel = Channel(ours)
        try:
            job = staff.job(crew, one, theirs)
            if by_template:
                command = ("spawn", one.slot, one.epoch, job.pair, one.number, job.restarts)
                self._tell_template(crew, command, (theirs,))
            else:
                self._started(one, fork_child(lambda: worker.run(job)))
        except OSError as error:
            self._not_started(one, f"fork: {error}")
            return False
        finally:
            os.close(theirs)
        return True

    def _started(self, one: Worker, pid: int) -> None:
        staff = self.staff
        one.pid = pid
        one.pidfd = _native.pidfd_open(pid)  # our own child, not reaped yet: it is certainly this one
        try:
            os.setpgid(pid, pid)  # the child does it too; whoever comes first
        except OSError:
            pass
        staff.workers[pid] = one
        staff.slots.set_process(one.slot, pid)
        one.crew.channel.send(("started", one.slot, one.epoch, pid))
        if one.dying:  # given up before its pid was known
            _native.pidfd_signal(one.pidfd, signals.KILL)

    def _not_started(self, one: Worker, reason: str) -> None:
        """A slot was claimed and no process came of it."""
        one.crew.workers.pop(one.slot, None)
        one.close_channel()
        self.failed(one.crew, one.slot, one.epoch, reason)
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

    # ---- workers that stand by --------------------------------------------------------------------------------------
    def hire_standby(self, crew: Crew) -> None:
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
        self._standbys += 1
        standby = crew.standby = Standby(self._standbys, ours, control)
        try:
            if crew.template is not None:
                self._tell_template(crew, ("stand_by", standby.number), (its_control, theirs))
            else:
                job = self.staff.job(crew, None, its_control)
                standby.pid = fork_child(lambda: worker.run(job, orders=theirs))
        except OSError:
            self._forget_standby(crew)
        finally:
            os.close(theirs)
            os.close(its_control)

    def _call_standby(self, crew: Crew, one: Worker) -> bool:
        standby = crew.standby
        if standby is None or not standby.pid or _has_ended(standby.pid):
            return False
        job = self.staff.job(crew, one)
        try:
            os.write(standby.orders, marshal.dumps((one.slot, one.epoch, job.pair, one.number, job.restarts)))
        except OSError:
            return False  # it is dead, and about to be reaped
        one.channel, standby.control = Channel(standby.control), -1
        self._forget_standby(crew)
        self._started(one, standby.pid)
        return True

    def dismiss_standby(self, crew: Crew) -> None:
        """Its end is waited for like any other's; while its pid is not known, the end of its pipe ends it."""
        if crew.standby is not None and crew.standby.pid:
            os.kill(crew.standby.pid, signals.KILL)  # our child: the number is its own until we reap it
        elif crew.standby is not None:
            self._forget_standby(crew)

    def reaped_standby(self, pid: int) -> None:
        """Called before a child that is no worker is reaped: maybe it stood by."""
        for crew in self.staff.crews.values():
            if crew.standby is not None and crew.standby.pid == pid:
                death.kill_group(pid)
                self._forget_standby(crew)

    @staticmethod
    def _forget_standby(crew: Crew) -> None:
        if crew.standby is not None:
            os.close(crew.standby.orders)
            if crew.standby.control >= 0:
                os.close(crew.standby.control)
            crew.standby = None

    # ---- templates --------------------------------------------------------------------------------------------------
    def _has_template(self, crew: Crew) -> bool:
        """Whether it can fork now; started if there is none."""
        if crew.template is None:
            self._start_template(crew)
        return crew.template is not None and crew.template.ready and not crew.template.gone

    def _start_template(self, crew: Crew) -> None:
        try:
            from shmrt.process import template  # most pools have none; to read it takes a descriptor

            ours, theirs = _native.socketpair(True)
        except OSError as error:
            self.failed(crew, -1, 0, f"the template's channel: {error}")
            return
        job = self.staff.job(crew, None)
        try:
            pid = fork_child(lambda: template.run(job, theirs))
            pidfd = _native.pidfd_open(pid)
        except OSError as error:
            os.close(ours)
            self.failed(crew, -1, 0, f"fork of the template: {error}")
            return
        finally:
            os.close(theirs)
        crew.template = Template(pid, pidfd, ours)

    @staticmethod
    def _tell_template(crew: Crew, command: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        assert crew.template is not None
        try:
            # A full socket of a stopped template leaves the worker STARTING; the template's end settles it.
            _native.send_fds(crew.template.socket, marshal.dumps(command), fds)
        except OSError:
            pass  # it is dying: the end of its socket settles what was asked of it

    def on_template(self, crew: Crew) -> None:
        """Its packets, its death and the end of its socket, in this order."""
        one = crew.template
        if one is None:
            return
        ended = self._hear_template(crew, one)
        if not one.gone and _native.pidfd_is_gone(one.pidfd):
            death.kill_group(one.pid)
            one.status = os.waitpid(one.pid, 0)[1]
            one.gone = self.staff.strays = True
            os.close(one.pidfd)
            crew.channel.send(("template_gone", crew.id, one.status))
            ended = self._hear_template(crew, one)
        if not (one.gone and ended):
            return
        os.close(one.socket)
        crew.template = None
        if crew.standby is not None and not crew.standby.pid:
            self._forget_standby(crew)
        if not one.ready and not crew.removing:
            reason = one.said_why or f"the template {death.describe_status(one.status)} before it was ready"
            self.failed(crew, -1, 0, reason)
        for unanswered in [w for w in crew.workers.values() if not w.pid]:
            # Nobody is left who could still fork it. Not the worker's failure: it costs no attempt.
            crew.workers.pop(unanswered.slot)
            unanswered.close_channel()
            self.staff.slots.order_kill(unanswered.slot, _native.KILL_RESTART)
            self.staff.tell_gone(unanswered, one.status, False)

    def _hear_template(self, crew: Crew, one: Template) -> bool:
        """Takes every packet; True at the end of the socket."""
        while True:
            try:
                received = _native.recv_fds(one.socket, 65536)
            except OSError:
                return True
            if received is None:
                return False
            if not received[0]:
                return True
            verb, *rest = marshal.loads(received[0])
            if verb == "ready":
                one.ready = True
                if rest[0] or rest[1]:
                    crew.channel.send(("preload_threads", crew.id, rest[0], rest[1]))
            elif verb == "failed":
                one.said_why = rest[0]
            elif rest[0] < 0:
                self._hear_of_standby(crew, rest[1], rest[2] if verb == "spawned" else 0)
            else:
                found = crew.workers.get(rest[0])
                if found is not None and found.epoch == rest[1] and not found.pid:
                    if verb == "spawned":
                        self._started(found, rest[2])
                    else:
                        self._not_started(found, rest[2])

    def _hear_of_standby(self, crew: Crew, number: int, pid: int) -> None:
        """pid 0: it could not be forked."""
        standby = crew.standby
        if standby is None or standby.number != number:
            return
        standby.pid = pid
        if not pid:
            self._forget_standby(crew)
        elif crew.removing:
            self.dismiss_standby(crew)


def _has_ended(pid: int) -> bool:
    """Of a standby that is not reaped yet. Its pipe tells only when whoever forked it has closed the other end, too."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # the one between it and its template lives on for a moment
        fields = death.stat_fields(pid)
        return fields is None or fields[0] in "ZX"

"""Templates of pools with `preload`: started, asked for workers, heard, and their end.

A template forks the worker and says the pid; with it go the spawns that it has not answered, and these cost nobody an
attempt.
"""

from __future__ import annotations

import marshal
import os

from shmrt import _native
from shmrt.process import death
from shmrt.process.spawn import fork_child

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.crew import Crew
    from shmrt.supervise.staff import Staff
    from shmrt.supervise.standbys import Standbys
    from shmrt.supervise.starting import Starting

__all__ = ["Template", "Templates"]


class Template:
    """The process that preloads for a pool, and the socket to it."""

    __slots__ = ("gone", "pid", "pidfd", "ready", "said_why", "socket", "status")

    def __init__(self, pid: int, pidfd: int, socket: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.socket = socket
        self.ready = False
        self.gone = False  # reaped; the socket may still hold answers of middle processes
        self.status = 0
        self.said_why = ""


class Templates:
    """Those of all pools."""

    def __init__(self, staff: Staff, starting: Starting, standbys: Standbys) -> None:
        self.staff = staff
        self.starting = starting
        self.standbys = standbys

    def can_fork(self, crew: Crew) -> bool:
        """Whether it can fork now; started if there is none."""
        if crew.template is None:
            self._start(crew)
        return crew.template is not None and crew.template.ready and not crew.template.gone

    def _start(self, crew: Crew) -> None:
        try:
            from shmrt.process import template  # most pools have none; to read it takes a descriptor

            ours, theirs = _native.socketpair(True)
        except OSError as error:
            self.starting.failed(crew, -1, 0, f"the template's channel: {error}")
            return
        job = self.staff.job(crew, None)
        try:
            pid = fork_child(lambda: template.run(job, theirs))
        except OSError as error:
            os.close(ours)
            self.starting.failed(crew, -1, 0, f"fork of the template: {error}")
            return
        finally:
            os.close(theirs)  # its number is the pidfd's: an error there ends the root, and the template with it
        pidfd = _native.pidfd_open(pid)
        crew.template = Template(pid, pidfd, ours)

    @staticmethod
    def tell(crew: Crew, command: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        assert crew.template is not None
        try:
            # A full socket of a stopped template leaves the worker STARTING; the template's end settles it.
            _native.send_fds(crew.template.socket, marshal.dumps(command), fds)
        except OSError:
            pass  # it is dying: the end of its socket settles what was asked of it

    def look(self, crew: Crew) -> None:
        """Its packets, its death and the end of its socket, in this order."""
        one = crew.template
        if one is None:
            return
        ended = self._hear(crew, one)
        if not one.gone and _native.pidfd_is_gone(one.pidfd):
            death.kill_group(one.pid)
            one.status = os.waitpid(one.pid, 0)[1]
            one.gone = self.staff.strays = True
            os.close(one.pidfd)
            crew.channel.send(("template_gone", crew.id, one.status))
            ended = self._hear(crew, one)
        if not (one.gone and ended):
            return
        os.close(one.socket)
        crew.template = None
        if crew.standby is not None and not crew.standby.pid:
            self.standbys.forget(crew)
        if not one.ready and not crew.removing:
            reason = one.said_why or f"the template {death.describe_status(one.status)} before it was ready"
            self.starting.failed(crew, -1, 0, reason)
        for unanswered in [w for w in crew.workers.values() if not w.pid]:
            # Nobody is left who could still fork it. Not the worker's failure: it costs no attempt.
            crew.workers.pop(unanswered.slot)
            unanswered.close_channel()
            self.staff.slots.order_kill(unanswered.slot, _native.KILL_RESTART)
            self.staff.tell_gone(unanswered, one.status, False)

    def _hear(self, crew: Crew, one: Template) -> bool:
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
                self.standbys.heard(crew, rest[1], rest[2] if verb == "spawned" else 0)
            else:
                found = crew.workers.get(rest[0])
                if found is not None and found.epoch == rest[1] and not found.pid:
                    if verb == "spawned":
                        self.starting.started(found, rest[2])
                    else:
                        self.starting.not_started(found, rest[2])

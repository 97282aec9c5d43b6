"""How the root learns of the end of a process and what it makes of it.

A death mutex says that a worker's main thread writes no more, within 0.1 ms; its replacement is started at
once, in another slot. The pidfd says that the process is torn down; only then is its slot GONE. Children that nobody
here started were left by a dead worker's user code: they are reaped, or ended if they live.
"""

from __future__ import annotations

import os
from time import monotonic_ns

from shmrt import _native
from shmrt.process import death, signals
from shmrt.supervise.crew import Worker

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from shmrt.supervise.root_loop import Root

__all__ = ["Reaping"]


class Reaping:
    """Takes from the staff."""

    def __init__(self, root: Root, oom_kills: int) -> None:
        self.root = root  # which ends pools, and hears the last words of a process
        self.staff = root.staff
        self.starting = root.starting
        self.standbys = root.standbys
        self.templates = root.templates
        self.nested = root.nested
        self._oom_kills = oom_kills

    def look(self) -> None:
        """After a wake of the death watch: who is ready, whose main thread is dead."""
        staff = self.staff
        watched = [one for crew in staff.crews.values() for one in crew.workers.values()]
        for one, (state, abandoned) in zip(watched, staff.slots.scan([one.slot for one in watched]), strict=True):
            if state == _native.SLOT_READY and not one.ready:
                self._on_ready(one)
            # A state that only a slot without a process has: the process wrote over it.
            overwritten = state not in (_native.SLOT_STARTING, _native.SLOT_READY)
            if (abandoned or overwritten) and not one.dying:
                staff.kill(one)  # it may only have ended its main thread, or exec'ed
                # What the main thread wrote is final now. A start failure waits for its status, and so does a
                # pool that counts restarts, since its reasons are shown.
                if one.ready and one.crew.spec.get("max_restarts") is None:
                    self._judge(one, f"worker {one.number} died")

    def _on_ready(self, one: Worker) -> None:
        one.ready = one.crew.standby_wanted = self.staff.served = True
        one.crew.keeper.on_ready()
        one.crew.channel.send(("ready", one.slot, one.epoch))
        self.staff.note("worker.ready", one)
        if one.replaces is not None:
            one.crew.channel.send(("replaced", *one.replaces, one.slot, one.epoch))
            one.replaces = None

    def _judge(self, one: Worker, reason: str, *, left: bool = False) -> None:
        """Tells the keeper, once, how a worker that had been ready came to its end."""
        if one.judged:
            return
        one.judged = True
        info = self.staff.slots.info(one.slot)
        ordered = info["kill_reason"] != _native.KILL_NONE or one.crew.removing or one.retiring
        # orders.c asks the same of a death that it answers by itself.
        in_task = info["phase"] in (_native.PHASE_DECODE, _native.PHASE_RUN, _native.PHASE_ENCODE)
        one.crew.keeper.on_gone(
            monotonic_ns(),
            reason,
            ordered=ordered or (left and bool(info["stop_requested"])),
            progressed=info["done"] > 0 or not in_task,
            random=self.starting.random(),
        )

    def reap(self, one: Worker) -> None:
        """The kernel has torn it down: take its status, end its group, tell everybody."""
        staff = self.staff
        if staff.workers.get(one.pid) is not one or not _native.pidfd_is_gone(one.pidfd):
            return
        if not one.ready and staff.slots.state(one.slot) == _native.SLOT_READY:
            self._on_ready(one)  # ready and dead between two looks
        death.kill_group(one.pid)  # before the reaping gives the number away
        try:
            status = os.waitpid(one.pid, 0)[1]
        except ChildProcessError:
            return  # the middle process of its template has not left yet: SIGCHLD says when it is our child
        self.root.farewell(one)
        os.close(one.pidfd)
        one.close_channel()
        del staff.workers[one.pid]
        crew = one.crew
        crew.workers.pop(one.slot, None)
        info = staff.slots.info(one.slot)
        ordered = info["kill_reason"] != _native.KILL_NONE or crew.removing or one.retiring
        oom = self._was_oom(status, ordered)
        if one.replaces is not None:
            crew.replacing.insert(0, one.replaces)
        reason = f"worker {one.number} {death.describe_status(status)}" + (" (out of memory)" if oom else "")
        if one.ready:
            self._judge(one, reason, left=status == 0)
        elif not ordered:
            killed = not oom and not one.unable and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signals.KILL
            reason = one.unable or f"{reason} before it was ready"
            self.starting.failed(crew, one.slot, one.epoch, reason, from_outside=killed)
        staff.tell_gone(one, status, oom)
        staff.strays = True
        for nested in self.nested.owner_gone(one):
            self.root.remove(nested, 0.0)

    def _was_oom(self, status: int, ordered: bool) -> bool:
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signals.KILL:
            return False
        before, now = self._oom_kills, _native.oom_kills()
        if now >= 0:  # else it cannot be read just now: the next death is compared with what was known
            self._oom_kills = now
        return now > before >= 0 and not ordered

    def reap_children(self) -> None:
        """Reaps every child that is dead; those that nobody here started were adopted when their parent died."""
        staff = self.staff
        while True:
            try:
                state = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if state is None:
                return
            pid = state.si_pid
            for crew in list(staff.crews.values()):
                if crew.template is not None:
                    self.templates.look(crew)  # its answer came before the worker became our child
            if pid in staff.workers:
                self.reap(staff.workers[pid])
            else:
                self.standbys.reaped(pid)
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass  # a template, reaped above
                staff.strays = True  # its own children are ours now

    def kill_strays(self) -> None:
        """Ends living children that nobody here started, but for those in the group of a living worker."""
        staff = self.staff
        found = death.children()
        for crew in list(staff.crews.values()):
            if crew.template is not None:
                self.templates.look(crew)
        known = set(staff.workers)
        for crew in staff.crews.values():
            known |= {other.pid for other in (crew.template, crew.standby) if other is not None}
        for pid in found:
            if pid in known:
                continue
            fields = death.stat_fields(pid)
            if fields is not None and fields[0] not in "ZX" and fields[2] not in known:
                os.kill(pid, signals.KILL)  # our child: the number is its own until we reap it

    def end_everybody(self) -> None:
        """The program is gone, or has stopped everything: nothing of this session may stay."""
        for one in self.staff.workers.values():
            _native.pidfd_signal(one.pidfd, signals.KILL)
        while True:
            for pid in death.children():
                death.kill_group(pid)
                try:
                    os.kill(pid, signals.KILL)
                except ProcessLookupError:
                    pass
            for pidfd in death.kill_session(self.staff.pid):
                os.close(pidfd)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return

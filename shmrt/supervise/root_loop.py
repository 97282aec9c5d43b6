"""The root supervisor's loop: starts, watches, reaps and ends processes, and decides nothing by itself.

One thread and one loop: `settle` does what is due (start, give up, kill after a grace), then the loop sleeps
until a descriptor says that something happened:

    control socket      the program asks for something; its end is the program's end
    death watch         an eventfd: some death mutex was abandoned, a worker is ready, a slot was freed
    pidfd of a worker   the whole process is gone: reap it, say so, look for what it left behind
    template's socket   it is ready, or a worker was forked
    signal pipe         SIGCHLD of adopted children, and signals from outside, which change nothing

A loop that has had nothing to do for a few milliseconds, once its workers serve, gets ready for the next start: it
imports what a worker would, and lets one worker of each pool stand by (`standbys.py`).

The root ends with the program, whatever ended that: its socket, its pidfd or the death mutex of its hub.
It takes everything in its session along. How it begins, and what it is made of, says `root.py`.
"""

from __future__ import annotations

import gc
import os
from time import monotonic_ns

from shmrt import _native
from shmrt.process import signals
from shmrt.supervise.crew import Crew, Worker
from shmrt.supervise.forest import Forest
from shmrt.supervise.nested import Nested
from shmrt.supervise.reaping import Reaping
from shmrt.supervise.standbys import Standbys
from shmrt.supervise.templates import Templates

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.service import Service
    from shmrt.supervise.staff import Staff
    from shmrt.supervise.starting import Starting

__all__ = ["Root"]

_GAP_NS = 1_000_000_000  # a loop that comes back this much too late was stopped: deadlines start anew
_STACK_NS = 30_000_000  # what a hung worker gets to write its stack before SIGKILL
_IN = _native.POLLIN
_QUIET_NS = 5_000_000  # without anything to do for so long, the next start is prepared
_WARM = (
    "pickle",
    "faulthandler",
    "traceback",
    "functools",
    "contextlib",
    "typing",
)  # what nearly every worker imports first


class Root:
    """The loop. `program` is the program's pidfd, `events` where `watch` says that somebody died, `signal_pipe` where
    signals come out, `oom_kills` how often the kernel had killed for memory before anybody was started."""

    def __init__(
        self,
        staff: Staff,
        starting: Starting,
        program: int,
        events: int,
        signal_pipe: int,
        watch: _native.DeathWatch,
        oom_kills: int,
    ) -> None:
        self.slots = staff.slots
        self.program = program
        self.channel = staff.channel
        self.staff = staff
        self.starting = starting
        self.standbys = starting.standbys = Standbys(staff, starting)
        self.templates = starting.templates = Templates(staff, starting, self.standbys)
        self.nested = Nested(staff)
        self.reaping = Reaping(self, oom_kills)
        self.forest = Forest(staff, starting, self.nested)
        self.crews = staff.crews
        self.service: Service | None = None  # of a named runtime
        self.stopping = False
        self.warm = False
        self.signal_pipe = signal_pipe
        self.events = events
        self.watch = watch
        os.eventfd_write(events, 1)  # what became of those who were started before is looked at first

    # ---- the loop ---------------------------------------------------------------------------------------------------
    def run(self) -> None:
        woke = monotonic_ns()
        while not self.program_is_gone():
            now = monotonic_ns()
            if now - woke > _GAP_NS:
                self.forgive(now - woke)  # stopped in the midst of its work
            self.settle(now)
            if self.stopping and not self.crews:
                self.channel.send(("stopped",))
                if not self.channel.pending:
                    break
            wait = self.wait_ns(now)
            handlers = self.handlers()
            fds = [(self.channel.fd, _IN | (_native.POLLOUT if self.channel.pending else 0)), (self.events, _IN)]
            fds += [(self.signal_pipe, _IN), (self.program, _IN), *((fd, _IN) for fd in handlers), *self.channels()]
            fds += self.service.fds() if self.service is not None else ()
            prepares = self.may_prepare()
            if prepares and (wait is None or wait > _QUIET_NS):
                wait = _QUIET_NS
            # Nothing may change between these lines but what the watch does by these orders.
            self.watch.place([] if self.stopping else self.standbys.orders(now))
            found = _native.poll(fds, -1 if wait is None else (wait + 999_999) // 1_000_000)
            done = self.watch.take_back()
            woke = monotonic_ns()
            self.standbys.hear(done, woke)
            if wait is not None and woke - now - wait > _GAP_NS:
                self.forgive(woke - now)  # all of it: how long it did not run is not known; late news come first now
            if prepares and not found:
                self.prepare()
            else:
                self.handle({fd for fd, _ in found}, handlers)
        self.reaping.end_everybody()

    def handlers(self) -> dict[int, Worker | Crew]:
        """Whose descriptors are watched, beside the root's own."""
        found: dict[int, Worker | Crew] = {}
        for crew in self.crews.values():
            for one in crew.workers.values():
                if one.pidfd >= 0:
                    found[one.pidfd] = one
            if crew.template is not None:
                found[crew.template.socket] = crew
                if not crew.template.gone:
                    found[crew.template.pidfd] = crew
        return found

    def channels(self) -> list[tuple[int, int]]:
        """Those of workers, with what they wait for."""
        owners = [one.channel for one in self.staff.workers.values() if one.channel is not None]
        return [
            (channel.fd, _IN | (_native.POLLOUT if channel.pending else 0)) for channel in owners if not channel.closed
        ]

    def handle(self, ready: set[int], handlers: dict[int, Worker | Crew]) -> None:
        """Deaths first: what the dead asked for is then known before anything else is decided."""
        if self.events in ready:
            try:
                os.eventfd_read(self.events)
            except BlockingIOError:
                pass
            self.reaping.look()
        for fd in ready:
            owner = handlers.get(fd)
            if isinstance(owner, Worker):
                self.reaping.reap(owner)
            elif owner is not None:
                self.templates.look(owner)
        if self.signal_pipe in ready:
            os.read(self.signal_pipe, 4096)
            self.reaping.reap_children()
        if self.channel.fd in ready:
            self.channel.flush()
            self.obey(self.channel.receive())
        for one in list(self.staff.workers.values()):
            if one.channel is not None and one.channel.fd in ready:
                one.channel.flush()
                self.obey_worker(one, one.channel.receive())
                if one.channel.failed and not one.dying:
                    self.staff.kill(one)  # part of what it said is lost, and it may wait for the answer
        if self.service is not None:
            self.service.handle(ready)

    def may_prepare(self) -> bool:
        return self.staff.served and (not self.warm or any(crew.may_stand_by for crew in self.crews.values()))

    def prepare(self) -> None:
        """One step. At its own start the root does without, since then the first workers wait for it."""
        if self.warm:
            self.standbys.hire(next(crew for crew in self.crews.values() if crew.may_stand_by))
            return
        self.warm = True
        try:
            for name in _WARM:
                __import__(name)
        except OSError:
            pass  # no descriptor to read it with: workers import it themselves
        gc.collect()
        gc.freeze()

    def program_is_gone(self) -> bool:
        return (
            self.channel.closed or self.slots.is_abandoned(_native.SLOT_PROGRAM) or _native.pidfd_is_gone(self.program)
        )

    # ---- what time brings -------------------------------------------------------------------------------------------
    def wait_ns(self, now: int) -> int | None:
        """Time until something is due by the clock; None: never."""
        due: list[int] = []
        for crew in self.crews.values():
            if crew.removing and crew.end_ns:
                due.append(crew.end_ns - now)
            elif not crew.removing:
                wait = crew.keeper.wait_ns(now, alive=crew.alive)
                if wait is not None:
                    due.append(wait)
            timeout = crew.spec.get("start_timeout")
            for one in crew.workers.values():
                if one.kill_ns:
                    due.append(one.kill_ns - now)
                if timeout and not one.ready and not one.dying:
                    due.append(one.start_ns + int(timeout * 1e9) - now)
        due += self.forest.waits_ns(now)
        return max(0, min(due)) if due else None

    def forgive(self, late: int) -> None:
        """This process did not run for a while: nobody is to be judged by the clock for that."""
        self.forest.forgive(late)
        for crew in self.crews.values():
            if crew.end_ns:
                crew.end_ns += late
            for one in crew.workers.values():
                one.start_ns += late
                if one.kill_ns:
                    one.kill_ns += late

    def settle(self, now: int) -> None:
        while self.staff.strays:
            self.staff.strays = False
            self.reaping.kill_strays()  # first: it hears templates, and what follows acts on what they say
        for crew in list(self.crews.values()):
            timeout = crew.spec.get("start_timeout")
            for one in list(crew.workers.values()):
                slow = timeout and not one.ready and not one.dying and now >= one.start_ns + timeout * 1e9
                if slow or (one.kill_ns and now >= one.kill_ns):
                    self.staff.kill(one)
            if crew.removing:
                self.settle_removal(crew, now)
                continue
            for _ in range(crew.keeper.starts(now, alive=crew.alive)):
                if not self.starting.start(crew, now):
                    break
            if crew.keeper.broken and not crew.broken_told:  # after the starts: a failed one may wake nobody
                self.starting.break_crew(crew)
        self.forest.settle(now)

    def settle_removal(self, crew: Crew, now: int) -> None:
        if crew.end_ns and now >= crew.end_ns:
            crew.end_ns = 0
            for one in list(crew.workers.values()):
                self.staff.order_and_kill(one, _native.KILL_STOP)
        if not crew.workers and crew.template is None and crew.standby is None:
            del self.crews[crew.id]
            self.staff.full_pools.pop(crew.id, None)
            crew.close()
            self.nested.forget(crew)
            crew.channel.send(("removed", crew.id))

    # ---- what is asked for: by the program, and by workers of their own pools ---------------------------------------
    def obey(self, messages: list[tuple[tuple[Any, ...], list[int]]]) -> None:
        for message, fds in messages:
            verb, *rest = message
            if verb == "add_pool":
                id, spec, first, count = rest
                self.crews[id] = Crew(id, spec, first, count, fds, self.channel)
            elif verb == "stop":
                self.stop(*rest)
            elif verb == "control":
                from shmrt.supervise.service import Service

                self.service = Service(self, fds[0], *rest)
            elif verb in ("command_waits", "command_done") and self.service is not None:
                self.service.heard(verb, rest)
            elif verb == "notice":
                self.notice(*rest)
            elif not self.forest.hear(None, verb, rest, fds):
                self.obey_crew(None, verb, rest)

    def obey_worker(self, one: Worker, messages: list[tuple[tuple[Any, ...], list[int]]]) -> None:
        """A worker may ask for what concerns its own pools."""
        for message, fds in messages:
            verb, *rest = message
            if verb == "open_hub":
                self.nested.open_hub(one)
            elif verb == "allot":
                self.nested.allot(one, *rest)
            elif verb == "add_pool" and self.nested.may_add(one, rest[0], *rest[2:]) and one.channel is not None:
                id, spec, first, count = rest
                hub = self.nested.hub_of(one)
                self.crews[id] = Crew(id, spec, first, count, fds, one.channel, one, hub)
            elif verb in ("resize", "replace", "kill", "remove_pool"):
                self.obey_crew(one, verb, rest)
            elif verb == "notice":
                self.notice(*rest)
            elif not self.forest.hear(one, verb, rest, fds):
                for fd in fds:
                    os.close(fd)

    def obey_crew(self, owner: Worker | None, verb: str, rest: list[Any]) -> None:
        if verb == "resize":
            crew = self.crew_of(owner, rest[0])
            if crew is not None:
                crew.keeper.resize(rest[1])
        elif verb == "remove_pool":
            crew = self.crew_of(owner, rest[0])
            if crew is not None:
                self.remove(crew, rest[1])
            else:
                self.nested.give_back(owner, rest[0])
                (self.channel if owner is None or owner.channel is None else owner.channel).send(("removed", rest[0]))
        else:
            one = self.staff.find(rest[0], rest[1])
            if one is not None and one.crew.owner is owner:
                (self.replace if verb == "replace" else self.kill)(one, *rest[2:])

    def notice(self, *notice: Any) -> None:
        from shmrt.supervise import notices

        notices.hear(self.staff, self.forest.trees, *notice)

    def crew_of(self, owner: Worker | None, id: int) -> Crew | None:
        crew = self.crews.get(id)
        return crew if crew is not None and crew.owner is owner else None

    @staticmethod
    def replace(one: Worker) -> None:
        if one.stays:
            one.retiring = True
            one.crew.replacing.append((one.slot, one.epoch))

    def kill(self, one: Worker, reason: int, task_id: int = 0, stack: bool = False) -> None:
        if one.dying:
            return
        if stack and one.ready:
            self.slots.order_kill(one.slot, reason, task_id)
            one.judged = True
            _native.pidfd_signal(one.pidfd, signals.USR1)
            one.kill_ns = monotonic_ns() + _STACK_NS
        else:
            self.staff.order_and_kill(one, reason, task_id)

    def remove(self, crew: Crew, grace_s: float) -> None:
        end = monotonic_ns() + int(grace_s * 1e9)
        crew.end_ns = min(crew.end_ns or end, end)
        if crew.removing:
            return
        crew.removing = True
        if crew.template is not None and not crew.template.gone:
            _native.pidfd_signal(crew.template.pidfd, signals.KILL)
        self.standbys.dismiss(crew)
        for one in crew.workers.values():
            # By its own word: it may have served the pool's last task before this process looked at it.
            if self.slots.state(one.slot) == _native.SLOT_READY:
                # The word that the handler of TERM would store. A signal could come between the worker's last look
                # and its sleep, and be slept over; a word and a ring cannot.
                self.slots.request_stop(one.slot)
            else:
                self.staff.order_and_kill(one, _native.KILL_STOP)  # it serves nobody yet

    def stop(self, grace_s: float) -> None:
        self.stopping = True
        self.forest.fell()
        for crew in list(self.crews.values()):
            if not self.forest.owns(crew):
                self.remove(crew, grace_s)

    def farewell(self, one: Worker) -> None:
        """It is dead: what it said before is heard, and nobody waits for it any more."""
        if one.channel is not None and not one.channel.closed:
            self.obey_worker(one, one.channel.receive())
        self.forest.farewell(one)

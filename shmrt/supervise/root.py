"""The root supervisor: starts, watches, reaps and ends processes, and decides nothing by itself.

One thread and one loop: `settle` does what is due (start, give up, kill after a grace), then the loop sleeps
until a descriptor says that something happened:

    control socket      the program asks for something; its end is the program's end
    death watch         an eventfd: some death mutex was abandoned, a worker is ready, a slot was freed
    pidfd of a worker   the whole process is gone: reap it, say so, look for what it left behind
    template's socket   it is ready, or a worker was forked
    signal pipe         SIGCHLD of adopted children, and signals from outside, which change nothing

A death mutex says that a worker's main thread writes no more, within 0.1 ms; its replacement is started at
once, in another slot. The pidfd says that the process is torn down; only then is its slot GONE.

The root ends with the program, whatever ended that: its socket, its pidfd or the death mutex of its hub.
It takes everything in its session along. It imports no user code and holds no user object; what it starts
functions from are bytes that it never reads. `typing`, `signal`, `socket`, `json` and the like stay out of
its start, which is what makes it ready in a few milliseconds.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
from time import monotonic_ns

from shmrt import _native
from shmrt.process import death, signals, template, worker
from shmrt.process.spawn import Job, die_first, fork_child
from shmrt.supervise.crew import Crew, Template, Worker
from shmrt.supervise.protocol import Channel

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["main"]

_GAP_NS = 1_000_000_000  # a loop that comes back this much too late was stopped: deadlines start anew
_STACK_NS = 30_000_000  # what a hung worker gets to write its stack before SIGKILL
_IN = _native.POLLIN
_WARM_MS = 5  # a root that has nothing to do for so long, once it has served, gets ready for the next start
_WARM = (
    "pickle",
    "faulthandler",
    "_sitebuiltins",
    "traceback",
    "functools",
    "contextlib",
    "typing",
)  # what nearly every worker imports first


class Root:
    """All state of the root. `control` is the socket, `program` the program's pidfd."""

    def __init__(self, control: int, slots: _native.Slots, arena_fd: int, program: int) -> None:
        self.slots = slots
        self.arena_fd = arena_fd
        self.program = program
        self.channel = Channel(control)
        self.pid = os.getpid()
        self.crews: dict[int, Crew] = {}
        self.workers: dict[int, Worker] = {}  # by pid
        self.oom = _native.oom_kills()
        self.stopping = False
        self.sweep = False  # an adopted child may be there
        self.served = False  # some worker became ready
        self.warm = False
        self.events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.signal_pipe, signal_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signals.for_root(signal_in)
        slots.set_process(_native.SLOT_ROOT, self.pid)
        slots.hold_death_mutex(_native.SLOT_ROOT)
        slots.ready(_native.SLOT_ROOT)
        self.watch = _native.DeathWatch(slots, self.events)

    # ---- the loop ---------------------------------------------------------------------------------------------------
    def run(self) -> None:
        while not self.program_is_gone():
            now = monotonic_ns()
            self.settle(now)
            if self.stopping and not self.crews:
                self.channel.send(("stopped",))
                if not self.channel.pending:
                    break
            wait = self.wait_ns(now)
            fds = [(self.channel.fd, _IN | (_native.POLLOUT if self.channel.pending else 0)), (self.events, _IN)]
            fds += [(self.signal_pipe, _IN), (self.program, _IN)]
            handlers: dict[int, Worker | Crew] = {}
            for crew in self.crews.values():
                for one in crew.workers.values():
                    if one.pidfd >= 0:
                        handlers[one.pidfd] = one
                if crew.template is not None:
                    handlers[crew.template.socket] = crew
                    if not crew.template.gone:
                        handlers[crew.template.pidfd] = crew
            fds += [(fd, _IN) for fd in handlers]
            if self.served and not self.warm and not _native.poll(fds, _WARM_MS):
                self.warm_up()
                continue
            found = _native.poll(fds, -1 if wait is None else (wait + 999_999) // 1_000_000)
            late = monotonic_ns() - now - (wait or 0)
            if wait is not None and late > _GAP_NS:
                self.forgive(late)
            ready = {fd for fd, _ in found}
            # Deaths first: what the dead asked for is then known before anything else is decided.
            if self.events in ready:
                self.look()
            for fd in ready:
                owner = handlers.get(fd)
                if isinstance(owner, Worker):
                    self.reap(owner)
                elif owner is not None:
                    self.on_template(owner)
            if self.signal_pipe in ready:
                os.read(self.signal_pipe, 4096)
                self.reap_children()
            if self.channel.fd in ready:
                self.on_control()
        self.end()

    def warm_up(self) -> None:
        """Imports in quiet what a worker would import while its task waits: a replacement serves 4 ms sooner. At its
        own start the root does without, since then the first workers wait for it."""
        self.warm = True
        for name in _WARM:
            __import__(name)
        gc.collect()
        gc.freeze()

    def program_is_gone(self) -> bool:
        return (
            self.channel.closed or self.slots.is_abandoned(_native.SLOT_PROGRAM) or _native.pidfd_is_gone(self.program)
        )

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
        return max(0, min(due)) if due else None

    def forgive(self, late: int) -> None:
        """This process did not run for a while: nobody is to be judged by the clock for that."""
        for crew in self.crews.values():
            if crew.end_ns:
                crew.end_ns += late
            for one in crew.workers.values():
                one.start_ns += late
                if one.kill_ns:
                    one.kill_ns += late

    def settle(self, now: int) -> None:
        for crew in list(self.crews.values()):
            timeout = crew.spec.get("start_timeout")
            for one in list(crew.workers.values()):
                slow = timeout and not one.ready and not one.dying and now >= one.start_ns + timeout * 1e9
                if slow or (one.kill_ns and now >= one.kill_ns):
                    self.kill(one)
            if crew.removing:
                self.settle_removal(crew, now)
                continue
            if crew.keeper.broken and not crew.broken_told:
                self.break_crew(crew)
            for _ in range(crew.keeper.starts(now, alive=crew.alive)):
                if not self.start(crew, now):
                    break
        if self.sweep:
            self.sweep = False
            self.kill_strays()

    # ---- starting ---------------------------------------------------------------------------------------------------
    def job(self, crew: Crew, one: Worker | None) -> Job:
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
            root_pid=self.pid,
        )

    def start(self, crew: Crew, now: int) -> bool:
        """One more worker; False when none can be started now."""
        by_template = bool(crew.spec.get("preload"))
        if by_template:
            if crew.template is None:
                self.start_template(crew)
            if crew.template is None or not crew.template.ready or crew.template.gone:
                return False
        one = crew.claim(self.slots, now)
        if one is None:
            return False
        if by_template:
            job = self.job(crew, one)
            command = ("spawn", one.slot, one.epoch, job.pair, one.number, job.restarts)
            self.tell_template(crew, command)
            return True
        job = self.job(crew, one)
        try:
            pid = fork_child(lambda: worker.run(job))
        except OSError as error:
            self.not_started(one, f"fork: {error}")
            return False
        self.started(one, pid)
        return True

    def started(self, one: Worker, pid: int) -> None:
        one.pid = pid
        one.pidfd = _native.pidfd_open(pid)  # our own child, not reaped yet: it is certainly this one
        try:
            os.setpgid(pid, pid)  # the child does it too; whoever comes first
        except OSError:
            pass
        self.workers[pid] = one
        self.slots.set_process(one.slot, pid)
        self.channel.send(("started", one.slot, one.epoch, pid))
        if one.dying:  # given up before its pid was known
            _native.pidfd_signal(one.pidfd, signals.KILL)

    def not_started(self, one: Worker, reason: str) -> None:
        """A slot was claimed and no process came of it."""
        one.crew.workers.pop(one.slot, None)
        self.start_failed(one.crew, one.slot, one.epoch, reason)
        self.slots.gone(one.slot, 1 << 8, False)
        self.slots.ring_all()
        self.channel.send(("gone", one.slot, one.epoch, 1 << 8, False))

    def start_failed(self, crew: Crew, slot: int, epoch: int, reason: str, *, from_outside: bool = False) -> None:
        self.channel.send(("start_failed", crew.id, slot, epoch, reason))
        crew.keeper.on_start_failed(
            monotonic_ns(), reason, ready=crew.ready, random=self.random(), from_outside=from_outside
        )

    @staticmethod
    def random() -> float:
        return os.urandom(1)[0] / 255

    def break_crew(self, crew: Crew) -> None:
        crew.broken_told = True
        self.channel.send(("pool_broken", crew.id, list(crew.keeper.reasons)))
        for one in list(crew.workers.values()):
            if not one.ready:
                self.order_and_kill(one, _native.KILL_STOP)

    # ---- templates --------------------------------------------------------------------------------------------------
    def start_template(self, crew: Crew) -> None:
        job = self.job(crew, None)
        ours, theirs = _native.socketpair(True)
        try:
            pid = fork_child(lambda: template.run(job, theirs))
        except OSError as error:
            os.close(ours)
            self.start_failed(crew, -1, 0, f"fork of the template: {error}")
            return
        finally:
            os.close(theirs)
        crew.template = Template(pid, _native.pidfd_open(pid), ours)

    def tell_template(self, crew: Crew, command: tuple[Any, ...]) -> None:
        assert crew.template is not None
        try:
            # A full socket of a stopped template leaves the worker STARTING; the template's end settles it.
            _native.send_fds(crew.template.socket, marshal.dumps(command), ())
        except OSError:
            pass  # it is dying: the end of its socket settles what was asked of it

    def on_template(self, crew: Crew) -> None:
        """Its packets, its death and the end of its socket, in this order."""
        one = crew.template
        if one is None:
            return
        ended = self.hear_template(crew, one)
        if not one.gone and _native.pidfd_is_gone(one.pidfd):
            death.kill_group(one.pid)
            one.status = os.waitpid(one.pid, 0)[1]
            one.gone = self.sweep = True
            os.close(one.pidfd)
            self.channel.send(("template_gone", crew.id, one.status))
            ended = self.hear_template(crew, one)
        if not (one.gone and ended):
            return
        os.close(one.socket)
        crew.template = None
        if not one.ready and not crew.removing:
            reason = one.said_why or f"the template {death.describe_status(one.status)} before it was ready"
            self.start_failed(crew, -1, 0, reason)
        for unanswered in [w for w in crew.workers.values() if not w.pid]:
            # Nobody is left who could still fork it. Not the worker's failure: it costs no attempt.
            crew.workers.pop(unanswered.slot)
            self.slots.order_kill(unanswered.slot, _native.KILL_RESTART)
            self.slots.gone(unanswered.slot, one.status, False)
            self.slots.ring_all()
            self.channel.send(("gone", unanswered.slot, unanswered.epoch, one.status, False))

    def hear_template(self, crew: Crew, one: Template) -> bool:
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
                    self.channel.send(("preload_threads", crew.id, rest[0], rest[1]))
            elif verb == "failed":
                one.said_why = rest[0]
            elif verb in ("spawned", "not_spawned"):
                found = crew.workers.get(rest[0])
                if found is not None and found.epoch == rest[1] and not found.pid:
                    if verb == "spawned":
                        self.started(found, rest[2])
                    else:
                        self.not_started(found, rest[2])

    # ---- watching and reaping ---------------------------------------------------------------------------------------
    def look(self) -> None:
        """After a wake of the death watch: who is ready, whose main thread is dead."""
        try:
            os.eventfd_read(self.events)
        except BlockingIOError:
            pass
        watched = [one for crew in self.crews.values() for one in crew.workers.values()]
        for one, (state, abandoned) in zip(watched, self.slots.scan([one.slot for one in watched]), strict=True):
            if state == _native.SLOT_READY and not one.ready:
                self.on_ready(one)
            if abandoned and not one.dying:
                self.kill(one)  # it may only have ended its main thread, or exec'ed
                # What the main thread wrote is final now. A start failure waits for its status, and so does a
                # pool that counts restarts, since its reasons are shown.
                if one.ready and one.crew.spec.get("max_restarts") is None:
                    self.judge(one, f"worker {one.number} died")

    def on_ready(self, one: Worker) -> None:
        one.ready = self.served = True
        one.crew.keeper.on_ready()
        self.channel.send(("ready", one.slot, one.epoch))
        if one.replaces is not None:
            self.channel.send(("replaced", *one.replaces, one.slot, one.epoch))
            one.replaces = None

    def kill(self, one: Worker) -> None:
        one.dying = True
        one.kill_ns = 0
        if one.pidfd >= 0:
            _native.pidfd_signal(one.pidfd, signals.KILL)

    def order_and_kill(self, one: Worker, reason: int, task_id: int = 0) -> None:
        self.slots.order_kill(one.slot, reason, task_id)
        one.judged = True  # an ordered death is nobody's fault
        self.kill(one)

    def judge(self, one: Worker, reason: str, *, left: bool = False) -> None:
        """Tells the keeper, once, how a worker that had been ready came to its end."""
        if one.judged:
            return
        one.judged = True
        info = self.slots.info(one.slot)
        ordered = info["kill_reason"] != _native.KILL_NONE or one.crew.removing or one.retiring
        in_task = info["phase"] in (_native.PHASE_DECODE, _native.PHASE_RUN, _native.PHASE_ENCODE)
        one.crew.keeper.on_gone(
            monotonic_ns(),
            reason,
            ordered=ordered or (left and bool(info["stop_requested"])),
            progressed=info["done"] > 0 or not in_task,
            random=self.random(),
        )

    def reap(self, one: Worker) -> None:
        """The kernel has torn it down: take its status, end its group, tell everybody."""
        if self.workers.get(one.pid) is not one or not _native.pidfd_is_gone(one.pidfd):
            return
        if not one.ready and self.slots.state(one.slot) == _native.SLOT_READY:
            self.on_ready(one)  # ready and dead between two looks
        death.kill_group(one.pid)  # before the reaping gives the number away
        status = os.waitpid(one.pid, 0)[1]
        os.close(one.pidfd)
        del self.workers[one.pid]
        crew = one.crew
        crew.workers.pop(one.slot, None)
        info = self.slots.info(one.slot)
        ordered = info["kill_reason"] != _native.KILL_NONE or crew.removing or one.retiring
        oom = self.was_oom(status, ordered)
        if one.replaces is not None:
            crew.replacing.insert(0, one.replaces)
        reason = f"worker {one.number} {death.describe_status(status)}" + (" (out of memory)" if oom else "")
        if one.ready:
            self.judge(one, reason, left=status == 0)
        elif not ordered:
            killed = not oom and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signals.KILL
            self.start_failed(crew, one.slot, one.epoch, f"{reason} before it was ready", from_outside=killed)
        self.slots.gone(one.slot, status, oom)
        self.slots.ring_all()
        self.channel.send(("gone", one.slot, one.epoch, status, oom))
        self.sweep = True

    def was_oom(self, status: int, ordered: bool) -> bool:
        if not os.WIFSIGNALED(status) or os.WTERMSIG(status) != signals.KILL:
            return False
        before, self.oom = self.oom, _native.oom_kills()
        return self.oom > before >= 0 and not ordered

    def reap_children(self) -> None:
        """Reaps every child that is dead; those that nobody here started were adopted when their parent died."""
        while True:
            try:
                state = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if state is None:
                return
            pid = state.si_pid
            for crew in list(self.crews.values()):
                if crew.template is not None:
                    self.on_template(crew)  # its answer came before the worker became our child
            if pid in self.workers:
                self.reap(self.workers[pid])
            else:
                try:
                    os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:
                    pass  # a template, reaped above
                self.sweep = True  # its own children are ours now

    def kill_strays(self) -> None:
        """Ends living children that nobody here started, but for those in the group of a living worker."""
        found = death.children()
        for crew in list(self.crews.values()):
            if crew.template is not None:
                self.on_template(crew)
        known = set(self.workers)
        groups = set(known)
        for crew in self.crews.values():
            if crew.template is not None:
                known.add(crew.template.pid)
                groups.add(crew.template.pid)
        for pid in found:
            if pid in known:
                continue
            fields = death.stat_fields(pid)
            if fields is not None and fields[0] not in "ZX" and fields[2] not in groups:
                os.kill(pid, signals.KILL)  # our child: the number is its own until we reap it

    # ---- what the program asks for ----------------------------------------------------------------------------------
    def on_control(self) -> None:
        self.channel.flush()
        for message, fds in self.channel.receive():
            verb, *rest = message
            getattr(self, f"do_{verb}")(*rest, *([fds] if verb == "add_pool" else []))

    def do_add_pool(self, id: int, spec: dict[str, Any], first: int, count: int, fds: list[int]) -> None:
        self.crews[id] = Crew(id, spec, first, count, fds)

    def do_resize(self, id: int, workers: int) -> None:
        if id in self.crews:
            self.crews[id].keeper.resize(workers)

    def find(self, slot: int, epoch: int) -> Worker | None:
        for crew in self.crews.values():
            one = crew.workers.get(slot)
            if one is not None and one.epoch == epoch:
                return one
        return None

    def do_replace(self, slot: int, epoch: int) -> None:
        one = self.find(slot, epoch)
        if one is not None and one.stays:
            one.retiring = True
            one.crew.replacing.append((slot, epoch))

    def do_kill(self, slot: int, epoch: int, reason: int, task_id: int = 0, stack: bool = False) -> None:
        one = self.find(slot, epoch)
        if one is None or one.dying:
            return
        if stack and one.ready:
            self.slots.order_kill(slot, reason, task_id)
            one.judged = True
            _native.pidfd_signal(one.pidfd, signals.USR1)
            one.kill_ns = monotonic_ns() + _STACK_NS
        else:
            self.order_and_kill(one, reason, task_id)

    def do_remove_pool(self, id: int, grace_s: float) -> None:
        crew = self.crews.get(id)
        if crew is None:
            self.channel.send(("removed", id))
            return
        end = monotonic_ns() + int(grace_s * 1e9)
        crew.end_ns = min(crew.end_ns or end, end)
        if crew.removing:
            return
        crew.removing = True
        if crew.template is not None and not crew.template.gone:
            _native.pidfd_signal(crew.template.pidfd, signals.KILL)
        for one in crew.workers.values():
            if one.ready and one.pidfd >= 0:
                # The word that the handler of TERM would store. A signal could come between the worker's last look
                # and its sleep, and be slept over; a word and a ring cannot.
                self.slots.request_stop(one.slot)
            else:
                self.order_and_kill(one, _native.KILL_STOP)  # it serves nobody yet

    def settle_removal(self, crew: Crew, now: int) -> None:
        if crew.end_ns and now >= crew.end_ns:
            crew.end_ns = 0
            for one in list(crew.workers.values()):
                self.order_and_kill(one, _native.KILL_STOP)
        if not crew.workers and crew.template is None:
            del self.crews[crew.id]
            crew.close()
            self.channel.send(("removed", crew.id))

    def do_freed(self) -> None:
        """`settle` runs after every wake and finds the slots."""

    def do_stop(self, grace_s: float) -> None:
        self.stopping = True
        for id in list(self.crews):
            self.do_remove_pool(id, grace_s)

    # ---- the end ----------------------------------------------------------------------------------------------------
    def end(self) -> None:
        """The program is gone, or has stopped everything: nothing of this session may stay."""
        for one in self.workers.values():
            _native.pidfd_signal(one.pidfd, signals.KILL)
        while True:
            for pid in death.children():
                death.kill_group(pid)
                try:
                    os.kill(pid, signals.KILL)
                except ProcessLookupError:
                    pass
            for pidfd in death.kill_session(self.pid):
                os.close(pidfd)
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                return


def main() -> None:
    """Entered by `python -S -P -c` with the descriptors and the program's pid as arguments."""
    control, slots_fd, arena_fd, program, top, parent = (int(word) for word in sys.argv[1:7])
    os.closerange(top, 1 << 30)  # whatever the program had made inheritable
    os.chdir("/")
    _native.set_process_name("shmrt-root")
    die_first(900)  # after the workers, before the program, which can start another root
    _native.set_child_subreaper(True)
    # Forking beside the death watch, which holds no lock, is meant; newer interpreters would warn of it.
    import _warnings

    _warnings.filters.insert(0, ("ignore", None, DeprecationWarning, None, 0))
    if os.getppid() != parent:
        os._exit(0)  # the program died before this line
    for fd in (control, arena_fd, program):
        if fd >= 0:
            os.set_inheritable(fd, False)
    slots = _native.Slots.attach(slots_fd)
    os.close(slots_fd)
    root = Root(control, slots, arena_fd, program)
    gc.collect()
    gc.freeze()
    root.run()
    os._exit(0)

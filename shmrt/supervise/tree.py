"""Carries out what the tree decides: starts, asks to end, kills, reports; and tells the tree what became of it.

`decide/tree.py` is the tree, pure; this is its hands. Each leaf is a `Kin` (kin.py): a process of the root's, or
something of the program's (a pool, a pipeline), which the program opens and closes when it is told to.

The end of a child, in this order, before its supervisor decides about a restart: its name is free, its monitors and
links have heard, the calls that it had begun have failed, its own unanswered calls are gone. So a replacement finds
nothing of its predecessor but the mailbox, with the messages that were not begun. If the child will not be started
again ("lost"), the mailbox is emptied and closed, and whoever waits for an answer hears why.

If the root dies, all of this is gone with its processes; the program starts another root and plants its trees again
(`runtime_tree.py`).
"""

from __future__ import annotations

import os
from time import monotonic_ns

from shmrt import _native
from shmrt.decide.tree import Tree
from shmrt.process import signals
from shmrt.supervise.bonds import Bonds
from shmrt.supervise.kin import Kin, KinCrew, KinLine, import_cloudpickle, no_room
from shmrt.supervise.nudges import Nudges
from shmrt.supervise.registry import Registry

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.decide.machine import Machine
    from shmrt.decide.specs import ChildSpec, SupervisorSpec
    from shmrt.supervise.crew import Worker
    from shmrt.supervise.nested import Nested
    from shmrt.supervise.staff import Staff
    from shmrt.supervise.starting import Starting

__all__ = ["Trees"]

_DEAF_NS = 5_000_000_000  # what a function has to end after the exit signal of a linked process


class Trees:
    """Every tree of the runtime. Made when the first one is planted."""

    def __init__(self, staff: Staff, starting: Starting, nested: Nested) -> None:
        __import__("shmrt.supervise.child")  # what every child process runs, so that none imports it
        self.staff = staff
        self.starting = starting
        self.nested = nested
        # A reference to a dead root's child is to mean nobody, and not another child that has its number.
        self.tree = Tree(starting.random, first_key=1 + ((staff.slots.generation - 1) << 32))
        self.kin: dict[int, Kin] = {}
        self.extras: dict[int, bytes | None] = {}  # by top supervisor: what its children's arguments begin with
        self.tops: dict[int, dict[str, Any]] = {}
        self.on_end: list[tuple[Machine, Callable[[Any], None]]] = []  # to be called with its reason
        self.monitored: set[Machine] = set()
        self._acting = self._warm = False
        self._named = 0
        self._failed: list[tuple[Kin, Any]] = []  # starts that failed while effects were carried out
        self._lent: list[int] = []  # descriptors that are on their way to the program
        self.bonds = Bonds()
        self.nudges = Nudges()
        self.arena = _native.Arena.attach(staff.arena_fd) if staff.arena_fd >= 0 else None
        if self.arena is not None:
            self.arena.set_default()  # payloads of what the root itself sends
            staff.arena_fd = self.arena.fd  # forked children go on with this very object: it is theirs to keep
        self.calls = _native.Calls(staff.slots)
        self.calls.reserve()
        self.registry = Registry(staff.slots)
        self.registry.on_mailbox = self._keep_mailbox
        self.reports = staff.reports
        self.on_answer: Callable[[Any, bool, Any], None] = lambda token, ok, value: None
        self.on_child_gone: Callable[[Kin, Any], None] = lambda kin, reason: None
        self.on_watched: Callable[[Kin], None] = lambda kin: None

    # ---- planting ---------------------------------------------------------------------------------------------------
    def plant(
        self, spec: SupervisorSpec, surroundings: dict[str, Any], extra: bytes | None, top: dict[str, Any]
    ) -> int:
        """A top supervisor; its children start in order. `top` says whose it is and whether its end is the
        runtime's."""
        self.prepare(spec.children, surroundings)
        key = self.tree.add_top(spec, monotonic_ns())
        self.tops[key], self.extras[key] = top, extra
        self.act()
        return key

    def prepare(self, children: tuple[ChildSpec, ...], surroundings: dict[str, Any]) -> None:
        """Every child keeps the surroundings of whoever described it."""
        for child in children:
            child.data["surroundings"] = surroundings
            if child.supervisor is not None:
                self.prepare(child.supervisor.children, surroundings)
            else:
                self.warm(child.data["blob"], surroundings)

    def warm(self, blob: bytes, surroundings: dict[str, Any]) -> None:
        if b"cloudpickle" in blob and not self._warm:
            self._warm = True
            import_cloudpickle(surroundings["inherit"]["path"])

    def path_of(self, key: int) -> tuple[Any, ...]:
        """The ids from the top down to a child."""
        owner = self.tree.owners[key]
        return (*owner.path(), owner.members[key].spec.id)

    def number_of(self, key: int) -> int:
        """Which tree of the program's it is in; the same after the root's death. Negative for a tree of a worker, which
        no other root gets."""
        while (parent := self.tree.parent_of(key)) is not None:
            key = parent
        top = self.tops[key]
        return int(top["number"]) if top["token"][0] is None else -key

    def supervisor_named(self, name: str) -> int | None:
        """The key of a running supervisor."""
        return next((key for key, machine in self.tree.machines.items() if machine.spec.name == name), None)

    def extra_of(self, supervisor: int) -> bytes | None:
        """What the arguments of its children begin with."""
        spec = self.tree.child_spec(supervisor)
        return self.extras.get(supervisor) if spec is None else spec.data["extra"]

    # ---- effects ----------------------------------------------------------------------------------------------------
    def act(self) -> None:
        """Carries out effects until there are none: each may bring others, which come after those that are known."""
        if self._acting:
            return
        self._acting = True
        while effects := self.tree.take_effects():
            if self._named != self.tree.machines_seen:
                self._named = self.tree.machines_seen
                self.registry.name_supervisors(self.tree.machines)
            for effect in effects:
                verb, *rest = effect
                try:
                    getattr(self, f"_do_{verb}")(*rest)
                except (TypeError, ValueError, LookupError) as error:  # no asker's mistake: the next root begins anew
                    raise RuntimeError(f"effect {verb} of child {rest[0]} failed") from error
        self._acting = False
        for watched in [watched for watched in self.on_end if watched[0].ended]:
            self.on_end.remove(watched)
            watched[1](self._end_of(watched[0]))
        for machine in [machine for machine in self.monitored if machine.ended]:
            self.monitored.discard(machine)
            self.fall(machine.key, self._end_of(machine))

    @staticmethod
    def _end_of(machine: Machine) -> Any:
        return "killed" if machine.killing else machine.stop_reason

    def settle(self, now: int) -> None:
        self.return_lent()
        self.nudges.settle(now)
        for one in self.nudges.deaf(now):
            self.staff.order_and_kill(one, _native.KILL_STOP)
        failed, self._failed = self._failed, []
        for kin, reason in failed:
            self._exited(kin, reason)
        self.tree.tick(now)
        self.act()

    def wait_ns(self, now: int) -> int | None:
        due = self.tree.next_ns()
        return 0 if self._failed else None if due is None else max(0, due - now)

    def _do_start(self, key: int, data: dict[str, Any]) -> None:
        kin = self.kin.get(key)
        if kin is None:
            path = (self.number_of(key), *self.path_of(key)[1:])
            kin = self.kin[key] = Kin(key, data, data["surroundings"], path)
            if data.get("health"):
                self.on_watched(kin)
        kin.begin()
        if (refusal := self.registry.refusal(kin)) is not None:
            self._exited(kin, refusal)
            return
        try:
            self._open(kin)
        except Exception as error:  # no room for it: memory, descriptors, slots, or names
            self._exited(kin, ("error", type(error).__name__, str(error), ""))

    def _open(self, kin: Kin) -> None:
        self.registry.open_mailbox(kin, self.calls)
        if kin.in_program:
            self.registry.enter(kin)
            data = {**kin.data, "surroundings": None, "address": self.registry.address(kin)}
            self.staff.channel.send(("open_child", kin.key, kin.incarnation, data, kin.path))
            return
        if kin.crew is None:
            slot = self.nested.allot_child(kin.key)
            if not slot:
                raise no_room("the process table has no slot left; stop some children, or use a second Runtime")
            kin.crew = KinCrew(kin, slot, KinLine(kin, self._hear))
            self.staff.crews[kin.crew.id] = kin.crew
        if not self.starting.start(kin.crew, monotonic_ns()) and not kin.crew.workers and kin.start_failure is None:
            raise no_room(f"slot {kin.crew.first} of child {kin.data['label']} is not free")

    def _keep_mailbox(self, kin: Kin, fd: int) -> None:
        """The program keeps a descriptor of each mailbox that the next root would look for."""
        parent = self.tree.parent_of(kin.key)
        machine = None if parent is None else self.tree.machines.get(parent)
        if fd < 0:
            self.staff.channel.send(("mailbox_closed", kin.key))
        elif machine is not None and machine.spec.strategy != "dynamic":
            own = os.dup(fd)
            self._lent.append(own)
            self.staff.channel.send(("mailbox", kin.key, kin.path), (own,))
            self.return_lent()

    def return_lent(self) -> None:
        """Descriptors that were sent are closed here."""
        if not self.staff.channel.pending:
            while self._lent:
                os.close(self._lent.pop())

    def _do_shutdown(self, key: int) -> None:
        self.ask_to_end(self.kin[key])

    def ask_to_end(self, kin: Kin) -> None:
        """OTP's exit(shutdown). A server hears it between two messages; TERM interrupts what it or a function is
        doing. Once for each process: another TERM would interrupt its cleaning up."""
        if kin.asked_to_end:
            return
        kin.asked_to_end = True
        if kin.in_program:
            self.registry.leave(kin)  # nobody is to find what takes nothing any more
            self.staff.channel.send(("close_child", kin.key, kin.incarnation))
        elif kin.worker is not None and kin.ready:
            if kin.is_server:
                self.tell(kin, ("shutdown",))
            self.nudges.send(kin.worker, signals.TERM, monotonic_ns())

    def _do_kill(self, key: int) -> None:
        kin = self.kin[key]
        if kin.in_program:
            self.staff.channel.send(("kill_child", key, kin.incarnation))
        elif kin.worker is not None:
            self.staff.order_and_kill(kin.worker, _native.KILL_STOP)

    def _do_lost(self, key: int, reason: Any) -> None:
        kin = self.kin.get(key)
        if kin is not None:
            self.registry.close_mailbox(kin, self.calls, reason)

    def _do_forgotten(self, key: int) -> None:
        kin = self.kin.pop(key, None)
        if kin is not None:
            self.registry.leave(kin)
            self.registry.close_mailbox(kin, self.calls, "noproc")
            if kin.crew is not None:
                self.staff.crews.pop(kin.crew.id, None)
                self.nested.forget_child(key)

    def _do_answer(self, token: Any, ok: bool, value: Any) -> None:
        self.on_answer(token, ok, value)

    def _do_report(self, report: dict[str, Any]) -> None:
        self.note(report)

    def _do_top_started(self, key: int) -> None:
        self.on_answer(self.tops[key]["token"], True, key)

    def _do_top_ended(self, key: int, reason: Any) -> None:
        top = self.tops.pop(key)
        self.extras.pop(key, None)
        self.on_answer(top["token"], False, ("ended", reason))
        self.staff.channel.send(("top_ended", key, reason))

    # ---- what happens to processes ----------------------------------------------------------------------------------
    def _hear(self, kin: Kin, message: tuple[Any, ...]) -> None:
        """From the crew of a child, as its channel would get it."""
        verb = message[0]
        if verb == "started":
            assert kin.crew is not None
            kin.worker = kin.crew.workers[message[1]]
            self.registry.enter(kin)
        elif verb == "ready":
            self.ready(kin)
        elif verb == "start_failed":
            kin.start_failure = kin.start_failure or ("error", "StartError", str(message[4]), "")
        elif verb == "gone":
            self._gone(kin, *message[1:])

    def ready(self, kin: Kin) -> None:
        kin.ready = True
        if kin.asked_to_end:  # somebody stopped it while it started, when it could not hear
            kin.asked_to_end = False
            self.ask_to_end(kin)
        self.tree.started(kin.key, monotonic_ns())
        self.act()

    def _gone(self, kin: Kin, slot: int, epoch: int, status: int, oom: bool) -> None:
        had_process = kin.worker is not None
        owner = self.staff.slots.info(slot)["owner"]
        kin.worker = None
        if had_process:
            reason = kin.end_of(status)
            self.calls.fail_taken(owner, reason)
            if self.arena is not None:  # what it read, and what it was about to send
                self.arena.reclaim_of(owner)
        else:
            reason = kin.start_failure or ("error", "StartError", "the process could not be made", "")
        if oom:
            self.note(
                {
                    "context": "out_of_memory",
                    "reason": reason,
                    "offender": self.offender(kin),
                    "supervisor": self.path_of(kin.key)[:-1],
                }
            )
        self._exited(kin, reason)

    def ready_in_program(self, key: int, incarnation: int) -> None:
        kin = self.kin.get(key)
        if kin is not None and kin.incarnation == incarnation:
            self.ready(kin)

    def exited_in_program(self, key: int, incarnation: int, reason: Any) -> None:
        """The program has closed a pool or a pipeline, or it ended by itself."""
        kin = self.kin.get(key)
        if kin is not None and kin.incarnation == incarnation:
            self._exited(kin, kin.judged(reason))

    def _exited(self, kin: Kin, reason: Any) -> None:
        if self._acting:  # a start that failed at once; the root does something else before the next attempt
            self._failed.append((kin, reason))
            return
        self.registry.leave(kin)
        self.calls.reclaim()
        self.tree.exited(kin.key, reason, monotonic_ns())
        self.act()
        # Last: whoever hears that a server is gone for good finds its mailbox closed.
        self.fall(kin.key, reason)
        self.on_child_gone(kin, reason)

    def caller_gone(self, one: Worker) -> None:
        """Any process of the root's: the replies that it was writing will not come, and nobody waits for those it asked
        for."""
        self.nudges.forget(one)
        owner = self.staff.slots.info(one.slot)["owner"]
        if not isinstance(one.crew, KinCrew):  # a child's reason is not known yet
            self.calls.fail_taken(owner, "killed")
            self.calls.reclaim()

    def fell(self) -> None:
        """The runtime ends: what is left is killed."""
        for key in list(self.tops):
            self.tree.stop(key, "killed", monotonic_ns())
        self.act()

    def fall(self, key: int, reason: Any) -> None:
        """Whoever watches a process hears of its end, whoever is linked to it gets its signal."""
        monitors, linked = self.bonds.down(key)
        for number, who in monitors:
            self.send_to(who, ("down", number, key, reason))
        for other in linked:
            if other in self.kin:
                self.exit_signal(self.kin[other], key, reason)

    def exit_signal(self, kin: Kin, key: int, reason: Any) -> None:
        """To whoever was linked to that child. It may be busy: USR2 interrupts it, and it takes the reason for its
        own."""
        self.tell(kin, ("exit_signal", key, reason))
        if reason != "normal" and kin.worker is not None:
            now = monotonic_ns()
            ends = 0 if kin.is_server else now + _DEAF_NS  # a server may trap exits, a function cannot
            self.nudges.send(kin.worker, signals.USR2, now, ends_ns=ends)

    # ---- speaking ---------------------------------------------------------------------------------------------------
    def send_to(self, who: Worker | None, message: tuple[Any, ...]) -> None:
        """To whoever made a monitor or asked: the program, a worker, or a child, which may sleep on its mailbox."""
        if who is None:
            self.staff.channel.send(message)
        elif isinstance(who.crew, KinCrew):
            self.tell(who.crew.kin, message)
        elif who.channel is not None:
            who.channel.send(message)

    def tell(self, kin: Kin, message: tuple[Any, ...]) -> None:
        """A control message; a full mailbox does not hold it up."""
        if kin.worker is None or kin.worker.channel is None:
            return
        kin.worker.channel.send(message)
        self.staff.slots.send_control(kin.worker.slot)
        if kin.mailbox is not None:
            kin.mailbox.ring()

    def note(self, report: dict[str, Any]) -> None:
        """Keeps a report and tells the program of it."""
        self.staff.channel.tell(("event", self.reports.keep(report)))

    @staticmethod
    def offender(kin: Kin) -> dict[str, Any]:
        return {"id": kin.path[-1], "key": kin.key, "pid": kin.pid}

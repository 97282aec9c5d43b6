"""The whole tree of supervisors as one pure machine: events in, effects out.

The caller tells what happened to the leaves (`started`, `exited`), what somebody wants (`ask`, `stop`) and what time it
is (`tick`), carries out `take_effects()` in order, and asks again. Effects:

```
("start", key, data)          begin a leaf: `started(key)` or `exited(key, reason)` follows
("shutdown", key)             ask it to end in order: `exited` follows
("kill", key)                 SIGKILL: `exited(key, "killed")` follows
("lost", key, reason)         the leaf is down and its supervisor will not start it again by itself
("forgotten", key)            its specification is gone, the key is never used again (leaves and supervisors)
("answer", token, ok, value)  of `ask`
("report", dict)              what happened and what was decided
("top_started", key)          all children of a top supervisor are up
("top_ended", key, reason)    a top supervisor and everything under it is gone
```
A key belongs to a child specification in one incarnation of its supervisor. A supervisor keeps its own key through
restarts; its children are other keys then.

>>> from shmrt.decide.specs import ChildSpec, SupervisorSpec
>>> tree = Tree(lambda: 0.5)
>>> top = tree.add_top(SupervisorSpec(children=(ChildSpec("a", data="A"),)), 0)
>>> tree.take_effects()
[('start', 2, 'A')]
>>> tree.started(2, 0); tree.take_effects()[-1]
('top_started', 1)
>>> tree.exited(2, "killed", 1); tree.take_effects()[-1]
('start', 2, 'A')
"""

from __future__ import annotations

from shmrt.decide.dynamic import DynamicSupervisor
from shmrt.decide.machine import QUESTIONS, Machine
from shmrt.decide.specs import ChildSpec
from shmrt.decide.supervisor import StaticSupervisor
from shmrt.decide.timers import Timers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.decide.member import Member
    from shmrt.decide.specs import SupervisorSpec

__all__ = ["VERBS", "Tree"]

_BARE = ("which_children", "count_children")
VERBS = ("start_child", "terminate_child", "restart_child", "delete_child")
"""What changes a supervisor; `QUESTIONS` are the others."""


def _fits(verb: str, args: tuple[Any, ...]) -> bool:
    """Whether a machine can work with such arguments; they come from other processes."""
    if verb in _BARE or len(args) != 1:
        return verb in _BARE and not args
    if verb == "start_child":
        return isinstance(args[0], ChildSpec)
    try:
        hash(args[0])
    except TypeError:
        return False
    return True


class Tree:
    """All supervisors of a root. `random` gives numbers from 0 to 1, for backoff; keys are counted from `first_key`."""

    __slots__ = (
        "_effects",
        "_last_key",
        "_settling",
        "_work",
        "machines",
        "machines_seen",
        "now",
        "owners",
        "random",
        "timers",
        "tops",
    )

    def __init__(self, random: Callable[[], float], first_key: int = 1) -> None:
        self.random = random
        self.now = 0
        self.timers = Timers()
        self.machines: dict[int, Machine] = {}
        self.machines_seen = 0  # how often a supervisor came or went
        """Running supervisors by key."""
        self.owners: dict[int, Machine] = {}
        """The supervisor of each child key."""
        self.tops: list[int] = []
        self._effects: list[tuple[Any, ...]] = []
        self._work: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._settling = False
        self._last_key = first_key - 1

    # ------------------------------------------------------------------ events

    def add_top(self, spec: SupervisorSpec, now: int) -> int:
        """Starts another top supervisor: its children come up in order."""
        self.now = now
        key = self.new_key()
        self.tops.append(key)
        self._boot(key, spec, None, None)
        self._settle()
        return key

    def started(self, key: int, now: int) -> None:
        """A leaf is ready."""
        self._tell(key, now, None)

    def exited(self, key: int, reason: Any, now: int) -> None:
        """A leaf's process is gone; before `started` that is a failed start. What is not known is ignored."""
        self._tell(key, now, (reason,))

    def ask(self, token: Any, supervisor_key: int, verb: str, args: tuple[Any, ...], now: int) -> None:
        """Somebody wants something of a supervisor; an "answer" follows, maybe later."""
        self.now = now
        machine = self.machines.get(supervisor_key)
        if verb not in QUESTIONS and verb not in VERBS:
            self.emit("answer", token, False, ("unknown_verb", verb))
        elif not _fits(verb, args):
            self.emit("answer", token, False, ("bad_arguments", verb))
        elif machine is None:
            self.emit("answer", token, False, ("noproc", None))
        elif verb in QUESTIONS:
            machine.question(token, verb, args)
        else:
            self.post(machine.on_ask, token, verb, args)
            self._settle()

    def stop(self, key: int, reason: Any, now: int) -> bool:
        """Ends a supervisor: in order, or at once if the reason is "killed". False: no such supervisor runs."""
        self.now = now
        machine = self.machines.get(key)
        if machine is None:
            return False
        if reason == "killed":
            self.post(machine.kill)
        else:
            self.post(machine.on_stop, reason)
        self._settle()
        return True

    def tick(self, now: int) -> None:
        """Time has passed."""
        self.now = now
        for machine, member, incarnation, what in self.timers.due(now):
            self.post(self._on_timer, machine, member, incarnation, what)
        self._settle()

    def next_ns(self) -> int | None:
        """When `tick` is wanted; None: not by time."""
        return self.timers.next_ns()

    def forgive(self, late_ns: int) -> None:
        """Nobody ran for a while: no timer is to end because of that."""
        self.timers.forgive(late_ns)

    def take_effects(self) -> list[tuple[Any, ...]]:
        """What is to be done, in order; each is answered once."""
        effects, self._effects = self._effects, []
        return effects

    # ------------------------------------------------------------------ questions

    def parent_of(self, key: int) -> int | None:
        """The key of its supervisor; None for a top supervisor or an unknown key."""
        owner = self.owners.get(key)
        return None if owner is None else owner.key

    def child_spec(self, key: int) -> ChildSpec | None:
        """None for a top supervisor or an unknown key."""
        owner = self.owners.get(key)
        return None if owner is None else owner.members[key].spec

    def is_supervisor(self, key: int) -> bool:
        """Also of one that is down or restarting."""
        if key in self.machines:
            return True
        spec = self.child_spec(key)
        return spec is not None and spec.supervisor is not None

    def find(self, path: tuple[Any, ...]) -> int | None:
        """The key at a path: a top supervisor's name (without one: its key), then ids of children."""
        for key in self.tops:
            machine = self.machines[key]
            if path and machine.path() == path[:1]:
                return self._find_below(machine, path[1:])
        return None

    def _find_below(self, machine: Machine, path: tuple[Any, ...]) -> int | None:
        key = machine.key
        for depth, id in enumerate(path):
            found = [member.key for member in machine.ordered() if member.spec.id == id]
            if not found:
                return None
            key = found[0]
            below = self.machines.get(key)
            if below is None:
                return key if depth == len(path) - 1 else None
            machine = below
        return key

    def describe(self, key: int | None = None, now: int | None = None) -> dict[str, Any]:
        """One supervisor with all that is below it, or {"supervisors": [...]} with every top one."""
        now = self.now if now is None else now
        if key is None:
            return {"supervisors": [self.machines[top].describe(now) for top in self.tops]}
        if key in self.machines:
            return self.machines[key].describe(now)
        owner = self.owners.get(key)
        return {} if owner is None else owner.describe_member(owner.members[key], now)

    # ------------------------------------------------------------------ for the machines

    def new_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def emit(self, *effect: Any) -> None:
        self._effects.append(effect)

    def post(self, call: Callable[..., None], *args: Any) -> None:
        """Told after everything that is being told now: no machine is entered twice."""
        self._work.append((call, args))

    def begin(self, owner: Machine, member: Member) -> None:
        """Starts a leaf or a supervisor."""
        if member.spec.supervisor is None:
            self.emit("start", member.key, member.spec.data)
        else:
            self._boot(member.key, member.spec.supervisor, owner, member.spec.id)

    def on_machine_up(self, machine: Machine) -> None:
        if machine.parent is None:
            self.emit("top_started", machine.key)
        else:
            self.post(self._machine_up, machine)

    def on_machine_ended(self, machine: Machine, reason: Any) -> None:
        del self.machines[machine.key]
        self.machines_seen += 1
        if machine.parent is None:
            self.tops.remove(machine.key)
            self.emit("top_ended", machine.key, reason)
        elif (member := machine.parent.members.get(machine.key)) is not None:
            self.post(machine.parent.on_exited, member, reason)

    # ------------------------------------------------------------------ inside

    def _boot(self, key: int, spec: SupervisorSpec, parent: Machine | None, id: Any) -> None:
        kind = DynamicSupervisor if spec.strategy == "dynamic" else StaticSupervisor
        machine = self.machines[key] = kind(self, key, spec, parent, id)
        self.machines_seen += 1
        self.post(self._boot_machine, machine)

    def _boot_machine(self, machine: Machine) -> None:
        if not machine.ended and not machine.killing:
            machine.boot()

    def _machine_up(self, machine: Machine) -> None:
        """Unless it ended before its parent could hear of it."""
        parent = machine.parent
        if parent is not None and not machine.ended and (member := parent.members.get(machine.key)) is not None:
            parent.on_started(member)

    def _tell(self, key: int, now: int, ended: tuple[Any] | None) -> None:
        self.now = now
        owner = self.owners.get(key)
        if owner is None or (member := owner.members[key]).spec.supervisor is not None:
            return
        if ended is None:
            self.post(owner.on_started, member)
        else:
            self.post(owner.on_exited, member, ended[0])
        self._settle()

    def _on_timer(self, machine: Machine, member: Member | None, incarnation: int, what: str) -> None:
        if machine.ended or (member is not None and member.incarnation != incarnation):
            return
        machine.on_timer(member, what)

    def _settle(self) -> None:
        if self._settling:
            return
        self._settling = True
        try:
            while self._work:
                call, args = self._work.pop(0)
                call(*args)
        finally:
            self._settling = False

"""What processes of the runtime ask of the root about trees, and how they are answered.

    ("ask", number, verb, *arguments)   ->   ("answer", number, ok, value)

An answer may come later (a start waits for the child to be ready). A refusal is ok False with (code, more). Whoever
dies while it waits is not answered; what it asked for goes on.

    plant spec surroundings extra of_runtime number   a top supervisor; answered when its children are up: its key
    supervise key verb arguments     the verbs of a supervisor (`decide/tree.py`); a child's key comes with who it is
    find name                        the key of a supervisor by name; with None that of the runtime's own top
    who key                          who a child is: see `who`
    stop_supervisor key reason       answered when all of it is gone
    stop_planted number reason       the same, by the number that it was planted with
    stop_child key reason            a server, or a function's process: in order, without its supervisor's doing
    system key verb payload          what `get_state` and `replace_state` send to a server
    end_process key brutally, tie key    an exit signal; a link, for tasks
    monitor key, demonitor number, link key, unlink key, join group, leave group
    send_after key ns payload, cancel_timer number
    describe key                     the tree as it is, for people
    events since                     reports with a greater number
    mailboxes                        (name, path, what it has counted) of each child's mailbox
"""

from __future__ import annotations

import marshal
from time import monotonic_ns

from shmrt import _native
from shmrt.decide.specs import ChildSpec, SupervisorSpec
from shmrt.errors import Overloaded
from shmrt.supervise.kin import Kin, KinCrew
from shmrt.supervise.timers import Timers

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.crew import Worker
    from shmrt.supervise.tree import Trees

__all__ = ["Asks"]


class _Refused(Exception):
    """The answer is no: (code, more)."""


class Asks:
    """Each verb is a method; it answers by returning, or later through its token."""

    def __init__(self, trees: Trees) -> None:
        self.trees = trees
        self.timers = Timers(trees)
        self._systems: dict[int, tuple[Any, int]] = {}  # sent to a child: token -> (asker's token, key)
        self._stops: dict[int, list[tuple[Any, Any]]] = {}  # by key: (asker's token, reason)
        self._ties: dict[Worker, set[int]] = {}  # children that end with a process that is none
        self._count = 0
        trees.on_answer = self.answer
        trees.on_child_gone = self.child_gone

    # ---- asking and answering ---------------------------------------------------------------------------------------
    def hear(self, who: Worker | None, number: int, verb: str, arguments: list[Any]) -> None:
        token = (who, number, verb)
        method = getattr(self, f"_ask_{verb}", None)
        try:
            if method is None:
                raise _Refused("unknown_verb", verb)
            value = method(token, *arguments)
        except _Refused as refusal:
            self.answer(token, False, refusal.args)
            return
        except Overloaded as error:  # the registry of names
            self.answer(token, False, ("full", str(error)))
            return
        except (TypeError, ValueError, LookupError) as error:
            self.answer(token, False, ("bad_request", f"{verb}: {error!r}"))
            return
        if value is not self:
            self.answer(token, True, value)

    def answer(self, token: Any, ok: bool, value: Any) -> None:
        if token is None:
            return
        who, number, verb = token
        if ok and verb in ("start_child", "restart_child", "key_of"):
            value = None if value is None else (value, self.who(value))
        elif ok and verb == "which_children":
            value = [self._row(row) for row in value]
        elif ok and verb == "which_child":
            value = self._row(value)
        elif ok and verb == "get_childspec":
            value = value.to_plain()
        elif not ok and isinstance(value, tuple):
            if value[0] == "start_error" and isinstance(value[1], tuple) and value[1][0] == "already_started":
                value = value[1]  # its name is taken
            if value[0] == "already_started":
                value = ("already_started", (value[1], self.who(value[1])))
        if who is None or who.channel is not None:
            self.trees.send_to(who, ("answer", number, ok, value))

    def _row(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """With (key, pid, None) of a process or (key, None, who) of anything else where the tree has a key."""
        id, shown, type, restart = row
        if isinstance(shown, int):
            kin = self.trees.kin.get(shown)
            has_process = kin is not None and not kin.in_program
            shown = (shown, kin.pid if kin else None, None if has_process else self.who(shown))
        return id, shown, type, restart

    def who(self, key: int) -> dict[str, Any]:
        """Everything that a reference to a child is made of."""
        trees = self.trees
        kin = trees.kin.get(key)
        if kin is not None:
            return {
                "kind": kin.data["kind"],
                "name": kin.data["name"],
                "label": kin.data["label"],
                "handlers": kin.data.get("handlers"),
                "mailbox": trees.registry.address(kin),
                "pid": kin.pid,
            }
        if not trees.tree.is_supervisor(key):
            raise _Refused("not_found", key)
        machine, spec = trees.tree.machines.get(key), trees.tree.child_spec(key)
        name = machine.spec.name if machine is not None else spec.supervisor.name if spec and spec.supervisor else None
        return {
            "kind": "supervisor",
            "name": name,
            "label": name or (str(spec.id) if spec else "supervisor"),
            "pid": None,
        }

    def _kin(self, key: int) -> Kin:
        kin = self.trees.kin.get(key)
        if kin is None:
            raise _Refused("not_found", key)
        return kin

    # ---- supervisors ------------------------------------------------------------------------------------------------
    def _ask_plant(
        self, token: Any, spec: Any, surroundings: Any, extra: bytes | None, of_runtime: bool, number: int
    ) -> Any:
        planted = self._planted(token[0], number)
        if planted:
            raise _Refused("planted", planted)
        supervisor = SupervisorSpec.from_plain(spec)
        holder = None if supervisor.name is None else self.trees.supervisor_named(supervisor.name)
        if holder is not None:
            raise _Refused("already_started", holder)
        self.trees.plant(supervisor, surroundings, extra, {"token": token, "of_runtime": of_runtime, "number": number})
        return self

    def _ask_supervise(self, token: Any, key: int, verb: str, *arguments: Any) -> Any:
        tree = self.trees.tree
        if not tree.is_supervisor(key):
            raise _Refused("noproc", key)
        given: tuple[Any, ...] = arguments
        if verb == "start_child":
            child = ChildSpec.from_plain(arguments[0])
            if child.supervisor is None:
                child.data["extra"] = self.trees.extra_of(key)
            self.trees.prepare((child,), arguments[1])
            given = (child,)
        elif arguments:
            given = (self._meant(key, *arguments[0]),)
        if verb == "key_of":
            member = tree.machines[key].find(given[0])  # not by key: an id may be a number, too
            assert member is not None
            self.answer((token[0], token[1], verb), True, member.key)
            return self
        tree.ask((token[0], token[1], verb), key, verb, given, monotonic_ns())
        self.trees.act()
        return self

    def _meant(self, supervisor: int, kind: str, what: Any) -> Any:
        """How the supervisor itself names a child: a static one by its id, a dynamic one by its key."""
        tree = self.trees.tree
        machine = tree.machines.get(supervisor)
        members = [] if machine is None else machine.ordered()
        dynamic = machine is not None and machine.spec.strategy == "dynamic"
        for member in members:
            kin = self.trees.kin.get(member.key)
            if kind == "key":
                found = member.key == what
            else:
                found = member.spec.id == what or (dynamic and kin is not None and kin.pid == what and what is not None)
            if found:
                return member.key if dynamic else member.spec.id
        raise _Refused("not_found", what)

    def _ask_find(self, token: Any, name: str | None) -> tuple[int, dict[str, Any]]:
        trees = self.trees
        if name is None:
            key = next((key for key, top in trees.tops.items() if top["of_runtime"]), None)
        else:
            key = trees.supervisor_named(name)
        if key is None:
            raise _Refused("not_found", name)
        return key, self.who(key)

    def _ask_who(self, token: Any, key: int) -> dict[str, Any]:
        return self.who(key)

    def _ask_stop_supervisor(self, token: Any, key: int, reason: Any) -> Any:
        if not self.trees.tree.is_supervisor(key):
            raise _Refused("noproc", key)
        machine = self.trees.tree.machines.get(key)
        if machine is None:
            raise _Refused("noproc", key)
        self.trees.on_end.append((machine, lambda why: self.answer(token, True, why)))
        self.trees.tree.stop(key, reason, monotonic_ns())
        self.trees.act()
        return self

    def _ask_stop_planted(self, token: Any, number: int, reason: Any) -> Any:
        """Also one that is not up yet, whose key nobody has been told."""
        return self._ask_stop_supervisor(token, self._planted(token[0], number), reason)

    def _planted(self, who: Worker | None, number: int) -> int:
        """Each process numbers its own trees: a worker's first one is not the program's first."""
        tops = self.trees.tops
        return next((key for key, top in tops.items() if top["number"] == number and top["token"][0] is who), 0)

    # ---- children ---------------------------------------------------------------------------------------------------
    def _ask_stop_child(self, token: Any, key: int, reason: Any) -> Any:
        kin = self._kin(key)
        if kin.worker is None:
            raise _Refused("noproc", key)
        self._stops.setdefault(key, []).append((token, reason))
        if kin.is_server:
            self.trees.tell(kin, ("system", 0, "stop", marshal.dumps(reason)))
        else:
            self.trees.ask_to_end(kin)
        return self

    def _ask_system(self, token: Any, key: int, verb: str, payload: bytes) -> Any:
        kin = self._kin(key)
        if kin.worker is None or not kin.is_server:
            raise _Refused("noproc", key)
        self._count += 1
        self._systems[self._count] = (token, key)
        self.trees.tell(kin, ("system", self._count, verb, payload))
        return self

    def system_reply(self, number: int, ok: bool, payload: Any) -> None:
        token, _ = self._systems.pop(number, (None, 0))
        self.answer(token, True, (ok, payload))

    def child_gone(self, kin: Kin, reason: Any) -> None:
        for token, wanted in self._stops.pop(kin.key, []):
            same = reason == wanted or (not kin.is_server and reason in ("shutdown", "normal"))
            self.answer(token, same, reason if same else ("exit", reason))
        for number, (token, key) in list(self._systems.items()):
            if key == kin.key:
                del self._systems[number]
                self.answer(token, False, ("down", reason))

    def forget(self, who: Worker) -> None:
        """That process is gone: nobody waits for these answers."""
        self.trees.bonds.forget(who)
        for key in self._ties.pop(who, ()):
            kin = self.trees.kin.get(key)
            if kin is not None and kin.worker is not None:
                self.trees.staff.order_and_kill(kin.worker, _native.KILL_STOP)
        for number, (token, _) in list(self._systems.items()):
            if token[0] is who:
                self._systems[number] = (None, 0)
        for waiting in self._stops.values():
            waiting[:] = [(token, reason) for token, reason in waiting if token[0] is not who]

    def _ask_end_process(self, token: Any, key: int, brutally: bool) -> bool:
        """An exit signal from outside: asked to end as its supervisor would ask, or killed. Its supervisor sees an
        exit."""
        kin = self.trees.kin.get(key)
        if kin is None or kin.worker is None:
            return False
        if brutally:
            self.trees.staff.order_and_kill(kin.worker, _native.KILL_STOP)
        else:
            self.trees.ask_to_end(kin)
        return True

    def _ask_tie(self, token: Any, key: int) -> bool:
        """A link if the asker is a child, else the end of the asker ends the child."""
        who = token[0]
        if who is not None and isinstance(who.crew, KinCrew):
            return self._ask_link(token, key)
        if who is not None:
            self._ties.setdefault(who, set()).add(key)
        return True

    # ---- bonds and groups -------------------------------------------------------------------------------------------
    def _ask_monitor(self, token: Any, key: int) -> tuple[int, bool]:
        """(number, whether there is something to watch)."""
        kin = self.trees.kin.get(key)
        alive = self.trees.tree.is_supervisor(key) if kin is None else kin.worker is not None or kin.in_program
        number = self.trees.bonds.monitor(key, token[0])
        machine = self.trees.tree.machines.get(key)
        if machine is not None:
            self.trees.monitored.add(machine)
        elif not alive or kin is None:
            self.trees.bonds.demonitor(number, token[0])
        return number, machine is not None or (alive and kin is not None)

    def _ask_demonitor(self, token: Any, number: int) -> bool:
        return self.trees.bonds.demonitor(number, token[0])

    def _own(self, token: Any) -> Kin:
        who = token[0]
        if who is None or not isinstance(who.crew, KinCrew):
            raise _Refused("not_a_child", "only a process of a tree can do this")
        return who.crew.kin

    def _ask_link(self, token: Any, key: int) -> bool:
        own = self._own(token)
        kin = self._kin(key)
        if kin.worker is None:
            self.trees.exit_signal(own, key, "noproc")
            return False
        self.trees.bonds.link(own.key, key)
        return True

    def _ask_unlink(self, token: Any, key: int) -> bool:
        self.trees.bonds.unlink(self._own(token).key, key)
        return True

    def _ask_join(self, token: Any, group: str, key: int | None) -> bool:
        return self.trees.registry.join(self._own(token) if key is None else self._kin(key), group)

    def _ask_leave(self, token: Any, group: str, key: int | None) -> bool:
        return self.trees.registry.quit(self._own(token) if key is None else self._kin(key), group)

    # ---- timers, and the tree for people ----------------------------------------------------------------------------
    def _ask_send_after(self, token: Any, key: int, after_ns: int, payload: bytes) -> int:
        self._kin(key)
        return self.timers.add(key, monotonic_ns() + max(0, after_ns), payload)

    def _ask_cancel_timer(self, token: Any, number: int) -> int | None:
        return self.timers.cancel(number, monotonic_ns())

    def _ask_describe(self, token: Any, key: int | None) -> Any:
        tree = self.trees.tree
        if key is not None and key not in tree.machines and key not in tree.owners:
            raise _Refused("noproc", key)
        return tree.describe(key)

    def _ask_events(self, token: Any, since: int) -> list[dict[str, Any]]:
        return self.trees.reports.since(since)

    def _ask_mailboxes(self, token: Any) -> list[tuple[Any, ...]]:
        found = [(kin, kin.mailbox) for kin in self.trees.kin.values()]
        return [(kin.data["name"], kin.path, box.stats()) for kin, box in found if box is not None]

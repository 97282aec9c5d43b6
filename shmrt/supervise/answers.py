"""The root's answers to control clients: what it knows it says at once, what belongs to the program it passes on.

    health                         its checks run (`health.py`), then it is answered
    status, tree, inspect, breaker made of the tree, the crews and the process table (`views.py`)
    restart of a child             terminated and started again by its supervisor; costs no restart of the budget
    scale, pause, resume, drain, restart of a pool, reload, stop, supervise
                                   the program's: it dispatches, and it was told what to run (`runtime_commands.py`)

Root to program  ("command", number, verb, args)
Program to root  ("command_waits", number, text), ("command_done", number, ok, value)

If the program does not answer, its commands wait and `status` says for whom; the root goes on.
"""

from __future__ import annotations

import marshal
import os
from time import monotonic_ns

from shmrt import _native
from shmrt.process.death import stat_fields
from shmrt.supervise import guards, views

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.supervise.crew import Crew, Worker

__all__ = ["Answers"]

_POOL_VERBS = ("scale", "pause", "resume", "drain")
_ACTIVITIES = {
    _native.PHASE_BOOT: "starting",
    _native.PHASE_PARKED: "idle",
    _native.PHASE_SPIN: "idle",
    _native.PHASE_DECODE: "busy",
    _native.PHASE_RUN: "busy",
    _native.PHASE_ENCODE: "busy",
    _native.PHASE_BLOCKED: "blocked-full",
    _native.PHASE_STOPPING: "stopping",
}


class Refused(Exception):
    """code, message and hint of the answer."""

    def __init__(self, code: str, message: str, hint: str | None = None, **more: Any) -> None:
        super().__init__(message)
        self.body = {"code": code, "message": message, "hint": hint, **more}


class _Token:
    """What a question of ours to the tree is answered by; other tokens belong to whoever asked otherwise."""

    __slots__ = ("then",)

    def __init__(self, then: Callable[[bool, Any], None]) -> None:
        self.then = then


class Answers:
    """`root` has slots, crews, channel, stopping, and `forest.trees` (None until the first tree is planted)."""

    def __init__(self, root: Any, name: str, program_pid: int) -> None:
        self.root = root
        self.name = name
        self.program_pid = program_pid
        self.started_ns = monotonic_ns()
        self.operations: Callable[[], list[dict[str, Any]]] = list
        self._paused: set[int] = set()
        self._own = 0  # the key of the runtime's own tree
        self._passed: dict[int, tuple[Any, str, dict[str, Any]]] = {}
        self._count = 0

    def __call__(self, verb: str, args: dict[str, Any], reply: Any) -> None:
        try:
            if verb == "status":
                processes, pools = self._processes(), self._pools()
                operations = self.operations()
                body = views.status_body(self._facts(), self._tree(), processes, pools, operations)
                reply(True, {**body, "guards": guards.rows(self.root.slots)})
            elif verb == "tree":
                reply(True, views.tree_body(self._facts(), self._tree(), self._processes(), self._pools()))
            elif verb == "inspect":
                reply(True, self._inspect(str(args.get("worker", ""))))
            elif verb == "breaker":
                reply(True, self._breaker(args))
            elif verb == "health":
                self._health(args, reply)
            elif verb == "restart":
                self._restart(args, reply)
            else:
                if verb in _POOL_VERBS and (verb != "drain" or args.get("pool") is not None):
                    self._check_pool(args)
                self._pass_on(verb, args, reply)
        except Refused as refusal:
            reply(False, refusal.body)

    def _breaker(self, args: dict[str, Any]) -> dict[str, Any]:
        name, to = str(args.get("name", "")), str(args.get("to", ""))
        try:
            body = guards.steer(self.root.slots, name, to)
        except KeyError as error:
            known = ", ".join(error.args[1]) or "none yet: a breaker is known once a process of the runtime has used it"
            raise Refused(
                "not_found", f"no breaker is called {name!r}; there are: {known}", "`status` lists them"
            ) from None
        except ValueError:
            raise Refused("usage", f"to={to!r} must be open, close or auto") from None
        except TimeoutError as error:
            raise Refused("busy", str(error), "continue or kill that process") from None
        if not body["already"]:
            self.root.staff.notice(*guards.steered(body))
        return body

    @property
    def trees(self) -> Any:
        forest = getattr(self.root, "forest", None)
        return None if forest is None else forest.trees

    # ---- facts ------------------------------------------------------------------------------------------------------
    def _facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "pid": os.getpid(),
            "program": self.program_pid,
            "seconds": round((monotonic_ns() - self.started_ns) / 1e9, 3),
            "stopping": bool(self.root.stopping),
        }

    def _tree(self) -> dict[str, Any]:
        trees = self.trees
        found: dict[str, Any] = {} if trees is None else trees.tree.describe(now=monotonic_ns())
        for top in found.get("supervisors", ()):
            top["path"] = (self.label_of(top["path"][0]),)
        return found

    def label_of(self, top: Any) -> str:
        """What a supervisor without a name is called: it is known by its key."""
        if not isinstance(top, int):
            return views.id_text(top)
        if self.trees is not None and self.trees.tops.get(top, {}).get("of_runtime"):
            self._own = top  # for what is reported after its end
        return "tree" if top == self._own else f"supervisor-{top}"

    def _processes(self) -> dict[int, dict[str, Any]]:
        trees = self.trees
        found = {}
        pools = {pool["name"]: views.pool_row(pool, None)["state"] for pool in self._pools()}
        for key, kin in ({} if trees is None else trees.kin).items():
            one = kin.worker
            found[key] = {"kind": kin.data["kind"], "label": kin.data["label"], "pid": kin.pid}
            if kin.mailbox is not None:
                found[key]["mailbox"] = views.mailbox_row(kin.mailbox.stats())
            if kin.in_program and kin.data["kind"] == "pool":
                found[key]["activity"] = pools.get(kin.data["label"])
            if one is not None:
                row = self._worker(one)
                if one.ready and kin.data["kind"] != "server" and row["activity"] not in ("stopped", "killing"):
                    row["activity"] = "running"  # the phase of a function says nothing about it
                found[key] |= row
        return found

    def _worker(self, one: Worker) -> dict[str, Any]:
        info = self.root.slots.info(one.slot)
        stat = stat_fields(one.pid) if one.pid else None
        if one.dying:
            activity = "killing"
        elif stat is not None and stat[0] in "Tt":
            activity = "stopped"
        else:
            activity = _ACTIVITIES.get(info["phase"], "busy") if one.ready else "starting"
        return {
            "number": one.number,
            "slot": one.slot,
            "pid": one.pid or None,
            "activity": activity,
            "seconds": round((monotonic_ns() - one.start_ns) / 1e9, 3),
            "restarts": one.crew.restarts.get(one.number, 0),
            "done": info["done"],
            "rss_bytes": info["rss_bytes"],
        }

    def _pools(self) -> list[dict[str, Any]]:
        return [self._pool(crew) for crew in self.root.crews.values() if getattr(crew, "kin", None) is None]

    def _pool(self, crew: Crew) -> dict[str, Any]:
        now = monotonic_ns()
        return {
            "name": crew.spec["name"],
            "number": crew.id,
            "nested": crew.owner is not None,
            "wanted": crew.keeper.workers,
            "spares": crew.keeper.spares,
            "ready": crew.ready,
            "broken": crew.keeper.broken,
            "reasons": list(crew.keeper.reasons),
            "removing": crew.removing,
            "paused": crew.id in self._paused,
            "overload": self.root.staff.full_pools.get(crew.id),
            "restarts": dict(crew.restarts),
            "wait_ns": crew.keeper.wait_ns(now, alive=crew.alive),
            "workers": [self._worker(one) for one in crew.workers.values()],
        }

    # ---- one thing --------------------------------------------------------------------------------------------------
    def _find(self, word: str) -> tuple[str, dict[str, Any]]:
        supervisors = views.tree_rows(self._tree(), self._processes(), self.name)
        pools = [views.pool_row(pool, self.name) for pool in self._pools()]
        found = views.find(word, supervisors, pools)
        if len(found) == 1:
            return found[0]
        if not found:
            known = [row["id"] for row in views.each(supervisors)] + [row["name"] for row in pools]
            raise Refused("not_found", f"runtime {self.name!r} has nothing called {word!r}", known=known)
        paths = [str(row.get("path") or row.get("id") or row.get("name")) for _, row in found]
        raise Refused("ambiguous", f"{word!r} may be {' or '.join(paths)}", "name it by its whole path")

    def _inspect(self, word: str) -> dict[str, Any]:
        kind, row = self._find(word)
        more: dict[str, Any] = {}
        reason = None
        if kind == "child" and row["kind"] != "supervisor":
            trees = self.trees
            reason = trees.tree.describe(row["key"]).get("reason")
            kin = trees.kin.get(row["key"])
            if kin is not None:
                more["incarnation"] = kin.incarnation
                if kin.worker is not None:
                    more["slot"] = self.root.slots.info(kin.worker.slot)
                if kin.mailbox is not None:
                    more["mailbox"] = kin.mailbox.stats()
        elif kind == "worker" and row.get("slot") is not None:
            more["slot_info"] = self.root.slots.info(row["slot"])
        return views.inspect_body(self._facts(), row, kind, reason, more)

    def _health(self, args: dict[str, Any], reply: Any) -> None:
        group = args.get("group")
        if group is not None and not isinstance(group, str):
            raise Refused("bad_request", f"group={group!r} must be a word")

        def begun(ok: bool, value: Any) -> None:
            if not ok:
                known = list(value[1])
                reply(False, {"code": "usage", "message": f"no check is in group {group!r}", "known": known})

        request = self.root.forest.health().request(group, begun)
        request.ended.append(lambda body: reply(True, {"schema": "shmrt.health/1", "name": self.name, **body}))

    # ---- restarting what the tree has -------------------------------------------------------------------------------
    def _restart(self, args: dict[str, Any], reply: Any) -> None:
        word = args.get("target")
        if word is None:
            tops = views.tree_rows(self._tree(), {}, self.name)
            children = [child for top in tops for child in top["children"]]
            if not children:
                self._pass_on("restart", args, reply)
                return
            self._restart_children(children, reply)
            return
        kind, row = self._find(str(word))
        if kind == "child" and (row["kind"] != "pool" or not args.get("rolling")):
            parent = self.trees.tree.parent_of(row["key"])
            self._restart_children(row["children"] if parent is None else [row], reply)
            return
        pool, number = (row["name"], None) if kind == "pool" else (row["id"].rpartition("/")[0], row.get("number"))
        if kind == "child":
            pool = self.trees.kin[row["key"]].data["label"]
        self._pass_on("restart", {**args, "pool": pool, "worker": number}, reply)

    def _restart_children(self, rows: list[dict[str, Any]], reply: Any) -> None:
        """One after the other; each is down before it is started again."""
        left = list(rows)
        done: list[str] = []

        def next_one() -> None:
            if not left:
                reply(True, {"restarted": done})
                return
            row = left.pop(0)
            reply.wanted = f"{row['path']} to end and start"
            self._restart_child(row, finished)

        def finished(path: str, problem: Any) -> None:
            if problem is not None:
                command = f"python -m shmrt --name {self.name} inspect worker {path}"
                reply(False, {"code": "failed", "message": f"{path}: {problem}", "hint": f"`{command}` says more"})
                return
            done.append(path)
            next_one()

        next_one()

    def _restart_child(self, row: dict[str, Any], finished: Callable[[str, Any], None]) -> None:
        tree, path = self.trees.tree, row["path"]
        parent = tree.parent_of(row["key"])
        spec = tree.child_spec(row["key"])
        dynamic = tree.describe(parent)["strategy"] == "dynamic"

        def begin(ok: bool, value: Any) -> None:
            if not ok and value[0] != "not_found":
                finished(path, f"it could not be ended: {value[0]}")
            elif dynamic:
                self._ask_tree(parent, "start_child", (spec,), end)
            else:
                self._ask_tree(parent, "restart_child", (spec.id,), end)

        def end(ok: bool, value: Any) -> None:
            # "running": its supervisor started it before we asked, which is just as well
            fine = ok or value[0] in ("running", "restarting", "already_started")
            finished(path, None if fine else f"it did not start: {views.reason_text(value[1]) or value[0]}")

        self._ask_tree(parent, "terminate_child", (row["key"] if dynamic else spec.id,), begin)

    def _ask_tree(self, supervisor: int, verb: str, args: tuple[Any, ...], then: Callable[[bool, Any], None]) -> None:
        trees = self.trees
        if trees.on_answer != self._tree_answered:
            self._others_answer = trees.on_answer
            trees.on_answer = self._tree_answered
        trees.tree.ask(_Token(then), supervisor, verb, args, monotonic_ns())
        trees.act()

    def _tree_answered(self, token: Any, ok: bool, value: Any) -> None:
        if isinstance(token, _Token):
            token.then(ok, value)
        else:
            self._others_answer(token, ok, value)

    # ---- what the program does --------------------------------------------------------------------------------------
    def _check_pool(self, args: dict[str, Any]) -> None:
        word = str(args.get("pool", ""))
        pools = self._pools()
        named = [pool for pool in pools if pool["name"] == word]
        if not named:
            known = [pool["name"] for pool in pools]
            hint = f"its pools: {', '.join(known)}" if known else "it has no pools"
            raise Refused("not_found", f"runtime {self.name!r} has no pool {word!r}", hint, known=known)
        if len(named) > 1:
            raise Refused("ambiguous", f"{len(named)} pools are called {word!r}", "give them names of their own")
        if named[0]["nested"]:
            raise Refused("failed", f"pool {word!r} was made by a worker, and only that worker can change it")

    def _pass_on(self, verb: str, args: dict[str, Any], reply: Any) -> None:
        try:
            marshal.dumps(args)
        except ValueError:
            raise Refused("bad_request", "the arguments are nested too deeply") from None
        self._count += 1
        self._passed[self._count] = (reply, verb, args)
        reply.wanted = f"the program, process {self.program_pid}, to do it"
        self.root.channel.send(("command", self._count, verb, args))

    def heard(self, verb: str, rest: list[Any]) -> None:
        """("command_waits", ...) or ("command_done", ...) from the program."""
        if rest[0] not in self._passed:
            return
        if verb == "command_waits":
            self._passed[rest[0]][0].waits(str(rest[1]))
            return
        reply, asked, _ = self._passed.pop(rest[0])
        ok, value = rest[1], dict(rest[2])
        number = value.pop("number", None)
        if ok and asked in ("pause", "resume") and number is not None:
            (self._paused.add if asked == "pause" else self._paused.discard)(number)
        reply(ok, value)

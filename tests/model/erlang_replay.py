"""Plays the cases of erlang_cases.py on a `Tree` and says where it does not do what OTP did.

The ends of one dynamic supervisor's children, which come all at once, are compared as a set.
"""

from __future__ import annotations

import json
from typing import Any

from supervisor_world import World

from shmrt.decide.specs import ChildSpec, SupervisorSpec

MS = 1_000_000


def plain(value: Any) -> Any:
    return [plain(one) for one in value] if isinstance(value, (tuple, list)) else value


def reason_of(value: Any) -> Any:
    return tuple(map(reason_of, value)) if isinstance(value, list) else value


class Replay:
    """Plays a case on a `Tree`; `heard` is what the recorder would have written."""

    def __init__(self, case: dict[str, Any]) -> None:
        self.templates: dict[str, dict[str, Any]] = {}
        self.tree = case["tree"]
        self.world = ScriptedWorld(self)
        self.fail(case["fails"])
        self.world.add(self.supervisor(self.tree))
        self.pass_time()
        ended = self.world.tops[self.world.top]
        self.heard = [self.look("ok" if ended == "up" else ["error", plain(ended[1])])]
        for step in case["steps"]:
            self.fail(step["fails"])
            self.heard.append(self.look(getattr(self, f"do_{step['do']}")(step)))

    def supervisor(self, tree: dict[str, Any]) -> SupervisorSpec:
        if tree["strategy"] == "dynamic":
            self.templates[tree["id"]] = tree["template"]
        return SupervisorSpec(
            tree["strategy"],
            max_restarts=tree["intensity"],
            period=1000_000 * MS,
            auto_shutdown=tree["auto"],
            name=tree["id"],
            children=tuple(self.child(child) for child in tree["children"]),
        )

    def child(self, child: dict[str, Any]) -> ChildSpec:
        options = {"restart": child["restart"], "significant": child["significant"]}
        if "sup" in child:
            return ChildSpec(child["id"], supervisor=self.supervisor(child["sup"]), **options)
        shutdown = child["shutdown"]
        if isinstance(shutdown, int):
            shutdown *= MS
        return ChildSpec(child["id"], data=(child["id"], reason_of(child["ending"])), shutdown=shutdown, **options)

    def fail(self, fails: dict[str, list[Any]]) -> None:
        for id, row in fails.items():
            self.world.fails[id] = [None if one == "ok" else reason_of(one) for one in row]

    # ------------------------------------------------------------------ steps

    def do_exit(self, step: dict[str, Any]) -> str:
        return self.end(step["id"], step["reason"])

    def do_burst(self, step: dict[str, Any]) -> str:
        if self.super(step["super"]) is None:
            return "gone"
        for id, reason in step["ends"]:
            self.end(id, reason, run=False)
        self.world.run()
        return "ok"

    def do_stop(self, step: dict[str, Any]) -> str:
        key = self.super(step["super"])
        if key is None:
            return "gone"
        self.world.stop(reason_of(step["reason"]), key=key)
        return "ok"

    def do_ask(self, step: dict[str, Any]) -> Any:
        key, verb, what = self.super(step["super"]), step["verb"], step["what"]
        if key is None:
            return "gone"
        args: tuple[Any, ...] = (what,)
        is_dynamic = step["super"] in self.templates
        if verb == "count_children":
            args = ()
        elif verb == "start_child":
            args = (self.child(what),)
        elif verb == "start_dynamic":
            args = (self.child(self.templates[step["super"]] | {"id": what[0], "ending": what[1]}),)
        elif verb == "terminate_dynamic":
            if self.world.keys.get(what) not in self.world.alive:
                return "gone"
            args = (self.world.keys[what],)
        token = self.world.send(verb.replace("dynamic", "child"), *args, key=key)
        self.pass_time()
        ok, value = self.world.answers[token]
        return self.short(verb, ok, (1, *value[1:]) if is_dynamic and verb == "count_children" else value)

    def end(self, id: str, reason: Any, *, run: bool = True) -> str:
        if self.world.keys.get(id) not in self.world.alive:
            return "gone"
        self.world.exit(id, reason_of(reason), run=run)
        return "ok"

    def short(self, verb: str, ok: bool, value: Any) -> Any:
        """An answer in OTP's words."""
        if ok:
            if verb == "count_children":
                return plain(value)
            return "undefined" if value is None and verb.startswith(("start", "restart")) else "ok"
        code, extra = value
        if code == "noproc":
            return "gone"
        if code == "start_error":
            return ["error", plain(extra)]
        return ["error", [code, words(extra)] if code == "bad_combination" else code]

    # ------------------------------------------------------------------ what is heard

    def super(self, id: str) -> int | None:
        """The key of a supervisor that runs."""
        found = [machine.key for machine in self.world.tree.machines.values() if machine.path()[-1] == id]
        return found[0] if found else None

    def pass_time(self) -> None:
        while (due := self.world.tree.next_ns()) is not None:
            self.world.now = due
            self.world.tree.tick(due)
            self.world.run()

    def look(self, answer: Any) -> list[Any]:
        self.pass_time()
        log, self.world.log = self.world.log, []
        log = [entry for entry in log if entry[0] in ("start", "down", "report")]
        return [answer, plain(log), self.survivors(self.tree["id"])]

    def survivors(self, id: str) -> list[Any]:
        key = self.super(id)
        if key is None:
            return []
        rows = self.world.ask("which_children", key=key)
        shown = [row[0] + {None: "-", "restarting": "~"}.get(row[1], "+") for row in rows]
        shown = sorted(shown) if id in self.templates else shown
        below = [one for row in rows if row[2] == "supervisor" for one in self.survivors(row[0])]
        return [[id, *shown], *below]


class ScriptedWorld(World):
    """Leaves carry how they end when they are asked to; reports stand in the log."""

    def __init__(self, replay: Replay) -> None:
        super().__init__()
        self.replay = replay

    def _on_start(self, key: int, data: Any) -> None:
        id, ending = data
        self.ending[id] = (
            {"obey": "shutdown", "ignore": None}.get(ending, ending) if isinstance(ending, str) else ending
        )
        super()._on_start(key, id)

    def _on_report(self, what: dict[str, Any]) -> None:
        if what["context"] != "progress":
            super_id, id = what["supervisor"][-1], what["offender"]["id"]
            id = "template" if super_id in self.replay.templates else id
            self.log.append(("report", what["context"], super_id, id, what["reason"]))


def words(value: Any) -> Any:
    """Booleans as Erlang's atoms."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return [words(one) for one in value] if isinstance(value, (tuple, list)) else value


def comparable(heard: list[Any]) -> list[Any]:
    """Without what OTP leaves open: the order in which a dynamic supervisor's children end together, and how it groups
    their reports."""
    answer, log, left = heard
    kept: list[Any] = []
    run: list[Any] = []
    for entry in [*log, None]:
        if entry and entry[0] == "down" and entry[1][0] == "d":
            run.append(entry)
            continue
        kept += sorted(run, key=json.dumps)
        run = []
        if entry and not (entry[:2] == ["report", "shutdown_error"] and entry[3] == "template"):
            kept.append(entry)
    return [answer, kept, left]


def differences(case: dict[str, Any], told: list[Any]) -> list[str]:
    """Where the tree does not do what OTP did."""
    ours = Replay(case).heard
    found = []
    begin = {"do": "start", "fails": case["fails"]}
    for number, (step, mine, theirs) in enumerate(zip([begin, *case["steps"]], ours, told, strict=True)):
        if comparable(mine) != comparable(theirs):
            found.append(f"seed {case['seed']}, step {number} {step}:\n  OTP  {theirs}\n  Tree {mine}")
            break
    return found

"""Random supervision trees with scripted failures, and what real Erlang/OTP does with them.

    python tests/model/erlang_cases.py record --seed 1 --count 240      # writes erlang/recorded.ndjson anew

needs `erl` (Debian: erlang-base). A case is plain data: a tree of at most three layers, and steps. After each step the
recorder waits until nothing happens any more and takes down the answer, the starts, ends and reports in order, and what
is left. `play` does the same with a `Tree`.

Out of scope because OTP leaves the order open there: the kill of a supervisor, failures in two supervisors at one
instant.
The ends of one dynamic supervisor's children, which come all at once, are compared as a set. Three things of
simple_one_for_one are Elixir's DynamicSupervisor's here, not OTP's, and not in the cases: `specs` counts children, to
terminate a process that is gone is not_found, and a restart that is ignored removes the child.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from supervisor_world import World

from shmrt.decide.specs import ChildSpec, SupervisorSpec

HERE = Path(__file__).resolve().parent / "erlang"
RECORDED = HERE / "recorded.ndjson"
MS = 1_000_000

REASONS = ["normal", "shutdown", ["shutdown", "x"], "crash", "killed"]
SHUTDOWNS = [1000, 1000, "brutal_kill", "infinity"]


# ---------------------------------------------------------------------- cases


class Maker:
    """Draws one case."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.leaves: list[str] = []
        self.supers: dict[str, dict[str, Any]] = {}
        self.ids: dict[str, list[str]] = {}
        """Children that a supervisor has or may have had."""
        self.stopped: tuple[str, str] | None = None
        """What was terminated last: likely asked for again."""
        self.fresh = 0

    def name(self, letter: str) -> str:
        self.fresh += 1
        return f"{letter}{self.fresh}"

    def case(self) -> dict[str, Any]:
        tree = self.supervisor("never", depth=0)
        fails = self.fails() if self.draw.random() < 0.1 else {}
        steps = [self.step() for _ in range(self.draw.randint(4, 9))]
        steps.append({"do": "stop", "super": tree["id"], "reason": "shutdown", "fails": {}})
        return {"tree": tree, "fails": fails, "steps": steps}

    def supervisor(self, id: str, depth: int) -> dict[str, Any]:
        draw = self.draw
        tree: dict[str, Any] = {
            "id": self.name("s") if depth == 0 else id,
            "strategy": draw.choice(["one_for_one", "one_for_all", "rest_for_one"]),
            "intensity": draw.choice([0, 1, 2, 3, 5, 8]),
            "auto": draw.choice(["never", "any_significant", "all_significant", "all_significant"]),
            "children": [],
        }
        self.supers[tree["id"]] = tree
        ids = self.ids[tree["id"]] = []
        if depth > 0 and draw.random() < 0.4:
            tree |= {"strategy": "dynamic", "auto": "never", "template": self.leaf(tree, "template")}
            tree["template"]["significant"] = False
            return tree
        for _ in range(draw.randint(1, 4)):
            if depth < 2 and draw.random() < 0.3:
                child = self.child(tree, self.name("s"))
                child["sup"] = self.supervisor(child["id"], depth + 1)
            else:
                child = self.leaf(tree, self.name("a"))
                self.leaves.append(child["id"])
            tree["children"].append(child)
            ids.append(child["id"])
        return tree

    def child(self, tree: dict[str, Any], id: str) -> dict[str, Any]:
        draw = self.draw
        restart = draw.choice(["permanent", "permanent", "transient", "temporary"])
        significant = restart != "permanent" and tree["auto"] != "never" and draw.random() < 0.6
        return {"id": id, "restart": restart, "significant": significant}

    def leaf(self, tree: dict[str, Any], id: str) -> dict[str, Any]:
        draw = self.draw
        ending = draw.choice(["obey"] * 6 + ["normal", "crash", ["shutdown", "y"], "ignore"])
        shutdown = 30 if ending == "ignore" else draw.choice(SHUTDOWNS)
        return self.child(tree, id) | {"ending": ending, "shutdown": shutdown}

    def fails(self) -> dict[str, list[Any]]:
        """The next starts of some leaves; "ok" is one that works."""
        draw = self.draw
        chosen = draw.sample(self.leaves, min(len(self.leaves), draw.randint(1, 2))) if self.leaves else []
        results = {"d": ["ok", "bad", "bad", ["bad", "x"]]}
        usual = [*results["d"], "ignore"]
        return {id: [draw.choice(results.get(id[0], usual)) for _ in range(draw.randint(1, 4))] for id in chosen}

    def step(self) -> dict[str, Any]:
        draw = self.draw
        what: Any
        fails = self.fails() if draw.random() < 0.35 else {}
        kind = draw.choice(["exit"] * 4 + ["ask"] * 4 + ["burst", "stop"])
        if kind == "exit" and self.leaves:
            return {"do": "exit", "id": draw.choice(self.leaves), "reason": draw.choice(REASONS), "fails": fails}
        if kind == "burst":
            return self.burst(fails)
        if self.stopped is not None and draw.random() < 0.5:
            (super, what), self.stopped = self.stopped, None
            verb = draw.choice(["restart_child", "restart_child", "delete_child", "start_child"])
            if what[0] == "s":
                verb = "restart_child"  # a leaf is never called like a supervisor
            else:
                fails = {what: [draw.choice(["ok", "ok", "bad", "ignore"])]}
            if verb == "start_child":
                what = self.leaf(self.supers[super], what)
            return {"do": "ask", "super": super, "verb": verb, "what": what, "fails": fails}
        super = draw.choice(list(self.supers))
        if kind == "stop" and self.supers[super]["id"] != next(iter(self.supers)):
            return {"do": "stop", "super": super, "reason": draw.choice(REASONS[:4]), "fails": fails}
        step = {"do": "ask", "super": super, "fails": fails} | self.request(self.supers[super])
        if step["verb"].startswith(("start", "re")) and draw.random() < 0.25:
            id = step["what"]
            id = id["id"] if isinstance(id, dict) else id[0] if isinstance(id, list) else id
            step["fails"] = fails | {id: [draw.choice(["bad", "ignore"] if id[0] != "d" else ["bad"])]}
        return step

    def burst(self, fails: dict[str, list[Any]]) -> dict[str, Any]:
        draw = self.draw
        tree = draw.choice(list(self.supers.values()))
        ids = [child["id"] for child in tree["children"] if "sup" not in child]
        ids = draw.sample(ids, min(len(ids), draw.randint(1, 3)))
        ends = [[id, draw.choice(REASONS)] for id in ids]
        return {"do": "burst", "super": tree["id"], "ends": ends, "fails": fails}

    def request(self, tree: dict[str, Any]) -> dict[str, Any]:
        draw, ids = self.draw, self.ids[tree["id"]]
        if tree["strategy"] == "dynamic":
            verb = draw.choice(
                ["start_dynamic", "start_dynamic", "start_dynamic", "terminate_dynamic", "count_children"]
            )
            if verb == "start_dynamic":
                id = self.name("d")
                self.leaves.append(id)
                ids.append(id)
                return {"verb": verb, "what": [id, tree["template"]["ending"]]}
            return {"verb": verb, "what": draw.choice([*ids, "nobody"])}
        verb = draw.choice(["start_child", "terminate_child", "terminate_child", "restart_child", "delete_child"])
        verb = draw.choice([verb] * 9 + ["count_children"])
        if verb != "start_child":
            what = draw.choice([*ids, *ids, "nobody"])
            self.stopped = (tree["id"], what) if verb == "terminate_child" else self.stopped
            return {"verb": verb, "what": what}
        known = [id for id in ids if id[0] != "s"]
        spec = self.leaf(tree, draw.choice(known) if known and draw.random() < 0.5 else self.name("n"))
        if draw.random() < 0.1:
            spec["significant"] = True
        if spec["id"] not in ids:
            ids.append(spec["id"])
            self.leaves.append(spec["id"])
        return {"verb": verb, "what": spec}


def make(seed: int) -> dict[str, Any]:
    """The case of a seed, as it survives JSON."""
    return json.loads(json.dumps({"seed": seed} | Maker(seed).case()))  # type: ignore[no-any-return]


# ---------------------------------------------------------------------- real Erlang


def term(value: Any) -> str:
    """JSON as an Erlang term: strings are atoms, lists are tuples."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, dict):
        return "#{" + ",".join(f"{term(key)} => {term(one)}" for key, one in value.items()) + "}"
    return "{" + ",".join(map(term, value)) + "}"


def many(values: Any) -> str:
    return "[" + ",".join(term(value) if not isinstance(value, str) else value for value in values) + "]"


def fails_term(fails: dict[str, list[Any]]) -> str:
    return "#{" + ",".join(f"{term(id)} => {many([term(one) for one in row])}" for id, row in fails.items()) + "}"


def tree_term(tree: dict[str, Any]) -> str:
    plain = {key: tree[key] for key in ("id", "strategy", "intensity", "auto", "template") if key in tree}
    return f"{term(plain)[:-1]},children => {many([child_term(child) for child in tree['children']])}}}"


def child_term(child: dict[str, Any]) -> str:
    plain = {key: value for key, value in child.items() if key != "sup"}
    return f"{term(plain)[:-1]},sup => {tree_term(child['sup'])}}}" if "sup" in child else term(plain)


def step_term(step: dict[str, Any]) -> str:
    fails = fails_term(step["fails"])
    if step["do"] == "exit":
        return f"{{exit,{term(step['id'])},{term(step['reason'])},{fails}}}"
    if step["do"] == "burst":
        return f"{{burst,{term(step['super'])},{many(step['ends'])},{fails}}}"
    if step["do"] == "stop":
        return f"{{stop,{term(step['super'])},{term(step['reason'])},{fails}}}"
    return f"{{ask,{term(step['super'])},{term(step['verb'])},{term(step['what'])},{fails}}}"


def case_term(case: dict[str, Any]) -> str:
    steps = many([step_term(step) for step in case["steps"]])
    return f"#{{tree => {tree_term(case['tree'])},fails => {fails_term(case['fails'])},steps => {steps}}}."


def record(cases: list[dict[str, Any]]) -> list[Any]:
    """What OTP does with each case."""
    with tempfile.TemporaryDirectory() as place:
        source = str(HERE / "supervisor_recorder.erl")
        subprocess.run(["erlc", "-o", place, source], check=True, timeout=120)
        asked, told = Path(place, "cases"), Path(place, "told")
        asked.write_text("\n".join(map(case_term, cases)) + "\n")
        run = f'supervisor_recorder:main("{asked}", "{told}").'
        command = ["erl", "+S", "1:1", "-noshell", "-pa", place, "-eval", run]
        environment = os.environ | {"ERL_CRASH_DUMP_BYTES": "0"}
        subprocess.run(command, check=True, timeout=150, stdin=subprocess.DEVNULL, env=environment)
        return [json.loads(line) for line in told.read_text().splitlines()]


def why_not() -> str | None:
    """Why there is no recording here; None: there can be."""
    missing = [name for name in ("erl", "erlc") if shutil.which(name) is None]
    return f"no {' and no '.join(missing)} on this machine (Debian package: erlang-base)" if missing else None


# ---------------------------------------------------------------------- the same with a Tree


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Records what real Erlang/OTP does with random supervision trees.")
    parser.add_argument("command", choices=["record", "show"])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=240)
    options = parser.parse_args()
    cases = [make(seed) for seed in range(options.seed, options.seed + options.count)]
    if options.command == "show":
        sys.stdout.writelines(f"{case_term(case)}\n" for case in cases)
        return
    rows = [{"case": case, "told": told} for case, told in zip(cases, record(cases), strict=True)]
    RECORDED.write_text("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))


if __name__ == "__main__":
    main()

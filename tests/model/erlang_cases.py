"""Random supervision trees with scripted failures: plain data that both Erlang and `Tree` can play.

A case is a tree of at most three layers, and steps. erlang_record.py plays it under real OTP, erlang_replay.py on a
`Tree`; both take down, after each step, the answer, the starts, ends and reports in order, and what is left.

Out of scope because OTP leaves the order open there: the kill of a supervisor, failures in two supervisors at one
instant. Three things of simple_one_for_one are Elixir's DynamicSupervisor's here, not OTP's, and not in the cases:
`specs` counts children, to terminate a process that is gone is not_found, and a restart that is ignored removes the
child.
"""

from __future__ import annotations

import json
import random
from typing import Any

REASONS = ["normal", "shutdown", ["shutdown", "x"], "crash", "killed"]
SHUTDOWNS = [60_000, 60_000, "brutal_kill", "infinity"]
"""A busy machine must not make anybody late who obeys at once; those who ignore have 30 ms."""


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

"""Random lives of supervisors: one beside an independent model, and whole trees in which everything takes its time.

Each run is one seed, printed when it fails; `SEED=n` in the environment runs that one alone.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest
from supervisor_model import QUIET, Ended, Kid, Model
from supervisor_world import S, World, below, leaf, sup

REASONS = [*QUIET, "killed", "crash", ("exit", 3)]
RESTARTS = ["permanent", "transient", "temporary"]
IDS = "abcde"
SEEDS = [int(os.environ["SEED"])] if "SEED" in os.environ else list(range(0, 1000, 100))


def seeds_from(first: int) -> range:
    return range(first, first + (1 if "SEED" in os.environ else 100))


class Pair:
    """The real machine and the model, told the same."""

    def __init__(self, seed: int) -> None:
        self.draw = draw = random.Random(seed)
        strategy = draw.choice(["one_for_one", "one_for_all", "rest_for_one", "dynamic"])
        intensity, period = draw.choice([0, 1, 2, 5, 1000]), draw.choice([1, 2.5, 5])
        auto = draw.choice(["never", "any_significant", "all_significant"])
        most = draw.choice([None, 3]) if strategy == "dynamic" else None
        self.model = Model(strategy, intensity, int(period * S), auto, most)
        self.world = World()
        self.world.add(
            sup(strategy, max_restarts=intensity, period=int(period * S), auto_shutdown=auto, max_children=most)
        )

    def kid(self) -> tuple[Kid, Any]:
        draw = self.draw
        id, restart, significant = draw.choice(IDS), draw.choice(RESTARTS), draw.random() < 0.3
        if self.model.strategy == "dynamic":
            unused = [id for id in IDS if self.model.kid(id) is None]  # equal ids would be one to the model
            id = draw.choice(unused) if unused else "z"
        return Kid(id, restart, significant, None), leaf(id, restart, significant=significant)

    def step(self) -> str:
        draw, world, model = self.draw, self.world, self.model
        kind = draw.choice(["exit"] * 4 + ["ask"] * 6 + ["fail", "time", "time"] + ["stop"] * (draw.random() < 0.02))
        id = draw.choice([*IDS, "nobody"])
        if kind == "exit":
            reason = draw.choice(REASONS)
            if world.keys.get(id) in world.alive:
                world.exit(id, reason)
            model.exit(id, reason)
        elif kind == "fail":
            row = [draw.choice([None, "no", "no", "ignore"]) for _ in range(draw.randint(1, 4))]
            world.fails[id], model.fails[id] = row[:], row[:]
        elif kind == "time":
            world.at((model.clock + draw.choice([1, 5, 10, 21, 60]) * S // 10) / S)
            model.clock = world.now
        elif kind == "stop":
            world.stop(("shutdown", "asked"))
            model.stop(("shutdown", "asked"))
        else:
            self.ask(id)
        return kind

    def ask(self, id: str) -> None:
        verb = self.draw.choice(["start_child", "start_child", "terminate_child", "restart_child", "delete_child"])
        kid, spec = self.kid()
        what: Any = spec if verb == "start_child" else id
        if verb == "terminate_child" and self.model.strategy == "dynamic":
            what = self.world.keys.get(id, -1)
        answer = self.world.ask(verb, what)
        expected = self.model.ask(verb, kid.id if verb == "start_child" else id, kid)
        seen = answer[0] if isinstance(answer, list) else "ok"
        if seen != "ok":
            seen = [seen[1]] if seen[0] == "start_error" else seen[0]
        assert seen == expected, (verb, id, seen, expected)

    def compare(self) -> None:
        world, model = self.world, self.model
        assert world.since(0) == model.log
        assert world.up() == sorted(kid.id for kid in model.kids if kid.state == "running")
        if model.ended is None:
            assert world.tops[world.top] == "up"
            rows = [(kid.id, kid.state == "running") for kid in model.kids[::-1]]
            assert [(row[0], row[1] is not None) for row in world.ask("which_children")] == rows
            running = sum(kid.state == "running" for kid in model.kids)
            assert world.ask("count_children") == (len(rows), running, 0, len(rows))
        else:
            assert world.tops[world.top] == ("ended", model.ended)
            assert not world.tree.owners and world.tree.next_ns() is None


@pytest.mark.slow
@pytest.mark.parametrize("first", SEEDS)
def test_beside_the_model(first):
    steps = 0
    for seed in seeds_from(first):
        pair = Pair(seed)
        done: list[str] = []
        try:
            while len(done) < 60 and pair.model.ended is None:
                try:
                    done.append(pair.step())
                except Ended:
                    done.append("ended")
                pair.compare()
        except AssertionError:
            print(f"seed {seed} after {done}")
            raise
        steps += len(done)
    assert "SEED" in os.environ or steps > 200


# ---------------------------------------------------------------------- everything takes its time


class SlowWorld(World):
    """Starts, ends and kills happen when the seed says so, in any order."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__(numbers=draw.random)
        self.draw = draw
        self.pending: list[tuple[str, int]] = []
        """What the root was asked to do and what has not happened yet."""
        self.tokens: list[int] = []
        self.luck = draw.choice([0.5, 0.9, 1.0])
        """How many starts work."""

    def _on_start(self, key: int, data: Any) -> None:
        assert key not in self.alive and key not in self.forgotten
        self.names[key], self.alive[key] = data, "starting"
        self.lost.discard(key)
        self.pending.append(("start", key))

    def _gone(self, key: int, reason: Any) -> None:
        self.pending = [(what, other) for what, other in self.pending if other != key]
        super()._gone(key, reason)

    def _up(self, key: int) -> None:
        ran = key in self.ran
        super()._up(key)
        if ("kill", key) in self.pending and not ran:
            self.ran.discard(key)  # it came too late: nobody was told of it

    def _on_shutdown(self, key: int) -> None:
        if key in self.alive:
            assert self.alive[key] == "up"
            self.alive[key] = "asked"
            self.pending.append(("shutdown", key))

    def _on_kill(self, key: int) -> None:
        if key in self.alive:
            assert ("kill", key) not in self.pending, "one kill is enough"
            self.pending.append(("kill", key))

    def happen(self) -> None:
        """One pending thing happens, or not: a start may fail, a shutdown may be ignored."""
        what, key = self.pending.pop(self.draw.randrange(len(self.pending)))
        if key not in self.alive:
            return
        if what == "kill":
            self._gone(key, "killed")
        elif what == "start" and self.alive[key] == "starting":
            if self.draw.random() < self.luck:
                self._up(key)
            elif self.draw.random() < 0.7:
                self._gone(key, self.draw.choice(["no", "ignore", "crash"]))
        elif what == "shutdown" and self.draw.random() < 0.8:
            self._gone(key, self.draw.choice(["shutdown", "normal", "crash"]))
        self.run()


def random_tree(draw: random.Random, depth: int = 0) -> Any:
    from shmrt.decide.backoff import Backoff

    strategy = draw.choice(["one_for_one", "one_for_all", "rest_for_one"] + ["dynamic"] * (depth > 0))
    children = []
    for number in range(draw.randint(1, 4) if strategy != "dynamic" else 0):
        id = f"{depth}{number}{draw.randrange(1000)}"
        restart = draw.choice(RESTARTS)
        options: dict[str, Any] = {"significant": restart != "permanent" and draw.random() < 0.3}
        if depth < 2 and draw.random() < 0.4:
            shutdown = draw.choice(["infinity", "brutal_kill", 20 * S])
            children.append(below(id, random_tree(draw, depth + 1), restart, shutdown=shutdown, **options))
        else:
            shutdown = draw.choice(["brutal_kill", 1 * S, 3 * S])
            children.append(leaf(id, restart, shutdown=shutdown, start_timeout=2 * S, **options))
    return sup(
        strategy,
        *children,
        max_restarts=draw.choice([0, 3, 10, 1000]),
        period=draw.choice([1, 100]) * S,
        auto_shutdown=draw.choice(["never", "any_significant", "all_significant"]),
        backoff=draw.choice([None, None, Backoff(free=1, first_ns=S, cap_ns=4 * S)]),
        max_children=draw.choice([None, 2]),
    )


def disturb(world: SlowWorld, draw: random.Random) -> None:
    """Somebody kills, asks or stops."""
    supers = list(world.tree.machines)
    up = [key for key, state in world.alive.items() if state in ("up", "asked")]
    kind = draw.choice(["exit", "exit", "exit", "ask", "ask", "ask", "stop", "late"])
    if kind == "exit" and up:
        world._gone(draw.choice(up), draw.choice(REASONS))
        world.run()
    elif kind == "ask" and supers:
        key = draw.choice(supers)
        members = world.tree.machines[key].ordered()
        verb = draw.choice(["start_child", "terminate_child", "restart_child", "delete_child", "which_children"])
        options = [member.spec.id for member in members] + [member.key for member in members] + ["nobody"]
        args: tuple[Any, ...] = () if verb == "which_children" else (draw.choice(options),)
        if verb == "start_child":
            args = (leaf(f"n{draw.randrange(9)}", draw.choice(RESTARTS), shutdown=S, start_timeout=2 * S),)
        world.tokens.append(world.send(verb, *args, key=key))
    elif kind == "stop" and supers and draw.random() < 0.3:
        key = draw.choice(supers)
        if key != world.top or draw.random() < 0.1:
            world.stop(draw.choice(["shutdown", "normal", "killed"]), key=key)
    elif kind == "late":
        world.tree.forgive(draw.randrange(S))


@pytest.mark.slow
@pytest.mark.parametrize("first", SEEDS)
def test_whole_trees_in_slow_motion(first):
    """Whatever happens in whatever order: no process is started or killed twice (the world looks), every request is
    answered once, and a stop ends everything in bounded time."""
    kept = restarts = 0
    for seed in seeds_from(first):
        draw = random.Random(seed)
        world = SlowWorld(draw)
        try:
            world.add(random_tree(draw))
            for _ in range(draw.randint(20, 200)):
                kind = draw.random()
                if kind < 0.6 and world.pending:
                    world.happen()
                elif kind < 0.75:
                    world.at(world.now / S + draw.choice([0.01, 0.5, 1.1, 2.5]))
                else:
                    disturb(world, draw)
                world.tree.describe()
            kept += bool(world.tree.tops)
            restarts += sum(row["restarts"] for row in world.tree.describe()["supervisors"])
            world.stop(draw.choice(["shutdown", "killed"]))
            for _ in range(2000):
                if not world.tree.tops:
                    break
                if world.pending:
                    world.happen()
                else:
                    world.at(world.now / S + 1)
            assert not world.tree.tops and not world.alive and not world.tree.owners and not world.tree.machines
            assert world.tree.next_ns() is None
            assert [token for token in world.tokens if token not in world.answers] == []
            assert set(world.names) <= world.forgotten
        except BaseException:
            print(f"seed {seed}")
            raise
    assert "SEED" in os.environ or (kept > 20 and restarts > 20)

"""A pretended world below a `Tree`: leaves that start, fail, obey or ignore, on a clock that only the test moves.

Ids are unique in a test, so a leaf is called by its id. `log` has what a watcher of the processes would see,
("start", id), ("up", id), ("down", id, reason), and what the root is told of keys, ("lost", id, reason),
("forgotten", id).
"""

from __future__ import annotations

from typing import Any

from shmrt.decide.specs import ChildSpec, SupervisorSpec
from shmrt.decide.tree import Tree

S = 1_000_000_000


def leaf(id: Any, restart: str = "permanent", **options: Any) -> ChildSpec:
    return ChildSpec(id, data=id, restart=restart, **options)


def below(id: Any, spec: SupervisorSpec, restart: str = "permanent", **options: Any) -> ChildSpec:
    return ChildSpec(id, restart=restart, supervisor=spec, **options)


def sup(strategy: str, *children: ChildSpec | str, **options: Any) -> SupervisorSpec:
    """A supervisor of these children; a string is a permanent leaf. Limits are wide unless a test sets them."""
    options.setdefault("max_restarts", 1000)
    made = tuple(leaf(child) if isinstance(child, str) else child for child in children)
    return SupervisorSpec(strategy, children=made, **options)


class World:
    """Carries out effects at once, but for what the test holds back: starts of `held` ids."""

    def __init__(self, *, numbers: Any = lambda: 1.0) -> None:
        self.tree = Tree(numbers)
        self.now = 0
        self.log: list[tuple[Any, ...]] = []
        self.reports: list[dict[str, Any]] = []
        self.answers: dict[Any, tuple[bool, Any]] = {}
        self.names: dict[int, Any] = {}
        self.keys: dict[Any, int] = {}
        """The newest key of each id."""
        self.alive: dict[int, str] = {}
        """Leaves with a process: "starting", "up" or "asked" to end."""
        self.held: set[Any] = set()
        self.fails: dict[Any, list[Any]] = {}
        """What the next starts of an id fail with; None is a start that works."""
        self.ending: dict[Any, Any] = {}
        """What an id ends with when it is asked to; None: it ignores that."""
        self.forgotten: set[int] = set()
        self.ran: set[int] = set()
        self.lost: set[int] = set()
        self.tops: dict[int, Any] = {}
        self.top = 0
        self._tokens = 0

    # ------------------------------------------------------------------ what a test does

    def add(self, spec: SupervisorSpec) -> int:
        self.top = self.tree.add_top(spec, self.now)
        self.tops.setdefault(self.top, "starting")
        self.run()
        return self.top

    def exit(self, id: Any, reason: Any = "crash", *, run: bool = True) -> None:
        """A leaf ends by itself."""
        self._gone(self.keys[id], reason)
        if run:
            self.run()

    def ready(self, id: Any) -> None:
        """A held start comes through."""
        self._up(self.keys[id])
        self.run()

    def send(self, verb: str, *args: Any, key: int | None = None) -> Any:
        """Asks and returns the token; the answer may come later."""
        self._tokens += 1
        self.tree.ask(self._tokens, self.top if key is None else key, verb, args, self.now)
        self.run()
        return self._tokens

    def ask(self, verb: str, *args: Any, key: int | None = None) -> Any:
        """Asks where the answer comes at once: the value, or (code, extra) of an error in a list."""
        ok, value = self.answers[self.send(verb, *args, key=key)]
        return value if ok else [value]

    def stop(self, reason: Any = "shutdown", key: int | None = None) -> None:
        self.tree.stop(self.top if key is None else key, reason, self.now)
        self.run()

    def at(self, seconds: float) -> None:
        """Moves the clock, through every timer on the way."""
        until = round(seconds * S)
        while (due := self.tree.next_ns()) is not None and due <= until:
            self.now = max(self.now, due)
            self.tree.tick(self.now)
            self.run()
        self.now = until
        self.tree.tick(self.now)
        self.run()

    def since(self, mark: int) -> list[str]:
        """The log from there on, starts and ends only, as words."""
        words = {"start": "+", "down": "-"}
        return [words[entry[0]] + str(entry[1]) for entry in self.log[mark:] if entry[0] in words]

    def up(self) -> list[Any]:
        """Ids of the leaves that are up, by name."""
        return sorted(self.names[key] for key, state in self.alive.items() if state == "up")

    def shown(self, key: int | None = None) -> dict[Any, Any]:
        """which_children by id: the key, None or "restarting"."""
        return {row[0]: row[1] for row in self.ask("which_children", key=key)}

    def contexts(self) -> list[tuple[str, Any, Any]]:
        """Reports but for progress: context, child, reason."""
        return [
            (report["context"], report["offender"]["id"], report["reason"])
            for report in self.reports
            if report["context"] != "progress"
        ]

    # ------------------------------------------------------------------ effects

    def run(self) -> None:
        while effects := self.tree.take_effects():
            for effect in effects:
                getattr(self, f"_on_{effect[0]}")(*effect[1:])

    def _up(self, key: int) -> None:
        assert self.alive[key] == "starting"
        self.ran.add(key)
        self.alive[key] = "up"
        self.log.append(("up", self.names[key]))
        self.tree.started(key, self.now)

    def _gone(self, key: int, reason: Any) -> None:
        del self.alive[key]
        self.log.append(("down", self.names[key], reason))
        self.tree.exited(key, reason, self.now)

    def _on_start(self, key: int, data: Any) -> None:
        assert key not in self.alive and key not in self.forgotten, (key, data)
        self.names[key] = data
        self.keys[data] = key
        self.alive[key] = "starting"
        self.lost.discard(key)
        self.log.append(("start", data))
        failures = self.fails.get(data)
        failure = failures.pop(0) if failures else None
        if failure is not None:
            self._gone(key, failure)
        elif data not in self.held:
            self._up(key)

    def _on_shutdown(self, key: int) -> None:
        if key not in self.alive:
            return  # it ended by itself meanwhile
        assert self.alive[key] == "up", "only a leaf that is up is asked, and once"
        self.alive[key] = "asked"
        reason = self.ending.get(self.names[key], "shutdown")
        if reason is not None:
            self._gone(key, reason)

    def _on_kill(self, key: int) -> None:
        if key in self.alive:
            self._gone(key, "killed")

    def _on_lost(self, key: int, reason: Any) -> None:
        assert key not in self.alive and key in self.ran, "a lost leaf ran and is down"
        assert key not in self.lost, "it is said once"
        self.lost.add(key)
        self.log.append(("lost", self.names[key], reason))

    def _on_forgotten(self, key: int) -> None:
        assert key not in self.alive and key not in self.forgotten
        assert key not in self.ran or key in self.lost, "what ran is lost before it is forgotten"
        self.forgotten.add(key)
        if key in self.names:
            self.log.append(("forgotten", self.names[key]))

    def _on_answer(self, token: Any, ok: bool, value: Any) -> None:
        assert token not in self.answers
        self.answers[token] = (ok, value)

    def _on_report(self, what: dict[str, Any]) -> None:
        self.reports.append(what)

    def _on_top_started(self, key: int) -> None:
        self.tops[key] = "up"

    def _on_top_ended(self, key: int, reason: Any) -> None:
        assert self.tops.get(key) in ("starting", "up", None)
        self.tops[key] = ("ended", reason)

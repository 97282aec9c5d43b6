"""What `status`, `tree` and `inspect` say of a tree, made from a real one that is decided here, without processes."""

from __future__ import annotations

from typing import Any

import pytest

from shmrt.decide.specs import ChildSpec, SupervisorSpec
from shmrt.decide.tree import Tree
from shmrt.supervise import views

FACTS = {"name": "shop", "pid": 7, "program": 6, "seconds": 1.5, "stopping": False}


def grown(*children: ChildSpec, **options: Any) -> tuple[Tree, int]:
    """A tree whose leaves that can start are up."""
    tree = Tree(lambda: 0.0)
    key = tree.add_top(SupervisorSpec(children=children, name="app", **options), 0)
    start(tree)
    return tree, key


def start(tree: Tree) -> None:
    while effects := tree.take_effects():
        for effect in effects:
            if effect[0] == "start":
                tree.started(effect[1], 0)


def key_of(tree: Tree, *path: str) -> int:
    rows = tree.describe(now=0)["supervisors"][0]["children"]
    for word in path[:-1]:
        rows = next(row for row in rows if row["id"] == word)["supervisor"]["children"]
    return int(next(row for row in rows if row["id"] == path[-1])["key"])


def status(tree: Tree, processes: dict[int, dict[str, Any]] | None = None, pools: Any = ()) -> dict[str, Any]:
    return views.status_body(FACTS, tree.describe(now=5), processes or {}, list(pools), [])


def row(body: dict[str, Any], path: str) -> dict[str, Any]:
    return next(one for one in views.each(body["supervisors"]) if one["path"] == path)


def pool(**changed: Any) -> dict[str, Any]:
    worker = {"number": 0, "slot": 2, "pid": 11, "activity": "busy", "seconds": 1.0, "restarts": 0, "done": 3}
    base = {"name": "hash", "number": 1, "nested": False, "wanted": 1, "spares": 0, "ready": 1, "broken": False}
    base |= {
        "reasons": [],
        "removing": False,
        "paused": False,
        "restarts": {0: 0},
        "wait_ns": None,
        "workers": [worker],
    }
    return base | changed


def test_a_tree_that_runs() -> None:
    """Every child has a row with its path and its process, every supervisor what is left of its budget."""
    inner = SupervisorSpec("one_for_all", children=(ChildSpec("c"),), max_restarts=7, period=2_000_000_000)
    tree, _ = grown(ChildSpec("a"), ChildSpec("b", supervisor=inner))
    key = key_of(tree, "a")
    body = status(tree, {key: {"kind": "server", "pid": 99, "activity": "idle", "seconds": 2.0}})
    assert (body["schema"], body["state"], body["problems"]) == ("shmrt.status/1", "running", [])
    assert [one["path"] for one in views.each(body["supervisors"])] == ["app", "app/a", "app/b", "app/b/c"]
    found = row(body, "app/a")
    assert (found["state"], found["pid"], found["kind"], found["restart"]) == ("idle", 99, "server", "permanent")
    assert row(body, "app/b")["budget"] == {"used": 0, "limit": 7, "left": 7, "seconds": 2.0}
    assert (row(body, "app/b")["strategy"], row(body, "app")["strategy"]) == ("one_for_all", "one_for_one")


def test_a_child_that_died_is_listed_with_the_next_command() -> None:
    """Never absent: a dead child has a state, its last reason and what to do; its supervisor is degraded."""
    tree, _ = grown(ChildSpec("a", restart="temporary"), ChildSpec("b c", restart="transient"))
    key = key_of(tree, "b c")
    tree.exited(key, "normal", 5)
    body = status(tree, {key: {"kind": "function", "pid": None}})
    found = row(body, "app/b c")
    assert (found["state"], found["last_exit"]) == ("ended", "normal")
    assert found["next"] == "python -m shmrt --name shop restart 'app/b c'"
    assert body["state"] == "running"  # it ended as it was meant to


def test_a_child_that_waits_for_its_restart() -> None:
    from shmrt.decide.backoff import Backoff

    wait = Backoff(free=0, first_ns=10**9, cap_ns=10**10)
    tree, _ = grown(ChildSpec("a"), backoff=wait)
    tree.exited(key_of(tree, "a"), ("error", "ValueError", "no such file\nand more", "Traceback ..."), 5)
    body = status(tree)
    found = row(body, "app/a")
    assert (found["state"], found["last_exit"]) == ("restarting", "ValueError: no such file")
    assert (body["state"], row(body, "app")["state"], row(body, "app")["budget"]["left"]) == ("degraded", "degraded", 3)
    [problem] = body["problems"][-1:]
    assert problem["what"] == "app/a is restarting: ValueError: no such file"
    assert problem["next"] == "python -m shmrt --name shop inspect worker app/a"
    tree.tick(2 * 10**9)
    start(tree)
    body = views.status_body(FACTS, tree.describe(now=2 * 10**9), {}, [], [])
    assert (body["state"], row(body, "app")["budget"]["left"], row(body, "app/a")["restarts"]) == ("running", 2, 1)


def test_a_tree_that_starts_and_one_that_stops() -> None:
    tree = Tree(lambda: 0.0)
    tree.add_top(SupervisorSpec(children=(ChildSpec("a"), ChildSpec("b")), name="app"), 0)
    tree.take_effects()
    body = status(tree)
    assert body["state"] == "starting"
    assert [row(body, f"app/{id}")["state"] for id in "ab"] == ["starting", "starting"]
    assert views.status_body({**FACTS, "stopping": True}, tree.describe(now=0), {}, [], [])["state"] == "stopping"


@pytest.mark.parametrize(
    ("changed", "state", "overall"),
    [
        ({}, "running", "running"),
        ({"paused": True}, "paused", "degraded"),
        ({"broken": True}, "broken", "degraded"),
        ({"removing": True}, "stopping", "running"),
        ({"ready": 0, "workers": []}, "starting", "starting"),
        ({"ready": 0, "workers": [], "restarts": {0: 2}, "wait_ns": 10**9}, "degraded", "degraded"),
    ],
)
def test_a_pool(changed: dict[str, Any], state: str, overall: str) -> None:
    """Its state, and that of all; what is wrong names the next command."""
    body = views.status_body(FACTS, {}, {}, [pool(**changed)], [])
    [found] = body["pools"]
    assert (found["state"], body["state"]) == (state, overall)
    assert bool(body["problems"]) == (overall == "degraded")
    assert len(found["workers"]) == 1  # the one that is wanted, there or not


@pytest.mark.parametrize(
    ("changed", "state"),
    [({"broken": True}, "failed"), ({"wait_ns": 2 * 10**9}, "backoff"), ({}, "starting")],
)
def test_a_worker_that_is_not_there_has_a_row(changed: dict[str, Any], state: str) -> None:
    found = views.pool_row(pool(wanted=3, **changed), "shop")
    assert [(one["id"], one["state"]) for one in found["workers"]] == [
        ("hash/0", "busy"),
        ("hash/1", state),
        ("hash/2", state),
    ]


REASONS = [
    (None, None),
    ("normal", "normal"),
    ("killed", "killed"),
    (("signal", "SIGSEGV"), "signal SIGSEGV"),
    (("exit", 3), "exit code 3"),
    (("error", "KeyError", "", ""), "KeyError"),
    (("shutdown", "deploy"), "shutdown: deploy"),
    (("unhealthy", "db"), "unhealthy: check db"),
    (
        ("shutdown", ("failed_to_start_child", "a", ("error", "OSError", "no", "tb"))),
        "shutdown: child a could not be started: OSError: no",
    ),
    ((1, 2), "(1, 2)"),
    (["signal", "SIGKILL"], "signal SIGKILL"),
]


@pytest.mark.parametrize(("reason", "text"), REASONS)
def test_reasons_in_words(reason: Any, text: str | None) -> None:
    assert views.reason_text(reason) == text


def test_the_traceback_inside_a_reason() -> None:
    reason = ("shutdown", ("failed_to_start_child", "a", ("error", "OSError", "no", "the traceback")))
    assert views.reason_detail(reason) == "the traceback" and views.reason_detail(("exit", 3)) is None


def test_what_a_person_may_call_a_thing() -> None:
    """Path, end of a path, id, pool, worker, pid; what is ambiguous is given back as several."""
    inner = SupervisorSpec(children=(ChildSpec("a"), ChildSpec("c")))
    tree, _ = grown(ChildSpec("a"), ChildSpec("b", supervisor=inner))
    rows = views.tree_rows(tree.describe(now=0), {key_of(tree, "a"): {"pid": 42}}, "shop")
    pools = [views.pool_row(pool(), "shop")]

    def paths(word: str) -> list[str]:
        return [str(one.get("path") or one.get("id") or one["name"]) for _, one in views.find(word, rows, pools)]

    assert paths("app/b/a") == ["app/b/a"] and paths("b/a") == ["app/b/a"] and paths("c") == ["app/b/c"]
    assert paths("a") == ["app/a", "app/b/a"]
    assert paths("hash") == ["hash"] and paths("hash/0") == ["hash/0"]
    assert paths("42") == ["app/a"] and paths("11") == ["hash/0"]
    assert paths("nothing") == [] and paths("43") == []


def test_reports_become_events() -> None:
    """Every context of the tree has a name of its own, and what is left of the budget is told."""
    tree, _ = grown(ChildSpec("a"), max_restarts=1)
    key = key_of(tree, "a")
    events = []
    for _ in range(2):
        tree.exited(key, ("exit", 3), 5)
        effects = tree.take_effects()
        events += [views.event_of(effect[1]) for effect in effects if effect[0] == "report"]
        for effect in effects:
            if effect[0] == "start":
                tree.started(effect[1], 5)
    names = [name for name, _, _ in events]
    assert names[0] == "worker.exit" and "worker.ready" in names and names[-1] == "supervisor.restart.limit"
    _, measured, about = events[0]
    assert measured == {"used": 1, "limit": 1, "left": 0}
    assert (about["supervisor"], about["id"], about["reason"]) == ("app", "a", "exit code 3")

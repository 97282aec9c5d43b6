"""B2 and B3: what the end of a child means, and which others go down and come up with it."""

from __future__ import annotations

import pytest
from supervisor_world import S, World, below, leaf, sup

from shmrt.decide.backoff import Backoff

ORDERLY = ["normal", "shutdown", ("shutdown", "why")]
ABNORMAL = [
    "killed",
    "crash",
    ("signal", "SIGSEGV"),
    ("exit", 3),
    ("error", "E", "text", ""),
    ("unhealthy", "c"),
    "noproc",
]


def world_of(*children, strategy="one_for_one", **options) -> World:
    world = World()
    world.add(sup(strategy, *children, **options))
    return world


@pytest.mark.parametrize("reason", [*ORDERLY, *ABNORMAL])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_who_is_started_again(restart, reason):
    """Permanent: always. Transient: after an abnormal end. Temporary: never, and its specification goes."""
    world = world_of(leaf("a", restart), "b")
    key = world.keys["a"]
    world.exit("a", reason)
    again = restart == "permanent" or (restart == "transient" and reason in ABNORMAL)
    assert world.up() == (["a", "b"] if again else ["b"])
    assert ("a" in world.shown()) is (restart != "temporary")
    reported = restart == "permanent" or reason in ABNORMAL
    assert world.contexts() == ([("child_terminated", "a", reason)] if reported else [])
    tail = [entry for entry in world.log if entry[0] in ("lost", "forgotten")]
    if again:
        assert tail == [] and world.keys["a"] == key, "the key survives the restart"
    elif restart == "transient":
        assert tail == [("lost", "a", reason)]
    else:
        assert tail == [("lost", "a", reason), ("forgotten", "a")]


def test_an_unknown_or_repeated_end_is_ignored():
    world = world_of("a", leaf("t", "temporary"))
    key = world.keys["t"]
    world.exit("t", "normal")
    for unknown in (key, world.top, 99):
        world.tree.exited(unknown, "crash", 0)
        world.tree.started(unknown, 0)
    world.tree.started(world.keys["a"], 0)
    world.run()
    assert world.since(0) == ["+a", "+t", "-t"]


@pytest.mark.parametrize("restart", ["transient", "temporary"])
def test_any_significant_child_ends_the_supervisor(restart):
    world = world_of(leaf("a", restart, significant=True), leaf("b", restart), "c", auto_shutdown="any_significant")
    world.exit("b", "normal")
    assert world.up() == ["a", "c"]
    world.exit("a", "normal")
    assert world.tops[world.top] == ("ended", "shutdown")
    assert world.since(0) == ["+a", "+b", "+c", "-b", "-a", "-c"]


def test_the_last_significant_child_ends_the_supervisor():
    ids = {id: leaf(id, "temporary", significant=True) for id in "ab"}
    world = world_of(*ids.values(), "c", auto_shutdown="all_significant")
    world.exit("a", "crash")
    assert world.up() == ["b", "c"]
    world.exit("b", "normal")
    assert world.tops[world.top] == ("ended", "shutdown")


def test_one_that_is_restarting_counts_as_alive():
    a, b = leaf("a", "transient", significant=True), leaf("b", "transient", significant=True)
    world = world_of(a, b, auto_shutdown="all_significant")
    world.held.add("a")
    world.exit("a", "crash")
    assert world.shown()["a"] == "restarting"
    world.exit("b", "normal")
    world.ready("a")
    assert world.tops[world.top] == "up" and world.up() == ["a"]
    world.exit("a", "normal")
    assert world.tops[world.top] == ("ended", "shutdown")


def test_one_that_waits_for_its_restart_counts_as_alive():
    ids = [leaf(id, "transient", significant=True) for id in "ab"]
    world = world_of(*ids, auto_shutdown="all_significant", backoff=Backoff(free=0, first_ns=S, cap_ns=S))
    world.exit("a", "crash")
    world.exit("b", "normal")
    assert world.tops[world.top] == "up" and not world.alive
    world.at(1)
    assert world.up() == ["a"]


@pytest.mark.parametrize("auto", ["any_significant", "all_significant"])
def test_what_the_supervisor_stops_itself_never_ends_it(auto):
    """terminate_child, and the end of a sibling in a group restart."""
    world = world_of(leaf("s", "temporary", significant=True), "c", strategy="one_for_all", auto_shutdown=auto)
    world.exit("c")
    assert world.tops[world.top] == "up" and world.up() == ["c"], "the temporary one is not started again"
    assert world.ask("start_child", leaf("s", "transient", significant=True)) == world.keys["s"]
    assert world.ask("terminate_child", "s") is None
    assert world.tops[world.top] == "up"


def test_a_temporary_supervisor_that_ends_by_itself_can_be_significant():
    inner = sup("one_for_one", leaf("x", "temporary", significant=True), auto_shutdown="any_significant")
    world = world_of(below("in", inner, "temporary", significant=True), "c", auto_shutdown="any_significant")
    world.exit("x", "normal")
    assert world.tops[world.top] == ("ended", "shutdown")


# ---------------------------------------------------------------------- strategies


@pytest.mark.parametrize(
    ("strategy", "seen"),
    [
        ("one_for_one", ["-b", "+b"]),
        ("rest_for_one", ["-b", "-d", "-c", "+b", "+c", "+d"]),
        ("one_for_all", ["-b", "-d", "-c", "-a", "+a", "+b", "+c", "+d"]),
    ],
)
def test_the_strategies(strategy, seen):
    """Down in reverse start order, up in start order."""
    world = world_of("a", "b", "c", "d", strategy=strategy)
    mark = len(world.log)
    world.exit("b")
    assert world.since(mark) == seen


def test_a_group_restart_revives_what_had_ended():
    """The surprise that is kept: transient children that had ended, and children that somebody had terminated."""
    world = world_of("a", leaf("b", "transient"), "c", leaf("t", "temporary"), strategy="one_for_all")
    world.exit("b", "normal")
    world.ask("terminate_child", "c")
    assert world.up() == ["a", "t"]
    world.exit("a")
    assert world.up() == ["a", "b", "c"]
    assert "t" not in world.shown()


def test_a_failed_start_leaves_later_ones_down_and_is_tried_again():
    world = world_of("a", "b", "c", strategy="one_for_all")
    mark = len(world.log)
    world.fails["b"] = ["no", None]
    world.exit("c")
    assert world.since(mark) == ["-c", "-b", "-a", "+a", "+b", "-b", "-a", "+a", "+b", "+c"]
    assert world.contexts() == [("child_terminated", "c", "crash"), ("start_error", "b", "no")]


def test_rest_for_one_leaves_those_before_the_failed_one_running():
    world = world_of("a", "b", "c", "d", strategy="rest_for_one")
    mark = len(world.log)
    world.fails["c"] = ["no", "no", None]
    world.exit("b")
    assert world.since(mark) == ["-b", "-d", "-c", "+b", "+c", "-c", "+c", "-c", "+c", "+d"]


def test_a_retry_waits_behind_what_was_asked_meanwhile():
    """While a start hangs, requests queue; the retry comes after them, and terminate_child cancels it."""
    world = world_of("a", "b")
    world.held.add("a")
    world.exit("a")
    first = world.send("start_child", leaf("n"))
    second = world.send("terminate_child", "a")
    assert world.answers.get(first) is None
    mark = len(world.log)
    world.exit("a", "no")
    assert world.answers[first][0] and world.answers[second] == (True, None)
    assert world.since(mark) == ["-a", "+n"], "it is not tried again"
    assert world.shown()["a"] is None and world.log[-1] == ("lost", "a", "no")


def test_who_was_to_come_after_a_cancelled_restart_is_lost():
    world = world_of("a", "b", "c", strategy="one_for_all")
    world.held.add("b")
    world.exit("a")
    token = world.send("terminate_child", "b")
    world.exit("b", "no")
    assert world.answers[token] == (True, None) and world.up() == ["a"]
    assert [entry[:2] for entry in world.log if entry[0] == "lost"] == [("lost", "b"), ("lost", "c")]


def test_the_end_of_a_child_that_is_about_to_be_stopped_is_no_second_crash():
    """It waits in the inbox, or comes while it is being stopped: either way it is consumed."""
    world = world_of("a", "b", "c", strategy="one_for_all", max_restarts=1)
    world.ending["c"] = None
    world.exit("a")
    assert world.alive[world.keys["c"]] == "asked"
    world.exit("b", "boom")
    world.exit("c", "bang")
    assert world.up() == ["a", "b", "c"] and world.tops[world.top] == "up"
    assert world.contexts() == [
        ("child_terminated", "a", "crash"), ("shutdown_error", "c", "bang"), ("shutdown_error", "b", "boom")
    ]  # fmt: skip


def test_an_end_that_was_consumed_is_not_the_next_one():
    """b dies in the middle of a group restart, and again right after it: a request from between is served between."""
    world = world_of("a", "b", "c", strategy="one_for_all")
    world.ending["c"] = None
    world.exit("a")
    world.exit("b", "first")
    world.held.add("c")
    world.exit("c", "shutdown")
    token = world.send("terminate_child", "b")
    world.exit("b", "second")
    world.ready("c")
    assert world.answers[token] == (True, None)
    assert world.since(0).count("+a") == 2 and world.up() == ["a", "c"]


@pytest.mark.parametrize("shutdown", ["infinity", "brutal_kill"])
def test_a_sub_supervisor_that_gives_up_at_the_instant_at_which_it_is_stopped(shutdown):
    world = World()
    wait = Backoff(free=0, first_ns=S, cap_ns=S)
    inner = sup("one_for_one", "x", max_restarts=0, backoff=wait)
    world.add(sup("one_for_all", below("in", inner, shutdown=shutdown), "p", backoff=wait))
    world.exit("x")
    world.exit("p")
    world.at(1)
    assert world.up() == ["p", "x"] and world.since(0) == ["+x", "+p", "-x", "-p", "+x", "+p"]


def test_the_group_restart_of_a_sub_supervisor_gives_its_children_new_keys():
    """A supervisor that is gone took its children's specifications along; its own key stays."""
    world = world_of(below("in", sup("one_for_one", "x", "y")), "b", strategy="one_for_all")
    inner, old = world.shown()["in"], world.keys["x"]
    world.exit("b")
    assert world.up() == ["b", "x", "y"] and world.shown()["in"] == inner
    assert world.keys["x"] != old and old in world.forgotten
    said = [entry[:2] for entry in world.log if entry[0] in ("lost", "forgotten")]
    assert said == [("lost", "y"), ("lost", "x"), ("forgotten", "y"), ("forgotten", "x")]


def test_every_start_is_reported_as_progress():
    world = world_of("a", below("in", sup("one_for_one", "x")))
    seen = [(r["supervisor"], r["offender"]["id"]) for r in world.reports if r["context"] == "progress"]
    assert seen == [((1,), "a"), ((1, "in"), "x"), ((1,), "in")]
    offender = world.reports[0]["offender"]
    assert offender == {"id": "a", "key": 2, "restart": "permanent", "shutdown": 5 * 10**9, "type": "worker"}

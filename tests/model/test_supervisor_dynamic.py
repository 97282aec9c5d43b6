"""The dynamic supervisor: children by request, concurrently, each on its own; their end all at once."""

from __future__ import annotations

import pytest
from supervisor_world import S, World, below, leaf, sup

from shmrt.decide.backoff import Backoff


def pool(**options) -> World:
    world = World()
    world.add(sup("dynamic", **options))
    assert world.tops[world.top] == "up"
    return world


def test_children_start_concurrently():
    world = pool()
    world.held = {"a"}
    slow = world.send("start_child", leaf("a"))
    assert world.ask("start_child", leaf("b")) == world.keys["b"]
    assert slow not in world.answers
    world.ready("a")
    assert world.answers[slow] == (True, world.keys["a"])
    assert [row[0] for row in world.ask("which_children")] == ["b", "a"]
    assert world.ask("count_children") == (2, 2, 0, 2)


def test_equal_ids_are_different_children():
    world = pool()
    keys = [world.ask("start_child", leaf("a")) for _ in range(3)]
    assert len(set(keys)) == 3 and world.ask("get_childspec", keys[0]).id == "a"


@pytest.mark.parametrize("reason", ["normal", "crash"])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
def test_who_is_started_again(restart, reason):
    world = pool()
    key = world.ask("start_child", leaf("a", restart))
    world.exit("a", reason)
    again = restart == "permanent" or (restart == "transient" and reason == "crash")
    assert world.shown() == ({"a": key} if again else {})
    assert world.contexts() == ([] if reason == "normal" and restart != "permanent" else
                                [("child_terminated", "a", reason)])  # fmt: skip
    assert again or [entry[0] for entry in world.log[-2:]] == ["lost", "forgotten"]


def test_a_restart_keeps_the_key_and_holds_up_nobody():
    world = pool()
    key = world.ask("start_child", leaf("a"))
    world.ask("start_child", leaf("b"))
    world.held.add("a")
    world.exit("a")
    assert world.shown()["a"] == "restarting" and world.ask("count_children") == (2, 1, 0, 2)
    world.exit("b")
    assert world.up() == ["b"]
    world.ready("a")
    assert world.shown()["a"] == key


def test_no_more_than_max_children():
    """Those that are starting and those that are restarting count."""
    world = pool(max_children=2)
    world.held = {"a"}
    starting = world.send("start_child", leaf("a"))
    world.ask("start_child", leaf("b", "temporary"))
    assert world.ask("start_child", leaf("c")) == [("max_children", 2)]
    world.ready("a")
    world.exit("a")
    assert world.ask("start_child", leaf("c")) == [("max_children", 2)]
    world.exit("b", "normal")
    assert world.ask("start_child", leaf("c")) == world.keys["c"]
    assert world.answers[starting][0]
    assert pool(max_children=0).ask("start_child", leaf("c")) == [("max_children", 0)]


def test_a_start_that_fails():
    world = pool()
    world.fails |= {"a": [("exit", 3)], "b": ["ignore"]}
    assert world.ask("start_child", leaf("a")) == [("start_error", ("exit", 3))]
    assert world.ask("start_child", leaf("b")) is None
    assert world.ask("which_children") == [] and world.contexts() == []
    assert [entry[:2] for entry in world.log if entry[0] == "forgotten"] == [("forgotten", "a"), ("forgotten", "b")]


def test_a_restart_that_fails_is_tried_again_within_the_intensity():
    world = pool(max_restarts=3)
    world.ask("start_child", leaf("a"))
    world.ask("start_child", leaf("b"))
    world.fails["a"] = ["no"] * 9
    world.exit("a")
    assert world.since(0).count("+a") == 4
    assert world.tops[world.top] == ("ended", "shutdown") and not world.alive
    assert [kind for kind, _, _ in world.contexts()] == ["child_terminated"] + ["start_error"] * 3 + ["shutdown"]


def test_a_restart_that_is_ignored_removes_the_child():
    world = pool()
    world.ask("start_child", leaf("a"))
    world.fails["a"] = ["ignore"]
    world.exit("a")
    assert world.ask("which_children") == [] and world.log[-2:] == [("lost", "a", "ignore"), ("forgotten", "a")]


def test_terminate_child():
    world = pool()
    key = world.ask("start_child", leaf("a"))
    world.ask("start_child", leaf("b"))
    world.ending["a"] = None
    token = world.send("terminate_child", key)
    again = world.send("terminate_child", key)
    world.exit("b")
    assert world.up() == ["b"] and token not in world.answers, "others go on meanwhile"
    world.at(5)
    assert world.answers[token] == world.answers[again] == (True, None)
    assert world.contexts()[-1] == ("shutdown_error", "a", "killed")
    assert world.ask("terminate_child", key) == [("not_found", None)]
    assert world.shown() == {"b": world.keys["b"]}


def test_terminate_child_of_one_that_restarts():
    """Waiting for its time, or starting: there is no retry, and it is gone."""
    for backoff in (None, Backoff(free=0, first_ns=S, cap_ns=S)):
        world = pool(backoff=backoff)
        key = world.ask("start_child", leaf("a"))
        world.held.add("a")
        world.exit("a")
        assert world.shown() == {"a": "restarting"}
        assert world.ask("terminate_child", key) is None
        assert not world.alive and world.ask("which_children") == [] and world.tree.next_ns() is None


def test_static_requests_do_not_fit():
    world = pool()
    key = world.ask("start_child", leaf("a"))
    for verb in ("restart_child", "delete_child"):
        assert world.ask(verb, key) == [("dynamic", None)]
    assert world.ask("which_child", key)[1] == key and world.ask("which_child", 99) == [("not_found", None)]


def test_all_children_end_at_once_with_one_timer_for_each_time():
    world = pool()
    for id, shutdown in [("a", 1 * S), ("b", 2 * S), ("c", 1 * S), ("d", "brutal_kill"), ("e", "infinity")]:
        world.ask("start_child", leaf(id, shutdown=shutdown))
        world.ending[id] = None
    world.stop("normal")
    assert set(world.alive.values()) == {"asked"} and len(world.alive) == 4
    world.at(1)
    assert {world.names[key] for key in world.alive} == {"b", "e"}
    world.at(2)
    assert {world.names[key] for key in world.alive} == {"e"} and world.tree.next_ns() is None
    world.exit("e", "shutdown")
    assert world.tops[world.top] == ("ended", "normal") and not world.tree.owners
    assert world.contexts() == [("shutdown_error", id, "killed") for id in "cab"]


def test_what_is_starting_or_waiting_when_it_ends():
    world = pool(backoff=Backoff(free=0, first_ns=S, cap_ns=S))
    for id in "ab":
        world.ask("start_child", leaf(id))
    world.exit("a")
    world.held.add("c")
    token = world.send("start_child", leaf("c"))
    world.stop()
    assert world.tops[world.top] == ("ended", "shutdown") and not world.alive
    assert world.answers[token] == (False, ("noproc", None)) and world.tree.next_ns() is None
    assert world.contexts() == [("child_terminated", "a", "crash")]


def test_a_start_that_takes_too_long():
    world = pool()
    world.held.add("a")
    token = world.send("start_child", leaf("a", start_timeout=S))
    world.at(1)
    assert world.answers[token] == (False, ("start_error", "timeout"))


def test_a_significant_child_can_end_it():
    world = pool(auto_shutdown="all_significant")
    for id in "abc":
        world.ask("start_child", leaf(id, "temporary", significant=id != "c"))
    world.exit("a", "normal")
    assert world.up() == ["b", "c"]
    world.exit("b", "crash")
    assert world.tops[world.top] == ("ended", "shutdown") and not world.alive


def test_killed_it_ends_at_once_and_its_children_are_gone_for_good():
    world = World()
    world.add(sup("one_for_one", below("pool", sup("dynamic"))))
    key = world.tree.find((world.top, "pool"))
    for id in "ab":
        world.ask("start_child", leaf(id), key=key)
        world.ending[id] = None
    world.stop("killed", key=key)
    assert world.ask("which_children", key=key) == [] and world.ask("which_children")[0][1] == key
    assert not world.alive and {world.keys[id] for id in "ab"} <= world.forgotten


def test_supervisors_can_be_children():
    world = pool()
    key = world.ask("start_child", below("in", sup("one_for_one", "x", "y")))
    assert world.up() == ["x", "y"] and world.ask("count_children") == (1, 1, 1, 0)
    world.fails["p"] = ["no"]
    reason = ("shutdown", ("failed_to_start_child", "p", "no"))
    assert world.ask("start_child", below("other", sup("one_for_one", "p"))) == [("start_error", reason)]
    assert world.ask("terminate_child", key) is None and not world.alive
    world.held.add("q")
    world.send("start_child", below("slow", sup("one_for_one", "x", "q")))
    world.stop()
    assert not world.alive and world.tops[world.top] == ("ended", "shutdown")


@pytest.mark.slow
def test_many_children():
    """Nothing grows with the square of their number: ten thousand starts, ends and one kill."""
    world = pool(max_restarts=10**6)
    for number in range(10_000):
        world.send("start_child", leaf(number, "temporary", start_timeout=S))
    for number in range(0, 10_000, 2):
        world.exit(number, "normal")
    assert world.ask("count_children") == (5000, 5000, 0, 5000)
    world.tree.stop(world.top, "killed", 0)
    kills = world.tree.take_effects()
    assert len(kills) == 5000
    for _, key in reversed(kills):
        world._gone(key, "killed")
    world.run()
    assert world.tops[world.top] == ("ended", "killed") and not world.tree.owners and world.tree.next_ns() is None

"""B5 and B6: how a child and a supervisor end, what a failed or interrupted start leaves, and the brutal kill."""

from __future__ import annotations

import pytest
from supervisor_world import S, World, below, leaf, sup


def stopped(ending, restart="permanent", shutdown=2 * S) -> tuple[World, list]:
    """terminate_child of such a child, and what was reported of it."""
    world = World()
    world.add(sup("one_for_one", leaf("a", restart, shutdown=shutdown)))
    world.ending["a"] = ending
    token = world.send("terminate_child", "a")
    if token not in world.answers:
        world.at(1.999)
        assert token not in world.answers
        world.at(2)
    assert world.answers[token] == (True, None)
    assert world.tree.next_ns() is None, "its timer is gone with it"
    return world, world.contexts()


@pytest.mark.parametrize("shutdown", [2 * S, "infinity"])
@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("ending", ["shutdown", "normal", ("shutdown", 1), "crash", ("exit", 1)])
def test_an_end_that_was_asked_for(ending, restart, shutdown):
    """Only "shutdown" is expected of a permanent child, every orderly end of another."""
    _, reports = stopped(ending, restart, shutdown)
    fine = ending == "shutdown" or (restart != "permanent" and ending in ("normal", ("shutdown", 1)))
    assert reports == ([] if fine else [("shutdown_error", "a", ending)])


@pytest.mark.parametrize("restart", ["permanent", "temporary"])
def test_one_that_does_not_end_is_killed_after_its_time(restart):
    world, reports = stopped(None, restart)
    assert reports == [("shutdown_error", "a", "killed")] and world.now == 2 * S


def test_a_brutal_kill_asks_nothing():
    world, reports = stopped("never asked", shutdown="brutal_kill")
    assert reports == [] and world.log[-2:] == [("down", "a", "killed"), ("lost", "a", "killed")]


def test_infinity_is_waited_for():
    world = World()
    world.add(sup("one_for_one", leaf("a", shutdown="infinity")))
    world.ending["a"] = None
    token = world.send("terminate_child", "a")
    world.at(1e6)
    assert token not in world.answers and world.tree.next_ns() is None
    world.exit("a", "shutdown")
    assert world.answers[token] == (True, None)


def test_children_end_one_after_the_other():
    world = World()
    world.add(
        sup("one_for_one", leaf("a", shutdown=1 * S), leaf("b", shutdown="brutal_kill"), leaf("c", shutdown=1 * S))
    )
    world.ending |= {"a": None, "c": None}
    mark = len(world.log)
    world.stop(("shutdown", "why"))
    assert world.alive == {world.keys["a"]: "up", world.keys["b"]: "up", world.keys["c"]: "asked"}
    world.at(1)
    assert world.since(mark) == ["-c", "-b"] and world.alive == {world.keys["a"]: "asked"}
    world.at(2)
    assert world.tops[world.top] == ("ended", ("shutdown", "why"))
    said = [entry for entry in world.log[mark:] if entry[0] in ("lost", "forgotten")]
    assert [entry[0][0] + entry[1] for entry in said] == ["lc", "lb", "la", "fc", "fb", "fa"]


def test_a_child_that_dies_while_the_supervisor_ends_is_not_started_again():
    world = World()
    world.add(sup("one_for_one", "a", "b"))
    world.ending["b"] = None
    world.stop()
    world.exit("a", "crash")
    world.exit("b", "crash")
    assert world.tops[world.top] == ("ended", "shutdown")
    assert world.contexts() == [("shutdown_error", "b", "crash"), ("shutdown_error", "a", "crash")]


def test_whoever_asks_an_ending_supervisor_is_told():
    world = World()
    world.add(sup("one_for_one", "a"))
    world.held, world.ending["a"] = {"n"}, None
    waiting = [world.send("start_child", leaf("n")), world.send("terminate_child", "a")]
    world.stop()
    late = world.send("start_child", leaf("m"))
    assert world.answers[late] == (False, ("noproc", None)), "at once"
    world.exit("a", "shutdown")
    assert [world.answers[token] for token in [*waiting, late]] == [(False, ("noproc", None))] * 3
    assert not world.alive and world.tops[world.top] == ("ended", "shutdown")


# ---------------------------------------------------------------------- start failures


def test_a_failed_start_at_the_beginning_ends_the_supervisor():
    """Children k-1 to 1 are stopped; the reason says which child and why."""
    world = World()
    world.fails["c"] = [("exit", 3)]
    world.add(sup("one_for_all", "a", "b", "c", "d"))
    assert world.since(0) == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert world.tops[world.top] == ("ended", ("shutdown", ("failed_to_start_child", "c", ("exit", 3))))
    assert world.contexts() == [("start_error", "c", ("exit", 3))]
    assert not world.tree.owners


def test_a_failed_start_two_layers_down():
    world = World()
    world.fails["x"] = ["no"]
    world.add(sup("one_for_one", "a", below("in", sup("one_for_one", "x"))))
    inner = ("shutdown", ("failed_to_start_child", "x", "no"))
    assert world.tops[world.top] == ("ended", ("shutdown", ("failed_to_start_child", "in", inner)))
    assert world.contexts() == [("start_error", "x", "no"), ("start_error", "in", inner)]


def test_a_start_has_its_time():
    """The process is killed, waited for, and the start has failed with "timeout"; in time, nothing happens."""
    world = World()
    world.held.add("a")
    world.add(sup("one_for_one", leaf("a", start_timeout=3 * S)))
    world.at(2.999)
    assert world.up() == [] and world.alive
    world.at(3)
    assert world.tops[world.top] == ("ended", ("shutdown", ("failed_to_start_child", "a", "timeout")))
    assert world.log[-2] == ("down", "a", "killed")
    other = World()
    other.add(sup("one_for_one", leaf("a", start_timeout=3 * S)))
    other.at(100)
    assert other.up() == ["a"] and other.tree.next_ns() is None


def test_a_restart_that_takes_too_long_is_tried_again():
    world = World()
    world.add(sup("one_for_one", leaf("a", start_timeout=3 * S), max_restarts=2, period=60 * S))
    world.held.add("a")
    world.exit("a")
    world.at(6)
    assert [report[0] for report in world.contexts()] == ["child_terminated", "start_error", "start_error", "shutdown"]
    assert world.contexts()[1][2] == "timeout" and world.tops[world.top] == ("ended", "shutdown")


def test_forgiven_time_moves_a_start():
    world = World()
    world.held.add("a")
    world.add(sup("one_for_one", leaf("a", start_timeout=3 * S)))
    world.tree.forgive(10 * S)
    world.at(12.999)
    assert world.alive
    world.at(13)
    assert not world.alive


@pytest.mark.parametrize("deep", [False, True])
def test_a_stop_interrupts_a_start(deep):
    """The starting child is killed; what was up is stopped in order. Also through a supervisor in the middle."""
    world = World()
    world.held.add("b")
    inner = sup("one_for_one", "a", "b", "c")
    world.add(sup("one_for_one", "z", below("in", inner)) if deep else inner)
    assert world.tops[world.top] == "starting"
    mark = len(world.log)
    world.stop("normal")
    assert world.since(mark) == (["-b", "-a", "-z"] if deep else ["-b", "-a"])
    assert world.tops[world.top] == ("ended", "normal")
    assert ("down", "b", "killed") in world.log


def test_a_parents_shutdown_interrupts_a_restart():
    world = World()
    world.add(sup("one_for_one", below("in", sup("one_for_all", "a", "b", max_restarts=9))))
    world.held.add("b")
    world.exit("a")
    assert world.ask("terminate_child", "in") is None
    assert not world.alive and world.shown() == {"in": None}


def test_a_stop_during_a_group_restart_starts_nothing_more():
    world = World()
    world.add(sup("one_for_all", "a", "b", "c"))
    world.ending["c"] = None
    world.exit("b")
    mark = len(world.log)
    world.stop("normal")
    world.exit("c", "shutdown")
    assert world.since(mark) == ["-c", "-a"] and world.tops[world.top] == ("ended", "normal")


def test_a_supervisor_whose_start_is_cut_short_has_its_time_to_end():
    """Its time to start is over then: only its shutdown time counts."""
    for shutdown, killed_at in ((5 * S, 5), ("infinity", None)):
        world = World()
        world.held.add("b")
        world.ending["a"] = None
        inner = sup("one_for_one", leaf("a", shutdown="infinity"), "b")
        world.add(sup("one_for_one", below("in", inner, shutdown=shutdown, start_timeout=3 * S)))
        world.stop()
        world.at(4.999)
        assert world.alive == {world.keys["a"]: "asked"}
        world.at(100)
        assert bool(world.alive) is (killed_at is None)
        if world.alive:
            world.exit("a", "shutdown")
        assert world.tops[world.top] == ("ended", "shutdown")


def test_a_parents_patience_with_a_supervisor_ends():
    world = World()
    inner = sup("one_for_one", leaf("a", shutdown="infinity"), leaf("b", shutdown="infinity"))
    world.add(sup("one_for_one", below("in", inner, shutdown=5 * S)))
    world.ending |= {"a": None, "b": None}
    token = world.send("terminate_child", "in")
    world.at(5)
    assert world.answers[token] == (True, None) and not world.alive
    assert world.contexts() == [("shutdown_error", "in", "killed")]


# ---------------------------------------------------------------------- the brutal kill


def three_layers(**options) -> World:
    world = World()
    low = sup("one_for_one", "x", "y")
    middle = sup("one_for_one", "m", below("low", low), below("pool", sup("dynamic")))
    world.add(sup(options.pop("strategy", "one_for_one"), "a", below("middle", middle, **options), "b"))
    world.ask("start_child", leaf("d"), key=world.tree.find((world.top, "middle", "pool")))
    return world


def test_a_killed_supervisor_takes_everything_below_down_at_once():
    """All kills in one go, no question asked, then the parent acts on "killed"."""
    world = three_layers()
    middle = world.tree.find((world.top, "middle"))
    world.tree.stop(middle, "killed", 0)
    effects = world.tree.take_effects()
    assert effects == [("kill", world.keys[id]) for id in ("d", "y", "x", "m")]
    for effect in effects[:3]:
        world.alive.pop(effect[1])
        world.tree.exited(effect[1], "killed", 0)
        assert not [e for e in world.tree.take_effects() if e[0] in ("start", "shutdown", "kill")]
    world.alive.pop(effects[3][1])
    world.tree.exited(effects[3][1], "killed", 0)
    world.run()
    assert world.up() == ["a", "b", "m", "x", "y"] and world.tree.find((world.top, "middle")) == middle
    assert world.contexts() == [("child_terminated", "middle", "killed")]


@pytest.mark.parametrize(("restart", "again"), [("permanent", True), ("transient", True), ("temporary", False)])
def test_the_parent_decides_about_a_killed_supervisor(restart, again):
    world = three_layers(restart=restart)
    world.stop("killed", key=world.tree.find((world.top, "middle")))
    assert ("x" in world.up()) is again and world.up()[:2] == ["a", "b"]


def test_the_parents_strategy_holds_for_a_killed_supervisor():
    world = three_layers(strategy="rest_for_one")
    mark = len(world.log)
    world.stop("killed", key=world.tree.find((world.top, "middle")))
    assert world.since(mark) == ["-d", "-y", "-x", "-m", "-b", "+m", "+x", "+y", "+b"]


def test_the_top_can_be_killed_while_it_ends_or_starts():
    world = three_layers()
    world.ending["b"] = None
    world.stop()
    world.stop("killed")
    assert world.tops[world.top] == ("ended", "killed") and not world.alive and not world.tree.owners
    other = World()
    other.held.add("b")
    other.add(sup("one_for_one", "a", "b"))
    token = other.send("delete_child", "a")
    other.stop("killed")
    assert other.tops[other.top] == ("ended", "killed") and not other.alive
    assert other.answers[token] == (False, ("noproc", None))


def test_brutal_kill_of_a_supervisor_by_its_parent():
    world = World()
    world.add(sup("one_for_one", below("in", sup("one_for_one", "x", "y"), shutdown="brutal_kill")))
    world.ending |= {"x": None, "y": None}
    assert world.ask("terminate_child", "in") is None
    assert world.contexts() == [] and not world.alive


def test_a_supervisor_that_is_stopped_by_hand_is_judged_by_its_restart():
    """stop("normal") of a transient supervisor in the middle is its end; a permanent one comes back."""
    for restart, left in (("transient", ["a", "b"]), ("permanent", ["a", "b", "m", "x", "y"])):
        world = three_layers(restart=restart)
        world.stop("normal", key=world.tree.find((world.top, "middle")))
        assert world.up() == left

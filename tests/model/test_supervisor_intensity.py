"""B1: how many restarts a period may hold, and what a supervisor that gives up leaves behind."""

from __future__ import annotations

import pytest
from supervisor_world import S, World, below, leaf, sup

from shmrt.decide.backoff import Backoff


def crashes(times: list[float], *, intensity: int, period: float, strategy: str = "one_for_one") -> World:
    world = World()
    world.add(sup(strategy, "a", "b", max_restarts=intensity, period=int(period * S)))
    for at in times:
        world.at(at)
        world.exit("a")
    return world


@pytest.mark.parametrize("strategy", ["one_for_one", "one_for_all", "rest_for_one"])
@pytest.mark.parametrize(
    ("times", "survives"),
    [([0, 1, 2], True), ([0, 1, 2, 3], False), ([0, 2, 4, 5], False), ([0, 2, 4, 6], True), ([0, 2, 4, 5.001], True)],
)
def test_the_vectors(strategy, times, survives):
    """Three in five seconds, the edge inside; the restart of a group is one restart."""
    world = crashes(times, intensity=3, period=5, strategy=strategy)
    assert world.tops[world.top] == ("up" if survives else ("ended", "shutdown"))
    assert world.up() == (["a", "b"] if survives else [])


def test_none_is_allowed_with_0():
    world = crashes([0], intensity=0, period=5)
    assert world.tops[world.top] == ("ended", "shutdown")
    assert world.since(0) == ["+a", "+b", "-a", "-b"]
    assert world.contexts() == [("child_terminated", "a", "crash"), ("shutdown", "a", "reached_max_restart_intensity")]
    assert (world.reports[-1]["used"], world.reports[-1]["limit"]) == (1, 0)


def test_one_a_second_is_survived_for_ever_every_2_1_seconds():
    world = crashes([2.1 * step for step in range(500)], intensity=1, period=1)
    assert world.up() == ["a", "b"]


def test_a_child_that_always_fails_to_start_is_tried_as_often_as_the_intensity_allows():
    """The check comes before the attempt: the crash of a child with intensity N costs at most N starts."""
    for intensity in range(4):
        world = World()
        world.add(sup("one_for_one", "a", max_restarts=intensity))
        world.fails["a"] = ["no"] * 100
        world.exit("a")
        assert world.since(0).count("+a") == 1 + intensity
        assert world.tops[world.top] == ("ended", "shutdown")
        kinds = [context for context, _, _ in world.contexts()]
        assert kinds == ["child_terminated"] + ["start_error"] * intensity + ["shutdown"]


def test_one_history_for_all_children():
    world = World()
    world.add(sup("one_for_one", "a", "b", "c", max_restarts=2))
    for id in "ab":
        world.exit(id)
    assert world.tops[world.top] == "up"
    world.exit("c")
    assert world.tops[world.top] == ("ended", "shutdown")


def test_what_people_start_does_not_count():
    world = World()
    world.add(sup("one_for_one", "a", max_restarts=1))
    for _ in range(20):
        assert world.ask("terminate_child", "a") is None
        assert world.ask("restart_child", "a") == world.keys["a"]
        world.ask("start_child", leaf("t", "temporary"))
        world.exit("t", "normal")
    world.exit("a")
    assert world.up() == ["a"]
    world.exit("a")
    assert world.tops[world.top] == ("ended", "shutdown")


def test_a_report_says_how_much_of_the_budget_is_used():
    world = World()
    world.add(sup("one_for_one", "a", leaf("t", "temporary"), max_restarts=2))
    for _ in range(3):
        world.exit("a")
    ends = [report for report in world.reports if report["context"] == "child_terminated"]
    assert [(report["used"], report["limit"]) for report in ends] == [(1, 2), (2, 2), (3, 2)]
    other = World()
    other.add(sup("one_for_one", leaf("t", "temporary")))
    other.exit("t")
    assert "used" not in other.reports[-1]


def test_escalation_through_three_layers():
    """Each layer gives up with "shutdown" and the next one decides; the top is out after 2 * 2 * 2 crashes."""
    world = World()
    low = sup("one_for_one", "a", max_restarts=1)
    middle = sup("one_for_one", below("low", low), "m", max_restarts=1)
    world.add(sup("one_for_all", below("middle", middle), "t", max_restarts=1))
    for crash in range(8):
        assert world.tops[world.top] == "up", crash
        assert world.up() == ["a", "m", "t"]
        world.exit("a")
    assert world.tops[world.top] == ("ended", "shutdown")
    assert not world.alive and not world.tree.owners and not world.tree.machines
    limits = [r["supervisor"] for r in world.reports if r["context"] == "shutdown"]
    low, middle, top = (1, "middle", "low"), (1, "middle"), (1,)
    assert limits == [low, low, middle, low, low, middle, top]
    ended = [r["reason"] for r in world.reports if r["context"] == "child_terminated" and r["offender"]["id"] == "low"]
    assert ended == ["shutdown"] * 4


def test_a_transient_supervisor_that_gave_up_is_not_started_again():
    world = World()
    world.add(sup("one_for_one", below("low", sup("one_for_one", "a", max_restarts=0), "transient"), "b"))
    world.exit("a")
    assert world.up() == ["b"] and world.shown() == {"b": world.keys["b"], "low": None}
    assert world.ask("restart_child", "low") is not None
    assert world.up() == ["a", "b"]


def waiting() -> World:
    world = World()
    world.add(
        sup(
            "one_for_one",
            "a",
            "b",
            max_restarts=9,
            backoff=Backoff(free=1, first_ns=1 * S, cap_ns=4 * S),
            period=60 * S,
        )
    )
    return world


def test_backoff_waits_longer_each_time_and_holds_up_nobody():
    world = waiting()
    world.exit("a")
    assert world.up() == ["a", "b"], "the first is free"
    for at, wait in [(0, 1), (1, 2), (3, 4), (7, 4)]:
        world.exit("a")
        assert world.tree.next_ns() == (at + wait) * S
        assert world.shown()["a"] == "restarting" and world.up() == ["b"]
        world.exit("b")
        assert world.up() == (["b"] if at == 0 else []), "each child has a row of its own"
        world.at(at + wait)
        assert "a" in world.up()


def test_backoff_begins_anew_after_a_stable_time():
    for lived, wait in [(4, 2), (4.001, 0)]:
        world = waiting()
        world.exit("a")
        world.exit("a")
        world.at(1)
        world.at(1 + lived)
        world.exit("a")
        due = world.tree.next_ns()
        assert (due is None) if wait == 0 else (due == world.now + wait * S)


def test_terminate_child_cancels_the_wait():
    world = waiting()
    world.exit("a")
    world.exit("a")
    assert world.ask("terminate_child", "a") is None
    assert world.tree.next_ns() is None and world.shown()["a"] is None
    assert world.log[-1] == ("lost", "a", "crash")
    assert world.ask("restart_child", "a") == world.keys["a"]


def test_a_stop_during_the_wait_ends_at_once():
    world = waiting()
    world.exit("a")
    world.exit("a")
    world.stop()
    assert world.tops[world.top] == ("ended", "shutdown") and world.tree.next_ns() is None


def test_starts_that_fail_wait_too_and_count_when_they_are_made():
    world = waiting()
    world.fails["a"] = ["no"] * 20
    world.exit("a")
    waits = []
    while (due := world.tree.next_ns()) is not None:
        waits.append((due - world.now) // S)
        world.at(due / S)
    assert waits == [1, 2, 4, 4, 4, 4, 4, 4, 4]
    assert world.since(0).count("+a") == 10 and world.tops[world.top] == ("ended", "shutdown")


def test_jitter_takes_off_up_to_half():
    world = World(numbers=lambda: 0.0)
    world.add(sup("one_for_one", "a", backoff=Backoff(free=0, first_ns=8 * S, cap_ns=8 * S)))
    world.exit("a")
    assert world.tree.next_ns() == 4 * S


def test_forgiven_time_moves_the_wait():
    world = waiting()
    world.exit("a")
    world.exit("a")
    world.tree.forgive(100 * S)
    assert world.tree.next_ns() == 101 * S

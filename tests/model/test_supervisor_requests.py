"""B4: what may be asked of a static supervisor, cell by cell; and lookups in the tree."""

from __future__ import annotations

import marshal

import pytest
from supervisor_world import World, below, leaf, sup

from shmrt.decide.backoff import Backoff
from shmrt.decide.specs import ChildSpec, SupervisorSpec
from shmrt.decide.tree import Tree

STATES = ["unknown", "running", "restarting", "stopped"]


def in_state(state: str, restart: str = "permanent") -> World:
    """A supervisor with b, whose child a is in that state. "Restarting" lasts: the retry waits for a backoff."""
    world = World()
    backoff = Backoff(free=0, first_ns=1000, cap_ns=1000)
    world.add(sup("one_for_one", "b", backoff=backoff))
    if state != "unknown":
        assert world.ask("start_child", leaf("a", restart)) == world.keys["a"]
    if state == "restarting":
        world.exit("a")
    if state == "stopped":
        assert world.ask("terminate_child", "a") is None
    return world


def shown(world: World) -> object:
    return {None: "stopped", "restarting": "restarting", "none": "unknown"}.get(
        world.shown().get("a", "none"), "running"
    )


@pytest.mark.parametrize("state", STATES)
def test_start_child(state):
    world = in_state(state)
    answer = world.ask("start_child", leaf("a"))
    key = world.keys.get("a")
    expected = {"unknown": key, "running": [("already_started", key)]}
    assert answer == expected.get(state, [("already_present", None)])
    assert shown(world) == {"unknown": "running"}.get(state, state)


@pytest.mark.parametrize("restart", ["permanent", "transient", "temporary"])
@pytest.mark.parametrize("state", STATES)
def test_terminate_child(state, restart):
    if restart == "temporary" and state in ("restarting", "stopped"):
        restart = "transient"  # a temporary child is in neither
    world = in_state(state, restart)
    answer = world.ask("terminate_child", "a")
    assert answer == ([("not_found", None)] if state == "unknown" else None)
    assert shown(world) == ("unknown" if state == "unknown" or restart == "temporary" else "stopped")
    assert world.tree.next_ns() is None, "no retry is left"


@pytest.mark.parametrize("state", STATES)
def test_restart_child(state):
    world = in_state(state)
    answer = world.ask("restart_child", "a")
    expected = {"unknown": [("not_found", None)], "stopped": world.keys.get("a")}
    assert answer == expected.get(state, [(state, None)])
    assert shown(world) == {"stopped": "running"}.get(state, state)


@pytest.mark.parametrize("state", STATES)
def test_delete_child(state):
    world = in_state(state)
    answer = world.ask("delete_child", "a")
    expected = {"unknown": [("not_found", None)], "stopped": None}
    assert answer == expected.get(state, [(state, None)])
    assert shown(world) == {"stopped": "unknown"}.get(state, state)


def test_a_start_that_fails_by_hand_is_answered_and_not_reported():
    world = in_state("stopped")
    for verb, what, left in (("restart_child", "a", "stopped"), ("start_child", leaf("n"), "stopped")):
        world.fails = {"a": ["no"], "n": [("exit", 3)]}
        answer = world.ask(verb, what)
        assert answer == [("start_error", "no" if verb == "restart_child" else ("exit", 3))]
        assert shown(world) == left
        if verb == "restart_child":
            assert world.log[-1] == ("lost", "a", "no"), "whoever waits for it is told again"
    assert world.contexts() == [] and "n" not in world.shown()
    assert world.log[-1] == ("forgotten", "n")


def test_a_child_that_chooses_to_be_ignored_stays_as_a_specification():
    world = in_state("unknown")
    world.fails = {"a": ["ignore"], "t": ["ignore"]}
    assert world.ask("start_child", leaf("a")) is None
    assert world.ask("start_child", leaf("t", "temporary")) is None
    assert world.shown() == {"b": world.keys["b"], "a": None}
    assert world.ask("restart_child", "a") == world.keys["a"]


def test_a_restart_that_chooses_to_be_ignored_is_the_end():
    world = World()
    world.add(sup("one_for_one", "a"))
    world.fails["a"] = ["ignore"]
    world.exit("a")
    assert world.shown() == {"a": None} and world.log[-1] == ("lost", "a", "ignore")


def test_questions():
    world = World()
    inner = below("in", sup("one_for_one", "x"), "transient")
    world.add(sup("one_for_one", "a", leaf("b", "temporary"), inner))
    world.ask("terminate_child", "a")
    keys = world.keys | {"in": world.tree.find((world.top, "in"))}
    assert world.ask("which_children") == [
        ("in", keys["in"], "supervisor", "transient"),
        ("b", keys["b"], "worker", "temporary"),
        ("a", None, "worker", "permanent"),
    ]
    assert world.ask("count_children") == (3, 2, 1, 2)
    assert world.ask("which_child", "b") == ("b", keys["b"], "worker", "temporary")
    assert world.ask("get_childspec", "b").restart == "temporary"
    for verb in ("which_child", "get_childspec"):
        assert world.ask(verb, "nobody") == [("not_found", None)]


def test_questions_are_answered_while_the_supervisor_is_busy():
    world = World()
    world.held = {"b"}
    world.add(sup("one_for_one", "a", "b", "c"))
    assert world.ask("which_children") == [("c", None, "worker", "permanent"), ("b", None, "worker", "permanent"),
                                           ("a", world.keys["a"], "worker", "permanent")]  # fmt: skip
    assert world.ask("count_children") == (3, 1, 0, 3)
    token = world.send("terminate_child", "a")
    assert token not in world.answers, "what changes something waits"
    world.ready("b")
    assert world.answers[token] == (True, None) and world.up() == ["b", "c"]


def test_requests_are_served_in_order():
    world = World()
    world.held = {"n"}
    world.add(sup("one_for_one", "a"))
    tokens = [
        world.send("start_child", leaf("n")),
        world.send("start_child", leaf("n")),
        world.send("terminate_child", "n"),
        world.send("delete_child", "n"),
        world.send("delete_child", "n"),
    ]
    world.ready("n")
    key = world.keys["n"]
    assert [world.answers[token] for token in tokens] == [
        (True, key), (False, ("already_started", key)), (True, None), (True, None), (False, ("not_found", None))
    ]  # fmt: skip


def test_a_significant_child_must_fit():
    """OTP's bad_combination, before anything else is looked at."""
    world = World()
    world.add(sup("one_for_one", "a"))
    code = [("bad_combination", (("auto_shutdown", "never"), ("significant", True)))]
    assert world.ask("start_child", leaf("a", "temporary", significant=True)) == code
    other = World()
    other.add(sup("dynamic", auto_shutdown="any_significant"))
    code = [("bad_combination", (("restart", "permanent"), ("significant", True)))]
    assert other.ask("start_child", leaf("a", significant=True)) == code


def test_nonsense_is_answered():
    world = World()
    world.add(sup("one_for_one", "a"))
    assert world.ask("fly", "a") == [("unknown_verb", "fly")]
    bad = [("start_child", "a"), ("start_child",), ("terminate_child", ["a"]), ("which_children", 1), ("which_child",)]
    for verb, *args in bad:
        assert world.ask(verb, *args) == [("bad_arguments", verb)]
    assert world.ask("which_children", key=77) == [("noproc", None)]
    assert world.ask("which_children", key=world.keys["a"]) == [("noproc", None)]
    assert not world.tree.stop(77, "shutdown", 0)


def test_lookups():
    world = World()
    world.add(sup("one_for_one", below("in", sup("one_for_one", "x"))))
    tree, top, x = world.tree, world.top, world.keys["x"]
    inner = tree.parent_of(x)
    assert tree.parent_of(inner) == top and tree.parent_of(top) is None and tree.parent_of(99) is None
    assert tree.child_spec(x).id == "x" and tree.child_spec(top) is None
    assert [tree.is_supervisor(key) for key in (top, inner, x, 99)] == [True, True, False, False]
    named = world.tree.add_top(SupervisorSpec(name="main", children=(ChildSpec("a", data="a"),)), 0)
    paths = [(top,), (top, "in"), (top, "in", "x"), ("main",), ("main", "a")]
    assert [tree.find(path) for path in paths] == [top, inner, x, named, tree.find(("main", "a"))]
    nowhere = [(), ("nobody",), (top, "y"), (top, "in", "x", "z"), (top, "in", "y")]
    assert [tree.find(path) for path in nowhere] == [None] * 5


def test_describe():
    world = World()
    world.add(sup("one_for_all", "a", below("in", sup("dynamic")), name="main", max_restarts=5))
    world.exit("a", ("exit", 3))
    seen = world.tree.describe()["supervisors"][0]
    assert (seen["path"], seen["strategy"], seen["state"], seen["restarts"]) == (("main",), "one_for_all", "running", 1)
    assert (seen["used"], seen["limit"]) == (1, 5)
    assert world.tree.describe(world.top, 60 * 10**9)["used"] == 0
    a, inner = seen["children"]
    assert (a["id"], a["state"], a["reason"], a["restarts"]) == ("a", "up", ("exit", 3), 1)
    assert inner["supervisor"]["strategy"] == "dynamic" and inner["supervisor"]["path"] == ("main", "in")
    assert world.tree.describe(a["key"]) == a and world.tree.describe(99) == {}


def test_specifications_travel_as_plain_data():
    spec = sup(
        "rest_for_one",
        leaf("a", "transient", significant=True, shutdown="brutal_kill", start_timeout=7),
        below("in", sup("dynamic", max_children=3), shutdown=9),
        auto_shutdown="any_significant", backoff=Backoff(free=1, first_ns=2, cap_ns=3), name="n", period=4,
    )  # fmt: skip
    plain = spec.to_plain()
    again = SupervisorSpec.from_plain(marshal.loads(marshal.dumps(plain)))
    assert again.to_plain() == plain
    assert again.children[0].start_timeout == 7 and again.children[1].supervisor.max_children == 3
    assert again.backoff.cap_ns == 3 and again.name == "n"


def test_several_trees_do_not_touch_each_other():
    tree = Tree(lambda: 0.0)
    one = tree.add_top(SupervisorSpec(), 0)
    two = tree.add_top(SupervisorSpec("dynamic"), 0)
    tree.stop(one, "normal", 0)
    assert tree.take_effects() == [("top_started", one), ("top_started", two), ("top_ended", one, "normal")]
    assert tree.tops == [two]


def test_a_child_whose_end_is_not_yet_handled_still_runs():
    """The request came before the end: as for OTP, the child is there."""
    world = World()
    world.add(sup("one_for_one", "a", "b"))
    world.held = {"a"}
    world.exit("a")
    tokens = [world.send(verb, what) for verb, what in (("start_child", leaf("b")), ("restart_child", "b"))]
    key = world.keys["b"]
    world.exit("b")
    assert world.shown()["b"] == key
    world.ready("a")
    codes = [world.answers[token][1] for token in tokens]
    assert codes == [("already_started", key), ("running", None)] and world.up() == ["a", "b"]


def test_the_cancelled_restart_of_one_says_nothing_of_another():
    world = World()
    world.add(sup("one_for_one", "a", "b", backoff=Backoff(free=0, first_ns=1000, cap_ns=1000)))
    world.exit("a")
    world.exit("b")
    assert world.ask("terminate_child", "a") is None
    assert [entry[1] for entry in world.log if entry[0] == "lost"] == ["a"]
    assert world.shown() == {"a": None, "b": "restarting"}

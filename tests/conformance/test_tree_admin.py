"""What may be asked of a supervisor in which state of a child, cell by cell, and which descriptions are refused
(B4)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import tree_kit
from tree_kit import alive, kill, until

from shmrt import (
    AlreadyStarted,
    Child,
    ChildStateError,
    DynamicSupervisor,
    NotFound,
    PartitionSupervisor,
    Runtime,
    RuntimeDown,
    ServerDown,
    SpecError,
    Supervisor,
)
from shmrt.handles import ProcessRef, SupervisorRef

STATES = ("unknown", "running", "restarting", "stopped")


def bring(supervisor: Any, state: str, restart: str = "permanent") -> Any:
    """A child "x" in this state; its reference."""
    if state == "unknown":
        return None
    ref = supervisor.start_child(Child(tree_kit.idle, id="x", restart=restart))
    if state == "restarting":
        kill(ref.pid)
        until(lambda: supervisor.which_child("x")[1] == "restarting")
    elif state == "stopped":
        supervisor.terminate_child("x")
    return ref


def state_of(supervisor: Any) -> str:
    try:
        shown = supervisor.which_child("x")[1]
    except NotFound:
        return "unknown"
    return "stopped" if shown is None else "restarting" if shown == "restarting" else "running"


def outcome(call: Callable[[], Any]) -> str:
    """In the words of the table."""
    try:
        value = call()
    except AlreadyStarted as error:
        assert isinstance(error.ref, ProcessRef) and alive(error.ref.pid)
        return "already_started"
    except ChildStateError as error:
        return error.state
    except NotFound:
        return "not_found"
    return "ok" if value is None else "started"


TABLE = {
    # state: {verb: (outcome, state after it)}
    "unknown": {
        "start_child": ("started", "running"),
        "terminate_child": ("not_found", "unknown"),
        "restart_child": ("not_found", "unknown"),
        "delete_child": ("not_found", "unknown"),
    },
    "running": {
        "start_child": ("already_started", "running"),
        "terminate_child": ("ok", "stopped"),
        "restart_child": ("running", "running"),
        "delete_child": ("running", "running"),
    },
    "restarting": {
        "start_child": ("already_present", "restarting"),
        "terminate_child": ("ok", "stopped"),
        "restart_child": ("restarting", "restarting"),
        "delete_child": ("restarting", "restarting"),
    },
    "stopped": {
        "start_child": ("already_present", "stopped"),
        "terminate_child": ("ok", "stopped"),
        "restart_child": ("started", "running"),
        "delete_child": ("ok", "unknown"),
    },
}


@pytest.mark.parametrize("state", STATES)
def test_the_table_of_a_childs_states(state: str) -> None:
    """B4. Every request in every state of a child: what it answers and what becomes of the child."""
    for verb, (answer, after) in TABLE[state].items():
        with Runtime(Supervisor([], backoff={"base": 1000.0, "max": 1000.0})) as runtime:
            supervisor = runtime.supervisor()
            bring(supervisor, state)
            argument = Child(tree_kit.idle, id="x") if verb == "start_child" else "x"
            assert outcome(partial(getattr(supervisor, verb), argument)) == answer, (state, verb)
            assert state_of(supervisor) == after, (state, verb)
            active = {"running": 1}.get(after, 0)
            assert supervisor.count_children()[:2] == (int(after != "unknown"), active)


@pytest.mark.parametrize("state", ["running", "restarting"])
def test_a_temporary_child_that_is_terminated_is_forgotten(state: str) -> None:
    """B4. For a temporary child stopped is unknown; it is never restarting."""
    with Runtime(Supervisor([], backoff={"base": 1000.0, "max": 1000.0})) as runtime:
        supervisor = runtime.supervisor()
        ref = supervisor.start_child(Child(tree_kit.idle, id="x", restart="temporary"))
        if state == "running":
            supervisor.terminate_child("x")
        else:
            kill(ref.pid)
            until(lambda: state_of(supervisor) == "unknown")
        assert state_of(supervisor) == "unknown"
        assert ref.pid is None
        with pytest.raises(ServerDown):
            ref.stop()


def test_a_stopped_supervisor_child_can_be_restarted_and_deleted() -> None:
    """B4. The same requests for a child that is a supervisor; its own children come and go with it."""
    inner = Supervisor([Child(tree_kit.idle, id="leaf")], name="inner")
    with Runtime(Supervisor([Child(inner, id="x")])) as runtime:
        supervisor = runtime.supervisor()
        assert supervisor.which_child("x")[1:] == (runtime.supervisor("inner"), "supervisor", "permanent")
        leaf = runtime.supervisor("inner").which_child("leaf")[1]
        with pytest.raises(ChildStateError) as caught:
            supervisor.delete_child("x")
        assert caught.value.state == "running"
        supervisor.terminate_child("x")
        assert not alive(leaf) and supervisor.count_children() == (1, 0, 1, 0)
        with pytest.raises(NotFound):
            runtime.supervisor("inner")
        with pytest.raises(ServerDown):
            supervisor.child("x").which_children()
        ref = supervisor.restart_child("x")
        assert isinstance(ref, SupervisorRef) and alive(ref.which_child("leaf")[1])
        supervisor.terminate_child("x")
        supervisor.delete_child("x")
        assert supervisor.which_children() == []


def test_get_childspec_gives_the_description_back() -> None:
    """B4. What a child was started with, as a Child that starts the same again."""
    child = Child(
        tree_kit.idle, 1, "two", id=("a", 1), restart="transient", shutdown=2.5, kwargs={}, start_timeout=30.0
    )
    with Runtime(Supervisor([child])) as runtime:
        supervisor = runtime.supervisor()
        found = supervisor.get_childspec(("a", 1))
        for name in ("start", "args", "kwargs", "id", "restart", "shutdown", "type", "significant", "start_timeout"):
            assert getattr(found, name) == getattr(child, name), name
        supervisor.terminate_child(("a", 1))
        supervisor.delete_child(("a", 1))
        assert supervisor.start_child(found).pid
        with pytest.raises(NotFound):
            supervisor.get_childspec("b")


def test_ids_of_many_kinds() -> None:
    """B4. An id is anything hashable: equal ids name the same child, in every verb, also from their pickles."""
    ids: list[Any] = ["text", 7, ("a", 1), frozenset({1, 2}), tree_kit.Oops, ("a", ("b", frozenset({3})))]
    with Runtime(Supervisor([Child(tree_kit.idle, id=id) for id in ids])) as runtime:
        supervisor = runtime.supervisor()
        assert [row[0] for row in supervisor.which_children()] == list(reversed(ids))
        for id in ids:
            assert supervisor.which_child(id)[0] == id
            supervisor.terminate_child(id)
            supervisor.delete_child(id)
        assert supervisor.which_children() == []


# ---- dynamic
# -----------------------------------------------------------------------------------------------------------
def test_a_dynamic_supervisor_has_no_stopped_children() -> None:
    """B4. terminate_child forgets; restart_child and delete_child are refused as OTP refuses them."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        ref = supervisor.start_child(tree_kit.idle)
        for verb in (supervisor.restart_child, supervisor.delete_child):
            with pytest.raises(ChildStateError) as caught:
                verb(ref)
            assert caught.value.state == "dynamic"
        supervisor.terminate_child(ref)
        for verb in (supervisor.terminate_child, supervisor.which_child, supervisor.get_childspec):
            with pytest.raises(NotFound):
                verb(ref)
        assert supervisor.count_children() == (0, 0, 0, 0)


def test_terminate_by_reference_and_by_pid() -> None:
    """B4. Children of a dynamic supervisor may share an id; reference and pid tell them apart."""
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        refs = [supervisor.start_child(tree_kit.idle) for _ in range(4)]
        pids = [ref.pid for ref in refs]
        supervisor.terminate_child(refs[1])
        supervisor.terminate_child(pids[2])
        assert [alive(pid) for pid in pids] == [True, False, False, True]
        assert sorted(row[1] for row in supervisor.which_children()) == sorted([pids[0], pids[3]])
        for gone in (refs[1], pids[2], 1):
            with pytest.raises(NotFound):
                supervisor.terminate_child(gone)


# ---- what is refused
# ---------------------------------------------------------------------------------------------------
def child(**options: Any) -> Callable[[], Any]:
    return lambda: Child(tree_kit.idle, **options)


def supervisor_of(*children: Any, **options: Any) -> Callable[[], Any]:
    return lambda: Supervisor([make() if callable(make) else make for make in children], **options)


REFUSED: list[tuple[str, Callable[[], Any]]] = [
    ("invalid_restart_type", child(restart="always")),
    ("invalid_restart_type", child(restart=None)),
    ("invalid_shutdown", child(shutdown=-1)),
    ("invalid_shutdown", child(shutdown="soon")),
    ("invalid_shutdown", child(shutdown=float("nan"))),
    ("invalid_shutdown", child(shutdown=True)),
    ("invalid_shutdown", child(shutdown=[])),
    ("invalid_child_type", child(type="thread")),
    ("invalid_significant", child(significant=1)),
    ("invalid_significant", child(significant="yes")),
    ("bad_combination", child(significant=True)),
    ("invalid_mfa", lambda: Child(7)),
    ("invalid_mfa", lambda: Child("print")),
    ("invalid_mfa", lambda: Child(None)),
    ("invalid_mfa", lambda: Child(Supervisor)),
    ("invalid_mfa", lambda: Child(Supervisor([]), 1)),
    ("invalid_child_id", child(id=[])),
    ("invalid_mailbox", child(mailbox=7)),
    ("invalid_start_timeout", child(start_timeout=-1)),
    ("invalid_start_timeout", child(start_timeout="1")),
    ("invalid_strategy", supervisor_of(strategy="one_for_two")),
    ("invalid_strategy", supervisor_of(strategy="simple_one_for_one")),
    ("invalid_auto_shutdown", supervisor_of(auto_shutdown=True)),
    ("invalid_intensity", supervisor_of(max_restarts=-1)),
    ("invalid_intensity", supervisor_of(max_restarts=1.5)),
    ("invalid_intensity", supervisor_of(max_restarts="3")),
    ("invalid_period", supervisor_of(max_seconds=0)),
    ("invalid_period", supervisor_of(max_seconds=-1)),
    ("invalid_period", supervisor_of(max_seconds=float("nan"))),
    ("invalid_backoff", supervisor_of(backoff=-1)),
    ("invalid_backoff", supervisor_of(backoff={"base": 2, "max": 1})),
    ("invalid_backoff", supervisor_of(backoff={"bass": 2})),
    ("invalid_backoff", supervisor_of(backoff={"jitter": 2})),
    ("invalid_child_spec", supervisor_of(7)),
    ("duplicate_child_name", supervisor_of(child(id="a"), child(id="a"))),
    ("duplicate_child_name", supervisor_of(child(), child())),
    ("bad_combination", supervisor_of(child(significant=True, restart="transient"))),
    ("bad_combination", supervisor_of(child(significant=True, restart="temporary"), auto_shutdown="never")),
    ("bad_combination", lambda: PartitionSupervisor(Child(tree_kit.idle, significant=True, restart="transient"))),
    ("invalid_intensity", lambda: DynamicSupervisor(max_restarts=-1)),
    ("invalid_period", lambda: DynamicSupervisor(max_seconds=0)),
]


@pytest.mark.parametrize(("problem", "make"), REFUSED)
def test_wrong_descriptions_are_refused_at_once(problem: str, make: Callable[[], Any]) -> None:
    """B4. Whatever contradicts itself is a SpecError, a ValueError, with OTP's code, where it is written."""
    with pytest.raises(SpecError) as caught:
        make()
    assert caught.value.problem == problem
    assert isinstance(caught.value, ValueError) and str(caught.value)


@pytest.mark.parametrize("tree", [Supervisor([]), DynamicSupervisor()])
def test_a_significant_child_where_nothing_would_come_of_it(tree: Any) -> None:
    """B4. start_child of a significant child under auto_shutdown "never" is SpecError("bad_combination"), too."""
    with Runtime(tree) as runtime:
        with pytest.raises(SpecError) as caught:
            runtime.supervisor().start_child(Child(tree_kit.idle, restart="transient", significant=True))
        assert caught.value.problem == "bad_combination"
        assert runtime.supervisor().count_children().specs == 0


def test_start_child_takes_a_child_or_what_it_is_made_of() -> None:
    """B4. Not both: arguments beside a Child are a TypeError, wrong options a SpecError, here and now."""
    with Runtime(Supervisor([])) as runtime:
        supervisor = runtime.supervisor()
        with pytest.raises(TypeError):
            supervisor.start_child(Child(tree_kit.idle), 1)
        with pytest.raises(SpecError):
            supervisor.start_child(tree_kit.idle, restart="often")
        assert isinstance(supervisor.start_child(tree_kit.idle, 1, id="a"), ProcessRef)
        assert supervisor.get_childspec("a").args == (1,)


def test_names_of_supervisors() -> None:
    """B4. runtime.supervisor finds by name, NotFound else; a second tree of the same name is AlreadyStarted."""
    with Runtime(Supervisor([Child(DynamicSupervisor(name="inner"))], name="top")) as runtime:
        assert runtime.supervisor() == runtime.supervisor("top")
        assert runtime.supervisor("inner") == runtime.supervisor().child("inner")
        with pytest.raises(NotFound, match="nobody"):
            runtime.supervisor("nobody")
        with pytest.raises(AlreadyStarted) as caught:
            Supervisor([], name="top").start(runtime)
        assert caught.value.ref == runtime.supervisor()
    with pytest.raises(RuntimeDown):
        runtime.supervisor("top")
    with Runtime() as plain, pytest.raises(NotFound):
        plain.supervisor()

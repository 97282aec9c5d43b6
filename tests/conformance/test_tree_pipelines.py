"""Pipelines and pools as children of a tree: opened, watched and closed by the supervisor's decisions."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from tree_kit import PATIENCE_S, Journal, until

from shmrt import Child, Pipeline, Pool, Runtime, SpecError, Supervisor, TaskSupervisor, monitor, whereis


def note(journal: Journal, item: int) -> int:
    journal.note("item", item)
    return item


def fail_at_three(item: int) -> int:
    if item == 3:
        raise LookupError("three")
    return item


def double(x: int) -> int:
    return 2 * x


def ask_the_pool(name: str, count: int) -> list[int]:
    pool = whereis(name)
    return [pool.submit(double, n).result(PATIENCE_S) for n in range(count)]


def refuse() -> None:
    raise OSError("no worker starts here")


def noting(journal: Journal, source: Any) -> Pipeline:
    return Pipeline("noting").map(lambda item: note(journal, item), workers=1).source(source)


def test_a_pipeline_runs_to_its_end(tmp_path: Path) -> None:
    """Its normal end is "normal": a transient child is not run again."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(noting(journal, range(5)), id="pipe", restart="transient")])) as runtime:
        supervisor = runtime.supervisor()
        until(lambda: supervisor.which_child("pipe")[1] is None)
        assert sorted(journal.lines("item")) == [f"item {n}" for n in range(5)]
        assert not [event for event in runtime.events() if event["context"] == "child_terminated"]


def test_a_permanent_pipeline_is_run_again(tmp_path: Path) -> None:
    """A source that is a callable gives each run its own items."""
    journal = Journal(tmp_path / "journal")
    pipe = noting(journal, lambda: iter([1, 2]))
    with Runtime(Supervisor([Child(pipe, id="pipe")], max_restarts=1000)):
        journal.wait("item 2", count=3)


def test_a_pipeline_that_fails_is_a_crash(tmp_path: Path) -> None:
    """Its exception is the exit reason, and costs restarts."""
    pipe = Pipeline("bad").map(fail_at_three).source(lambda: range(10))
    with Runtime(
        Supervisor([Child(pipe, id="pipe", restart="transient")], max_restarts=2, max_seconds=1000)
    ) as runtime:
        assert runtime.wait(PATIENCE_S) == "shutdown"
        crashes = [event for event in runtime.events() if event["context"] == "child_terminated"]
        assert len(crashes) == 3 and {event["reason"][:2] for event in crashes} == {("error", "LookupError")}


def test_an_endless_pipeline_is_closed_with_its_tree(tmp_path: Path) -> None:
    """And by terminate_child, after which it can be started again."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(noting(journal, lambda: itertools.count()), id="pipe")])) as runtime:
        supervisor = runtime.supervisor()
        journal.wait("item 5")
        supervisor.terminate_child("pipe")
        assert supervisor.which_child("pipe")[1] is None
        journal.clear()
        supervisor.restart_child("pipe")
        journal.wait("item 5")


def test_a_pool_is_found_everywhere() -> None:
    """In the program `whereis` is the pool itself, in a worker a reference that submits to it."""
    tree = Supervisor([Child(Pool, 2, name="work"), Child(TaskSupervisor(name="tasks"))])
    with Runtime(tree) as runtime:
        pool = whereis("work")
        assert isinstance(pool, Pool) and pool.submit(double, 4).result(PATIENCE_S) == 8
        tasks = runtime.supervisor("tasks")
        assert TaskSupervisor(name="tasks").async_(ask_the_pool, "work", 20).result(PATIENCE_S) == [
            2 * n for n in range(20)
        ]
        until(lambda: tasks.count_children().specs == 0)
        rows = runtime.supervisor().which_children()
        assert [(id, type) for id, _, type, _ in rows] == [("tasks", "supervisor"), ("work", "supervisor")]


def test_what_a_pool_accepted_is_done_before_it_is_closed(tmp_path: Path) -> None:
    """terminate_child of a pool, whose shutdown is "infinity" unless it says otherwise."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(Pool, 1, name="work")])) as runtime:
        futures = [whereis("work").submit(note, journal, n) for n in range(20)]
        runtime.supervisor().terminate_child("work")
        assert [future.result(0) for future in futures] == list(range(20))
        assert whereis("work") is None


def test_a_pool_that_breaks_is_restarted_by_its_supervisor() -> None:
    """PoolBroken is an exit; here every start fails, so the supervisor gives up in the end."""
    child = Child(Pool, 1, name="work", kwargs={"initializer": refuse})
    from shmrt import StartError

    with pytest.raises(StartError, match="work") as failed:
        Runtime(Supervisor([child])).start()
    assert failed.value.child == "work"


def test_the_workers_deaths_are_the_pools_affair() -> None:
    """They never count against the supervisor above it."""
    import os

    with Runtime(Supervisor([Child(Pool, 1, name="work")], max_restarts=0)) as runtime:
        pool = whereis("work")
        for _ in range(5):
            assert isinstance(pool.submit(os.abort).exception(PATIENCE_S), RuntimeError)
        assert pool.submit(double, 1).result(PATIENCE_S) == 2
        assert runtime.supervisor().which_child("work")[1] is not None


def test_a_pool_that_its_user_shut_down_is_opened_again() -> None:
    """That is a normal exit of a permanent child."""
    with Runtime(Supervisor([Child(Pool, 1, name="work")])) as runtime:
        first = whereis("work")
        with monitor(runtime.supervisor().child("work")) as watch:
            first.shutdown()
            down = watch.wait(PATIENCE_S)
        assert down is not None and down.reason == "normal"
        again = until(lambda: (found := whereis("work")) is not None and found is not first and found)
        assert again.submit(double, 3).result(PATIENCE_S) == 6


def test_an_open_pool_is_no_description() -> None:
    """SpecError says how to write it."""
    with Pool(1) as pool, pytest.raises(SpecError, match=r"Child\(Pool"):
        Child(pool)


@pytest.mark.parametrize(
    ("describe", "message"),
    [
        (lambda: Child(Pipeline("empty").map(double)), "has no source"),
        (lambda: Child(Pool, 2, worker=3), "unexpected keyword|got an unexpected"),
        (lambda: Child(Pool, kwargs={"workers": 2}), "unexpected keyword"),
    ],
)
def test_what_could_not_be_opened_is_refused_where_it_is_described(describe: Any, message: str) -> None:
    """SpecError or TypeError in the caller, not a failed start later."""
    with pytest.raises((SpecError, TypeError), match=message):
        describe()

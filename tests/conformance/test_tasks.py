"""Tasks: one supervised process for each call of a function (Elixir's Task.Supervisor), with real processes and
deaths."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tree_kit import PATIENCE_S, Journal, alive, until, wait_for_ever

from shmrt import (
    Child,
    ChildStateError,
    DynamicSupervisor,
    Runtime,
    ServerDown,
    Supervisor,
    TaskSupervisor,
    TaskTimeout,
    monitor,
    runtime,
)


def square(x: int) -> int:
    return x * x


def die(how: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), how)


def fail() -> None:
    raise KeyError("gone")


def by_number(x: int) -> Any:
    """0 fine, 1 killed, 2 raises, 3 never ends."""
    return [lambda: "fine", die, fail, wait_for_ever][x]()


def hold(journal: Journal, name: str) -> str:
    journal.note("begun", name)
    while f"go {name}" not in journal.lines():
        time.sleep(0.001)
    return name


def own_a_task(journal: Journal, linked: bool) -> None:
    """Starts a task from a child, tells its pid, and waits to be killed."""
    tasks = TaskSupervisor(name="tasks")
    task = (tasks.async_ if linked else tasks.async_nolink)(hold, journal, "inner")
    journal.note("pid", task.pid)
    wait_for_ever()


def suffer(journal: Journal) -> None:
    """A child with a linked task that fails."""
    TaskSupervisor(name="tasks").async_(fail)
    journal.note("linked")
    wait_for_ever()


@pytest.fixture
def tasks() -> Any:
    with Runtime(), TaskSupervisor(name="tasks") as supervisor:
        yield supervisor


def test_a_task_gives_what_its_function_returns(tasks: TaskSupervisor) -> None:
    """async, nolink: result, yield_ and the interface of a future."""
    task = tasks.async_(square, 7)
    assert task.result(PATIENCE_S) == 49 and task.done() and task.exception() is None
    assert tasks.async_nolink(square, 3).yield_(PATIENCE_S) == ("ok", 9)
    assert until(lambda: tasks.count_children() == (0, 0, 0, 0)), "a task that is over is forgotten"


def test_how_tasks_fail(tasks: TaskSupervisor) -> None:
    """An exception arrives as itself, a death as ServerDown with its reason; yield_ shows the exit reason."""
    with pytest.raises(KeyError, match="gone"):
        tasks.async_(fail).result(PATIENCE_S)
    with pytest.raises(ServerDown) as down:
        tasks.async_nolink(die).result(PATIENCE_S)
    assert down.value.reason == "killed"
    assert tasks.async_nolink(die, signal.SIGSEGV).yield_(PATIENCE_S) == ("exit", ("signal", "SIGSEGV"))
    kind, reason = tasks.async_nolink(fail).yield_(PATIENCE_S) or ("", ())
    assert kind == "exit" and reason[:2] == ("error", "KeyError")


def test_a_task_that_takes_long(tasks: TaskSupervisor, tmp_path: Path) -> None:
    """yield_ answers None and may be asked again; a timeout of result does not end the task."""
    journal = Journal(tmp_path / "journal")
    task = tasks.async_nolink(hold, journal, "a")
    assert task.yield_(0) is None
    with pytest.raises(TimeoutError):
        task.result(0.001)
    journal.note("go a")
    assert task.result(PATIENCE_S) == "a"


def test_shutdown_of_tasks(tasks: TaskSupervisor) -> None:
    """One that is over gives its result; one that runs is asked, or killed, and gives None."""
    done = tasks.async_nolink(square, 2)
    done.result(PATIENCE_S)
    assert done.shutdown() == ("ok", 4)
    for how in (PATIENCE_S, "brutal_kill"):
        task = tasks.async_nolink(wait_for_ever)
        pid = until(lambda task=task: task.pid)
        assert task.shutdown(how) is None
        until(lambda pid=pid: not alive(pid))
    killed = tasks.async_nolink(die)
    killed.exception(PATIENCE_S)
    assert killed.shutdown() == ("exit", "killed")


def test_an_ignored_task_goes_on_and_its_result_is_dropped(
    tasks: TaskSupervisor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Task.ignore. Whoever waits for it among others does not wait for ever."""
    journal = Journal(tmp_path / "journal")
    task = tasks.async_nolink(hold, journal, "a")
    journal.wait("begun a")
    pid = task.pid
    assert task.ignore() is None and alive(pid)
    assert task.done() and not caplog.records
    with pytest.raises(RuntimeError, match="ignored"):
        task.result()
    with monitor(task.ref) as watch:
        journal.note("go a")
        down = watch.wait(PATIENCE_S)
    assert down is not None and down.reason in ("normal", "noproc")


def test_only_its_owner_may_ask(tasks: TaskSupervisor) -> None:
    """A fork of the owner is another process, and a task cannot be sent to one."""
    task = tasks.async_nolink(square, 2)
    with pytest.raises(TypeError, match="only the one that started it"):
        pickle.dumps(task)
    task.result(PATIENCE_S)
    pid = os.fork()
    if not pid:
        try:
            task.result(0)
        except RuntimeError as error:
            os._exit(0 if "only that one" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("linked", [True, False])
def test_the_owners_death(linked: bool, tmp_path: Path) -> None:
    """A linked task dies with the child that owns it; one that is not linked finishes."""
    journal = Journal(tmp_path / "journal")
    tree = Supervisor([Child(TaskSupervisor(name="tasks")), Child(DynamicSupervisor(name="owners"))])
    with Runtime(tree) as rt:
        owner = rt.supervisor("owners").start_child(Child(own_a_task, journal, linked, restart="temporary"))
        journal.wait("begun inner")
        until(lambda: journal.lines("pid"))
        pid = int(journal.lines("pid")[0].split()[1])
        with monitor(owner) as watch:
            os.kill(owner.pid, signal.SIGKILL)
            assert watch.wait(PATIENCE_S).reason == "killed"
        if linked:
            until(lambda: not alive(pid))
        else:
            assert alive(pid) and rt.supervisor("tasks").count_children().active == 1
            journal.note("go inner")
            until(lambda: not alive(pid))


def test_a_pool_workers_death_ends_its_linked_tasks(tmp_path: Path) -> None:
    """Whoever owns a task, and is no child itself."""
    from shmrt import Pool

    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(TaskSupervisor(name="tasks"))])), Pool(1) as pool:
        future = pool.submit(own_a_task, journal, True)
        journal.wait("begun inner")
        until(lambda: journal.lines("pid"))
        pid = int(journal.lines("pid")[0].split()[1])
        future.kill()
        until(lambda: not alive(pid))


def test_a_linked_task_that_fails_ends_the_child_that_owns_it(tmp_path: Path) -> None:
    """The exit signal of async."""
    journal = Journal(tmp_path / "journal")
    tree = Supervisor([Child(TaskSupervisor(name="tasks")), Child(DynamicSupervisor(name="owners"))])
    with Runtime(tree) as rt:
        owner = rt.supervisor("owners").start_child(Child(suffer, journal, restart="temporary"))
        with monitor(owner) as watch:
            down = watch.wait(PATIENCE_S)
        assert down is not None and down.reason != "normal"


def test_how_many_there_may_be() -> None:
    """max_children."""
    with Runtime(), TaskSupervisor(max_children=1) as tasks:
        task = tasks.async_nolink(wait_for_ever)
        with pytest.raises(ChildStateError) as refused:
            tasks.async_nolink(square, 1)
        assert refused.value.state == "max_children"
        task.shutdown("brutal_kill")
        assert until(lambda: not tasks.which_children()) and tasks.async_(square, 2).result(PATIENCE_S) == 4


def test_what_does_not_pickle_raises_at_the_call(tasks: TaskSupervisor) -> None:
    """And leaves no process behind."""
    with pytest.raises((TypeError, AttributeError)):
        tasks.async_(square, threading.Lock())
    assert until(lambda: tasks.count_children() == (0, 0, 0, 0))
    with pytest.raises(TypeError, match="a task runs a function"):
        tasks.async_(3)  # type: ignore[arg-type]


def test_start_child_runs_for_its_effect(tasks: TaskSupervisor, tmp_path: Path) -> None:
    """Nobody waits; a temporary child that ended is forgotten."""
    journal = Journal(tmp_path / "journal")
    journal.note("go x")
    ref = tasks.start_child(hold, journal, "x")
    with monitor(ref) as watch:
        assert watch.wait(PATIENCE_S).reason in ("normal", "noproc")
    assert "begun x" in journal.lines()


# ---- streams
# ----------------------------------------------------------------------------------------------------------
def test_a_stream_in_order(tasks: TaskSupervisor) -> None:
    """Each item has its element, in the order of the items; what fails is an element, too."""
    assert list(tasks.stream(square, range(6), max_concurrency=3)) == [("ok", n * n) for n in range(6)]
    found = list(tasks.stream(by_number, [0, 1, 2, 0], max_concurrency=2))
    assert [found[0], found[1], found[3]] == [("ok", "fine"), ("exit", "killed"), ("ok", "fine")]
    assert found[2][1][:2] == ("error", "KeyError")
    assert list(tasks.stream(by_number, [3, 3], timeout=0.1)) == [("exit", "timeout")] * 2
    assert until(lambda: tasks.count_children() == (0, 0, 0, 0)), "a task that took too long is killed"


def test_a_stream_as_they_end(tasks: TaskSupervisor, tmp_path: Path) -> None:
    """ordered=False: a slow one holds nobody up."""
    journal = Journal(tmp_path / "journal")
    names = iter(tasks.stream(lambda name: hold(journal, name), ["a", "b"], max_concurrency=2, ordered=False))
    journal.note("go b")
    assert next(names) == ("ok", "b")
    journal.note("go a")
    assert list(names) == [("ok", "a")]


def test_the_buffer_behind_a_slow_one_is_bounded(tasks: TaskSupervisor, tmp_path: Path) -> None:
    """max_buffer: nothing new is started once so many results wait."""
    journal = Journal(tmp_path / "journal")
    for number in range(1, 20):
        journal.note(f"go {number}")
    begun: list[int] = []

    def items() -> Any:
        for number in range(20):
            begun.append(number)
            yield number

    stream = tasks.stream(lambda n: hold(journal, str(n)), items(), max_concurrency=2, max_buffer=3)
    release = threading.Thread(target=lambda: (until(lambda: len(begun) >= 4), journal.note("go 0")))
    release.start()
    assert next(iter(stream)) == ("ok", "0")
    release.join()
    assert len(begun) <= 1 + 3 + 2, "the first, those that wait behind it, those that run"
    assert [value for _, value in stream] == [str(n) for n in range(1, 20)]


def test_a_stream_that_ends_by_a_timeout(tasks: TaskSupervisor) -> None:
    """on_timeout="exit" raises in the consumer, and kills what runs."""
    with pytest.raises(TaskTimeout):
        list(tasks.stream(by_number, [3, 3, 0], max_concurrency=2, timeout=0.2, on_timeout="exit"))
    assert until(lambda: tasks.count_children() == (0, 0, 0, 0))


def test_a_stream_that_is_dropped_leaves_nothing(tasks: TaskSupervisor) -> None:
    """What runs is killed with the iterator."""
    stream = tasks.stream(by_number, [0, 3, 3], max_concurrency=3)
    assert next(iter(stream)) == ("ok", "fine")
    stream.close()  # type: ignore[attr-defined]
    assert until(lambda: tasks.count_children() == (0, 0, 0, 0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_concurrency": 0}, "max_concurrency=0 must be"),
        ({"on_timeout": "ignore"}, "on_timeout='ignore' must be"),
        ({"timeout": -1}, "timeout=-1 must be"),
        ({"max_buffer": 0}, "max_buffer=0 must be"),
    ],
)
def test_wrong_arguments_of_a_stream(tasks: TaskSupervisor, wrong: dict[str, Any], message: str) -> None:
    """At the call, naming the argument."""
    with pytest.raises(ValueError, match=message):
        tasks.stream(square, [1], **wrong)
    with pytest.raises(TypeError, match="a task runs a function, not 3"):
        tasks.stream(3, [1])  # type: ignore[arg-type]


def test_the_current_runtime_is_used() -> None:
    """A supervisor that was put nowhere starts beside the tree of the current runtime."""
    with Runtime() as rt:
        tasks = TaskSupervisor()
        assert tasks.async_(os.getppid).result(PATIENCE_S) == rt.pid == runtime().pid

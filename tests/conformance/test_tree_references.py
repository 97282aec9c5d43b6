"""What a reference of each kind may be given to, and that a child is found by its id, whatever that is."""

from __future__ import annotations

import os

import pytest
from tree_kit import until

import shmrt
from shmrt import Agent, Child, DynamicSupervisor, PartitionSupervisor, Pool, Runtime, Supervisor
from shmrt.agent import AgentServer


def test_an_id_that_is_a_number_is_no_key() -> None:
    """The children's keys count from 2, in order of start: as ids the same numbers mean other children."""
    with Runtime(Supervisor([Child(AgentServer, id, id=id) for id in (4, 3, 2)])) as runtime:
        supervisor = runtime.supervisor()
        assert [supervisor.child(id).get() for id in (2, 3, 4)] == [2, 3, 4]
        assert [supervisor.get_childspec(id).args for id in (2, 3, 4)] == [(2,), (3,), (4,)]


def test_every_partition_is_another_process() -> None:
    with PartitionSupervisor(Child(AgentServer, 0), partitions=4) as parts:
        assert len({parts.partition(key).pid for key in range(4)}) == 4
        assert parts.partition("x") == parts.partition("x")


def test_monitors_and_groups_take_an_agent_like_its_reference() -> None:
    agent = Agent(0)
    assert shmrt.join("agents", agent) and not shmrt.join("agents", agent.ref)
    assert shmrt.members("agents") == [agent.ref]
    assert shmrt.leave("agents", agent) and shmrt.members("agents") == []
    with shmrt.monitor(agent) as watch:
        agent.stop()
        assert watch.wait(30) == shmrt.Down("normal", watch.number, agent.ref.key)


@pytest.mark.parametrize("function", [shmrt.monitor, shmrt.link, shmrt.unlink])
def test_what_is_no_reference_is_refused(function) -> None:
    with DynamicSupervisor():
        for wrong in (7, "name", object()):
            with pytest.raises(TypeError, match="this takes a reference"):
                function(wrong)


def test_what_a_worker_starts_is_not_what_the_program_started() -> None:
    """Each process numbers the trees that it starts, and the numbers of one mean nothing to another. Its servers
    outlive a worker, whether it is killed or not needed any more."""
    with Runtime():
        own = Agent("the program's", name="own")
        for round in range(2):
            with Pool(1) as pool:
                theirs = pool.submit(lambda n: [Agent(i, name=f"theirs-{n}-{i}").ref for i in range(3)], round).result()
            assert [ref.call("get") for ref in theirs] == [0, 1, 2] and own.ref not in theirs
            assert [ref.name for ref in theirs] == [f"theirs-{round}-{i}" for i in range(3)]
        with Pool(1) as pool:
            ref = pool.submit(lambda: Agent(7).ref).result()
            pool.submit(os.abort).exception()
        assert ref.call("get") == 7 and own.get() == "the program's"


def test_a_reference_that_was_not_used_before_is_of_no_use_in_a_fork() -> None:
    """RuntimeDown names both processes; no runtime is started to find that out."""
    with Runtime(Supervisor([Child(AgentServer, 0, name="a")])):
        ref = shmrt.whereis("a")
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            try:
                ref.call("get")
            except shmrt.RuntimeDown as error:
                os.write(writer, f"{error.reason} {error}".encode())
            finally:
                os._exit(0)
        os.close(writer)
        os.waitpid(pid, 0)
        with open(reader) as file:
            said = file.read()
        assert said.startswith("forked") and str(pid) in said and str(os.getpid()) in said
        assert ref.call("get") == 0


def test_count_children_is_a_named_tuple() -> None:
    with DynamicSupervisor() as supervisor:
        supervisor.start_child(AgentServer, 0)
        count = supervisor.count_children()
        assert count == (1, 1, 0, 1) and count._asdict() == {"specs": 1, "active": 1, "supervisors": 0, "workers": 1}


def test_wrong_arguments_name_themselves() -> None:
    """In the caller, before anything is started, and nothing crashes of it."""
    with pytest.raises(shmrt.SpecError, match="kwargs=3 must be a dict"):
        Child(AgentServer, kwargs=3)  # type: ignore[arg-type]
    with pytest.raises(shmrt.SpecError, match="children must be a list of Child"):
        Supervisor(print)  # type: ignore[arg-type]
    for group in (None, 3):
        with pytest.raises(TypeError, match=f"group must be a string, not {group}"):
            shmrt.members(group)  # type: ignore[arg-type]
    with Runtime(), Agent(1) as agent:
        with pytest.raises(TypeError, match="3"):
            agent.get(3)  # type: ignore[arg-type]
        assert agent.get() == 1
        for function in (shmrt.join, shmrt.leave):
            with pytest.raises(RuntimeError, match="ref="):
                function("group")


def test_whereis_finds_supervisors_unless_a_child_has_the_name() -> None:
    """From its start to its end, from any process; a Child's name is that of a supervisor that has none."""
    inner = [Child(DynamicSupervisor(name="a")), Child(Supervisor([]), name="b"), Child(DynamicSupervisor(name="c"))]
    with (
        Runtime(Supervisor([*inner, Child(AgentServer, 0, name="c", id="child")], name="top")) as runtime,
        Pool(1) as pool,
    ):
        for name in ("top", "a", "b"):
            assert shmrt.whereis(name) == runtime.supervisor(name)
            assert pool.submit(shmrt.whereis, name).result() == runtime.supervisor(name)
        assert shmrt.whereis("c") == runtime.supervisor().child("child")
        runtime.supervisor().terminate_child("b")
        assert shmrt.whereis("b") is None and shmrt.whereis("a").count_children() == (0, 0, 0, 0)
        runtime.supervisor().restart_child("b")
        assert shmrt.whereis("b") == runtime.supervisor("b")


def test_the_runtime_outlives_names_that_do_not_fit() -> None:
    """Too long a name is refused by the caller; when all are taken, whoever wants one more hears so."""
    with Runtime() as runtime:
        for wrong in (lambda: Agent(0, name="é" * 90), lambda: DynamicSupervisor(name="x" * 180)):
            with pytest.raises(ValueError, match="at most 179 bytes, not 180"):
                wrong()
        root, agent = runtime.pid, Agent(0)
        with pytest.raises(shmrt.Overloaded, match="1024 names"):
            for number in range(2000):
                shmrt.join(f"group {number}", agent)
        assert number == 1024 and len(shmrt.members("group 1023")) == 1
        with pytest.raises(shmrt.StartError, match="1024 names"):
            Agent(0, name="one more")
        with DynamicSupervisor(name="not to be found") as supervisor:
            assert supervisor.count_children() == (0, 0, 0, 0)
        agent.stop()
        assert Agent(1, name="one more").get() == 1 and runtime.pid == root


def test_the_log_of_a_start_that_fails_below_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """It says what failed in words, and not the whole chain with its traceback."""
    below = Supervisor([Child(AgentServer, kwargs={"no such": 1}, id="broken")], name="below")
    with pytest.raises(shmrt.StartError), Runtime(Supervisor([Child(below)])):
        pass

    def lines() -> list[str]:
        return [record.getMessage() for record in caplog.records if "start_error of below" in record.getMessage()]

    until(lines, "the record comes on its own way, maybe behind the error")
    (said,) = lines()
    assert "child 'broken' did not start: TypeError: " in said and "\n" not in said

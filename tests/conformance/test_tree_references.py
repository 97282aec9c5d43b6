"""What a reference of each kind may be given to, and that a child is found by its id, whatever that is."""

from __future__ import annotations

import pytest

import shmrt
from shmrt import Agent, Child, DynamicSupervisor, PartitionSupervisor, Runtime, Supervisor
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

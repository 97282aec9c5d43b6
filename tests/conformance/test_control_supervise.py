"""Supervisors over the control socket: every function, from a process that knows nothing of the runtime but its
name."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrt import Child, DynamicSupervisor, Runtime, Supervisor

PLACE = "SHMRT_RUNTIME_DIR"


class Client:
    """One connection; asks and waits."""

    def __init__(self, name: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(120)
        self.socket.connect(str(Path(os.environ[PLACE]) / name / "control"))
        self.file = self.socket.makefile("rb")

    def __call__(self, do: str, **args: Any) -> dict[str, Any]:
        request = {"schema": "shmrt.control/1", "verb": "supervise", "args": {"do": do, "wait": True, **args}}
        self.socket.sendall(json.dumps(request).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self.file.readline())
        return answer

    def close(self) -> None:
        self.file.close()
        self.socket.close()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Client]:
    monkeypatch.setenv(PLACE, str(tmp_path / "place"))
    inner = Supervisor([Child(time.sleep, 3600, id="leaf")], name="inner")
    tree = Supervisor([Child(inner, id="in"), Child(DynamicSupervisor(name="dyn", max_children=2))], name="top")
    with Runtime(tree, name="steered"):
        one = Client("steered")
        yield one
        one.close()


def test_questions(client: Client) -> None:
    """which_children, which_child, count_children and get_childspec, by name and by path."""
    rows = client("which_children")["children"]
    assert [row["id"] for row in rows] == ["dyn", "in"] and {row["type"] for row in rows} == {"supervisor"}
    by_path, by_name = client("which_children", supervisor=["in"]), client("which_children", supervisor="inner")
    assert by_path["children"] == by_name["children"] and isinstance(by_path["children"][0]["pid"], int)
    assert client("which_child", supervisor="inner", id="leaf")["restart"] == "permanent"
    count = client("count_children", supervisor="inner")
    assert (count["specs"], count["active"], count["supervisors"], count["workers"]) == (1, 1, 0, 1)
    spec = client("get_childspec", supervisor="inner", id="leaf")
    assert (spec["start"], spec["shutdown"]) == ("time:sleep", 5.0)


def test_the_states_of_a_child(client: Client) -> None:
    """start, terminate, restart and delete, with OTP's words for what cannot be."""
    child = {"start": "time:sleep", "args": [3600], "id": "more", "restart": "transient"}
    assert client("start_child", supervisor="inner", child=child)["ok"]
    again = client("start_child", supervisor="inner", child=child)
    assert not again["ok"] and "AlreadyStarted" in again["message"]
    assert client("delete_child", supervisor="inner", id="more")["hint"] == "running"
    assert client("terminate_child", supervisor="inner", id="more")["ok"]
    assert client("which_child", supervisor="inner", id="more")["pid"] is None
    assert client("restart_child", supervisor="inner", id="more")["pid"] > 0
    assert client("terminate_child", supervisor="inner", id="more")["ok"]
    assert client("delete_child", supervisor="inner", id="more")["ok"]
    assert "no child 'more'" in client("which_child", supervisor="inner", id="more")["message"]


def test_a_dynamic_supervisor(client: Client) -> None:
    """Its children are named by pid."""
    child = {"start": "time:sleep", "args": [3600]}
    pids = [client("start_child", supervisor="dyn", child=child)["pid"] for _ in range(2)]
    full = client("start_child", supervisor="dyn", child=child)
    assert not full["ok"] and full["hint"] == "max_children"
    for pid in pids:
        assert client("terminate_child", supervisor="dyn", pid=pid)["ok"]
    assert client("count_children", supervisor="dyn")["specs"] == 0


def test_stop_is_an_exit_that_its_supervisor_sees(client: Client) -> None:
    """A permanent one comes back."""
    before = client("which_children", supervisor="inner")["children"][0]["pid"]
    assert client("stop", supervisor="inner", reason="killed")["reason"] == "killed"
    while True:
        rows = client("which_children", supervisor="inner").get("children")
        if rows and isinstance(rows[0]["pid"], int) and rows[0]["pid"] != before:
            break


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"do": "dance"}, "do='dance' must be one of"),
        ({"do": "which_children", "supervisor": "nobody"}, "no supervisor is named 'nobody'"),
        ({"do": "which_children", "supervisor": 3}, "must be a name, or a list of ids"),
        ({"do": "which_children", "supervisor": ["in", "leaf"]}, "is no supervisor"),
        ({"do": "terminate_child"}, "needs `id`"),
        ({"do": "start_child"}, "needs `child`"),
        ({"do": "start_child", "child": {"start": "time"}}, "it has no ':'"),
        ({"do": "start_child", "child": {"start": "no_such_module:x"}}, "No module named"),
        ({"do": "start_child", "child": {"start": "time:sleep", "colour": 1}}, "a child has no 'colour'"),
        ({"do": "start_child", "child": {"start": "time:sleep", "restart": "often"}}, "restart='often' must be one of"),
    ],
)
def test_wrong_requests(client: Client, args: dict[str, Any], message: str) -> None:
    """Each has one clear answer, and the next request is served."""
    answer = client(**args)
    assert not answer["ok"] and message in answer["message"], answer
    assert client("count_children")["specs"] == 2

"""The control socket: whose it is, what it answers, and that no client can stop the process that serves it.

One process plays both sides: `World.turn` is one round of the root's loop.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrt import _native
from shmrt.supervise import control as module
from shmrt.supervise.control import SCHEMA, Control

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 60


class World:
    """A control server with a scripted `answer`, and clients."""

    def __init__(self, path: Path) -> None:
        self.path = str(path / "control")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.listener.bind(self.path)
        self.listener.listen(64)
        self.asked: list[tuple[str, dict[str, Any], Any]] = []
        self.script: Callable[[str, dict[str, Any], Any], None] = lambda verb, args, reply: reply(True, {"did": verb})
        self.control = Control(self.listener.fileno(), self._answer)
        self.clients: list[socket.socket] = []

    def _answer(self, verb: str, args: dict[str, Any], reply: Any) -> None:
        self.asked.append((verb, args, reply))
        self.script(verb, args, reply)

    def turn(self) -> bool:
        """Whether anything was ready."""
        found = _native.poll(self.control.fds(), 0)
        self.control.handle({fd for fd, _ in found})
        return bool(found)

    def settle(self) -> None:
        turns = 0
        while self.turn():
            turns += 1
            assert turns < 10_000, "the loop never rests"

    def client(self) -> socket.socket:
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        one.connect(self.path)
        one.setblocking(False)
        self.clients.append(one)
        return one

    def say(self, client: socket.socket, verb: str, **args: Any) -> None:
        client.sendall(json.dumps({"schema": SCHEMA, "verb": verb, "args": args}).encode() + b"\n")
        self.settle()

    def hear(self, client: socket.socket) -> list[dict[str, Any]]:
        data = b""
        while True:
            self.settle()
            try:
                part = client.recv(1 << 20)
            except BlockingIOError:
                break
            if not part:
                break
            data += part
        assert data == b"" or data.endswith(b"\n")
        return [json.loads(line) for line in data.splitlines()]

    def is_left(self, client: socket.socket) -> bool:
        """Whether the server hung up."""
        self.settle()
        try:
            while client.recv(1 << 20):
                pass
        except BlockingIOError:
            return False
        except ConnectionResetError:
            pass
        return True


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    for client in made.clients:
        client.close()
    made.control.close()
    made.listener.close()


def test_a_question_is_answered(world: World) -> None:
    """One line in, one line out, as often as the client likes, also in one piece."""
    client = world.client()
    world.say(client, "status", deep=True)
    assert world.hear(client) == [{"ok": True, "did": "status"}]
    line = json.dumps({"schema": SCHEMA, "verb": "tree"}).encode() + b"\n"
    client.sendall(line * 3)
    assert world.hear(client) == [{"ok": True, "did": "tree"}] * 3
    assert [(verb, args) for verb, args, _ in world.asked] == [("status", {"deep": True})] + [("tree", {})] * 3


def test_an_answer_may_come_later_and_in_pieces(world: World) -> None:
    world.script = lambda *_: None
    client = world.client()
    request = json.dumps({"schema": SCHEMA, "verb": "status"}).encode() + b"\n"
    for at in range(len(request)):
        client.sendall(request[at : at + 1])
        world.settle()
    assert world.hear(client) == []
    world.asked[0][2](True, {"late": 1})
    assert world.hear(client) == [{"ok": True, "late": 1}]


BAD = [
    (b"nonsense\n", "bad_request"),
    (b"\xff\xfe\n", "bad_request"),
    (b"[" * 60000 + b"\n", "bad_request"),
    (b"[1]\n", "bad_request"),
    (b'{"verb":"status"}\n', "schema"),
    (b'{"schema":"shmrt.control/9","verb":"status"}\n', "schema"),
    (b'{"schema":"shmrt.control/1","verb":"explode"}\n', "unknown_verb"),
    (b'{"schema":"shmrt.control/1","verb":["status"]}\n', "unknown_verb"),
    (b'{"schema":"shmrt.control/1","verb":"status","args":[]}\n', "bad_request"),
    (b"x" * (module.REQUEST_MOST + 1), "bad_request"),
]


@pytest.mark.parametrize(("sent", "code"), BAD, ids=lambda value: repr(value)[:30])
def test_a_bad_request_is_refused_in_words(world: World, sent: bytes, code: str) -> None:
    """It reaches nobody, and the next client is served as before."""
    client = world.client()
    for start in range(0, len(sent), 30_000):
        client.sendall(sent[start : start + 30_000])
        world.settle()
    [answer] = world.hear(client)
    assert answer["ok"] is False and answer["code"] == code and answer["message"]
    assert world.asked == []
    other = world.client()
    world.say(other, "status")
    assert world.hear(other)[0]["ok"]


def test_another_user_is_not_heard(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says who the other end is; without its uid being ours it is left at once."""
    real = os.geteuid()
    monkeypatch.setattr(module.os, "geteuid", lambda: real + 1)
    client = world.client()
    client.sendall(b'{"schema":"shmrt.control/1","verb":"status"}\n')
    assert world.is_left(client) and world.asked == []
    monkeypatch.undo()
    client = world.client()
    world.say(client, "status")
    assert world.hear(client)[0]["ok"]


def test_a_client_that_does_not_read_stops_nobody(world: World) -> None:
    """It is not read from while its answers lie there; others go on, and the loop rests."""
    world.script = lambda verb, args, reply: reply(True, {"x": "y" * 300_000})
    slow, quick = world.client(), world.client()
    sent = 0
    line = json.dumps({"schema": SCHEMA, "verb": "status"}).encode() + b"\n"
    try:
        while sent < 200_000:  # far more requests than are ever answered
            sent += slow.send(line * 100)
            world.settle()
    except BlockingIOError:
        pass
    answered = len(world.asked)
    assert 2 <= answered < 100
    world.say(quick, "status")
    assert len(world.hear(quick)) == 1
    world.settle()  # rests, although the slow one has more to say
    slow.close()
    world.settle()
    assert len(world.control.fds()) == 2


def test_a_client_that_leaves_is_forgotten(world: World) -> None:
    """Whatever it waited for goes on, and poll is not asked about it for ever."""
    world.script = lambda *_: None
    client = world.client()
    world.say(client, "drain", wait=True)
    client.close()
    world.settle()
    assert len(world.control.fds()) == 1
    world.asked[0][2](True, {})
    assert world.control.operations.rows() == []


def test_a_client_may_say_all_and_then_listen(world: World) -> None:
    """As `nc -U` does: its side is closed before the answer is there."""
    world.script = lambda *_: None
    client = world.client()
    client.sendall(b'{"schema":"shmrt.control/1","verb":"restart","args":{"wait":true}}\n')
    client.shutdown(socket.SHUT_WR)
    world.settle()
    world.asked[0][2](True, {"done": 1})
    assert world.hear(client) == [{"ok": True, "operation": 1, "done": 1}]
    assert world.is_left(client) and len(world.control.fds()) == 1


def test_too_many_clients(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CLIENTS_MOST", 3)
    several = [world.client() for _ in range(3)]
    world.settle()
    one_more = world.client()
    assert world.hear(one_more)[0]["code"] == "busy" and world.is_left(one_more)
    world.say(several[0], "status")
    assert world.hear(several[0])[0]["ok"]


def test_commands_come_one_after_the_other(world: World) -> None:
    """Each has a number; the next begins when the one before has given its orders."""
    world.script = lambda *_: None
    first, second = world.client(), world.client()
    world.say(first, "scale", pool="a", workers=4)
    world.say(second, "scale", pool="a", workers=2)
    assert [args["workers"] for _, args, _ in world.asked] == [4]
    rows = world.control.operations.rows()
    assert [(row["id"], row["state"], row["waits_for"]) for row in rows] == [
        (1, "running", None),
        (2, "queued", "operation 1 (scale)"),
    ]
    world.asked[0][2](True, {"workers": 4})
    assert [args["workers"] for _, args, _ in world.asked] == [4, 2]
    assert world.hear(first) == [{"ok": True, "operation": 1, "workers": 4}] and world.hear(second) == []
    world.asked[1][2](False, {"code": "failed", "message": "no"})
    assert world.hear(second) == [{"ok": False, "operation": 2, "code": "failed", "message": "no"}]


def test_a_command_that_waits_lets_the_next_begin(world: World) -> None:
    """And says what it waits for, to `status` and to a client that did not ask to wait."""
    world.script = lambda verb, args, reply: reply.waits("2 tasks of pool a") if verb == "drain" else None
    one, other, third = world.client(), world.client(), world.client()
    world.say(one, "drain", pool="a", wait=True)
    world.say(other, "drain", pool="a")
    world.say(third, "resume", pool="a")
    assert [verb for verb, _, _ in world.asked] == ["drain", "drain", "resume"]
    assert world.hear(one) == []
    assert world.hear(other) == [
        {"ok": True, "operation": 2, "state": "waiting", "waits_for": "2 tasks of pool a"},
    ]
    assert [row["waits_for"] for row in world.control.operations.rows()] == [
        "2 tasks of pool a",
        "2 tasks of pool a",
        None,
    ]
    world.asked[0][2](True, {"drained": True})
    world.asked[1][2](True, {"drained": True})
    assert world.hear(one) == [{"ok": True, "operation": 1, "drained": True}] and world.hear(other) == []


def test_many_commands_in_one_piece(world: World) -> None:
    """A client has a bound on commands under way; what lies behind it is done as the first ones end."""
    replies: list[Any] = []
    world.script = lambda verb, args, reply: reply.waits("the test") or replies.append(reply)  # type: ignore[func-returns-value]
    client = world.client()
    line = json.dumps({"schema": SCHEMA, "verb": "drain", "args": {"wait": True}}).encode() + b"\n"
    client.sendall(line * 50)
    world.settle()
    assert len(replies) == 16
    while replies:
        replies.pop()(True, {})
    assert sorted(one["operation"] for one in world.hear(client)) == list(range(1, 51))


def test_a_thousand_commands_that_end_at_once(world: World) -> None:
    client = world.client()
    client.sendall(json.dumps({"schema": SCHEMA, "verb": "scale"}).encode().join([b""] + [b"\n"] * 1000 + [b""]))
    assert len(world.hear(client)) == 1000


def test_a_stop_waits_for_nobody(world: World) -> None:
    world.script = lambda *_: None
    client = world.client()
    for verb in ("restart", "scale", "stop"):
        world.say(client, verb)
    assert [verb for verb, _, _ in world.asked] == ["restart", "stop"]


def test_a_mistake_of_ours_is_an_answer(world: World) -> None:
    """The root lives, the client knows, and the next command begins."""

    def script(verb: str, args: dict[str, Any], reply: Any) -> None:
        if args.get("bad"):
            raise ZeroDivisionError("ours")
        reply(True, {})

    world.script = script
    client = world.client()
    world.say(client, "scale", bad=1)
    world.say(client, "status", bad=1)
    world.say(client, "scale")
    assert [(one["ok"], one.get("code")) for one in world.hear(client)] == [
        (False, "internal"),
        (False, "internal"),
        (True, None),
    ]


def test_only_the_first_reply_counts(world: World) -> None:
    world.script = lambda verb, args, reply: (reply(True, {"n": 1}), reply(True, {"n": 2}), reply.waits("x"))  # type: ignore[func-returns-value]
    client = world.client()
    world.say(client, "scale")
    assert world.hear(client) == [{"ok": True, "operation": 1, "n": 1}]


def test_values_without_a_word_in_json(world: World) -> None:
    world.script = lambda verb, args, reply: reply(True, {"a": b"x\xff", "b": {1}, "c": ("signal", "KILL")})
    client = world.client()
    world.say(client, "status")
    assert world.hear(client) == [{"ok": True, "a": "x�", "b": "{1}", "c": ["signal", "KILL"]}]


def test_events_are_kept_and_followed(world: World) -> None:
    """What was published before, then each as it comes, in order and numbered."""
    world.control.publish("worker.exit", {"seconds": 1}, {"id": "a"})
    once, follower = world.client(), world.client()
    world.say(once, "events")
    world.say(follower, "events", follow=True)
    world.control.publish("worker.ready", {}, {"id": "a"})
    [kept] = world.hear(once)
    assert [(one["seq"], one["name"], one["metadata"]) for one in kept["events"]] == [(1, "worker.exit", {"id": "a"})]
    assert kept["schema"] == "shmrt.events/1" and kept["dropped"] == 0
    first, then = world.hear(follower)
    assert first["events"] == kept["events"] and then["event"]["seq"] == 2
    follower.close()
    world.settle()
    world.control.publish("worker.exit", {}, {})
    assert len(world.control.fds()) == 2


def test_old_events_are_counted(world: World) -> None:
    for number in range(1030):
        world.control.publish("worker.ready", {}, {"n": number})
    client = world.client()
    world.say(client, "events")
    [answer] = world.hear(client)
    assert answer["dropped"] == 6 and [one["seq"] for one in answer["events"]] == list(range(7, 1031))
    world.say(client, "events", since=0)
    assert world.hear(client)[0]["events"] == []


def test_a_slow_follower_loses_events_and_is_told_how_many(world: World) -> None:
    """Memory is bounded: every event is either told or counted."""
    follower = world.client()
    world.say(follower, "events", follow=True)
    for _ in range(3000):
        world.control.publish("worker.exit", {}, {"text": "x" * 500})
    lines = world.hear(follower)[1:]
    told = [line["event"]["seq"] for line in lines if "event" in line]
    lost = sum(line.get("dropped", 0) for line in lines)
    assert lost > 0 and len(told) + lost == 3000 and told == sorted(told)


def test_without_descriptors_callers_are_turned_away(world: World) -> None:
    """The loop rests, and once there are descriptors again callers are served."""
    code = f"""
import os, resource, sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
from pathlib import Path
from test_control import World
import tempfile, json
with tempfile.TemporaryDirectory() as place:
    world = World(Path(place))
    json.dumps({{}})
    callers = [world.client() for _ in range(3)]
    taken = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    while True:
        try:
            taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    assert all(world.is_left(one) for one in callers)
    world.settle()
    for fd in taken:
        os.close(fd)
    late = world.client()
    world.say(late, "status")
    print(world.hear(late))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WATCHDOG_S)
    assert done.stdout.strip() == "[{'ok': True, 'did': 'status'}]", done.stderr


def test_fifty_clients_at_once(world: World) -> None:
    """C14. Commands that overlap are queued, never refused, and the last one asked for is the last one begun."""
    pending: list[Any] = []
    world.script = lambda verb, args, reply: pending.append(reply)
    clients = [world.client() for _ in range(50)]
    for number, client in enumerate(clients):
        world.say(client, "scale", pool="a", workers=number + 1)
    while pending:
        pending.pop(0)(True, {})
    assert [args["workers"] for _, args, _ in world.asked] == list(range(1, 51))
    answers = [world.hear(client) for client in clients]
    assert [one["operation"] for [one] in answers] == list(range(1, 51)) and all(one["ok"] for [one] in answers)


def test_serving_imports_nothing_heavy() -> None:
    """What the root imports for it is nothing that would slow its start; json only when a client speaks."""
    code = (
        "import sys; import shmrt.supervise.control, shmrt.supervise.operations\n"
        "print([m for m in ('typing', 'json', 'socket', 'enum', 'dataclasses', 'signal') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-s", "-c", code], capture_output=True, text=True, timeout=WATCHDOG_S, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr

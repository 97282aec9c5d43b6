"""The verbs that look and steer, against a scripted root: exit codes, formats, and words for whatever goes wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from root_kit import ROOT, WATCHDOG_S, cli, command, fake_root, refused

from shmrt.supervise import views
from shmrt.supervise.directory import RuntimeDirectory

BODY: dict[str, Any] = views.status_body(
    {"name": "shop", "pid": 7, "program": 6, "seconds": 75.0, "stopping": False},
    {},
    {},
    [
        {
            "name": "hash",
            "number": 1,
            "wanted": 2,
            "spares": 0,
            "ready": 1,
            "broken": False,
            "reasons": ["ImportError: no module named x"],
            "removing": False,
            "restarts": {0: 0, 1: 4},
            "wait_ns": 10**9,
            "workers": [{"number": 0, "slot": 2, "pid": 11, "activity": "busy", "seconds": 5.0, "restarts": 0}],
        }
    ],
    [{"id": 3, "verb": "drain", "args": {}, "state": "waiting", "waits_for": "2 tasks of pool hash", "seconds": 1.0}],
)


def answering(verb: str, args: dict[str, Any], reply: Any) -> None:
    reply(True, BODY | {"schema": f"shmrt.{verb}/1"} if verb in ("status", "tree") else {})


LOOKING = (["status"], ["tree"], ["inspect", "worker", "x"], ["events"])
STEERING = (["stop"], ["restart"], ["scale", "a", "2"], ["pause", "a"], ["resume", "a"], ["drain"], ["reload"])


@pytest.mark.parametrize("words", [*LOOKING, *STEERING], ids=lambda words: words[0])
def test_without_a_runtime(tmp_path: Path, words: list[str]) -> None:
    """Exit code 3, where it was looked, and how to start one."""
    refused(cli(tmp_path / "place", *words), 3, "no runtime is running", str(tmp_path / "place"), "--name NAME")


def test_a_name_that_nobody_has(tmp_path: Path) -> None:
    with fake_root("shop", tmp_path / "place"):
        refused(cli(tmp_path / "place", "--name", "shpo", "status"), 3, "'shpo'", "did you mean 'shop'")
        refused(cli(tmp_path / "place", "status", "--name", "shpo"), 3, "running: shop")
        refused(cli(tmp_path / "place", "status", SHMRT_NAME="other"), 3, "'other'")


def test_a_runtime_that_is_dead(tmp_path: Path) -> None:
    """It is told what became of it."""
    RuntimeDirectory.claim("shop", str(tmp_path / "place")).leave("it gave up: child x")
    place = tmp_path / "place"
    refused(cli(place, "--name", "shop", "status"), 3, "not running: it gave up: child x", "clean")
    refused(cli(place, "status"), 3, "'shop' is not running any more")


def test_several_runtimes(tmp_path: Path) -> None:
    """Without a name it is a mistake of usage to have several; with one it is not."""
    place = tmp_path / "place"
    with fake_root("a", place) as one, fake_root("b", place) as other:
        one.script = other.script = answering
        refused(cli(place, "status"), 2, "2 runtimes are running: a, b", "--name a")
        assert cli(place, "status", "--name", "b").returncode == 0
        assert cli(place, "--name=a", "status").returncode == 0
        assert (len(one.asked), len(other.asked)) == (1, 1)


def test_status_reports_and_judges_only_when_asked(tmp_path: Path) -> None:
    """0 whenever it could report. --check: 0 only when all is well, or starting where that is allowed."""
    place = tmp_path / "place"
    state = {"state": "degraded"}
    with fake_root("shop", place) as root:
        root.script = lambda verb, args, reply: reply(True, BODY | state)
        codes = {}
        for state["state"] in ("running", "starting", "degraded", "stopping"):
            several = (["status"], ["status", "--check"], ["status", "--check", "--allow-starting"])
            codes[state["state"]] = [cli(place, *words).returncode for words in several]
        assert codes == {"running": [0, 0, 0], "starting": [0, 1, 0], "degraded": [0, 1, 1], "stopping": [0, 1, 1]}


def test_status_in_every_format(tmp_path: Path) -> None:
    """Text has every worker, the dead one too, what waits, and the next command; JSON is one document."""
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        root.script = answering
        text = cli(place, "status").stdout
        for part in ("shop  degraded  up 1m15s", "hash/0", "hash/1", "backoff 1.0s", "degraded 1/2"):
            assert part in text
        assert "operation 3: drain waiting, waits for 2 tasks of pool hash" in text
        assert "-> python -m shmrt --name shop inspect worker hash" in text
        assert cli(place, "status", "-o", "name").stdout.split("\n") == ["pool hash", "hash/0", "hash/1", ""]
        document = json.loads(cli(place, "status", "-o", "json").stdout)
        assert document["schema"] == "shmrt.status/1" and len(document["pools"][0]["workers"]) == 2
        assert json.loads(cli(place, "-o", "jsonl", "status").stdout) == document
        assert json.loads(cli(place, "tree", "-o", "json").stdout)["schema"] == "shmrt.tree/1"
        tree = cli(place, "tree").stdout
        assert "pool hash  degraded  1 of 2 workers  restarted 4x" in tree and "   |- hash/0  busy  pid 11" in tree


def test_status_watches(tmp_path: Path) -> None:
    """Again and again until it is interrupted."""
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        root.script = answering
        watching = subprocess.Popen(
            command(place, "status", "--watch", "1ms", "-o", "jsonl"),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        while len(root.asked) < 3:
            time.sleep(0.001)
        watching.send_signal(signal.SIGINT)
        out, _ = watching.communicate(timeout=WATCHDOG_S)
        assert watching.returncode == -signal.SIGINT and len(out.splitlines()) >= 2
        assert json.loads(out.splitlines()[0])["name"] == "shop"


REFUSALS = [
    ({"code": "not_found", "message": "no pool 'hsah'", "known": ["hash"]}, 2, ["did you mean 'hash'", "it has hash"]),
    ({"code": "ambiguous", "message": "'a' may be x/a or y/a", "hint": "say it all"}, 2, ["x/a or y/a", "say it all"]),
    ({"code": "usage", "message": "at most 6"}, 2, ["at most 6"]),
    ({"code": "failed", "message": "it broke"}, 1, ["it broke"]),
    ({"code": "busy", "message": "too much"}, 1, ["too much"]),
    ({"code": "ending", "message": "it ends"}, 3, ["it ends"]),
    ({"code": "internal", "message": "ours"}, 70, ["ours"]),
    ({"code": "of a later version"}, 1, ["of a later version"]),
]


@pytest.mark.parametrize(("body", "code", "parts"), REFUSALS, ids=lambda value: str(value)[:25])
def test_a_refusal_has_its_exit_code(tmp_path: Path, body: dict[str, Any], code: int, parts: list[str]) -> None:
    with fake_root("shop", tmp_path / "place") as root:
        root.script = lambda verb, args, reply: reply(False, body)
        refused(cli(tmp_path / "place", "scale", "hsah", "2"), code, *parts)


def test_commands_say_what_they_came_to(tmp_path: Path) -> None:
    """done, already, or begun; the same as JSON. All of them are exit code 0."""
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        assert cli(place, "scale", "hash", "3").stdout == "shop: hash to 3 workers: done\n"
        root.script = lambda verb, args, reply: reply(True, {"already": True})
        assert cli(place, "pause", "hash").stdout == "shop: pause hash: already\n"
        root.script = lambda verb, args, reply: reply.waits("2 tasks")
        assert cli(place, "drain").stdout == "shop: drain every pool: begun, waits for 2 tasks\n"
        document = json.loads(cli(place, "drain", "hash", "-o", "json").stdout)
        assert document == {
            "schema": "shmrt.drain/1",
            "runtime": "shop",
            "operation": 4,
            "state": "waiting",
            "waits_for": "2 tasks",
        }
        args = [args for _, args, _ in root.asked]
        assert args[0] == {"pool": "hash", "workers": 3, "wait": False} and args[3]["pool"] == "hash"


def test_waiting_has_a_limit(tmp_path: Path) -> None:
    """Exit code 4, and the command goes on."""
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        root.script = lambda verb, args, reply: reply.waits("the last task")
        done = cli(place, "drain", "--wait", "--timeout", "50ms")
        refused(done, 4, "drain was not done within 0.05 s", "--name shop status")
        while not (rows := root.control.operations.rows()):
            time.sleep(0.001)
        assert [row["waits_for"] for row in rows] == ["the last task"]
        refused(cli(place, "drain", "--timeout", "1s"), 2, "--wait")


def test_stop_waits_for_the_end(tmp_path: Path) -> None:
    """The root hangs up when the runtime ends: that is what was asked for, once the name is free."""
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        root.script = lambda verb, args, reply: reply.waits("the end")
        stopping = subprocess.Popen(
            command(place, "stop", "--wait"),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        while not root.asked:
            time.sleep(0.001)
        assert root.asked[0][:2] == ("stop", {"now": False, "wait": True})
        root.end()
        assert stopping.communicate(timeout=WATCHDOG_S)[0] == "shop: stop: done\n" and stopping.returncode == 0


def test_a_root_that_hangs_up(tmp_path: Path) -> None:
    """For everything but a stop that is no answer."""
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        root.script = lambda verb, args, reply: [
            root.control._leave(one) for one in list(root.control._clients.values())
        ]  # type: ignore[assignment,return-value]
        refused(cli(place, "status"), 3, "hung up before it answered")
        refused(cli(place, "scale", "a", "1"), 3, "hung up")


def test_a_root_that_is_stopped(tmp_path: Path) -> None:
    """It does not answer; the command says whom to look at, in bounded time, and `ls` lists it as silent."""
    code = (
        "import sys; from shmrt.cli import remote; remote.ANSWER_S = 0.2\n"
        "from shmrt.cli.main import main; raise SystemExit(main(sys.argv[1:]))"
    )
    place = tmp_path / "place"
    held = RuntimeDirectory.claim("shop", str(place))
    held.rooted(os.getpid())
    done = subprocess.run(
        [sys.executable, "-c", code, "--runtime-dir", str(place), "status"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )
    refused(done, 4, "did not answer for 0.2 s", str(os.getpid()))
    [row] = json.loads(cli(place, "ls", "-o", "json").stdout)["runtimes"]
    assert (row["state"], row["program"]) == ("silent", os.getpid()) and row["next"]
    held.remove()


def test_old_and_new_do_not_understand_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An old client with a new root, and a new client with what an old root might say: both are told."""
    from shmrt.supervise import control

    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        monkeypatch.setattr(control, "SCHEMA", "shmrt.control/2")
        refused(cli(place, "status"), 2, "shmrt.control/2", "environment")
        monkeypatch.undo()
        listener = root.directory.control_fd
        assert listener >= 0
    held = RuntimeDirectory.claim("shop", str(place))
    held.rooted(os.getpid())
    server = socket.socket(fileno=os.dup(held.control_fd))
    asking = subprocess.Popen(
        command(place, "status"), env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    )
    server.setblocking(True)
    client, _ = server.accept()
    client.recv(65536)
    client.sendall(b"+OK hello\n")
    _, err = asking.communicate(timeout=WATCHDOG_S)
    assert asking.returncode == 1 and "does not understand" in err
    client.close()
    server.close()
    held.remove()


def published(root: Any, *names: str) -> None:
    done: list[bool] = []

    def publish() -> None:
        for number, name in enumerate(names):
            root.control.publish(name, {"seconds": number}, {"id": f"w{number}", "reason": None})
        done.append(True)

    root.post(publish)
    while not done:
        time.sleep(0.001)


def test_events(tmp_path: Path) -> None:
    """In order, with a time that people read; filtered by whole values; as text, JSON and JSON lines."""
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        published(root, "worker.ready", "worker.exit", "worker.ready")
        lines = cli(place, "events").stdout.splitlines()
        assert len(lines) == 3 and lines[1].endswith("worker.exit  id=w1 seconds=1")
        document = json.loads(cli(place, "events", "-o", "json").stdout)
        assert [event["seq"] for event in document["events"]] == [1, 2, 3] and document["dropped"] == 0
        assert document["events"][0]["time"].endswith("+00:00")
        several = cli(place, "events", "-o", "jsonl", "--filter", "name=worker.ready", "--filter", "id=w2").stdout
        assert [json.loads(line)["seq"] for line in several.splitlines()] == [3]
        assert cli(place, "events", "--since", "0").stdout == ""
        refused(cli(place, "events", "--filter", "x"), 2, "KEY=VALUE")
        for _ in range(300):
            published(root, *["worker.exit"] * 4)
        assert cli(place, "events").stdout.startswith("dropped 179\n")


def test_events_are_followed_to_the_end(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        published(root, "worker.ready")
        following = subprocess.Popen(
            command(place, "events", "-f", "-o", "jsonl"),
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert following.stdout is not None
        assert json.loads(following.stdout.readline())["name"] == "worker.ready"
        published(root, "worker.exit")
        assert json.loads(following.stdout.readline())["seq"] == 2
        root.end()
        assert following.stdout.read() == ""
        assert following.wait(WATCHDOG_S) == 0
        following.stdout.close()


def test_inspect(tmp_path: Path) -> None:
    place = tmp_path / "place"
    with fake_root("shop", place) as root:
        root.script = lambda verb, args, reply: reply(
            True, {"id": args["worker"], "slot": {"epoch": 3}, "last_exit_detail": "Traceback\n  line\n", "none": None}
        )
        assert cli(place, "inspect", "worker", "a/b").stdout == (
            "id: a/b\nslot:\n  epoch: 3\nlast_exit_detail:\n  Traceback\n    line\n"
        )
        assert json.loads(cli(place, "inspect", "worker", "x", "-o", "json").stdout)["slot"] == {"epoch": 3}
        refused(cli(place, "inspect", "task", "x"), 2, "inspect task is not available in this version")
        refused(cli(place, "inspect", "rong", "x"), 2, "did you mean 'ring'")
        refused(cli(place, "inspect", "ring", "no-such-ring-anywhere"), 2, "no-such-ring-anywhere")
        refused(cli(place, "inspect", "worker"), 2, "inspect worker needs a NAME")
        refused(cli(place, "inspect", "x"), 2, "python -m shmrt inspect worker x")
        refused(cli(place, "inspect", "wroker", "x"), 2, "python -m shmrt inspect worker x")


def test_inspect_of_a_named_ring(tmp_path: Path) -> None:
    """No runtime is needed, nothing is taken out."""
    import shmrt

    name = f"inspected-{os.getpid()}-{time.monotonic_ns()}"
    ring = shmrt.Ring.create(shmrt.RingSpec(slots=8), name=name)
    try:
        ring.put("x")
        body = json.loads(cli(tmp_path / "place", "inspect", "ring", name, "-o", "json").stdout)
        assert (body["name"], body["capacity"], body["stats"]["depth"]) == (name, 8, 1)
        assert ring.get() == "x"
    finally:
        ring.unlink()


def test_ls(tmp_path: Path) -> None:
    """The living and the dead, with what to do about the dead."""
    place = tmp_path / "place"
    assert "no runtime" in cli(place, "ls").stderr
    RuntimeDirectory.claim("old", str(place)).leave("it gave up: x")
    with fake_root("shop", place) as root:
        root.script = answering
        done = cli(place, "ls")
        assert "old: it gave up: x -> python -m shmrt clean" in done.stderr
        rows = [line.split() for line in done.stdout.splitlines()]
        assert rows[0] == ["NAME", "STATE", "PROGRAM", "ROOT", "UP"]
        assert [row[:3] for row in rows[1:]] == [
            ["old", "stale", str(os.getpid())],
            ["shop", "degraded", str(os.getpid())],
        ]
        assert cli(place, "ls", "-o", "name").stdout == "old\nshop\n"
        assert str(place / "shop") in cli(place, "ls", "-o", "wide").stdout
        found = [json.loads(line) for line in cli(place, "ls", "-o", "jsonl").stdout.splitlines()]
        assert [(one["schema"], one["name"]) for one in found] == [("shmrt.ls/1", "old"), ("shmrt.ls/1", "shop")]


def test_clean(tmp_path: Path) -> None:
    """Only what is dead; without a terminal only with --yes."""
    place = tmp_path / "place"
    assert "nothing to remove" in cli(place, "clean").stderr
    for name in ("a", "b"):
        RuntimeDirectory.claim(name, str(place)).leave("it gave up: x")
    with fake_root("shop", place):
        done = cli(place, "clean")
        assert done.stdout.count("would remove") == 2 and "--yes" in done.stderr
        assert sorted(os.listdir(place)) == ["a", "b", "shop"]
        assert cli(place, "--name", "a", "clean", "--yes").stdout.startswith(f"removed {place}/a: it gave up: x")
        refused(cli(place, "--name", "shop", "clean", "--yes"), 1, "not stale")
        refused(cli(place, "clean", "--yes", "--dry-run"), 2, "contradict")
        (place / "b" / "notes").write_text("mine")
        refused(cli(place, "clean", "--yes"), 1, "b cannot be removed", "by hand")
        (place / "b" / "notes").unlink()
        body = json.loads(cli(place, "clean", "--yes", "-o", "json").stdout)
        assert [(one["name"], one["removed"]) for one in body["directories"]] == [("b", True)]
        assert os.listdir(place) == ["shop"]


def test_looking_imports_nothing_heavy(tmp_path: Path) -> None:
    """Neither numpy nor the core of shmrt, nor anything of the user's."""
    code = (
        "import sys; from shmrt.cli.main import main; main(sys.argv[1:])\n"
        "print([m for m in ('numpy', 'shmrt._native', 'shmrt.pool', 'asyncio') if m in sys.modules], file=sys.stderr)"
    )
    with fake_root("shop", tmp_path / "place") as root:
        root.script = answering
        for verb in ("status", "tree", "ls"):
            done = subprocess.run(
                [sys.executable, "-c", code, "--runtime-dir", str(tmp_path / "place"), verb],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                capture_output=True,
                text=True,
                timeout=WATCHDOG_S,
            )
            assert done.stderr.strip().splitlines()[-1] == "[]", done.stderr

"""The command line and real runtimes: run, look, steer, reload, give up, stop; every exit code of `run`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrt.cli.drive import SAME_S

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 120

MODULE = """
import os, signal, sys, time
from pathlib import Path
import shmrt
from shmrt import Child, Pool, Server, Supervisor, call

HERE = Path(__file__).parent

def note(word):
    with open(HERE / "notes", "a") as file:
        file.write(word + "\\n")

def stay(word="stay"):
    try:
        note(word)
        while True:
            time.sleep(3600)
    finally:
        note("end of " + word)

def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note("stubborn")
    while True:
        time.sleep(3600)

def bomb():
    raise ValueError("boom")

def slow(item):
    time.sleep(item)
    return os.getpid()

def take(item):
    note(f"took {item}")

class Counter(Server):
    def init(self, start=0):
        self.n = start
    @call
    def add(self, by=1):
        self.n += by
        return self.n

class Bad(Server):
    def init(self):
        raise RuntimeError("no database")

class Sleepy(Server):
    def init(self):
        time.sleep(3600)

tree = Supervisor([
    Child(stay, id="stay"),
    Child(Counter, 3, name="counter"),
    Child(Pool, 2, id="hash", name="hash"),
    Child(Supervisor([Child(stay, "inner", id="inner")], strategy="one_for_all"), id="below"),
])
crash = Supervisor([Child(stay, id="stay"), Child(bomb)], max_restarts=2, max_seconds=60)
deep = Supervisor([Child(Supervisor([Child(bomb)], max_restarts=0), id="inner")], max_restarts=0)
bad = Supervisor([Child(Bad, name="bad")])
sleepy = Supervisor([Child(Sleepy, name="sleepy")])
hard = Supervisor([Child(stubborn, shutdown="infinity")])
over = Supervisor([Child(print, id="once", restart="transient", significant=True)], auto_shutdown="any_significant")

def shaped(n=1):
    return Supervisor([Child(stay, f"w{i}", id=f"w{i}") for i in range(n)])

def numbers():
    n = 0
    while True:
        time.sleep(0.01)
        yield n
        n += 1

pipe = shmrt.Pipeline("lines").map(str, workers=2).source(numbers)
"""


class Place:
    """A folder with a module of targets, and a place for the directories of its runtimes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.env = os.environ | {"PYTHONPATH": str(ROOT), "SHMRT_RUNTIME_DIR": str(path / "place")}
        (path / "app.py").write_text(MODULE)
        self.running: list[subprocess.Popen[str]] = []

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shmrt", *words],
            cwd=self.path,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=WATCHDOG_S,
        )

    def ok(self, *words: str) -> str:
        done = self(*words)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.ok("-o", "json", *words))

    def start(self, *words: str) -> subprocess.Popen[str]:
        """`run`, once it is up."""
        one = subprocess.Popen(
            [sys.executable, "-m", "shmrt", "run", *words],
            cwd=self.path,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(one)
        assert one.stderr is not None
        said = one.stderr.readline()
        assert said.startswith("up after"), said + one.stderr.read()
        return one

    def end(self, one: subprocess.Popen[str], code: int) -> str:
        """What it said on stderr; all of it is gone then."""
        out, err = one.communicate(timeout=WATCHDOG_S)
        assert one.returncode == code, (one.returncode, out, err)
        assert "Traceback" not in err
        return err

    def notes(self) -> list[str]:
        path = self.path / "notes"
        return path.read_text().splitlines() if path.exists() else []

    def until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            time.sleep(0.001)

    def row(self, path: str) -> dict[str, Any]:
        def each(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
            for row in rows:
                yield row
                yield from each(row.get("children", []))

        return next(row for row in each(self.json("tree")["supervisors"]) if row["path"] == path)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    for one in made.running:
        if one.poll() is None:
            one.kill()
        one.communicate()


@pytest.mark.slow
def test_a_tree_from_start_to_stop(place: Place) -> None:
    """It is found by a name made of the target's, shows all of itself, and ends in order with exit code 0."""
    one = place.start("app:tree")
    # A pool is up when one of its workers serves; what serves comes to rest a moment later.
    place.until(lambda: [row["state"] for row in place.json("status")["pools"][0]["workers"]] == ["idle"] * 2)
    place.until(lambda: len(place.notes()) == 2)
    [found] = place.json("ls")["runtimes"]
    assert (found["name"], found["state"], found["program"]) == ("app", "running", one.pid)
    body = place.json("status")
    assert (body["state"], body["problems"], body["program"]) == ("running", [], one.pid)
    children = body["supervisors"][0]["children"]
    assert [(row["id"], row["kind"], row["state"]) for row in children] == [
        ("stay", "function", "running"),
        ("counter", "server", "idle"),
        ("hash", "pool", "running"),
        ("below", "supervisor", "running"),
    ]
    assert [(row["id"], row["state"]) for row in body["pools"][0]["workers"]] == [
        ("hash/0", "idle"),
        ("hash/1", "idle"),
    ]
    for row in (children[0], children[1], body["pools"][0]["workers"][0]):
        os.kill(row["pid"], 0)
    assert place("status", "--check").returncode == 0
    assert place.json("inspect", "worker", "counter")["mailbox"]["capacity"] == 1024
    assert "3 of 3 restarts left in 5s" in place.ok("tree")
    assert place.ok("stop", "--wait") == "app: stop: done\n"
    assert "ended after" in place.end(one, 0)
    assert place.notes()[-2:] == ["end of inner", "end of stay"]  # in reverse order of their start
    assert place("status").returncode == 3 and os.listdir(place.path / "place") == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_in_order(place: Place, number: signal.Signals) -> None:
    one = place.start("app:tree")
    place.until(lambda: sorted(place.notes()) == ["inner", "stay"])  # a child that is up may not have begun yet
    one.send_signal(number)
    assert f"{number.name}: stopping in order, at most 30 s" in place.end(one, 0)
    assert place.notes()[-1] == "end of stay" and os.listdir(place.path / "place") == []


@pytest.mark.slow
def test_a_second_signal_stops_now(place: Place) -> None:
    """A child that does not want to end is not waited for; the command ends by the signal."""
    one = place.start("app:hard", "--drain-timeout", "1h")
    place.until(lambda: place.notes() == ["stubborn"])
    pid = place.row("tree/stubborn")["pid"]
    one.send_signal(signal.SIGINT)
    place.until(lambda: place.json("tree")["supervisors"][0]["state"] == "stopping")
    stopping = time.monotonic()
    place.until(lambda: time.monotonic() - stopping > SAME_S)  # sooner it would be the first one again
    os.kill(pid, 0)
    one.send_signal(signal.SIGINT)
    place.end(one, -signal.SIGINT)
    place.until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.slow
def test_the_drain_has_a_limit(place: Place) -> None:
    """What does not end within drain_timeout is ended; the command ends by the signal."""
    one = place.start("app:hard", "--drain-timeout", "100ms")
    place.until(lambda: place.notes() == ["stubborn"])
    one.send_signal(signal.SIGTERM)
    place.end(one, -signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.parametrize(("target", "depth"), [("app:crash", 1), ("app:deep", 2)])
def test_giving_up_is_exit_code_5(place: Place, target: str, depth: int) -> None:
    """With the chain of reasons and the line that raised; the directory stays to say so until the next start."""
    done = place("run", target, "--name", "doomed")
    assert done.returncode == 5 and "gave up" in done.stderr, done.stderr
    assert "ValueError: boom" in done.stderr and f'{place.path}/app.py", line' in done.stderr
    assert done.stderr.count("was restarted too often") == depth + 1
    [row] = place.json("ls")["runtimes"]
    assert (row["name"], row["state"]) == ("doomed", "stale") and "gave up" in row["why"]
    asked = place("--name", "doomed", "status")
    assert asked.returncode == 3 and "gave up" in asked.stderr
    one = place.start("app:tree", "--name", "doomed")
    place.until(lambda: place.json("ls")["runtimes"][0]["state"] == "running")
    one.send_signal(signal.SIGTERM)
    place.end(one, 0)


@pytest.mark.slow
def test_a_tree_that_does_not_start(place: Place) -> None:
    """5 with the reason when a child fails; 4 when it takes too long; nothing is left in either case."""
    done = place("run", "app:bad")
    assert done.returncode == 5 and "child 'bad' did not start: RuntimeError: no database" in done.stderr
    for seconds in (0.3, 3.0, 30.0):  # on a busy machine the import alone may take longer
        done = place("run", "app:sleepy", "--ready-timeout", f"{seconds}s")
        assert done.returncode == 4, done.stderr
        if "starting the tree" in done.stderr:
            break
    assert f"starting the tree of 'app:sleepy' took longer than {seconds:g} s" in done.stderr
    assert os.listdir(place.path / "place") == []


@pytest.mark.slow
def test_a_signal_while_the_tree_starts(place: Place) -> None:
    one = subprocess.Popen(
        [sys.executable, "-m", "shmrt", "run", "app:sleepy"],
        cwd=place.path,
        env=place.env,
        stderr=subprocess.PIPE,
        text=True,
    )
    place.running.append(one)
    place.until(lambda: place("status").returncode == 0)
    one.send_signal(signal.SIGTERM)
    assert "before the tree was up" in place.end(one, -signal.SIGTERM)


@pytest.mark.slow
def test_a_tree_that_is_over(place: Place) -> None:
    """It ended as it was meant to: exit code 0, and nothing stays."""
    done = place("run", "app:over", "-o", "json")
    assert done.returncode == 0 and json.loads(done.stdout)["reason"] == "shutdown", done.stderr
    assert os.listdir(place.path / "place") == []


@pytest.mark.slow
def test_names(place: Place) -> None:
    """One that was asked for must be free; one of ours gets a number."""
    first, second = place.start("app:shaped"), place.start("app:shaped")
    assert place.ok("ls", "-o", "name") == "app\napp-2\n"
    done = place("run", "app:shaped", "--name", "app")
    assert done.returncode == 2 and f"process {first.pid} has it" in done.stderr
    assert place("run", "app:shaped", "--name", "../up").returncode == 2
    place.ok("--name", "app-2", "stop", "--wait")
    place.end(second, 0)
    first.send_signal(signal.SIGTERM)
    place.end(first, 0)


@pytest.mark.slow
def test_a_killed_program_leaves_a_stale_name(place: Place) -> None:
    one = place.start("app:tree")
    root = place.json("status")["pid"]
    one.kill()
    one.communicate()
    place.until(lambda: not Path(f"/proc/{root}").exists())
    [row] = place.json("ls")["runtimes"]
    assert row["state"] == "stale" and place("--name", "app", "status").returncode == 3
    assert place.ok("clean", "--yes").startswith("removed")
    assert not (place.path / "place" / "app").exists()


@pytest.mark.slow
def test_a_killed_root_is_followed_by_another(place: Place) -> None:
    """The same name, the same socket, another pid; the tree starts afresh."""
    one = place.start("app:tree")
    before = place.json("status")["pid"]
    os.kill(before, signal.SIGKILL)

    def again() -> bool:
        done = place("status", "-o", "json")
        body = json.loads(done.stdout) if done.returncode == 0 else {"pid": before}
        return body["pid"] != before and body["state"] == "running"

    place.until(again)
    [row] = place.json("ls")["runtimes"]
    assert row["pid"] == place.json("status")["pid"] != before and row["program"] == one.pid
    place.ok("stop", "--wait")
    place.end(one, 0)


@pytest.mark.slow
def test_steering_a_tree(place: Place) -> None:
    """Children are restarted without costing their supervisor anything; a whole subtree, too."""
    one = place.start("app:tree")
    before = {path: place.row(path) for path in ("tree/counter", "tree/below/inner", "tree/stay")}
    place.ok("restart", "counter", "--wait")
    place.ok("restart", "below", "--wait")
    after = {path: place.row(path) for path in before}
    assert after["tree/counter"]["pid"] != before["tree/counter"]["pid"]
    assert after["tree/below/inner"]["pid"] != before["tree/below/inner"]["pid"]
    assert after["tree/stay"]["pid"] == before["tree/stay"]["pid"]
    assert place.row("tree")["budget"]["used"] == 0
    done = place("restart", "countr")
    assert done.returncode == 2 and "did you mean 'counter'" in done.stderr
    place.ok("restart", "--wait")
    assert place.row("tree/stay")["pid"] != before["tree/stay"]["pid"]
    kept = [event["name"] for event in place.json("events", "--filter", "id=counter")["events"]]
    assert kept.count("worker.ready") == 3
    place.ok("stop", "--wait")
    place.end(one, 0)


@pytest.mark.slow
def test_a_dead_child_is_shown_with_its_reason(place: Place) -> None:
    one = place.start("app:tree")
    pid = place.row("tree/stay")["pid"]
    os.kill(pid, signal.SIGSEGV)
    place.until(lambda: (row := place.row("tree/stay"))["pid"] not in (pid, None) and row["state"] == "running")
    row = place.row("tree/stay")
    assert (row["last_exit"], row["restarts"]) == ("signal SIGSEGV", 1)
    assert place.row("tree")["budget"]["left"] == 2
    [event] = place.json("events", "--filter", "name=worker.exit", "--filter", "id=stay")["events"]
    assert event["metadata"]["reason"] == "signal SIGSEGV" and event["measurements"]["left"] == 2
    place.ok("stop", "--wait")
    place.end(one, 0)


PROGRAM = """
import sys, threading, time
import shmrt
import app

runtime = shmrt.Runtime(name="prog").start()
pool = shmrt.Pool(2, name="hash", runtime=runtime)
for line in sys.stdin:
    count, seconds = line.split()
    futures = [pool.submit(app.slow, float(seconds)) for _ in range(int(count))]
    print("submitted", flush=True)
print(runtime.wait(60), flush=True)
"""


class Program:
    """A program with a pool in a named runtime, which submits what it is told to."""

    def __init__(self, place: Place) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            cwd=place.path,
            env=place.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        place.running.append(self.process)
        self.submit(2, 0)

    def submit(self, count: int, seconds: float) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{count} {seconds}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "submitted\n"


@pytest.mark.slow
def test_steering_a_pool(place: Place) -> None:
    """scale, pause, resume, drain, restart: done, already, and refused in words."""
    program = Program(place)
    assert place.ok("scale", "hash", "3", "--wait") == "prog: hash to 3 workers: done\n"
    assert place.ok("scale", "hash", "3") == "prog: hash to 3 workers: already\n"
    assert place.json("status")["pools"][0]["ready"] == 3
    done = place("scale", "hash", "99")
    assert done.returncode == 2 and "at most" in done.stderr
    done = place("scale", "hsah", "2")
    assert done.returncode == 2 and "did you mean 'hash'" in done.stderr
    place.ok("pause", "hash")
    assert place.ok("pause", "hash").endswith("already\n")
    program.submit(3, 0)
    status = place.json("status")
    assert (status["state"], status["pools"][0]["state"]) == ("degraded", "paused")
    assert status["problems"][0]["next"] == "python -m shmrt --name prog resume hash"
    waiting = place.ok("drain", "hash")
    assert "3 tasks of pool hash (it is paused)" in waiting
    assert place.json("status")["operations"][0]["waits_for"] == "3 tasks of pool hash (it is paused)"
    place.ok("resume", "hash")
    place.ok("drain", "--wait")
    assert place.ok("drain", "--wait").endswith("already\n")
    pids = {row["pid"] for row in place.json("status")["pools"][0]["workers"]}
    place.ok("restart", "hash", "--rolling", "--wait")
    rolled = {row["pid"] for row in place.json("status")["pools"][0]["workers"] if row["state"] == "idle"}
    assert len(rolled) == 3 and not rolled & pids
    place.ok("restart", "hash/0", "--wait")
    assert len(rolled & {row["pid"] for row in place.json("status")["pools"][0]["workers"]}) == 2
    done = place("reload")
    assert done.returncode == 1 and "no configuration" in done.stderr
    assert program.process.stdin is not None
    program.process.stdin.close()
    program.process.stdin = None
    place.ok("stop", "--wait")
    out, _ = program.process.communicate(timeout=WATCHDOG_S)
    assert out == "shutdown\n" and program.process.returncode == 0


@pytest.mark.slow
def test_commands_that_overlap(place: Place) -> None:
    """C14. Many clients at once: nobody is refused, nothing hangs, and the last order is what holds."""
    program = Program(place)
    wishes = [["scale", "hash", str(1 + n % 4)] for n in range(8)]
    wishes += [["drain", "hash"], ["pause", "hash"], ["resume", "hash"], ["restart", "hash", "--rolling"]] * 2
    clients = [
        subprocess.Popen(
            [sys.executable, "-m", "shmrt", *words],
            cwd=place.path,
            env=place.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words in wishes
    ]
    for one in clients:
        out, err = one.communicate(timeout=WATCHDOG_S)
        assert one.returncode == 0, out + err
    place.ok("resume", "hash", "--wait")
    place.ok("scale", "hash", "2", "--wait")
    place.until(lambda: place.json("status")["operations"] == [])
    [pool] = place.json("status")["pools"]
    assert (pool["wanted"], pool["ready"], pool["state"]) == (2, 2, "running")
    place.ok("stop", "--now", "--wait")
    assert program.process.stdin is not None
    program.process.stdin.close()
    program.process.stdin = None
    program.process.communicate(timeout=WATCHDOG_S)


APPLICATION = """
[runtime]
name = "shop"
[ring.{ring}]
slots = 64
[child.one]
start = "app:stay"
args = ["one"]
[pool.takers]
target = "app:take"
input = "{ring}"
workers = 2
[supervisor.below.child.two]
start = "app:stay"
args = ["two"]
"""


@pytest.mark.slow
def test_an_application_file_and_its_reload(place: Place) -> None:
    """HUP and `reload`: what changed is replaced, what is new starts, what is gone ends, an invalid file changes
    nothing. Messages of the ring are worked on all the while, and the ring goes with the application."""
    import shmrt

    ring_name = f"docs-{os.getpid()}-{time.monotonic_ns()}"
    file = place.path / "app.toml"
    text = APPLICATION.format(ring=ring_name)
    file.write_text(text)
    assert "tree, one_for_one" in place.ok("check", "app.toml")
    one = place.start("app.toml")
    ring = shmrt.Ring.attach(ring_name)
    ring.put_many([1, 2, 3])
    place.until(lambda: {"took 1", "took 2", "took 3"} <= set(place.notes()))
    before = {path: place.row(path) for path in ("tree/one", "tree/below/two")}

    file.write_text(text.replace('"two"', '"three"').replace("workers = 2", "workers = 3"))
    place.ok("reload", "--wait")
    assert place.json("status")["pools"][0]["wanted"] == 3
    place.until(lambda: "three" in place.notes())
    assert place.row("tree/below/two")["pid"] != before["tree/below/two"]["pid"]

    pid = place.row("tree/one")["pid"]
    file.write_text(text.replace("[child.one]", "[child.other]").replace("workers = 2", "workers = 3"))
    one.send_signal(signal.SIGHUP)
    assert one.stderr is not None
    assert one.stderr.readline().startswith("reload: done (")  # of the command before
    place.until(lambda: [row["id"] for row in place.json("tree")["supervisors"][0]["children"]][-1] == "other")
    place.until(lambda: not Path(f"/proc/{pid}").exists())

    file.write_text("[child.broken\n")
    pids = [row.get("pid") for row in place.json("tree")["supervisors"][0]["children"]]
    done = place("reload", "--wait")
    assert done.returncode == 1 and "not reloaded" in done.stderr and "line 1" in done.stderr
    file.write_text(text.replace("[runtime]", '[supervisor]\nstrategy = "one_for_all"\n[runtime]'))
    done = place("reload", "--wait")
    assert done.returncode == 1 and "strategy" in done.stderr and "nothing was changed" in done.stderr
    assert [row.get("pid") for row in place.json("tree")["supervisors"][0]["children"]] == pids

    ring.put("last")
    place.until(lambda: "took last" in place.notes())
    place.ok("stop", "--wait")
    place.end(one, 0)
    with contextlib.suppress(Exception):
        ring.close()
    with pytest.raises(shmrt.NotFound):
        shmrt.Ring.attach(ring_name)


@pytest.mark.slow
def test_flags_shape_the_tree(place: Place) -> None:
    done = place("run", "app:crash", "--max-restarts", "0", "--within", "1m")
    assert done.returncode == 5 and "ValueError: boom\n" in done.stderr
    one = place.start(
        "app:shaped", "--set", "n=3", "--strategy", "rest_for_one", "--max-restarts", "9", "--within", "7s"
    )
    row = place.row("tree")
    assert (row["strategy"], row["budget"]["limit"], row["budget"]["seconds"]) == ("rest_for_one", 9, 7.0)
    assert len(row["children"]) == 3
    one.send_signal(signal.SIGTERM)
    place.end(one, 0)
    done = place("run", "app:pipe", "--strategy", "one_for_all")
    assert done.returncode == 2 and "Pipeline" in done.stderr


@pytest.mark.slow
def test_a_pipeline_has_a_name_too(place: Place) -> None:
    """It is found, looked at, and stopped as by TERM: drained, exit code 0."""
    one = subprocess.Popen(
        [sys.executable, "-m", "shmrt", "run", "app:pipe"],
        cwd=place.path,
        env=place.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    place.running.append(one)
    assert one.stdout is not None
    assert one.stdout.readline() == "'0'\n"
    body = place.json("--name", "app", "status")
    assert body["program"] == one.pid and len(body["pools"]) == 1
    place.ok("--name", "app", "stop")
    place.end(one, 0)
    assert os.listdir(place.path / "place") == []

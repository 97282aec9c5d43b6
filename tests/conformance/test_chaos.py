"""`python -m shmrt chaos` with real kills and stops: what holds is said to hold, and each of the four words is found.

The targets (chaos_jobs.py) make sure that a fault hits where it should: input 7 waits in the run under faults until it
is killed, or stopped. Seeds are new each time and part of what a failed test prints.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tree_kit import alive, until

from shmrt.cli.chaos_strike import Striker, parent_of, pidfd_of_child

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 240


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).with_name("chaos_jobs.py"), tmp_path / "chaos_jobs.py")
    return tmp_path


def words_of(*words: str) -> list[str]:
    return [sys.executable, "-m", "shmrt", "chaos", *words]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def chaos(here: Path, *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document. Long faults, so that the run decides when it is over; no stops unless asked for."""
    rates = {"--kill-rate": "30", "--stop-rate": "0", "--duration": "200s", "--runs": "1"}
    more = [part for flag, value in rates.items() if flag not in words for part in (flag, value)]
    done = subprocess.run(
        words_of(*words, *more, "-o", "json"),
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done.returncode, json.loads(done.stdout)


NONE = {"lost": 0, "duplicated": 0, "unexpected": 0, "corrupted": 0}


def four(body: dict[str, Any]) -> dict[str, int]:
    return {word: body[word] for word in NONE}


@pytest.mark.parametrize("more", [[], ["--from-outside"]], ids=["ordered", "from outside"])
def test_a_sound_pipeline_holds_under_kills(here: Path, more: list[str]) -> None:
    """Its only worker was killed while it ran input 7, which ran again; nothing of that is seen in what came out."""
    code, body = chaos(here, "chaos_jobs:one", "--set", "which=steady", "--workers", "1", *more)
    assert (code, body["holds"], four(body)) == (0, True, NONE)
    assert body["faults"]["killed"] >= 1 and body["repeated"] >= 1 and body["given_up"] == 0
    assert (body["rounds"], body["inputs"], body["expected"], body["outputs"]) == (1, 40, 40, 40)
    times = body["recovery"]["output"]
    assert times["count"] >= 1 and 0 < times["p50"] <= times["p99"] <= times["max"]
    assert body["recovery"]["ready"]["count"] >= 1 and not body["stuck"] and body["error"] is None


def test_every_kind_of_stage_is_followed(here: Path) -> None:
    """Filtered, split and batched: what is not there by right is not missed."""
    code, body = chaos(here, "chaos_jobs:whole")
    assert (code, body["holds"], four(body)) == (0, True, NONE)
    assert body["expected"] == body["outputs"] == 22  # of 32 inputs that are kept, 64 parts, by three
    assert body["regrouped"] == 0 and body["faults"]["killed"] >= 1


def test_killed_roots_lose_nothing(here: Path) -> None:
    code, body = chaos(here, "chaos_jobs:one", "--set", "which=steady", "--kill-rate", "0", "--root-rate", "5")
    assert (code, body["holds"], four(body)) == (0, True, NONE)
    assert body["faults"]["roots_killed"] >= 1 and body["recovery"]["root"]["count"] >= 1


def test_stopped_workers_go_on_and_lose_nothing(here: Path) -> None:
    code, body = chaos(here, "chaos_jobs:one", "--set", "which=halted", "--kill-rate", "0", "--stop-rate", "30")
    assert (code, body["holds"], four(body)) == (0, True, NONE)
    assert body["faults"]["stopped"] >= 1 and body["faults"]["stopped_seconds"] > 0
    assert body["faults"]["killed"] == 0 and body["repeated"] == 0


@pytest.mark.parametrize(
    ("which", "kind", "word"),
    [
        ("losing", "flat_map", "lost"),
        ("repeating", "flat_map", "duplicated"),
        ("inventing", "flat_map", "unexpected"),
        ("changing", "map", "corrupted"),
    ],
)
def test_each_of_the_four_is_found(here: Path, which: str, kind: str, word: str) -> None:
    """The stage does something else when it runs again after a death; a run without faults shows nothing of it."""
    code, body = chaos(here, "chaos_jobs:one", "--set", f"which={which}", "--set", f"kind={kind}")
    assert (code, body["holds"], four(body)) == (1, False, NONE | {word: 1})
    assert body["examples"] == [{"what": word, "inputs": [7], "times": 1}]
    assert four(body["without_faults_again"]) == NONE
    assert body["faults"]["killed"] >= 1


def test_what_is_given_up_is_shown_and_not_lost(here: Path) -> None:
    """From outside each death counts as an attempt of what was running."""
    words = ("--set", "which=hopeless", "--set", "attempts=2", "--from-outside")
    code, body = chaos(here, "chaos_jobs:one", *words)
    assert (code, body["holds"], four(body)) == (0, True, NONE)
    letters = {tuple(letter["inputs"]): letter for letter in body["dead_letters"]}
    assert body["given_up"] == len(letters) and body["outputs"] == 40 - len(letters)
    assert (letters[7,]["stage"], letters[7,]["item"], letters[7,]["signal"]) == ("work", 7, "SIGKILL")


def test_what_does_not_move_any_more_is_stuck(here: Path) -> None:
    """The faults are over, and an input still waits: that is a broken verdict, not a command that never ends."""
    words = ("--set", "which=hopeless", "--kill-rate", "0", "--patience", "0.5s")
    code, body = chaos(here, "chaos_jobs:one", *words)
    assert (code, body["holds"], body["stuck"]) == (1, False, True)
    assert body["lost"] >= 1 and body["without_faults_again"] is None


@pytest.mark.parametrize(
    ("target", "code", "part"),
    [
        ("shifting", 2, "got another input 1 than the first"),
        ("nothing", 2, "its source gave nothing"),
        ("failing", 1, "no more data"),
    ],
)
def test_where_there_is_nothing_to_compare(here: Path, target: str, code: int, part: str) -> None:
    words = words_of(f"chaos_jobs:{target}", "--duration", "20s", "--runs", "2")
    done = subprocess.run(
        words, cwd=here, env=environment(), capture_output=True, text=True, timeout=WATCHDOG_S, check=False
    )
    assert (done.returncode, done.stdout) == (code, "") and part in done.stderr and "Traceback" not in done.stderr


def test_ctrl_c_gives_the_verdict_so_far(here: Path) -> None:
    """The first ends faults and source; what was put in comes out and is judged. The command ends by that signal."""
    words = words_of(
        "chaos_jobs:one", "--set", "which=gated", "--kill-rate", "0", "--stop-rate", "0", "--duration", "200s"
    )
    with subprocess.Popen(
        words, cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        until(lambda: (here / "calls").exists() or run.poll() is not None)
        run.send_signal(signal.SIGINT)
        assert run.stderr is not None
        assert any("draining" in line for line in run.stderr)
        (here / "go").write_text("x")
        out, err = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode == -signal.SIGINT, (out, err)
    assert out.startswith("chaos chaos_jobs:one: held; 1 run of 40 inputs") and "pending" not in out
    assert int(re.findall(r"(\d+) outputs", out)[0]) < 40


def test_cut_short_it_says_what_is_pending(here: Path) -> None:
    """What the time for draining did not suffice for is neither lost nor there."""
    words = words_of("chaos_jobs:one", "--set", "which=hopeless", "--kill-rate", "0", "--stop-rate", "0")
    words += ["--duration", "200s", "--drain-timeout", "0.2s", "-o", "json"]
    with subprocess.Popen(
        words, cwd=here, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        until(lambda: (here / "calls").exists() or run.poll() is not None)
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode == -signal.SIGTERM, (out, err)
    body = json.loads(out)
    assert body["holds"] and body["pending"] >= 1 and four(body) == NONE and body["signal"] == "SIGTERM"


def test_the_page_shows_what_the_command_does(here: Path) -> None:
    """The example of docs/chaos.md, in less time."""
    page = (ROOT / "docs" / "chaos.md").read_text()
    (here / "words.py").write_text(re.findall(r"```text\n(import shmrt.*?)```", page, re.DOTALL)[0])
    command = re.findall(r"python -m (shmrt chaos words:pipe .*)", page)[0].split()[1:]
    done = subprocess.run(
        [*words_of(*command[1:]), "--duration", "0.2s"],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    shown = re.findall(r"```text\n(chaos words.*?)```", page, re.DOTALL)[0]
    blank = [re.sub(r"[\d,.]+", "N", line.replace("runs", "run")) for line in shown.splitlines()]
    found = [re.sub(r"[\d,.]+", "N", line.replace("runs", "run")) for line in done.stdout.splitlines()]
    assert [line for line in blank if "until" not in line] == [line for line in found if "until" not in line]


# ---- nobody else
@pytest.fixture
def stranger() -> Any:
    """A process that is no child of any root."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        yield process
        process.kill()


def test_only_a_child_of_that_process_gets_a_descriptor(stranger: Any) -> None:
    assert parent_of(stranger.pid) == os.getpid()
    fd = pidfd_of_child(stranger.pid, os.getpid())
    assert fd is not None
    os.close(fd)
    for pid, parent in (
        (stranger.pid, os.getppid()),
        (stranger.pid, None),
        (os.getppid(), os.getpid()),
        (0, 1),
        (-5, 1),
    ):
        assert pidfd_of_child(pid, parent) is None
    stranger.kill()
    stranger.wait()
    assert pidfd_of_child(stranger.pid, os.getpid()) is None and parent_of(stranger.pid) is None


def test_a_pid_that_is_somebody_elses_by_now_is_not_hit(stranger: Any) -> None:
    """The runtime's word for a worker's pid may be old. Whoever has it now is not a child of the root: no signal."""
    pool = SimpleNamespace(number=1, first=2, count=8)
    runtime = SimpleNamespace(pid=stranger.pid, _pools={1: pool})  # its root is another process, too
    rates = {"kill_rate": 500.0, "stop_rate": 500.0}
    with Striker(rates, 1, 600.0, outside=True) as striker:
        striker.attach(runtime)
        victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        try:
            striker.hear(("started", 2, 1, victim.pid))
            striker.hear(("ready", 2, 1))
            striker.start()
            until(lambda: striker.missed > 50)
            striker.stop()
            assert alive(victim.pid) and victim.poll() is None
            state = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()[0]
            assert state in "SR" and (striker.kills, striker.stops) == (0, 0)
        finally:
            victim.kill()
            victim.wait()


def test_whoever_is_stopped_goes_on_at_the_end() -> None:
    """Also when the faults end while a pulse lasts."""
    victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        pool = SimpleNamespace(number=1, first=2, count=8)
        runtime = SimpleNamespace(pid=os.getpid(), _pools={1: pool})  # so that this process plays the root
        striker = Striker({"stop_rate": 1000.0}, 1, 600.0)
        striker.attach(runtime)
        striker.hear(("started", 2, 1, victim.pid))
        striker.hear(("ready", 2, 1))
        stat = Path(f"/proc/{victim.pid}/stat")
        striker.start()
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        striker.stop()
        until(lambda: stat.read_text().rpartition(")")[2].split()[0] in "SR")
        assert striker.stops >= 1 and striker.stopped_s > 0 and not striker._stopped and striker.over.is_set()
    finally:
        victim.kill()
        victim.wait()


def test_the_recovery_from_a_roots_death_is_that_of_the_next_root() -> None:
    """What the dead one still had to say comes before its end is told, however late; and only our own kills count."""
    striker = Striker({"root_rate": 1.0}, 1, 1.0)
    pool = SimpleNamespace(number=1, first=2, count=4)
    striker._runtime = SimpleNamespace(_pools={1: pool}, pid=0)
    striker._kill_root()  # of a runtime that has none
    assert (striker.roots, striker.missed, striker._root_killed) == (0, 1, None)
    striker._root_killed = time.monotonic()
    striker.hear(("ready", 2, 1))
    striker.hear(("root_lost", 5, 9))
    assert striker.recovery.until_root == []
    striker.hear(("ready", 3, 1))
    striker.hear(("root_lost", 6, 9))
    striker.hear(("ready", 4, 1))
    assert len(striker.recovery.until_root) == 1 and striker.recovery.until_ready == []

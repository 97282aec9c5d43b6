"""What reaches stdout in the JSON modes, whatever the user's code prints, and what a terminal gets to see."""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from shmrt.cli.plain import json_text

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 120

TARGETS = """
import os, subprocess, sys, time
import shmrt

print("import prints")
os.write(1, b"import writes\\n")

def _stage(x):
    print("worker prints", flush=True)
    os.write(1, b"worker writes\\n")
    return x

def _source():
    for n in range(3):
        print("source prints")
        sys.__stdout__.write("source goes round\\n")
        subprocess.run(["echo", "child prints"])
        yield n

def loud():
    return shmrt.Pipeline("loud").map(_stage, workers=1).source(_source)

def louder():
    return loud()

def consume(run):
    print("consume prints")
    return {"total": sum(run)}

louder.consume = consume
del consume

def numbers():
    return shmrt.Pipeline("numbers").map(lambda x: {"value": float(x), ("a", 1): [float("inf")]}, workers=1).source(
        ["nan", "-inf", "1"]
    )

def _slowly(x):
    time.sleep(0.02)
    return x

def paced():
    return shmrt.Pipeline("paced").map(_slowly, workers=1, ring=shmrt.RingSpec(slots=2)).source(range(40))

def quiet(run):
    for _ in run:
        pass

paced.consume = quiet
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "targets.py").write_text(TARGETS)
    return tmp_path


def cli(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shmrt", *words],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


def strict(text: str) -> Any:
    """Reads JSON as other languages do, without Python's NaN and Infinity."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_alone_on_stdout(here: Path) -> None:
    done = cli(here, "run", "targets:louder", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert strict(done.stdout)["summary"] == {"total": 3}
    for printed in ("import prints", "import writes", "worker prints", "worker writes", "source prints"):
        assert printed in done.stderr
    for printed in ("source goes round", "child prints", "consume prints"):
        assert printed in done.stderr


def test_json_lines_are_alone_on_stdout(here: Path) -> None:
    done = cli(here, "run", "targets:loud", "-o", "jsonl")
    assert done.returncode == 0, done.stderr
    found = [strict(line) for line in done.stdout.splitlines()]
    assert found[:3] == [0, 1, 2] and found[3]["schema"] == "shmrt.run/1" and len(found) == 4


def test_check_keeps_stdout_clean_too(here: Path) -> None:
    done = cli(here, "check", "targets:loud", "-o", "json")
    assert strict(done.stdout)["schema"] == "shmrt.check/1" and "import writes" in done.stderr


def test_numbers_that_json_does_not_have_are_null(here: Path) -> None:
    found = [strict(line) for line in cli(here, "run", "targets:numbers", "-o", "jsonl").stdout.splitlines()]
    assert [item["value"] for item in found[:3]] == [None, None, 1.0]
    assert all(item["('a', 1)"] == [None] for item in found[:3])


def test_a_full_disk_behind_json(here: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "shmrt", "run", "targets:loud", "-o", "jsonl"],
            cwd=here,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=WATCHDOG_S,
        )
    assert done.returncode == 1 and "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    assert "cannot write to stdout" in done.stderr


class Unshowable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def test_anything_becomes_json() -> None:
    loop: list[Any] = [1]
    loop.append(loop)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert strict(json_text({"a": [math.nan, 1.5, (math.inf,)], (1, 2): {3}, None: True})) == {
        "a": [None, 1.5, [None]],
        "(1, 2)": "{3}",
        "null": True,
    }
    assert strict(json_text(loop)) == [1, "..."]
    assert isinstance(strict(json_text(deep)), str)
    assert "no text" in strict(json_text([Unshowable()]))[0]
    assert isinstance(strict(json_text([10**5000, math.nan]))[0], str)
    assert strict(json_text("\udcff")) == "\udcff"
    while deep:
        deep = deep.pop()  # else the interpreter would go as deep to free it


def on_a_terminal(here: Path, columns: int, env: dict[str, str], *words: str) -> str:
    """What a terminal of that width receives on stderr."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    started = subprocess.Popen(
        [sys.executable, "-m", "shmrt", *words],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        stdout=subprocess.DEVNULL,
        stderr=slave,
    )
    os.close(slave)
    received = b""
    with contextlib.suppress(OSError):  # EIO: the last writer has closed it
        while piece := os.read(master, 4096):
            received += piece
    os.close(master)
    assert started.wait(WATCHDOG_S) == 0, received
    return received.decode()


def test_progress_fits_a_terminal(here: Path) -> None:
    """Every state of the line leaves a column free, else it would wrap and could not be written over."""
    wide = on_a_terminal(here, 100, {"TERM": "xterm"}, "run", "targets:paced")
    assert re.search(r"\r\[#*\.+\] \d+ of 40", wide), wide
    narrow = on_a_terminal(here, 20, {"TERM": "xterm"}, "run", "targets:paced")
    states = narrow.replace("\r\n", "\n").rpartition("\r")[0].split("\n")[-1].split("\r")
    assert len([state for state in states if re.match(r"\d+ of 40 ", state)]) > 2, narrow
    assert all(len(state) < 20 and "[" not in state for state in states), states


@pytest.mark.parametrize("env", [{"TERM": "dumb"}, {"TERM": "xterm", "NO_COLOR": "1"}], ids=["dumb", "no_color"])
def test_no_escapes_where_they_are_not_wanted(here: Path, env: dict[str, str]) -> None:
    """A dumb terminal cannot go back in a line either, so that its lines are whole."""
    got = on_a_terminal(here, 80, env, "run", "targets:paced", "--verify")
    assert "\x1b" not in got
    assert "same answer as the serial run: yes" in got
    if env["TERM"] == "dumb":
        assert "\r" not in got.replace("\r\n", "\n")


def test_colour_on_a_terminal(here: Path) -> None:
    got = on_a_terminal(here, 80, {"TERM": "xterm", "NO_COLOR": ""}, "run", "targets:paced", "--verify")
    assert "\x1b[32m" in got

"""Mistakes in what the user wrote beside a pipeline: each ends in one sentence that names the function and the line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 120

TARGETS = """
import os, sys
import shmrt

def with_consume(consume, serial=None):
    def make():
        return shmrt.Pipeline("made").map(lambda x: x, workers=1).source([1, 2, 3])
    make.consume = consume
    if serial is not None:
        make.serial = serial
    return make

def looks_up(run):
    list(run)
    return {}["missing"]  # the line that is named

def leaves(run):
    list(run)
    sys.exit(0)

async def later(run):
    return list(run)

def slowly(run):
    yield from run

class Shy:
    def __repr__(self):
        raise ValueError("no text")

def swallows(run):
    try:
        return list(run)
    except ZeroDivisionError:
        return "swallowed"

seven = with_consume(7)
asynchronous = with_consume(later)
generator = with_consume(slowly)
raising = with_consume(looks_up)
leaving = with_consume(leaves)
deep = with_consume(lambda run: __import__("json").loads("{"))
total = with_consume(lambda run: sum(run))
words = with_consume(lambda run: "three words here")
nothing = with_consume(lambda run: list(run) and None)
table = with_consume(lambda run: {"total": sum(run), "odd": {1}})
shy = with_consume(lambda run: Shy())
one_by_one = with_consume(lambda run: [next(run), next(run), len(run.dead_letters)])
unserial = with_consume(lambda run: sum(run), serial=5)
bad_serial = with_consume(lambda run: sum(run), serial=lambda: {}["absent"])

def divide():
    return shmrt.Pipeline("divide").map(lambda x: 6 // x, workers=1).source([1, 0, 2, 0])

def guarded():
    return divide()

guarded.consume = swallows

def _raising_source():
    yield 1
    raise LookupError("no more data")

def _missing_file():
    yield 1
    open("/no/such/file")

def _leaving_source():
    yield 1
    sys.exit(0)

def source_raises():
    return shmrt.Pipeline("made").map(lambda x: x, workers=1).source(_raising_source)

def source_file():
    return shmrt.Pipeline("made").map(lambda x: x, workers=1).source(_missing_file)

def source_leaves():
    return shmrt.Pipeline("made").map(lambda x: x, workers=1).source(_leaving_source)

def no_file():
    return shmrt.Pipeline("made").map(lambda x: open(f"/no/such/{x}"), workers=1, name="opens").source([1])

ready = shmrt.Pipeline("full").map(str, workers=2).source([1, 2, 3])
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "targets.py").write_text(TARGETS)
    (tmp_path / "tmp").mkdir()
    return tmp_path


def run(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shmrt", "run", *words],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(here / "tmp")},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


def line_of(text: str) -> str:
    return f"targets.py:{next(n for n, line in enumerate(TARGETS.splitlines(), 1) if text in line)}"


MISTAKES = [
    ("seven", 2, ["'targets:seven'", "'consume'", "int"]),
    ("asynchronous", 2, ["'consume'", "async"]),
    ("generator", 2, ["'consume'", "generator"]),
    ("raising", 1, ["'targets:raising'", "'consume'", "KeyError: 'missing'", line_of("the line that is named")]),
    ("leaving", 1, ["'consume'", "sys.exit(0)", line_of("sys.exit(0)")]),
    ("deep", 1, ["'consume'", "JSONDecodeError", line_of("deep = ")]),
    ("source_raises", 1, ["source", "LookupError: no more data", line_of("raise LookupError")]),
    ("source_file", 1, ["source", "FileNotFoundError", "/no/such/file", line_of("open(")]),
    ("source_leaves", 1, ["source", "sys.exit(0)"]),
]


@pytest.mark.parametrize(("name", "code", "parts"), MISTAKES, ids=lambda value: str(value)[:20])
def test_a_mistake_names_function_and_line(here: Path, name: str, code: int, parts: list[str]) -> None:
    """It is not called a mistake of shmrt's, so there is neither a traceback nor a report file."""
    done = run(here, f"targets:{name}")
    assert done.returncode == code, done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr
    for word in ("Traceback", "report:", "internal", "--on-error dead_letter"):
        assert word not in done.stderr
    assert list((here / "tmp").glob("shmrt-report-*")) == []
    error = json.loads(run(here, f"targets:{name}", "-o", "json").stderr.splitlines()[-1])
    assert error["schema"] == "shmrt.error/1" and error["code"] == code


def test_what_the_source_gave_before_it_failed_comes_out(here: Path) -> None:
    assert run(here, "targets:source_raises").stdout == "1\n"


def test_an_item_that_cannot_open_a_file_is_no_mistake_of_shmrt(here: Path) -> None:
    done = run(here, "targets:no_file", "--on-error", "raise")
    assert done.returncode == 1 and "FileNotFoundError" in done.stderr and "'opens'" in done.stderr
    assert "--on-error dead_letter" in done.stderr


def test_serial_is_looked_at_only_to_verify(here: Path) -> None:
    """A module may well have a number of that name."""
    assert run(here, "targets:unserial").returncode == 0
    done = run(here, "targets:unserial", "--verify")
    assert done.returncode == 2 and "'serial' is of type int" in done.stderr
    done = run(here, "targets:bad_serial", "--verify")
    assert done.returncode == 1 and "'serial' failed: KeyError: 'absent'" in done.stderr
    assert line_of("bad_serial = ") in done.stderr


ANSWERS = [
    ("total", "6\n", 6),
    ("words", "three words here\n", "three words here"),
    ("nothing", "", None),
    ("table", "total: 6\nodd: {1}\n", {"total": 6, "odd": "{1}"}),
    ("shy", "<Shy that has no text: ValueError>\n", "<Shy that has no text: ValueError>"),
    ("one_by_one", "[1, 2, 0]\n", [1, 2, 0]),
]


@pytest.mark.parametrize(("name", "text", "summary"), ANSWERS, ids=lambda value: str(value)[:20])
def test_whatever_consume_returns_is_printed(here: Path, name: str, text: str, summary: object) -> None:
    done = run(here, f"targets:{name}")
    assert (done.returncode, done.stdout) == (0, text), done.stderr
    assert " outputs in " in done.stderr
    assert json.loads(run(here, f"targets:{name}", "-o", "json").stdout)["summary"] == summary


def test_consume_sees_the_exception_of_the_item(here: Path) -> None:
    """As in a program: `except ZeroDivisionError` around the outputs catches it."""
    done = run(here, "targets:guarded", "--on-error", "raise")
    assert (done.returncode, done.stdout) == (0, "swallowed\n"), done.stderr


def test_skipped_items_are_counted(here: Path) -> None:
    done = run(here, "targets:divide", "--on-error", "skip")
    assert (done.returncode, done.stdout) == (0, "6\n3\n")
    assert "2 outputs" in done.stderr and "2 skipped" in done.stderr
    found = json.loads(run(here, "targets:divide", "--on-error", "skip", "-o", "json").stdout)
    assert found["failed"] == 2 and found["dead_letters"] == [] and found["outputs"] == 2


@pytest.mark.parametrize(
    ("words", "flag"),
    [(["--workers", "2"], "--workers"), (["--input", "x"], "--input"), (["--set", "n=1"], "--set n")],
    ids=["workers", "input", "set"],
)
def test_flags_shape_functions_only(here: Path, words: list[str], flag: str) -> None:
    done = run(here, "targets:ready", *words)
    assert done.returncode == 2 and done.stdout == ""
    for part in (
        "'targets:ready' is a Pipeline object",
        f"{flag} only shapes a target that is a function",
        "workers=2",
    ):
        assert part in done.stderr, done.stderr

"""docs/tuning.md says what the code does: its example runs, and its tables have what the code has."""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from shmrt.cli import bench, tune
from shmrt.cli.shaping import STAGE_KEYS
from shmrt.decide import tune_bottleneck, tune_compare

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tuning.md").read_text()
WATCHDOG_S = 240


def commands() -> list[list[str]]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    return [shlex.split(line) for block in blocks for line in block.splitlines()]


def call(here: Path, words: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *words[1:]],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_example_runs_and_its_file_is_taken(tmp_path: Path) -> None:
    """With a short budget and a short source. What it finds is the machine's affair; what it prints has every part."""
    program = re.search(r"```text\n(import time.*?)```", PAGE, re.DOTALL)
    assert program is not None
    (tmp_path / "words.py").write_text(program[1].replace("* 5000", "* 20"))
    tuning, running, showing = commands()
    assert tuning[5:7] == ["--budget", "30s"]
    out = call(tmp_path, [*tuning[:5], "--budget", "4s", *tuning[7:]])
    shown = PAGE[PAGE.index("tune words:pipe: ") :]
    for start in (
        "tune words:pipe: ",
        "bottleneck: ",
        "STAGE ",
        "clean ",
        "look_up ",
        "verdict: ",
        "# ",
        'target = "words',
    ):
        assert re.search(f"^{re.escape(start)}", out, re.M), out
        assert re.search(f"^{re.escape(start)}", shown, re.M)
    assert out.endswith((tmp_path / "tuned.toml").read_text())
    assert call(tmp_path, running).split() == ["4", "2"] * 20
    assert re.search(r'^target = "words:pipe" +tuned.toml:3$', call(tmp_path, showing), re.M)


def test_every_option_has_its_line() -> None:
    from shmrt.cli.run import target_options

    own, shared = argparse.ArgumentParser(), argparse.ArgumentParser()
    tune.options(own)
    target_options(shared)
    given = {flag for action in own._actions for flag in action.option_strings}
    given -= {flag for action in shared._actions for flag in action.option_strings}
    said = set(re.findall(r"^\| `(--[a-z-]+)", PAGE, re.M))
    assert given - said == {"--drain-timeout"} and said <= given


def test_numbers_are_those_of_the_code() -> None:
    keys = re.findall(r"^\| `(\w+)` \| `", PAGE, re.M)
    assert keys == list(STAGE_KEYS)
    assert f"| `--budget TIME` | {tune.BUDGET_S:.0f}s |" in PAGE
    assert "After 7,\n   11 and 16 pairs" in PAGE and tune_compare.LOOKS == (7, 11, 16)
    assert f"at most {tune_compare.ALPHA:.0%}".replace("%", " %") in PAGE
    assert f"by {tune_compare.LEAST:.0%}".replace("%", " %") in PAGE
    assert f"for {tune_bottleneck.STAGE_FROM:.0%} of it".replace("%", " %") in PAGE
    for profile in bench.PROFILES:
        assert profile in PAGE


def test_the_documents_are_named() -> None:
    source = (ROOT / "shmrt" / "cli" / "tune.py").read_text() + (ROOT / "shmrt" / "cli" / "bench.py").read_text()
    for schema in re.findall(r"`(shmrt\.\w+/1)`", PAGE):
        assert json.dumps(schema) in source

"""The command line of `chaos`: what it takes, whom it refuses to hit, and what its verdict looks like."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmrt.cli.chaos import command
from shmrt.cli.chaos_rounds import Patience, Rounds
from shmrt.cli.chaos_words import document, letter_line, lines
from shmrt.cli.main import main
from shmrt.decide.chaos_recovery import Recovery
from shmrt.decide.chaos_verdict import Verdict

TARGETS = """
import os
import shmrt

pipe = shmrt.Pipeline("p").map(str, workers=1).source([1, 2, 3])
once = shmrt.Pipeline("once").map(str, workers=1).source(iter([1, 2, 3]))
sourceless = shmrt.Pipeline("sourceless").map(str)
empty = shmrt.Pipeline("empty").map(str, workers=1).source([])
tree = shmrt.Supervisor([])

def make(n=3):
    open("called", "w").close()
    return shmrt.Pipeline("made").map(str, workers=1).source(list(range(n)))

def allowing(n=3):
    return make(n)

allowing.chaos_allowed = True

def forbidding():
    return make()

forbidding.chaos_allowed = False
"""

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, in a directory with targets; gives exit code, stdout and stderr."""
    (tmp_path / "chaos_targets.py").write_text(TARGETS)
    (tmp_path / "chaos_open.py").write_text("chaos_allowed = True\nfrom chaos_targets import *\n")
    (tmp_path / "chaos_closed.py").write_text("chaos_allowed = False\nfrom chaos_targets import *\n")
    (tmp_path / "chaos_vague.py").write_text("chaos_allowed = 'yes'\nfrom chaos_targets import *\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("chaos_targets", "chaos_open", "chaos_closed", "chaos_vague"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        code = main(["chaos", *words])
        return code, *capsys.readouterr()

    return call


USAGE = [
    ([], "no target"),
    (["nonsense"], "'nonsense' is not MODULE:OBJECT"),
    *(([f"--kill-rate={value}"], f"kill-rate='{value}' must be") for value in ("-1", "fast", "nan", "1001", "")),
    *(([f"--stop-rate={value}"], f"stop-rate='{value}' must be") for value in ("-1", "inf")),
    (["--root-rate=x"], "root-rate='x' must be"),
    *(([f"--duration={value}"], "duration") for value in ("0", "-1", "5 parsecs", "inf", "")),
    *(([f"--patience={value}"], "patience") for value in ("0s", "never")),
    *(([f"--inputs={value}"], f"inputs='{value}' must be a whole number") for value in ("0", "1.5", "all")),
    (["--runs=0"], "runs='0' must be a whole number"),
    (["--seed=-1"], "seed='-1' must be"),
    (["--kil-rate=3"], "did you mean '--kill-rate'"),
    (["chaos_open:pipe", "--max-restarts=3"], "--max-restarts shapes a Supervisor"),
]


@pytest.mark.parametrize(
    ("words", "part"), USAGE, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_wrong_usage_is_exit_2_and_names_what_is_wrong(cli: Cli, words: list[str], part: str) -> None:
    code, out, err = cli(*words)
    assert (code, out) == (2, "") and part in err and "Traceback" not in err


FILES = {
    "other.toml": 'target = "chaos_targets:pipe"\n[chaos]\nallowed = true\n',
    "no.toml": 'target = "chaos_open:pipe"\n[chaos]\nallowed = false\n',
    "silent.toml": 'target = "chaos_targets:make"\n[chaos]\nkill_rate = 5\n',
    "vague.toml": 'target = "chaos_targets:pipe"\n[chaos]\nallowed = "yes"\n',
    "one.toml": 'target = "chaos_targets:pipe"\n[chaos]\nallowed = 1\n',
    "rate.toml": 'target = "chaos_targets:pipe"\n[chaos]\nallowed = true\nkill_rate = "often"\n',
    "unknown.toml": 'target = "chaos_targets:pipe"\n[chaos]\nalowed = true\n',
    "application.toml": '[chaos]\nallowed = true\n[child.one]\nstart = "chaos_targets:make"\n',
    "closed.toml": 'target = "chaos_closed:pipe"\n[chaos]\nallowed = true\n',
}

REFUSED = [
    (["chaos_targets:pipe"], ["does not allow chaos", "`chaos_allowed = True`", "[chaos], allowed = true"]),
    (["chaos_targets:make"], ["does not allow chaos", "chaos_targets.py"]),
    (["chaos_targets:forbidding"], ["does not allow chaos"]),
    (["chaos_open:forbidding"], ["does not allow chaos", "a False anywhere forbids it"]),
    (["chaos_closed:allowing"], ["does not allow chaos"]),
    (["chaos_vague:make"], ["does not allow chaos"]),
    (["chaos_targets:make", "--config", "other.toml"], ["'chaos_targets:make' does not allow chaos"]),
    (["no.toml"], ["does not allow chaos"]),
    (["closed.toml"], ["does not allow chaos"]),
    (["silent.toml"], ["does not allow chaos"]),
    (["vague.toml"], ["chaos.allowed = 'yes' must be true or false", "vague.toml:3"]),
    (["one.toml"], ["chaos.allowed = 1 must be true or false"]),
    (["rate.toml"], ["kill-rate='often' must be", "rate.toml:4"]),
    (["unknown.toml"], ["unknown key 'chaos.alowed'", "chaos.allowed"]),
    (["application.toml"], ["supervision tree", "chaos is for pipelines"]),
    (["chaos_open:tree"], ["supervision tree"]),
    (["chaos_open:sourceless"], ["no source"]),
    (["chaos_open:once"], ["iterator, which can be read only once"]),
    (["chaos_open:missing"], ["has no 'missing'"]),
    (["no_such_module:x"], ["no module 'no_such_module'"]),
]


@pytest.mark.parametrize(
    ("words", "parts"), REFUSED, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_nobody_is_hit_who_has_not_allowed_it(cli: Cli, words: list[str], parts: list[str]) -> None:
    """Exit 2, and what to do; nothing of the target was called."""
    for name, text in FILES.items():
        Path(name).write_text(text)
    code, out, err = cli(*words)
    assert (code, out) == (2, "") and "Traceback" not in err
    for part in parts:
        assert part in err
    assert not Path("called").exists()


def test_a_variable_allows_nothing(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would hold for whatever is run there; and a file's permission does not move to another target by one."""
    Path("silent.toml").write_text(FILES["silent.toml"])
    for word in ("True", "true", "1"):
        monkeypatch.setenv("SHMRT_CHAOS_ALLOWED", word)
        assert cli("chaos_targets:make")[0] == cli("silent.toml")[0] == 2
    Path("other.toml").write_text(FILES["other.toml"])
    monkeypatch.setenv("SHMRT_TARGET", "chaos_targets:make")
    code, _, err = cli("other.toml")
    assert code == 2 and "'chaos_targets:make' does not allow chaos" in err and not Path("called").exists()


def test_a_refusal_in_json(cli: Cli, tmp_path: Path) -> None:
    """In a process of its own, since JSON mode takes stdout away from everybody else."""
    words = [sys.executable, "-m", "shmrt", "chaos", "chaos_targets:pipe", "-o", "json"]
    done = subprocess.run(
        words,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    error = json.loads(done.stderr)
    assert (done.returncode, done.stdout, error["code"]) == (2, "", 2) and "chaos_allowed" in error["hint"]


def test_the_command_to_repeat_it_is_whole() -> None:
    """Pasted into a shell it asks for the same."""
    given = {"target": "a:b", "config": "my file.toml", "input": None, "workers": 3, "ring_slots": None}
    given |= {
        "slot_bytes": None,
        "set": [("which", "it's"), ("n", 3), ("on", True), ("code", "07"), ("text", "3")],
        "inputs": 10,
        "runs": None,
    }
    given |= {"from_outside": True, "unordered": False}
    asked = {"target": "a:b", "seed": 7, "kill_rate": 20.0, "stop_rate": 0.5, "root_rate": 0.0, "duration": 2.5}
    words = shlex.split(command(SimpleNamespace(**given), asked))  # type: ignore[arg-type]
    assert words[:9] == ["python", "-m", "shmrt", "chaos", "a:b", "--config", "my file.toml", "--workers", "3"]
    assert words[9:15] == ["--set", "which=it's", "--set", "n=3", "--set", "on=true"]
    assert words[15:19] == ["--set", "code=07", "--set", 'text="3"']
    assert words[19:27] == ["--seed", "7", "--kill-rate", "20", "--stop-rate", "0.5", "--duration", "2.5s"]
    assert words[27:] == ["--inputs", "10", "--from-outside"]


def test_a_signal_ends_the_faults_at_once() -> None:
    """Not only when what was put in has come out."""
    halted = threading.Event()
    signals = SimpleNamespace(stopping=threading.Event(), first=None)
    striker = SimpleNamespace(halt=halted.set)
    screen = SimpleNamespace(terminal=False)
    options: Any = {"duration": 1.0, "most": None, "runs": None, "ordered": True, "patience": None}
    rounds = Rounds(lambda: None, striker, signals, screen, None, **options)  # type: ignore[arg-type]
    rounds._heed()
    assert not halted.is_set()
    with Patience(lambda: None, lambda: 0, rounds._heed):
        signals.stopping.set()
        assert halted.wait(60)


# ---- what the verdict looks like
def found(**more: Any) -> dict[str, Any]:
    verdict = more.pop("verdict", Verdict())
    values: dict[str, Any] = {
        "verdict": verdict,
        "holds": verdict.holds,
        "stuck": False,
        "error": None,
        "control": None,
        "rounds": 3,
        "inputs": 1000,
        "expected": 1000,
        "outputs": 3000,
        "repeated": 7,
        "letters": [],
        "letters_calm": 0,
        "rate": 900.0,
        "rate_calm": 1000.0,
    }
    recovery = Recovery()
    recovery.until_ready = [0.004, 0.002, 0.1]
    striker = SimpleNamespace(recovery=recovery, kills=3, stops=1, roots=0, missed=0, stopped_s=0.25)
    asked = {"target": "app:pipe", "seed": 5}
    return document(SimpleNamespace(**values | more), striker, asked, None)


def test_a_verdict_that_held() -> None:
    body = found()
    assert list(lines(body)) == [
        "chaos app:pipe: held; 3 runs of 1,000 inputs under faults, 3,000 outputs, seed 5",
        "  lost 0, duplicated 0, unexpected 0, corrupted 0, out of order 0",
        "  given up as dead letters 0, executions repeated 7",
        "  faults: 3 workers killed, 1 stopped for 0.2 s in all, 0 roots killed",
        "  until a replacement was ready: p50 4.0 ms, p99 100.0 ms, at most 100.0 ms, of 3",
        "  900 inputs a second under faults, 1,000 without",
    ]
    assert body["holds"] is True and body["recovery"]["ready"] == {"count": 3, "p50": 0.004, "p99": 0.1, "max": 0.1}
    json.dumps(body)


def test_a_broken_one_says_what_and_where_and_whether_it_is_the_faults() -> None:
    verdict = Verdict(lost=2, corrupted=1, changed_on_the_way=1, given_up=3, pending=4, regrouped=5)
    verdict.examples = {("lost", (7,)): 2, ("corrupted", tuple(range(20))): 1}
    text = "\n".join(lines(found(verdict=verdict, control=Verdict(), letters_calm=2)))
    for part in (
        "BROKEN",
        "lost 2: of input 7",
        "corrupted 1: of input 0, 1, 2, 3, 4, 5, 6, 7, ...",
        "another value than the function had returned: 1",
        "a second run without faults is as the first one",
        "given up as dead letters 3 (besides 2 that fail without faults)",
        "pending 4",
        "batches of other members than without faults: 5",
    ):
        assert part in text, text
    text = "\n".join(lines(found(verdict=verdict, control=Verdict(lost=1))))
    assert "the target does not repeat itself" in text
    text = "\n".join(lines(found(holds=False, stuck=True, error="RuntimeDown: gone")))
    assert "BROKEN" in text and "stuck" in text and "RuntimeDown: gone" in text


def test_a_dead_letter_is_one_line() -> None:
    row = {"inputs": [3], "item": "x" * 500, "stage": "parse", "attempts": 3, "error": "PoisonMessage"}
    row |= {"signal": "SIGKILL", "message": ""}
    line = letter_line(row)
    assert line.startswith("given up: input 3, 'xxx") and line.endswith("(signal SIGKILL)") and len(line) < 250

"""The command lines of `tune`, `bench` and `config`: what they take and refuse, what they print and write.

What a tuning finds depends on the machine, so the whole command is judged by its form; the decisions have tests of
their own (test_tune_decide.py), and so have the trials (test_tune_trials.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_machine import FakeMachine, FakeStage, tune

from shmrt.cli.bench import advise, closing, figure
from shmrt.cli.main import main
from shmrt.cli.toml_words import carried, toml_text
from shmrt.cli.tune_plot import bar_mark, bars, write_png
from shmrt.cli.tune_words import bottleneck_text, document, lines, sure
from shmrt.decide.ring_advice import burst_slots, smallest_good
from shmrt.decide.tune_search import Bottleneck, Knobs, Outcome

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 240
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    shutil.copy(Path(__file__).with_name("tune_targets.py"), tmp_path / "tune_jobs.py")
    return tmp_path


@pytest.fixture
def cli(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """Runs a command in this process, in a directory with targets; gives exit code, stdout and stderr."""
    monkeypatch.chdir(here)
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.delitem(sys.modules, "tune_jobs", raising=False)

    def call(*words: str) -> tuple[int, str, str]:
        code = main([*words])
        return code, *capsys.readouterr()

    return call


def command(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "shmrt", *words],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    print(done.stdout, done.stderr)
    return done


USAGE = [
    (["tune"], "no target given", 2),
    (["tune", "nonsense"], "'nonsense' is not MODULE:OBJECT", 2),
    (["tune", "tune_jobs:nap"], "missing a required argument: 'x'", 2),
    (["tune", "tune_jobs:quick", "--budgt=3"], "did you mean '--budget'", 2),
    *((["tune", "tune_jobs:quick", f"--budget={value}"], "budget", 2) for value in ("0", "-1", "soon", "inf")),
    *((["tune", "tune_jobs:quick", f"--sample={value}"], "sample", 2) for value in ("0", "-3", "some", "0s", "nan")),
    (["tune", "tune_jobs:quick", "--max-workers=0"], "must be a whole number", 2),
    (["tune", "tune_jobs:quick", "--save=no/where.toml"], "there is no directory 'no'", 2),
    (["tune", "tune_jobs:quick", "--save=."], "it is a directory", 2),
    (["tune", "tune_jobs:quick", "--max-restarts=3"], "--max-restarts shapes a Supervisor", 2),
    (["tune", "tune_jobs:sourceless"], "has no source", 2),
    (["tune", "tune_jobs:number"], "gave an int, not a Pipeline", 2),
    (["tune", "tune_jobs:tree"], "is a supervision tree, and tune is for pipelines", 2),
    (["tune", "tune_jobs:once"], "an iterator, which can be read only once", 2),
    (["tune", "tune_jobs:huge"], "of shared memory for its lanes", 6),
    (["bench", "--payload=0"], "payload", 2),
    (["bench", "--payload=65MiB"], "payload='65MiB' must be at most 64MiB", 2),
    (["bench", "--workers=0"], "workers", 2),
    (["bench", "--profil=quick"], "did you mean '--profile'", 2),
    (["bench", "--profile=slow"], "invalid choice: 'slow'", 2),
    (["bench", "extra"], "unexpected argument 'extra'", 2),
    (["config", "--show-orign"], "did you mean '--show-origin'", 2),
]


@pytest.mark.parametrize(("words", "part", "code"), USAGE, ids=[" ".join(words) for words, _, _ in USAGE])
def test_a_mistake_is_one_clear_error(cli: Cli, words: list[str], part: str, code: int) -> None:
    found, out, err = cli(*words)
    assert (found, out) == (code, "") and part in err and "Traceback" not in err


def test_too_little_memory_is_said_before_anything_runs(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.cli.check.free_bytes", lambda: 2**20)
    for words in (["tune", "tune_jobs:quick"], ["bench", "--payload=1MiB"]):
        code, out, err = cli(*words)
        assert (
            (code, out) == (6, "")
            and "shared memory" in err
            and "1.0 MiB are free" in err.replace("1,048,576 are", "1.0 MiB are")
        )


def test_a_plot_without_matplotlib_is_one_clear_error(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = cli("tune", "tune_jobs:quick", "--png", "plot.png")
    assert code == 2 and "matplotlib, which is not installed" in err and "shmrt[plot]" in err


def test_the_help_says_that_functions_run_many_times(cli: Cli) -> None:
    code, out, _ = cli("tune", "--help")
    assert code == 0 and "RUN ON THE SAMPLE MANY TIMES" in out and "Ctrl-C" in out


# ---- the whole command


def test_a_tuning_ends_in_a_document_and_a_file_that_run_takes(here: Path) -> None:
    done = command(
        here,
        "tune",
        "tune_jobs:made",
        "--set",
        "n=32",
        "--budget",
        "4s",
        "--sample",
        "16",
        "--save",
        "t.toml",
        "-o",
        "json",
    )
    body = json.loads(done.stdout)
    assert (done.returncode, body["schema"], body["target"]) == (0, "shmrt.tune/1", "tune_jobs:made")
    assert (body["inputs"], body["whole_source"]) == (16, False)
    assert body["verdict"] in ("faster", "same", "none", "unsure") and body["trials"] >= 3
    assert body["bottleneck"]["kind"] in ("stage", "source", "cpus", "program", "none")
    (stage,) = body["stages"]
    assert (stage["name"], stage["workers"], stage["in"]) == ("work", 1, 16) and stage["item_us"] >= 19_000
    for change in body["changes"]:
        assert change["pairs"] == 0 or change["low"] <= change["ratio"] <= change["high"]
    text = (here / "t.toml").read_text()
    assert text == body["toml"]
    assert tomllib.loads(text)["target"] == "tune_jobs:made" and tomllib.loads(text)["set"] == {"n": 32}
    assert [path.name for path in here.iterdir() if path.suffix == ".new"] == []
    ran = command(here, "run", "--config", "t.toml")
    assert (ran.returncode, ran.stdout.split()) == (0, [str(x) for x in range(32)])


def test_an_interrupted_tuning_says_what_it_knows_and_ends_by_the_signal(here: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "shmrt", "tune", "tune_jobs:pair", "--budget", "600s", "--sample", "16"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert child.stderr is not None and child.stdout is not None
    for line in child.stderr:
        if "trial 1, look" in line:
            break
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=WATCHDOG_S)
    assert child.returncode == -signal.SIGINT, err
    assert "verdict: not sure" in out and 'target = "tune_jobs:pair"' in out and "Traceback" not in err


def test_one_cpu_is_said(here: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    done = subprocess.run(
        [sys.executable, "-m", "shmrt", "tune", "tune_jobs:naps", "--budget", "100ms", "--sample", "16"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
        preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
    )
    assert done.returncode == 0 and "there is one usable CPU" in done.stderr
    assert re.search("^verdict: (not sure|no difference seen)", done.stdout, re.M)


def test_a_bench_is_one_document_with_the_machine_and_advice(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With repetitions of a millisecond: what it measures is then nothing worth, what it prints is the same."""
    (here / "short.py").write_text(
        "from shmrt.cli import bench\nfrom shmrt.cli.main import main\n"
        "bench.PROFILES['quick'] = (0.001, 3)\n"
        "raise SystemExit(main(['bench', '--workers', '2', '--payload', '1KiB', '-o', 'json']))\n"
    )
    done = subprocess.run(
        [sys.executable, "short.py"],
        cwd=here,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    body = json.loads(done.stdout)
    assert (body["schema"], body["payload"], body["workers"]) == ("shmrt.bench/1", 1024, 2)
    assert {"cpus", "cpu", "kernel", "python", "memory_free", "cache_line_ns"} <= set(body["machine"])
    names = {row["name"] for row in body["results"]}
    assert {"ring, one by one", "round trip of Pool.call", "Pool.map", "pipeline of one stage"} <= names
    for row in body["results"]:
        assert len(row["values"]) == 3 and 0 < row["least"] <= row["median"] <= row["most"]
    assert body["advice"]["slots"] in (16, 64, 256, 1024, 4096) and body["advice"]["slot_bytes"] >= 128


# ---- configuration


CONFIG = """target = "tune_jobs:pair"
[runtime]
drain_timeout = "5s"
[stage.nap]
workers = 2
slots = 64
slot_bytes = "2KiB"
[stage.words]
chunk = 16
spin = "50us"
"""


def test_every_value_has_its_origin(cli: Cli, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "c.toml").write_text(CONFIG)
    monkeypatch.setenv("SHMRT_READY_TIMEOUT", "7s")
    code, out, _ = cli("config", "c.toml", "--show-origin", "--set", "a=1", "--workers", "3")
    rows = {line.split(" = ")[0]: line.split(" = ")[1].split() for line in out.splitlines()}
    assert code == 0 and rows["target"] == ['"tune_jobs:pair"', "c.toml:1"]
    assert rows["runtime.drain_timeout"] == ["5.0", "c.toml:3"] and rows["runtime.ready_timeout"] == [
        "7.0",
        "SHMRT_READY_TIMEOUT",
    ]
    assert rows["workers"] == ["3", "command", "line"] and rows["set.a"] == ["1", "command", "line"]
    assert rows["ring.slots"] == ["-", "default"] and rows["stage.nap.workers"] == ["2", "c.toml:5"]
    assert rows["stage.nap.slot_bytes"] == ["2048", "c.toml:7"] and rows["stage.words.spin"] == ["5e-05", "c.toml:10"]
    body = json.loads(command(here, "config", "c.toml", "-o", "json").stdout)
    assert body["settings"]["stage.words.chunk"] == 16 and "origins" not in body


def test_stages_of_a_file_shape_what_runs(cli: Cli, here: Path) -> None:
    (here / "c.toml").write_text(CONFIG)
    code, out, _ = cli("check", "c.toml")
    assert code == 0 and "nap: 2 workers" in out and "words: 1 workers" in out
    ran = command(here, "run", "--config", "c.toml", "-o", "jsonl")
    assert ran.returncode == 0 and json.loads(ran.stdout.splitlines()[0]) == ["0", "1", "2", "3"]


WRONG = [
    ("[stage.nap]\nworkers = 0\n", "c.toml:3: workers=0 must be from 1 to 256"),
    ("[stage.nap]\nworkers = 1.5\n", "c.toml:3: workers must be a whole number"),
    ("[stage.nap]\nslots = 0\n", "c.toml:3: slots=0 must be from 1"),
    ("[stage.nap]\nslot_bytes = 3\n", "c.toml:3: slot_bytes=3 must be from 16 bytes"),
    ("[stage.nap]\nchunk = 'many'\n", "c.toml:3: chunk='many' must be 'auto' or"),
    ("[stage.nap]\nspin = '1s'\n", "c.toml:3: spin=1.0 must be from 0 to 0.01 seconds"),
    ("[stage.nap]\nworker = 1\n", "c.toml:3: unknown key 'worker' in [stage.nap]; did you mean 'workers'?"),
    ("[stage.map]\nworkers = 1\n", "the pipeline has no stage 'map'; did you mean 'nap'?"),
    ("[stage.batch]\nworkers = 1\n", "[stage.batch] is a batch, which has no workers of its own"),
    ("stage = 3\n", "stage = 3 must be tables"),
    ("[stage]\nnap = 3\n", "stage.nap = 3 must be a table"),
    (
        "[stage.nap]\nslots = 16777216\nslot_bytes = '64MiB'\n",
        "[stage.nap]: slots=16777216 of slot_bytes=67108864 take",
    ),
    ("[stags.nap]\nworkers = 1\n", "unknown key 'stags'; did you mean 'stage'?"),
]


@pytest.mark.parametrize(("text", "part"), WRONG, ids=[part for _, part in WRONG])
def test_a_wrong_stage_is_one_clear_error(cli: Cli, here: Path, text: str, part: str) -> None:
    (here / "c.toml").write_text('target = "tune_jobs:pair"\n' + text)
    code, out, err = cli("check", "c.toml")
    assert (code, out) == (2, "") and part in err


def test_stages_are_of_pipelines_only(cli: Cli, here: Path) -> None:
    (here / "c.toml").write_text('target = "tune_jobs:tree"\n[stage.nap]\nworkers = 1\n')
    code, _, err = cli("check", "c.toml")
    assert code == 2 and "the target is a supervision tree" in err
    (here / "c.toml").write_text('[child.one]\nstart = "tune_jobs:nap"\n[stage.nap]\nworkers = 1\n')
    code, _, err = cli("check", "c.toml")
    assert code == 2 and "an application has no stages" in err


# ---- words


def faster() -> tuple[Outcome, SimpleNamespace]:
    """A tuning that found more workers, chunks and a spin, with names that need quotes."""
    machine = FakeMachine([FakeStage(2e-4), FakeStage(4e-3), FakeStage(2e-4)], cpus=8, noise=0.02, seed=3)
    found = tune(machine, (Knobs(1), Knobs(1), Knobs(1)), budget_s=240.0)
    assert found.verdict == "faster"
    names = ("s0", 'two "words"', "s2")
    return found, SimpleNamespace(names=names, inputs=100, whole=False, notes=["a note"])


def settings_of(stages: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    from shmrt.cli.config import DEFAULTS

    return {**DEFAULTS, "target": "app:pipe", "set": {}, "stages": stages or {}, **more}


def test_a_recommendation_reads_back_as_it_was_meant(here: Path) -> None:
    found, trials = faster()
    settings = settings_of(
        {"s0": {"slots": 64, "chunk": None}}, set={"q": 'a "b"\n\x7f\u00e9', "deep": {"x": [1, 2.5, True]}}
    )
    settings |= {"runtime.shm_limit": 2**30, "workers": 3}
    (here / "r.toml").write_text(document(found, trials, settings, {"target": "app:pipe"}, None)["toml"])
    body = json.loads(command(here, "config", "r.toml", "--show-origin", "-o", "json").stdout)
    read = body["settings"]
    assert (read["target"], read["workers"], read["runtime.shm_limit"]) == ("app:pipe", 3, 2**30)
    assert read["set.q"] == settings["set"]["q"] and read["set.deep"] == settings["set"]["deep"]
    assert (read["stage.s0.slots"], read["stage.s0.chunk"]) == (64, "auto")
    slow = found.setting[1]
    assert slow.workers > 1 and read['stage.two "words".workers'] == slow.workers
    assert body["origins"]['stage.two "words".workers'].startswith("r.toml:")


def test_what_toml_has_no_word_for_is_one_clear_error() -> None:
    from shmrt.cli.screen import CliError

    for value, part in ((None, "TOML has no word for it"), ("${HOME}/x", "read as a variable of the environment")):
        with pytest.raises(CliError, match=part):
            toml_text(carried(settings_of(set={"q": value})), {})


def test_lines_have_everything() -> None:
    found, trials = faster()
    body = document(found, trials, settings_of(), {"target": "app:pipe"}, None)
    text = "\n".join(lines(body, None, "#"))
    for part in (
        "bottleneck: stage",
        "note: a note",
        "STAGE",
        "CHANGE",
        "inputs a second",
        "verdict: ",
        'target = "app:pipe"',
    ):
        assert part in text
    assert "times as fast" in text and "at most 5% are called different" in text and "bottleneck then: " in text
    assert all(len(line) <= 60 for line in lines(body, 60, "#") if line.startswith(("s0", "two", "as it is")))


def test_the_verdict_says_how_sure_it_is() -> None:
    found, _ = faster()

    def said(**change: Any) -> str:
        from dataclasses import replace

        return sure(replace(found, **change))

    assert "of two equal settings at most 5% are called different" in said()
    assert said(verdict="same").startswith("no difference seen: the best of")
    assert said(verdict="none").startswith("no difference seen: none of")
    few = type(found.estimate)("more", 1.2, 1.1, 1.3, 2)
    assert "with 2 of the 7 pairs" in said(verdict="unsure", estimate=few)
    assert "more worth a trial" in said(verdict="unsure", best=found.start, untried=3)


@pytest.mark.parametrize(
    ("kind", "part"), [("source", "the source: its own code"), ("cpus", "all of them"), ("program", "carries every")]
)
def test_a_bottleneck_has_words(kind: str, part: str) -> None:
    stage = 0 if kind == "cpus" else None
    assert part in bottleneck_text(Bottleneck(kind, stage, 0.9, 2, 3), ("a",), (Knobs(1),))
    assert bottleneck_text(Bottleneck("none"), ("a",), (Knobs(1),)) == "not known"


def test_bars_fit_any_terminal() -> None:
    rows = [("a" * 80, 1.0, ""), ("b", 0.0, "no"), ("c", 3.0, "faster")]
    for width in (20, 40, 80, 200):
        assert all(len(line) <= max(width, 80) for line in bars(rows, width))
    assert bars([], 80) == [] and bars([("x", 0.0, "")], 80)
    assert (bar_mark("utf-8"), bar_mark("ascii"), bar_mark(None), bar_mark("none such")) == ("\u2588", "#", "#", "#")


def test_a_png_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found, trials = faster()
    write_png(str(tmp_path / "p.png"), document(found, trials, settings_of(), {"target": "app:pipe"}, None))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_advice_is_the_smallest_ring_that_was_not_seen_to_be_slower() -> None:
    rates = {"slots": {16: [1e5, 1.1e5], 64: [1.9e5, 2e5], 4096: [2e5, 2.1e5]}, "slot_bytes": {128: [1.0], 512: [1.0]}}
    found = advise(rates, 64)
    assert (found["slots"], found["slot_bytes"], found["burst_slots"]) == (64, 128, 2**15)
    assert advise({"slots": {}, "slot_bytes": {}}, 64)["slots"] is None
    assert smallest_good({8: [1.0]}) == 8 and burst_slots(0.0, 1.0) == 1 and burst_slots(1e12, 1.0) == 2**24
    with pytest.raises(ValueError, match="at least one size"):
        smallest_good({})


def test_a_busy_machine_is_said() -> None:
    row = SimpleNamespace(name="n", unit="us", values=[1.234, 2.345, 3.456])
    shown = figure(row)
    assert (shown["name"], shown["unit"], shown["least"], shown["most"]) == ("n", "us", 1.23, 3.46)
    machine = {"cache_line_ns": {"before": 50.0, "after": None}, "load": 9.0, "load_after": 8.5, "cpus": 2}
    text = "\n".join(closing({"machine": machine, "advice": advise({"slots": {}, "slot_bytes": {}}, 64)}))
    assert "other work to do (load 9.0 to 8.5)" in text and "no advice" in text

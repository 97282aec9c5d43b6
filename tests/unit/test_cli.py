"""The command line: bad input gives one clear message and its documented code, and streams are what they should be."""

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
import sys
import shmrt

value = 7
pipe = shmrt.Pipeline("sourceless").map(str)
full = shmrt.Pipeline("full").map(str, workers=2).source([1, 2, 3])

def make(n=3, workers=2, deep=None):
    return shmrt.Pipeline("made").map(str, workers=workers).source(list(range(n)))

def needs(something):
    return make()

def wrong():
    return 12

async def later():
    return make()

def fails():
    raise LookupError("no data today")

def leaves():
    sys.exit(3)
"""


def cli(*words: str | bytes, cwd: Path | None = None, env: dict[str, str] | None = None, **options: object):  # type: ignore[no-untyped-def]
    return subprocess.run(
        [sys.executable, "-m", "shmrt", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | (env or {}),
        capture_output=True,
        text=True,
        errors="replace",
        timeout=WATCHDOG_S,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "targets.py").write_text(TARGETS)
    (tmp_path / "exits.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "raises.py").write_text("x = 1\nraise RuntimeError('bad weather')\n")
    (tmp_path / "broken.py").write_text("def f(:\n")
    (tmp_path / "needy.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "endless.py").write_text("while True: pass\n")
    (tmp_path / "sleepy.py").write_text("import time\ntime.sleep(3600)\n")
    (tmp_path / "loud.py").write_text("print('hello from import')\nfrom targets import *\n")
    return tmp_path


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr


USAGE = [
    ([], ["no verb"]),
    (["vesion"], ["unknown verb 'vesion'", "did you mean 'version'"]),
    (["--workers"], ["unknown flag '--workers'"]),
    (["version", "--bogus"], ["unknown flag '--bogus'"]),
    (["version", "extra"], ["unexpected argument 'extra'"]),
    (["run", "--wrokers", "2", "x:y"], ["did you mean '--workers'"]),
    (["run"], ["no target"]),
    (["run", "nonsense"], ["'nonsense' is not MODULE:OBJECT"]),
    (["run", "a b:c"], ["is not MODULE:OBJECT"]),
    (["demo"], ["dedup"]),
    (["demo", "mosaic"], ["'mosaic'"]),
    (["demo", "dedup", "--input", "/no/such/dir"], ["/no/such/dir"]),
    *(
        ([*("run", "x:y", "--workers"), value], ["workers", value])
        for value in ("0", "-1", "1.5", "many", "1000000000")
    ),
    *(([*("run", "x:y", "--ring-slots"), value], ["ring-slots", value]) for value in ("0", "9223372036854775808", "x")),
    *(
        (["run", "x:y", f"--slot-bytes={value}"], ["slot-bytes"])
        for value in ("", "-1", "NaN", "8 parsecs", "1", "1TB")
    ),
    *((["run", "x:y", f"--drain-timeout={value}"], ["drain-timeout"]) for value in ("inf", "5 parsecs", "-1", "nan")),
    *((["run", "x:y", f"--ready-timeout={value}"], ["ready-timeout", "more than 0"]) for value in ("0", "0s", "0ms")),
    (["run", "x:y", "--chaos", "stop=3"], ["kill=RATE"]),
    (["run", "x:y", "--chaos", "kill=fast"], ["'fast'"]),
    (["run", "x:y", "--set", "novalue"], ["KEY=VALUE"]),
    (["run", "x:y", "--set", "1=2"], ["KEY=VALUE"]),
    (["run", "x:y", "--seed", "-4"], ["seed"]),
    (["-o", "yaml", "version"], ["yaml"]),
]


@pytest.mark.parametrize(("words", "parts"), USAGE, ids=lambda value: " ".join(value)[:40])
def test_usage(words: list[str], parts: list[str]) -> None:
    """Wrong usage is exit 2, nothing on stdout, and a message that names what was given."""
    refused(cli(*words), 2, *parts)


TARGET_ERRORS = [
    ("missing_module:x", 2, ["no module 'missing_module'"]),
    ("targets:mkae", 2, ["has no 'mkae'", "did you mean 'make'"]),
    ("targets:value", 2, ["int", "not a Pipeline"]),
    ("targets:wrong", 2, ["int", "not a Pipeline"]),
    ("targets:later", 2, ["async"]),
    ("targets:pipe", 2, ["no source"]),
    ("targets:needs", 2, ["something"]),
    ("targets:fails", 2, ["no data today", "targets.py:"]),
    ("targets:leaves", 2, ["sys.exit(3)"]),
    ("exits:x", 2, ["sys.exit(0)"]),
    ("raises:x", 2, ["bad weather", "raises.py:2"]),
    ("broken:x", 2, ["broken.py:1"]),
    ("needy:x", 2, ["no_such_module_anywhere"]),
]


@pytest.mark.parametrize("verb", ["run", "check"])
@pytest.mark.parametrize(("target", "code", "parts"), TARGET_ERRORS, ids=lambda value: str(value)[:30])
def test_bad_targets(here: Path, verb: str, target: str, code: int, parts: list[str]) -> None:
    """Whatever the user's module does, the message names it and there is no traceback."""
    refused(cli(verb, target, cwd=here), code, *parts)


def test_an_endless_import_is_ended(here: Path) -> None:
    refused(cli("check", "endless:x", "--ready-timeout", "300ms", cwd=here), 4, "endless", "--ready-timeout")
    refused(cli("run", "sleepy:x", "--ready-timeout", "300ms", cwd=here), 4, "sleepy", "0.3 s", "--ready-timeout")


def test_a_limit_beyond_the_clock_is_no_limit(here: Path) -> None:
    assert cli("check", "targets:make", "--ready-timeout", "1e300", cwd=here).returncode == 0


def test_an_unknown_keyword(here: Path) -> None:
    refused(cli("check", "targets:make", "--set", "worker=2", cwd=here), 2, "'worker'", "did you mean 'workers'")
    refused(cli("check", "targets:make", "--input", "x", cwd=here), 2, "'input'", "it takes n, workers, deep")


CONFIGS = [
    (b"", ["no target"]),
    (b"target = 3\n", ["cfg.toml:1", "target = 3"]),
    (b"\n\nwrokers = 3\n", ["cfg.toml:3", "'wrokers'", "did you mean 'workers'"]),
    (b"[runtime]\nx = 1\n", ["cfg.toml:2", "runtime.x"]),
    (b"[runtime]\n# x\ndrain_timeout = 'soon'\n", ["cfg.toml:3", "'soon'"]),
    (b"[runtime]\nready_timeout = 0\n", ["cfg.toml:2", "more than 0"]),
    (b"workers = true\n", ["cfg.toml:1", "True"]),
    (b"workers = \n", ["line 1"]),
    (b"workers = 1\nworkers = 2\n", ["workers"]),
    (b"ring = 3\n", ["[ring]"]),
    (b"\x00\x01\xff", ["UTF-8"]),
    (b"input = '${NO_SUCH_VARIABLE_HERE}'\n", ["NO_SUCH_VARIABLE_HERE"]),
    (b"# \n" * 600_000, ["1 MiB"]),
    (b"a = " + b"[" * 5000, []),
]


@pytest.mark.parametrize(("content", "parts"), CONFIGS, ids=lambda value: repr(value)[:30])
def test_bad_configuration(tmp_path: Path, content: bytes, parts: list[str]) -> None:
    """The message names file, line and key."""
    (tmp_path / "cfg.toml").write_bytes(content)
    refused(cli("check", "--config", "cfg.toml", cwd=tmp_path), 2, *parts)


def test_configuration_that_cannot_be_read(tmp_path: Path) -> None:
    refused(cli("check", "--config", "absent.toml", cwd=tmp_path), 2, "absent.toml")
    refused(cli("check", "--config", ".", cwd=tmp_path), 2, "directory")


def test_version_and_streams() -> None:
    done = cli("version")
    assert done.returncode == 0 and done.stdout.startswith("shmrt ") and done.stderr == ""
    found = json.loads(cli("version", "-o", "json").stdout)
    assert found["schema"] == "shmrt.version/1" and found["layout"] >= 1
    assert json.loads(cli("-o", "jsonl", "version").stdout) == found


def test_json_errors_are_json_on_stderr() -> None:
    done = cli("-o", "json", "vesion")
    assert done.stdout == ""
    assert json.loads(done.stderr) | {"hint": ""} == {
        "schema": "shmrt.error/1",
        "code": 2,
        "message": "unknown verb 'vesion'; did you mean 'version'?",
        "hint": "",
    }


def test_doctor() -> None:
    found = json.loads(cli("doctor", "-o", "json").stdout)
    checks = {finding["check"]: finding for finding in found["findings"]}
    assert {"python", "extension", "kernel", "memfd", "pidfd", "cpus", "RLIMIT_NOFILE", "RemoveIPC"} <= set(checks)
    assert all(finding["verdict"] in ("ok", "note", "warn", "fail") for finding in checks.values())
    assert all(finding["remedy"] for finding in checks.values() if finding["verdict"] == "fail")


def test_help_lists_exactly_the_verbs() -> None:
    done = cli("--help")
    assert done.returncode == 0
    from shmrt.cli.main import VERBS

    for verb in VERBS:
        assert f"\n  {verb} " in done.stdout
        assert cli(verb, "--help").returncode == 0


def shell(line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", line],
        env=os.environ | {"PYTHONPATH": str(ROOT), "PY": sys.executable},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(closed: str) -> None:
    """A stream that is closed is no reason to fail, nor to write into somebody else's descriptor."""
    done = shell(f'"$PY" -m shmrt version {closed}')
    assert done.returncode == 0 and "Traceback" not in done.stderr


def test_a_full_disk_behind_stdout() -> None:
    done = shell('"$PY" -m shmrt version > /dev/full')
    assert done.returncode == 1 and "cannot write to stdout" in done.stderr and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_reader_that_left() -> None:
    done = shell('set -o pipefail; { "$PY" -m shmrt doctor; echo "code $?" >&2; } | true')
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


def test_importing_the_command_line_is_light() -> None:
    """Neither numpy nor anything that starts threads or processes."""
    heavy = ("numpy", "asyncio", "multiprocessing", "concurrent.futures", "shmrt._native")
    code = f"import sys; import shmrt.cli.main; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WATCHDOG_S, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0"}, {"TERM": ""}, {"NO_COLOR": "1"}, {"HOME": ""}])
def test_poor_environments(env: dict[str, str]) -> None:
    assert cli("doctor", env=env).returncode in (0, 1)
    refused(cli("\udcff\udcfe", env=env), 2, "unknown verb")


def test_a_mistake_of_ours_is_exit_70_with_a_report(tmp_path: Path) -> None:
    code = (
        "from shmrt.cli import main, version\n"
        "def run(*_): raise ZeroDivisionError('ours')\n"
        "version.run = run\n"
        "raise SystemExit(main.main(['version']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )
    refused(done, 70, "internal error", "ours", "report: ")
    report = Path(done.stderr.split("report: ")[1].strip())
    assert "ZeroDivisionError: ours" in report.read_text()

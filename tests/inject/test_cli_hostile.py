"""The command line under what nobody would type: one short message, a documented code, and never a traceback.

What people do mistype is in tests/unit/test_cli*.py; here are bytes that are no text, files that are no files, names
that are no names, directories that are no directories, and streams that are gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 300
LONG = "x" * 5000
CODES = (1, 2, 3, 6)

FILES: dict[str, bytes] = {
    "big.toml": b"# " + b"x" * 100_000 + b"\n[run]\ntarget = 't:pipe'\nbogus = 1\n",
    "deep.toml": b"a = " + b"[" * 5000 + b"]" * 5000 + b"\n",
    "nul.toml": b"[run]\ntarget = 't:\0pipe'\n",
    "binary.toml": bytes(range(256)) * 400,
    "utf16.toml": "[run]\n".encode("utf-16"),
    "long.toml": b"[run]\ntarget = 't:" + b"x" * 100_000 + b"'\n",
}
CASES: list[tuple[list[str | bytes], int, str]] = [
    *((["run", name], 2, name) for name in FILES),
    *((["check", name], 2, name) for name in ("loop.toml", "dir.toml", "/dev/null", "/proc/self/mem", "missing.toml")),
    (["run", "t:pipe", "--config", "/dev/full"], 2, "/dev/full"),
    (["run", "t:pipe", "--config", "deep.toml"], 2, "deep.toml"),
    ([b"\xff\xfe"], 2, "verb"),
    (["run", b"\xff:\xfe"], 2, "MODULE:OBJECT"),
    (["run", "t:" + LONG], 2, "has no"),
    (["run", "t:pipe", "--set", b"\xff=\xff"], 2, "KEY=VALUE"),
    *(
        ([b"--name=" + name, "run", "t:tree"], 2, "name")
        for name in (b"\xff\xfe", b"a/b", b"..", b"x" * 300, b"-lead", b"a\nb")
    ),
    *(([b"--name=" + name, "status"], 3, "no runtime named") for name in (b"\xff\xfe", b"a/b", b".", b"x" * 300)),
    *(
        (["--runtime-dir", place, verb], 2, "runtime directory")
        for place in ("/dev/full", "t.py", LONG)
        for verb in ("ls", "clean")
    ),
    (["--runtime-dir", "/proc/nope", "--name", "q", "run", "t:tree"], 2, "/proc/nope"),
    (["run", "t:pipe", "--http", "a:b:c"], 2, "http"),
    (["run", "t:pipe", "--http", "99999"], 2, "http"),
    (["scale", "p", "1e9"], 2, "1e9"),
]


def start(words: list[str | bytes], cwd: Path, **options: object) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "shmrt", *words],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "SHMRT_RUNTIME_DIR": str(cwd / "rt")},
        timeout=WATCHDOG_S,
        **options,  # type: ignore[call-overload]
    )


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "t.py").write_text(
        "import shmrt\npipe = shmrt.Pipeline('p').map(str).source([1])\ntree = shmrt.Supervisor([])\n"
    )
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "dir.toml").mkdir()
    (tmp_path / "loop.toml").symlink_to("loop.toml")
    return tmp_path


@pytest.mark.parametrize(("words", "code", "part"), CASES, ids=lambda value: repr(value)[:50])
def test_what_nobody_would_type(here: Path, words: list[str | bytes], code: int, part: str) -> None:
    done = start(words, here, capture_output=True, stdin=subprocess.DEVNULL)
    err = done.stderr.decode(errors="replace")
    assert done.returncode == code and done.stdout == b"" and "Traceback" not in err, (done.returncode, err[-3000:])
    assert part in err and len(err.splitlines()) <= 4, err[-3000:]
    assert not (here / "rt").exists() or not os.listdir(here / "rt"), "it left something"


@pytest.mark.parametrize("words", [["version"], ["run", "t:pipe"], ["nonsense"]], ids=lambda words: words[0])
@pytest.mark.parametrize("streams", ["closed", "full"])
def test_without_any_stream(here: Path, words: list[str], streams: str) -> None:
    """All three closed, or output and errors into a full disk: a code of its own, no signal, no hang."""
    line = 'exec "$@" <&- >&- 2>&-' if streams == "closed" else 'exec "$@" >/dev/full 2>/dev/full'
    env = os.environ | {"PYTHONPATH": str(ROOT), "SHMRT_RUNTIME_DIR": str(here / "rt")}
    command = ["sh", "-c", line, "sh", sys.executable, "-m", "shmrt", *words]
    done = subprocess.run(command, cwd=here, env=env, timeout=WATCHDOG_S)
    assert done.returncode in (0, *CODES), done.returncode

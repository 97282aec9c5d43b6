"""`run` and `demo` with real workers: outputs, signals, chaos, and the README's own words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 240

TARGETS = """
import os, signal, time
import shmrt

def upper(n=3):
    return shmrt.Pipeline("upper").map(str.upper, workers=1).source(["a", "b", "c"][:n])

def divide():
    return shmrt.Pipeline("divide").map(lambda x: 6 // x, workers=1).source([1, 0, 2])

def _die(x):
    if x == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return x

def deadly():
    return shmrt.Pipeline("deadly").map(_die, workers=1, name="die").source([0, 1, 2])

def endless():
    def numbers():
        n = 0
        while True:
            n += 1
            yield n
    ring = shmrt.RingSpec(slots=4)
    def work(x):
        time.monotonic()
        return x
    return shmrt.Pipeline("endless").map(work, workers=1, ring=ring).source(numbers)

def stuck():
    ring = shmrt.RingSpec(slots=4)
    pipe = shmrt.Pipeline("stuck").map(lambda x: x if x < 3 else time.sleep(3600), workers=1, ring=ring)
    return pipe.source(range(9))

def slow():
    def numbers():
        for n in range(1000):
            time.sleep(0.5 if n else 0)
            with open("given", "w") as file:
                file.write(str(n))
            yield n
    return shmrt.Pipeline("slow").map(lambda x: x, workers=1).source(numbers)

def many(n=3000):
    return shmrt.Pipeline("many").map(lambda x: sum(range(2000)) and x, workers=2).source(range(n))
"""


@pytest.fixture
def here(tmp_path: Path) -> Path:
    (tmp_path / "targets.py").write_text(TARGETS)
    return tmp_path


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)}


def cli(here: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "shmrt", *words],
        cwd=here,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


def test_every_output_is_a_line(here: Path) -> None:
    done = cli(here, "run", "targets:upper")
    assert (done.returncode, done.stdout) == (0, "'A'\n'B'\n'C'\n"), done.stderr
    done = cli(here, "run", "targets:upper", "-o", "jsonl", "--set", "n=2", "--verify")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[:2] == ["A", "B"] and lines[2]["schema"] == "shmrt.run/1" and lines[2]["same_as_serial"] is True
    assert done.stderr == ""


def test_what_fails_is_listed_and_is_exit_1(here: Path) -> None:
    done = cli(here, "run", "targets:divide")
    assert (done.returncode, done.stdout) == (1, "6\n3\n")
    assert "given up: 0 " in done.stderr and "ZeroDivisionError" in done.stderr
    assert cli(here, "run", "targets:divide", "--on-error", "skip").returncode == 0
    done = cli(here, "run", "targets:divide", "--on-error", "raise")
    assert done.returncode == 1 and "ZeroDivisionError" in done.stderr and "Traceback" not in done.stderr


def test_a_poison_item_is_listed_with_its_evidence(here: Path) -> None:
    found = json.loads(cli(here, "run", "targets:deadly", "-o", "json").stdout)
    (letter,) = found["dead_letters"]
    expected = {"item": 1, "stage": "die", "attempts": 3, "error": "PoisonMessage", "signal": "SIGKILL"}
    assert expected.items() <= letter.items()
    assert found["outputs"] == 2


def test_chaos_does_not_change_the_answer(here: Path) -> None:
    done = cli(here, "run", "targets:many", "-o", "json", "--chaos", "kill=50", "--seed", "7", "--verify")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["seed"] == 7
    assert found["outputs"] == 3000 and found["same_as_serial"] is True and found["dead_letters"] == []


class Started:
    """A run that has put out its first line. Its stderr goes to a file: reading two pipes by turns would lose lines."""

    def __init__(self, here: Path, target: str, *words: str) -> None:
        self._errors = here / "stderr"
        with self._errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "shmrt", "run", target, *words],
                cwd=here,
                env=environment(),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._watchdog = threading.Timer(WATCHDOG_S, self.process.kill)
        self._watchdog.start()
        assert self.process.stdout is not None
        self.out = self.process.stdout
        assert self.out.readline() != "", self.errors()

    def errors(self) -> str:
        return self._errors.read_text()

    def end(self) -> tuple[str, int]:
        """The rest of its output and its exit code."""
        rest = "" if self.out.closed else self.out.read()
        code = self.process.wait()
        self._watchdog.cancel()
        self.out.close()
        return rest, code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_signal_drains(here: Path, number: signal.Signals) -> None:
    """Everything accepted comes out, without a gap, and that is a good end."""
    run = Started(here, "targets:endless")
    run.process.send_signal(number)
    out, code = run.end()
    assert code == 0, run.errors()
    assert f"{number.name}: draining" in run.errors() and "error" not in run.errors()
    assert "Traceback" not in run.errors()
    values = [int(line) for line in out.splitlines()]
    assert values == list(range(2, len(values) + 2))


def test_a_drained_run_in_json(here: Path) -> None:
    """No error object, and the document says what stopped the source."""
    run = Started(here, "targets:endless", "-o", "jsonl")
    run.process.send_signal(signal.SIGTERM)
    out, code = run.end()
    assert (code, run.errors()) == (0, "")
    found = json.loads(out.splitlines()[-1])
    assert found["drained"] is True and found["signal"] == "SIGTERM" and found["outputs"] == len(out.splitlines())


def test_a_drained_run_cannot_be_verified(here: Path) -> None:
    """Its source was not read to the end: 0 would say that the answers are the same."""
    run = Started(here, "targets:endless", "--verify")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[1] == -signal.SIGTERM
    assert "drained, but not compared with a serial run" in run.errors()
    assert "same answer" not in run.errors()


def test_what_the_source_gave_when_the_signal_came_is_not_lost(here: Path) -> None:
    """An item that was taken out of a source has been accepted, so it comes out before the run ends."""
    run = Started(here, "targets:slow")
    run.process.send_signal(signal.SIGTERM)
    out, code = run.end()
    assert code == 0, run.errors()
    assert out.splitlines()[-1] == (here / "given").read_text()


def test_a_drain_that_takes_too_long_is_ended(here: Path) -> None:
    run = Started(here, "targets:stuck", "--drain-timeout", "200ms")
    run.process.send_signal(signal.SIGTERM)
    assert run.end()[1] == -signal.SIGTERM
    assert "stopped before everything accepted was done" in run.errors() and "Traceback" not in run.errors()


def test_the_second_signal_stops_now(here: Path) -> None:
    run = Started(here, "targets:stuck", "--drain-timeout", "1h")
    # One so soon after the first counts as the same one; so it is sent until the process has had enough.
    while run.process.poll() is None:
        run.process.send_signal(signal.SIGINT)
        try:
            run.process.wait(0.3)
        except subprocess.TimeoutExpired:
            continue
    assert run.end()[1] == -signal.SIGINT, run.errors()


def test_a_demo_that_is_stopped_ends_by_the_signal(tmp_path: Path) -> None:
    """Drained or not, there is no whole answer to check."""
    words = [sys.executable, "-m", "shmrt", "demo", "dedup", "--all", "--chaos", "kill=0", "-o", "json"]
    demo = subprocess.Popen(
        words, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(WATCHDOG_S, demo.kill)
    watchdog.start()
    while f"{demo.pid}" not in parents_of_processes() and demo.poll() is None:
        time.sleep(0.02)  # until its root is there: before that a signal ends it at once
    demo.send_signal(signal.SIGTERM)
    out, errors = demo.communicate()
    watchdog.cancel()
    assert (demo.returncode, out) == (-signal.SIGTERM, ""), errors
    assert json.loads(errors.splitlines()[-1])["code"] == 128 + signal.SIGTERM


def parents_of_processes() -> set[str]:
    found = set()
    for directory in Path("/proc").iterdir():
        if directory.name.isdigit():
            try:
                found.add((directory / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    return found


def test_a_reader_that_left_ends_the_run_quietly(here: Path) -> None:
    run = Started(here, "targets:endless", "-q")
    run.out.close()
    assert run.end()[1] == -signal.SIGPIPE
    assert run.errors() == ""


def test_check_counts_what_a_pool_reserves(here: Path) -> None:
    """The bytes that `check` names are those of the segments of a real pool."""
    from shmrt import Pool, RingSpec
    from shmrt.cli.check import pool_bytes

    ring = RingSpec(slots=300, slot_bytes=700)
    with Pool(3, ring=ring) as pool:
        pool.submit(abs, -1).result()
        opened = pool._opened
        real = os.fstat(opened.lanes_fd).st_size + os.fstat(opened.stacks_fd).st_size
    assert abs(pool_bytes(3, ring) - real) < 4096  # but for the rounding to pages
    done = cli(here, "check", "targets:many", "-o", "json")
    found = json.loads(done.stdout)
    assert done.returncode == 0 and found["fits"] and found["needed"] == pool_bytes(2, RingSpec())


def test_the_demo_under_fire(tmp_path: Path) -> None:
    """The flagship ends in one line that says yes."""
    body = "\n".join(f"def function_{n}(a, b):\n    return a * {n} + b - {n + 1}\n" for n in range(60))
    for number in range(40):
        (tmp_path / f"copy_{number % 4}_{number}.py").write_text(body.replace("function", f"f{number % 4}"))
    words = ("demo", "dedup", "--input", str(tmp_path), "--chaos", "kill=30", "--poison", "3", "--seed", "5")
    done = cli(tmp_path, *words)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    assert re.fullmatch(
        r"dedup: 40 files, \d+ clusters, [\d.]+ MB/s, \d+ workers killed, \d+ restarts, "
        r"3 poison files given up; same answer as the serial run: yes",
        line,
    ), line
    for name in ("poison_0_SIGKILL.py", "poison_1_SIGSEGV.py", "poison_2_SIGABRT.py"):
        assert name in done.stderr
    found = json.loads(cli(tmp_path, *words, "-o", "json").stdout)
    assert found["same_as_serial"] is True and len(found["poison"]) == 3


README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_the_readme_holds(block: str, tmp_path: Path) -> None:
    """Every example runs and prints what its comments say."""
    (tmp_path / "example.py").write_text(block)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )
    assert done.returncode == 0, done.stderr
    said = [match.split(":")[0].strip() for match in re.findall(r"print\(.*\)  # (.+)", block)]
    printed = [line.split(":")[0].strip() for line in done.stdout.splitlines()]
    assert printed == said


def test_the_readme_names_the_tests_and_the_demo() -> None:
    """`.ci/run` takes its commands from these lines."""
    assert len(re.findall(r"(?m)^.*-m pytest.*$", README)) == 1
    assert len(re.findall(r"(?m)^.*shmrt demo dedup.*$", README)) == 1


def benchmarks() -> list[str]:
    return sorted(path.stem for path in (ROOT / "bench").glob("*.py") if not path.stem.startswith("_"))


@pytest.mark.parametrize("name", benchmarks())
def test_benchmarks_run(name: str) -> None:
    """Every benchmark works in its smoke size and prints JSON lines with the machine's cache-line time."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "run", name, "--smoke"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert rows and all(row["bench"] == name and len(row["line_rtt_ns"]) == 2 for row in rows)

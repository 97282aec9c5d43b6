"""Runs the proof and writes it down: states judged, which test killed which seeded bug, messages under fire.

    python tests/native/proof.py sweeps [TEST...]  # C tests in their long form: many minutes
    python tests/native/proof.py mutants [TEST...]  # every seeded bug, and what its test said of it
    python tests/native/proof.py fire [TEST...]  # tests/crash and tests/stress, marked stress, or some of them
    python tests/sanitize.py                # every file of tests under ASan and UBSan: hours
    python tests/native/proof.py inject [TEST...]  # tests/inject, marked stress: hostile input: an hour
    python tests/native/proof.py page       # docs/proof.md and docs/proof-mutants.md from what the others found
    python tests/native/proof.py list       # the seeded bugs by test, at once, nothing is run

Each of the first four leaves a file in build/proof, with commit, date and machine. SHMRT_MESSAGES says how many
messages go through each run under fire, SHMRT_SEED repeats its choices. Run from the root of the project.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "unit"))

import test_native_c as native  # noqa: E402

STORE = ROOT / "build" / "proof"
FIRE = ["tests/crash", "tests/stress"]
INJECT = ["tests/inject/test_attach_fuzz.py", "tests/inject/test_scribble.py", "tests/inject/test_full_disk.py"]
PATIENCE_S = 3600


def git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """One line: processor, how many, kernel, compiler, Python."""
    model = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    compiled = subprocess.run([native.compiler(), "--version"], capture_output=True, text=True, check=True).stdout
    return ", ".join(
        [
            model[1] if model else platform.machine(),
            f"{len(os.sched_getaffinity(0))} CPUs",
            f"Linux {platform.release().partition('-')[0]}",
            compiled.splitlines()[0],
            f"Python {platform.python_version()}",
        ]
    )


def commit() -> str:
    changed = git("status", "--porcelain", "--", "native", "shmrt", "tests")
    return git("rev-parse", "--short=12", "HEAD") + (" and changes" if changed else "")


def keep(kind: str, rows: list[dict[str, Any]]) -> None:
    STORE.mkdir(parents=True, exist_ok=True)
    head = {
        "commit": commit(),
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "machine": machine(),
    }
    (STORE / f"{kind}.json").write_text(json.dumps(head | {"rows": rows}, indent=1))


def found_before(kind: str) -> list[dict[str, Any]]:
    path = STORE / f"{kind}.json"
    return json.loads(path.read_text())["rows"] if path.exists() else []


def build(test: str, sources: Path, into: Path) -> Path:
    objects = STORE / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    return native.build(native.TESTS / test, sources, "shipped", into, objects)


# ---- sweeps
def run_sweeps(*wanted: str) -> None:
    """The C tests, on half of the CPUs, since some have two processes. Rows of those that are not wanted stay."""
    sources = [source for source in native.SOURCES if not wanted or source.name in wanted]
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        rows = list(pool.map(sweep, sources))
    swept = {row["test"] for row in rows}
    before = found_before("sweeps") if wanted else []
    keep("sweeps", sorted([old for old in before if old["test"] not in swept] + rows, key=lambda row: str(row["test"])))


def sweep(source: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        program, count = build(source.name, native.NATIVE, Path(folder)), Path(folder) / "count"
        began = time.monotonic()
        code, output = native.run([program], PATIENCE_S, {"SWEEP_LONG": "1", "SWEEP_COUNT": str(count)})
        took = time.monotonic() - began
        assert code == 0, f"{source.name} ended with {code}:\n{output}"
        sweeps, states, judged = map(int, count.read_text().split()) if count.exists() else (0, 0, 0)
    lines = output.strip().splitlines()
    row = {
        "test": source.name,
        "sweeps": sweeps,
        "states": states,
        "judged": judged,
        "seconds": round(took),
        "seed": next((line.split("=")[1] for line in lines if line.startswith("SEED=")), ""),
        "deaths": next((int(line.split()[0]) for line in lines if re.match(r"\d+ (deaths|kills), ", line)), 0),
    }
    print(row, flush=True)
    return row


# ---- mutants
def try_mutant(mutant: native.Mutant) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        sources = Path(folder) / "native"
        shutil.copytree(native.NATIVE, sources)
        text = (sources / mutant.file).read_text()
        assert text.count(mutant.old) == 1, mutant.name
        (sources / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        program = build(mutant.test, sources, Path(folder))
        for _ in range(native.DRAWS):
            code, output = native.run([program], native.WATCHDOG_S)
            if code != 0:
                break
    lines = [line for line in output.strip().splitlines() if not line.startswith("SEED=")]
    telling = [
        line for line in lines if re.search(r"failed: |not so: |: broken|did not bite|internal error|unnoticed", line)
    ]
    said = (telling or lines or [f"ended by signal {-code}"])[-1]
    said = f"ended by signal {-code}" if code < 0 and not telling else re.sub(r"\S*tests/native/", "", said)
    row = {"test": mutant.test, "name": mutant.name, "file": mutant.file, "killed": code != 0, "said": said[:110]}
    print("killed" if code != 0 else "SURVIVED", mutant.test, "|", mutant.name, "|", said, flush=True)
    return row


def run_mutants(*wanted: str) -> None:
    """Those of the wanted tests, or all; rows of the others stay."""
    with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)) // 2)) as pool:
        rows = list(pool.map(try_mutant, [bug for bug in native.MUTANTS if not wanted or bug.test in wanted]))
    before = found_before("mutants") if wanted else []
    keep(
        "mutants", sorted([row for row in before if row["test"] not in wanted] + rows, key=lambda row: str(row["test"]))
    )
    assert all(row["killed"] for row in rows)


def list_mutants() -> None:
    for test in sorted({mutant.test for mutant in native.MUTANTS}):
        names = [f"{mutant.file}: {mutant.name}" for mutant in native.MUTANTS if mutant.test == test]
        print(f"{test} ({len(names)})", *names, sep="\n    ")
    print(f"{len(native.MUTANTS)} seeded bugs")


# ---- fire, hostile input
def run_fire(*wanted: str) -> None:
    run_stress("fire", wanted, FIRE)


def run_inject(*wanted: str) -> None:
    run_stress("inject", wanted, INJECT)


def run_stress(kind: str, wanted: tuple[str, ...], everything: list[str]) -> None:
    """What is run again takes the place of what was found before."""
    command = [sys.executable, "-m", "pytest", "-v", "-s", "-m", "stress", "-p", "no:cacheprovider"]
    command += wanted or everything
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    rows: list[dict[str, Any]] = []
    test = seed = ""
    for line in process.stdout:
        print(line, end="", flush=True)
        if found := re.match(r"tests/\S+/(\S+\.py)", line):
            test = found[1]
        if found := re.search(r"SHMRT_(?:INJECT_)?SEED=(\d+)", line):
            seed = found[1]
        if found := re.search(r"result: (.*)", line):
            rows.append({"test": test, "seed": seed, "commit": commit(), "result": found[1].strip()})
    code = process.wait()
    assert code == 0, f"pytest ended with {code}"
    again = {row["test"] for row in rows}
    before = found_before(kind) if wanted else []
    keep(kind, [row for row in before if row["test"] not in again] + rows)


# ---- pages
def head_of(found: dict[str, Any], command: str) -> str:
    command = command if command.endswith(".py") else f"tests/native/proof.py {command}"
    what, when = f"`python {command}`", f"commit {found['commit']}, {found['date']}"
    return f"{what} at {when}, on {found['machine']}.\n"


def table(titles: list[str], rows: list[list[object]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def sanitized(rows: list[dict[str, Any]]) -> str:
    """What the sanitizers said, in two sentences. No page is made of a run that was not clean."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    import sanitize

    wrong = [row for row in rows if row["reports"] or row["ended"] != "well"]
    assert not wrong, f"not clean under the sanitizers: {wrong}"
    passed, skipped = (sum(row[key] for row in rows) for key in ("passed", "skipped"))
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    return (
        f"{len(rows)} of {len(sanitize.files(sanitize.ROOT))} files of tests (commits {commits}), "
        f"{passed:,} tests passed, {skipped} skipped: "
        "0 reports. What is left out, and why, is listed in `tests/sanitize.py`; the C tests have sanitized builds of "
        "their own, which the default test run makes.\n"
    )


def changes_of(inject: list[dict[str, Any]]) -> int:
    counts = [re.search(r"(\d+) (?:changes|tasks do it)", row["result"]) for row in inject]
    return sum(int(count[1]) for count in counts if count)


def write_pages() -> None:
    """From build/proof, which the other commands filled."""
    kinds = ("sweeps", "mutants", "fire", "inject", "sanitizers")
    found = {kind: json.loads((STORE / f"{kind}.json").read_text()) for kind in kinds}
    sweeps, mutants, fire, inject = (found[kind]["rows"] for kind in kinds[:4])
    there = {(mutant.test, mutant.name) for mutant in native.MUTANTS}
    mutants = [row for row in mutants if (row["test"], row["name"]) in there]
    assert len({(row["test"], row["name"]) for row in mutants}) == len(there), "seeded bugs that were not tried"
    swept = [row for row in sweeps if row["states"]]
    total = {key: sum(row[key] for row in swept) for key in ("sweeps", "states", "judged")}
    deaths = [row for row in sweeps if row["deaths"]]
    page = [
        "# The proof in figures\n",
        "Written by `tests/native/proof.py`; do not edit. What is claimed, and why a death between two instructions",
        "is the right model, is in [crash-model.md](crash-model.md); the seeded bugs are in",
        "[proof-mutants.md](proof-mutants.md).\n",
        "## Every instruction: states judged\n",
        head_of(found["sweeps"], "sweeps"),
        "An operation of the shipped, optimised code runs one instruction at a time. After each, the shared memory is",
        "what a SIGKILL would leave there. Whenever it changed, a judge takes a copy for the estate of the dead: the",
        "survivors check, repair, go on, and must find everything whole. A *state* is one instruction boundary;",
        "*judged* are those whose bytes were new. The repairs themselves are swept like the operations.\n",
        table(
            ["test", "sweeps", "states", "judged"],
            [[row["test"], *(f"{row[key]:,}" for key in ("sweeps", "states", "judged"))] for row in swept]
            + [["**all**", *(f"**{total[key]:,}**" for key in ("sweeps", "states", "judged"))]],
        ),
        "Found broken: 0.\n",
        "## Real kills in C\n",
        table(
            ["test", "deaths by SIGKILL", "seed"], [[row["test"], row["deaths"], row["seed"] or "-"] for row in deaths]
        ),
        "## Real kills of processes\n",
        head_of(found["fire"], "fire"),
        "Calls that end in `ServerDown` had their end; calls of a caller that died are nobody's. A relay that dies",
        "between its put and the end of its lease repeats one message: that is what a lease promises.\n",
        table(
            ["test", "commit", "seed", "result"],
            [[row["test"], row["commit"], row["seed"], row["result"]] for row in fire],
        ),
        "## Hostile input\n",
        head_of(found["inject"], "inject"),
        "Each change is made to whole shared memory, or in the middle of work; then all is done with it that can be",
        "done. What came out each time was a value or a documented error. *Used, with an error*: some of the calls",
        "raised one.\n",
        table(
            ["test", "commit", "seed", "result"],
            [[row["test"], row["commit"], row["seed"], row["result"]] for row in inject],
        ),
        f"{changes_of(inject):,} changes in all.\n",
        "## Sanitizers\n",
        head_of(found["sanitizers"], "tests/sanitize.py"),
        "The extension is built with AddressSanitizer and UndefinedBehaviorSanitizer, and every object of Python is a",
        "block of the sanitizer, in every process that a test starts.\n",
        sanitized(found["sanitizers"]["rows"]),
        "## Seeded bugs\n",
        f"{sum(row['killed'] for row in mutants)} of {len(mutants)} seeded bugs are found by their tests.\n",
    ]
    (ROOT / "docs" / "proof.md").write_text("\n".join(page))
    lines = [
        "# Seeded bugs, and what found them\n",
        "Written by `tests/native/proof.py`; do not edit. Each is one change of the native core, listed with its text",
        "in `tests/native/*.mutants.toml`; the test beside that list must end with a failure of its own. The default",
        "test run does this for each of them.\n",
        head_of(found["mutants"], "mutants"),
    ]
    for test in sorted({row["test"] for row in mutants}):
        mine = [row for row in mutants if row["test"] == test]
        cells: list[list[object]] = [
            [row["name"], row["file"], f"`{row['said']}`" if row["killed"] else "**survived**"] for row in mine
        ]
        lines += [f"## {test}\n", table(["bug", "in", "the test said"], cells)]
    (ROOT / "docs" / "proof-mutants.md").write_text("\n".join(lines))


COMMANDS = {"page": write_pages, "list": list_mutants}

if __name__ == "__main__":
    if sys.argv[1:2] == ["fire"]:
        run_fire(*sys.argv[2:])
    elif sys.argv[1:2] == ["inject"]:
        run_inject(*sys.argv[2:])
    elif sys.argv[1:2] == ["sweeps"]:
        run_sweeps(*sys.argv[2:])
    elif sys.argv[1:2] == ["mutants"]:
        run_mutants(*sys.argv[2:])
    elif len(sys.argv) == 2 and sys.argv[1] in COMMANDS:
        COMMANDS[sys.argv[1]]()
    else:
        sys.exit(__doc__)

"""Runs the Python tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/sanitize.py                                  # every file that can run so, one for each CPU: hours
    python tests/sanitize.py each tests/unit/test_codec.py    # these files
    python tests/sanitize.py tests/unit/test_codec.py -k big  # pytest's own arguments, as they are
    SHMRT_SANITIZED=/var/tmp/sanitized python tests/sanitize.py ...   # builds there once, and uses it again

The tree is copied first, so that the extension in use is not touched. Whatever process of a test reports something,
also one whose output nobody reads, leaves a file; the run ends with these, and with 1 if there is any. The first two
write down what they found, file by file, in build/proof/sanitizers.json, for docs/proof.md; what pytest said is
beside it, in build/proof/sanitizers. What is run again takes the place of what was found before.

Not run: NOT_HERE. A crash that a test wants stays a crash: the sanitizers do not catch SIGSEGV and its like. Leaks are
not looked for: CPython itself keeps what it allocates until the end.
A process that is forked while another thread allocates would hang in the sanitizer's own lock: tests/native/
sanitizer_forks.c sees to that. A file that takes longer than WATCHDOG_S is ended with all that it started, and named.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "native"))

import proof  # noqa: E402

COPIED = ("shmrt", "tests", "native", "docs", "bench", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml")
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
REPORTS = "reports"
EXIT_STATUS = 86
"""Of a process that was found at fault."""
FORKS, FORKS_LIBRARY = "tests/native/sanitizer_forks.c", "tests/native/_sanitizer_forks.so"
WATCHDOG_S = 1200
"""For one file of tests."""
HANGS_S = 400
"""For one test, before all threads of pytest are told to say where they are."""
NO_TESTS = 5  # pytest's exit status where all are for hand runs only

ADDRESSES = "bounds the address space, of which a sanitizer takes terabytes"
NOT_HERE = {
    "tests/unit/test_native_c.py": "has sanitized builds of its own",
    "tests/unit/test_native_threads.py": "has builds with ThreadSanitizer, which no process can have beside this one",
    "tests/crash/test_worker_steps.py": "counts instructions of the shipped code: here most would be the sanitizer's",
    "tests/conformance/test_tree_leaks.py": "measures the root's memory; a sanitizer keeps what was freed",
    "tests/conformance/test_worker_warnings.py::test_filters_arrive_in_order_and_import_nothing": (
        "starts an interpreter in an environment of its own, without the sanitizer"
    ),
    "tests/conformance/test_memory_limits.py::test_a_group_too_small_for_a_pool_is_told": (
        "bounds the memory of a group, of which a sanitizer takes more"
    ),
    "tests/conformance/test_memory_limits.py::test_little_address_space": ADDRESSES,
    "tests/conformance/test_memory_limits.py::test_too_little_address_space_is_told": ADDRESSES,
}
"""Files and tests that cannot run so, and why."""


def compiler() -> str | None:
    return shutil.which(os.environ.get("CC", "cc"))


def runtime(name: str) -> str | None:
    """The library of a sanitizer, or of C++, as the compiler finds it."""
    found = compiler()
    if found is None:
        return None
    path = subprocess.run(
        [found, f"-print-file-name={name}"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return os.path.realpath(path) if os.path.isabs(path) else None


def missing() -> str | None:
    """Why nothing can be built, if so."""
    if compiler() is None:
        return "no C compiler"
    if runtime("libasan.so") is None:
        return "the compiler has no libasan.so"
    return None


def build(place: Path) -> Path:
    """A copy of the tree below `place`, with a sanitized extension in it. What did not change is not compiled again."""
    tree, objects = place / "tree", place / "objects"
    objects.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    for name in (*COPIED, "setup.cfg"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__", "_native*.so"))
        elif source.exists():
            shutil.copy(source, tree / name)
    project = tomllib.loads((tree / "pyproject.toml").read_text())
    module = project["tool"]["setuptools"]["ext-modules"][0]
    flags = [flag for flag in module["extra-compile-args"] if not flag.startswith("-O")] + ["-O1", *CHECKS]
    command = [str(compiler()), "-fPIC", f"-I{sysconfig.get_paths()['include']}", *flags]
    headers = b"".join(path.read_bytes() for path in sorted((tree / "native").glob("*.h")))

    def compiled(name: str) -> str:
        source = tree / name
        key = hashlib.sha256(source.read_bytes() + headers + " ".join(command).encode()).hexdigest()[:24]
        target = objects / f"{source.stem}-{key}.o"
        if not target.exists():
            fresh = target.with_suffix(f".{os.getpid()}")
            subprocess.run([*command, "-c", str(source), "-o", str(fresh)], check=True)
            fresh.replace(target)
        return str(target)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        parts = list(pool.map(compiled, module["sources"]))
    library = tree / "shmrt" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([command[0], "-shared", *CHECKS, "-pthread", *parts, "-o", str(library)], check=True)
    forks = [command[0], "-shared", "-fPIC", "-pthread", "-O2", "-fno-omit-frame-pointer"]
    subprocess.run([*forks, str(tree / FORKS), "-o", str(tree / FORKS_LIBRARY)], check=True)
    return tree


def environment(tree: Path, reports: Path) -> dict[str, str]:
    """What a sanitized process needs, and its children with it."""
    reports.mkdir(parents=True, exist_ok=True)
    wanted = [
        "allocator_may_return_null=1",
        f"log_path={reports}/asan",
        "detect_leaks=0",
        f"exitcode={EXIT_STATUS}",
        "use_sigaltstack=0",
        "verify_asan_link_order=0",  # what lets processes fork comes before it
    ]
    wanted += [f"handle_{name}=0" for name in ("segv", "sigbus", "abort", "sigill", "sigfpe")]
    preloaded = [path for name in ("libasan.so", "libubsan.so", "libstdc++.so") if (path := runtime(name))]
    return os.environ | {
        "LD_PRELOAD": " ".join([str(tree / FORKS_LIBRARY), *preloaded]),
        "ASAN_OPTIONS": ":".join(wanted),
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}/ubsan",
        "PYTHONMALLOC": "malloc",  # objects are blocks of the sanitizer, too
        "SHMRT_SANITIZED_RUN": "1",
        "SHMRT_TEST_LIMIT_S": "600",
    }


def bites(tree: Path, reports: Path) -> bool:
    """Whether a process that writes behind a block of Python's leaves a report."""
    wrong = "import shmrt._native, ctypes; block = ctypes.create_string_buffer(100); ctypes.memset(block, 1, 101)"
    ended = subprocess.run(
        [sys.executable, "-c", wrong], cwd=tree, env=environment(tree, reports), check=False
    ).returncode
    return ended == EXIT_STATUS and any("heap-buffer-overflow" in path.read_text() for path in reports.iterdir())


def run(tree: Path, reports: Path, arguments: list[str]) -> int:
    """pytest in that tree: its exit status."""
    command = [sys.executable, "-m", "pytest", *left_out(), *arguments]
    return subprocess.run(command, cwd=tree, env=environment(tree, reports), check=False).returncode


def run_alone(tree: Path, reports: Path, name: str) -> dict[str, Any]:
    """One file of tests: a row of the table, as it will be kept, less its commit."""
    said = proof.STORE / "sanitizers" / f"{Path(name).stem}.log"
    said.parent.mkdir(parents=True, exist_ok=True)
    counts = reports / "counts.xml"
    variables = environment(tree, reports)
    command = [sys.executable, "-m", "pytest", "-v", f"--junitxml={counts}", "-o", f"faulthandler_timeout={HANGS_S}"]
    began = time.monotonic()
    with open(said, "w") as log:
        process = subprocess.Popen(
            [*command, *left_out(), name],
            cwd=tree,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(WATCHDOG_S)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    suite = next(ElementTree.parse(counts).iter("testsuite")).attrib if counts.exists() else {}
    counts.unlink(missing_ok=True)
    tests, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
    wrong = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return {
        "test": name,
        "tests": tests,
        "passed": tests - skipped - wrong,
        "skipped": skipped,
        "reports": len(list(reports.iterdir())),
        "seconds": round(time.monotonic() - began),
        "ended": "hung" if status is None else "well" if status in (0, NO_TESTS) else f"with {status}",
    }


def run_each(tree: Path, reports: Path, names: list[str], commit: str) -> list[str]:
    """Each file alone; what is wrong with them."""
    bad, writing = [], Lock()

    def one(name: str) -> None:
        row = {"commit": commit} | run_alone(tree, reports / name.replace("/", "."), name)
        with writing:
            print(row, flush=True)
            before = [old for old in proof.found_before("sanitizers") if old["test"] != name]
            proof.keep("sanitizers", sorted([*before, row], key=lambda row: str(row["test"])))
            if row["ended"] != "well":
                bad.append(f"{name} ended {row['ended']}: {proof.STORE}/sanitizers/{Path(name).stem}.log")

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(one, names))
    return bad


def files(tree: Path) -> list[str]:
    """The files of tests that can run so."""
    found = sorted(str(path.relative_to(tree)) for path in tree.glob("tests/**/test_*.py"))
    return [name for name in found if name not in NOT_HERE]


def left_out() -> list[str]:
    """For pytest."""
    return [f"--deselect={name}" for name in NOT_HERE if "::" in name]


def main(arguments: list[str]) -> int:
    why = missing()
    if why is not None:
        print(f"SKIPPED: {why}", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="shmrt-sanitized-") as temporary:
        kept = os.environ.get("SHMRT_SANITIZED")
        commit = proof.commit()  # of what is copied now
        tree = build(Path(kept).absolute() if kept else Path(temporary))
        if not bites(tree, Path(temporary) / "bite"):
            print(
                "a write behind a block goes unnoticed: nothing that is run here would prove anything", file=sys.stderr
            )
            return 1
        reports = Path(temporary) / REPORTS
        if arguments and arguments[0] != "each":
            bad = [f"pytest ended with {status}"] if (status := run(tree, reports, arguments)) != 0 else []
        else:
            bad = run_each(tree, reports, arguments[1:] or files(tree), commit)
        found = sorted(path for path in reports.rglob("*") if path.is_file())
        for path in found:
            print(f"\n--- {path.name}\n{path.read_text(errors='replace')}")
    for line in bad:
        print(line)
    print(f"{len(found)} reports of sanitizers, {len(bad)} failures")
    return 1 if found or bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

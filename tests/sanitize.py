"""Runs the Python tests on an extension built with AddressSanitizer and UndefinedBehaviorSanitizer.

    python tests/sanitize.py                                  # every file that can run so, one after the other: hours
    python tests/sanitize.py tests/conformance/test_ring.py   # pytest's own arguments, as they are
    SHMRT_SANITIZED=/var/tmp/sanitized python tests/sanitize.py ...   # builds there once, and uses it again

The tree is copied first, so that the extension in use is not touched. Whatever process of a test reports something,
also one whose output nobody reads, leaves a file; the run ends with these, and with 1 if there is any.

Not run: what counts instructions or bytes of address space (a sanitizer changes both), and the C tests, which have
sanitized builds of their own (tests/unit/test_native_c.py). A crash that a test wants stays a crash: the sanitizers
do not catch SIGSEGV and its like. Leaks are not looked for: CPython itself keeps what it allocates until the end.
A process that is forked while another thread allocates may hang in the sanitizer's own lock, which it does not release
in the child; a file that takes longer than WATCHDOG_S is ended with all that it started, and named: run it again.
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
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COPIED = ("shmrt", "tests", "native", "docs", "bench", "README.md", "CHANGELOG.md", "LICENSE", "pyproject.toml")
CHECKS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
REPORTS = "reports"
WATCHDOG_S = 900
"""For one file of tests."""

NOT_HERE = {
    "tests/unit/test_native_c.py": "has sanitized builds of its own",
    "tests/crash": "counts instructions",
    "tests/conformance/test_memory_limits.py": "bounds the address space, of which a sanitizer takes terabytes",
}


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

    with ThreadPoolExecutor(min(2, os.cpu_count() or 1)) as pool:
        parts = list(pool.map(compiled, module["sources"]))
    library = tree / "shmrt" / f"_native{sysconfig.get_config_var('EXT_SUFFIX')}"
    subprocess.run([command[0], "-shared", *CHECKS, "-pthread", *parts, "-o", str(library)], check=True)
    return tree


def environment(reports: Path) -> dict[str, str]:
    """What a sanitized process needs, and its children with it."""
    reports.mkdir(parents=True, exist_ok=True)
    wanted = [
        "allocator_may_return_null=1",
        f"log_path={reports}/asan",
        "detect_leaks=0",
        "exitcode=86",
        "use_sigaltstack=0",
    ]
    wanted += [f"handle_{name}=0" for name in ("segv", "sigbus", "abort", "sigill", "sigfpe")]
    preloaded = [path for name in ("libasan.so", "libubsan.so", "libstdc++.so") if (path := runtime(name))]
    return os.environ | {
        "LD_PRELOAD": " ".join(preloaded),
        "ASAN_OPTIONS": ":".join(wanted),
        "UBSAN_OPTIONS": f"print_stacktrace=1:log_path={reports}/ubsan",
        "PYTHONMALLOC": "malloc",  # objects are blocks of the sanitizer, too
        "SHMRT_SANITIZED_RUN": "1",
    }


def run(tree: Path, reports: Path, arguments: list[str], watchdog_s: float | None = None) -> int | None:
    """pytest in that tree: its exit status, or None if it had to be ended."""
    command = [sys.executable, "-m", "pytest", *arguments]
    process = subprocess.Popen(command, cwd=tree, env=environment(reports), start_new_session=True)
    try:
        return process.wait(watchdog_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def files(tree: Path) -> list[str]:
    """The files of tests that can run so."""
    found = sorted(str(path.relative_to(tree)) for path in tree.glob("tests/**/test_*.py"))
    return [name for name in found if not any(name == left or name.startswith(f"{left}/") for left in NOT_HERE)]


def main(arguments: list[str]) -> int:
    why = missing()
    if why is not None:
        print(f"SKIPPED: {why}", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory(prefix="shmrt-sanitized-") as temporary:
        kept = os.environ.get("SHMRT_SANITIZED")
        tree = build(Path(kept).absolute() if kept else Path(temporary))
        reports = Path(temporary) / REPORTS
        bad = []
        if arguments:
            bad = [f"pytest ended with {status}"] if (status := run(tree, reports, arguments)) != 0 else []
        else:
            for name in files(tree):
                status = run(tree, reports, [name], WATCHDOG_S)
                if status != 0:
                    bad.append(f"{name} {'was ended: it hung' if status is None else f'ended with {status}'}")
        found = sorted(reports.iterdir())
        for path in found:
            print(f"\n--- {path.name}\n{path.read_text(errors='replace')}")
    for line in bad:
        print(line)
    print(f"{len(found)} reports of sanitizers, {len(bad)} failures")
    return 1 if found or bad else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

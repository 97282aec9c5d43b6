"""Builds and runs the C tests of the native core (tests/native/test_*.c), without Python in between.

Each of them is built twice: with the flags that ship plus every warning as an error (this build single-steps
operations, see tests/native/sweep.h), and with the address and undefined-behaviour sanitizers. Beside a `test_x.c`
may lie `test_x.mutants.toml`, a list of seeded bugs:

    [[mutant]]
    name = "tail before payload"
    file = "lane.c"              # a file of native/; only a copy is patched
    old = "..."                  # must occur exactly once
    new = "..."

Each mutant is built like the first kind, and the test must then end with a failure of its own: not with a
compiler error, and not by the watchdog. A test that stays green under its mutants proves nothing.

What was compiled once in a run is not compiled again: an object file is named after everything that it is made of, and
a mutant differs from the core in one file only.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import threading
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
NATIVE = ROOT / "native"
TESTS = ROOT / "tests" / "native"
WATCHDOG_S = 240  # generous: it only ends what hangs
DRAWS = 5
"""Runs of a seeded bug: some tests kill at instructions that they draw, and may draw past the few that show it."""

STRICT = ["-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"]


def shipped_flags() -> list[str]:
    """The flags of the extension itself, so that the instructions swept are the instructions shipped."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    flags: list[str] = project["tool"]["setuptools"]["ext-modules"][0]["extra-compile-args"]
    return [flag for flag in flags if not flag.startswith("-fvisibility")]


KINDS = {
    "shipped": [*shipped_flags(), "-g"],
    "sanitized": [
        "-std=gnu11",
        "-pthread",
        "-O1",
        "-g",
        "-fno-omit-frame-pointer",
        "-fsanitize=address,undefined",
    ],
    # It knows no stand-alone fences, and makes the compiler see values that are not set where they are.
    "threads": [
        "-std=gnu11",
        "-pthread",
        "-O1",
        "-g",
        "-fsanitize=thread",
        "-Wno-tsan",
        "-Wno-maybe-uninitialized",
    ],
}
SOURCES = sorted(TESTS.glob("test_*.c"))


@dataclass(frozen=True, slots=True)
class Mutant:
    test: str
    name: str
    file: str
    old: str
    new: str


def read_mutants() -> list[Mutant]:
    found = []
    for path in sorted(TESTS.glob("test_*.mutants.toml")):
        test = path.name.removesuffix(".mutants.toml") + ".c"
        found += [Mutant(test=test, **entry) for entry in tomllib.loads(path.read_text())["mutant"]]
    return found


MUTANTS = read_mutants()


def compiler() -> str:
    found = shutil.which(os.environ.get("CC", "cc"))
    if found is None:
        pytest.skip("no C compiler: the C tests of the native core cannot be built")
    return found


def run(command: list[str | Path], timeout_s: int, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Runs in a session of its own, so that the watchdog ends forked children too."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
        env=os.environ | (environment or {}),
    )
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{command[0]} still ran after {timeout_s} s; its output:\n{output}")
    return process.returncode, output


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where object files are kept for the whole run, by all of its workers."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path = base / "native-objects"
    path.mkdir(exist_ok=True)
    return path


def compile_once(path: Path, flags: list[str | Path], made_of: str, objects: Path) -> Path:
    """The object file of `path`; `made_of` is all that goes into it beside its own text."""
    key = hashlib.sha256(f"{made_of}\0{path.read_text()}".encode()).hexdigest()[:24]
    target = objects / f"{path.stem}-{key}.o"
    if not target.exists():
        fresh = objects / f"{path.stem}-{key}.{os.getpid()}.{threading.get_ident()}"
        code, output = run([compiler(), *flags, "-c", path, "-o", fresh], WATCHDOG_S)
        assert code == 0, f"{path.name} does not compile:\n{output}"
        fresh.replace(target)  # another worker may have been faster; its file is the same
    return target


@functools.cache
def over_all_files() -> tuple[str, ...]:
    """What the extension's own build adds with this compiler."""
    if importlib.util.find_spec("setuptools") is None:
        return ()  # the build has one of its own; here the core's files are optimized one by one
    spec = importlib.util.spec_from_file_location("build_ext_of_shmrt", NATIVE / "build_ext.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    command = SimpleNamespace(compiler_so=[compiler(), "-fPIC"], linker_so=[compiler(), "-shared"])
    return tuple(module.OVER_ALL_FILES) if module.optimizes_over_all_files(command) else ()


def build(source: Path, native: Path, kind: str, into: Path, objects: Path) -> Path:
    """The core becomes a library, so that a test links only what it uses. As shipped, it is optimized as one whole; the
    test itself is not part of that."""
    whole = over_all_files() if kind == "shipped" else ()
    headers = [path.read_text() for folder in (native, TESTS) for path in sorted(folder.glob("*.h"))]

    def compiled(paths: list[Path], more: tuple[str, ...]) -> list[Path]:
        flags: list[str | Path] = [*KINDS[kind], *STRICT, *more, "-I", native, "-I", TESTS]
        made_of = "\0".join([compiler(), *KINDS[kind], *STRICT, *more, *headers])
        return [compile_once(path, flags, made_of, objects) for path in paths]

    core = compiled(sorted(path for path in native.glob("*.c") if not path.name.startswith("py_")), whole)
    sweep, test = compiled([TESTS / "sweep.c", source], ())
    library, program = into / "libcore.a", into / source.stem
    code, output = run(["gcc-ar" if whole else "ar", "rcs", library, *core, sweep], WATCHDOG_S)
    assert code == 0, output
    # Bound at start: lazy binding would put the dynamic linker's steps into every sweep.
    link: list[str | Path] = [compiler(), *KINDS[kind], *whole, test, library, "-Wl,-z,now", "-o", program]
    code, output = run(link, WATCHDOG_S)
    assert code == 0, f"{source.name} does not link ({kind}):\n{output}"
    return program


@pytest.mark.parametrize("kind", ["shipped", "sanitized"])
@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_c(source: Path, kind: str, tmp_path: Path, objects: Path) -> None:
    """The C tests of the native core pass, as shipped and under the sanitizers."""
    program = build(source, NATIVE, kind, tmp_path, objects)
    code, output = run([program], WATCHDOG_S, {"ASAN_OPTIONS": "detect_leaks=0"})
    print(output)
    assert code == 0, f"{source.name} ({kind}) ended with {code}:\n{output}"


def test_c_under_ptrace(tmp_path: Path, objects: Path) -> None:
    """The second way to single-step, for machines without a trap flag, sees the same."""
    program = build(TESTS / "test_sweep.c", NATIVE, "shipped", tmp_path, objects)
    code, output = run([program], WATCHDOG_S, {"SWEEP_PTRACE": "1"})
    assert code == 0, output


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant.test[5:-2]}-{mutant.name.replace(' ', '-')}")
def test_a_seeded_bug_is_found(mutant: Mutant, tmp_path: Path, objects: Path) -> None:
    """Every seeded bug turns its C test red."""
    native = tmp_path / "native"
    shutil.copytree(NATIVE, native)
    text = (native / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"mutant {mutant.name!r}: its text occurs {text.count(mutant.old)} times"
    (native / mutant.file).write_text(text.replace(mutant.old, mutant.new))
    program = build(TESTS / mutant.test, native, "shipped", tmp_path, objects)
    for _ in range(DRAWS):
        code, output = run([program], WATCHDOG_S)
        if code != 0:
            break
    assert code != 0, f"{mutant.test} stays green although {mutant.file} has the bug {mutant.name!r}:\n{output}"
    assert "error while loading" not in output, output

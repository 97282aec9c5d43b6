"""Style that a script can check. Every check is shown a bad sample too, else its silence would prove nothing.

Python: imports point only downwards; decisions are pure; calls that belong to one place stay there.
C: `Python.h` only in py_*.c, explicit memory orders, no `volatile`, no bare `assert`.
Everywhere: files have one job (a bound on length), no unfinished marks, no paths of a developer's machine.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LINES_MOST = 1200
"""90 to 400 is the aim; beyond this a file certainly has two jobs."""
CODE_LINES_MOST = 400
"""The package and the native core keep to the aim."""

WORDS, DECIDE, MEMORY, PROCESS, SUPERVISE, HELD, DOOR = range(7)
LAYERS = {
    "shmrt.errors": WORDS,
    "shmrt.spec": WORDS,
    "shmrt.clock": WORDS,
    "shmrt.waits": WORDS,
    "shmrt._native": MEMORY,
    "shmrt.decide": DECIDE,
    "shmrt.memory": MEMORY,
    "shmrt.process": PROCESS,
    "shmrt.supervise": SUPERVISE,
    "shmrt.cli": DOOR,
    "shmrt.examples": DOOR,
    "shmrt.__main__": DOOR,
}
"""Longest prefix wins; every other module of the package is what users hold."""

IMPURE = {
    *("os", "time", "threading", "random", "logging", "signal", "subprocess", "multiprocessing", "socket", "secrets"),
    *("mmap", "ctypes", "asyncio", "datetime", "io", "tempfile", "pathlib"),
}
UNFINISHED = re.compile(r"\b(FIXME|XXX|TODO|HACK)\b")
ELSEWHERE = re.compile(r"/home/\w+/|/root/\w+")


def layer_of(module: str) -> int:
    while module:
        if module in LAYERS:
            return LAYERS[module]
        module = module.rpartition(".")[0]
    return HELD


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and module of every import, also inside functions; not those for the type checker only."""
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "shmrt":
                yield from ((node.lineno, f"shmrt.{name.name}") for name in node.names)
            else:
                yield node.lineno, node.module


def check_layers(module: str, text: str) -> Iterator[str]:
    """Imports point only downwards, and decisions and memory do not know each other."""
    mine = layer_of(module)
    for line, other in imports_of(ast.parse(text)):
        if not other.startswith("shmrt."):
            continue
        theirs = layer_of(other)
        if theirs > mine:
            yield f"{module}:{line} imports {other}, which is above it"
        if {mine, theirs} == {DECIDE, MEMORY}:
            yield f"{module}:{line} imports {other}: decisions and memory do not know each other"


def check_pure(module: str, text: str) -> Iterator[str]:
    """Decisions read no clock, no memory and no operating system."""
    if layer_of(module) != DECIDE:
        return
    for line, other in imports_of(ast.parse(text)):
        if other.split(".")[0] in IMPURE:
            yield f"{module}:{line} imports {other}: a decision takes what it needs as parameters"


BANNED: list[tuple[str, Callable[[str], bool], str]] = [
    ("os.fork", lambda module: module.startswith(("shmrt.process", "shmrt.supervise")), "only process/ forks"),
    ("os.waitpid", lambda module: module.startswith(("shmrt.process", "shmrt.supervise")), "only the root reaps"),
    ("time.time", lambda module: module.startswith(("shmrt.observe", "shmrt.cli")), "wall clocks decide nothing"),
    ("os.system", lambda module: False, "start programs with subprocess and a list"),
    ("print", lambda module: module.startswith(("shmrt.cli", "shmrt.examples")), "a library does not print"),
    ("eval", lambda module: False, "data is not code"),
    ("exec", lambda module: False, "data is not code"),
]


def check_calls(module: str, text: str) -> Iterator[str]:
    """Calls that belong to one place stay there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            for banned, allowed, why in BANNED:
                if name == banned and not allowed(module):
                    yield f"{module}:{node.lineno} calls {name}: {why}"


def check_shared_memory(module: str, text: str) -> Iterator[str]:
    """The standard library's shared memory has a tracker that unlinks what others use."""
    for line, other in imports_of(ast.parse(text)):
        # Its descriptor passing has no tracker: a ring that is pickled to a spawned process needs it.
        if other.startswith("multiprocessing") and other != "multiprocessing.reduction":
            yield f"{module}:{line} imports {other}: segments come from shmrt.memory, processes from shmrt.process"


def check_sleep(name: str, text: str) -> Iterator[str]:
    """A test waits for a sentinel, a word or a clock of its own; sleeping proves nothing."""
    tree = ast.parse(text)
    # Asking again for a condition that another process makes true is waiting for the thing itself.
    asking = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.While) and not isinstance(node.test, ast.Constant)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node not in asking and isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.sleep", "sleep"):
            inside = ast.unparse(node.args[0]) if node.args else ""
            # Allowed: a process that is meant to hang until it is killed, and the random instant of a kill.
            if not ("random" in inside or (inside.isdigit() and int(inside) >= 60)):
                yield f"{name}:{node.lineno} sleeps {inside}"


def check_text(name: str, text: str) -> Iterator[str]:
    """Length, unfinished marks, and paths that exist on one machine only."""
    lines = text.splitlines()
    if len(lines) > (CODE_LINES_MOST if name.startswith(("native/", "shmrt/")) else LINES_MOST):
        yield f"{name} has {len(lines)} lines; split it by responsibility"
    for number, line in enumerate(lines, 1):
        if UNFINISHED.search(line):
            yield f"{name}:{number} is unfinished: {line.strip()}"
        if ELSEWHERE.search(line):
            yield f"{name}:{number} names a path of one machine: {line.strip()}"


def without_comments(text: str) -> str:
    blank = lambda match: re.sub(r"[^\n]", " ", match[0])  # noqa: E731 (keeps line numbers)
    return re.sub(r'/\*.*?\*/|//[^\n]*|"(?:\\.|[^"\\])*"', blank, text, flags=re.DOTALL)


ATOMIC = re.compile(r"\batomic_(load|store|exchange|fetch_\w+|compare_exchange_\w+)\s*\(")


def check_c(name: str, text: str) -> Iterator[str]:
    """No Python below py_*.c; every atomic says its order; no volatile; our own assertions."""
    if not name.startswith("py_") and re.search(r"#\s*include\s*<Python\.h>", text):
        yield f"{name} includes Python.h; only py_*.c may"
    for number, line in enumerate(without_comments(text).splitlines(), 1):
        match = ATOMIC.search(line)
        if match and not match[1].endswith("_explicit"):
            yield f"{name}:{number} uses an atomic without an explicit order"
        if re.search(r"\bvolatile\b", line) and "asm" not in line:
            yield f"{name}:{number} uses volatile; shared words are _Atomic"
        if re.search(r"(?<![_\w])assert\s*\(", line):
            yield f"{name}:{number} uses assert, which NDEBUG removes"


PYTHON = sorted((ROOT / "shmrt").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
NATIVE = sorted((ROOT / "native").glob("*.[ch]"))
ME = Path(__file__).resolve()


@pytest.mark.parametrize("check", [check_layers, check_pure, check_calls, check_shared_memory])
def test_package(check: Callable[[str, str], Iterator[str]]) -> None:
    """The package keeps its layers and its rules."""
    problems = [problem for path in PYTHON for problem in check(module_of(path), path.read_text())]
    assert not problems, "\n".join(problems)


def test_native() -> None:
    """The native core keeps its rules."""
    problems = [problem for path in NATIVE for problem in check_c(path.name, path.read_text())]
    assert NATIVE and not problems, "\n".join(problems)


def test_files() -> None:
    """Every file has a bounded length and nothing unfinished."""
    files = [*PYTHON, *NATIVE, *(path for path in TESTS if path != ME)]
    files += [path for name in ("README.md", "pyproject.toml", ".ci/run") if (path := ROOT / name).exists()]
    files += sorted((ROOT / "bench").glob("*.py")) + sorted((ROOT / "docs").rglob("*.md"))
    problems = [problem for path in files for problem in check_text(str(path.relative_to(ROOT)), path.read_text())]
    assert not problems, "\n".join(problems)


def test_tests_do_not_sleep() -> None:
    """No test sleeps for less than a minute, that is, none sleeps to wait."""
    problems = [problem for path in TESTS for problem in check_sleep(path.name, path.read_text())]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("check", "name", "bad"),
    [
        (check_layers, "shmrt.memory.ring", "from shmrt.pool import Pool"),
        (check_layers, "shmrt.decide.backoff", "import shmrt.memory.ring"),
        (check_layers, "shmrt.memory.ring", "def f():\n    from shmrt.decide import backoff"),
        (check_layers, "shmrt.pool", "from shmrt import cli"),
        (check_pure, "shmrt.decide.backoff", "import time"),
        (check_pure, "shmrt.decide.backoff", "from os import path"),
        (check_calls, "shmrt.pool", "print('hello')"),
        (check_calls, "shmrt.pool", "import os\nos.fork()"),
        (check_calls, "shmrt.process.worker", "import time\ntime.time()"),
        (check_shared_memory, "shmrt.memory.arrays", "from multiprocessing import shared_memory"),
        (check_sleep, "test_x.py", "import time\ntime.sleep(0.1)"),
        (check_sleep, "test_x.py", "import time\nwhile True:\n    time.sleep(0.1)"),
        (check_text, "x.py", "pass\n" * (LINES_MOST + 1)),
        (check_text, "native/x.c", "int x;\n" * (CODE_LINES_MOST + 1)),
        (check_text, "shmrt/decide/x.py", "pass\n" * (CODE_LINES_MOST + 1)),
        (check_text, "x.py", "# TO" + "DO later"),
        (check_text, "x.py", "see /ho" + "me/me/notes"),
        (check_c, "ring.c", "#include <Python.h>"),
        (check_c, "ring.c", "x = atomic_load(&word);"),
        (check_c, "ring.c", "volatile int x;"),
        (check_c, "ring.c", "assert(x);"),
    ],
)
def test_the_checks_bite(check: Callable[[str, str], Iterator[str]], name: str, bad: str) -> None:
    """Each check reports its bad sample."""
    assert list(check(name, bad))


@pytest.mark.parametrize(
    ("check", "name", "good"),
    [
        (check_layers, "shmrt.pool", "from shmrt.memory import ring\nfrom shmrt.decide import backoff"),
        (check_text, "native/x.c", "int x;\n" * CODE_LINES_MOST),
        (check_layers, "shmrt.memory.x", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import shmrt.pool"),
        (check_c, "ring.c", '/* volatile, assert(x) */ atomic_load_explicit(&word, order); _Static_assert(1, "");'),
        (check_sleep, "test_x.py", "import time\ntime.sleep(3600)"),
        (check_sleep, "test_x.py", "import time\nwhile not done():\n    time.sleep(0.001)"),
    ],
)
def test_the_checks_let_good_code_pass(check: Callable[[str, str], Iterator[str]], name: str, good: str) -> None:
    """Each check is silent where nothing is wrong."""
    assert not list(check(name, good))

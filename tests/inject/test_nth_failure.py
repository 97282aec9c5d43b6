"""The n-th allocation or system call fails, for n = 1, 2, 3 ... until an operation ends untouched: once, and for ever
after.

SQLite's loop. Whatever fails: a documented error or success; no descriptor, segment, process or thread more than
before; what a ring holds is what was put into it; and the next try without faults works. `shim.c` lets the calls fail:
those of the extension, those of anybody in the process, or those of the roots that it starts. By hand, with all of
them:

    python -m pytest -m stress tests/inject/test_nth_failure.py
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from inject_kit import Child

MEMORY = "malloc calloc realloc aligned_alloc"
SYSTEM = (
    "mmap memfd_create ftruncate fallocate fchmod fstat fcntl open pread pwrite readlink getrandom pipe2 socketpair"
    " sendmsg recvmsg pthread_create pthread_mutex_init pidfd_open"
)
ANYBODY = (
    "memfd_create ftruncate open shm_open fork pipe2 eventfd socketpair socket sendmsg recvmsg pthread_create"
    " posix_spawn dup epoll_create1 fcntl pidfd_open"
)
IN_ROOT = "fork pipe2 eventfd pidfd_open memfd_create socketpair epoll_create1 pthread_create sendmsg recvmsg fcntl"
EXTENSION = "_native"
HERE = ("ring-create", "ring-named", "ring-pickled", "ring-use", "arena", "table", "guards")
LIVES = ("runtime", "pool", "server")


def sweep(shim: Path, folder: Path, operation: str, functions: str, caller: str, modes: str = "01") -> dict[str, int]:
    """How often each function failed with which error."""
    child = Child(shim, folder, "nth.py", operation, functions, caller, modes)
    status, lines, err = child.end()
    assert status == 0 and lines and "end" in lines[-1], f"status {status} at n={child.at()}\n{err[-6000:]}"
    problems = [line for line in lines if "problem" in line]
    assert not problems, "\n".join(
        f"n={line['n']} {line['function']} {line['said']}\n{line['problem']}" for line in problems[:4]
    )
    assert not lines[-1]["unraisable"], lines[-1]
    errors: dict[str, int] = lines[-1]["errors"]
    print(operation, caller, lines[-1]["tried"], errors)
    return errors


def failed(errors: dict[str, int]) -> set[str]:
    return {name.partition(":")[0] for name in errors} - {"", "?"}


@pytest.mark.parametrize("operation", HERE)
def test_system_calls_of_the_extension(shim: Path, tmp_path: Path, operation: str) -> None:
    errors = sweep(shim, tmp_path, operation, SYSTEM, EXTENSION)
    if operation != "ring-use":  # which makes none
        assert {"fcntl", "mmap"} <= failed(errors), errors  # it bit


def test_memory_of_the_extension(shim: Path, tmp_path: Path) -> None:
    assert failed(sweep(shim, tmp_path, "guards", MEMORY, EXTENSION)) >= {"aligned_alloc"}


@pytest.mark.skipif(importlib.util.find_spec("_testcapi") is None, reason="NOT TESTED: this Python has no _testcapi")
@pytest.mark.parametrize("operation", ["ring-create", "ring-use", "table"])
def test_memory_of_the_interpreter(shim: Path, tmp_path: Path, operation: str) -> None:
    errors = sweep(shim, tmp_path, operation, "python", "", "0")
    assert errors.get("?: MemoryError", 0) > 3, errors


@pytest.mark.parametrize("operation", ["ring-named", "ring-pickled"])
def test_system_calls_of_anybody(shim: Path, tmp_path: Path, operation: str) -> None:
    assert failed(sweep(shim, tmp_path, operation, ANYBODY, "")) >= {"fcntl"}


def test_a_root_that_cannot_be_heard_or_watched(shim: Path, tmp_path: Path) -> None:
    """It is ended as one that died; nobody waits for it for ever, and it does not stay."""
    errors = sweep(shim, tmp_path, "runtime", "recvmsg sendmsg pidfd_open", "", "0")
    assert failed(errors) == {"recvmsg", "sendmsg", "pidfd_open"}, errors


@pytest.mark.stress
@pytest.mark.parametrize("operation", LIVES)
@pytest.mark.parametrize(
    ("functions", "caller"),
    [(SYSTEM, EXTENSION), (MEMORY, EXTENSION), (ANYBODY, ""), (IN_ROOT, "root")],
    ids=["calls", "memory", "anybody", "root"],
)
def test_whole_lives(shim: Path, tmp_path: Path, operation: str, functions: str, caller: str) -> None:
    """A runtime, a pool with a task, a server with a call: from start to stop."""
    sweep(shim, tmp_path, operation, functions, caller, "0" if caller == "root" else "01")


@pytest.mark.stress
@pytest.mark.parametrize("operation", [name for name in HERE if not name.startswith("ring-p")])
def test_all_memory(shim: Path, tmp_path: Path, operation: str) -> None:
    sweep(shim, tmp_path, operation, MEMORY, EXTENSION)
    # Not ring-named: posix_ipc, which makes the file, dereferences what its own allocation did not give.
    if importlib.util.find_spec("_testcapi") is not None and operation != "ring-named":
        sweep(shim, tmp_path, operation, "python", "", "0")

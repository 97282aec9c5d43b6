"""Every session ends by proving that the tests left nothing: no process, no descriptor, no shared memory name.

Each session marks its environment with a random word that every process started by a test inherits, so orphans
are found wherever they were re-parented to. Under xdist each worker looks at its own descriptors and children,
and the controller, which ends last, looks at the machine.
"""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

MARK = "SHMRT_TEST_SESSION"
GRACE_S = 10.0
"""A killed process tree needs a moment; a runtime of a dead program has one second by contract."""


def shared_names() -> set[str]:
    """Names of ours below /dev/shm."""
    with contextlib.suppress(OSError):
        return {name for name in os.listdir("/dev/shm") if "shmrt" in name}
    return set()


def unused(names: set[str]) -> set[str]:
    """Those that no living process has mapped: what another run on this machine works with is not a leftover."""
    if names:
        for entry in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                maps = Path(f"/proc/{entry}/maps").read_text(errors="replace")
                names = {name for name in names if f"/dev/shm/{name}\n" not in maps}
    return names


def descriptors() -> dict[int, str]:
    """What a leak would look like: memory, processes, and event descriptors; not files of pytest's own."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            what = os.readlink(f"/proc/self/fd/{number}")
            if what.startswith("/memfd:shmrt-arena"):
                continue  # the process's default arena lives as long as the process
            if what.startswith(("/memfd:", "/dev/shm/", "anon_inode:[pidfd]", "anon_inode:[eventfd]")):
                found[int(number)] = what
    return found


def marked_processes(word: str) -> dict[int, str]:
    """Every living process of this session except pytest's own."""
    found = {}
    wanted = f"{MARK}={word}".encode()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if wanted not in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                continue
            state = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if state != "Z" and "execnet" not in command and "sys.stdin.readline" not in command:
                found[int(entry)] = command.strip()
    return found


def ancestors() -> set[int]:
    pids, pid = set(), os.getpid()
    while pid > 1:
        pids.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pids


def close_default_runtime() -> None:
    """The program's default runtime lives as long as the interpreter; here it must go before the count."""
    module = sys.modules.get("shmrt.runtimes")
    default = getattr(module, "_default", None)
    if default is not None:
        default.stop()
        module.__dict__["_default"] = default = None
    gc.collect()


def settled(look: object, *arguments: object) -> object:
    """The leftovers that are still there after the grace time."""
    end = time.monotonic() + GRACE_S
    while True:
        left = look(*arguments)  # type: ignore[operator]
        if not left or time.monotonic() > end:
            return left
        os.sched_yield()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What takes minutes runs by hand only: `python -m pytest -m stress`, or by its name."""
    if "stress" in config.getoption("markexpr") or any("::" in word for word in config.args):
        return
    stress = [item for item in items if item.get_closest_marker("stress")]
    if stress:
        config.hook.pytest_deselected(items=stress)
        items[:] = [item for item in items if item not in stress]


def pytest_configure(config: pytest.Config) -> None:
    # A script that starts the tests with `&` has the shell ignore Ctrl-C for them, and for every program they start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGQUIT, signal.SIGHUP):  # the second: nohup
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if MARK not in os.environ:
        os.environ[MARK] = secrets.token_hex(8)
        # Named runtimes of tests have their directories here, not beside those of whoever runs the tests.
        place = os.environ["SHMRT_RUNTIME_DIR"] = tempfile.mkdtemp(prefix="shmrt-test-")
        config.add_cleanup(lambda: shutil.rmtree(place, ignore_errors=True))
    config.stash[BEFORE] = (shared_names(), set(descriptors()))


BEFORE = pytest.StashKey[tuple[set[str], set[int]]]()


def kept(before: set[int]) -> dict[int, str]:
    """Descriptors that are new, but for one arena: the default one serves arrays for as long as the process lives."""
    new = {number: what for number, what in descriptors().items() if number not in before}
    arenas = [number for number, what in new.items() if what.startswith("/memfd:shmrt-arena")]
    if len(arenas) == 1:
        del new[arenas[0]]
    return new


def leftovers(config: pytest.Config) -> Iterator[str]:
    close_default_runtime()
    names, numbers = config.stash[BEFORE]
    worker = hasattr(config, "workerinput")
    left = settled(lambda: kept(numbers))
    if left:
        yield f"descriptors left open: {left}"
    if worker:
        return  # other workers still run; the controller looks at what all of them left
    skip = ancestors()
    processes = settled(
        lambda: {pid: what for pid, what in marked_processes(os.environ[MARK]).items() if pid not in skip}
    )
    if processes:
        yield f"processes left behind: {processes}"
    new = settled(lambda: unused(shared_names() - names))
    if new:
        yield f"shared memory left in /dev/shm: {new}"


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    problems = list(leftovers(session.config))
    if problems:
        session.config.stash[PROBLEMS] = problems
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        if hasattr(session.config, "workeroutput"):
            session.config.workeroutput["leftovers"] = problems


PROBLEMS = pytest.StashKey[list[str]]()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """A worker's leftovers reach the controller's verdict."""
    found = getattr(node, "workeroutput", {}).get("leftovers")
    if found:
        config: pytest.Config = node.config  # type: ignore[attr-defined]
        config.stash.setdefault(PROBLEMS, []).extend(f"{getattr(node, 'gateway', node)}: {text}" for text in found)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for text in config.stash.get(PROBLEMS, []):
        terminalreporter.write_line(f"LEFT BEHIND: {text}", red=True, bold=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    if config.stash.get(PROBLEMS, []) and not hasattr(config, "workerinput"):
        os._exit(1)  # the exit status of xdist's controller is decided before its workers report

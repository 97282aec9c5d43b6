"""What the tests of trees share: children that write down what happens to them, and ways to wait for it.

A child writes lines into a file that every process opens by its path with O_APPEND, so the order of the lines is the
order of events, whoever wrote them. A `Mark` among a child's arguments writes its line while the child is being
started, before it is ready; the function itself runs after that, beside whatever is started next.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shmrt import NotFound, Runtime, RuntimeDown, Shutdown

PATIENCE_S = 120.0  # nothing is judged by it: a test that gets here hangs


def until(condition: Callable[[], Any], what: object = "") -> Any:
    """Asks again until it is true; its value."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"it never came true: {what() if callable(what) else what}"
        time.sleep(0.001)
    return value


def alive(pid: int) -> bool:
    """Whether a process with this pid lives, zombies not counted."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Journal:
    """Lines in a file; may be pickled to any process."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def note(self, *words: object) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, (" ".join(map(str, words)) + "\n").encode())
        finally:
            os.close(fd)

    def lines(self, first_word: str = "") -> list[str]:
        try:
            text = Path(self.path).read_text()
        except FileNotFoundError:
            return []
        return [line for line in text.splitlines() if line.startswith(first_word)]

    def wait(self, line: str, count: int = 1) -> None:
        until(lambda: self.lines().count(line) >= count, lambda: f"{count} x {line!r} in {self.lines()}")

    def clear(self) -> None:
        Path(self.path).unlink(missing_ok=True)


class Mark:
    """Writes a line when it is unpickled: while a child starts, before it is ready."""

    def __init__(self, journal: Journal, *words: object) -> None:
        self.arguments = (journal, *words)

    def __reduce__(self) -> Any:
        return _mark, self.arguments


def _mark(journal: Journal, *words: object) -> None:
    journal.note(*words)


class Hold:
    """Keeps a start from ending until the journal has a line; says that it is there first."""

    def __init__(self, journal: Journal, name: str, line: str) -> None:
        self.arguments = (journal, name, line)

    def __reduce__(self) -> Any:
        return _hold, self.arguments


def _hold(journal: Journal, name: str, line: str) -> None:
    journal.note("held", name, os.getpid())
    while line not in journal.lines():
        time.sleep(0.001)


class Fail:
    """Makes a start fail, always or while the journal lacks a line."""

    def __init__(self, error: BaseException, journal: Journal | None = None, line: str = "") -> None:
        self.arguments = (error, journal, line)

    def __reduce__(self) -> Any:
        return _fail, self.arguments


def _fail(error: BaseException, journal: Journal | None, line: str) -> None:
    if journal is None or line not in journal.lines():
        if journal is not None:
            journal.note("failing")
        raise error


class LeaveAtStart:
    """Ends the process that unpickles it, before it is ready."""

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> Any:
        return end_by, (self.how,)


# ---- functions that children run
# --------------------------------------------------------------------------------------
def stay(journal: Journal | None = None, name: str = "", *_: Any) -> None:
    """Until it is asked to end; writes down how that went."""
    try:
        if journal is not None:
            journal.note("run", name)
        wait_for_ever()
    except Shutdown:
        if journal is not None:
            journal.note("shutdown", name)
        raise
    finally:
        if journal is not None:
            journal.note("finally", name)


def idle(*_: Any) -> None:
    """Without a file: for tests that need processes only."""
    wait_for_ever()


def wait_for_ever() -> None:
    while True:
        signal.pause()


def deaf(journal: Journal, name: str) -> None:
    """Ignores SIGTERM: only SIGKILL ends it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    journal.note("run", name)
    wait_for_ever()


def hold_gil(journal: Journal, name: str) -> None:
    """In a C call that never gives the GIL back: no Python handler can run."""
    journal.note("run", name)
    collections.deque(itertools.repeat(0), maxlen=0)


def own_handler(journal: Journal, name: str) -> None:
    """Ends in its own way, by returning."""
    asked = []

    def handle(number: int, frame: object) -> None:
        journal.note("handler", name)
        asked.append(number)

    signal.signal(signal.SIGTERM, handle)
    journal.note("run", name)
    while not asked:
        time.sleep(0.001)


def linger(journal: Journal, name: str, line: str) -> None:
    """Asked to end, it ends when the journal has a line."""
    try:
        journal.note("run", name)
        wait_for_ever()
    except Shutdown:
        journal.note("asked", name)
        while line not in journal.lines():
            time.sleep(0.001)
        raise


class Oops(Exception):
    """What children raise."""


ENDINGS: dict[str, Any] = {
    "return": "normal",
    "raise": ("error", "tree_kit.Oops", "it broke"),
    "sys.exit(0)": "normal",
    "sys.exit(3)": ("exit", 3),
    "sys.exit(text)": ("exit", 1),
    "Shutdown()": "shutdown",
    "Shutdown(info)": ("shutdown", ("moved", 7)),
    "os._exit(5)": ("exit", 5),
    "os._exit(0)": "normal",
    "SIGKILL": "killed",
    "SIGSEGV": ("signal", "SIGSEGV"),
    "SIGABRT": ("signal", "SIGABRT"),
    "SIGTERM": "shutdown",
    "SIGBUS": ("signal", "SIGBUS"),
    "SIGALRM": ("signal", "SIGALRM"),
}
"""How a process ends, and the exit reason that this is (B7)."""


def end_by(how: str) -> None:
    """Ends the calling process, or function, in one of the ways of ENDINGS that need nobody else."""
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115  # what faulthandler and sys.exit say is expected here
    if how == "raise":
        raise Oops("it broke")
    if how == "sys.exit(0)":
        sys.exit(0)
    if how == "sys.exit(3)":
        sys.exit(3)
    if how == "sys.exit(text)":
        sys.exit("a text")
    if how == "Shutdown()":
        raise Shutdown
    if how == "Shutdown(info)":
        raise Shutdown(("moved", 7))
    if how == "os._exit(5)":
        os._exit(5)
    if how == "os._exit(0)":
        os._exit(0)
    if how == "SIGSEGV":
        ctypes.string_at(0)
    if how == "SIGABRT":
        os.abort()


def end_once(journal: Journal, name: str, how: str, *_: Any) -> None:
    """Its first incarnation ends in this way once the journal says "go"; the next stays."""
    journal.note("run", name)
    if journal.lines().count(f"run {name}") > 1:
        wait_for_ever()
    while "go" not in journal.lines():
        time.sleep(0.001)
    if how.startswith("SIG") and how not in ("SIGSEGV", "SIGABRT"):
        wait_for_ever()  # the test sends it
    end_by(how)


# ---- looking at a tree
# ------------------------------------------------------------------------------------------------
def pids(supervisor: Any) -> dict[Any, Any]:
    """By id: a pid, None or "restarting"; a reference where a supervisor is."""
    return {row[0]: row[1] for row in supervisor.which_children()}


def new_pid(supervisor: Any, id: Any, old: int) -> int:
    """Of the next incarnation of a child, once it runs."""

    def look() -> int:
        pid = supervisor.which_child(id)[1]
        return pid if isinstance(pid, int) and pid != old else 0

    return int(until(look, lambda: supervisor.which_children()))


def reports(runtime: Runtime, context: str, id: Any = None) -> list[dict[str, Any]]:
    """What the root has reported in this context, of this child, until now: its answer comes behind its reports."""
    with contextlib.suppress(NotFound, RuntimeDown):
        runtime.supervisor().count_children()
    return [
        report
        for report in runtime.events()
        if report["context"] == context and (id is None or report["offender"]["id"] == id)
    ]


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def found_again(runtime: Runtime, old_root: int, name: str | None = None) -> Any:
    """The supervisor's handle from the root after this one, once its tree is up."""

    def look() -> Any:
        if runtime.pid == old_root:
            return None
        try:
            supervisor = runtime.supervisor(name)
            return supervisor if supervisor.describe()["state"] == "running" else None
        except (NotFound, RuntimeDown):
            return None

    return until(look, runtime.events)

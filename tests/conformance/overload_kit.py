"""What the tests of full places share: a server that can be held, tasks that leave a trace, and how to look at reports.

A trace is a file whose lines processes append; what never ran has left none.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import shmrt
from shmrt import Runtime, Server, call, cast

PATIENCE_S = 60.0  # nothing is judged by it: a test that gets here hangs


def until(condition: Any, what: object = "") -> Any:
    """Asks again until it is true; its value."""
    end = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        assert time.monotonic() < end, f"it never came true: {what() if callable(what) else what}"
        time.sleep(0.001)
    return value


def trace(path: str | Path, *words: object) -> None:
    """One line, whole, whoever writes."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, (" ".join(map(str, words)) + "\n").encode())
    finally:
        os.close(fd)


def lines(path: str | Path) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except FileNotFoundError:
        return []


def held(path: str | Path) -> None:
    """Says that it runs, then waits for a file named like the trace and ".go"."""
    trace(path, "held", os.getpid())
    while not os.path.exists(f"{path}.go"):
        time.sleep(0.001)


def let_go(path: str | Path) -> None:
    Path(f"{path}.go").touch()


class Clerk(Server):
    """Writes down what it does; can be held in the middle of it."""

    def init(self, path: str) -> None:
        self.path = path

    @call
    def hold(self) -> str:
        held(self.path)
        return "went on"

    @call
    def ask(self, word: object = "asked") -> object:
        trace(self.path, word)
        return word

    @cast
    def note(self, word: object) -> None:
        trace(self.path, word)

    @call
    def left(self) -> float | None:
        return shmrt.deadline()

    @cast
    def note_left(self) -> None:
        trace(self.path, "left", shmrt.deadline())

    def handle_info(self, message: Any) -> None:
        trace(self.path, message)


def hold_server(ref: Any, path: Path) -> Any:
    """The future of the call that holds it, once it does."""
    before = len(lines(path))
    future = ref.request("hold")
    until(lambda: len(lines(path)) > before)
    return future


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """By SIGSTOP, seen to be; goes on at the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def overloads(runtime: Runtime, where: str) -> list[dict[str, Any]]:
    """The reports of one place so far."""
    return [event for event in runtime.events() if event["event"] == "overload" and event["metadata"]["where"] == where]


def told(runtime: Runtime, where: str, key: str) -> int:
    """How many of them the reports have told so far."""
    return sum(event["measurements"][key] for event in overloads(runtime, where))

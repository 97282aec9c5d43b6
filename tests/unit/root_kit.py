"""A root that is none: a directory, a control socket and scripted answers, served by a thread of the test."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shmrt import _native
from shmrt.supervise.control import Control
from shmrt.supervise.directory import RuntimeDirectory

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 120


class FakeRoot:
    """`script(verb, args, reply)` answers; `control` publishes events."""

    def __init__(self, name: str, place: str) -> None:
        self.directory = RuntimeDirectory.claim(name, place)
        self.directory.rooted(os.getpid())
        self.asked: list[tuple[str, dict[str, Any], Any]] = []
        self.script: Callable[[str, dict[str, Any], Any], None] = lambda verb, args, reply: reply(True, {})
        self.control = Control(self.directory.control_fd, self._answer)
        self._posted: list[Callable[[], None]] = []
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._over = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _answer(self, verb: str, args: dict[str, Any], reply: Any) -> None:
        self.asked.append((verb, args, reply))
        self.script(verb, args, reply)

    def _serve(self) -> None:
        while not self._over:
            ready = {fd for fd, _ in _native.poll([*self.control.fds(), (self._wake, _native.POLLIN)], -1)}
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            while self._posted:
                self._posted.pop(0)()
            self.control.handle(ready)

    def post(self, work: Callable[[], None]) -> None:
        """Has the serving thread do this."""
        self._posted.append(work)
        os.eventfd_write(self._wake, 1)

    def end(self, *, reason: str | None = None) -> None:
        """As a runtime that stops in order, or with a reason for the post-mortem."""
        if self._thread.is_alive():
            self._over = True
            os.eventfd_write(self._wake, 1)
            self._thread.join(WATCHDOG_S)
            self.control.close()
            os.close(self._wake)
            if reason is None:
                self.directory.remove()
            else:
                self.directory.leave(reason)


@contextlib.contextmanager
def fake_root(name: str, place: Path) -> Iterator[FakeRoot]:
    root = FakeRoot(name, str(place))
    try:
        yield root
    finally:
        root.end()


def command(place: Path, *words: str) -> list[str]:
    return [sys.executable, "-m", "shmrt", "--runtime-dir", str(place), *words]


def cli(place: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(place, *words),
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )


def refused(done: subprocess.CompletedProcess[str], code: int, *parts: str) -> None:
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    assert done.stdout == "" and "Traceback" not in done.stderr, done.stdout + done.stderr
    for part in parts:
        assert part in done.stderr, done.stderr

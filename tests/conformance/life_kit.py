"""Programs in sessions of their own, and what is left of them: what the tests of life and death share.

A program is started with a word in its environment that everything it starts inherits, whatever session, group
or parent that makes for itself. So "who is left" needs no list of pids that somebody would have to keep.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
WORD = "SHMRT_LIFE_WORD"
OWNER_PID = (1 << 22) - 1  # the bits of an owner id that are the pid (`native/ops.c`)
PATIENCE_S = 60.0  # nothing is judged by it: a test that gets here hangs


def environment(pid: int) -> bytes:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes()
    return b""


def status_field(pid: int, name: str) -> str:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith(name + ":"):
                return line.split(None, 1)[1]
    return ""


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:150]
    return ""


def shared_names(pid: int) -> set[str]:
    """Names below /dev/shm that a process has made: the files of rings in the making carry its owner id, and the
    programs here put their pid into every name they choose. Other tests make names of their own meanwhile."""
    prefix = f"shmrt-{os.geteuid()}-new-"
    found = set()
    for name in os.listdir("/dev/shm"):
        owner = name.removeprefix(prefix).partition("-")[0]
        made = name.startswith(prefix) and owner.isdigit() and int(owner) & OWNER_PID == pid
        if made or (name.startswith("shmrt-") and name.endswith(f"-{pid}")):
            found.add(name)
    return found


class Program:
    """A Python program in a session of its own; `source` may use what PRELUDE defines."""

    def __init__(
        self,
        source: str,
        *,
        how: str = "-c",
        arguments: tuple[str, ...] = (),
        prefix: tuple[str, ...] = (),
        python: str = sys.executable,
        directory: Path | None = None,
        **environment: str,
    ) -> None:
        self.word = secrets.token_hex(8)
        env = {**os.environ, **environment, WORD: self.word, "PYTHONPATH": str(ROOT), "PYTHONFAULTHANDLER": "1"}
        for name in ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED"):  # unbuffered, lines of two processes could mix
            env.pop(name, None)
        command = [*prefix, python, "-c", source, *arguments] if how == "-c" else [*prefix, python, how, *arguments]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=directory,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._text = b""

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.family(with_self=True):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()

    def line(self) -> str:
        """The next line that the program prints."""
        assert self.process.stdout is not None
        end = time.monotonic() + PATIENCE_S
        while b"\n" not in self._text:
            ready, _, _ = select.select([self.process.stdout], [], [], max(end - time.monotonic(), 0))
            piece = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not piece:
                raise AssertionError(f"no line, but {self._text!r}; errors: {self.errors() if ready else 'it hangs'}")
            self._text += piece
        line, _, self._text = self._text.partition(b"\n")
        return line.decode()

    def errors(self) -> str:
        assert self.process.stderr is not None
        text = b""
        while select.select([self.process.stderr], [], [], 0.5)[0]:
            piece = os.read(self.process.stderr.fileno(), 65536)
            if not piece:
                break
            text += piece
        return text.decode(errors="replace")

    def end(self, text: str | None = None) -> tuple[int, str, str]:
        """Waits for the program's own end; status, what else it printed, its errors."""
        try:
            out, err = self.process.communicate(None if text is None else text.encode(), timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill(signal.SIGABRT)  # says where it hangs
            out, err = self.process.communicate(timeout=PATIENCE_S)
            raise AssertionError(f"it hangs, after {out!r}: {err.decode(errors='replace')}") from None
        return self.process.returncode, (self._text + out).decode(), err.decode(errors="replace")

    def kill(self, number: int = signal.SIGKILL) -> None:
        os.kill(self.pid, number)

    def family(self, *, with_self: bool = False) -> dict[int, str]:
        """Living processes that came of this program, itself left out."""
        wanted = f"{WORD}={self.word}".encode()
        found = {}
        for entry in os.listdir("/proc"):
            if not entry.isdigit() or (int(entry) == self.pid and not with_self):
                continue
            if wanted in environment(int(entry)).split(b"\0"):
                pid = int(entry)
                if not status_field(pid, "State").startswith(("Z", "X")):
                    found[pid] = command_of(pid)
        return found

    def root(self) -> int:
        """The pid of the root: the one child of the program that carries its name."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            for pid, command in self.family().items():
                if "shmrt.supervise.root" in command and status_field(pid, "Name") == "shmrt-root":
                    return pid
            os.sched_yield()
        raise AssertionError(f"no root among {self.family()}")

    def seconds_until_nobody(self) -> tuple[float, dict[int, str]]:
        """How long anybody was left; who still is after ten seconds."""
        start = time.monotonic()
        while True:
            left = self.family()
            taken = time.monotonic() - start
            if not left or taken > 10.0:
                return taken, left
            os.sched_yield()


def run(source: str, text: str | None = None, **more: Any) -> tuple[int, str, str]:
    """Runs a program to its end and proves that nothing of it stays."""
    with Program(source, **more) as program:
        result = program.end(text)
        _, left = program.seconds_until_nobody()
        assert not left, (left, result)
    assert not shared_names(program.pid)
    return result

"""What the command line prints, and where: data on stdout, everything else on stderr.

With `-o json` stdout carries one JSON document and with `-o jsonl` one per line, nothing else: what the user's code
prints, in this process or in workers, goes to stderr then, and errors are JSON there. Colour only on a terminal,
without NO_COLOR and with a TERM that can. A closed or broken stream never makes a traceback: missing ones are
replaced before anything is printed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from shmrt.cli.plain import json_text

__all__ = ["CliError", "Screen", "claim_stdout", "flush", "guard_streams", "silence_stdout", "write_stdout"]

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}


class CliError(Exception):
    """Ends the command: what is wrong, what to do about it, and the exit code."""

    def __init__(
        self, message: str, *, hint: str | None = None, code: int = 1, signal: signal.Signals | None = None
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.code, self.signal = message, hint, code, signal


def guard_streams() -> None:
    """Replaces streams that were closed before the start, and makes text that they cannot encode harmless.

    Descriptors 0 to 2 are filled first, else the next file opened would become somebody's stdout.
    """
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number, inheritable=True)
                os.close(opened)
            else:
                os.set_inheritable(opened, True)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or stream.closed:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (lives as long as the process)
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115


_data: TextIO | None = None
"""The real stdout, once `claim_stdout` has taken it from everybody else."""


def claim_stdout() -> None:
    """From here on only `write_stdout` reaches stdout; whatever else is written to descriptor 1 goes to stderr.

    It is done to the descriptor, before any user code runs and before the root starts: the root, its workers and the
    user's own subprocesses inherit descriptor 1, and must not be able to write between the JSON. The duplicate is
    closed by every exec.
    """
    global _data
    if _data is not None:
        return
    sys.stdout.flush()
    try:
        real = sys.stdout.fileno() == 1
    except (OSError, ValueError):
        real = False
    if not real:  # somebody runs the command in their own process with a stdout of theirs
        _data, sys.stdout = sys.stdout, sys.stderr
        return
    _data = open(os.dup(1), "w", buffering=1, encoding="utf-8")  # noqa: SIM115 (lives as long as the process)
    os.dup2(2, 1)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(line_buffering=True)  # prints keep their place among the other lines of stderr


def silence_stdout() -> None:
    """After a failed write: what is still buffered must not fail again when the interpreter ends."""
    try:
        empty = os.open(os.devnull, os.O_WRONLY)
        for number in {1, 1 if _data is None else _data.fileno()}:
            os.dup2(empty, number, inheritable=number == 1)
        os.close(empty)
        flush()
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115


def flush() -> None:
    """Both the command's data and what the user's code printed."""
    if _data is not None:
        _data.flush()
    sys.stdout.flush()


def write_stdout(text: str = "") -> None:
    """Writes, or with no text flushes. A reader that left is BrokenPipeError; any other failure ends the command."""
    try:
        if text:
            (sys.stdout if _data is None else _data).write(text)
        else:
            flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence_stdout()
        raise CliError(
            f"cannot write to stdout: {error.strerror}", hint="free some space, or redirect it elsewhere"
        ) from None


class Screen:
    """One command's view of its streams."""

    def __init__(self, *, format: str = "text", color: bool = True, quiet: bool = False, verbose: bool = False) -> None:
        self.format, self.quiet, self.verbose = format, quiet, verbose
        self.json = format in ("json", "jsonl")
        self._color = color and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"
        self._shown = 0
        self.terminal = sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb"

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Screen:
        return cls(
            format=arguments.output,
            color=not arguments.no_color,
            quiet=arguments.quiet,
            verbose=arguments.verbose,
        )

    def paint(self, text: str, colour: str, stream: TextIO) -> str:
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._color and stream.isatty() else text

    def line(self, text: str) -> None:
        """Data, for people."""
        self.clear()
        write_stdout(text + "\n")

    def document(self, schema: str, body: Mapping[str, Any]) -> None:
        """Data, for programs."""
        self.clear()
        indent = 2 if self.format == "json" else None
        write_stdout(json_text({"schema": schema, **body}, indent=indent) + "\n")

    def note(self, text: str, *, colour: str | None = None) -> None:
        """Whatever is not data: stderr, silent with -q and in JSON modes."""
        if self.quiet or self.json:
            return
        self.clear()
        self._to_stderr((self.paint(text, colour, sys.stderr) if colour else text) + "\n")

    def detail(self, text: str) -> None:
        if self.verbose:
            self.note(text, colour="dim")

    @staticmethod
    def width() -> int:
        """Columns of the terminal, 80 where there is none or it does not say."""
        try:
            return os.get_terminal_size(2).columns or 80
        except OSError:
            return 80

    @staticmethod
    def columns() -> int | None:
        """Columns of the terminal that data goes to; None where it goes elsewhere, and nothing is to be cut."""
        try:
            return os.get_terminal_size(1).columns or 80 if os.isatty(1) else None
        except OSError:
            return None

    def progress(self, text: str) -> None:
        """One line on a terminal that is written over; elsewhere a line like any other (the caller paces them)."""
        if self.quiet or self.json:
            return
        if not self.terminal:
            self._to_stderr(text + "\n")
            return
        room = max(1, self.width() - 1)  # a full line would wrap, and what wrapped could not be written over
        text = text[:room]
        self._to_stderr("\r" + text + " " * max(0, min(self._shown, room) - len(text)))
        self._shown = len(text)

    def clear(self) -> None:
        if self._shown:
            blank = min(self._shown, max(1, self.width() - 1))  # the terminal may have become narrower
            self._to_stderr("\r" + " " * blank + "\r")
            self._shown = 0

    def error(self, error: CliError) -> None:
        self.clear()
        if self.json:
            body = {"schema": "shmrt.error/1", "code": error.code, "message": error.message, "hint": error.hint}
            self._to_stderr(json_text(body) + "\n")
            return
        if error.message:
            self._to_stderr(f"{self.paint('error:', 'red', sys.stderr)} {error.message}\n")
        if error.hint:
            self._to_stderr(f"  {error.hint}\n")

    @staticmethod
    def _to_stderr(text: str) -> None:
        try:
            sys.stderr.write(text)
            sys.stderr.flush()
        except (OSError, ValueError, RuntimeError):
            pass  # stderr is closed, full, or was being written when a signal came; there is nowhere left to say so

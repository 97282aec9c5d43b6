"""Talks to the root of a named runtime through its control socket, for the verbs that look and the verbs that steer.

Nothing of the user's is imported here, nor anything that is not needed to speak one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from shmrt.cli.screen import CliError

if TYPE_CHECKING:
    from shmrt.supervise.directory import Found

__all__ = ["Remote", "place_of", "the_runtime", "unavailable"]

SCHEMA = "shmrt.control/1"
ANSWER_S = 10.0
"""A root answers questions in milliseconds, whatever its workers do."""

_CODES = {"usage": 2, "bad_request": 2, "not_found": 2, "ambiguous": 2, "unknown_verb": 2, "schema": 2, "ending": 3}
"""Exit codes by the `code` of a refusal; every other one is 1, and `internal` is 70."""


def place_of(arguments: argparse.Namespace) -> str:
    """Where the directories of runtimes are looked for."""
    from shmrt.supervise.place import default_place

    given = getattr(arguments, "runtime_dir", None)
    return os.path.abspath(given) if given else default_place()


def name_of(arguments: argparse.Namespace) -> str | None:
    return getattr(arguments, "name", None) or os.environ.get("SHMRT_NAME") or None


def unavailable(what: str) -> CliError:
    return CliError(f"{what} is not available in this version", hint="`python -m shmrt --help` lists what is", code=2)


def the_runtime(arguments: argparse.Namespace) -> Found:
    """The one that --name names, else the only one that runs. Exit code 3 when there is none."""
    from shmrt.cli.main import nearest
    from shmrt.supervise.directory import find

    place, name = place_of(arguments), name_of(arguments)
    all_found = find(place)
    running = [one for one in all_found if one.state in ("running", "foreign", "ending")]
    names = [one.name for one in running]
    others = f"running: {', '.join(names)}" if names else f"no runtime is running (looked in {place})"
    if name is not None:
        for one in running:
            if one.name == name:
                return one
        for one in all_found:
            if one.name == name:
                hint = f"`python -m shmrt clean` removes what is left of it; {others}"
                raise CliError(f"runtime {name!r} is not running: {one.why}", hint=hint, code=3)
        raise CliError(f"no runtime named {name!r} is running{nearest(name, names)}", hint=others, code=3)
    if not running:
        stale = [one for one in all_found if one.state == "stale"]
        hint = "start one with `python -m shmrt run TARGET --name NAME`, or `Runtime(name=...)` in a program"
        if stale:
            hint = f"{stale[0].name!r} is not running any more: {stale[0].why}; {hint}"
        raise CliError(f"no runtime is running (looked in {place})", hint=hint, code=3)
    if len(running) > 1:
        raise CliError(
            f"{len(running)} runtimes are running: {', '.join(names)}",
            hint=f"say which: python -m shmrt --name {names[0]} ...",
            code=2,
        )
    return running[0]


class Remote:
    """One connection to the root of `found`."""

    def __init__(self, found: Found) -> None:
        self.found = found
        self._received = bytearray()
        self._socket = self._connect()

    def _connect(self) -> socket.socket:
        from shmrt.supervise.directory import connect

        end = time.monotonic() + ANSWER_S
        while True:
            try:
                return socket.socket(fileno=connect(self.found))
            except BlockingIOError:  # its queue of callers is full: the root does not accept
                if time.monotonic() > end:
                    raise self._silent() from None
                time.sleep(0.01)
            except FileNotFoundError:
                raise CliError(f"runtime {self.found.name!r} has just ended", code=3) from None
            except ConnectionRefusedError:
                hint = "`python -m shmrt ls` lists what runs, `clean` removes what is left"
                raise CliError(
                    f"runtime {self.found.name!r} does not listen: {self.found.why}", hint=hint, code=3
                ) from None

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _silent(self) -> CliError:
        return CliError(
            f"runtime {self.found.name!r} did not answer for {ANSWER_S:g} s",
            hint=f"its root is process {self.found.root}; was it stopped by a signal?",
            code=4,
        )

    def send(self, verb: str, args: dict[str, Any]) -> None:
        line = json.dumps({"schema": SCHEMA, "verb": verb, "args": args}).encode() + b"\n"
        self._socket.setblocking(True)
        self._socket.settimeout(ANSWER_S)
        try:
            self._socket.sendall(line)
        except TimeoutError:
            raise self._silent() from None
        except OSError:
            pass  # it hung up, perhaps with a word, which is read next
        self._socket.setblocking(False)

    def receive(self, seconds: float | None) -> dict[str, Any] | None:
        """The next line. None after that time; EOFError when the root hung up."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            at = self._received.find(b"\n")
            if at >= 0:
                line = bytes(self._received[:at])
                del self._received[: at + 1]
                try:
                    answer = json.loads(line)
                except ValueError:
                    answer = None
                if not isinstance(answer, dict):
                    raise CliError(f"runtime {self.found.name!r} answered what this version does not understand")
                return answer
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            rest = None if end is None else max(0.0, end - time.monotonic()) * 1000
            if not poll.poll(rest):
                return None
            try:
                data = self._socket.recv(1 << 16)
            except BlockingIOError:
                continue
            except ConnectionResetError:
                data = b""
            if not data:
                raise EOFError
            self._received += data

    def ask(self, verb: str, **args: Any) -> dict[str, Any]:
        """The answer to a question."""
        self.send(verb, args)
        try:
            answer = self.receive(ANSWER_S)
        except EOFError:
            raise self._hung_up() from None
        if answer is None:
            raise self._silent()
        return self.checked(answer)

    def command(self, verb: str, args: dict[str, Any], *, wait: bool, timeout: float | None) -> dict[str, Any]:
        """The answer to a command: when its orders are given, or with `wait` when it is done."""
        self.send(verb, {**args, "wait": wait})
        try:
            answer = self.receive(timeout if wait else ANSWER_S)
        except EOFError:
            if verb == "stop":  # the root ends with the runtime
                return self._ended(timeout)
            raise self._hung_up() from None
        if answer is not None:
            return self.checked(answer)
        command = f"python -m shmrt --name {self.found.name} status"
        if wait:
            raise CliError(
                f"{verb} was not done within {timeout:g} s",
                hint=f"it goes on; `{command}` says what it waits for",
                code=4,
            )
        raise CliError(
            f"{verb} was not begun within {ANSWER_S:g} s", hint=f"`{command}` says what it waits for", code=4
        )

    def _ended(self, timeout: float | None) -> dict[str, Any]:
        """The root is gone; a moment later its name is free, or somebody else has it."""
        from shmrt.supervise.directory import find

        end = time.monotonic() + (ANSWER_S if timeout is None else max(timeout, 1.0))
        while time.monotonic() < end:
            if not any(
                one.path == self.found.path
                and one.state != "stale"
                and one.owner.get("token") == self.found.owner["token"]
                for one in find(os.path.dirname(self.found.path))
            ):
                return {"ok": True, "stopped": True}
            time.sleep(0.005)
        raise self._hung_up()

    def lines(self) -> Iterator[dict[str, Any]]:
        """What comes until the root hangs up."""
        while True:
            try:
                answer = self.receive(None)
            except EOFError:
                return
            if answer is not None:
                yield answer

    def checked(self, answer: dict[str, Any]) -> dict[str, Any]:
        if answer.get("ok"):
            return answer
        from shmrt.cli.main import nearest

        code = str(answer.get("code"))
        message = str(answer.get("message") or f"refused: {code}")
        hint = answer.get("hint")
        known = [str(word) for word in answer.get("known") or ()]
        if known:
            wanted = message.rsplit("'", 2)[-2] if message.count("'") >= 2 else ""
            message += nearest(wanted, known)
            hint = hint or f"it has {', '.join(known[:12])}{' ...' if len(known) > 12 else ''}"
        exit_code = 70 if code == "internal" else _CODES.get(code, 1)
        raise CliError(message, hint=None if hint is None else str(hint), code=exit_code)

    def _hung_up(self) -> CliError:
        return CliError(
            f"the root of runtime {self.found.name!r} hung up before it answered",
            hint="it ended or was replaced just now; `python -m shmrt ls` says which",
            code=3,
        )

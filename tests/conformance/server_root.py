"""Servers in processes of their own, forked by a test that plays the root: one slot, one socket, one mailbox each.

Over shared memory there is nothing between caller and server; what the root does is what this file does by hand: it
forks, sends control messages and raises the control count, reaps, and fails the calls that a dead server had taken.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import pickle
import signal
import threading
import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import cloudpickle

from shmrt import _native, server_home
from shmrt.process.serve import serve
from shmrt.server_home import AskError, Home
from shmrt.server_ref import ServerRef
from shmrt.spec import ON_FULL
from shmrt.supervise.protocol import Channel

PATIENCE_MS = 60_000
"""A test that waits so long hangs."""


class Control:
    """The server's end of its socket."""

    def __init__(self, fd: int) -> None:
        self.channel = Channel(fd)

    def take(self) -> list[tuple[Any, ...]]:
        return [message for message, _ in self.channel.receive()]

    def send(self, message: tuple[Any, ...]) -> None:
        self.channel.send(message)
        while self.channel.pending:
            _native.poll([(self.channel.fd, _native.POLLOUT)], PATIENCE_MS)
            self.channel.flush()


class Process:
    """A server's process. `reason` is how it ended, as the root would say it."""

    def __init__(self, root: Root, key: int, make: bytes, name: str | None, mailbox: Any, ref: ServerRef) -> None:
        self.root, self.key, self.make, self.name, self.mailbox, self.ref = root, key, make, name, mailbox, ref
        self.pid = self.owner = 0
        self.reason: Any = None
        self.lock = threading.Lock()

    def start(self) -> Process:
        ours, theirs = _native.socketpair(False)
        self.root.slots.claim(self.key, 1, 0)
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                os.close(ours)
                self._live(Control(theirs))
                code = 0
            except BaseException:
                traceback.print_exc()  # seen with the output of the test that fails of it
            os._exit(code)
        os.close(theirs)
        self.channel = Channel(ours)
        self.messages: list[tuple[Any, ...]] = []
        self.owner = self.hear("hello")[1]
        self.hear("ready", "exit")
        return self

    def _live(self, control: Control) -> None:
        arena = _native.Arena.attach(self.root.arena.fd)
        arena.set_default()
        slots = _native.Slots.attach(self.root.slots.fd)
        slots.set_process(self.key, os.getpid())
        calls = _native.Calls(slots, arena)
        mailbox = _native.Mailbox.attach(self.mailbox.fd, arena, calls)
        home = self.root.home(calls, arena, self.key)
        server_home.use(lambda runtime: home)
        control.send(("hello", _native.owner_self()))
        reason = serve(
            *(self.make, mailbox, calls, slots, self.key, control),
            on_ready=lambda: control.send(("ready",)),
            name=self.name,
            runtime=self.root.word,
        )
        control.send(("exit", reason))

    def hear(self, *verbs: str) -> Any:
        """The next message of one of these verbs; those before it are kept."""
        with self.lock:
            while True:
                for message in self.messages:
                    if message[0] in verbs:
                        if message[0] != "exit":
                            self.messages.remove(message)
                        return message
                assert not self.channel.closed, f"the server is gone and has not said {verbs}"
                assert _native.poll([(self.channel.fd, _native.POLLIN)], PATIENCE_MS), (
                    f"the server does not say {verbs}"
                )
                self.messages += [message for message, _ in self.channel.receive()]

    def tell(self, *message: Any) -> None:
        self.channel.send(message)
        self.root.slots.send_control(self.key)
        self.mailbox.ring()

    def wait(self) -> Any:
        """Reaps it, as the root does: its callers hear why it is gone."""
        if self.pid:
            _, status = os.waitpid(self.pid, 0)
            self.pid = 0
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                self.reason = "killed" if number == signal.SIGKILL else ("signal", signal.Signals(number).name)
            else:
                self.reason = self.hear("exit")[1]
            os.close(self.channel.fd)
            self.root.slots.gone(self.key, status, False)
            self.root.slots.free(self.key)
            self.root.calls.fail_taken(self.owner, self.reason)
            self.root.calls.reclaim()
        return self.reason

    def kill(self) -> Any:
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


class Root:
    word = "root"

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.arena = _native.Arena.create(64 << 20)
        self.slots = _native.Slots.create(16)
        self.calls = _native.Calls(self.slots, self.arena)
        self.calls.reserve()
        self.processes: dict[int, Process] = {}
        self.outside = self.home(self.calls, self.arena, None)
        self.tokens = 0

    def home(self, calls: Any, arena: Any, key: int | None) -> Home:
        return Home(calls, SimpleNamespace(ask=self.ask), arena, runtime=self.word, key=key)  # type: ignore[arg-type]

    def start(
        self, cls: Any, *args: Any, name: str | None = None, slots: int = 1000, on_full: str = "block"
    ) -> Process:
        key = len(self.processes) + 2
        mailbox = _native.Mailbox.create(slots, 512, ON_FULL.index(on_full), self.arena, self.calls)
        address = (self.pid, mailbox.fd, mailbox.inode, mailbox.token)
        ref = ServerRef(key, address, name=name, handlers=cls.__handlers__, runtime=self.word)
        process = self.processes[key] = Process(self, key, cloudpickle.dumps((cls, args, {})), name, mailbox, ref)
        return process.start()

    def ask(self, verb: str, *args: Any, timeout: float | None = None) -> Any:
        process = self.processes[args[0]]
        if not process.pid:
            raise AskError("noproc")
        self.tokens += 1
        if verb == "stop_child":
            process.tell("system", self.tokens, "stop", marshal.dumps(args[1]))
            if process.wait() != args[1]:
                raise AskError("exit", process.reason)
            return process.reason
        process.tell("system", self.tokens, args[1], args[2])
        _, token, ok, payload = process.hear("system_reply")
        assert token == self.tokens
        return ok, payload

    def close(self) -> None:
        for process in self.processes.values():
            if process.pid:
                process.kill()
        self.outside.close("it was closed")
        assert self.calls._check()
        self.slots.close()


@contextlib.contextmanager
def root() -> Iterator[Root]:
    before = server_home._finder
    made = Root()
    server_home.use(lambda runtime: made.outside)
    try:
        yield made
    finally:
        made.close()
        server_home._finder = before


def in_another_process(made: Root, function: Any) -> Any:
    """What the function gives in a forked process of the runtime that is no server; an exception comes as its repr."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            arena = _native.Arena.attach(made.arena.fd)
            arena.set_default()
            home = made.home(_native.Calls(_native.Slots.attach(made.slots.fd), arena), arena, None)
            server_home.use(lambda runtime: home)
            found = function()
        except BaseException as error:
            found = repr(error)
        os.write(writer, pickle.dumps(found))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        data = pipe.read()
    os.waitpid(pid, 0)
    made.calls.reclaim()
    return pickle.loads(data)

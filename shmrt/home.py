"""What a process has of its runtime, wherever it is: the call slots, the names, and a link to the root.

    the program          of its current runtime (`with Runtime()`, else the default one)
    a worker or child    of the runtime that owns it; nothing but the link is started for it

`home()` is the process's own; a reference keeps the one that it was made with. A forked child of either owns nothing of
it.
"""

from __future__ import annotations

import marshal
import os
import sys
import threading

from shmrt import _native

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.runtimes import Runtime

__all__ = ["Home", "home", "home_by_token", "home_of"]

_lock = threading.Lock()
_inner: Home | None = None


class Home:
    """`token` is equal in all processes of one runtime."""

    def __init__(self, slots: _native.Slots, link: Any, runtime: Runtime | None) -> None:
        self.slots = slots
        self.link = link
        self.runtime = runtime  # None in a worker or child
        self.own_pid = os.getpid()
        self.calls = _native.Calls(slots)
        self.calls.reserve()
        self.names = _native.Names(slots)
        self.token = _token(slots)

    def ask(self, verb: str, *arguments: Any, timeout: float | None = None) -> Any:
        """`link.ask`, for whoever owns it."""
        if os.getpid() != self.own_pid:
            from shmrt.errors import RuntimeDown

            raise RuntimeDown(
                f"this runtime belongs to process {self.own_pid}, and this is its forked child {os.getpid()}, which "
                "owns nothing of it",
                reason="forked",
            )
        if self.runtime is not None:
            self.runtime._check()
        return self.link.ask(verb, *arguments, timeout=timeout)

    def find(self, name: str) -> tuple[Any, ...] | None:
        """(key, kind, pid, address) of whoever has the name."""
        value = self.names.find("n" + name)
        return None if value is None else tuple(marshal.loads(value))

    def find_all(self, group: str) -> list[tuple[Any, ...]]:
        """The same of every member of a group, in the order of joining."""
        return [tuple(marshal.loads(value)) for value in self.names.find_all("g" + group)]


def _token(slots: _native.Slots) -> int:
    return os.fstat(slots.fd).st_ino


def home() -> Home:
    """This process's."""
    global _inner
    from shmrt import runtimes

    runtime = runtimes.innermost()
    job = getattr(sys.modules.get("shmrt.process.worker"), "job_of_this", None)
    if runtime is None and job is not None and job.own_pid == os.getpid():
        with _lock:
            if _inner is None or _inner.own_pid != job.own_pid:
                from shmrt.supervise.inner import link_of

                _inner = Home(job.slots, link_of(job), None)
            return _inner
    return home_of(runtimes.current() if runtime is None else runtime)


def home_of(runtime: Runtime) -> Home:
    """A runtime's, made at first use."""
    runtime.start()
    with _lock:
        found = runtime._home
        if found is None:
            found = runtime._home = Home(runtime._slots, runtime._link, runtime)
        return found


def home_by_token(token: int) -> Home:
    """That of the runtime with this token, for a reference that was pickled. LookupError: this process is not of it."""
    from shmrt import runtimes

    for runtime in runtimes.living():
        if runtime._home is not None and runtime._home.token == token:
            return runtime._home
    mine = home()
    if mine.token != token:
        raise LookupError("this reference is of another runtime than this process")
    return mine

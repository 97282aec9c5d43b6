"""Which runtime a process belongs to, and what it has of it: call slots, names, mailboxes, a link to the root.

    the program          of its current runtime (`with Runtime()`, else the default one)
    a worker or child    of the runtime that owns it; nothing but the link is started for it

`home()` is the process's own; references carry the token of theirs. A forked child of either owns nothing of it.
"""

from __future__ import annotations

import marshal
import os
import sys
import threading

from shmrt import _native, server_home

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.runtimes import Runtime

__all__ = ["Home", "home", "home_by_token", "home_of"]

_lock = threading.RLock()
_inner: Home | None = None


class Home(server_home.Home):
    """One runtime as this process sees it. `token`, and `runtime`, is equal in all processes of one runtime."""

    def __init__(self, slots: _native.Slots, link: Any, owner: Runtime | None, child: Any = None) -> None:
        token = os.fstat(slots.fd).st_ino
        arena = _native.Arena.default() if owner is None else owner._arena
        calls = _native.Calls(slots, arena) if child is None else child.calls
        super().__init__(calls, link, arena, runtime=token, key=None if child is None else child.key)
        calls.reserve()
        self.slots = slots
        self.token = token
        self.owner = owner  # None in a worker or child
        self.names = _native.Names(slots)

    def check(self) -> None:
        super().check()
        if self.owner is not None:
            self.owner._check()

    def ask(self, verb: str, *arguments: Any, timeout: float | None = None) -> Any:
        """`link.ask`, for whoever owns it. Raises AskError, RuntimeDown, TimeoutError."""
        from shmrt.supervise.asking import AskError

        self.check()
        try:
            return self.link.ask(verb, *arguments, timeout=timeout)
        except AskError:
            self.check()  # the runtime has ended meanwhile: that is why
            raise

    # ---- names ------------------------------------------------------------------------------------------------------
    def entry(self, name: str) -> tuple[Any, ...] | None:
        """(key, kind, pid, address) of the child that has the name, else of the supervisor."""
        value = self.names.find("n" + name) or self.names.find("s" + name)
        return None if value is None else tuple(marshal.loads(value))

    def entries(self, group: str) -> list[tuple[Any, ...]]:
        """The same of every member of a group, in the order of joining."""
        return [tuple(marshal.loads(value)) for value in self.names.find_all("g" + group)]

    def find(self, name: str) -> Any:
        """What `whereis` gives: a reference, the Pool itself in the program that has it, or None."""
        from shmrt.handles import make_ref

        self.check()
        found = self.entry(name)
        if found is None:
            return None
        key, kind, _, address = found
        if kind == "pool" and self.owner is not None and self.owner._trees is not None:
            pool = self.owner._trees.pool(key)
            if pool is not None:
                return pool
        return make_ref(self, key, {"kind": kind, "name": name, "label": name, "mailbox": address, "handlers": None})

    # ---- servers outside any tree -----------------------------------------------------------------------------------
    def start(
        self, cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, name: str | None, restart: str, **options: Any
    ) -> Any:
        """A server under a supervisor of its own, which ends with it. `options` are further ones of `Child`."""
        from shmrt.children import Child, Supervisor
        from shmrt.errors import StartError
        from shmrt.handles import at_fault
        from shmrt.runtimes import current

        ends = restart != "permanent"
        child = Child(cls, *args, kwargs=kwargs, name=name, restart=restart, significant=ends, **options)
        tree = Supervisor([child], auto_shutdown="any_significant" if ends else "never")
        trees = (current() if self.owner is None else self.owner).trees
        try:
            top = trees.plant(tree, again=restart == "permanent")
        except StartError as error:  # the supervisor is nothing that the caller knows of
            reason = at_fault(error.reason)[1]
            raise StartError(str(error), reason=reason, child=child.id) from None
        from shmrt.errors import NotFound

        try:
            return top.child(child.id)
        except NotFound:  # its init said that it is not needed
            top.stop()
            return None


def home(runtime: Any = None) -> Home:
    """This process's, or the one with this token."""
    return _own() if runtime is None else home_by_token(runtime)


def _own() -> Home:
    global _inner
    from shmrt import runtimes

    runtime = runtimes.innermost()
    job = getattr(sys.modules.get("shmrt.process.worker"), "job_of_this", None)
    if runtime is None and job is not None and job.own_pid == os.getpid():
        with _lock:
            if _inner is None or _inner.owner_pid != job.own_pid:
                from shmrt.supervise.child import this_child
                from shmrt.supervise.inner import link_of

                _inner = Home(job.slots, link_of(job), None, this_child())
            return _inner
    return home_of(runtimes.current() if runtime is None else runtime)


def home_of(runtime: Runtime) -> Home:
    """A runtime's, made at first use."""
    with _lock:
        found = runtime._home
        if found is None or found.owner_pid != os.getpid():
            runtime._check()
            found = runtime._home = Home(runtime._slots, runtime._link, runtime)
        return found


def home_by_token(token: int) -> Home:
    """That of the runtime with this token. LookupError: this process is not of it; RuntimeDown: it has ended, or
    belongs to the program that this process was forked from."""
    from shmrt import runtimes

    for runtime in runtimes.known():
        if runtime._home is not None and runtime._home.token == token:
            runtime._check()  # RuntimeDown in a forked child of its program
            return runtime._home
    mine = _own()
    if mine.token != token:
        raise LookupError("this reference is of another runtime than this process")
    return mine


server_home.use(home)

"""A `ServerRef`: how a process talks to a server, wherever in the runtime it is.

    ref.add(5)                              by the handler's kind: a call (5 s at most) or a cast
    ref.call("add", 5, timeout=1.0)         waits for the answer
    ref.cast("reset")                       waits for nothing, and does not care whether there is a server
    ref.request("add", 5) -> Future         waits elsewhere
    await ref.acall("add", 5)
    ref.info(message)                       for `handle_info`
    ref.stop(reason="normal", timeout=None)

How a call ends, always in one of these:

    the answer
    what the handler raised      with the server's traceback as `__cause__`; AttributeError if there is no such handler
    ServerDown(reason)           the server ended while it had the call, for good before that ("noproc" from then on),
                                 or with the root, which died meanwhile ("noconnection")
    CallTimeout                  no answer in time; the server is not told, and a late answer is dropped at the door
    Overloaded                   the mailbox is full, and its policy says so

A ref names a child, not a process: a server that was restarted has the same ref, and what it had not yet taken is still
in its mailbox. Refs are equal when they name the same child; they pickle to any process of the runtime.

Calling oneself from a handler is ChildStateError, since the answer could never come. If the calling process dies, its
answer is dropped. Rules: gen_server:call/3, cast/2, send_request/2, stop/3; erlang:send/2.
"""

from __future__ import annotations

from _thread import allocate_lock, get_ident

from shmrt import _native
from shmrt.errors import CallTimeout, ChildStateError, Overloaded, RingClosed, RuntimeDown, ServerDown
from shmrt.process.server_words import explain, plain, reason_from
from shmrt.server_ends import Ends
from shmrt.server_home import AskError, Home, home
from shmrt.spec import check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Future
    from typing import Any

    from shmrt.server_home import Address

__all__ = ["CALL_SECONDS", "ServerRef"]

CALL_SECONDS = 5.0
"""How long a call waits unless it says otherwise, as in OTP."""


class ServerRef(Ends):
    """See the module. Made by `start`, `whereis` and a tree, not by hand."""

    def __init__(
        self,
        key: int,
        address: Address,
        *,
        name: str | None = None,
        handlers: dict[str, tuple[str, bool]] | None = None,
        runtime: Any = None,
    ) -> None:
        self._key = self._first_key = key  # the second one is who it is, whatever has its name later
        self._address = address
        self._name = name
        self._handlers = handlers
        self._runtime = runtime
        self._home: Home | None = None
        self._renewing = allocate_lock()
        self._opened: Any = None
        self._box: Any = None

    # ---- what it names ----------------------------------------------------------------------------------------------
    @property
    def key(self) -> int:
        """The child's number in its runtime; never used again for another."""
        return self._key

    @property
    def name(self) -> str | None:
        """The name it was registered under."""
        return self._name

    @property
    def pid(self) -> int | None:
        """The process that runs it now; None between two, and after the end."""
        try:
            pid: int | None = self._ask("who", self._key)["pid"]
        except ServerDown:
            return None
        return pid or None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ServerRef):
            return NotImplemented
        return (self._first_key, self._runtime) == (other._first_key, other._runtime)

    def __hash__(self) -> int:
        return hash((self._first_key, self._runtime))

    def __repr__(self) -> str:
        return f"<ServerRef {self._label()} key={self._key}>"

    def __reduce__(self) -> Any:
        return (_again, (type(self), self._key, self._address, self._name, self._handlers, self._runtime))

    def __enter__(self) -> ServerRef:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """Stops the server; one that is gone already is fine. Who leaves by an exception waits no longer than a
        supervisor does by default: what a handler is at goes on then, and ends with the runtime at the latest."""
        from shmrt.children import SHUTDOWN_S

        try:
            if kind is None:
                self.stop()
            else:
                self.stop("shutdown", SHUTDOWN_S)
        except CallTimeout:
            pass
        except ServerDown as down:
            if kind is None and down.reason not in ("noproc", "shutdown"):
                raise

    # ---- talking to it ----------------------------------------------------------------------------------------------
    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):  # tools probe for these; a handler of such a name can be reached by `call`
            raise AttributeError(f"a ServerRef has no attribute {name!r}")
        if self._handlers is None:
            self._handlers = dict(self._ask("who", self._key)["handlers"])
        entry = self._handlers.get(name)
        if entry is None:
            known = ", ".join(sorted(self._handlers)) or "none"
            raise AttributeError(f"server {self._label()} has no handler {name!r}; it has {known}")
        bound = self._bind(name, entry[0])
        self.__dict__[name] = bound  # from now on found without asking
        return bound

    def _bind(self, name: str, kind: str) -> Callable[..., Any]:
        if kind == "cast":

            def handler(*args: Any, **kwargs: Any) -> Any:
                self._put(_native.MAIL_CAST, name, args, kwargs, CALL_SECONDS)

        else:

            def handler(*args: Any, **kwargs: Any) -> Any:
                return self._call(name, args, kwargs, CALL_SECONDS)

        handler.__name__ = handler.__qualname__ = name
        handler.__doc__ = f"The {kind} {name!r} of server {self._label()}."
        return handler

    def call(self, name: str, /, *args: Any, timeout: float | None = CALL_SECONDS, **kwargs: Any) -> Any:
        """Has the handler run and waits for what it returns."""
        return self._call(name, args, kwargs, check_seconds(timeout, "timeout"))

    def cast(
        self,
        name: str,
        /,
        *args: Any,
        timeout: float | None = CALL_SECONDS,
        deadline: float | None = None,
        **kwargs: Any,
    ) -> bool:
        """Has the handler run some time. `timeout` is for a full mailbox that blocks. `deadline`: seconds after which
        nobody wants it any more; the server then drops and counts it instead of running it. True once the message is
        in the mailbox; False if it was dropped for want of room, or there is no server any more."""
        seconds = check_seconds(timeout, "timeout")
        return self._put(_native.MAIL_CAST, name, args, kwargs, seconds, check_seconds(deadline, "deadline"))

    def info(self, message: Any, /, *, timeout: float | None = CALL_SECONDS, deadline: float | None = None) -> bool:
        """Sends anything for `handle_info`; otherwise like `cast`."""
        seconds = check_seconds(timeout, "timeout")
        return self._put(_native.MAIL_INFO, "", (message,), {}, seconds, check_seconds(deadline, "deadline"))

    def request(self, name: str, /, *args: Any, timeout: float | None = None, **kwargs: Any) -> Future[Any]:
        """Has the handler run; the future gets what `call` would have returned or raised. It waits only for room in a
        full mailbox that blocks."""
        return self._begin(name, args, kwargs, check_seconds(timeout, "timeout"))

    async def acall(self, name: str, /, *args: Any, timeout: float | None = CALL_SECONDS, **kwargs: Any) -> Any:
        """`call` in an event loop, which it does not hold up."""
        import asyncio

        timeout = check_seconds(timeout, "timeout")
        self._check_not_self(self._reach())
        box = self._box
        if box is not None and box.qsize() >= box.capacity:  # there may be no room for a while
            loop = asyncio.get_running_loop()
            future = await loop.run_in_executor(None, self._begin, name, args, kwargs, timeout)
        else:
            future = self._begin(name, args, kwargs, timeout)
        return await asyncio.wrap_future(future)

    def mailbox_stats(self) -> dict[str, Any]:
        """What its mailbox has counted since it was made, over every restart of the server: depth, capacity, policy,
        high_water, messages_in and messages_out; refused (puts that got Overloaded), drops (by its policy), expired
        (their deadline was over when their turn came), abandoned (calls whose caller had given up or died), cleared
        (by a restart that begins with none), blocked_full (seconds that senders waited for room, summed). ServerDown if
        it is gone. (A handler may be called `stats`, so this is not.)"""
        from shmrt.spec import ON_FULL

        self._reach()
        box = self._box
        if box is None:
            raise self._gone()
        stats = dict(box.stats())
        stats.pop("taken", None)  # by this process
        return {**stats, "policy": ON_FULL[box.on_full]}

    def stop(self, reason: Any = "normal", timeout: float | None = None) -> None:
        """Ends it after what is in its mailbox now, and waits until it is gone. ServerDown if it ended for another
        reason, or was gone before ("noproc"); CallTimeout if it is still there after `timeout`."""
        from shmrt.server import check_reason

        check_reason(reason)
        timeout = check_seconds(timeout, "timeout")
        self._check_not_self(self._reach())
        self._ask("stop_child", self._key, plain(reason), timeout=timeout)

    # ---- how --------------------------------------------------------------------------------------------------------
    def _call(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None, *, renewed: bool = False
    ) -> Any:
        home = self._reach()
        if home.key == self._key:
            self._check_not_self(home)
        box = self._box
        if box is None:
            raise self._gone()
        status, value = home.calls.call(box, self._key, name, args, kwargs or None, timeout)
        if status == _native.CALL_REPLY:
            return value
        if status == _native.CALL_CLOSED and not renewed and self._renew(home, box):
            return self._call(name, args, kwargs, timeout, renewed=True)
        if status == _native.CALL_TIMEOUT and timeout is not None:
            limit = f"{timeout:g} s"
            if _native.turn() == (0.0, True):
                limit = f"what was left of the deadline of the task that called, and at most {limit}"
            raise CallTimeout(f"server {self._label()} did not answer {name!r} within {limit}")
        return self._outcome(status, value)

    def _begin(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None) -> Future[Any]:
        try:
            for _ in range(2):  # the second time with another mailbox
                home = self._reach()
                box = self._box  # once: another thread may find it closed meanwhile
                if box is None:
                    break
                try:
                    return home.requests.begin(box, self._key, name, args, kwargs or None, timeout, self._outcome)
                except RingClosed:
                    if not self._renew(home, box):
                        break
            raise self._gone()
        except Overloaded as error:
            raise self._named(error) from None
        except ServerDown as down:
            from concurrent.futures import Future

            future: Future[Any] = Future()
            future.set_exception(down)
            return future

    def _put(
        self,
        kind: int,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        timeout: float | None,
        deadline: float | None = None,
    ) -> bool:
        try:
            for _ in range(2):  # the second time with another mailbox
                home = self._reach()
                box = self._box
                if box is None:
                    break
                if home.key == self._key and home.thread == get_ident():
                    timeout = 0.0  # nobody would make room while this waits
                try:
                    if deadline is None:
                        return bool(box.cast(kind, name, args, kwargs or None, timeout))
                    return bool(box.cast(kind, name, args, kwargs or None, timeout, deadline))
                except RingClosed:
                    if not self._renew(home, box):
                        break
        except Overloaded as error:
            raise self._named(error) from None
        except ServerDown:
            pass  # nobody can say where its mailbox is
        return False

    def _reach(self) -> Home:
        """The home of its runtime here; opens the mailbox, and leaves `_box` None if that is gone."""
        found = self._home
        if found is None:
            found = home(self._runtime)
        found.check()
        if self._box is None:
            self._home = found
            try:
                self._open(found)
            except LookupError:
                self._renew(found, None)
        return found

    def _renew(self, home: Home, closed: Any) -> bool:
        """`closed`, its mailbox, is closed, or could not be opened (None). Maybe the child has another one, since it
        was stopped and started again; or another child has its name, since a supervisor above it was. False: there is
        no such server. ServerDown: the root died meanwhile. Of several threads that find it closed, one asks."""
        with self._renewing:
            if self._box is not closed:
                return self._box is not None
            stale = self._address[3] if closed is None else closed.token
            home.forget(stale)
            self._box = self._opened = None
            try:
                address = home.link.ask("who", self._key)["mailbox"]
            except RuntimeDown:
                raise self._lost(home) from None
            except AskError:
                again = home.find(self._name) if self._name is not None else None
                if not isinstance(again, ServerRef) or again._key == self._key:
                    return False
                self._key, address = again._key, again._address
            if address is None or address[3] == stale:
                return False
            self._address = address
            try:
                self._open(home)
            except LookupError:
                return False
            return True

    def _open(self, home: Home) -> None:
        self._opened = home.opened(self._address)
        self._box = self._opened.box

    def _check_not_self(self, home: Home) -> None:
        if home.key == self._key and home.thread == get_ident():
            raise ChildStateError(
                f"server {self._label()} called itself from a handler, and would wait for itself: call the method, use"
                " self.stop(), or cast",
                state="calling_self",
            )

    def _ask(self, verb: str, *args: Any, timeout: float | None = None) -> Any:
        """Asks the root about this child."""
        found = self._home or home(self._runtime)
        found.check()
        try:
            return found.link.ask(verb, *args, timeout=timeout)
        except TimeoutError:
            what = "did not end" if verb == "stop_child" else f"was not asked to {verb}"
            raise CallTimeout(f"server {self._label()} {what} within {timeout:g} s") from None
        except AskError as error:
            if error.code in ("exit", "down"):
                ended = reason_from(error.more)
                raise ServerDown(f"server {self._label()} ended: {explain(ended)}", reason=ended) from None
            if error.code in ("noproc", "not_found"):
                raise self._gone() from None
            raise
        except RuntimeDown:
            raise self._lost(found) from None


def _again(
    cls: type[ServerRef], key: int, address: Address, name: str | None, handlers: Any, runtime: Any
) -> ServerRef:
    return cls(key, address, name=name, handlers=handlers, runtime=runtime)

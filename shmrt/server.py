"""Servers: a class whose instance lives in a process of its own and handles one message after the other.

    class Counter(Server):
        def init(self, start=0): self.n = start      # runs in the server's process, before `start` returns
        @call
        def add(self, by=1): self.n += by; return self.n
        @cast
        def reset(self): self.n = 0

    ref = start(Counter, 10, name="counter")
    ref.add(5)                                       # 15; ServerDown, CallTimeout or what the handler raised
    ref.reset()                                      # returns at once

It is OTP's gen_server: `call` waits for the answer, `cast` does not, everything else is a message for `handle_info`.

    method                 runs                                                        gen_server
    init(*args, **kwargs)  before the start returns; an exception fails the start      init
    @call handlers         for each call; the value is the answer                      handle_call
    @cast handlers         for each cast                                               handle_cast
    handle_info(message)   for info, timers, Down, Exit, and "timeout" after           handle_info
                           `self.idle_timeout` seconds (0: right after each message)
    handle_continue(arg)   before any other message, after `self.continue_with(arg)`   handle_continue
                           (or `return Continue(arg)`)
    terminate(reason)      at every end but a kill                                     terminate
    format_state(state)    what `get_state` may show: leave secrets out here           format_status

A handler returns `noreply` to answer later: `self.reply(sender, value)` with the `self.sender` that it has kept (a
parameter named `sender` gets it, too). Any process that was given the sender may answer, as `Server.reply(sender,
value)`; the first answer counts. `self.stop(reason)` ends the server once the handler has returned. With
`self.trap_exit = True` (or in the class) the end of a linked process comes to `handle_info` as `Exit(reason)`, and a
shutdown waits for the handler in progress instead of interrupting it.

If a handler raises, its caller gets the exception and the server crashes; its supervisor starts another with fresh
state, which takes the messages that are still in the mailbox. If the process dies, only the call in hand and those
whose answer was put off end, in ServerDown. What is wrong with a message itself (no such handler, arguments that do
not fit) is told to its sender, and the server lives on.

Handlers can be tried without any process:

    >>> class Counter(Server):
    ...     def init(self, start=0): self.n = start
    ...     @call
    ...     def add(self, by=1): self.n += by; return self.n
    >>> counter = Counter()
    >>> counter.init(10)
    >>> counter.add(5)
    15
    >>> Counter.__handlers__
    {'add': ('call', False)}
"""

from __future__ import annotations

from shmrt.errors import SpecError
from shmrt.process.server_words import Continue, Down, Exit, Sender, Turn, noreply
from shmrt.server_home import Home, home
from shmrt.server_ref import ServerRef

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, Self, TypeVar

    Handler = TypeVar("Handler", bound=Callable[..., Any])

__all__ = ["Continue", "Down", "Exit", "Sender", "Server", "ServerRef", "call", "cast", "noreply", "start", "whereis"]

_home = home
"""Where this process finds calls, mailboxes and the root: see `server_home`."""

_KIND = "__shmrt_kind__"


def call(handler: Handler) -> Handler:
    """Makes a method of a Server a handler whose caller waits for what it returns."""
    return _marked(handler, "call")


def cast(handler: Handler) -> Handler:
    """Makes a method of a Server a handler that nobody waits for."""
    return _marked(handler, "cast")


def _marked(handler: Handler, kind: str) -> Handler:
    if not callable(handler):
        raise TypeError(f"@{kind} goes on a method of a Server, not on {handler!r}")
    setattr(handler, _KIND, kind)
    return handler


class Server:
    """See the module. The instance's attributes are its state."""

    __slots__ = ("__dict__", "__weakref__", "_turn")

    __handlers__: ClassVar[dict[str, tuple[str, bool]]] = {}
    """Name of each handler -> ("call" or "cast", whether it has a parameter named `sender`)."""
    trap_exit: bool = False
    """Whether the end of a linked process is a message, and a shutdown waits for the handler in progress."""
    idle_timeout: float | None = None
    """After so many seconds without a message `handle_info("timeout")` runs, and again after as many more."""

    _turn: Turn

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        server = super().__new__(cls)
        server._turn = Turn()
        return server

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__handlers__ = _handlers_of(cls)

    # ---- what a subclass defines ------------------------------------------------------------------------------------
    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Makes the first state. `return Continue(arg)` leaves the slow part to `handle_continue`; `return ignore` ends
        the process again, which is not needed, and `start` returns None."""

    def handle_info(self, message: Any) -> Any:
        """Any message that is neither call nor cast; the default logs it."""
        import logging

        logging.getLogger("shmrt.server").warning("%s has no handle_info for %r", type(self).__qualname__, message)

    def handle_continue(self, arg: Any) -> Any:
        """The rest of what a handler has begun."""
        raise NotImplementedError(f"{type(self).__qualname__} has no handle_continue for {arg!r}")

    def terminate(self, reason: Any) -> Any:
        """The last thing that runs. What it raises becomes the exit reason."""

    def format_state(self, state: Any) -> Any:
        """What `get_state` shows of the state."""
        return state

    # ---- what a handler says ----------------------------------------------------------------------------------------
    @property
    def sender(self) -> Sender | None:
        """Who waits for the call that is being handled; None in anything else."""
        turn = self._turn
        return Sender(turn.reference, turn.runtime) if turn.reference else None

    @staticmethod
    def reply(sender: Sender, value: Any) -> bool:
        """Answers a call whose handler returned `noreply`, from any process of the runtime. False: nobody waits any
        more (answered already, timed out, the caller is gone), and the value is dropped. (gen_server:reply/2)"""
        if not isinstance(sender, Sender):
            raise TypeError(f"sender must be what a call's handler has as self.sender, not {sender!r}")
        from shmrt import _native

        return bool(_home(sender.runtime).calls.reply(sender.reference, _native.CALL_REPLY, value))

    def stop(self, reason: Any = "normal") -> None:
        """Ends this server when the handler has returned: its answer still goes out, then terminate(reason) runs."""
        self._turn.stop = check_reason(reason)

    def continue_with(self, arg: Any = None) -> None:
        """Has handle_continue(arg) run when the handler has returned, before any other message."""
        self._turn.todo.append(arg)

    # ---- its state, as others see it --------------------------------------------------------------------------------
    def _get_state(self) -> Any:
        return {name: value for name, value in self.__dict__.items() if name not in _SETTINGS}

    def _set_state(self, state: Any) -> None:
        if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
            raise TypeError(f"the state of a {type(self).__qualname__} is a dict of its attributes, not {state!r:.200}")
        kept = {name: value for name, value in self.__dict__.items() if name in _SETTINGS}
        self.__dict__ = {**state, **kept}


_SETTINGS = ("trap_exit", "idle_timeout")
_OWN = frozenset(name for name in dir(Server) if not name.startswith("_"))
_TAKEN = frozenset(name for name in dir(ServerRef) if not name.startswith("_"))
_GENERATOR, _COROUTINE, _ASYNC_GENERATOR = 0x20, 0x80, 0x200  # inspect.CO_*; that module costs 10 ms


def check_reason(reason: Any) -> Any:
    """An exit reason: a word, or a tuple that begins with one."""
    word = reason[0] if isinstance(reason, tuple) and reason else reason
    if not isinstance(word, str):
        raise TypeError(f"reason must be a string such as 'normal', or a tuple that begins with one, not {reason!r}")
    return reason


def _handlers_of(cls: type[Server]) -> dict[str, tuple[str, bool]]:
    """The handlers of a class: its own and those that it inherits. One that is overridden without a decorator stays
    what it was; one that is overridden by no function is none any more."""
    found: dict[str, tuple[str, bool]] = {}
    for base in reversed(cls.__mro__):
        for name, value in base.__dict__.items():
            kind = getattr(value, _KIND, None) or (found[name][0] if name in found else None)
            if kind not in ("call", "cast"):
                continue
            function = getattr(value, "__func__", value)
            if callable(function):
                found[name] = (kind, _check_handler(cls, name, function))
            else:
                del found[name]
    return found


def _check_handler(cls: type[Server], name: str, function: Any) -> bool:
    """Whether it has a parameter named `sender`. SpecError for what could not be called."""

    def wrong(why: str) -> SpecError:
        return SpecError(f"handler {name!r} of server {cls.__qualname__} {why}", problem="bad_handler")

    if name in _TAKEN:
        raise wrong(f"is named like a method of ServerRef; {', '.join(sorted(_TAKEN))} are taken")
    if name in _OWN:
        raise wrong("is named like a part of Server itself, which is no handler")
    code = getattr(function, "__code__", None)
    while code is None and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
        code = getattr(function, "__code__", None)
    if code is None:
        return False
    if code.co_flags & (_GENERATOR | _COROUTINE | _ASYNC_GENERATOR):
        raise wrong("is async or a generator; a handler is an ordinary function, and runs one at a time")
    names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    if "sender" in names[: code.co_posonlyargcount]:
        raise wrong("takes `sender` by position only; it is given by name")
    return "sender" in names


# ---- starting and finding ------------------------------------------------------------------------------------------
def start(
    cls: type[Server],
    *args: Any,
    name: str | None = None,
    mailbox: Any = None,
    restart: str = "temporary",
    kwargs: dict[str, Any] | None = None,
    mailbox_on_restart: str = "keep",
) -> Any:
    """Starts a server outside any tree of yours, under a supervisor of its own, and returns once its `init` has.

    `mailbox` is a RingSpec: how many messages wait, and what happens to one more; `mailbox_on_restart` "keep" or "drop"
    is what a restart does to them. AlreadyStarted if a living server
    has the name, StartError if `init` fails. (gen_server:start/4)
    """
    if not (isinstance(cls, type) and issubclass(cls, Server)):
        raise TypeError(f"start takes a Server class, not {cls!r}")
    if restart not in ("permanent", "transient", "temporary"):
        raise ValueError(f"restart={restart!r} must be 'permanent', 'transient' or 'temporary'")
    ref: ServerRef | None = _home().start(
        cls, args, kwargs or {}, name=name, mailbox=mailbox, restart=restart, mailbox_on_restart=mailbox_on_restart
    )
    return ref


def whereis(name: str) -> Any:
    """The ServerRef of the living server of this name, None when there is none. Of a pool of a tree: in the program the
    Pool itself, elsewhere a PoolRef; of another child or a supervisor its reference. (erlang:whereis/1)"""
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, not {name!r}")
    return _home().find(name)


_ = Home  # named in what `_home` returns

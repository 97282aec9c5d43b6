"""The words that a server, its loop and those who talk to it have in common.

    ignore           what `init` returns when there is nothing to serve
    noreply          what a call's handler returns when it answers later, with `reply(sender, value)`
    Continue(arg)    what a handler returns to have `handle_continue(arg)` run before anything else
    Sender           who called, as `reply` needs it; plain, so that another process may answer
    Down, Exit       what `handle_info` gets when a monitored process ended, and when a linked one did
    Turn             what a handler asks of its loop while it runs: to stop, to continue

Nothing here starts or holds anything. If the process of a server dies, its senders stay valid words without a
meaning: the root has ended their calls, and an answer to one is dropped.

    >>> import pickle
    >>> pickle.loads(pickle.dumps(noreply)) is noreply
    True
    >>> pickle.loads(pickle.dumps(Sender(7))) == Sender(7)
    True
"""

from __future__ import annotations

TYPE_CHECKING = False  # children start without typing, which would cost them more than all else
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = [
    "INFO_PICKLED",
    "Continue",
    "Down",
    "Exit",
    "Sender",
    "Turn",
    "at_fault",
    "explain",
    "ignore",
    "noreply",
    "plain",
    "reason_from",
]

INFO_PICKLED = "pickled"
"""The name of an info message whose only argument is a pickle: what a timer puts into a mailbox. The root keeps the
bytes meanwhile and never opens them. Every other info message has the empty name."""


class _NoReply:
    __slots__ = ()

    def __repr__(self) -> str:
        return "noreply"

    def __reduce__(self) -> str:
        return "noreply"


noreply = _NoReply()
"""Returned by a call's handler: the answer comes later, by `reply`, from whichever process."""


class _Ignore:
    __slots__ = ()

    def __repr__(self) -> str:
        return "ignore"

    def __reduce__(self) -> str:
        return "ignore"


ignore = _Ignore()
"""Returned by `init`: this server is not needed. The start succeeds, and there is no process (OTP's ignore)."""


class _Value:
    """Equal by its slots, and pickled by them."""

    __slots__: tuple[str, ...] = ()

    def _all(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __eq__(self, other: object) -> bool:
        return self._all() == other._all() if isinstance(other, type(self)) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._all())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (type(self), self._all())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._all()))})"


class Continue(_Value):
    """Have `handle_continue(arg)` run next (gen_server's `{continue, Arg}`)."""

    __slots__ = ("arg",)
    __match_args__ = ("arg",)

    def __init__(self, arg: Any = None) -> None:
        self.arg = arg


class Sender(_Value):
    """The one waiting call that an answer belongs to. `runtime` is the word by which processes find the runtime."""

    __slots__ = ("reference", "runtime")

    def __init__(self, reference: int, runtime: Any = None) -> None:
        self.reference = reference
        self.runtime = runtime


class Down(_Value):
    """A monitored process ended for `reason`. `monitor` is the number of the monitor, `key` the child's."""

    __slots__ = ("key", "monitor", "reason")
    __match_args__ = ("reason",)

    def __init__(self, reason: Any, monitor: int = 0, key: int = 0) -> None:
        self.reason = reason
        self.monitor = monitor
        self.key = key

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (type(self), (self.reason, self.monitor, self.key))

    def __repr__(self) -> str:
        return f"Down({self.reason!r})"


class Exit(_Value):
    """A linked process ended for `reason` (OTP's `{'EXIT', Pid, Reason}`); comes only where exits are trapped."""

    __slots__ = ("key", "reason")
    __match_args__ = ("reason",)

    def __init__(self, reason: Any, key: int = 0) -> None:
        self.reason = reason
        self.key = key

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (type(self), (self.reason, self.key))

    def __repr__(self) -> str:
        return f"Exit({self.reason!r})"


class Turn:
    """What the running handler has said. `todo`: arguments for `handle_continue`; `stop`: the reason to end for;
    `reference`: the call that is being handled, 0 in all else."""

    __slots__ = ("reference", "runtime", "stop", "todo")

    def __init__(self) -> None:
        self.reference = 0
        self.runtime: Any = None
        self.stop: Any = None
        self.todo: list[Any] = []


_SCALARS = (str, int, float, bool, bytes, type(None), complex)
_PICKLE = "\0pickle"


def plain(value: Any) -> Any:
    """A value as the root can carry it: what is plain stays, in a tuple each part by itself, and all else becomes its
    pickle, which `reason_from` opens. What has no pickle is what it shows itself as.

    >>> plain(("shutdown", {"disk": [3]}))
    ('shutdown', {'disk': [3]})
    >>> reason_from(plain(("shutdown", Continue(1))))
    ('shutdown', Continue(1))
    """
    if _is_plain(value, 20):
        return value
    if type(value) is tuple:
        return tuple(map(plain, value))
    from shmrt.process.functions import dumps

    try:
        return (_PICKLE, dumps(value))
    except Exception:
        pass
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _is_plain(value: Any, depth: int) -> bool:
    kind = type(value)  # exactly: of a subclass, marshal would lose the class
    if kind in _SCALARS:
        return True
    if depth == 0:
        return False
    if kind is dict:
        return all(_is_plain(part, depth - 1) for pair in value.items() for part in pair)
    return kind in (tuple, list, set, frozenset) and all(_is_plain(part, depth - 1) for part in value)


def reason_from(reason: Any) -> Any:
    """An exit reason as the user gave it: what had to be pickled on its way is itself again, or a text that says why
    it could not be."""
    if type(reason) is not tuple:
        return reason
    if len(reason) == 2 and reason[0] == _PICKLE:
        from _pickle import loads

        try:
            return loads(reason[1])
        except Exception as error:
            return f"<cannot be unpickled here: {type(error).__name__}: {error}>"
    return tuple(map(reason_from, reason))


def at_fault(reason: Any) -> tuple[Any, Any]:
    """(id of the child that did not start, its reason), of the reason of the supervisors above it.

    >>> at_fault(("shutdown", ("failed_to_start_child", "db", "refused")))
    ('db', 'refused')
    >>> at_fault("shutdown")
    (None, 'shutdown')
    """
    child = None
    while (
        isinstance(reason, tuple)
        and len(reason) == 2
        and isinstance(reason[1], tuple)
        and reason[1][:1] == ("failed_to_start_child",)
    ):
        child, reason = reason[1][1], reason[1][2]
    return child, reason


def explain(reason: Any) -> str:
    """An exit reason in one line.

    >>> explain(("shutdown", ("failed_to_start_child", "db", ("signal", "SIGSEGV"))))
    "child 'db' did not start: signal SIGSEGV"
    """
    child, inner = at_fault(reason)
    if child is not None:
        return f"child {child!r} did not start: {explain(inner)}"
    if isinstance(reason, tuple) and len(reason) >= 3 and reason[0] == "error":
        return f"{reason[1]}: {reason[2]}"
    if isinstance(reason, tuple) and len(reason) == 2 and reason[0] in ("signal", "exit"):
        return f"{'signal' if reason[0] == 'signal' else 'exit code'} {reason[1]}"
    return str(reason) if isinstance(reason, str) else repr(reason)

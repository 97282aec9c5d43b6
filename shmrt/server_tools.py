"""For debugging and for later: the state of a server from outside, and messages that a timer sends.

    get_state(ref)                        the attributes of the server's instance (an Agent's value)
    replace_state(ref, fn)                fn(state) -> new state, run by the server; returns what get_state would
    send_after(ref, message, seconds)     has `handle_info(message)` run then; a Timer
    cancel_timer(timer)                   seconds that were left, None if it had gone off

Both questions come to the server in order with the messages that were sent before. What is shown passes through its
`format_state`. An exception in `fn` or `format_state` is raised here; the server keeps its state and lives.

A timer is the root's: it goes off although the process that set it has died, and is dropped when the server is gone for
good. Rules: sys:get_state/2, sys:replace_state/3, erlang:send_after/3, erlang:cancel_timer/1.
"""

from __future__ import annotations

from shmrt.errors import CallTimeout
from shmrt.process.functions import dumps
from shmrt.server_home import AskError, home
from shmrt.server_ref import CALL_SECONDS, ServerRef
from shmrt.spec import check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Timer", "cancel_timer", "get_state", "replace_state", "send_after"]


def get_state(ref: Any, *, timeout: float | None = CALL_SECONDS) -> Any:
    """The server's state as its `format_state` shows it. What does not pickle is shown by its repr."""
    return _system(ref, "get_state", b"", timeout)


def replace_state(ref: Any, fn: Callable[[Any], Any], *, timeout: float | None = CALL_SECONDS) -> Any:
    """Gives the server the state fn(state), where fn sees what is hidden, too; returns the new one, shown."""
    if not callable(fn):
        raise TypeError(f"fn must be a function of the state, not {fn!r}")
    return _system(ref, "replace_state", dumps(fn), timeout)


def _server(ref: Any) -> ServerRef:
    found = getattr(ref, "ref", None) if not isinstance(ref, ServerRef) else ref  # an Agent has its ref
    if not isinstance(found, ServerRef):
        raise TypeError(f"ref must be a ServerRef or an Agent, not {ref!r}")
    return found


def _system(ref: Any, verb: str, payload: bytes, timeout: float | None) -> Any:
    import pickle

    server = _server(ref)
    server._check_not_self(server._reach())
    try:
        ok, answer = server._ask("system", server.key, verb, payload, timeout=check_seconds(timeout, "timeout"))
    except CallTimeout:
        raise
    except TimeoutError:
        raise CallTimeout(f"{server!r} did not answer {verb} in time") from None
    value = pickle.loads(answer)
    if ok:
        return value
    from shmrt.process.remote import unpack_from

    raise unpack_from(value, value[4])


class Timer:
    """A message on its way; for `cancel_timer` from any process of the runtime."""

    __slots__ = ("_id", "_runtime")

    def __init__(self, id: Any, runtime: Any) -> None:
        self._id = id
        self._runtime = runtime

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Timer):
            return NotImplemented
        return (self._id, self._runtime) == (other._id, other._runtime)

    def __hash__(self) -> int:
        return hash((self._id, self._runtime))

    def __reduce__(self) -> Any:
        return (Timer, (self._id, self._runtime))

    def __repr__(self) -> str:
        return f"<Timer {self._id}>"


def send_after(ref: Any, message: Any, seconds: float) -> Timer:
    """Sends the message with `info` after so many seconds. The message is pickled now."""
    server = _server(ref)
    if seconds is None:
        raise TypeError("seconds must be a number, not None")
    wait_s = check_seconds(seconds, "seconds")
    if wait_s is None:
        raise ValueError(f"seconds={seconds!r} is longer than a timer can run")
    return Timer(server._ask("send_after", server.key, int(wait_s * 1e9), dumps(message)), server._runtime)


def cancel_timer(timer: Timer) -> float | None:
    """Stops the timer. Seconds that were left; None if it had gone off, had been cancelled, or its server is gone."""
    if not isinstance(timer, Timer):
        raise TypeError(f"timer must be what send_after returned, not {timer!r}")
    found = home(timer._runtime)
    found.check()
    try:
        left_ns: int | None = found.link.ask("cancel_timer", timer._id)
    except AskError:
        return None
    return None if left_ns is None else left_ns / 1e9

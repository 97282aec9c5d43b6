"""Every error that shmrt raises.

All derive from `ShmrtError` and also from the standard type that an existing `except` clause
names: a full ring is a `queue.Full`, a passed deadline is a `TimeoutError`. The attributes of each
class are part of the contract. Errors survive pickling with their attributes. `Shutdown` alone is none: it is how a
child ends itself in order.

    >>> issubclass(TaskTimeout, TimeoutError)
    True
    >>> error = WorkerCrashed("worker pool/0 died", worker="pool/0", pid=7, signal=9)
    >>> error.signal.name, error.oom
    ('SIGKILL', False)
"""

from __future__ import annotations

import queue
import signal as _signal

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "AlreadyStarted",
    "BulkheadFull",
    "CallTimeout",
    "ChildStateError",
    "CircuitOpen",
    "ConfigError",
    "EndOfRing",
    "MessageTooLarge",
    "NotFound",
    "Overloaded",
    "PoisonMessage",
    "PoolBroken",  # noqa: F822 (made by __getattr__)
    "RemoteError",
    "RingClosed",
    "RuntimeDown",
    "SegmentError",
    "ServerDown",
    "ShmrtError",
    "Shutdown",
    "SpecError",
    "StartError",
    "TaskTimeout",
    "WorkerCrashed",
]


def _rebuild(cls: type[ShmrtError], args: tuple[Any, ...], state: dict[str, Any]) -> ShmrtError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ShmrtError(Exception):
    """The base of every error of this package."""

    def __reduce__(self) -> Any:
        return (_rebuild, (type(self), self.args, dict(self.__dict__)))


class WorkerCrashed(ShmrtError, RuntimeError):
    """The process that was running *this* message died.

    `exitcode` is the exit status if it exited, `signal` the signal if one killed it; `oom` is true when the
    kernel's out-of-memory counter moved; `stack` is the Python stack at death where it could be had.
    """

    def __init__(
        self,
        message: str = "",
        *,
        worker: str | None = None,
        pid: int | None = None,
        exitcode: int | None = None,
        signal: int | None = None,
        oom: bool = False,
        attempts: int = 1,
        stack: str | None = None,
        log_tail: str | None = None,
    ) -> None:
        super().__init__(message)
        self.worker = worker
        self.pid = pid
        self.exitcode = exitcode
        self.signal = _signal.Signals(signal) if signal else None
        self.oom = oom
        self.attempts = attempts
        self.stack = stack
        self.log_tail = log_tail


class PoisonMessage(WorkerCrashed):
    """This message killed its worker `attempts` times, as often as it was allowed to."""


class TaskTimeout(ShmrtError, TimeoutError):
    """The deadline of a message passed; a worker that was running it was killed."""

    def __init__(
        self, message: str = "", *, stack: str | None = None, worker: str | None = None, elapsed: float | None = None
    ) -> None:
        super().__init__(message)
        self.stack = stack
        self.worker = worker
        self.elapsed = elapsed


class CallTimeout(ShmrtError, TimeoutError):
    """A server did not answer in time. It may still do the work; a late reply is dropped."""


class Overloaded(ShmrtError, queue.Full):
    """A bounded ring, mailbox or backlog is full and the policy or the timeout says stop."""

    def __init__(self, message: str = "", *, capacity: int | None = None, where: str | None = None) -> None:
        super().__init__(message)
        self.capacity = capacity
        self.where = where


class BulkheadFull(Overloaded):
    """No permit was free."""


class MessageTooLarge(ShmrtError, ValueError):
    """A message that can never fit, whatever is waited for."""

    def __init__(self, message: str = "", *, size: int | None = None, limit: int | None = None) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class RingClosed(ShmrtError, ValueError):
    """The ring takes no more messages."""


class EndOfRing(ShmrtError, EOFError):
    """The ring is closed and everything in it was taken."""


class ServerDown(ShmrtError, RuntimeError):
    """The server ended during the call, or there is none."""

    def __init__(self, message: str = "", *, reason: Any = None) -> None:
        super().__init__(message)
        self.reason = reason


class AlreadyStarted(ShmrtError, RuntimeError):
    """A live child has this name or id."""

    def __init__(self, message: str = "", *, ref: Any = None) -> None:
        super().__init__(message)
        self.ref = ref


class NotFound(ShmrtError, LookupError):
    """No child, server, ring or name of this kind."""


class ChildStateError(ShmrtError, RuntimeError):
    """The child's state forbids what was asked (OTP's `{error, running}` and the like)."""

    def __init__(self, message: str = "", *, state: str | None = None) -> None:
        super().__init__(message)
        self.state = state


class SpecError(ShmrtError, ValueError):
    """A child or supervisor specification that contradicts itself; `problem` is OTP's code for it."""

    def __init__(self, message: str = "", *, problem: Any = None) -> None:
        super().__init__(message)
        self.problem = problem


class StartError(ShmrtError, RuntimeError):
    """A start failed."""

    def __init__(self, message: str = "", *, reason: Any = None, child: Any = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.child = child


class RuntimeDown(ShmrtError, RuntimeError):
    """The root supervisor is gone and was not replaced, or this process does not own the runtime."""

    def __init__(self, message: str = "", *, reason: Any = None) -> None:
        super().__init__(message)
        self.reason = reason


class CircuitOpen(ShmrtError, RuntimeError):
    """The breaker refuses; `retry_after` seconds from now it may not."""

    def __init__(self, message: str = "", *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class Shutdown(SystemExit):
    """Not an error: raised in a child, it ends that child in order, for the reason "shutdown" or ("shutdown", info).

    A child that is asked to shut down gets it raised where it is, unless it traps exits. Like every SystemExit it
    passes by `except Exception`, and ends a process that is no child with exit code 0. `info` should be plain values.

        >>> try:
        ...     raise Shutdown("tired")
        ... except SystemExit as end:
        ...     end.code, end.info
        (0, 'tired')
    """

    def __init__(self, info: Any = None) -> None:
        super().__init__(0)
        self.info = info
        self.args = () if info is None else (info,)


class RemoteError(ShmrtError, RuntimeError):
    """Stands in for a remote exception that does not survive pickling."""

    def __init__(self, message: str = "", *, type_name: str | None = None, traceback_text: str | None = None) -> None:
        super().__init__(message)
        self.type_name = type_name
        self.traceback_text = traceback_text


class SegmentError(ShmrtError, OSError):
    """No space for shared memory, or corrupt, foreign or incompatible shared bytes."""

    def __init__(
        self, message: str = "", *, needed: int | None = None, free: int | None = None, hint: str | None = None
    ) -> None:
        super().__init__(message)
        self.needed = needed
        self.free = free
        self.hint = hint


class ConfigError(ShmrtError, ValueError):
    """A configuration key, flag or variable that cannot be used."""

    def __init__(self, message: str = "", *, key: str | None = None, origin: str | None = None) -> None:
        super().__init__(message)
        self.key = key
        self.origin = origin


def __getattr__(name: str) -> Any:
    # concurrent.futures costs 10 ms to import, so PoolBroken is made when somebody first names it.
    if name != "PoolBroken":
        raise AttributeError(f"module 'shmrt.errors' has no attribute {name!r}")
    from concurrent.futures import BrokenExecutor

    class PoolBroken(ShmrtError, BrokenExecutor):
        """Restart intensity exceeded: the only way a pool breaks. `reasons` says what each start failed of."""

        def __init__(self, message: str = "", *, reasons: Any = ()) -> None:
            super().__init__(message)
            self.reasons = list(reasons)

    PoolBroken.__module__ = "shmrt.errors"
    PoolBroken.__qualname__ = "PoolBroken"
    globals()["PoolBroken"] = PoolBroken
    return PoolBroken

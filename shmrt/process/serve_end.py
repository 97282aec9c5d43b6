"""What the loop of a server makes of exceptions, of messages that nobody handles, and of its state when asked for it.

    >>> try:
    ...     raise SystemExit(3)
    ... except SystemExit as error:
    ...     reason_of(error)
    ('exit', 3)

The root carries reasons as plain values (`server_words.plain`). If the process dies while one is made, the reason is
that death.
"""

from __future__ import annotations

from shmrt.process.packing import pack_exception

TYPE_CHECKING = False  # children start without typing, which would cost them more than all else
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

__all__ = [
    "answer_system",
    "fits_not",
    "log_end",
    "log_stray",
    "pack_for_caller",
    "reason_of",
    "unknown",
    "without_loop",
]


def reason_of(error: BaseException) -> Any:
    """The exit reason of a process in which this went uncaught."""
    from shmrt.errors import Shutdown  # here, since the root imports this module and has no use for errors

    if isinstance(error, Shutdown):
        return "shutdown" if error.info is None else ("shutdown", error.info)
    if isinstance(error, SystemExit):
        code = 0 if error.code is None else error.code & 0xFF if isinstance(error.code, int) else 1
        return ("exit", code) if code else "normal"
    return ("error", *pack_exception(error)[1:])


def pack_for_caller(error: BaseException, name: str | None) -> tuple[Any, ...]:
    """The exception as its caller gets it, and where it happened."""
    import os

    return (*pack_exception(error), f"in server {name} (pid {os.getpid()})")


def fits_not(error: BaseException) -> bool:
    """Whether a call failed before the function began: its arguments do not fit, and nothing of the server has run."""
    trace = error.__traceback__
    return type(error) is TypeError and trace is not None and trace.tb_next is None


def without_loop(error: BaseException) -> BaseException:
    """Its traceback begins in the handler: what called that is of no use to whoever reads it."""
    trace = error.__traceback__
    return error if trace is None else error.with_traceback(trace.tb_next)


def unknown(name: str, server: str | None, handlers: Iterable[str]) -> AttributeError:
    """The error for a handler that does not exist."""
    return AttributeError(f"server {server} has no handler {name!r}; it has {', '.join(sorted(handlers)) or 'none'}")


def log_stray(server: str | None, what: str) -> None:
    """A message that nobody waits for an answer to, and that the server could not handle."""
    import logging

    logging.getLogger("shmrt.server").warning("server %s: %s", server, what)


def log_end(server: str | None, reason: Any) -> None:
    """An exception that ended a server is logged where it happened; orderly ends are not."""
    if isinstance(reason, tuple) and reason[0] == "error":
        import logging

        logging.getLogger("shmrt.server").error("server %s ends: %s: %s\n%s", server, *reason[1:4])


def answer_system(server: Any, name: str | None, verb: str, payload: bytes) -> tuple[bool, bytes]:
    """get_state and replace_state: (True, pickle of the state as it may be shown) or (False, pickle of the packed
    exception). A function that fails leaves the server with the state that it had."""
    from shmrt.process.functions import dumps

    try:
        if verb == "replace_state":
            import pickle

            server._set_state(pickle.loads(payload)(server._get_state()))
        elif verb != "get_state":
            raise ValueError(f"no system message {verb!r}")
        return True, _shown(server.format_state(server._get_state()))
    except Exception as error:
        return False, dumps(pack_for_caller(error, name))


def _shown(state: Any) -> bytes:
    """The pickle of a state; a part of it that does not pickle (a socket, a lock) is shown by its repr."""
    from shmrt.process.functions import dumps

    try:
        return dumps(state)
    except Exception:
        if type(state) is not dict:
            return dumps(_repr(state))
    return dumps({key: value if _pickles(value) else _repr(value) for key, value in state.items()})


def _repr(value: Any) -> str:
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__} that cannot be shown>"


def _pickles(value: Any) -> bool:
    from shmrt.process.functions import dumps

    try:
        dumps(value)
    except Exception:
        return False
    return True

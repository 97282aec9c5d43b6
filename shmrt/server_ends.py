"""What the end of a call to a server gives to whoever waits for it, and the words for it.

    CALL_REPLY       the answer
    CALL_ERROR       what the handler raised, with its traceback there as `__cause__`
    CALL_DOWN        ServerDown with the reason of the server's end, "noconnection" for the root's
    CALL_TIMEOUT     CallTimeout
    CALL_OVERLOADED  Overloaded: its mailbox dropped the call for a newer message
    CALL_CLOSED      ServerDown("noproc"): there is no such server

The root ends the calls of a server that died; the program ends all of them when the root dies, and whoever calls then
calls again.
"""

from __future__ import annotations

from shmrt import _native
from shmrt.errors import CallTimeout, Overloaded, ServerDown
from shmrt.process.server_words import explain, reason_from

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.server_home import Home

__all__ = ["Ends"]


class Ends:
    """Mixed into a reference."""

    if TYPE_CHECKING:  # the reference's
        _name: str | None
        _key: int
        _box: Any

    def _outcome(self, status: int, value: Any) -> Any:
        """What a call that ended so gives to whoever waits for it."""
        if status == _native.CALL_REPLY:
            return value
        if status == _native.CALL_ERROR:
            if isinstance(value, BaseException):
                raise value  # the answer could not be read here
            from shmrt.process.remote import unpack_from

            raise unpack_from(value, value[4])
        if status == _native.CALL_TIMEOUT:
            raise CallTimeout(f"server {self._label()} did not answer in time")
        if status == _native.CALL_OVERLOADED:
            raise self._overloaded()
        if status == _native.CALL_DOWN:
            reason = reason_from(value)
            raise ServerDown(f"server {self._label()} ended during the call: {explain(reason)}", reason=reason)
        raise self._gone()

    def _overloaded(self) -> Overloaded:
        box = self._box  # None if another thread finds it closed just now
        capacity = 0 if box is None else box.capacity
        dropped = ", and dropped this call for a newer message" if box is not None and box.on_full == 2 else ""
        return Overloaded(
            f"the mailbox of server {self._label()} is full: {capacity} messages{dropped}; call less often, wait"
            " longer or give it more slots (mailbox=RingSpec(slots=...))",
            capacity=capacity,
            where=self._label(),
        )

    def _named(self, error: Overloaded) -> Overloaded:
        """The core knows a mailbox without its name; want of memory or of call slots is not the mailbox's."""
        return self._overloaded() if error.where == "mailbox" else error

    def _gone(self) -> ServerDown:
        return ServerDown(f"there is no server {self._label()} any more", reason="noproc")

    def _lost(self, home: Home) -> ServerDown:
        home.check()  # the end of the runtime is told as that
        what = f"the root died while server {self._label()} was looked up; the next one starts its tree afresh"
        return ServerDown(what, reason="noconnection")

    def _label(self) -> str:
        return self._name or f"#{self._key}"

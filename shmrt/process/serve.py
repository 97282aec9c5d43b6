"""The life of a server between its fork and its end: gen_server's loop over a mailbox in shared memory.

`serve` makes the instance, runs `init`, says that it is ready, then handles one thing after the other until something
ends it; it returns the reason. What is handled next, the first that applies:

    1. the parent's shutdown                            ends the server between two messages
    2. `handle_continue`, once per `continue_with`
    3. an idle timeout of 0: `handle_info("timeout")`, once after each message
    4. the mailbox, in order; with it, at the place where they were sent: `stop`, `get_state`, `replace_state`
    5. an idle timeout that has passed: `handle_info("timeout")`, as often as it passes

What a handler does and what follows:

    what happens                 the call being handled gets     the server
    returns a value              the value                       goes on
    returns noreply              nothing yet                     goes on
    self.stop(reason)            what the handler returns        ends for reason, after terminate(reason)
    raises Shutdown(info)        ServerDown                      ends for "shutdown" or ("shutdown", info)
    raises SystemExit(code)      ServerDown                      ends for "normal" (0, None) or ("exit", code)
    raises anything else         the exception                   ends for ("error", type, text, traceback)
    (no such handler)            AttributeError                  goes on: it has not seen the message
    (arguments do not fit)       TypeError                       goes on

The control messages of the root (see `supervise/protocol.py`) do not pass through the mailbox, so that a full one holds
up no end. TERM is a shutdown, too: a handler that runs is interrupted by `Shutdown` unless the server traps exits.

If the process dies, the message in hand is lost and its caller, like everyone whose answer was put off, is told by the
root. What is still in the mailbox is taken by the next incarnation. `terminate` runs at every end but a kill.

Rules: gen_server (loop, handle_msg, terminate), proc_lib (stop), sys (get_state, replace_state).
"""

from __future__ import annotations

from _weakrefset import WeakSet  # loaded in every interpreter
from time import monotonic_ns

from shmrt import _native
from shmrt.process.serve_end import (
    answer_system,
    fits_not,
    log_end,
    log_stray,
    pack_for_caller,
    reason_of,
    unknown,
    without_loop,
)
from shmrt.process.server_words import INFO_PICKLED, Continue, Down, Exit, Turn, ignore, noreply, plain, reason_from
from shmrt.process.signals import USR2, die_by
from shmrt.process.spawn import leave_copy

TYPE_CHECKING = False  # children start without typing, which would cost them more than all else
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["serve"]


_loops: WeakSet[_Loop] = WeakSet()  # of this process: one, but where a test runs several


def _forked() -> None:
    """In the copy, before its first step."""
    for loop in _loops:
        loop.is_copy = True


def serve(
    make: bytes,
    mailbox: Any,
    calls: Any,
    slots: Any,
    index: int,
    control: Any,
    *,
    on_ready: Callable[[], object],
    name: str | None = None,
    runtime: Any = None,
    extra: bytes | None = None,
    catch_term: bool = True,
) -> Any:
    """Runs the server that `make` (a pickle of class, args, kwargs) describes, in the main thread of a child; returns
    its exit reason, plain. `extra` is a pickle of arguments that go before its own. `on_ready` is called after `init`;
    returning without it was a start failure. `control` has `take()`, a list of the root's messages that waits for none,
    and `send(message)`."""
    import os

    loop = _Loop(mailbox, calls, slots, index, control, name)
    if not _loops:
        os.register_at_fork(after_in_child=_forked)
    _loops.add(loop)
    if catch_term:
        import _signal  # type: ignore[import-not-found]  # `signal` would import enum

        _signal.signal(_signal.SIGTERM, loop.on_term)
        _signal.signal(_signal.SIGUSR2, loop.on_exit_signal)
    try:
        return loop.run(make, extra, on_ready, runtime)
    finally:
        loop.inside = False  # from here on nothing is interrupted: the child ends


class _Loop:
    """One server. `inside` is True exactly while TERM may interrupt: in `init` and in handlers."""

    def __init__(self, mailbox: Any, calls: Any, slots: Any, index: int, control: Any, name: str | None) -> None:
        self.mailbox = mailbox
        self.calls = calls
        self.slots = slots
        self.index = index
        self.control = control
        self.name = name
        self.server: Any = None
        self.turn = Turn()
        self.handlers: dict[str, tuple[Any, bool]] = {}
        self.seen = 0  # whatever came while the process started is looked at before anything else
        self.taken = 0
        self.signals: list[Down | Exit] = []
        self.later: list[tuple[int, Any, str, Any]] = []  # (due when so many were taken, token, verb, payload)
        self.reason: Any = None  # why to end, as the user gave it; None: go on
        self.asked: Any = None  # that reason as it came, if somebody else gave it
        self.inside = False
        self.is_copy = False  # a fork that the server's own code made: it serves nobody
        self.signalled = False  # it was interrupted by the exit signal of a linked process
        self.urgent = False  # a signal came that ends whatever its own code would begin now
        self.term = False  # TERM came while nothing could be interrupted
        self.idle_from = 0
        self.rested = False  # the idle timeout of 0 that follows the last message has been told

    def run(self, make: bytes, extra: bytes | None, on_ready: Callable[[], object], runtime: Any) -> Any:
        try:
            self.inside = True
            needed = self._init(make, extra, runtime)
            self.inside = False
            if self.is_copy:
                leave_copy()
        except BaseException as error:
            self.inside = False
            if self.is_copy:
                leave_copy(error)
            return plain(reason_of(error))
        if not needed:
            return "ignore"
        if self.turn.stop is not None:
            return plain(self.turn.stop)
        on_ready()
        try:
            self._loop()
        except BaseException as error:  # TERM in the instant after a handler, or a mailbox that is corrupt
            self.inside = False
            self._end_by(error)
        return self._terminate(self.reason)

    def _init(self, make: bytes, extra: bytes | None, runtime: Any) -> bool:
        """False: it has nothing to serve."""
        import pickle

        cls, args, kwargs = pickle.loads(make)
        if extra is not None:
            args = (*pickle.loads(extra), *args)
        self.server = server = cls()
        self.turn = server._turn
        self.turn.runtime = runtime
        self.name = self.name or cls.__qualname__
        self.handlers = {name: (getattr(server, name), wants) for name, (_, wants) in cls.__handlers__.items()}
        value = server.init(*args, **(kwargs or {}))
        self._after(value)
        return value is not ignore

    def _terminate(self, reason: Any) -> Any:
        """The last word is terminate's: what it raises becomes the reason. A reason that was asked for goes back as it
        came: another pickle of an equal value may differ."""
        try:
            self.server.terminate(reason)
        except BaseException as error:
            reason, self.asked = reason_of(error), None
        log_end(self.name, reason)
        return plain(reason) if self.asked is None else self.asked

    def on_term(self, number: int, frame: object) -> None:
        """The handler of TERM: interrupts the server's own code, else wakes the loop."""
        if self.inside and not (self.server is not None and self.server.trap_exit):
            self._interrupt()
        self.term = True
        self.urgent = self.server is not None and not self.server.trap_exit
        self.slots.send_control(self.index)
        self.mailbox.ring()

    def on_exit_signal(self, number: int, frame: object) -> None:
        """The handler of USR2: a linked process ended abnormally, as the root has said. Interrupts the server's own
        code."""
        if self.inside and not (self.server is not None and self.server.trap_exit):
            self.signalled = True
            self._interrupt()
        elif self.server is not None and not self.server.trap_exit:
            self.signalled = self.urgent = True

    def _interrupt(self) -> None:
        """Ends what the server's own code is doing, or is about to do: the signal came after the loop's last look."""
        self.inside = False  # once: what cleans up after it is left alone
        from shmrt.errors import Shutdown  # loaded already, with the server's class

        raise Shutdown()

    # ---- what comes next --------------------------------------------------------------------------------------------
    def _loop(self) -> None:
        take, server, turn = self.mailbox.take, self.server, self.turn
        calls, slots, index = self.calls, self.slots, self.index
        while self.reason is None:
            timeout: float | None = None
            if turn.todo or self.signals or self.later or server.idle_timeout is not None:
                if self._before_mailbox():
                    continue
                timeout = 0.0 if self.later else self._idle_left()
            got = take(calls, slots, index, self.seen, timeout)
            if type(got) is tuple:
                self.taken += 1
                self._handle(*got)
                self.mailbox.done(slots, index)
            elif got is not None:
                self.seen = got
                self._take_control()
            elif self.later:  # what was sent before has expired or was given up
                self._do(*self.later.pop(0))
            else:
                self._run(server.handle_info, "timeout")

    def _before_mailbox(self) -> bool:
        """Does the first thing that goes before the mailbox; False when there is none."""
        count = self.slots.control_count(self.index)
        if count != self.seen:
            self.seen = count
            self._take_control()
        elif self.turn.todo:
            self._run(self.server.handle_continue, self.turn.todo.pop(0))
        elif self.server.idle_timeout == 0 and not self.rested:
            self._run(self.server.handle_info, "timeout")
            self.rested = True
        elif self.signals:
            self._run(self.server.handle_info, self.signals.pop(0))
        elif self.later and (self.taken >= self.later[0][0] or not self.mailbox.qsize()):
            self._do(*self.later.pop(0))
        else:
            return False
        return True

    def _idle_left(self) -> float | None:
        """Seconds until the idle timeout. One of 0 is told once after each message, else nothing would ever come."""
        idle_s: float | None = self.server.idle_timeout
        if idle_s is None or idle_s == 0:
            return None
        return max(0.0, idle_s - (monotonic_ns() - self.idle_from) / 1e9)

    # ---- messages ---------------------------------------------------------------------------------------------------
    def _handle(self, kind: int, reference: int, name: str | None, args: Any, kwargs: dict[str, Any] | None) -> None:
        if kind != _native.MAIL_CALL:
            reference = 0
        if name is None:  # `args` is why it could not be decoded
            self._refuse(reference, args, "a message that cannot be read")
        elif kind == _native.MAIL_INFO:
            message = args[0]
            if name == INFO_PICKLED:
                import pickle

                try:
                    message = pickle.loads(message)
                except Exception as error:
                    self._refuse(0, error, "a message of a timer that cannot be read")
                    return
            self._run(self.server.handle_info, message)
        elif name in self.handlers:
            self._dispatch(reference, name, args, kwargs)
        else:
            self._refuse(reference, unknown(name, self.name, self.handlers), "a message without a handler")

    def _dispatch(self, reference: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
        handler, wants_sender = self.handlers[name]
        self.turn.reference = reference
        if wants_sender:
            kwargs = {**(kwargs or {}), "sender": self.server.sender}
        try:
            self.inside = True
            if self.urgent:
                self._interrupt()
            value = handler(*args, **kwargs) if kwargs else handler(*args)
            self.inside = False
        except BaseException as error:
            self.inside = False
            if self.is_copy:
                leave_copy(error)
            self.turn.reference = 0
            if fits_not(error):
                self._refuse(reference, error, f"a message that {name} does not take")
            else:
                self._crash(reference, without_loop(error))
            return
        if self.is_copy:
            leave_copy()
        self.turn.reference = 0
        if reference and value is not noreply and type(value) is not Continue:
            try:
                self.calls.reply(reference, _native.CALL_REPLY, value)
            except BaseException as error:  # it cannot be sent: as if the handler had raised it
                self._crash(reference, error)
        self._after(value)

    def _run(self, function: Callable[[Any], Any], argument: Any) -> None:
        """Everything but calls and casts."""
        try:
            self.inside = True
            if self.urgent:
                self._interrupt()
            value = function(argument)
            self.inside = False
        except BaseException as error:
            self.inside = False
            if self.is_copy:
                leave_copy(error)
            self._crash(0, without_loop(error))
        else:
            if self.is_copy:
                leave_copy()
            self._after(value)

    def _after(self, value: Any) -> None:
        if type(value) is Continue:
            self.turn.todo.append(value.arg)
        if self.turn.stop is not None and self.reason is None:
            self.reason = self.turn.stop
        if self.server.idle_timeout is not None:
            self.idle_from = monotonic_ns()
            self.rested = False

    def _crash(self, reference: int, error: BaseException) -> None:
        """Let it crash: the caller gets the exception, the supervisor a reason. An orderly exit is no exception: its
        caller hears from the root how the server ended."""
        self._end_by(error)
        if reference and not isinstance(error, SystemExit):
            self._tell(reference, error)

    def _end_by(self, error: BaseException) -> None:
        """The reason to end: the exception, or the exit signal that it stands for."""
        asked = None
        if self.signalled and isinstance(error, SystemExit):
            asked = self.control.take_exit_signal()
            if asked is None:
                die_by(USR2)
        self.reason, self.asked = (reason_of(error), None) if asked is None else (reason_from(asked), asked)

    def _refuse(self, reference: int, error: BaseException, what: str) -> None:
        """The message is wrong, not the server: its sender is told, or the log, and nothing else happens."""
        if reference:
            self._tell(reference, error)
        else:
            log_stray(self.name, f"{what}: {type(error).__name__}: {error}")

    def _tell(self, reference: int, error: BaseException) -> None:
        """The caller gets the exception; where memory has no room for it, its name and the little that fits a slot."""
        packed = pack_for_caller(error, self.name)
        try:
            self.calls.reply(reference, _native.CALL_ERROR, packed)
        except Exception:
            _, name, text, trace, where = packed
            self.calls.reply(reference, _native.CALL_ERROR, (None, name, text[:80], trace[-80:], where))

    # ---- what the root says -----------------------------------------------------------------------------------------
    def _take_control(self) -> None:
        messages = self.control.take()
        for message in messages:
            verb = message[0]
            if verb == "shutdown":
                self.reason, self.asked = "shutdown", None
            elif verb == "exit_signal":
                _, key, reason = message
                if self.server.trap_exit:
                    self.signals.append(Exit(reason_from(reason), key))
                elif reason != "normal" and self.reason is None:
                    self.reason, self.asked = reason_from(reason), reason
            elif verb == "down":
                _, monitor, key, reason = message
                self.signals.append(Down(reason_from(reason), monitor, key))
            elif verb == "system":
                _, token, what, payload = message
                self.later.append((self.taken + self.mailbox.qsize(), token, what, payload))
            elif verb == "deaf":  # it could not even be told to stop
                self._end_by(message[1])
        if self.term:
            self.reason, self.asked = "shutdown", None

    def _do(self, due: int, token: Any, verb: str, payload: Any) -> None:
        """A system message whose turn has come. `stop` is answered by the end itself."""
        if verb == "stop":
            import marshal

            self.asked = marshal.loads(payload)
            self.reason = reason_from(self.asked)
        else:
            self.control.send(("system_reply", token, *answer_system(self.server, self.name, verb, payload)))

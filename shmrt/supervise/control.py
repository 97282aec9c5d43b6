"""The control socket of a named runtime, served by its root: newline JSON, one answer for each request.

    request   {"schema": "shmrt.control/1", "verb": "scale", "args": {"pool": "hash", "workers": 4}}
    answer    {"ok": true, "operation": 7, ...}
    error     {"ok": false, "code": "not_found", "message": "...", "hint": "..."}

Questions (`status`, `tree`, `inspect`, `events`, `ping`) are answered at once, `health` when its checks are done, and
commands one after the other (`operations.py`). `events` with `follow` goes on: one line {"event": ...} for each,
{"dropped": n} where the client was too slow, until it leaves.

Only processes of the same user are heard; the kernel says whose the other end is. Nothing that a client does stops
the root: sockets do not block, a request has at most 64 KiB, whoever does not read its answers is not read from
either, and beyond a bound is left. `json` is imported when the first client speaks.
"""

from __future__ import annotations

import errno
import os
from time import monotonic_ns

from shmrt import _native
from shmrt.supervise.operations import Operations

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.supervise.operations import Operation

    Reply = Callable[[bool, dict[str, Any]], None]

__all__ = ["SCHEMA", "Control"]

SCHEMA = "shmrt.control/1"
REQUEST_MOST = 64 << 10
CLIENTS_MOST = 128
OPERATIONS_MOST = 256
_WAITING_MOST = 16  # commands of one client
_OUT_PAUSE = 1 << 20  # unread answers of a client: beyond this it is not read from
_OUT_MOST = 8 << 20  # and beyond this it is left: no answer is that large
_FOLLOW_MOST = 256 << 10  # unread events of a client, before some are dropped
_EVENTS_KEPT = 1024
_QUESTIONS = ("status", "tree", "inspect", "breaker", "health")
_COMMANDS = ("stop", "restart", "scale", "pause", "resume", "drain", "reload", "supervise")
_URGENT = ("stop",)
_FULL = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def _error(code: str, message: str, hint: str | None = None) -> dict[str, Any]:
    return {"ok": False, "code": code, "message": message, "hint": hint}


class _Client:
    """One connection."""

    __slots__ = ("asked", "dropped", "ended", "follows", "obeyed", "out", "received", "socket", "waiting")

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.received = bytearray()
        self.out = bytearray()  # answers that the socket has not taken
        self.waiting: list[Operation] = []
        self.follows = False
        self.dropped = 0
        self.ended = False  # it sends nothing more
        self.obeyed = False  # its requests are being made just now
        self.asked = 0  # what poll was last asked for

    @property
    def fd(self) -> int:
        return int(self.socket.fileno())

    def may_ask(self) -> bool:
        """Whether it has taken enough of what it asked for before."""
        self.waiting = [one for one in self.waiting if not one.done]
        return self.socket.fileno() >= 0 and len(self.out) <= _OUT_PAUSE and len(self.waiting) < _WAITING_MOST

    def wants(self) -> int:
        may_read = self.may_ask() and not self.ended
        self.asked = (_native.POLLIN if may_read else 0) | (_native.POLLOUT if self.out else 0)
        return self.asked


class Control:
    """The server. `answer(verb, args, reply)` does what is asked; `reply(ok, value)` may come later, and for commands
    has `reply.waits(text)`. `listener` is a listening Unix socket that does not block; `close` does not close it."""

    def __init__(self, listener: int, answer: Callable[[str, dict[str, Any], Any], None]) -> None:
        import _socket  # `socket` would import `enum` and `selectors`

        self._module: Any = _socket
        self._listener: Any = _socket.socket(fileno=listener)
        self._answer = answer
        self._clients: dict[int, _Client] = {}
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self.operations = Operations(answer)
        self._events: list[dict[str, Any]] = []
        self._sequence = 0

    # ---- for the root's loop ----------------------------------------------------------------------------------------
    def fds(self) -> list[tuple[int, int]]:
        """What to poll, with what for. Every descriptor in it that polls ready goes to `handle`."""
        listener = [(int(self._listener.fileno()), _native.POLLIN)] if self._spare >= 0 or self._take_spare() else []
        return listener + [(client.fd, client.wants()) for client in self._clients.values()]

    def handle(self, ready: set[int]) -> None:
        for fd in ready & self._clients.keys():
            client = self._clients.get(fd)
            if client is None:
                continue
            if client.asked == 0:  # ready without having been asked for anything: both directions are gone
                self._leave(client)
                continue
            if client.out:
                self._send(client)
                self._obey(client)  # what it had to wait with
            if client.asked & _native.POLLIN and fd in self._clients:
                self._receive(client)
        if self._listener.fileno() in ready:
            self._accept()

    def close(self) -> None:
        """Leaves every client. What they asked for goes on."""
        for client in list(self._clients.values()):
            self._leave(client)
        self._listener.detach()
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1

    # ---- clients ----------------------------------------------------------------------------------------------------
    def _take_spare(self) -> bool:
        try:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        return True

    def _accept(self) -> None:
        while True:
            try:
                fd, _ = self._listener._accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno not in _FULL or self._spare < 0:
                    return
                # Out of descriptors: the spare one takes the caller in, to hang up, else poll would never rest.
                os.close(self._spare)
                self._spare = -1
                try:
                    os.close(self._listener._accept()[0])
                except OSError:
                    return
                if not self._take_spare():
                    return
                continue
            self._admit(self._module.socket(fileno=fd))

    def _admit(self, socket: Any) -> None:
        module = self._module
        peer = socket.getsockopt(module.SOL_SOCKET, module.SO_PEERCRED, 12)
        if int.from_bytes(peer[4:8], "little") != os.geteuid():
            socket.close()
            return
        socket.setblocking(False)
        client = _Client(socket)
        self._clients[client.fd] = client
        if len(self._clients) > CLIENTS_MOST:
            self._put(client, _error("busy", f"this root has {CLIENTS_MOST} control clients", "try again"))
            self._leave(client)

    def _leave(self, client: _Client) -> None:
        if self._clients.pop(client.fd, None) is not None:
            for operation in client.waiting:
                operation.left()
            client.socket.close()

    def _receive(self, client: _Client) -> None:
        try:
            data = client.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            self._leave(client)
            return
        client.received += data
        client.ended = not data
        self._obey(client)

    def _obey(self, client: _Client) -> None:
        """Does what has arrived, as far as the client takes the answers."""
        if client.obeyed:
            return  # an answer came while its request was being made: the loop below is under way
        client.obeyed = True
        while client.may_ask() and (end := client.received.find(b"\n")) >= 0:
            line = bytes(client.received[:end])
            del client.received[: end + 1]
            self._request(client, line)
        client.obeyed = False
        if len(client.received) > REQUEST_MOST and b"\n" not in client.received:
            self._put(client, _error("bad_request", f"a request has at most {REQUEST_MOST} bytes"))
            client.ended = True
            client.received.clear()
        if client.ended:
            self._leave_if_done(client)

    def _leave_if_done(self, client: _Client) -> None:
        """A client that said all it had to say is kept for the answers that are still to come."""
        client.waiting = [one for one in client.waiting if not one.done]
        more = b"\n" in client.received
        if client.ended and not (client.out or client.waiting or client.follows or more):
            self._leave(client)

    def _put(self, client: _Client, body: dict[str, Any]) -> None:
        """Queues one line and sends what the socket takes."""
        if client.socket.fileno() < 0:
            return
        import json

        client.out += json.dumps(body, default=_plain, separators=(",", ":")).encode() + b"\n"
        self._send(client)

    def _send(self, client: _Client) -> None:
        while client.out:
            try:
                sent = client.socket.send(client.out[: 256 << 10], self._module.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self._leave(client)
                return
            del client.out[:sent]
        if len(client.out) > _OUT_MOST:
            self._leave(client)
        elif client.ended:
            self._leave_if_done(client)
        elif client.dropped and len(client.out) < _FOLLOW_MOST // 2:
            dropped, client.dropped = client.dropped, 0
            self._put(client, {"dropped": dropped})

    # ---- requests ---------------------------------------------------------------------------------------------------
    def _request(self, client: _Client, line: bytes) -> None:
        problem, verb, args = _parse(line)
        if problem is not None:
            self._put(client, problem)
        elif verb == "ping":
            self._put(client, {"ok": True, "pid": os.getpid()})
        elif verb == "events":
            self._tell_events(client, args)
        elif verb in _QUESTIONS:
            self._ask(client, verb, args)
        elif self.operations.count >= OPERATIONS_MOST:
            hint = "`python -m shmrt status` lists them; `stop` still works" if verb not in _URGENT else None
            self._put(client, _error("busy", f"{OPERATIONS_MOST} commands are under way", hint))
        else:
            operation = self.operations.add(
                verb, args, lambda body: self._answered(client, body), urgent=verb in _URGENT
            )
            if not operation.done:
                client.waiting.append(operation)

    def _answered(self, client: _Client, body: dict[str, Any]) -> None:
        self._put(client, body)
        self._obey(client)

    def _ask(self, client: _Client, verb: str, args: dict[str, Any]) -> None:
        def reply(ok: bool, value: dict[str, Any]) -> None:
            self._put(client, {"ok": ok, **value})

        try:
            self._answer(verb, args, reply)
        except Exception as error:  # a mistake of ours: the client hears of it, the root goes on
            self._put(client, _error("internal", f"{type(error).__name__}: {error}"))

    # ---- events -----------------------------------------------------------------------------------------------------
    def publish(self, name: str, measurements: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Keeps an event, the last 1024 of them, and tells everybody who follows."""
        self._sequence += 1
        event = {
            "seq": self._sequence,
            "ns": monotonic_ns(),
            "name": name,
            "measurements": measurements,
            "metadata": metadata,
        }
        self._events.append(event)
        if len(self._events) > _EVENTS_KEPT:
            del self._events[0]
        for client in [one for one in self._clients.values() if one.follows]:
            if len(client.out) > _FOLLOW_MOST:
                client.dropped += 1
            else:
                self._put(client, {"event": event})

    def _tell_events(self, client: _Client, args: dict[str, Any]) -> None:
        since = args.get("since")
        first_ns = 0 if not isinstance(since, (int, float)) else monotonic_ns() - int(since * 1e9)
        told = [event for event in self._events if event["ns"] >= first_ns]
        client.follows = bool(args.get("follow"))
        before = self._sequence - len(self._events)  # older than what is kept
        body = {"schema": "shmrt.events/1", "events": told, "dropped": before, "now_ns": monotonic_ns()}
        self._put(client, {"ok": True, **body})


def _parse(line: bytes) -> tuple[dict[str, Any] | None, str, dict[str, Any]]:
    """(what is wrong with it, verb, args)."""
    import json

    try:
        request = json.loads(line)
    except (ValueError, RecursionError):
        return _error("bad_request", "a request is one line of JSON"), "", {}
    if not isinstance(request, dict):
        return _error("bad_request", "a request is a JSON object with schema, verb and args"), "", {}
    schema, verb, args = request.get("schema"), request.get("verb"), request.get("args", {})
    if schema != SCHEMA:
        hint = "use the `python -m shmrt` of the environment that the runtime was started from"
        return _error("schema", f"this root speaks {SCHEMA}, not {schema!r}", hint), "", {}
    known = ("ping", "events", *_QUESTIONS, *_COMMANDS)
    if verb not in known:
        return _error("unknown_verb", f"this root knows no verb {verb!r}", f"one of {', '.join(known)}"), "", {}
    if not isinstance(args, dict):
        return _error("bad_request", f"args must be an object, not {args!r}"), "", {}
    return None, verb, args


def _plain(value: Any) -> Any:
    """What JSON has no word for."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else repr(value)

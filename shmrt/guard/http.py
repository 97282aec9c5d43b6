"""The health endpoints over HTTP: `Runtime(http=8080)`, or `python -m shmrt run TARGET --http 8080`.

They are served by a process of their own, the child of a supervisor of its own: neither its work nor its death touches
the program. It asks the root, as any process of the runtime may, with a deadline, and answers several clients that ask
for the same at once by one answer. One thread reads and writes all connections and never waits for any of them:
whoever is slow is left after a few seconds, and when there are too many, the oldest that has not said what it wants.

The program keeps the port: it is bound there, too, so it can be had when the runtime starts, or is refused at once, and
stays while the server's process is replaced. If the program dies, the process does, and the port is free.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import threading
from collections import deque
from time import monotonic

from shmrt.errors import ConfigError
from shmrt.guard.http_words import (
    GROUPS,
    HEAD_MOST,
    Refusal,
    is_loopback,
    parse_address,
    parse_request,
    response,
)
from shmrt.guard.report import MEDIA_TYPE, HealthReport

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Port", "serve"]

CLIENTS_MOST = 256
SLOW_S = 5.0
"""What a client has to send its request, and to take its answer."""
_CODES = {"healthy": 200, "degraded": 200, "unhealthy": 503}


class Port:
    """An address, held by this process and served by another. ConfigError if it cannot be had."""

    def __init__(self, where: str | int) -> None:
        host, port = parse_address(where)
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            if port:
                _bound(family, address, socket.SO_REUSEADDR).close()  # refused while another runtime holds the port
            self._socket = _bound(family, address, socket.SO_REUSEPORT)
        except OSError as error:
            hint = "choose another port, or 0 for a free one"
            text = f"http={where!r}: {host} port {port} cannot be had: {error.strerror or error}; {hint}"
            raise ConfigError(text, key="http", origin=str(where)) from None
        self.address: tuple[str, int] = self._socket.getsockname()[:2]
        self._names = (host.lower(), socket.gethostname().lower())

    def tree(self) -> Any:
        """The supervisor of the process that serves it."""
        from shmrt.children import Child, Supervisor

        listener = Listener(self._socket.family, self._socket.getsockname())
        child = Child(serve, listener, self._names, id="http")
        return Supervisor([child], max_restarts=10, max_seconds=5.0, backoff=0.1, name="shmrt-http")

    def close(self) -> None:
        self._socket.close()


def _bound(family: int, address: Any, *options: int) -> socket.socket:
    """Not listening. Sockets of one user that say SO_REUSEPORT may share a port, and only those that listen get
    clients. SO_REUSEADDR does not mind connections that have ended a moment ago, but does mind a socket without it."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


class Listener:
    """Becomes a listening socket where it is unpickled: while the server's process starts, so that a failure is one of
    its start."""

    def __init__(self, family: int, address: Any) -> None:
        self.family, self.address = family, address

    def __reduce__(self) -> Any:
        return listen, (self.family, self.address)


def listen(family: int, address: Any) -> socket.socket:
    sock = _bound(family, tuple(address), socket.SO_REUSEADDR, socket.SO_REUSEPORT)
    try:
        sock.listen(128)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def serve(listener: socket.socket, names: tuple[str, ...]) -> None:
    """What the process does until it is asked to end."""
    from shmrt.guard.health import health

    Server(listener, names, lambda group: health(group=group)).run()


class _Client:
    """One connection: first `got` grows, then `out` shrinks."""

    __slots__ = ("close_s", "got", "loopback", "out", "socket", "waits")

    def __init__(self, sock: socket.socket, host: str, now: float) -> None:
        self.socket = sock
        self.loopback = is_loopback(host)
        self.got = bytearray()
        self.out = b""
        self.waits = False  # for the root's answer, which has a deadline of its own
        self.close_s = now + SLOW_S


class Server:
    """The loop. `ask(group)` gives a report and may take its time; it is called in threads, one for each group."""

    def __init__(
        self, listener: socket.socket, names: tuple[str, ...], ask: Callable[[str | None], HealthReport]
    ) -> None:
        self._listener = listener
        self._names = names
        self._ask = ask
        self._clients: dict[int, _Client] = {}
        self._asking: dict[str, list[tuple[_Client, bool, bool]]] = {}  # by path: (client, verbose, head)
        self._answers: deque[tuple[str, HealthReport | None]] = deque()
        self._wake_out, self._wake = socket.socketpair()
        self._wake.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def run(self) -> None:
        while True:
            self.turn(self._rest())

    def waiting(self, path: str) -> list[_Client]:
        """Who waits for the root's answer to this."""
        return [client for client, _, _ in self._asking.get(path, ())]

    def close(self) -> None:
        """Leaves everybody. The listening socket is its maker's."""
        for client in list(self._clients.values()):
            self._leave(client)
        self._selector.close()
        self._wake.close()
        self._wake_out.close()

    def turn(self, seconds: float | None) -> None:
        """One round: waits at most so long."""
        for key, events in self._selector.select(seconds):
            if key.fileobj is self._listener:
                self._accept()
            elif key.fileobj is self._wake:
                self._take_answers()
            else:
                client = self._clients.get(key.fd)
                if client is not None:
                    (self._write if events & selectors.EVENT_WRITE else self._read)(client)
        now = monotonic()
        for client in list(self._clients.values()):
            if not client.waits and now >= client.close_s:
                self._leave(client)

    def _rest(self) -> float | None:
        due = [client.close_s for client in self._clients.values() if not client.waits]
        return max(0.0, min(due) - monotonic()) if due else None

    # ---- connections ------------------------------------------------------------------------------------------------
    def _accept(self) -> None:
        try:
            sock, peer = self._listener.accept()
        except OSError:
            self._make_room()  # out of descriptors, perhaps
            return
        sock.setblocking(False)
        if len(self._clients) >= CLIENTS_MOST:
            self._make_room()
        if len(self._clients) >= CLIENTS_MOST:  # all of them wait for an answer
            sock.close()
            return
        client = _Client(sock, str(peer[0]), monotonic())
        self._clients[sock.fileno()] = client
        self._selector.register(sock, selectors.EVENT_READ)

    def _make_room(self) -> None:
        slow = [client for client in self._clients.values() if not client.waits]
        if slow:
            self._leave(min(slow, key=lambda client: client.close_s))

    def _leave(self, client: _Client) -> None:
        if self._clients.pop(client.socket.fileno(), None) is not None:
            try:
                self._selector.unregister(client.socket)
            except KeyError:
                pass  # it waits for the root, and is not listened to
            client.socket.close()

    def _read(self, client: _Client) -> None:
        try:
            data = client.socket.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        client.got += data
        end = client.got.find(b"\r\n\r\n")
        if end >= 0:
            self._request(client, bytes(client.got[:end]))
        elif not data:
            self._leave(client)
        elif len(client.got) > HEAD_MOST:
            self._say(client, 431, f"a request has at most {HEAD_MOST} bytes")

    def _request(self, client: _Client, head: bytes) -> None:
        try:
            method, path, verbose = parse_request(head, self._names)
        except Refusal as refusal:
            self._say(client, refusal.code, refusal.text, head=head.startswith(b"HEAD "))
            return
        client.waits = True
        self._selector.unregister(client.socket)
        begins = path not in self._asking
        self._asking.setdefault(path, []).append((client, verbose, method == "HEAD"))
        if begins:
            threading.Thread(target=self._ask_root, args=(path,), daemon=True, name=f"ask {path}").start()

    def _say(self, client: _Client, code: int, text: str, *, head: bool = False) -> None:
        self._send(client, response(code, f"{text}\n".encode(), "text/plain; charset=utf-8", head=head))

    def _send(self, client: _Client, data: bytes) -> None:
        client.out = data
        client.waits = False
        client.close_s = monotonic() + SLOW_S
        try:
            self._selector.modify(client.socket, selectors.EVENT_WRITE)
        except KeyError:
            self._selector.register(client.socket, selectors.EVENT_WRITE)
        self._write(client)

    def _write(self, client: _Client) -> None:
        try:
            sent = client.socket.send(client.out)
        except BlockingIOError:
            return
        except OSError:
            self._leave(client)
            return
        client.out = client.out[sent:]
        if not client.out:
            try:
                client.socket.shutdown(socket.SHUT_WR)
                client.socket.recv(65536)  # what is left unread would make the kernel take the answer back
            except OSError:
                pass
            self._leave(client)

    # ---- answers ----------------------------------------------------------------------------------------------------
    def _ask_root(self, path: str) -> None:
        """In a thread of its own."""
        report: HealthReport | None = None
        try:
            report = self._ask(GROUPS[path])
        except Exception:
            sys.excepthook(*sys.exc_info())  # its clients get a 500
        finally:
            self._answers.append((path, report))
            self._wake_out.send(b"!")

    def _take_answers(self) -> None:
        try:
            self._wake.recv(4096)
        except BlockingIOError:
            pass
        while self._answers:
            path, report = self._answers.popleft()
            for client, verbose, head in self._asking.pop(path, ()):
                if report is None:
                    self._say(client, 500, "the root could not be asked", head=head)
                else:
                    details = client.loopback and (verbose or path == "/healthz")
                    body = json.dumps(report.as_json(verbose=details)).encode() + b"\n"
                    self._send(client, response(_CODES[report.status], body, MEDIA_TYPE, head=head))

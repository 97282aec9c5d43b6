"""The health endpoints: what is refused, what is told to whom, and clients that misbehave.

The server runs in a thread of the test, with a root that is none; `test_health_doors.py` has the real one."""

from __future__ import annotations

import json
import random
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from shmrt.guard import http
from shmrt.guard.http_words import HEAD_MOST, Refusal, is_loopback, parse_address, parse_request, response
from shmrt.guard.report import CheckResult, HealthReport

AT = datetime(2024, 5, 1, 12, tzinfo=UTC)
PATIENCE_S = 120.0


def report(status: str = "healthy") -> HealthReport:
    return HealthReport(status, {"db": CheckResult("db", status, timestamp=AT, error="no")}, AT)


def asked(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, *headers, "", ""]).encode()


HOST = "Host: 127.0.0.1:80"


# ---- words ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("head", "code"),
    [
        (asked("POST /livez HTTP/1.1", HOST), 405),
        (asked("DELETE /livez HTTP/1.1", HOST), 405),
        (asked("OPTIONS * HTTP/1.1", HOST), 405),
        (asked("get /livez HTTP/1.1", HOST), 405),
        (asked("GET /livez HTTP/2", HOST), 400),
        (asked("GET /livez", HOST), 400),
        (asked("GET  /livez HTTP/1.1", HOST), 400),
        (asked("", HOST), 400),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", 400),
        (asked("GET /livez HTTP/1.1"), 400),
        (asked("GET /livez HTTP/1.1", HOST, HOST), 400),
        (asked("GET /livez HTTP/1.1", "Host: evil.example"), 400),
        (asked("GET /livez HTTP/1.1", "Host: evil.example:80"), 400),
        (asked("GET /livez HTTP/1.1", "Host: 127.0.0.1.evil.example"), 400),
        (asked("GET /livez HTTP/1.1", "Host: a@127.0.0.1"), 400),
        (asked("GET /livez HTTP/1.1", "Host:"), 400),
        (asked("GET /livez HTTP/1.1", "Host 127.0.0.1"), 400),
        (asked("GET /livez HTTP/1.1", HOST, " folded"), 400),
        (asked("GET http://127.0.0.1/livez HTTP/1.1", HOST), 400),
        (asked("GET / HTTP/1.1", HOST), 404),
        (asked("GET /livez/ HTTP/1.1", HOST), 404),
        (asked("GET /../livez HTTP/1.1", HOST), 404),
        (asked("GET /metrics HTTP/1.1", HOST), 404),
    ],
)
def test_what_is_refused(head: bytes, code: int) -> None:
    """Methods, hosts, paths and what is no HTTP."""
    with pytest.raises(Refusal) as caught:
        parse_request(head[:-4])
    assert caught.value.code == code


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (asked("GET /livez HTTP/1.1", HOST), ("GET", "/livez", False)),
        (asked("HEAD /readyz?verbose HTTP/1.1", "host: localhost"), ("HEAD", "/readyz", True)),
        (asked("GET /startupz?x=1&verbose=1 HTTP/1.0"), ("GET", "/startupz", True)),
        (asked("GET /healthz? HTTP/1.1", "Host: [::1]:8080", "Accept: */*"), ("GET", "/healthz", False)),
        (asked("GET /livez HTTP/1.1", "HOST:10.0.0.7"), ("GET", "/livez", False)),
        (asked("GET /livez HTTP/1.1", "Host: Box:80"), ("GET", "/livez", False)),
    ],
)
def test_what_is_allowed(head: bytes, found: tuple[str, str, bool]) -> None:
    assert parse_request(head[:-4], ("box",)) == found


def test_random_requests_raise_nothing_but_refusals() -> None:
    """Bytes of any kind, whole requests with a few of them changed."""
    seed = random.randrange(2**31)
    draw = random.Random(seed)
    good = asked("GET /readyz?verbose HTTP/1.1", HOST, "Accept: */*")[:-4]
    for _ in range(10_000):
        head = bytearray(good if draw.random() < 0.8 else draw.randbytes(draw.randrange(200)))
        for _ in range(draw.randrange(4)):
            if head:
                head[draw.randrange(len(head))] = draw.randrange(256)
        try:
            method, path, _ = parse_request(bytes(head))
        except Refusal as refusal:
            assert response(refusal.code, b"x", "text/plain"), f"seed {seed}: {bytes(head)!r}"
        else:
            assert method in ("GET", "HEAD") and path.endswith("z"), f"seed {seed}: {bytes(head)!r}"


@pytest.mark.parametrize(
    ("value", "address"),
    [
        (0, ("127.0.0.1", 0)),
        ("8080", ("127.0.0.1", 8080)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("[::1]:80", ("::1", 80)),
        ("localhost:1", ("localhost", 1)),
    ],
)
def test_addresses(value: Any, address: tuple[str, int]) -> None:
    assert parse_address(value) == address


@pytest.mark.parametrize("value", ["", "x", "65536", -1, "1.5", "host:", ":80", "::1:80", "a b:80", "h:80:90", "h:٣"])
def test_wrong_addresses_are_named(value: Any) -> None:
    with pytest.raises(ValueError, match="http="):
        parse_address(value)


@pytest.mark.parametrize("value", [None, True, 1.5, b"80"])
def test_no_addresses_at_all(value: Any) -> None:
    with pytest.raises(TypeError, match="http must be"):
        parse_address(value)


def test_loopback() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1")))
    assert not any(map(is_loopback, ("10.0.0.1", "::", "::ffff:10.0.0.1", "12.7.0.1")))


# ---- the server -----------------------------------------------------------------------------------------------------
class Door:
    """A server in a thread; `answers` gives what its root says."""

    def __init__(self, ask: Callable[[str | None], HealthReport]) -> None:
        self.listener = http.listen(socket.AF_INET, ("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.server = http.Server(self.listener, ("box",), ask)
        self.over = False
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.over:
            self.server.turn(0.05)

    def client(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def say(self, data: bytes) -> bytes:
        with self.client() as client:
            client.sendall(data)
            return read_all(client)

    def close(self) -> None:
        self.over = True
        self.thread.join()
        self.server.close()
        self.listener.close()


def read_all(client: socket.socket) -> bytes:
    found = b""
    while data := client.recv(65536):
        found += data
    return found


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert int(headers["Content-Length"]) == len(body) or not body
    return int(first.split()[1]), headers, body


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door(lambda group: report("degraded" if group == "ready" else "healthy" if group else "unhealthy"))
    try:
        yield made
    finally:
        made.close()


def test_answers(door: Door) -> None:
    """Codes by status, details only where they were asked for, no body for HEAD."""
    code, headers, body = parts(door.say(asked("GET /livez HTTP/1.1", HOST)))
    assert (code, headers["Content-Type"], json.loads(body)["status"]) == (200, "application/health+json", "pass")
    assert "checks" not in json.loads(body) and headers["Cache-Control"] == "no-store"
    code, _, body = parts(door.say(asked("GET /readyz?verbose HTTP/1.1", HOST)))
    assert (code, json.loads(body)["checks"]["db:health"][0]["status"]) == (200, "warn")
    code, _, body = parts(door.say(asked("GET /healthz HTTP/1.1", HOST)))
    assert (code, json.loads(body)["status"]) == (503, "fail") and json.loads(body)["checks"]
    code, headers, body = parts(door.say(asked("HEAD /healthz HTTP/1.1", HOST)))
    assert (code, body) == (503, b"") and int(headers["Content-Length"]) > 100
    code, headers, _ = parts(door.say(asked("PUT /livez HTTP/1.1", HOST, "Content-Length: 3") + b"abc"))
    assert (code, headers["Allow"]) == (405, "GET, HEAD")
    assert parts(door.say(b"GET /livez HTTP/1.1\r\nX: " + b"x" * HEAD_MOST + b"\r\n"))[0] == 431


def test_details_are_for_this_machine(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client from elsewhere gets the status alone."""
    monkeypatch.setattr(http, "is_loopback", lambda host: False)
    for path in ("/healthz", "/readyz?verbose"):
        assert "checks" not in json.loads(parts(door.say(asked(f"GET {path} HTTP/1.1", HOST)))[2])


def test_slow_clients_hold_nobody_up(door: Door) -> None:
    """More connections than there is room for, each with half a request: the next one is answered at once, and the
    oldest are let go."""
    slow = []
    for n in range(http.CLIENTS_MOST + 40):
        client = door.client()
        client.sendall(b"GET /livez HTT")
        slow.append(client)
        if n % 50 == 0:
            assert parts(door.say(asked("GET /livez HTTP/1.1", HOST)))[0] == 200
    assert parts(door.say(asked("GET /livez HTTP/1.1", HOST)))[0] == 200
    assert slow[0].recv(1) == b"", "the oldest had to go"
    slow[-1].sendall(b"P/1.1\r\n" + HOST.encode() + b"\r\n\r\n")
    assert parts(read_all(slow[-1]))[0] == 200, "the newest had not"
    for client in slow:
        client.close()


def test_a_client_that_says_nothing_is_left(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "SLOW_S", 0.2)
    with door.client() as silent:
        assert silent.recv(1) == b""
    with door.client() as rude:
        rude.sendall(b"GET")
    assert parts(door.say(asked("GET /livez HTTP/1.1", HOST)))[0] == 200


def test_a_root_that_is_slow_is_asked_once_and_holds_up_only_that_question(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten clients wait for one answer; another path is answered meanwhile; a failed question is a 500."""
    go = threading.Event()
    asks: list[str | None] = []

    def ask(group: str | None) -> HealthReport:
        asks.append(group)
        if group == "ready":
            go.wait(PATIENCE_S)
        if group == "startup":
            raise LookupError("the server says it")
        return report()

    door = Door(ask)
    try:
        clients = [door.client() for _ in range(10)]
        for client in clients:
            client.sendall(asked("GET /readyz HTTP/1.1", HOST))
        while len(door.server.waiting("/readyz")) < 10:
            pass
        assert parts(door.say(asked("GET /livez HTTP/1.1", HOST)))[0] == 200
        go.set()
        assert [parts(read_all(client))[0] for client in clients] == [200] * 10
        assert asks.count("ready") == 1
        said: list[BaseException] = []
        monkeypatch.setattr(sys, "excepthook", lambda kind, error, traceback: said.append(error))
        assert parts(door.say(asked("GET /startupz HTTP/1.1", HOST)))[0] == 500
        assert [type(error) for error in said] == [LookupError]
        for client in clients:
            client.close()
    finally:
        go.set()
        door.close()


def test_a_port_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken ones are refused at once, by name; those of a moment ago are not."""
    from shmrt import ConfigError

    first = http.Port(0)
    try:
        with pytest.raises(
            ConfigError, match=f"port {first.address[1]} cannot be had: Address already in use"
        ) as caught:
            http.Port(first.address[1])
        assert caught.value.key == "http"
        served = http.listen(socket.AF_INET, first.address)  # as its process does
        with pytest.raises(ConfigError):
            http.Port(f"127.0.0.1:{first.address[1]}")
        served.close()
    finally:
        first.close()
    http.Port(first.address[1]).close()
    with pytest.raises(ConfigError, match="cannot be had"):
        http.Port("no-such-host.invalid:80")

"""The words of the health endpoints: what may be asked, who may ask, and what the answer looks like. Pure.

| path        | checks                | 200                    | 503           |
|-------------|-----------------------|------------------------|---------------|
| `/livez`    | of the group live     | healthy or degraded    | unhealthy     |
| `/readyz`   | of the group ready    | healthy or degraded    | unhealthy     |
| `/startupz` | of the group startup  | healthy or degraded    | unhealthy     |
| `/healthz`  | all of them           | healthy or degraded    | unhealthy     |

`?verbose` adds every check to the body, `/healthz` has them anyway; both only for a client on the same machine.

Only GET and HEAD exist; anything else is 405. A request whose Host is neither an address nor a name of this machine is
400: a web page whose name was made to point here (DNS rebinding) reads nothing. Other paths are 404.

>>> parse_request(b"GET /readyz?verbose HTTP/1.1\\r\\nHost: 127.0.0.1:80\\r\\n\\r\\n")
('GET', '/readyz', True)
>>> parse_address(8080), parse_address("0.0.0.0:80")
(('127.0.0.1', 8080), ('0.0.0.0', 80))
"""

from __future__ import annotations

import re

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["GROUPS", "HEAD_MOST", "Refusal", "is_loopback", "parse_address", "parse_request", "response"]

GROUPS: dict[str, str | None] = {"/livez": "live", "/readyz": "ready", "/startupz": "startup", "/healthz": None}
HEAD_MOST = 8192
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout"}
_REASONS |= {431: "Request Header Fields Too Large", 500: "Internal Server Error", 503: "Service Unavailable"}


class Refusal(Exception):
    """A request that is answered by `code` and one line."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


def parse_address(value: Any) -> tuple[str, int]:
    """(host, port) of a port number, "PORT", "HOST:PORT" or "[IPV6]:PORT". ValueError or TypeError."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise TypeError(f"http must be a port or 'HOST:PORT', not {value!r}")
    host, colon, port = str(value).rpartition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError(f"http={value!r} must be a port from 0 to 65535, or 'HOST:PORT'")
    if colon and host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"http={value!r}: an IPv6 address is written in brackets, such as '[::1]:8080'")
    if colon and not re.fullmatch(r"[0-9A-Za-z._:%-]+", host):
        raise ValueError(f"http={value!r} must be a port, or 'HOST:PORT' with the name or the address of a host")
    return host if colon else "127.0.0.1", int(port)


def parse_request(head: bytes, names: tuple[str, ...] = ()) -> tuple[str, str, bool]:
    """(method, path, verbose) of everything up to the empty line. `names` are allowed as Host, besides addresses and
    localhost. Raises Refusal."""
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ")
    if len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not re.fullmatch(rb"HTTP/1\.[01]", words[2]):
        raise Refusal(400, "this is no HTTP/1 request")
    if words[0] not in (b"GET", b"HEAD"):
        raise Refusal(405, "only GET and HEAD are allowed")
    hosts = []
    for line in lines[1:]:
        if not line:
            continue
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise Refusal(400, "a header line is not one")
        if name.lower() == b"host":
            hosts.append(value.strip().decode("latin-1"))
    if len(hosts) > 1 or (not hosts and words[2] == b"HTTP/1.1") or not all(_is_ours(host, names) for host in hosts):
        raise Refusal(400, "the Host header must be an address or a name of this machine")
    path, _, query = words[1].decode("latin-1").partition("?")
    if not path.startswith("/"):
        raise Refusal(400, "the target must be a path")
    if path not in GROUPS:
        raise Refusal(404, f"there are {', '.join(GROUPS)}")
    verbose = any(part.partition("=")[0] == "verbose" for part in query.split("&"))
    return words[0].decode(), path, verbose


def _is_ours(host: str, names: tuple[str, ...]) -> bool:
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]/@\s]+)(:[0-9]{1,5})?", host)
    if not found:
        return False
    name = found[1].lower()
    return name.startswith("[") or name == "localhost" or name in names or bool(re.fullmatch(r"[0-9.]+", name))


def is_loopback(host: str) -> bool:
    """Whether a peer's address is of the same machine."""
    return host.startswith("127.") or host in ("::1", "localhost") or host.startswith("::ffff:127.")


def response(code: int, body: bytes, kind: str, *, head: bool = False) -> bytes:
    """The whole of it. `head`: without the body, whose length it says all the same."""
    lines = [
        f"HTTP/1.1 {code} {_REASONS[code]}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
    ]
    if code == 405:
        lines.append("Allow: GET, HEAD")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head else body)

"""Values of flags: each refusal names the value and says what is allowed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from shmrt.spec import RingSpec, parse_duration, parse_size

__all__ = [
    "assignment",
    "chaos",
    "duration",
    "ready_timeout",
    "ring_slots",
    "slot_bytes",
    "text_pair",
    "whole",
    "workers",
]

WORKERS_MOST = 256
"""The most that one pool may have."""
PAYLOAD_MOST = 2**26


def _refusing(check: Callable[[str], Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return check(text)
        except (ValueError, TypeError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def whole(text: str, what: str, least: int, most: int) -> int:
    try:
        number = int(text, 10)
    except ValueError:
        number = least - 1
    if not least <= number <= most:
        raise ValueError(f"{what}={text!r} must be a whole number from {least} to {most}")
    return number


@_refusing
def workers(text: str) -> int:
    return whole(text, "workers", 1, WORKERS_MOST)


@_refusing
def ring_slots(text: str) -> int:
    return RingSpec(slots=whole(text, "ring-slots", 1, 2**24)).slots


@_refusing
def slot_bytes(text: str) -> int:
    return int(RingSpec(slot_bytes=text).slot_bytes)


@_refusing
def duration(text: str) -> float:
    return parse_duration(text)


@_refusing
def ready_timeout(text: str) -> float:
    seconds = parse_duration(text, "ready-timeout")
    if seconds == 0:  # to setitimer it would mean no limit, which is the opposite of what it says
        raise ValueError(f"ready-timeout={text!r} must be more than 0 seconds, such as 30s")
    return seconds


@_refusing
def strategy(text: str) -> str:
    known = ("one_for_one", "one_for_all", "rest_for_one")
    if text not in known:
        raise ValueError(f"strategy={text!r} must be one of {', '.join(known)}")
    return text


@_refusing
def max_restarts(text: str) -> int:
    return whole(text, "max-restarts", 0, 2**31 - 1)


@_refusing
def within_seconds(text: str) -> float:
    seconds = parse_duration(text, "within")
    if seconds == 0:
        raise ValueError(f"within={text!r} must be more than 0 seconds, such as 5s")
    return seconds


@_refusing
def shm_limit(text: str) -> int:
    return parse_size(int(text) if text.isdigit() else text, "shm_limit")


@_refusing
def size(text: str) -> int:
    return parse_size(int(text) if text.isdigit() else text)


@_refusing
def http(text: str) -> str:
    from shmrt.guard.http_words import parse_address

    parse_address(text)
    return text


@_refusing
def seed(text: str) -> int:
    return whole(text, "seed", 0, 2**63 - 1)


def rate(text: str) -> float:
    try:
        number = float(text.removesuffix("/s"))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1000:
        raise ValueError(f"chaos kill={text!r} must be deaths a second from 0 to 1000, such as kill=20")
    return number


@_refusing
def chaos(text: str) -> float:
    key, equals, value = text.partition("=")
    if key != "kill" or not equals:
        raise ValueError(f"chaos={text!r} is not kill=RATE, such as kill=20 (deaths a second)")
    return rate(value)


def _per_second(text: str, what: str) -> float:
    try:
        number = float(text.removesuffix("/s"))
    except ValueError:
        number = -1.0
    if not 0 <= number <= 1000:
        raise ValueError(f"{what}={text!r} must be faults a second from 0 to 1000, such as 20")
    return number


@_refusing
def kill_rate(text: str) -> float:
    return _per_second(text, "kill-rate")


@_refusing
def stop_rate(text: str) -> float:
    return _per_second(text, "stop-rate")


@_refusing
def root_rate(text: str) -> float:
    return _per_second(text, "root-rate")


@_refusing
def chaos_duration(text: str) -> float:
    seconds = parse_duration(text, "duration")
    if seconds == 0:
        raise ValueError(f"duration={text!r} must be more than 0 seconds, such as 10s")
    return seconds


@_refusing
def patience(text: str) -> float:
    seconds = parse_duration(text, "patience")
    if seconds == 0:
        raise ValueError(f"patience={text!r} must be more than 0 seconds, such as 60s")
    return seconds


@_refusing
def inputs(text: str) -> int:
    return whole(text, "inputs", 1, 2**31)


@_refusing
def runs(text: str) -> int:
    return whole(text, "runs", 1, 2**31)


@_refusing
def payload(text: str) -> int:
    count = parse_size(int(text) if text.isdigit() else text, "payload")
    if count > PAYLOAD_MOST:
        raise ValueError(f"payload={text!r} must be at most 64MiB")
    return count


@_refusing
def budget(text: str) -> float:
    seconds = parse_duration(text, "budget")
    if seconds == 0:
        raise ValueError(f"budget={text!r} must be more than 0 seconds, such as 60s")
    return seconds


@_refusing
def sample(text: str) -> tuple[int | None, float]:
    """Inputs, or seconds: a bare number is a number of inputs."""
    if text.lstrip("+-").isdigit():
        return whole(text, "sample", 1, 2**31), 0.0
    try:
        seconds = parse_duration(text, "sample")
    except ValueError:
        seconds = 0.0
    if seconds == 0:
        raise ValueError(f"sample={text!r} must be a number of inputs, or more than 0 seconds such as 500ms")
    return None, seconds


@_refusing
def allowed(text: str) -> bool:
    """As a file says it: `str(True)`."""
    return text == "True"


@_refusing
def assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"set {text!r} is not KEY=VALUE with a name for KEY")
    return key, literal(value)


@_refusing
def text_pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise ValueError(f"filter {text!r} is not KEY=VALUE, such as name=worker.exit")
    return key, value


def literal(text: str) -> Any:
    """Numbers, true, false, null and quoted strings as in JSON; everything else is the string itself."""
    try:
        return json.loads(text, parse_constant=str)
    except (ValueError, RecursionError):
        return text

"""`python -m shmrt breaker`; what `status` and `events` show of guards: a runtime in this process, verbs beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tree_kit

from shmrt import Bulkhead, CircuitBreaker, CircuitOpen, RateLimit, Runtime

Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def shmrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Verb]:
    """A runtime named "app" with a place of its own, and the command line that looks there."""
    tmp_path.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))

    def verb(*words: str) -> tuple[int, str, str]:
        command = [sys.executable, "-m", "shmrt", "--name", "app", *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=tree_kit.PATIENCE_S)
        return done.returncode, done.stdout, done.stderr

    with Runtime(name="app"):
        yield verb


def document(verb: Verb, *words: str) -> Any:
    code, out, err = verb("-o", "json", *words)
    assert code == 0, err
    return json.loads(out)


def test_a_breaker_by_hand(shmrt: Verb) -> None:
    """open refuses, close lets all pass, auto gives it back; each says so again without harm."""
    breaker = CircuitBreaker("store", failure_threshold=1, reset_timeout=3000)
    assert shmrt("breaker", "ls") == (0, "no breakers\n", "")
    assert breaker.call(int, "1") == 1
    assert shmrt("breaker", "ls")[1].startswith("store  closed")
    assert shmrt("breaker", "open", "store")[:2] == (0, "app: breaker store is forced_open now, it was closed\n")
    with pytest.raises(CircuitOpen, match=r"forced open: it stays so until reset\(\)") as refusal:
        breaker.call(int, "1")
    assert refusal.value.retry_after is None
    assert shmrt("breaker", "open", "store")[:2] == (0, "app: breaker store is forced_open: already\n")
    assert document(shmrt, "breaker", "close", "store")["state"] == "disabled"
    with pytest.raises(ValueError, match="invalid literal"):
        breaker.call(int, "x")
    assert breaker.state == "disabled"
    assert document(shmrt, "breaker", "auto", "store")["was"] == "disabled"
    assert breaker.state == "closed"


def test_mistakes_say_what_is_right(shmrt: Verb) -> None:
    """Exit code 2, one line that names the thing, one that helps."""
    code, out, err = shmrt("breaker", "open", "store")
    assert (code, out) == (2, "") and "no breaker is called 'store'" in err and "none yet" in err
    CircuitBreaker("store").call(int, "1")
    assert "there are: store" in shmrt("breaker", "open", "stor")[2]
    assert "did you mean 'open'" in shmrt("breaker", "opne", "store")[2]
    assert "breaker close needs a NAME" in shmrt("breaker", "close")[2]
    assert shmrt("breaker", "ls", "store")[0] == 2


def test_status_and_events_tell_of_guards(shmrt: Verb) -> None:
    """Every guard that was used has a row; every change of a breaker is an event, whoever made it."""
    breaker = CircuitBreaker("store", failure_threshold=1, reset_timeout=3000)
    disk, limit = Bulkhead("disk", 2), RateLimit("api", rate=0.001, burst=2)
    with pytest.raises(ValueError, match="invalid literal"):
        breaker.call(int, "x")
    with disk:
        limit.try_acquire()
        rows = {row["name"]: row for row in document(shmrt, "status")["guards"]}
        lines = shmrt("status")[1]
    assert rows["store"]["state"] == "open" and rows["store"]["counters"]["opened"] == 1
    assert (rows["disk"]["in_use"], rows["disk"]["max_concurrent"]) == (1, 2)
    assert (rows["api"]["tokens"], rows["api"]["burst"]) == (1, 2)
    assert "breaker store  open" in lines and "bulkhead disk  1/2" in lines and "rate limit api  1/2 tokens" in lines

    shmrt("breaker", "auto", "store")

    def told() -> list[str]:
        found = [json.loads(line) for line in shmrt("-o", "jsonl", "events")[1].splitlines()]
        return [event["name"] for event in found if event["name"].startswith("breaker.")]

    tree_kit.until(lambda: told() == ["breaker.open", "breaker.close"], told)
    from shmrt import runtime

    names = [event["event"] for event in runtime().events()]
    assert names == ["breaker.open", "breaker.close"]
    first = runtime().events()[0]["metadata"]
    assert (first["where"], first["state"], first["was"], first["pid"]) == ("store", "open", "closed", os.getpid())

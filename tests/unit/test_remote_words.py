"""What is remembered of pools and workers that are gone has a bound."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from shmrt.process import remote


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(remote, "_KEPT", 3)
    monkeypatch.setattr(remote, "log_tails", {})
    monkeypatch.setattr(remote, "broken_reasons", {})
    yield


def log(pool: str, worker: int, text: str) -> None:
    remote.keep_log(pool, worker, ("app", logging.ERROR, 0, 0, 0, 0, text))


def test_the_workers_that_began_to_log_last() -> None:
    for number in range(5):
        log(f"pool-{number}", 0, "first")
    assert [pool for pool, _ in remote.log_tails] == ["pool-2", "pool-3", "pool-4"]
    log("pool-2", 0, "second")
    assert remote.log_tails["pool-2", 0] == ["ERROR app: first", "ERROR app: second"]


def test_a_workers_last_lines() -> None:
    for number in range(50):
        log("pool", 1, str(number))
    assert remote.log_tails["pool", 1] == [f"ERROR app: {number}" for number in range(30, 50)]


def test_the_pools_that_broke_last() -> None:
    for name in ("a", "b", "c", "a", "d"):
        remote.keep_reasons(name, [f"why {name}"])
    assert list(remote.broken_reasons) == ["c", "a", "d"]

"""A rate limit that real processes share: never a token too many, and none stuck."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import pytest
from guard_kit import interrupted
from tree_kit import Journal, kill, until

from shmrt import ConfigError, Overloaded, Pool, RateLimit, Runtime, WorkerCrashed


def take_all(limit: RateLimit, journal: Journal, callers: int) -> int:
    journal.note("here")
    journal.wait("here", callers)
    taken = 0
    while limit.try_acquire():
        taken += 1
    return taken


def test_processes_share_one_bucket(tmp_path: Path) -> None:
    """No token comes in the time of this test: what four processes take at once is what was there."""
    limit = RateLimit("api", rate=0.00001, burst=1000)
    with Runtime(), Pool(4) as pool:
        journal = Journal(tmp_path / "journal")
        taken = [pool.submit(take_all, limit, journal, 4) for _ in range(4)]
        assert sum(end.result() for end in taken) == 1000
        stats = limit.stats()
        assert stats["tokens"] == 0 and stats["counters"] == {"taken": 1000, "refused": 4, "waited": 0}
        limit.refill()
        assert limit.tokens == 1000


def draw(limit: RateLimit, count: int) -> list[float]:
    return [limit.acquire() for _ in range(count)]


def test_the_rate_is_kept_over_all_processes() -> None:
    limit = RateLimit("api", rate=500.0, burst=5)
    with Runtime(), Pool(3) as pool:
        assert pool.submit(draw, limit, 5).result() == [0.0] * 5
        begin = time.monotonic()
        for end in [pool.submit(draw, limit, 50) for _ in range(3)]:
            end.result()
        taken = time.monotonic() - begin
        assert taken >= 145 / 500  # 150 tokens, of which 5 may have been there again
        assert limit.stats()["counters"]["taken"] == 155


def take_and_tell(limit: RateLimit, journal: Journal) -> None:
    journal.note("in", os.getpid())
    while True:
        limit.acquire(2)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [15, pytest.param(1000, marks=pytest.mark.stress)])
def test_kills_leave_a_bucket_that_fills(tmp_path: Path, kills: int) -> None:
    limit = RateLimit("api", rate=100_000.0, burst=10)
    with Runtime(), Pool(2) as pool:
        for turn in range(kills):
            journal = Journal(tmp_path / f"turn{turn}")
            end = pool.submit(take_and_tell, limit, journal)
            pid = int(until(lambda journal=journal: journal.lines("in "))[0].split()[1])
            before = limit.stats()["counters"]["taken"]
            until(lambda before=before: limit.stats()["counters"]["taken"] > before)
            kill(pid)
            assert isinstance(end.exception(), WorkerCrashed)
            until(lambda: limit.tokens == 10)
        assert limit.try_acquire(10) and not limit.try_acquire(10)


def test_waiting_refused_and_told() -> None:
    now = [5.0]
    limit = RateLimit("api", rate=2, burst=3, clock=lambda: now[0])
    assert limit.try_acquire(3) and not limit.try_acquire()
    with pytest.raises(Overloaded, match=r"'api' lets 2 calls a second pass, 3 at once: try again in 0\.5 s") as caught:
        limit.call(int)
    assert caught.value.retry_after == 0.5 and caught.value.capacity == 3  # type: ignore[attr-defined]
    assert caught.value.where == "rate limit api"
    with pytest.raises(ValueError, match=r"tokens=4 .*from 1 to its burst, 3"):
        limit.acquire(4)
    now[0] += 0.5
    assert limit.call(int) == 0
    with pytest.raises(Overloaded):
        limit.acquire(timeout=0.49)
    assert limit.stats()["counters"]["taken"] == 4  # who is refused takes nothing


def test_ways_around_a_call() -> None:
    limit = RateLimit("api", rate=1e6, burst=1, timeout=None)

    @limit
    def plain(value: int) -> int:
        return value

    @limit
    async def later(value: int) -> int:
        return value

    async def use() -> int:
        async with limit:
            return await later(2) + await limit.acall(later, 3) + int(await limit.aacquire() < 1)

    with limit:
        assert plain(1) == 1
    assert asyncio.run(use()) == 6
    assert limit.stats()["counters"]["taken"] == 7


def test_a_sleep_can_be_interrupted() -> None:
    limit = RateLimit("api", rate=0.001)
    limit.acquire()
    with interrupted():
        limit.acquire()


def look(limit: RateLimit) -> list[Any]:
    return [limit.is_shared, limit.tokens]


def test_private_joined_and_carried() -> None:
    limit = RateLimit("api", rate=0.001, burst=10)
    assert limit.try_acquire(4)
    with Runtime(), Pool(1) as pool:
        assert look(limit) == [True, 6]  # what was taken outside is taken here
        assert pool.submit(limit.try_acquire, 3).result() and limit.tokens == 3
        with Runtime():
            assert limit.tokens == 3 and limit.try_acquire()
        assert limit.tokens == 3
        pid = os.fork()
        if pid == 0:
            os._exit(0 if look(limit) == [False, 3] and limit.try_acquire(3) else 1)
        assert os.waitpid(pid, 0)[1] == 0 and limit.tokens == 3
    assert look(limit) == [False, 2]  # the fewest that it has seen


def test_equal_names_with_other_settings_name_both() -> None:
    with Runtime():
        assert RateLimit("api", 1_000_000.4).call(int) == 0
        with pytest.raises(ConfigError, match=r"rate=1000000\.4 burst=1\).*rate=1000000 burst=1\)"):
            RateLimit("api", 1_000_000).call(int)

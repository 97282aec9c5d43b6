"""What breakers, bulkheads and rate limits refuse is reported: at once, then at most once a second for each."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from overload_kit import until

from shmrt import Bulkhead, BulkheadFull, CircuitBreaker, CircuitOpen, Overloaded, Pool, RateLimit, Runtime

SECOND_NS = 1_000_000_000


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Runtime]:
    with Runtime() as made:
        yield made


def rejects(runtime: Runtime, kind: str, name: str) -> list[dict[str, Any]]:
    events = [event for event in runtime.events() if event["event"] == f"{kind}.reject"]
    return [event for event in events if event["metadata"]["where"] == name]


def told(runtime: Runtime, kind: str, name: str) -> int:
    return sum(event["measurements"]["count"] for event in rejects(runtime, kind, name))


def refused_by_breaker(name: str, times: int) -> None:
    breaker = CircuitBreaker(name)
    breaker.trip()
    for _ in range(times):
        with pytest.raises(CircuitOpen):
            breaker.call(int)


def refused_by_bulkhead(name: str, times: int) -> None:
    bulkhead = Bulkhead(name, 1)
    with bulkhead:
        for _ in range(times):
            with pytest.raises(BulkheadFull):
                bulkhead.call(int)


def denied_a_permit(name: str, times: int) -> None:
    """By hand: no exception says so. One waits in vain, one in an event loop."""
    bulkhead = Bulkhead(name, 1, 5)
    assert bulkhead.acquire()
    for n in range(times):
        assert not (bulkhead.acquire(0.001) if n % 2 else asyncio.run(bulkhead.aacquire(0.001)))
    bulkhead.release()


def refused_by_limit(name: str, times: int) -> None:
    limit = RateLimit(name, 1e-6, burst=1, timeout=0.0)
    with contextlib.suppress(Overloaded):  # the one token may be another's
        limit.call(int)
    for _ in range(times):
        with pytest.raises(Overloaded):
            limit.call(int)


WAYS = [
    ("breaker", refused_by_breaker),
    ("bulkhead", refused_by_bulkhead),
    ("bulkhead", denied_a_permit),
    ("rate_limit", refused_by_limit),
]


@pytest.mark.parametrize("kind, refuse", WAYS)
def test_the_first_at_once_and_the_rest_by_count(runtime: Runtime, kind: str, refuse: Callable[..., None]) -> None:
    name = refuse.__name__
    refuse(name, 20)
    first = until(lambda: rejects(runtime, kind, name))[0]
    assert first["measurements"] == {"count": 1}
    assert first["metadata"] == {"where": name, "kind": kind, "pid": os.getpid()}
    until(lambda: told(runtime, kind, name) >= 20)
    times = [event["monotonic_ns"] for event in rejects(runtime, kind, name)]
    assert all(later - earlier > 0.5 * SECOND_NS for earlier, later in itertools.pairwise(times))
    assert told(runtime, kind, name) == 20


@pytest.mark.parametrize("kind, refuse", [WAYS[0], WAYS[3]])
def test_one_report_for_all_processes(runtime: Runtime, kind: str, refuse: Callable[..., None]) -> None:
    """Every refusal is told once, whichever of them tells it; a process that dies leaves its own to the others."""
    name = f"many-{kind}"
    with Pool(3) as pool:
        for future in [pool.submit(refuse, name, 50) for _ in range(6)]:
            future.result()
        pool.submit(os.abort).exception()
        total = told_in_all(kind, name)
        until(lambda: told(runtime, kind, name) == total, lambda: (total, rejects(runtime, kind, name)))


def told_in_all(kind: str, name: str) -> int:
    """What its counters say."""
    guard = CircuitBreaker(name) if kind == "breaker" else RateLimit(name, 1e-6, burst=1, timeout=0.0)
    return int(guard.stats()["counters"]["refused"])


def test_a_reporter_that_is_killed(runtime: Runtime) -> None:
    """Its refusals are counted already, and the next one's report tells them."""
    with Pool(1) as pool:
        pool.submit(refused_by_breaker, "killed", 10).result()
        pool.submit(_kill_self).exception()
    until(lambda: rejects(runtime, "breaker", "killed"))
    refused_by_breaker("killed", 1)
    until(lambda: told(runtime, "breaker", "killed") == 11)


def _kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_task_that_its_pools_breaker_refuses(runtime: Runtime) -> None:
    breaker = CircuitBreaker("pooled")
    breaker.trip()
    with Pool(1) as pool:
        with pytest.raises(CircuitOpen):
            pool.options(breaker=breaker).submit(int)
    until(lambda: told(runtime, "breaker", "pooled") == 1)


def test_a_guard_of_a_runtime_that_is_over_joins_no_other() -> None:
    """What is still looked after for its reports stands in nobody's way: the next runtime has another of that name."""
    with Runtime():
        refused_by_bulkhead("again", 3)
    with Runtime() as runtime:
        refused_by_bulkhead("marker", 3)
        until(lambda: told(runtime, "bulkhead", "marker") == 3)  # by then all that is looked after was looked at
        Bulkhead("again", 2, max_waiting=1).call(int)

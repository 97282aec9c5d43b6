"""What a breaker, a permit and a token cost a call when nothing is in their way, beside pybreaker and circuitbreaker.

One thread calls a function that returns its argument, plainly and with a guard around it, in loops of the same form;
the plain loop's time is taken off. The peers are in turn, the whole is repeated, and the figure is the lowest of all
repeats (`ns`), the cost without what else the machine does; `median_ns` and `spread_ns` say what it did. `shared`: the
guard is joined to a runtime, so it works on shared memory. `refused`: the call is not made, and raises. `trip`: the
time until a process that calls in a loop is refused after another has tripped its breaker. Not measured: contention,
and what the peers lack: their state is one process's own, and a breaker of theirs holds a lock while it decides.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bench._views import Pivot
from shmrt import Bulkhead, CircuitBreaker, CircuitOpen, Overloaded, Pool, RateLimit, Runtime, runtimes

SMOKE = {"calls": 200, "repeats": 2, "trips": 2}
FULL = {"calls": 20_000, "repeats": 40, "trips": 200}

VIEWS = (
    Pivot("Added to a call, ns", "ns", "impl", rows="what"),
    Pivot("Trip, seen by another process, µs", "p50_us", "impl", rows="what"),
)

Loop = Callable[[int], float]


def identity(value: int) -> int:
    return value


def loop_of(call: Callable[[int], Any]) -> Loop:
    def loop(count: int) -> float:
        begin = time.perf_counter()
        for number in range(count):
            call(number)
        return time.perf_counter() - begin

    return loop


def loop_of_method(call: Callable[..., Any]) -> Loop:
    """As `guard.call(fn, x)`; the plain call is taken off all the same."""

    def loop(count: int) -> float:
        begin = time.perf_counter()
        for number in range(count):
            call(identity, number)
        return time.perf_counter() - begin

    return loop


def loop_of_block(guard: Any) -> Loop:
    def loop(count: int) -> float:
        begin = time.perf_counter()
        for number in range(count):
            with guard:
                identity(number)
        return time.perf_counter() - begin

    return loop


def loop_of_refusals(call: Callable[..., Any], refusal: type[Exception]) -> Loop:
    def loop(count: int) -> float:
        begin = time.perf_counter()
        for number in range(count):
            try:
                call(identity, number)
            except refusal:
                continue
            raise AssertionError("it was not refused")
        return time.perf_counter() - begin

    return loop


def own(shared: bool) -> dict[tuple[str, str], Loop]:
    kind = "shmrt, shared" if shared else "shmrt"
    suffix = "-shared" if shared else "-own"
    breaker, opened = CircuitBreaker("bench" + suffix), CircuitBreaker("bench-open" + suffix, reset_timeout=3600)
    opened.trip()
    bulkhead, full = Bulkhead("bench" + suffix, 4), Bulkhead("bench-full" + suffix, 1)
    full.acquire()
    limit, empty = RateLimit("bench" + suffix, 1e9, 10**6), RateLimit("bench-empty" + suffix, 1e-6)
    empty.acquire()
    if {breaker.is_shared, bulkhead.is_shared, limit.is_shared} != {shared}:
        raise AssertionError("the guards are not where this measurement says")
    return {
        (kind, "breaker, decorator"): loop_of(breaker(identity)),
        (kind, "breaker, call"): loop_of_method(breaker.call),
        (kind, "breaker, with"): loop_of_block(breaker),
        (kind, "breaker, refused"): loop_of_refusals(opened.call, CircuitOpen),
        (kind, "permit, decorator"): loop_of(bulkhead(identity)),
        (kind, "permit, call"): loop_of_method(bulkhead.call),
        (kind, "permit, with"): loop_of_block(bulkhead),
        (kind, "permit, refused"): loop_of_refusals(full.call, Overloaded),
        (kind, "token, try_acquire"): loop_of(lambda _: limit.try_acquire()),
        (kind, "token, call"): loop_of_method(limit.call),
        (kind, "token, refused"): loop_of_refusals(empty.call, Overloaded),
    }


def peers() -> dict[tuple[str, str], Loop]:
    found: dict[tuple[str, str], Loop] = {}
    try:
        import pybreaker
    except ImportError:
        print("NOT MEASURED: pybreaker is not installed (pip install pybreaker)", file=sys.stderr)
    else:
        breaker, opened = pybreaker.CircuitBreaker(), pybreaker.CircuitBreaker(reset_timeout=3600)
        opened.open()
        found |= {
            ("pybreaker", "breaker, decorator"): loop_of(breaker(identity)),
            ("pybreaker", "breaker, call"): loop_of_method(breaker.call),
            ("pybreaker", "breaker, refused"): loop_of_refusals(opened.call, pybreaker.CircuitBreakerError),
        }
    try:
        import circuitbreaker
    except ImportError:
        print("NOT MEASURED: circuitbreaker is not installed (pip install circuitbreaker)", file=sys.stderr)
    else:
        other = circuitbreaker.CircuitBreaker(name="bench")
        found |= {
            ("circuitbreaker", "breaker, decorator"): loop_of(other(identity)),
            ("circuitbreaker", "breaker, call"): loop_of_method(other.call),
            ("circuitbreaker", "breaker, with"): loop_of_block(other),
        }
    import threading

    semaphore = threading.BoundedSemaphore(4)
    found[("threading.BoundedSemaphore", "permit, with")] = loop_of_block(semaphore)
    return found


def costs(calls: int, repeats: int, loops: dict[tuple[str, str], Loop]) -> Iterator[dict[str, Any]]:
    plain = loop_of(identity)
    taken: dict[tuple[str, str], list[float]] = {key: [] for key in loops}
    nothing = []
    for _ in range(repeats):
        nothing.append(plain(calls))
        for key, loop in loops.items():
            taken[key].append(loop(calls))
    least = min(nothing)
    for (impl, what), times in taken.items():
        nanoseconds = sorted((each - least) / calls * 1e9 for each in times)
        yield {
            "impl": impl,
            "what": what,
            "ns": round(nanoseconds[0]),
            "median_ns": round(statistics.median(nanoseconds)),
            "spread_ns": [round(nanoseconds[0]), round(nanoseconds[-1])],
        }


def trip_now(breaker: CircuitBreaker) -> int:
    breaker.trip()
    return time.monotonic_ns()


def call_until_refused(breaker: CircuitBreaker) -> int:
    call = breaker(identity)
    try:
        while True:
            call(1)
    except CircuitOpen:
        return time.monotonic_ns()


def see_trips(count: int) -> dict[str, Any]:
    breaker = CircuitBreaker("bench-trip")
    taken = []
    with Pool(2) as pool:
        for _ in range(count):
            breaker.reset()
            seen = pool.submit(call_until_refused, breaker)
            while breaker.stats()["counters"]["successes"] == 0:
                time.sleep(0.0001)
            tripped = pool.submit(trip_now, breaker).result()
            taken.append(max(seen.result() - tripped, 0) / 1000)
    taken.sort()
    return {
        "impl": "shmrt, shared",
        "what": "trip, seen by another process",
        "p50_us": round(statistics.median(taken), 1),
        "spread_us": [round(taken[0], 1), round(taken[-1], 1)],
    }


def run(calls: int, repeats: int, trips: int) -> Iterator[dict[str, Any]]:
    if runtimes._default is not None:  # that of a measurement before this one
        runtimes._default.stop()
    loops = own(False) | peers()
    yield from costs(calls, repeats, loops)
    with Runtime():
        yield from costs(calls, repeats, own(True))
        yield see_trips(trips)

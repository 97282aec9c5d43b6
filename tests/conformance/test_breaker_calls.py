"""The ways to put a breaker around something: what passes through it, and when a call has ended."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import pickle
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from guard_kit import Oops, attempt, fail

from shmrt import Bulkhead, BulkheadFull, CircuitBreaker, CircuitOpen, Pool, RateLimit, Runtime

NAMED = CircuitBreaker("of this module", failure_threshold=2)
NARROW = Bulkhead("narrow", 1)


@NAMED
def doubled(value: int, *, more: int = 0) -> int:
    "Twice the value."
    return 2 * value + more


@NAMED
async def slowly(value: int) -> int:
    await asyncio.sleep(0)
    return value


class Store:
    @NAMED
    def get(self, key: str) -> tuple[Store, str]:
        return self, key

    @staticmethod
    @NAMED
    def fixed(key: str) -> str:
        return key

    @classmethod
    @NAMED
    def made(cls, key: str) -> tuple[type, str]:
        return cls, key


def trying(**more: Any) -> tuple[CircuitBreaker, list[float]]:
    """A breaker that is half-open, and its clock."""
    now = [100.0]
    breaker = CircuitBreaker("trying", reset_timeout=1, clock=lambda: now[0], **more)
    breaker.trip()
    now[0] += 2
    return breaker, now


# ---- functions -----------------------------------------------------------------------------------------------------
def test_a_decorated_function_is_one() -> None:
    assert doubled(2, more=1) == 5 and doubled.__name__ == "doubled" and doubled.__doc__ == "Twice the value."
    assert str(inspect.signature(doubled)) == "(value: 'int', *, more: 'int' = 0) -> 'int'"
    assert doubled.guard is NAMED and callable(doubled.__wrapped__)
    assert inspect.iscoroutinefunction(slowly) and asyncio.run(slowly(3)) == 3
    with pytest.raises(TypeError):
        doubled()
    doubled(1)


def test_methods() -> None:
    store = Store()
    assert store.get("a") == (store, "a") and Store.get(store, "b") == (store, "b")
    assert Store.fixed("a") == store.fixed("a") == "a"
    assert Store.made("a") == store.made("a") == (Store, "a")
    for kind in (staticmethod, classmethod):
        for guard, word in ((NAMED, "breaker"), (NARROW, "bulkhead"), (RateLimit("any", 1), "rate limit")):
            with pytest.raises(TypeError, match=f"a {word} goes below @{kind.__name__}"):
                guard(kind(doubled))


def test_pickled_by_name_and_by_value() -> None:
    assert pickle.loads(pickle.dumps(doubled)) is doubled
    assert pickle.loads(pickle.dumps(slowly)) is slowly
    other = NAMED(functools.partial(max, 3))  # no name leads to it
    again = pickle.loads(pickle.dumps(other))
    assert again(2, 7) == 7 and again.guard.name == NAMED.name and again.guard.settings_text == NAMED.settings_text
    store = Store()
    assert pickle.loads(pickle.dumps(Store.fixed)) is Store.fixed
    assert pickle.loads(pickle.dumps(store.get))("a")[1] == "a"


def test_pickled_to_workers() -> None:
    closed_over = CircuitBreaker("closure", failure_threshold=1)

    @closed_over
    def divide(by: int) -> float:
        return 1 / by

    async def awaited(by: int) -> float:
        return divide(by)

    with Runtime(), Pool(1) as pool:
        assert pool.submit(doubled, 4).result() == 8
        assert pool.submit(Store().get, "a").result()[1] == "a"
        assert isinstance(pool.submit(divide, 0).exception(), ZeroDivisionError)
        assert isinstance(pool.submit(divide, 1).exception(), CircuitOpen)
        assert closed_over.state == "open" and NAMED.state == "closed"
        refusal = pool.submit(divide, 1).exception()
        assert 0 < refusal.retry_after <= 60  # type: ignore[union-attr]


def test_what_is_raised_passes_as_it_is() -> None:
    breaker = CircuitBreaker("errors", exclude=[KeyError, lambda error: isinstance(error, Oops)])

    def inner() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise Oops("second") from error

    def with_block() -> None:
        with breaker:
            inner()

    for way in (lambda: breaker.call(inner), breaker(inner), with_block):
        try:
            raise RuntimeError("outside")
        except RuntimeError as outside:
            with pytest.raises(Oops) as caught:
                way()
            error = caught.value
            assert isinstance(error.__cause__, KeyError) and isinstance(error.__cause__.__context__, RuntimeError)
            assert error.__cause__.__context__ is outside
        names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert names[-1] == "inner" and names.count("inner") == 1
        count = sys.getrefcount(error)
        assert count < 8  # nobody keeps it
    assert breaker.stats()["counters"]["ignored"] == 3


def test_a_refusal_has_the_context_it_was_raised_in() -> None:
    breaker = CircuitBreaker("errors")
    breaker.force_open()
    try:
        fail()
    except Oops as outside:
        with pytest.raises(CircuitOpen, match="forced open: it stays so until reset") as caught:
            breaker.call(int)
        assert caught.value.__context__ is outside and caught.value.retry_after is None


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
def test_what_is_no_exception_gives_a_trial_back(ending: type[BaseException]) -> None:
    breaker, _ = trying()

    def end() -> None:
        raise ending

    with pytest.raises(ending):
        breaker.call(end)
    with pytest.raises(ending), breaker:
        end()
    assert breaker.state == "half_open" and breaker.stats()["trials"] == 0
    assert breaker.call(int) == 0 and breaker.state == "closed"


# ---- callbacks that fail -------------------------------------------------------------------------------------------
def test_a_callback_that_raises_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_value))

    def broken(*_: Any) -> bool:
        raise LookupError("a broken callback")

    breaker = CircuitBreaker("callbacks", failure_threshold=1, on_state_change=broken)
    assert attempt(breaker) == "failed" and breaker.state == "open"
    breaker.reset()
    breaker = CircuitBreaker("callbacks", failure_threshold=1, exclude=broken)
    assert attempt(breaker) == "failed" and breaker.state == "open"
    assert [str(error) for error in told] == ["a broken callback"] * 3
    breaker = CircuitBreaker("callbacks", failure_threshold=1, failure_if=broken)
    with pytest.raises(LookupError):
        breaker.call(int)
    assert breaker.state == "open" and len(told) == 3


def test_an_interrupt_inside_a_callback_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: None)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    breaker = CircuitBreaker("callbacks", failure_threshold=1, on_state_change=interrupted)
    with pytest.raises(KeyboardInterrupt):
        breaker.trip()
        for _ in range(1000):
            pass
    assert breaker.state == "open"


def test_a_callback_may_use_the_breaker() -> None:
    seen = []

    def again(breaker: CircuitBreaker, old: str, new: str) -> None:
        seen.append((old, new, breaker.state))
        if new == "open":
            breaker.reset()

    breaker = CircuitBreaker("callbacks", failure_threshold=1, on_state_change=again)
    assert attempt(breaker) == "failed" and breaker.state == "closed"
    assert seen == [("closed", "open", "open"), ("open", "closed", "closed")]


# ---- what runs later -----------------------------------------------------------------------------------------------
def test_a_coroutine_that_is_never_awaited_gives_its_trial_back() -> None:
    breaker, _ = trying()
    made = breaker.call(slowly.__wrapped__, 1)
    assert breaker.stats()["trials"] == 1 and attempt(breaker) == "refused"
    with pytest.warns(RuntimeWarning, match="never awaited"):
        del made
        gc.collect()
    assert breaker.stats()["trials"] == 0
    assert asyncio.run(breaker.call(slowly.__wrapped__, 1)) == 1 and breaker.state == "closed"


def test_a_generator_is_judged_by_its_end() -> None:
    breaker, _ = trying()

    @breaker
    def count(to: int) -> Iterator[int]:
        yield from range(to)
        if to > 2:
            fail()

    early = count(5)
    assert next(early) == 0 and breaker.stats()["trials"] == 1
    early.close()
    dropped = count(5)
    del dropped
    gc.collect()
    assert breaker.state == "half_open" and breaker.stats()["trials"] == 0
    assert list(count(2)) == [0, 1] and breaker.state == "closed"
    bad = count(3)
    assert [next(bad), next(bad), next(bad)] == [0, 1, 2] and breaker.stats()["failures_in_row"] == 0
    with pytest.raises(Oops):
        next(bad)
    assert breaker.stats()["failures_in_row"] == 1


def test_a_generator_takes_what_is_sent_and_thrown() -> None:
    breaker = CircuitBreaker("generators")

    @breaker
    def echo() -> Any:
        got = None
        while True:
            try:
                got = yield got
            except LookupError as error:
                got = str(error)
            if got == "end":
                return "ended"

    talk = echo()
    assert next(talk) is None and talk.send(1) == 1 and talk.throw(LookupError("x")) == "x"
    with pytest.raises(StopIteration) as end:
        talk.send("end")
    assert end.value.value == "ended" and breaker.stats()["counters"]["successes"] == 1


def test_an_async_generator_is_judged_by_its_end() -> None:
    breaker, _ = trying()

    @breaker
    async def count(to: int) -> AsyncIterator[int]:
        for number in range(to):
            await asyncio.sleep(0)
            yield number
        if to > 2:
            fail()

    async def use() -> None:
        early = count(5)
        assert await anext(early) == 0 and breaker.stats()["trials"] == 1
        await early.aclose()  # type: ignore[attr-defined]
        assert breaker.state == "half_open" and breaker.stats()["trials"] == 0
        assert [number async for number in count(2)] == [0, 1] and breaker.state == "closed"
        with pytest.raises(Oops):
            [number async for number in count(3)]
        assert breaker.stats()["failures_in_row"] == 1

    asyncio.run(use())


def test_tasks_interleave_their_blocks() -> None:
    """Two blocks of one breaker in one thread, left in the order in which they were entered: each has its own trial."""
    breaker, now = trying(half_open_max=2, success_threshold=2, slow_call=0.5)

    async def inside(enter: float, leave: float, order: list[str], name: str) -> None:
        async with breaker:
            order.append(f"{name} in")
            while now[0] < leave:
                await asyncio.sleep(0)
            order.append(f"{name} out")

    async def use() -> list[str]:
        order: list[str] = []
        first = asyncio.create_task(inside(0, 102.3, order, "first"))
        await asyncio.sleep(0)
        now[0] += 0.2
        second = asyncio.create_task(inside(0, 102.6, order, "second"))
        await asyncio.sleep(0)
        while len(order) < 2:
            await asyncio.sleep(0)
        for _ in range(6):
            now[0] += 0.1
            for _ in range(3):
                await asyncio.sleep(0)
        await asyncio.gather(first, second)
        return order

    assert asyncio.run(use()) == ["first in", "second in", "first out", "second out"]
    assert breaker.state == "closed" and breaker.stats()["counters"]["slow"] == 0  # 0.3 s, 0.4 s


def test_blocks_may_be_nested_and_deep() -> None:
    breaker, other = CircuitBreaker("outer"), CircuitBreaker("inner")
    with breaker, other, breaker, breaker:
        pass

    def deep(levels: int) -> None:
        if levels:
            with breaker:
                deep(levels - 1)
        else:
            fail()

    with pytest.raises(Oops):
        deep(150)
    assert breaker.stats()["counters"]["failures"] == 150 and breaker.state == "open"
    assert other.stats()["counters"]["successes"] == 1


def test_threads_share_one() -> None:
    breaker = CircuitBreaker("threads", failure_threshold=10_000_000)

    def work() -> None:
        for turn in range(2000):
            attempt(breaker, error=turn % 2 == 0)
            with breaker:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counters = breaker.stats()["counters"]
    assert (counters["successes"], counters["failures"], counters["late"]) == (8 * 3000, 8 * 1000, 0)


def test_a_cancelled_task_says_nothing() -> None:
    breaker, _ = trying()

    @breaker
    async def hang() -> None:
        await asyncio.Event().wait()

    async def use() -> None:
        task = asyncio.create_task(hang())
        await asyncio.sleep(0)
        assert breaker.stats()["trials"] == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(use())
    assert breaker.state == "half_open" and breaker.stats()["trials"] == 0


# ---- the same around a bulkhead ------------------------------------------------------------------------------------
def test_a_bulkhead_holds_its_permit_until_what_was_called_has_ended() -> None:
    @NARROW
    def count(to: int) -> Iterator[int]:
        yield from range(to)

    @NARROW
    async def wait() -> int:
        await asyncio.sleep(0)
        return NARROW.in_use

    numbers = count(2)
    assert NARROW.in_use == 1
    with pytest.raises(BulkheadFull):
        count(2)
    assert list(numbers) == [0, 1] and NARROW.in_use == 0
    dropped = count(2)
    del dropped
    gc.collect()
    assert NARROW.in_use == 0
    assert asyncio.run(wait()) == 1 and asyncio.run(NARROW.call(wait.__wrapped__)) == 1 and NARROW.in_use == 0
    with pytest.raises(Oops):
        NARROW.call(fail)
    assert NARROW.in_use == 0

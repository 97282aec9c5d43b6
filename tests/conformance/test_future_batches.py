"""What is completed together, waiters and event loops hear of together; nobody waits for what others are told."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import sys
import threading
from concurrent.futures import _base
from typing import Any

import pytest
from future_kit import LIMIT_S, in_thread, join

from shmrt import _native, chained


@pytest.fixture
def source() -> Any:
    return _native.ManualFutureSource()


class CountedEvent(threading.Event):
    def __init__(self) -> None:
        super().__init__()
        self.sets = 0

    def set(self) -> None:
        self.sets += 1
        super().set()


class Unraisable:
    """Collects what cannot be raised."""

    def __enter__(self) -> list[Any]:
        self.before, self.caught = sys.unraisablehook, []  # type: ignore[var-annotated]
        sys.unraisablehook = self.caught.append
        return self.caught

    def __exit__(self, *_: object) -> None:
        sys.unraisablehook = self.before


def waiter_of(*futures: Any) -> Any:
    waiter: Any = _base._AsCompletedWaiter()  # type: ignore[attr-defined]
    waiter.event = CountedEvent()
    for future in futures:
        future._waiters.append(waiter)
    return waiter


def test_as_completed_is_woken_once_for_many(source: Any) -> None:
    futures = [source.new() for _ in range(100)]
    waiter = waiter_of(*futures)
    for token in range(100):
        source.post(token, ("value", "exception", "cancelled")[token % 3], KeyError(token))
    assert source.dispatch() == 100
    assert waiter.finished_futures == futures and waiter.event.sets == 1


def test_more_than_fit_one_batch(source: Any) -> None:
    futures = [source.new() for _ in range(1000)]
    waiter = waiter_of(*futures)
    for token in range(1000):
        source.post(token, "value", token)
    source.dispatch()
    assert waiter.finished_futures == futures and 1 <= waiter.event.sets < 10


def test_every_waiter_hears_of_its_own(source: Any) -> None:
    futures = [source.new() for _ in range(30)]
    odd, even, every = waiter_of(*futures[1::2]), waiter_of(*futures[::2]), waiter_of(*futures)
    counted: Any = _base._AllCompletedWaiter(30, stop_on_exception=False)  # type: ignore[attr-defined]
    for token, future in enumerate(futures):
        future._waiters.append(counted)
        source.post(token, "value", token)
    source.dispatch()
    assert odd.finished_futures == futures[1::2] and even.finished_futures == futures[::2]
    assert every.finished_futures == futures and counted.event.is_set()


def test_a_callback_finds_the_waiters_of_earlier_futures_told(source: Any) -> None:
    first, second = source.new(), source.new()
    waiter = waiter_of(first)
    seen: list[bool] = []
    second.add_done_callback(lambda _: seen.append(waiter.event.wait(LIMIT_S)))
    source.post(0, "value", 1)
    source.post(1, "value", 2)
    join(in_thread(source.dispatch))
    assert seen == [True]


def test_a_held_condition_does_not_hold_up_what_was_complete_before(source: Any) -> None:
    first, second = source.new(), source.new()
    waiter = waiter_of(first)
    with second._condition:
        source.post(0, "value", 1)
        source.post(1, "value", 2)
        thread = in_thread(source.dispatch)
        assert waiter.event.wait(LIMIT_S) and not second.done()
    join(thread)
    assert second.result() == 2


def test_a_broken_waiter_harms_nobody(source: Any) -> None:
    futures = [source.new() for _ in range(3)]
    broken = waiter_of(futures[0])
    del broken.lock
    good = waiter_of(*futures)
    for token in range(3):
        source.post(token, "value", token)
    with Unraisable() as caught:
        source.dispatch()
    assert len(caught) == 1 and good.finished_futures == futures


# ---- event loops ----


def test_this_asyncio_is_known() -> None:
    assert chained.CODE is not None, "asyncio chains futures in another way: see shmrt/chained.py"


class CountingLoop(asyncio.SelectorEventLoop):
    calls = 0

    def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().call_soon_threadsafe(*args, **kwargs)


def run(main: Any) -> Any:
    loop = CountingLoop()
    try:
        return loop.run_until_complete(main(loop))
    finally:
        loop.close()


def test_a_loop_is_woken_once_for_many(source: Any) -> None:
    async def main(loop: CountingLoop) -> list[Any]:
        futures = [asyncio.wrap_future(source.new()) for _ in range(200)]
        for token in range(200):
            source.post(token, "value", token)
        before = loop.calls
        thread = in_thread(source.dispatch)
        found = await asyncio.gather(*futures)
        join(thread)
        assert loop.calls - before == 1
        return found

    assert run(main) == list(range(200))


def test_what_is_done_already_needs_no_wake(source: Any) -> None:
    async def main(loop: CountingLoop) -> None:
        futures = [source.new() for _ in range(3)]
        for token, kind in enumerate(("value", "exception", "cancelled")):
            source.complete(token, kind, KeyError(token))
        wrapped = [asyncio.wrap_future(future) for future in futures]
        assert not any(future.done() for future in wrapped)  # in the next round: nobody is starved by such ones
        first, second, third = await asyncio.gather(*wrapped, return_exceptions=True)
        assert isinstance(first, KeyError) and isinstance(second, KeyError) and second.args == (1,)
        assert isinstance(third, asyncio.CancelledError) and loop.calls == 0

    run(main)


def test_every_outcome_comes_through(source: Any) -> None:
    async def main(loop: CountingLoop) -> None:
        sources = [source.new() for _ in range(6)]
        wrapped = [asyncio.wrap_future(future) for future in sources]
        order: list[str] = []
        sources[0].add_done_callback(lambda _: order.append("callback"))
        wrapped[3].cancel()
        await asyncio.sleep(0)  # the cancellation reaches the source
        source.post(0, "value", None)
        source.post(1, "exception", KeyError("k"))
        source.post(2, "cancelled")
        source.post(4, "object", cf.TimeoutError())
        source.post(5, "value", [1])
        join(in_thread(source.dispatch))
        found = await asyncio.gather(*wrapped, return_exceptions=True)
        assert found[0] is None and isinstance(found[1], KeyError) and found[5] == [1] and order == ["callback"]
        assert isinstance(found[2], asyncio.CancelledError) and isinstance(found[3], asyncio.CancelledError)
        assert isinstance(found[4], asyncio.TimeoutError)

    run(main)


def test_who_is_cancelled_between_outcome_and_loop_stays_so(source: Any) -> None:
    async def main(loop: CountingLoop) -> None:
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: told.append(context))
        first, second = (asyncio.wrap_future(source.new()) for _ in range(2))
        source.post(0, "value", 1)
        source.post(1, "value", 2)
        join(in_thread(source.dispatch))  # the loop has not run meanwhile
        first.cancel()
        assert await second == 2 and first.cancelled() and told == []

    run(main)


def test_a_failure_of_one_does_not_keep_the_others_waiting(source: Any) -> None:
    async def main(loop: CountingLoop) -> None:
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: told.append(context))
        bad, good = (asyncio.wrap_future(source.new()) for _ in range(2))
        bad.set_result("somebody else's")  # type: ignore[arg-type]
        source.post(0, "exception", KeyError())  # asyncio's function finds it done, and asserts
        source.post(1, "value", 2)
        join(in_thread(source.dispatch))
        assert await good == 2
        assert len(told) == 1 and isinstance(told[0]["exception"], (AssertionError, asyncio.InvalidStateError))

    run(main)


def test_two_loops_hear_of_their_own(source: Any) -> None:
    ready = threading.Barrier(3)
    found: dict[int, Any] = {}

    def serve(number: int) -> None:
        async def main(loop: CountingLoop) -> None:
            futures = [asyncio.wrap_future(source.new()) for _ in range(50)]
            ready.wait(LIMIT_S)
            found[number] = await asyncio.gather(*futures)

        run(main)

    threads = [in_thread(lambda n=number: serve(n)) for number in range(2)]  # type: ignore[misc]
    ready.wait(LIMIT_S)
    for token in range(100):
        source.post(token, "value", token)
    source.dispatch()
    join(*threads)
    assert sorted(found[0] + found[1]) == list(range(100)) and len(found[0]) == 50


def test_a_closed_loop_is_left_alone(source: Any) -> None:
    loop = asyncio.new_event_loop()

    async def main() -> Any:
        return asyncio.wrap_future(source.new())

    wrapped = loop.run_until_complete(main())
    loop.close()
    source.post(0, "value", 1)
    with Unraisable() as caught:
        assert source.dispatch() == 1
    assert caught == [] and not wrapped.done()


def test_completed_by_another_thread_than_the_dispatcher(source: Any) -> None:
    async def main(loop: CountingLoop) -> Any:
        wrapped = asyncio.wrap_future(source.new())
        join(in_thread(lambda: source.complete(0, "value", 7)))
        return await wrapped

    assert run(main) == 7

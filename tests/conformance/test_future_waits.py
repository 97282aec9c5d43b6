"""Whoever waits for a Future gets its outcome: wait, as_completed, asyncio, executors, and races of every kind.

The races are provoked with an interpreter that switches threads all the time.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import _base
from typing import Any

import pytest
from future_kit import LIMIT_S, Future, in_thread, join, switch_often

from shmrt import _native


@pytest.fixture
def source() -> Any:
    return _native.ManualFutureSource()


@pytest.fixture
def short_switches() -> Iterator[None]:
    with switch_often():
        yield


# ---- wait, as_completed, asyncio ----


def test_wait_finds_what_was_complete_before(source: Any) -> None:
    futures = [source.new() for _ in range(20)]
    for token in range(20):
        source.post(token, "value", token)
    done, pending = cf.wait(futures, timeout=LIMIT_S)
    assert len(done) == 20 and not pending
    assert source.calls == []  # found by asking: nobody needed the dispatcher


@pytest.mark.parametrize("when", [cf.ALL_COMPLETED, cf.FIRST_COMPLETED, cf.FIRST_EXCEPTION])
def test_wait_is_ended_by_the_dispatcher(source: Any, when: str) -> None:
    futures = [source.new() for _ in range(10)]
    started = threading.Event()

    def dispatch() -> None:
        started.wait(LIMIT_S)
        while sum(name == "watch" for name, _ in source.calls) < 10:
            os.sched_yield()
        for token in range(10):
            source.post(token, "exception" if token == 5 else "value", KeyError(token))
        source.dispatch()

    thread = in_thread(dispatch)
    started.set()
    done, _ = cf.wait(futures, timeout=LIMIT_S, return_when=when)
    join(thread)
    assert len(done) >= {cf.ALL_COMPLETED: 10, cf.FIRST_COMPLETED: 1, cf.FIRST_EXCEPTION: 1}[when]
    assert all(f.done() for f in futures)
    assert sorted(token for name, token in source.calls if name == "watch") == list(range(10))  # once each


def test_as_completed_yields_all_kinds(source: Any) -> None:
    futures = [source.new() for _ in range(30)]

    def dispatch() -> None:
        for token in range(30):
            source.complete(token, ("value", "exception", "cancelled")[token % 3], ValueError(token))

    thread = in_thread(dispatch)
    assert set(cf.as_completed(futures, timeout=LIMIT_S)) == set(futures)
    join(thread)
    assert [f.cancelled() for f in futures] == [t % 3 == 2 for t in range(30)]


def test_cancel_ends_wait_without_an_executor(source: Any) -> None:
    future = source.new()
    thread = in_thread(future.cancel)  # before, while or after wait looks: each must end it
    done, _ = cf.wait([future], timeout=LIMIT_S)
    join(thread)
    assert done == {future} and future._state == _base.CANCELLED_AND_NOTIFIED


def test_await_value_exception_and_cancel(source: Any) -> None:
    async def main() -> None:
        first, second, third, fourth = (source.new() for _ in range(4))

        async def get(future: Any) -> Any:
            return await future

        task = asyncio.ensure_future(get(first))
        await asyncio.sleep(0)
        in_thread(lambda: source.complete(0, "value", "v"))
        assert await asyncio.wait_for(task, LIMIT_S) == "v"
        source.complete(1, "exception", LookupError("no"))
        with pytest.raises(LookupError, match="no"):
            await second
        task = asyncio.ensure_future(get(third))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert third.cancelled() and ("cancel", 2) in source.calls
        wrapped = asyncio.wrap_future(fourth)
        source.complete(3, "cancelled")
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())


def test_await_outside_of_a_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        Future().__await__()


def test_executors_work_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "Future", Future)
    with cf.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(pow, i, 2) for i in range(200)]
        assert type(futures[0]) is Future
        assert [f.result(LIMIT_S) for f in futures] == [i * i for i in range(200)]
        assert list(pool.map(str, range(50))) == [str(i) for i in range(50)]
        assert len(cf.wait([pool.submit(int) for _ in range(50)], LIMIT_S).done) == 50


# ---- races ----


def test_a_callback_added_while_completing_runs_once(source: Any, short_switches: None) -> None:
    for token in range(1500):
        future = source.new()
        seen: list[object] = []
        thread = in_thread(lambda t=token: source.complete(t, "value", t))  # type: ignore[misc]
        future.add_done_callback(seen.append)
        join(thread)
        assert seen == [future] and future.result() == token


def test_cancel_against_completion_has_one_winner(source: Any, short_switches: None) -> None:
    for token in range(1000):
        future = source.new()
        seen: list[object] = []
        future.add_done_callback(seen.append)
        future._condition  # noqa: B018
        thread = in_thread(lambda t=token: source.complete(t, "value", t))  # type: ignore[misc]
        cancelled = future.cancel()
        join(thread)
        assert future.done() and future.cancelled() == cancelled and seen == [future]
        if not cancelled:
            future.result()
    assert source.payloads == 0


def test_cancel_against_running_has_one_winner(short_switches: None) -> None:
    for _ in range(1000):
        future = Future()
        started: list[bool] = []
        future._condition  # noqa: B018
        thread = in_thread(lambda f=future, s=started: s.append(f.set_running_or_notify_cancel()))  # type: ignore[misc]
        cancelled = future.cancel()
        join(thread)
        assert started == [not cancelled]


def test_waiters_of_all_kinds_against_random_completion(source: Any, short_switches: None) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    base = 0
    for _ in range(60):
        futures = [source.new() for _ in range(12)]
        tokens = list(range(base, base + 12))
        base += 12
        dice.shuffle(tokens)
        kinds = [dice.choice(["value", "exception", "cancelled", "object"]) for _ in tokens]

        def finish(tokens: list[int] = tokens, kinds: list[str] = kinds) -> None:
            for token, kind in zip(tokens, kinds, strict=True):
                source.complete(token, kind, ValueError(token))

        thread = in_thread(finish)
        way = dice.randrange(3)
        if way == 0:
            assert len(cf.wait(futures, LIMIT_S).done) == 12
        elif way == 1:
            assert len(list(cf.as_completed(futures, LIMIT_S))) == 12
        else:
            for future in futures:
                try:
                    future.result(LIMIT_S)
                except (ValueError, cf.CancelledError):
                    pass
        join(thread)
        assert all(f.done() for f in futures)

"""A Future of an origin: watched only when somebody must be told, asked when looked at, decoded once by who asks.

The origin here is a `ManualFutureSource`, which stands where the pool's hub stands.
"""

from __future__ import annotations

import concurrent.futures as cf
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from future_kit import LIMIT_S, Collected, Future, in_thread, join, switch_often

from shmrt import _native


@pytest.fixture
def source() -> Any:
    return _native.ManualFutureSource()


@pytest.fixture
def short_switches() -> Iterator[None]:
    with switch_often():
        yield


# ---- origin ----


def test_a_bare_future_is_completed_without_being_watched(source: Any) -> None:
    future = source.new()
    source.post(0, "value", "x", worker="w-1", attempts=3)
    assert source.calls == []
    assert future.result(LIMIT_S) == "x"
    assert (future.worker, future.attempts, source.calls, source.payloads) == ("w-1", 3, [], 0)


@pytest.mark.parametrize("ask", ["done", "cancelled", "running", "_state", "__repr__", "worker", "attempts"])
def test_looking_delivers_what_arrived(ask: str, source: Any) -> None:
    future = source.new()
    source.post(0, "value", 1)
    attribute = getattr(future, ask)
    if callable(attribute):
        attribute()
    assert source.polls >= 1
    assert _native.future_class() is type(future) and future.done() and source.calls in ([], [("running", 0)])


def test_asking_for_parts_watches_once(source: Any) -> None:
    for name in ("_condition", "_waiters", "_done_callbacks"):
        future = source.new()
        token = len(source.calls)
        for _ in range(3):
            getattr(future, name)
            future.add_done_callback(lambda _: None)
        assert source.calls[token:] == [("watch", token)]
    done = source.new()
    source.complete(3, "value", 1)
    done._condition  # noqa: B018
    assert len(source.calls) == 3


def test_only_the_dispatcher_completes_a_watched_future(source: Any) -> None:
    future = source.new()
    threads: list[object] = []
    future.add_done_callback(lambda _: threads.append(threading.current_thread()))
    source.post(0, "value", 1)
    assert not future.done()
    with pytest.raises(cf.TimeoutError):
        future.result(0)
    dispatcher = in_thread(source.dispatch)
    join(dispatcher)
    assert threads == [dispatcher] and future.result(0) == 1


def test_result_inside_of_the_condition_lets_the_dispatcher_in(source: Any) -> None:
    future = source.new()
    thread = threading.Thread(target=lambda: source.complete(0, "value", 4), daemon=True)
    with future._condition:
        thread.start()
        assert future.result(LIMIT_S) == 4
    join(thread)


def test_cancel_asks_the_origin(source: Any) -> None:
    first, second = source.new(), source.new()
    seen: list[object] = []
    first.add_done_callback(seen.append)
    assert first.cancel() is True and first.cancelled() and seen == [first]
    assert source.complete(0, "value", Collected()) is True  # a late result is dropped without a word
    assert source.payloads == 0 and first.cancelled() and seen == [first]
    source.accepts_cancel = False
    assert second.cancel() is False and not second.done()
    source.complete(1, "value", 2)
    assert second.cancel() is False and second.result() == 2
    assert [call for call in source.calls if call[0] == "cancel"] == [("cancel", 0), ("cancel", 1)]


def test_running_asks_the_origin(source: Any) -> None:
    future = source.new()
    assert not future.running()
    source.is_running = True
    assert future.running()
    source.complete(0, "value")
    assert not future.running()


def test_kill(source: Any) -> None:
    future = source.new()
    assert future.kill() is True and ("kill", 0) in source.calls
    source.complete(0, "cancelled")
    assert future.kill() is False
    with pytest.raises(cf.CancelledError):
        future.result()
    by_hand = Future()
    assert by_hand.kill() is True and by_hand.cancelled() and by_hand.kill() is False


def test_completion_with_objects(source: Any) -> None:
    value, failure = source.new(), source.new()
    source.complete(0, "object", {"a": 1})
    source.complete(1, "object", KeyError("k"))
    assert value.result() == {"a": 1} and source.decodes == 0
    with pytest.raises(KeyError):
        failure.result()


# ---- decoding ----


def test_decoded_once_and_by_the_thread_that_asks(source: Any) -> None:
    threads: list[int] = []

    def decode(payload: object) -> object:
        threads.append(threading.get_ident())
        return [payload]

    source.decoder = decode
    future = source.new()
    join(in_thread(lambda: source.complete(0, "value", 1)))
    assert threads == [] and source.payloads == 1
    assert future.result() is future.result() and future._result is future.result()
    assert threads == [threading.get_ident()] and source.payloads == 0


def test_a_failing_decode_is_the_futures_exception(source: Any) -> None:
    def refuse(_: object) -> None:
        raise ArithmeticError("bad bytes")

    source.decoder = refuse
    future = source.new()
    source.complete(0, "value", 1)
    assert isinstance(future.exception(), ArithmeticError) and future.exception() is future.exception()
    with pytest.raises(ArithmeticError, match="bad bytes"):
        future.result()
    assert source.decodes == 1 and source.payloads == 0


def test_an_interrupted_decode_is_raised_where_it_happened(source: Any) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    source.decoder = interrupt
    future = source.new()
    source.complete(0, "value", 1)
    with pytest.raises(KeyboardInterrupt):
        future.exception()
    assert source.payloads == 0


def test_threads_that_race_for_a_decode_share_one(source: Any, short_switches: None) -> None:
    source.decoder = lambda payload: [sum(range(200)), payload]
    for round in range(150):
        future = source.new()
        source.complete(round, "value", round)
        barrier = threading.Barrier(4)
        got: list[object] = []
        threads = [in_thread(lambda b=barrier, f=future, g=got: (b.wait(), g.append(f.result()))) for _ in range(4)]  # type: ignore[misc]
        join(*threads)
        assert len(got) == 4 and all(item is got[0] for item in got)
    assert source.decodes == 150 and source.payloads == 0


def test_a_decode_that_blocks_lets_others_wait_and_itself_fail(source: Any) -> None:
    entered, leave = threading.Event(), threading.Event()
    own: list[object] = []

    def decode(payload: object) -> object:
        entered.set()
        leave.wait(LIMIT_S)
        try:
            future.result()
        except RuntimeError as failure:
            own.append(str(failure))
        return payload

    source.decoder = decode
    future = source.new()
    source.complete(0, "value", "late")
    got: list[object] = []
    first = in_thread(lambda: got.append(future.result()))
    assert entered.wait(LIMIT_S)
    second = in_thread(lambda: got.append(future.result()))
    leave.set()
    join(first, second)
    assert got == ["late", "late"] and source.decodes == 1
    assert len(own) == 1 and "decodes this very result" in str(own[0])

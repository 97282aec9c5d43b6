"""A Future costs what a bare one should: it is small, collected with its cycles, and leaves nothing behind."""

from __future__ import annotations

import concurrent.futures as cf
import gc
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import _base
from typing import Any

import pytest
from future_kit import Collected, Future

from shmrt import _native


@pytest.fixture
def source() -> Any:
    return _native.ManualFutureSource()


def test_a_bare_future_is_off_the_collectors_list_until_it_could_close_a_cycle(source: Any) -> None:
    assert not gc.is_tracked(Future()) and not gc.is_tracked(source.new())
    plain = Future()
    plain.set_result("text")
    assert not gc.is_tracked(plain)
    changes: list[Callable[[Any], object]] = [
        lambda f: f._condition,
        lambda f: f._waiters,
        lambda f: f.add_done_callback(print),
        lambda f: setattr(f, "mine", 1),
        lambda f: setattr(f, "_mine", 1),
        lambda f: f.__dict__,
        lambda f: f.set_result([]),
        lambda f: f.set_result({}),
        lambda f: setattr(f, "_result", []),
    ]
    for change in changes:
        future = Future()
        change(future)
        assert gc.is_tracked(future)


@pytest.mark.parametrize("way", ["attribute", "dict", "result", "late", "callback", "waiter", "payload", "exception"])
def test_cycles_are_collected(way: str, source: Any) -> None:
    future = source.new()
    marker = Collected()
    dead = weakref.ref(marker)
    if way == "attribute":
        future.me = future, marker
    elif way == "dict":
        future.__dict__["me"] = future, marker
    elif way == "result":
        future.set_result([future, marker])
    elif way == "late":
        box: dict[str, object] = {}  # not on the list yet when it becomes the result
        future.set_result(box)
        box["me"] = future, marker
        del box
    elif way == "callback":
        future.add_done_callback(lambda _, keep=(future, marker): None)
    elif way == "waiter":
        future._waiters.append((future, marker))
    elif way == "payload":
        source.decoder = lambda payload, keep=(future, marker): [payload, keep]
        source.complete(0, "value", 1)
        future.result()
        source.decoder = None
    else:
        failure = ValueError(future, marker)
        future.set_exception(failure)
        del failure
    if way != "payload":
        source.forget(0)
    alive = weakref.ref(future)
    del future, marker
    gc.collect()
    assert dead() is None and alive() is None


def test_dropping_a_future_drops_its_payload(source: Any) -> None:
    payload = Collected()
    dead = weakref.ref(payload)
    future = source.new()
    source.complete(0, "value", payload)
    del payload
    assert dead() is not None and source.payloads == 1
    del future
    assert dead() is None and source.payloads == 0


def test_nothing_stays_behind(source: Any) -> None:
    def once() -> None:
        future = source.new()
        future.add_done_callback(lambda _: None)
        token = once.token  # type: ignore[attr-defined]
        once.token += 1  # type: ignore[attr-defined]
        with pytest.raises(cf.TimeoutError):
            future.result(0)
        source.complete(token, "value", [token], worker="w" * 40)
        future.result()
        plain = Future()
        with plain._condition:
            plain._waiters.append(_base._FirstCompletedWaiter())
        plain.set_exception(ValueError())
        with pytest.raises(ValueError):
            plain.result()
        Future().cancel()
        repr(plain)
        source.calls.clear()

    once.token = 0  # type: ignore[attr-defined]
    rounds = 4000
    for _ in range(200):
        once()
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            once()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(gc.get_objects()) - objects < 100
    assert grown < rounds * 16  # the interpreter's free lists fill up once; a leak would be an object each time


def test_a_pending_future_is_small(source: Any) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        futures = [Future() for _ in range(5000)]
        each = (tracemalloc.get_traced_memory()[0] - before) / len(futures)
    finally:
        tracemalloc.stop()
    assert each < 256

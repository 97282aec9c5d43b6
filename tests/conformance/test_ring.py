"""What a Ring does in one process: messages, batches, bounds, timeouts, signals, closing, policies and counts.

Leases are in test_ring_leases.py, several processes in test_ring_processes.py, memory in test_ring_memory.py, and names
in test_ring_names.py.
"""

from __future__ import annotations

import gc
import math
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from ring_kit import PATIENCE, Fragile

from shmrt import EndOfRing, Overloaded, Ring, RingClosed, RingSpec


def test_first_in_first_out() -> None:
    ring = Ring.create(RingSpec(slots=3))
    for lap in range(5):
        for i in range(3):
            ring.put((lap, i))
        assert ring.qsize() == 3
        assert [ring.get() for _ in range(3)] == [(lap, i) for i in range(3)]
    assert ring.qsize() == 0 and ring.capacity == 3


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("slot_bytes", [16, 33, 512, 5000])
def test_any_geometry_takes_any_message(slots: int, slot_bytes: int) -> None:
    ring = Ring.create(RingSpec(slots=slots, slot_bytes=slot_bytes))
    big = [None, "x" * 100, b"y" * 10_000, list(range(3000)), {"a": np.arange(2000)}, [b"z" * 3000] * 1]
    for obj in [*big, [np.full(1000, i) for i in range(50)]]:
        ring.put(obj)
        got = ring.get(0)
        assert repr(got) == repr(obj)
    ring.close()
    del got
    gc.collect()
    assert ring._check() and ring._arena.check()


def test_put_many_and_get_many() -> None:
    ring = Ring.create(RingSpec(slots=100))
    assert ring.put_many(range(70)) == 70
    assert ring.get_many(50) == list(range(50))
    assert ring.get_many(max_items=50, timeout=0) == list(range(50, 70))
    assert ring.put_many([]) == 0
    assert ring.put_many([b"x" * 5000, 1, b"y" * 5000, 2]) == 4
    assert ring.get_many(10) == [b"x" * 5000, 1, b"y" * 5000, 2]
    with pytest.raises(queue.Empty):
        ring.get_many(1, timeout=0)
    for wrong in (0, -1, -(10**400)):
        with pytest.raises(ValueError, match="max_items"):
            ring.get_many(wrong)


def test_put_many_of_a_list_that_changes_meanwhile() -> None:
    class Changes:
        def __init__(self, change: Callable[[], object]) -> None:
            self.change = change

        def __reduce__(self) -> tuple[type, tuple[int]]:
            self.change()
            return int, (7,)

    ring = Ring.create(RingSpec(slots=40))
    objects: list[Any] = [1]
    objects += [Changes(lambda: objects.append(9)), 2]
    assert ring.put_many(objects) == 4 and ring.get_many(10) == [1, 7, 2, 9]
    objects[1] = Changes(objects.clear)
    assert ring.put_many(objects) == 2 and ring.get_many(10) == [1, 7]
    assert ring.put_many((1, 2)) == 2 and ring.put_many(iter([3])) == 1 and ring.get_many(10) == [1, 2, 3]


def test_batches_across_the_end_of_the_ring() -> None:
    ring = Ring.create(RingSpec(slots=37, slot_bytes=256))
    sent, got = 0, 0
    for turn in range(300):
        count = min(1 + turn * 7 % 36, 37 - ring.qsize())
        objects = [
            (at, "x" * (at % 90), b"y" * (at * 13 % 400) if at % 50 == 0 else None) for at in range(sent, sent + count)
        ]
        assert ring.put_many(objects) == count
        sent += count
        for number, text, data in ring.get_many(1 + turn * 5 % 34):
            assert (
                number == got
                and text == "x" * (got % 90)
                and data == (b"y" * (got * 13 % 400) if got % 50 == 0 else None)
            )
            got += 1
    assert got + ring.qsize() == sent and ring._check()


def test_put_many_says_how_many_are_in() -> None:
    ring = Ring.create(RingSpec(slots=40))
    assert ring.put_many(range(100), timeout=0) == 40
    with pytest.raises(Overloaded):
        ring.put_many([1], timeout=0)
    assert ring.get_many(100) == list(range(40))


def test_put_many_sends_what_comes_before_an_error() -> None:
    ring = Ring.create(RingSpec(slots=40))
    with pytest.raises(TypeError):
        ring.put_many([1, 2, threading.Lock(), 3])
    assert ring.get_many(10) == [1, 2]

    def source() -> Iterator[int]:
        yield from range(35)
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        ring.put_many(source())
    assert ring.get_many(100) == list(range(35))


def test_one_bad_message_costs_only_itself() -> None:
    ring = Ring.create(RingSpec(slots=40))
    ring.put_many([0, Fragile(1), 2, Fragile(3), Fragile(4), 5, 6])
    assert ring.get_many(10) == [0]
    assert ring.qsize() == 6
    with pytest.raises(ZeroDivisionError, match="1"):
        ring.get_many(10)
    assert ring.get() == 2
    with pytest.raises(ZeroDivisionError, match="3"):
        ring.get()
    with pytest.raises(ZeroDivisionError, match="4"):
        ring.get_many(1)
    assert ring.get_many(10) == [5, 6]
    with pytest.raises(queue.Empty):
        ring.get(0)


def test_timeouts() -> None:
    ring = Ring.create(RingSpec(slots=1))
    for get in (ring.get_nowait, lambda: ring.get(0), lambda: ring.get(timeout=0.01), lambda: ring.get_many(3, 0.01)):
        with pytest.raises(queue.Empty):
            get()
    ring.put_nowait(1)
    for put in (lambda: ring.put_nowait(2), lambda: ring.put(2, 0), lambda: ring.put(2, timeout=0.01)):
        with pytest.raises(Overloaded) as caught:
            put()
        assert caught.value.capacity == 1 and isinstance(caught.value, queue.Full)
    begin = time.monotonic()
    with pytest.raises(queue.Full):
        ring.put(2, 0.05)
    assert time.monotonic() - begin >= 0.05
    assert ring.get(math.inf) == 1


@pytest.mark.parametrize("wrong", [-1, -0.001, math.nan, -math.inf])
def test_a_timeout_that_means_nothing(wrong: float) -> None:
    ring = Ring.create()
    calls: list[Callable[[], object]] = [
        lambda: ring.put(1, wrong),
        lambda: ring.get(wrong),
        lambda: ring.get_many(1, wrong),
        lambda: ring.put_many([1], timeout=wrong),
        lambda: ring.lease(wrong).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout"):
            call()
    assert ring.qsize() == 0


def test_wrong_arguments() -> None:
    ring = Ring.create()
    wrong: list[Callable[[], object]] = [
        *(lambda: ring.get("1"), lambda: ring.get(True), lambda: ring.put(), lambda: ring.put(1, 2, 3)),  # type: ignore
        *(lambda: ring.get(1, 2), lambda: ring.put(1, wait=2), lambda: ring.put(1, 0, timeout=0), lambda: Ring()),  # type: ignore
        *(lambda: ring.put_many(5), lambda: Ring.create(5), lambda: Ring.attach(5), lambda: ring.get_many("a")),  # type: ignore
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()
    ring.put(obj=1, timeout=None)
    assert ring.get(timeout=None) == 1


def test_close() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2])
    ring.close()
    ring.close()
    for put in (lambda: ring.put(3), lambda: ring.put_many([3])):
        with pytest.raises(RingClosed, match="closed"):
            put()
    assert list(ring) == [1, 2]
    for get in (ring.get, ring.get_nowait, lambda: ring.get_many(1), lambda: ring.lease().__enter__()):
        with pytest.raises(EOFError):
            get()
    assert issubclass(EndOfRing, EOFError) and issubclass(RingClosed, ValueError)


def test_close_wakes_whoever_waits() -> None:
    ring, full = Ring.create(), Ring.create(RingSpec(slots=1))
    full.put(1)
    outcomes: list[type] = []

    def wait(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=wait, args=(call,)) for call in (ring.get, ring.get, lambda: full.put(2))]
    for thread in threads:
        thread.start()
    ring.close()
    full.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(kind.__name__ for kind in outcomes) == ["EndOfRing", "EndOfRing", "RingClosed"]


def test_policies() -> None:
    refuse = Ring.create(RingSpec(slots=2, on_full="raise"))
    refuse.put_many([1, 2])
    with pytest.raises(Overloaded):
        refuse.put(3, timeout=PATIENCE)  # at once, whatever the timeout
    assert refuse.get_many(5) == [1, 2]

    newest = Ring.create(RingSpec(slots=2, on_full="drop_oldest"))
    for obj in (1, b"x" * 9000, 3, 4):
        newest.put(obj)
    assert newest.get_many(5) == [3, 4] and newest.stats()["drops"] == 2

    oldest = Ring.create(RingSpec(slots=2, on_full="drop_newest"))
    for obj in (1, 2, b"x" * 9000, np.arange(9000)):
        oldest.put(obj)
    assert oldest.get_many(5) == [1, 2] and oldest.stats().drops == 2


def test_stats() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2, 3])
    ring.get()
    with pytest.raises(queue.Empty):
        Ring.create().get(0.01)
    stats = ring.stats()
    assert (stats["depth"], stats["high_water"], stats["messages_in"], stats["messages_out"]) == (2, 3, 3, 1)
    assert stats.capacity == 4 and stats.bytes > 0 and stats.repairs == 0 and stats.drops == 0
    assert stats["blocked_full"] == 0.0 and isinstance(stats["blocked_empty"], float)
    with pytest.raises(AttributeError, match="depth"):
        _ = stats.nonsense


def test_a_signal_handler_interrupts_a_wait() -> None:
    ring, full = Ring.create(), Ring.create(RingSpec(slots=1))
    full.put(1)

    class Rang(Exception):
        pass

    def ring_it(*_: object) -> None:
        raise Rang

    old = signal.signal(signal.SIGALRM, ring_it)
    try:
        for call in (ring.get, lambda: ring.get(PATIENCE), lambda: full.put(2), lambda: full.put_many([2])):
            with pytest.raises(Rang):
                signal.setitimer(signal.ITIMER_REAL, 0.02)
                call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    ring.put(1)
    assert ring.get() == 1 and full.get_many(5) == [1]


def test_a_handled_signal_does_not_end_a_wait() -> None:
    ring = Ring.create()
    rings: list[int] = []

    def ring_it(*_: object) -> None:
        number = len(rings) + 1  # the next signal may come in the middle of this
        rings.append(number)
        if number == 3:
            ring.put("after three")  # a handler may use the ring that it interrupts

    old = signal.signal(signal.SIGALRM, ring_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert ring.get() == "after three"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_waiting_releases_the_interpreter() -> None:
    ring = Ring.create()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(ring.get()))
    thread.start()
    ring.put("now")
    thread.join(PATIENCE)
    assert got == ["now"]


def test_a_ring_inside_a_message() -> None:
    ring, inner = Ring.create(), Ring.create(RingSpec(slots=2))
    ring.put({"reply": inner})
    got = ring.get()["reply"]
    assert got is inner
    got.put(1)
    assert inner.get() == 1

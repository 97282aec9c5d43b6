"""What stats() of a ring counts, also after drops and deaths; and what its calls say about wrong arguments."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import shmrt
from shmrt import Ring, RingSpec, SegmentError

FORK = multiprocessing.get_context("fork")
HUGE: list[Any] = [10**400, 10**5000, 1e300, float("inf")]


@pytest.fixture
def named(tmp_path: Path) -> Iterator[str]:
    name = f"numbers-{os.getpid()}-{tmp_path.name}"
    yield name
    try:
        Ring.attach(name).unlink()
    except Exception:
        pass


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest"])
def test_bytes_without_what_was_dropped(on_full: Any) -> None:
    ring = Ring.create(RingSpec(slots=2, on_full=on_full))
    for obj in ["a" * 100, b"x" * 9000, np.zeros(4000), "b" * 200, b"y" * 7000]:
        ring.put(obj)
    assert ring.stats().drops == 3 and ring.stats().bytes > 0
    assert len(ring.get_many(5)) == 2
    assert ring.stats().bytes == 0 and ring._check()
    assert ring.stats().bytes_in == ring.stats().bytes_out


def test_bytes_count_payloads_in_the_arena() -> None:
    ring = Ring.create(RingSpec(slots=8))
    ring.put(b"x" * 100_000)
    ring.put(np.zeros(10_000))
    ring.put(1)
    stats = ring.stats()
    assert 180_000 <= stats.bytes == stats.bytes_in < 181_000
    ring.get()
    stats = ring.stats()
    assert 100_000 <= stats.bytes_out < 100_200 and 80_000 <= stats.bytes < 80_500
    with ring.lease() as array:
        assert ring.stats().bytes == stats.bytes and array.nbytes == 80_000  # on loan, so still in it
    ring.get()
    assert ring.stats().bytes == 0


def _traffic(name: str) -> None:
    ring = Ring.attach(name)
    while True:
        ring.put_many([1, "x" * 300, b"y" * 5000, {"a": 1}])
        ring.get_many(3)
        ring.get()


def test_bytes_are_right_after_kills(named: str) -> None:
    ring = Ring.create(RingSpec(slots=8, on_full="drop_oldest"), name=named)
    for number in range(12):
        process = FORK.Process(target=_traffic, args=(named,))
        process.start()
        start = ring.stats().messages_out
        while ring.stats().messages_out < start + 20 + 37 * number:
            pass
        process.kill()
        process.join()
        ring.put("repair")  # a get of what seems empty would not even lock
        while True:
            try:
                ring.get(0)
            except queue.Empty:
                break
        stats = ring.stats()
        assert stats.bytes == stats.depth == stats.leased == 0 and stats.bytes_in == stats.bytes_out
        assert ring._check()


def _hold(name: str, ready: Any) -> None:
    with Ring.attach(name).lease() as obj:
        ready.put(obj)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_lease_that_comes_back_is_a_repair(named: str) -> None:
    ring = Ring.create(RingSpec(slots=8), name=named)
    ring.put_many([1, 2])
    ready = FORK.SimpleQueue()
    process = FORK.Process(target=_hold, args=(named, ready))
    process.start()
    assert ready.get() == 1
    process.join()
    assert ring.get(5) == 1 and ring.get() == 2
    assert ring.stats().repairs == 1 and ring.stats().bytes == 0


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", HUGE, ids=["1e400", "1e5000", "1e300", "inf"])
def test_more_time_than_there_is_means_for_ever(huge: Any) -> None:
    ring = Ring.create(RingSpec(slots=8))
    ring.put(1, huge)
    assert ring.put_many([2, 3, 4], timeout=huge) == 3
    assert ring.get(huge) == 1 and ring.get_many(1, timeout=huge) == [2]
    with ring.lease(huge) as obj:
        assert obj == 3
    assert ring.get(timeout=huge) == 4


def test_huge_negative_times_are_refused_in_words() -> None:
    ring = Ring.create(RingSpec(slots=8))
    for call in (ring.get, lambda t: ring.put(1, t), lambda t: ring.get_many(1, t), lambda t: ring.put_many([1], t)):
        for wrong in (-(10**400), -1e300, float("-inf"), float("nan")):
            with pytest.raises(ValueError, match=r"timeout=.*at least 0"):
                call(wrong)


@pytest.mark.parametrize("wrong", [1.5, None, True, "5", [1]])
def test_get_many_of_what_is_no_number(wrong: Any) -> None:
    ring = Ring.create(RingSpec(slots=8))
    ring.put(1)
    with pytest.raises(TypeError, match=r"max_items must be a whole number.*not") as caught:
        ring.get_many(wrong)
    assert repr(wrong) in str(caught.value)
    assert ring.get_many(10**400) == [1]


@pytest.mark.parametrize("wrong", [5, None, 1.5])
def test_put_many_of_what_is_no_iterable(wrong: Any) -> None:
    ring = Ring.create(RingSpec(slots=8))
    with pytest.raises(TypeError, match=rf"objs must be an iterable.*{wrong!r}"):
        ring.put_many(wrong)


def test_put_many_leaves_the_error_of_an_iterable_alone() -> None:
    class Odd:
        def __iter__(self) -> Any:
            raise TypeError("my own words")

    with pytest.raises(TypeError, match="my own words"):
        Ring.create(RingSpec(slots=8)).put_many(Odd())


@pytest.mark.parametrize("wrong", [1.5, None, (2, 1.5), ("3",), True, "12"])
def test_empty_of_what_is_no_shape(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"shape=.*must be a whole number or a sequence of them"):
        shmrt.empty(wrong)


def test_a_directory_is_no_ring(named: str) -> None:
    path = Path(f"/dev/shm/shmrt-{os.geteuid()}-ring-{named}")
    path.mkdir()
    try:
        with pytest.raises(SegmentError, match=r"cannot be opened|not a ring|refused"):
            Ring.attach(named)
    finally:
        path.rmdir()


def test_a_view_made_before_the_send_stays_writable_for_numpy() -> None:
    """What docs/limits.md warns of; if this fails, numpy has become kinder and the warning can go."""
    ring = Ring.create(RingSpec(slots=8))
    array = shmrt.empty(5000)
    array[:] = 1
    view = array[:]
    ring.put(array)
    assert not array.flags.writeable and view.flags.writeable


def _calls() -> list[tuple[str, Callable[[Ring], object]]]:
    return [("timeout", lambda ring: ring.get("1")), ("timeout", lambda ring: ring.put(1, True))]


@pytest.mark.parametrize(("argument", "call"), _calls())
def test_what_is_no_time_is_named(argument: str, call: Callable[[Ring], object]) -> None:
    with pytest.raises(TypeError, match=argument):
        call(Ring.create(RingSpec(slots=8)))

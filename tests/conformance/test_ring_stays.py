"""A message stays in the ring until a get takes it: what get_many could not decode, and all behind it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import queue
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmrt import Ring, RingSpec, SegmentError

FORK = multiprocessing.get_context("fork")


class Boom:
    """Cannot be unpickled."""

    def __init__(self, what: Any = "boom") -> None:
        self.what = what

    def __reduce__(self) -> Any:
        return _fail, (self.what,)


def _fail(what: Any) -> None:
    raise ZeroDivisionError(what)


class Plain:
    """Travels as a pickle and arrives."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


class Deadly:
    """Kills whoever unpickles it."""

    def __reduce__(self) -> Any:
        return _die, ()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Interrupt:
    """Unpickling it is interrupted as by Ctrl-C, the first time."""

    def __reduce__(self) -> Any:
        return _interrupt, ()


_interrupted: list[int] = []


def _interrupt() -> str:
    _interrupted.append(1)
    if len(_interrupted) == 1:
        raise KeyboardInterrupt
    return "went on"


@pytest.fixture
def named(tmp_path: Path) -> Iterator[str]:
    name = f"stays-{os.getpid()}-{tmp_path.name}"
    yield name
    try:
        Ring.attach(name).unlink()
    except Exception:
        pass


def _look(name: str, answers: Any) -> None:
    answers.put(Ring.attach(name).qsize())


def _take_all(name: str, answers: Any) -> None:
    ring = Ring.attach(name)
    got: list[Any] = []
    while True:
        try:
            got.append(ring.get(0))
        except queue.Empty:
            break
        except ZeroDivisionError:
            got.append("raised")
    answers.put(got)


def _take_many(name: str, die: bool) -> None:
    ring = Ring.attach(name)
    assert ring.get_many(5) == [1]
    if die:
        os.kill(os.getpid(), signal.SIGKILL)


def ask(target: Any, name: str) -> Any:
    answers = FORK.SimpleQueue()
    process = FORK.Process(target=target, args=(name, answers))
    process.start()
    answer = answers.get()
    process.join()
    return answer


def test_what_is_behind_a_bad_message_stays_in_the_ring(named: str) -> None:
    ring = Ring.create(RingSpec(slots=16), name=named)
    ring.put_many([1, Boom(), 3, 4])
    assert ring.get_many(5) == [1]
    assert ring.qsize() == 3 and ask(_look, named) == 3
    with pytest.raises(ZeroDivisionError, match="boom"):
        ring.get_many(5)
    assert ring.qsize() == 2 and ask(_look, named) == 2
    assert ring.get_many(5) == [3, 4]
    assert ring._check()


def test_another_process_has_what_the_first_left(named: str) -> None:
    ring = Ring.create(RingSpec(slots=16), name=named)
    ring.put_many([1, Boom(), 3, 4])
    assert ring.get_many(5) == [1]
    assert ask(_take_all, named) == ["raised", 3, 4]
    with pytest.raises(queue.Empty):
        ring.get(0)


@pytest.mark.parametrize("die", [False, True])
def test_what_was_not_returned_survives_its_process(named: str, die: bool) -> None:
    ring = Ring.create(RingSpec(slots=16), name=named)
    ring.put_many([1, Boom(), 3, 4, b"x" * 20_000])
    process = FORK.Process(target=_take_many, args=(named, die))
    process.start()
    process.join()
    assert process.exitcode == (-signal.SIGKILL if die else 0)
    assert ring.qsize() == 4
    with pytest.raises(ZeroDivisionError):
        ring.get()
    assert ring.get_many(5) == [3, 4, b"x" * 20_000]
    assert ring.stats().bytes == 0 and ring._check()


def _take_ten(name: str) -> None:
    Ring.attach(name).get_many(10)


def test_a_message_that_kills_in_the_middle_costs_nothing_else(named: str) -> None:
    """In the middle of a get_many it comes back; at the head of one it is gone with its taker."""
    ring = Ring.create(RingSpec(slots=16), name=named)
    ring.put_many([Plain(1), Deadly(), 3, 4])
    for _ in range(2):
        process = FORK.Process(target=_take_ten, args=(named,))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert ring.get_many(10) == [3, 4]
    assert ring.stats()["repairs"] == 1  # the lease of the dead one came back
    assert ring.stats().bytes == 0 and ring._check()


def test_refused_pickles_stay_for_those_who_take_them(named: str) -> None:
    ring = Ring.create(RingSpec(slots=16), name=named)
    careful = Ring.attach(named, pickle=False)
    ring.put_many([1, Plain(2), 3])
    assert careful.get_many(5) == [1]
    assert ring.qsize() == careful.qsize() == 2
    assert ring.get() == Plain(2)
    assert careful.get_many(5) == [3]
    ring.put_many([Plain(1), 2])
    with pytest.raises(SegmentError, match="pickle"):
        careful.get_many(5)
    assert careful.get_many(5) == [2]


def test_fragile_messages_are_had_many_at_once() -> None:
    ring = Ring.create(RingSpec(slots=200))
    sent = [obj for i in range(40) for obj in (i, Plain(i), b"y" * 5000, np.arange(i + 1))]
    ring.put_many(sent)
    got = ring.get_many(500)
    assert len(got) == len(sent)
    for one, other in zip(got, sent, strict=True):
        assert np.array_equal(one, other) if isinstance(other, np.ndarray) else one == other
    del got, one
    ring.put_many(Plain(i) for i in range(100))
    assert ring.get_many(70) == [Plain(i) for i in range(70)]
    assert ring.get_many(70) == [Plain(i) for i in range(70, 100)]
    stats = ring.stats()
    assert stats.depth == stats.leased == stats.bytes == 0 and stats.messages_out == 260
    ring.close()
    gc.collect()
    assert ring._check() and ring._arena.check()


def test_arrays_behind_others_arrive_as_by_a_get() -> None:
    """Writable, and this process's own: their memory is free again when the last view is gone."""
    ring = Ring.create(RingSpec(slots=8))
    ring.put_many([np.zeros(4000), np.ones(4000), np.zeros(3)])
    first, second, third = ring.get_many(5)
    assert first.flags.writeable and second.flags.writeable and third.flags.writeable
    second[:] = 7
    ring.put_many([np.full(4000, 9.0)] * 4)
    assert (second == 7).all()
    del first, second, third
    ring.get_many(5)
    gc.collect()
    assert ring._check() and ring._arena.check()


def test_a_bad_message_keeps_its_blocks() -> None:
    ring = Ring.create(RingSpec(slots=8))
    ring.put_many([1, Boom(np.arange(5000)), b"z" * 9000])
    assert ring.get_many(5) == [1]
    assert ring._check()
    with pytest.raises(ZeroDivisionError) as caught:
        ring.get()
    assert (caught.value.args[0] == np.arange(5000)).all()
    assert ring.get() == b"z" * 9000


def test_leases_and_drops_see_the_bad_one_as_the_oldest() -> None:
    ring = Ring.create(RingSpec(slots=3, on_full="drop_oldest"))
    ring.put_many([1, Boom(), 3])
    assert ring.get_many(5) == [1]
    ring.put(4)
    ring.put(5)  # drops the bad one
    assert ring.get_many(5) == [3, 4, 5] and ring.stats().drops == 1 and ring.stats().bytes == 0


def test_an_interrupt_while_unpickling_is_raised_and_takes_nothing() -> None:
    _interrupted.clear()
    ring = Ring.create(RingSpec(slots=8))
    ring.put_many([1, Interrupt(), 3])
    assert ring.get_many(5) == [1]
    with pytest.raises(KeyboardInterrupt):
        ring.get_many(5)
    assert ring.get_many(5) == ["went on", 3]


def test_unpickling_may_use_the_ring() -> None:
    ring = Ring.create(RingSpec(slots=8))
    ring.put_many([1, Nested(), 3, 4])
    _nested.append(ring)
    try:
        assert ring.get_many(3) == [1, [3], 4]
    finally:
        _nested.clear()
    assert ring.qsize() == 0 and ring._check()


_nested: list[Ring] = []


class Nested:
    def __reduce__(self) -> Any:
        return _get_inside, ()


def _get_inside() -> Any:
    return _nested[0].get_many(1)


def test_a_ring_that_is_closed_gives_what_is_left() -> None:
    ring = Ring.create(RingSpec(slots=8))
    ring.put_many([1, Boom(), 3])
    ring.close()
    assert ring.get_many(5) == [1]
    with pytest.raises(ZeroDivisionError):
        ring.get_many(5)
    assert ring.get_many(5) == [3]
    with pytest.raises(EOFError):
        ring.get_many(5)


def test_a_bad_message_is_counted_when_it_is_consumed() -> None:
    ring = Ring.create(RingSpec(slots=8))
    ring.put_many([1, Boom(), 2])
    assert ring.get_many(5) == [1]
    assert ring.stats().messages_out == 1
    with pytest.raises(ZeroDivisionError):
        ring.get()
    assert ring.stats().messages_out == 2

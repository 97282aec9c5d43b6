"""shmrt.empty: sent without a copy, frozen, and never written to while anybody looks at it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ring_kit

import shmrt
from shmrt import MessageTooLarge, Overloaded, Ring, RingSpec, _native

SIZE = 100_000
PATIENCE = 60.0


@pytest.fixture(scope="module", autouse=True)
def helpers_of_multiprocessing() -> Iterator[None]:
    yield
    ring_kit.stop_helpers()


def make(value: int, size: int = SIZE) -> Any:
    array = shmrt.empty(size, "u1")
    array[:] = value
    return array


def block_of(array: Any) -> Any:
    while isinstance(array, np.ndarray):
        array = array.base
    return array


def address(array: Any) -> int:
    return int(array.__array_interface__["data"][0])


def churn(ring: Ring, rounds: int = 60) -> None:
    """Takes and gives back blocks of the tests' size: whatever is free is written to."""
    gc.collect()
    for _ in range(rounds):
        kept = [make(0xEE) for _ in range(3)]
        ring.put(np.full(SIZE, 0xDD, "u1"))
        ring.get()
        del kept


def used() -> int:
    gc.collect()
    arena = _native.Arena.default()
    arena.reclaim_dead()
    assert arena.check()
    return arena.stats()["blocks_used"]


@pytest.mark.parametrize("shape", [5, (), (3, 4), [2, 3, 4], (0, 5), (1000, 1000), np.int64(7)])
@pytest.mark.parametrize("dtype", ["u1", float, np.dtype("c16"), "M8[s]", [("a", "i4"), ("b", "f8")]])
@pytest.mark.parametrize("order", ["C", "F"])
def test_it_is_numpys_empty(shape: Any, dtype: Any, order: Any) -> None:
    array, model = shmrt.empty(shape, dtype, order=order), np.empty(shape, dtype, order=order)
    assert (array.shape, array.dtype, array.strides) == (model.shape, model.dtype, model.strides)
    assert type(array) is np.ndarray and array.flags.writeable and array.flags.aligned
    array[...] = np.zeros((), dtype)
    ring = Ring.create()
    ring.put(array)
    got = ring.get()
    assert got.shape == array.shape and got.dtype == array.dtype and got.tobytes() == array.tobytes()


def test_arguments() -> None:
    assert shmrt.empty(3).dtype == np.float64
    for wrong in (lambda: shmrt.empty(-1), lambda: shmrt.empty((2, -1)), lambda: shmrt.empty(2**62, "f8")):
        with pytest.raises(ValueError):
            wrong()
    for wrong_type in (lambda: shmrt.empty("3"), lambda: shmrt.empty(2.5), lambda: shmrt.empty(3, object)):  # type: ignore
        with pytest.raises(TypeError):
            wrong_type()
    with pytest.raises(MessageTooLarge):
        shmrt.empty(2**45, "u1")


def test_sending_freezes_and_copies_nothing() -> None:
    ring = Ring.create()
    array = make(7)
    word = block_of(array)
    ring.put(array)
    assert word.state == "queued" and not array.flags.writeable
    got = ring.get()
    assert word.state == "held" and word.owner_pid == os.getpid() and address(got) == address(array)
    for one in (array, got):
        with pytest.raises(ValueError, match="read-only"):
            one[0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            one.flags.writeable = True


def test_a_view_that_is_sent_freezes_the_array_that_it_looks_at() -> None:
    ring = Ring.create()
    array = make(7)
    view = array.reshape(100, 1000)[:50]
    ring.put(view)
    assert not array.flags.writeable and not view.flags.writeable
    got = ring.get()
    assert got.shape == (50, 1000) and address(got) == address(array)


def test_slices_that_begin_elsewhere_are_copies() -> None:
    ring = Ring.create()
    array = make(7)
    ring.put(array[10_000:])
    got = ring.get()
    array[:] = 9
    assert (got == 7).all() and got.flags.writeable


def test_a_view_for_writing_elsewhere_means_a_copy() -> None:
    ring = Ring.create()
    array = make(7)
    elsewhere = memoryview(block_of(array))
    ring.put(array)
    elsewhere[0] = 99
    assert ring.get()[0] == 7


def test_an_array_that_was_not_sent_stays_writable() -> None:
    full = Ring.create(RingSpec(slots=1))
    full.put(1)
    array = make(7)
    with pytest.raises(Overloaded):
        full.put(array, timeout=0)
    with pytest.raises(Overloaded):
        full.put_many([array], timeout=0.01)
    array[0] = 8
    frozen = make(7)
    frozen.flags.writeable = False
    with pytest.raises(Overloaded):
        full.put(frozen, timeout=0)
    assert not frozen.flags.writeable  # the user's own wish
    full.get()
    full.put(array)
    assert full.get()[0] == 8
    churn(full, 5)
    assert array[0] == 8 and (array[1:] == 7).all()


@pytest.mark.parametrize("rounds", [1, 4])
def test_sent_again_and_again(rounds: int) -> None:
    ring = Ring.create()
    before = used()
    array = make(7)
    for _ in range(rounds):
        ring.put_many([array, array, (array, array)])
        got = ring.get_many(3)
        assert all((one == 7).all() for one in (got[0], got[1], *got[2])) and got[2][0] is got[2][1]
        del got
        churn(ring, 10)
        assert (array == 7).all()
    del array
    assert used() == before


@pytest.mark.parametrize("first", ["sender", "receiver", "dropped"])
def test_memory_is_not_used_again_while_one_looks(first: str) -> None:
    ring = Ring.create(RingSpec(slots=8, on_full="drop_oldest"))
    before = used()
    array = make(7)
    ring.put(array)
    if first == "dropped":
        for _ in range(8):
            ring.put(None)
        assert not any(isinstance(obj, np.ndarray) for obj in ring.get_many(8))
        churn(ring)
        assert (array == 7).all()
        del array
    else:
        got = ring.get()
        if first == "sender":
            del array
            churn(ring)
            assert (got == 7).all()
            del got
        else:
            del got
            churn(ring)
            assert (array == 7).all()
            del array
    assert used() == before


def test_what_a_receiver_passes_on_is_a_copy() -> None:
    ring = Ring.create()
    array = make(7)
    ring.put(array)
    got = ring.get()
    ring.put(got)
    again = ring.get()
    assert address(again) != address(array)
    del got, array
    churn(ring)
    assert (again == 7).all()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_killed_receiver_gives_back_only_what_nobody_sees(method: str) -> None:
    ring, ready = Ring.create(), Ring.create()
    before = used()
    array = make(5)
    ring.put(array)
    victim = multiprocessing.get_context(method).Process(target=ring_kit.hold_array_and_wait, args=(ring, ready))
    victim.start()
    ready.get(PATIENCE)
    victim.kill()
    victim.join()
    _native.Arena.default().reclaim_dead()
    assert block_of(array).state == "kept" and block_of(array).owner_pid == os.getpid()
    churn(ring)
    assert (array == 5).all()
    del array
    assert used() == before


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("killed", ["before the get", "after the get"])
def test_a_killed_sender_takes_nothing_from_its_receiver(method: str, killed: str) -> None:
    ring, ready, other = Ring.create(), Ring.create(), Ring.create()
    before = used()
    victim = multiprocessing.get_context(method).Process(target=ring_kit.put_array_and_wait, args=(ring, ready))
    victim.start()
    ready.get(PATIENCE)
    got = ring.get(PATIENCE) if killed == "after the get" else None
    victim.kill()
    victim.join()
    for _ in range(2):  # a reclaim is harmless however often it comes
        _native.Arena.default().reclaim_dead()
        churn(other)
    if got is None:
        got = ring.get(PATIENCE)
    assert (got == 5).all() and not got.flags.writeable
    del got
    assert used() == before


def test_a_child_uses_the_arena_of_the_ring_that_it_was_given() -> None:
    """So that what it makes with shmrt.empty goes back without a copy."""
    ring, ready = Ring.create(), Ring.create()
    child = multiprocessing.get_context("spawn").Process(target=ring_kit.put_array_and_wait, args=(ring, ready))
    child.start()
    try:
        assert ready.get(PATIENCE) == child.pid
        got = ring.get(PATIENCE)
        assert type(block_of(got)) is _native.Block and not got.flags.writeable
    finally:
        child.kill()
        child.join()


def test_pickling_it_the_ordinary_way_is_a_copy() -> None:
    array = make(7)
    got = pickle.loads(pickle.dumps(array))
    got[0] = 1
    assert array[0] == 7

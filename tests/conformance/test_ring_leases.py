"""A lease of a Ring's message: its block ends it, an error or a death gives the message back, arrays may outlive it."""

from __future__ import annotations

import gc
import queue
from collections.abc import Iterator

import numpy as np
import pytest
import ring_kit
from ring_kit import METHODS, PATIENCE, Fragile, context, processes

from shmrt import EndOfRing, Ring, RingSpec


@pytest.fixture(scope="module", autouse=True)
def helpers_of_multiprocessing() -> Iterator[None]:
    """Its resource tracker and fork server would outlive the tests."""
    yield
    ring_kit.stop_helpers()


def test_a_lease_ends_by_the_end_of_its_block() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2])
    with ring.lease() as one:
        assert one == 1 and ring.qsize() == 1 and ring.stats().leased == 1
    with pytest.raises(LookupError):
        with ring.lease() as two:
            raise LookupError(two)
    with ring.lease(timeout=0) as two:
        assert two == 2
    with pytest.raises(queue.Empty):
        with ring.lease(0.01):
            pass
    ring.close()
    with pytest.raises(EndOfRing):
        with ring.lease():
            pass


def test_leases_nest_and_come_back_in_order() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2, 3])
    with pytest.raises(LookupError):
        with ring.lease() as one:
            with ring.lease() as two:
                assert (one, two) == (1, 2)
            raise LookupError
    assert ring.get_many(5) == [1, 3]


def test_arrays_of_a_lease_outlive_it() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put(np.full(50_000, 7, "u1"))
    with ring.lease() as kept:
        assert not kept.flags.writeable  # the message may run again
    for i in range(20):
        ring.put(np.full(50_000, i, "u1"))
        ring.get()
    assert (kept == 7).all()
    ring.put(np.full(50_000, 8, "u1"))
    with pytest.raises(LookupError):
        with ring.lease() as returned:
            raise LookupError
    assert (ring.get() == 8).all()
    for i in range(20):
        ring.put(np.full(50_000, i, "u1"))
        ring.get()
    assert (returned == 8).all()
    used = ring._arena.stats()["blocks_used"]
    del kept, returned
    gc.collect()
    assert ring._arena.stats()["blocks_used"] == used - 2


def test_a_leased_message_that_cannot_be_read_is_done() -> None:
    ring = Ring.create()
    ring.put_many([Fragile(1), 2])
    with pytest.raises(ZeroDivisionError):
        with ring.lease():
            pass
    assert ring.get(0) == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("big", [False, True])
def test_a_lease_comes_back_when_its_process_is_killed(method: str, big: bool) -> None:
    ring, ready = Ring.create(RingSpec(slots=4)), Ring.create()
    ring.put(np.full(50_000, 3, "u1") if big else 3)
    with processes(method) as _:
        victim = context(method).Process(target=ring_kit.lease_and_wait, args=(ring, ready))
        victim.start()
        assert ready.get(PATIENCE) == 3
        with pytest.raises(queue.Empty):
            ring.get(0)
        victim.kill()
        victim.join()
    got = ring.get(PATIENCE)
    assert (got[0] if big else got) == 3

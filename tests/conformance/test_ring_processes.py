"""A Ring between threads, forks and spawned processes: nothing is lost or doubled, and it outlives its maker."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ring_kit
from ring_kit import METHODS, PATIENCE, context, processes

import shmrt
from shmrt import Overloaded, Ring, RingSpec, SegmentError


@pytest.fixture(scope="module", autouse=True)
def helpers_of_multiprocessing() -> Iterator[None]:
    """Its resource tracker and fork server would outlive the tests."""
    yield
    ring_kit.stop_helpers()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 20])
def test_many_to_many(method: str, batch: int) -> None:
    ring, out = Ring.create(RingSpec(slots=16)), Ring.create(RingSpec(slots=8))
    count, producers, consumers = 500, 2, 2
    produce = ring_kit.produce if batch == 1 else ring_kit.produce_many
    with processes(method, *[(ring_kit.collect, ring, out, batch)] * consumers):
        with processes(method, *[(produce, ring, who, count) for who in range(producers)]):
            pass
        ring.close()
        parts = [out.get(PATIENCE) for _ in range(consumers)]
    everything = sorted(tuple(item) for part in parts for item in part)
    assert everything == [(who, number) for who in range(producers) for number in range(count)]
    for part in parts:  # what one consumer gets of one producer is in order
        for who in range(producers):
            numbers = [number for producer, number in part if producer == who]
            assert numbers == sorted(numbers)
    assert ring._check()


def test_many_threads() -> None:
    ring = Ring.create(RingSpec(slots=4))
    got: list[Any] = []
    producers = [threading.Thread(target=ring_kit.produce, args=(ring, who, 500)) for who in range(4)]
    consumers = [threading.Thread(target=lambda: got.extend(list(ring))) for _ in range(4)]
    for thread in [*producers, *consumers]:
        thread.start()
    for thread in producers:
        thread.join(PATIENCE)
    ring.close()
    for thread in consumers:
        thread.join(PATIENCE)
    assert sorted(got) == [(who, number) for who in range(4) for number in range(500)]


@pytest.mark.parametrize("method", METHODS)
def test_objects_go_there_and_back(method: str) -> None:
    there, back = Ring.create(RingSpec(slots=4)), Ring.create(RingSpec(slots=4))
    objects = [1, "é", b"x" * 100_000, np.arange(100_000), {"a": [np.ones((300, 300))]}, Overloaded("full", capacity=3)]
    with processes(method, (ring_kit.echo, there, back)):
        for obj in objects:
            there.put(obj)
            got = back.get(PATIENCE)
            assert repr(got) == repr(obj) and type(got) is type(obj)
        there.close()
        assert back.get(PATIENCE) == ("end", len(objects))


def test_a_pickled_ring_attaches_in_a_process_that_runs_already() -> None:
    """Not only as an argument of a process that is being spawned."""
    ours, theirs = context("spawn").Pipe()
    with processes("spawn", (ring_kit.answer_pickled, theirs)):
        counts = []
        for number in range(20):
            ring = Ring.create(RingSpec(slots=2))
            ring.put(number)
            ours.send(pickle.dumps(ring))
            counts.append(ours.recv())
            assert ring.get(PATIENCE) == number * 2
        ours.send(None)
    assert len(set(counts[2:])) == 1, f"descriptors are left: {counts}"


def test_a_forked_child_goes_on_with_the_parents_ring() -> None:
    ring, back = Ring.create(RingSpec(slots=4)), Ring.create()
    ring.put(np.full(50_000, 1, "u1"))
    kept = ring.get()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            del kept  # the parent's block stays the parent's
            for _ in range(30):
                ring.put(np.full(50_000, 9, "u1"))
                ring.get()
            mine = shmrt.empty(50_000, "u1")
            mine[:] = 4
            back.put(mine)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert (kept == 1).all() and (back.get(PATIENCE) == 4).all()


def test_a_ring_outlives_its_maker() -> None:
    """The process that made it is gone; the one that has it goes on."""
    make = (
        "import sys, pickle, os; from shmrt import Ring, RingSpec; r = Ring.create(RingSpec(slots=4)); r.put('made');"
        "print(pickle.dumps(r).hex(), flush=True); sys.stdin.read()"
    )
    maker = subprocess.Popen([sys.executable, "-c", make], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert maker.stdout is not None and maker.stdin is not None
    data = bytes.fromhex(maker.stdout.readline().decode())
    ring = pickle.loads(data)
    maker.kill()
    maker.wait()
    maker.stdin.close()
    maker.stdout.close()
    assert ring.get(PATIENCE) == "made"
    ring.put(b"x" * 50_000)
    assert ring.get(PATIENCE) == b"x" * 50_000
    token = ring._token
    del ring
    gc.collect()
    with pytest.raises(SegmentError, match="gone"):
        pickle.loads(data)
    assert token


def test_a_descriptor_number_that_means_something_else_now() -> None:
    ring = Ring.create()
    data = pickle.dumps(ring)
    del ring
    gc.collect()
    others = [Ring.create(RingSpec(slots=7)) for _ in range(3)]
    with pytest.raises(SegmentError):
        pickle.loads(data)
    assert others

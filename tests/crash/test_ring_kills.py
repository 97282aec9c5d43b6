"""SIGKILL at any moment: what a put returned for arrives, whole and once; nobody waits; no memory is lost.

The victims are real processes that use a Ring from Python until they are killed. When they die is decided by
how many messages went through, so a seed repeats the pressure, not the instruction; the sweeps of tests/native
visit every instruction.
"""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import queue
import random
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmrt import Ring, RingSpec, _native

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
import ring_kit

FORK = multiprocessing.get_context("fork")
PATIENCE = 60.0
KILLS = 25


def start(function: Any, *args: Any) -> Any:
    process = FORK.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def kill(process: Any) -> None:
    process.kill()
    process.join()


def drain(ring: Ring) -> Iterator[Any]:
    while True:
        try:
            yield ring.get(0)
        except queue.Empty:
            return


def shared_counters(count: int) -> Any:
    """Words that forked children share with this process."""
    return np.frombuffer(mmap.mmap(-1, 8 * count), "u8")


def blocks_used() -> int:
    gc.collect()
    arena = _native.Arena.default()
    arena.reclaim_dead()
    assert arena.check()
    return arena.stats()["blocks_used"]


def settle(before: int, *rings: Ring) -> None:
    """Nothing is in use that was not before, and every word is one that a writer leaves."""
    for ring in rings:
        assert ring._check() and ring.stats()["leased"] == 0
    assert blocks_used() == before


@pytest.mark.parametrize("size", [0, 20_000], ids=["small", "arrays"])
@pytest.mark.parametrize("slots", [2, 64])
def test_producers_are_killed(slots: int, size: int) -> None:
    seed = 1000 * slots + size
    print("seed", seed)
    source = random.Random(seed)
    before = blocks_used()
    ring = Ring.create(RingSpec(slots=slots))
    acknowledged = shared_counters(KILLS + 2)
    received: list[list[int]] = [[] for _ in range(KILLS + 2)]

    def take(messages: Any) -> None:
        for index, number, data in messages:
            assert data is None or (len(data) == size and (data == number % 251).all())
            received[index].append(number)

    living = {index: start(ring_kit.produce_until_killed, ring, acknowledged, index, size) for index in range(2)}
    try:
        for index in range(2, KILLS + 2):
            take(ring.get(PATIENCE) for _ in range(source.randrange(1, 60)))
            kill(living.pop(source.choice(list(living))))
            living[index] = start(ring_kit.produce_until_killed, ring, acknowledged, index, size)
    finally:
        for process in living.values():
            kill(process)
    take(drain(ring))
    for index, numbers in enumerate(received):
        assert numbers == list(range(len(numbers))), f"producer {index}"
        # The last put may have been in when its producer died before it could say so.
        assert acknowledged[index] <= len(numbers) <= acknowledged[index] + 1, f"producer {index}"
    settle(before, ring)


@pytest.mark.parametrize("size", [0, 20_000], ids=["small", "arrays"])
@pytest.mark.parametrize("leases", [False, True], ids=["get", "lease"])
def test_consumers_are_killed(leases: bool, size: int) -> None:
    seed = 7 + size + leases
    print("seed", seed)
    source = random.Random(seed)
    before = blocks_used()
    ring, out = Ring.create(RingSpec(slots=16)), Ring.create(RingSpec(slots=16))
    consume = ring_kit.lease_until_killed if leases else ring_kit.consume_until_killed
    acknowledged = shared_counters(1)
    seen: Counter[int] = Counter()
    producer = start(ring_kit.produce_until_killed, ring, acknowledged, 0, size)
    living = [start(consume, ring, out) for _ in range(2)]
    try:
        for _ in range(KILLS):
            seen.update(out.get(PATIENCE)[1] for _ in range(source.randrange(1, 60)))
            kill(living.pop(source.randrange(2)))
            living.append(start(consume, ring, out))
        kill(producer)
        last = int(acknowledged[0])
        # Whatever is left goes through the living; then they wait on an empty ring and die as well.
        while ring.qsize() or ring.stats()["leased"]:
            try:
                seen[out.get(0.05)[1]] += 1
            except queue.Empty:
                continue
    finally:
        for process in [producer, *living]:
            kill(process)
    seen.update(number for _, number in drain(out))
    seen.update(number for _, number, _ in drain(ring))
    lost = [number for number in range(last) if number not in seen]
    again = [number for number, count in seen.items() if count > 1]
    if leases:
        assert lost == [] and last <= max(seen) + 1 <= last + 1
        # Repeated only if the holder died between passing it on and the end of its lease.
        assert len(again) <= KILLS + 2
    else:
        assert again == []
        assert len(lost) <= KILLS + 2  # what a get was returning dies with its process
    settle(before, ring, out)

"""What the processes of the ring's tests run; importable under every start method."""

from __future__ import annotations

import os
import pickle
import signal
from typing import Any

import numpy as np

import shmrt
from shmrt import EndOfRing, Ring


def stop_helpers() -> None:
    """Ends what multiprocessing leaves running in the background."""
    from multiprocessing import forkserver, resource_tracker

    for helper in (forkserver._forkserver, resource_tracker._resource_tracker):  # type: ignore[attr-defined]
        helper._stop()


def produce(ring: Ring, who: int, count: int) -> None:
    for number in range(count):
        ring.put((who, number))


def produce_many(ring: Ring, who: int, count: int) -> None:
    assert ring.put_many((who, number) for number in range(count)) == count


def echo(source: Ring, target: Ring) -> None:
    """Forwards until the source ends; then says how many."""
    count = 0
    try:
        while True:
            target.put(source.get())
            count += 1
    except EndOfRing:
        target.put(("end", count))


def collect(ring: Ring, out: Ring, batch: int) -> None:
    got: list[Any] = []
    try:
        while True:
            if batch == 1:
                got.append(ring.get())
            else:
                got.extend(ring.get_many(batch))
    except EndOfRing:
        out.put(got)


def answer_pickled(connection: Any) -> None:
    """Attaches to rings that come as plain pickles and doubles one number in each."""
    while (data := connection.recv()) is not None:
        ring = pickle.loads(data)
        ring.put(ring.get() * 2)
        del ring
        connection.send(len(os.listdir("/proc/self/fd")))


def put_array_and_wait(ring: Ring, ready: Ring) -> None:
    array = shmrt.empty(100_000, "u1")
    array[:] = 5
    ring.put(array)
    ready.put(os.getpid())
    signal.pause()


def hold_array_and_wait(ring: Ring, ready: Ring) -> None:
    array = ring.get()
    assert int(array.sum()) == 5 * array.size
    ready.put(os.getpid())
    signal.pause()


def lease_and_wait(ring: Ring, ready: Ring) -> None:
    with ring.lease() as obj:
        ready.put(obj if not isinstance(obj, np.ndarray) else int(obj[0]))
        signal.pause()


# ---- victims of the kill tests: they go on until they are killed ----------------------------------------------


def produce_until_killed(ring: Ring, acknowledged: Any, index: int, size: int) -> None:
    """`acknowledged[index]` counts the puts that returned."""
    number = 0
    while True:
        ring.put((index, number, np.full(size, number % 251, "u1") if size else None))
        number += 1
        acknowledged[index] = number


def consume_until_killed(ring: Ring, out: Ring) -> None:
    while True:
        producer, number, data = ring.get()
        if data is not None:
            assert (data == number % 251).all()
        out.put((producer, number))


def lease_until_killed(ring: Ring, out: Ring) -> None:
    while True:
        with ring.lease() as (producer, number, data):
            if data is not None:
                assert (data == number % 251).all()
            out.put((producer, number))

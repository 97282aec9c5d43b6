"""What the ring's tests share, and what their processes run; importable under every start method."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

import shmrt
from shmrt import EndOfRing, Ring

METHODS = ("spawn", "fork", "forkserver")
PATIENCE = 60.0  # only a hang is longer


def context(method: str) -> Any:
    return multiprocessing.get_context(method)


@contextmanager
def processes(method: str, *targets: tuple[Any, ...]) -> Iterator[list[Any]]:
    """Runs functions of this file; at the end they have exited by themselves."""
    started = [context(method).Process(target=target, args=args) for target, *args in targets]
    for process in started:
        process.start()
    try:
        yield started
        for process in started:
            process.join(PATIENCE)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
            process.join()


@contextmanager
def free_name() -> Iterator[str]:
    """A name for a ring that nobody has; what is left of it at the end goes away."""
    name = f"test {os.getpid()} {time.monotonic_ns()}"
    try:
        yield name
    finally:
        for entry in os.listdir("/dev/shm"):
            if name in entry:
                os.unlink(f"/dev/shm/{entry}")


class Fragile:
    """A message that is sent and cannot be read."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _fail, (self.number,)


def _fail(number: int) -> None:
    raise ZeroDivisionError(number)


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

"""Arrays of 64 KiB to 16 MiB from one process to another: copied once on their way, or sent where they already lie.

Gigabytes of payload a second, and arrays a second, from one producer to one consumer that reads the first and the last
number of each. `copied`: an ordinary numpy array, and the receiver gets an array. `by reference`: each array is made
anew in shared memory that the package gives out, two numbers are written into it, and it is sent without a copy; only
two packages can. `of_memcpy` is the share of a plain copy between two warm buffers, measured in this process around
each turn: one copy at full speed is 1. Pipes and queues write the data two or more times; pyzmq sends the buffer
itself, out of band. The numbers read are added up and compared. Not measured: arrays to tasks of a pool (arrays).
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

from bench import _machine
from bench._measure import check, figure, rounded, sized
from bench._peers import channels as ways
from bench._peers import present
from bench._views import Pivot

SMOKE = {"sizes": [1 << 16], "turns": 1, "seconds": 0.01}
FULL = {"sizes": [1 << 16, 1 << 20, 1 << 24], "turns": 3, "seconds": 0.2}

VIEWS = (
    Pivot("Copied, GB/s by size", "gb_per_s", "size", where={"kind": "copied"}, better="more"),
    Pivot("By reference, arrays/s by size", "per_s", "size", where={"kind": "by reference"}, better="more"),
    Pivot("Copied, share of memcpy", "of_memcpy", "size", where={"kind": "copied"}),
)

Ends = tuple[Callable[[ways.Channel], Callable[[], None]], Callable[[ways.Channel], Callable[[], float]]]


def marked(array: Any) -> Any:
    array[0], array[-1] = 1.0, 2.0
    return array


def objects(size: int) -> Ends:
    """put and get of an object, which most packages pickle."""

    def producer(channel: ways.Channel) -> Callable[[], None]:
        put, array = channel.at_producer(0), marked(np.zeros(size // 8))
        return lambda: put(array)  # type: ignore[return-value]

    def consumer(channel: ways.Channel) -> Callable[[], float]:
        get = channel.at_consumer(0)

        def take() -> float:
            array = get()
            return float(array[0] + array[-1])

        return take

    return producer, consumer


def shmrt_reference(size: int) -> Ends:
    import shmrt

    def producer(channel: ways.Channel) -> Callable[[], None]:
        put = channel.at_producer(0)
        return lambda: put(marked(shmrt.empty(size // 8, "f8")))  # type: ignore[return-value]

    return producer, objects(size)[1]


def zmq_buffers(size: int) -> Ends:
    def producer(channel: Any) -> Callable[[], None]:
        socket, array = channel.sending()[0], marked(np.zeros(size // 8))

        def send() -> None:
            buffers: list[Any] = []
            head = pickle.dumps(array, 5, buffer_callback=buffers.append)
            socket.send_multipart([head, *buffers], copy=False)

        return send

    def consumer(channel: Any) -> Callable[[], float]:
        socket = channel.receiving(0)

        def take() -> float:
            head, *buffers = socket.recv_multipart(copy=False)
            array = pickle.loads(head.buffer, buffers=[frame.buffer for frame in buffers])
            return float(array[0] + array[-1])

        return take

    return producer, consumer


def iceoryx_take(channel: Any, size: int) -> Callable[[], float]:
    import ctypes

    receive, kind = channel.subscriber().receive, ctypes.c_uint8 * size

    def take() -> float:
        while (sample := receive()) is None:
            pass
        array: Any = np.ctypeslib.as_array(kind.from_address(sample.payload().data_ptr)).view("f8")
        return float(array[0] + array[-1])

    return take


def iceoryx(size: int, copied: bool) -> Ends:
    def producer(channel: Any) -> Callable[[], None]:
        import ctypes

        loan, kind = channel.publisher().loan_slice_uninit, ctypes.c_uint8 * size
        ordinary = marked(np.zeros(size // 8))

        def send() -> None:
            sample = loan(size)
            if copied:
                ctypes.memmove(sample.payload().data_ptr, ordinary.ctypes.data, size)
            else:
                marked(np.ctypeslib.as_array(kind.from_address(sample.payload().data_ptr)).view("f8"))
            sample.assume_init().send()

        return send

    return producer, lambda channel: iceoryx_take(channel, size)


def ends(make: type[ways.Channel], size: int, kind: str) -> Ends:
    if make is ways.Iceoryx:
        return iceoryx(size, kind == "copied")
    if make is ways.ZeroMq:
        return zmq_buffers(size)
    return objects(size) if kind == "copied" else shmrt_reference(size)


def produce(channel: ways.Channel, begin: Any, orders: Any) -> None:
    send = begin(channel)
    orders.send("ready")
    while (count := orders.recv()) is not None:
        started = time.perf_counter()
        for _ in range(count):
            send()
        orders.send(started)
    channel.end()


def consume(channel: ways.Channel, begin: Any, orders: Any) -> None:
    take = begin(channel)
    orders.send("ready")
    while (count := orders.recv()) is not None:
        total = 0.0
        for _ in range(count):
            total += take()
        orders.send((time.perf_counter(), total))
    channel.end()


def one_turn(make: type[ways.Channel], size: int, kind: str, seconds: float) -> float:
    """Arrays a second."""
    channel = make(1, 1, size + 256, True)
    ours, theirs = zip(*(ways.CONTEXT.Pipe() for _ in range(2)), strict=True)
    begins = ends(make, size, kind)
    processes = [
        ways.CONTEXT.Process(target=target, args=(channel, begin, pipe))
        for target, begin, pipe in zip((produce, consume), begins, theirs, strict=True)
    ]

    def timed(count: int) -> float:
        for pipe in (ours[1], ours[0]):
            pipe.send(count)
        for pipe in ours:
            check(pipe.poll(60), True, f"{make.impl} answers within 60 s")
        started: float = ours[0].recv()
        finished, total = ours[1].recv()
        check(total, 3.0 * count, f"{make.impl}, the sum of what was read")
        return float(finished - started)

    try:
        for process in processes:
            process.start()
        for pipe in ours:
            pipe.recv()
        count = sized(timed, seconds, 4, max((8 << 30) // size, 8))
        rate = count / timed(count)
        for pipe in ours:
            pipe.send(None)
        for process in processes:
            process.join(30)
        return rate
    finally:
        for process in processes:
            process.kill()
            process.join()
        channel.close()


def run(sizes: list[int], turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    makers = [make for make in ways.CHANNELS if make not in (ways.PosixQueue, ways.PipeBytes)]  # of 8 KiB; of bytes
    here, missing = present(makers)
    yield from missing
    cases = [(make, size, "copied") for size in sizes for make in here]
    cases += [(make, size, "by reference") for size in sizes for make in here if make.by_reference]
    found: dict[int, tuple[list[float], list[float]]] = {at: ([], []) for at in range(len(cases))}
    for _ in range(turns):
        for at, (make, size, kind) in enumerate(cases):
            limit = _machine.memcpy_gb_per_s(size, 0.01)
            rate = one_turn(make, size, kind, seconds)
            found[at][0].append(rate)
            found[at][1].append(rate * size / 1e9 / limit)
    for (make, size, kind), (rates, shares) in zip(cases, found.values(), strict=True):
        row = {"impl": make.impl, "kind": kind, "size": size, **figure("per_s", rates)}
        row |= {"gb_per_s": rounded(median(rates) * size / 1e9), "of_memcpy": rounded(median(shares), 3)}
        yield row

"""Producers that send to consumers through one channel, all in processes of their own, and how long it took.

Every producer sends the same number of messages and every consumer takes the same number, so that nothing but the
channel decides when the last one is there. A round lasts from the first send to the moment when the last consumer has
its last message, on the clock that all processes share. Warm-up rounds, which find the size of a round, compare a
checksum of every byte; measured rounds add up one field of each message.
"""

from __future__ import annotations

import itertools
import time
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from statistics import median
from typing import Any

from bench._measure import check, figure, rounded, sized
from bench._peers.channels import CONTEXT, Channel

PATIENCE_S = 120.0
BATCH = 32
TUPLE_BYTES = 112

_first = itemgetter(0)


def messages(kind: int | str) -> list[Any]:
    """What is sent, over and over: tuples of seven plain values, or `bytes` of that size. All are objects of their own,
    since pickle writes one that it meets again in a list as a reference of two bytes."""
    if kind == "tuple":
        return [(at, 2.5, f"user-{1000 + at}", bytes([at]) * 64, True, None, 123_456_789) for at in range(BATCH)]
    return [bytes([at]) + b"x" * (int(kind) - 1) for at in range(BATCH)]


def size_of(kind: int | str) -> int:
    return TUPLE_BYTES if kind == "tuple" else int(kind)


def digest(obj: Any) -> int:
    return zlib.crc32(obj if isinstance(obj, bytes) else repr(obj).encode())


def produce(channel: Channel, index: int, kind: int | str, batch: bool, orders: Any) -> None:
    items = messages(kind)
    put = channel.batches_out(index) if batch else channel.at_producer(index)
    unit = [items] if batch else items
    orders.send("ready")
    while (order := orders.recv()) is not None:
        count, full = order
        sends = count // BATCH if batch else count
        begin = time.perf_counter()
        for obj in itertools.islice(itertools.cycle(unit), sends):
            put(obj)
        sent = itertools.islice(itertools.cycle(items), count)
        orders.send((begin, sum(map(digest if full else _first, sent))))
    channel.end()


def consume(channel: Channel, index: int, batch: bool, orders: Any) -> None:
    take = channel.batches_in(index) if batch else None
    get = None if batch else channel.at_consumer(index)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        count, full = order
        of = digest if full else _first
        total = 0
        orders.send("begins")
        if take is not None:
            left = count
            while left:
                got = take(min(left, BATCH))
                total += sum(map(of, got))
                left -= len(got)
        elif full:
            for _ in range(count):
                total += digest(get())  # type: ignore[misc]
        else:
            for _ in range(count):
                total += get()[0]  # type: ignore[misc]
        orders.send((time.perf_counter(), total))
    channel.end()


def answer_of(orders: Any, process: Any) -> Any:
    if not orders.poll(PATIENCE_S):
        raise TimeoutError(f"{process.name} said nothing for {PATIENCE_S:.0f} s (exit code {process.exitcode})")
    return orders.recv()


class Stream:
    """Processes at both ends of a channel, ready for rounds."""

    def __init__(self, ends: list[tuple[Any, Any]], producers: int) -> None:
        self._producers, self._consumers = ends[:producers], ends[producers:]

    def timed(self, count: int, full: bool = False) -> float:
        """Seconds for `count` messages, a multiple of what divides evenly."""
        for orders, _ in self._consumers:
            orders.send((count // len(self._consumers), full))
        for end in self._consumers:
            answer_of(*end)
        for orders, _ in self._producers:
            orders.send((count // len(self._producers), full))
        sent = [answer_of(*end) for end in self._producers]
        got = [answer_of(*end) for end in self._consumers]
        check(sum(total for _, total in got), sum(total for _, total in sent), "sum of what arrived")
        return float(max(when for when, _ in got) - min(when for when, _ in sent))


@contextmanager
def stream(make: type[Channel], shape: tuple[int, int], kind: int | str, batch: bool = False) -> Iterator[Stream]:
    producers, consumers = shape
    payload = size_of(kind) * (BATCH if batch and make.batched == "list" else 1)
    channel = make(producers, consumers, payload, kind == "tuple")
    ends: list[tuple[Any, Any]] = []
    starts: list[tuple[Any, tuple[Any, ...]]] = [(produce, (channel, at, kind, batch)) for at in range(producers)]
    starts += [(consume, (channel, at, batch)) for at in range(consumers)]
    try:
        for target, args in starts:
            mine, its = CONTEXT.Pipe()
            process = CONTEXT.Process(target=target, args=(*args, its), name=f"{make.impl} {target.__name__}")
            process.start()
            its.close()
            ends.append((mine, process))
        for end in ends:
            answer_of(*end)
        yield Stream(ends, producers)
        for orders, _ in ends:
            orders.send(None)
        for _, process in ends:
            process.join(PATIENCE_S)
    finally:
        for orders, process in ends:
            process.kill()
            process.join()
            orders.close()
        channel.close()


@dataclass
class Case:
    """One channel under one load. `units` is the size of a round, known after the first."""

    make: type[Channel]
    shape: tuple[int, int]
    kind: int | str
    batch: bool
    units: int = 0
    rates: list[float] = field(default_factory=list)

    def fits(self) -> bool:
        size = size_of(self.kind) * (BATCH * 2 if self.batch and self.make.batched == "list" else 1)
        return self.make.most is None or size <= self.make.most

    def measure(self, seconds: float) -> None:
        """One round more."""
        step = self.shape[0] * self.shape[1] * (BATCH if self.batch else 1)
        with stream(self.make, self.shape, self.kind, self.batch) as running:
            running.timed(step, full=True)
            if not self.units:
                most = max((512 << 20) // (max(size_of(self.kind), 256) * step), 1)
                found = sized(lambda units: running.timed(units * step), seconds / 4, 1, most)
                self.units = min(max(found * 4, 1), most)
            else:
                running.timed(max(self.units // 8, 1) * step)
            self.rates.append(self.units * step / running.timed(self.units * step))

    def row(self) -> dict[str, Any]:
        return {
            "impl": self.make.impl,
            "shape": f"{self.shape[0]}x{self.shape[1]}",
            "payload": self.kind,
            "batch": BATCH if self.batch else 1,
            **figure("per_s", self.rates),
            "gb_per_s": rounded(median(self.rates) * size_of(self.kind) / 1e9),
            "messages": self.units * self.shape[0] * self.shape[1] * (BATCH if self.batch else 1),
            "copies": self.make.copies,
            "survives_kill": self.make.survives_kill,
            "batched": self.make.batched if self.batch else None,
        }


def in_turns(cases: list[Case], turns: int, seconds: float) -> Iterator[dict[str, Any]]:
    """The rows of cases that are measured in turns."""
    cases = [case for case in cases if case.fits()]
    broken: set[int] = set()
    for _ in range(turns):
        for at, case in enumerate(cases):
            if at not in broken:
                try:
                    case.measure(seconds)
                except Exception as error:
                    if case.make.package == "shmrt":
                        raise
                    broken.add(at)  # a peer's failure is a row, not the end of the others
                    traceback.print_exc()
                    yield {"impl": case.make.impl, "skipped": f"failed: {type(error).__name__}"}
    for at, case in enumerate(cases):
        if at not in broken:
            yield case.row()

"""One call to a server in another process and its reply, beside a Pipe that carries the same question and answer.

Round trips of a request (name, arguments) and its answer (the argument, given back), one after the other. `hot`:
the next call comes at once, so both sides still look when it arrives. `parked`: a millisecond lies between two calls,
so the server sleeps and has to be woken, and so may the caller. Five runs of each, peers in turn; the figure is the
median of their medians, `spread` the lowest and the highest. Not measured: many callers at once, large values, and
what a server is for: the Pipe has no deadline, no bounded mailbox, and its caller waits for ever if the server dies.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shmrt import _native

SMOKE = {"hot_calls": 200, "parked_calls": 20, "runs": 1, "gap_s": 0.001}
FULL = {"hot_calls": 20_000, "parked_calls": 500, "runs": 5, "gap_s": 0.001}

SLOT = _native.SLOT_FIRST_WORKER
CONTEXT = multiprocessing.get_context("fork")
Call = Callable[[int], Any]


def serve_calls(slots: _native.Slots, mailbox: _native.Mailbox) -> None:
    calls = _native.Calls(slots)
    slots.set_process(SLOT, os.getpid())
    slots.ready(SLOT)
    while True:
        message = mailbox.take(calls, slots, SLOT, 0, None)
        if not isinstance(message, tuple):
            return
        _, reference, _, args, _ = message
        calls.reply(reference, _native.CALL_REPLY, args[0])
        mailbox.done(slots, SLOT)


@contextmanager
def over_calls() -> Iterator[Call]:
    slots = _native.Slots.create(8)
    slots.claim(SLOT, 0, 0)
    calls = _native.Calls(slots)
    calls.reserve()
    mailbox = _native.Mailbox.create(64, 512, _native.LAYOUT["RING_BLOCK"])
    server = CONTEXT.Process(target=serve_calls, args=(slots, mailbox))
    server.start()
    yield lambda number: calls.call(mailbox, 1, "echo", (number,), None, 60.0)[1]
    slots.send_control(SLOT)
    mailbox.ring()
    server.join()
    slots.close()


def serve_pipe(pipe: Any) -> None:
    while True:
        message = pipe.recv()
        if message is None:
            return
        _, args, _ = message
        pipe.send(args[0])


@contextmanager
def over_pipe() -> Iterator[Call]:
    mine, its = CONTEXT.Pipe()
    server = CONTEXT.Process(target=serve_pipe, args=(its,))
    server.start()

    def call(number: int) -> Any:
        mine.send(("echo", (number,), None))
        return mine.recv()

    yield call
    mine.send(None)
    server.join()
    mine.close()
    its.close()


IMPLS = {"shmrt.Calls": over_calls, "multiprocessing.Pipe": over_pipe}


def measure(impl: str, count: int, gap_s: float) -> tuple[float, float]:
    """The median and the 99th percentile of one run, in microseconds."""
    taken = []
    with IMPLS[impl]() as call:
        for number in range(count):
            if gap_s:
                time.sleep(gap_s)
            begin = time.perf_counter()
            answer = call(number)
            taken.append(time.perf_counter() - begin)
            if answer != number:
                raise AssertionError(f"{impl} answered {answer!r}, not {number}")
    taken.sort()
    return taken[count // 2] * 1e6, taken[count * 99 // 100] * 1e6


def run(hot_calls: int, parked_calls: int, runs: int, gap_s: float) -> Iterator[dict[str, Any]]:
    for mode, count, gap in (("hot", hot_calls, 0.0), ("parked", parked_calls, gap_s)):
        found: dict[str, list[tuple[float, float]]] = {impl: [] for impl in IMPLS}
        for _ in range(runs):
            for impl in IMPLS:
                found[impl].append(measure(impl, count, gap))
        for impl, rows in found.items():
            medians = [row[0] for row in rows]
            yield {
                "impl": impl,
                "mode": mode,
                "p50_us": round(statistics.median(medians), 1),
                "spread_us": [round(min(medians), 1), round(max(medians), 1)],
                "p99_us": round(statistics.median(row[1] for row in rows), 1),
            }

"""A message there and its answer back over two channels: hot, where both sides look, and parked, where both sleep.

Microseconds from the send to the answer in one process, with another that sends back what it gets: a small tuple, or
64 bytes. `hot`: the next one is sent at once. `parked`: a millisecond lies between two, after which whoever sleeps
when nothing comes does sleep. Median of the turns' medians with the lowest and highest, and of their 99th percentiles.
`of_wake` is the median beside the machine's own round trip of a futex between two sleeping processes, with the same
pause between two and measured just before and after each turn: below 1 means that a side looked for a while before it
slept. Every answer is compared.
Not measured: the CPU time that looking costs; iceoryx2's Python subscriber never sleeps, so it is never parked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

from bench import _machine
from bench._measure import check, latency, quantile, rounded
from bench._peers import present
from bench._peers.channels import CHANNELS, CONTEXT, Channel
from bench._streams import messages, size_of
from bench._views import Pivot, Plot

SMOKE = {"kinds": ["tuple"], "hot": 100, "parked": 10, "turns": 1, "gap_s": 0.001}
FULL = {"kinds": ["tuple", 64], "hot": 8000, "parked": 300, "turns": 5, "gap_s": 0.001}

VIEWS = (
    Pivot("Small tuple, median µs", "p50_us", "mode", where={"payload": "tuple"}, better="less"),
    Pivot("Small tuple, 99th percentile, µs", "p99_us", "mode", where={"payload": "tuple"}, better="less"),
    Pivot("64 bytes, median µs", "p50_us", "mode", where={"payload": 64}, better="less"),
    Pivot("Times the machine's own wake, parked", "of_wake", "payload", where={"mode": "parked"}),
    Plot(
        "round-trips", "Round trip, hot", "p50_us", where={"mode": "hot", "payload": "tuple"}, y_label="µs", log_y=True
    ),
)


def echo(there: Channel, back: Channel, started: Any) -> None:
    started.send("ready")
    get, put = there.at_consumer(0), back.at_producer(0)
    while True:
        message = get()
        put(message)
        if message[0] == 255:
            break
    started.recv()  # the answer is there; some packages lose what they still hold when their process ends
    there.end()
    back.end()


@contextmanager
def both_ways(make: type[Channel], kind: int | str) -> Iterator[Callable[[Any], Any]]:
    there, back = (make(1, 1, size_of(kind), kind == "tuple") for _ in range(2))
    mine, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=echo, args=(there, back, its))
    process.start()
    try:
        mine.recv()
        # The other side opens its ends in the opposite order, since some wait for their peer.
        put, get = there.at_producer(0), back.at_consumer(0)

        def ask(message: Any) -> Any:
            put(message)
            return get()

        yield ask
        last = (255,) if kind == "tuple" else b"\xff" * int(kind)
        check(ask(last), last, f"{make.impl}, the last answer")
        mine.send("end")
        there.end()
        back.end()
        process.join(30)
    finally:
        process.kill()
        process.join()
        there.close()
        back.close()


def one_turn(make: type[Channel], kind: int | str, count: int, gap_s: float) -> list[float]:
    items = messages(kind)
    taken = []
    clock = time.perf_counter
    with both_ways(make, kind) as ask:
        for number in range(count + count // 10):
            item = items[number % len(items)]
            if gap_s:
                time.sleep(gap_s)
            begin = clock()
            answer = ask(item)
            now = clock()
            if number >= count // 10:  # the first tenth warms up
                taken.append(now - begin)
            if answer != item:
                check(answer, item, f"{make.impl}, an answer")
    return taken


def run(kinds: list[int | str], hot: int, parked: int, turns: int, gap_s: float) -> Iterator[dict[str, Any]]:
    channels, missing = present(CHANNELS)
    yield from missing
    found: dict[tuple[str, int | str, str], list[list[float]]] = {}
    wakes: dict[tuple[str, int | str, str], list[float]] = {}
    for _ in range(turns):
        for kind in kinds:
            for mode, count, gap in (("hot", hot, 0.0), ("parked", parked, gap_s)):
                rounds = 101 if gap else 505
                wake = _machine.wake_us(rounds, gap)
                for channel in channels:
                    key = (channel.impl, kind, mode)
                    taken = one_turn(channel, kind, count, gap)
                    before, wake = wake, _machine.wake_us(rounds, gap)
                    found.setdefault(key, []).append(taken)
                    if before and wake:
                        ratio = quantile(sorted(taken), 0.5) * 1e6 / ((before + wake) / 2)
                        wakes.setdefault(key, []).append(ratio)
    for (impl, kind, mode), rounds in found.items():
        row = {"impl": impl, "payload": kind, "mode": mode, **latency(rounds)}
        if (ratios := wakes.get((impl, kind, mode))) is not None:
            row["of_wake"] = rounded(median(ratios))
        yield row

"""A numpy array to a worker and a number, or an array as large, back: by size, beside every pool.

Gigabytes a second of payload that went to the worker, one task at a time, so that it is also the time of one: `sum`
gives back first plus last, `array` a new array of the same size. `shmrt.Pool + empty` sends an array of `shmrt.empty`
that lies in shared memory already, without a copy; its making and filling is in the time. joblib writes large arrays
to a file in shared memory, ray into its store; the others pickle them into a pipe. Answers are compared. Median of the
turns. Not measured: the same array sent many times, which joblib and ray would keep, and arrays between processes
without a pool (array_messages).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np

from bench._measure import check, figure, rounded, sized
from bench._peers.pools import Shmrt
from bench._pools import ask, in_turns
from bench._views import Pivot
from bench._work import first_and_last, scaled

SMOKE = {"sizes": [4096, 1 << 20], "turns": 1, "seconds": 0.01, "heavy": False}
FULL = {"sizes": [4096, 1 << 16, 1 << 20, 1 << 24], "turns": 3, "seconds": 0.15, "heavy": True}

VIEWS = (
    Pivot("To a worker, a number back: GB/s by size", "gb_per_s", "size", where={"back": "sum"}, better="more"),
    Pivot("To a worker, an array back: GB/s by size", "gb_per_s", "size", where={"back": "array"}, better="more"),
    Pivot("To a worker, a number back: µs for one", "us", "size", where={"back": "sum"}, better="less"),
)


def ordinary(count: int) -> Any:
    array = np.zeros(count)
    array[0], array[-1] = 1.0, 2.0
    return array


def shared(count: int) -> Any:
    import shmrt

    array = shmrt.empty((count,), "f8")
    array[:] = 0.0
    array[0], array[-1] = 1.0, 2.0
    return array


def run(sizes: list[int], turns: int, seconds: float, heavy: bool) -> Iterator[dict[str, Any]]:
    found: dict[tuple[str, int, str], list[float]] = {}

    def take(pool: Any, turn: int) -> None:
        ways: list[tuple[str, Callable[[int], Any] | None]] = [(pool.impl, None)]
        if isinstance(pool, Shmrt):
            ways.append((f"{pool.impl} + empty", shared))
        for size in sizes:
            for impl, make in ways:
                array = ordinary(size // 8)
                for back, fn in (("sum", first_and_last), ("array", scaled)):

                    def timed(count: int, make: Any = make, array: Any = array, fn: Any = fn) -> float:
                        begin = time.perf_counter()
                        for _ in range(count):
                            sent = array if make is None else make(len(array))
                            answer = ask(pool, fn, sent)
                            if fn is scaled:
                                answer = float(answer[0] + answer[-1]) / 2
                            check(answer, 3.0, f"{pool.impl}, an answer")
                        return time.perf_counter() - begin

                    count = sized(timed, seconds, 2, 20_000)
                    found.setdefault((impl, size, back), []).append(timed(count) / count)

    yield from in_turns(take, 2, turns, heavy)  # with one worker joblib would stay in this process
    for (impl, size, back), taken in found.items():
        row = {"impl": impl, "size": size, "back": back, **figure("us", [each * 1e6 for each in taken])}
        yield row | {"gb_per_s": rounded(size / median(taken) / 1e9)}

"""Items through lines of 1, 3 and 5 stages, one process each: small ones, and arrays of 256 KiB.

Items a second from an iterable in this process through every stage and back, in order. A stage adds one to a number,
or gives back a new array of the same size. shmrt's `Pipeline` keeps the order, bounds what is in flight, and gives
every output once when workers die. Beside it: processes in a row with a multiprocessing.Queue before each, which is
what one writes by hand and which a death stops for ever; `imap` on `imap` of multiprocessing.Pool and `map` on `map`
of concurrent.futures, with as many workers in all; tasks of ray and dask that take the futures of those before. The
last four do not bound what is in flight. Results are added up and compared. Not measured: starting the workers,
several in a stage, and uneven stages.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bench import _peers
from bench._measure import check, figure, rounded, sized
from bench._peers.pools import CONTEXT, Dask, Multiprocessing, Ray, Standard
from bench._pools import TOO_LONG, failed, warm
from bench._views import Pivot, Plot
from bench._work import add_one, scaled

SMOKE = {"stages": [1, 2], "array_bytes": 1 << 16, "turns": 1, "seconds": 0.01, "most": 64, "heavy": False}
FULL = {"stages": [1, 3, 5], "array_bytes": 1 << 18, "turns": 3, "seconds": 0.3, "most": 100_000, "heavy": True}

VIEWS = (
    Pivot("Small items/s by stages", "per_s", "stages", where={"item": "number"}, better="more"),
    Pivot("Arrays of 256 KiB/s by stages", "per_s", "stages", where={"item": "array"}, better="more"),
    Plot(
        "pipelines", "Small items", "per_s", x="stages", where={"item": "number"}, x_label="stages", y_label="items/s",
        log_y=True,
    ),
)  # fmt: skip


class Clock:
    """Runs from when the first measured item may go in until the last one is out; what then ends is not measured."""

    def __init__(self) -> None:
        self._begin = self._end = 0.0

    def start(self) -> None:
        self._begin = time.perf_counter()

    def stop(self) -> None:
        self._end = self._end or time.perf_counter()

    @property
    def seconds(self) -> float:
        return self._end - self._begin


Flow = Callable[[Iterable[Any], Clock], Iterable[Any]]
HANDMADE = "multiprocessing.Queue, by hand"


def gated(items: Iterable[Any], warm_up: list[Any], gate: threading.Event, clock: Clock) -> Iterator[Any]:
    """The items, once what was put in to warm up has come out at the other end; then the clock starts."""
    yield from warm_up
    if not gate.wait(60):
        raise TimeoutError("what was put in to warm up did not come out")
    clock.start()
    yield from items


@contextmanager
def ours(fn: Any, stages: int) -> Iterator[Flow]:
    """A run starts its workers, which is not what is measured here."""
    import shmrt

    with shmrt.Runtime():
        pipe = shmrt.Pipeline("bench")
        for number in range(stages):
            pipe = pipe.map(fn, workers=1, name=f"stage {number}")

        def flow(items: Iterable[Any], clock: Clock) -> Iterable[Any]:
            gate = threading.Event()
            source = iter(items)
            warm_up = list(itertools.islice(source, 4))
            with pipe.run(gated(source, warm_up, gate, clock)) as run:
                for number, item in enumerate(run, 1):
                    yield item
                    if number == len(warm_up):
                        gate.set()
                clock.stop()

        yield flow


def stage(fn: Any, before: Any, after: Any) -> None:
    while (item := before.get()) is not None:
        after.put(fn(item))


@contextmanager
def by_hand(fn: Any, stages: int) -> Iterator[Flow]:
    queues = [CONTEXT.Queue(1024) for _ in range(stages + 1)]
    processes = [CONTEXT.Process(target=stage, args=(fn, *queues[at : at + 2])) for at in range(stages)]
    for process in processes:
        process.start()

    def feed(items: list[Any]) -> None:
        for item in items:
            queues[0].put(item)

    def flow(items: Iterable[Any], clock: Clock) -> Iterable[Any]:
        clock.start()
        items = list(items)
        feeder = threading.Thread(target=feed, args=(items,))
        feeder.start()
        for _ in items:
            yield queues[-1].get()
        feeder.join()

    try:
        yield flow
    finally:
        for process in processes:
            process.kill()
            process.join()
        for queue in queues:
            queue.cancel_join_thread()
            queue.close()


def of_pool(make: Any, verb: str) -> Any:
    @contextmanager
    def opened(fn: Any, stages: int) -> Iterator[Flow]:
        with make(stages) as pool:
            warm(pool)

            def flow(items: Iterable[Any], clock: Clock) -> Iterable[Any]:
                clock.start()
                for _ in range(stages):
                    items = getattr(pool, verb)(fn, items)
                return items

            yield flow

    return opened


def of_futures(make: Any) -> Any:
    """Each task of a stage takes the future of the one before."""

    @contextmanager
    def opened(fn: Any, stages: int) -> Iterator[Flow]:
        with make(stages) as pool:
            warm(pool)

            def flow(items: Iterable[Any], clock: Clock) -> Iterable[Any]:
                clock.start()
                handles = list(items)
                for _ in range(stages):
                    handles = [pool.submit(fn, item) for item in handles]
                return [pool.result(handle) for handle in handles]

            yield flow

    return opened


ROUTES: dict[str, tuple[str, bool, Any]] = {
    "shmrt.Pipeline": ("shmrt", False, ours),
    HANDMADE: ("multiprocessing", False, by_hand),
    "multiprocessing.Pool, imap": ("multiprocessing", False, of_pool(Multiprocessing, "map_one_by_one")),
    "ProcessPoolExecutor, map": ("concurrent.futures", False, of_pool(Standard, "map")),
    "ray, futures": ("ray", True, of_futures(Ray)),
    "dask, futures": ("dask", True, of_futures(Dask)),
}


def one_turn(opened: Any, item: str, stages: int, array_bytes: int, seconds: float, most: int) -> float:
    fn = add_one if item == "number" else scaled
    array = np.ones(array_bytes // 8)

    def timed(count: int) -> float:
        clock = Clock()
        if item == "number":
            total = sum(flow(range(count), clock))
            expected = count * (count - 1) // 2 + count * stages
        else:
            total = sum(float(found[-1]) for found in flow((array for _ in range(count)), clock))
            expected = count * 2**stages
        clock.stop()
        check(total, expected, "sum of what came out")
        return clock.seconds

    with opened(fn, stages) as flow:
        count = sized(timed, seconds, 16, most if item == "number" else min(most, 1000))
        return count / timed(count)


def run(
    stages: list[int], array_bytes: int, turns: int, seconds: float, most: int, heavy: bool
) -> Iterator[dict[str, Any]]:
    routes = {}
    for impl, (package, is_heavy, opened) in ROUTES.items():
        adapter = type("Route", (), {"impl": impl, "package": package})
        here, missing = _peers.present([adapter])
        yield from missing
        if here and is_heavy and not heavy:
            yield {"impl": impl, "skipped": TOO_LONG}
        elif here:
            routes[impl] = (is_heavy, opened)
    found: dict[tuple[str, str, int], list[float]] = {}
    for turn in range(turns):
        for item in ("number", "array"):
            for count in stages:
                for impl, (is_heavy, opened) in routes.items():
                    if is_heavy and turn > 0:
                        continue
                    try:
                        rate = one_turn(opened, item, count, array_bytes, seconds, most)
                    except Exception as error:
                        if not is_heavy:
                            raise
                        yield failed(impl, error)
                    else:
                        found.setdefault((impl, item, count), []).append(rate)
    for (impl, item, count), rates in found.items():
        row = {"impl": impl, "item": item, "stages": count, **figure("per_s", rates)}
        if item == "array":
            row["gb_per_s"] = rounded(max(rates) * array_bytes / 1e9)
        yield row

"""Image tiles of 196,608 bytes through four stages of one worker each: what arrays in a pipeline cost, beside the
peers.

`work` says what a stage does with its tile: `touch` reads one row of it, so that the way of the array is what is
measured; `features` is the example `shmrt.examples.tiles`, where numpy is. `shape` is `stages` (each stage is given the
tile and hands it on) or `fused` (one task does all four, no array goes between processes but on its way in): what fused
ones have more is what the stages' edges cost. Everybody makes the same tiles while they are asked for them, uses four
processes, is warm, and ends with the same digest, which is checked against a serial run's; `tiles_per_s` is the median
of the repeats.

Duties differ, and the columns say how: `copies` are counted by shmrt (blocks that changed on the way; None: the peer
does not say); `bounded` whether a slow consumer holds the source back; `survives_kill` whether the death of a worker
leaves the run complete. Peers that are not installed have a row that says so. Not measured: start of the workers
(cold_start).
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import hashlib
import importlib
import importlib.util
import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

import shmrt
from bench._views import GUARANTEES, Pivot
from shmrt.examples import tiles

SMOKE = {"count": 6, "repeats": 1, "works": ["touch"]}
FULL = {"count": 300, "repeats": 5, "works": ["touch", "features"]}

VIEWS = (
    Pivot(
        "Tiles a second through four stages",
        "tiles_per_s",
        "work",
        where={"shape": "stages"},
        better="more",
        beside={**GUARANTEES, "bounded": "holds the source back"},
    ),
    Pivot("Tiles a second, all four in one task", "tiles_per_s", "work", where={"shape": "fused"}, better="more"),
)

WARM = 4
PROCESSES = 4


# ---- what the stages do; peers import them from here -------------------------------------------------------------


def touch(item: Any) -> Any:
    number, tile, found, places = item
    row = (number * 7 + len(found)) % tiles.SHAPE[0]
    return number, tile, [*found, int(tile[row].sum())], [*places, tiles.place(tile)]


def touch_last(item: Any) -> Any:
    number, _, found, places = touch(item)
    return number, found, places


def entropy(item: Any) -> Any:
    number, tile, found, places = item
    return number, tile, [*found, tiles.entropy_of(tile)], [*places, tiles.place(tile)]


def gradients(item: Any) -> Any:
    number, tile, found, places = item
    return number, tile, [*found, tiles.gradients_of(tile)], [*places, tiles.place(tile)]


def patterns(item: Any) -> Any:
    number, tile, found, places = item
    return number, tile, [*found, tiles.patterns_of(tile)], [*places, tiles.place(tile)]


def thumbnail(item: Any) -> Any:
    number, tile, found, places = item
    small = tiles.thumbnail_of(tile, np.empty((tiles.SIDE, tiles.SIDE, 3), np.uint8))
    return number, [*found, small.tobytes()], [*places, tiles.place(tile)]


def touch_all(item: Any) -> Any:
    return touch_last(touch(touch(touch(item))))


def features_all(item: Any) -> Any:
    return thumbnail(patterns(gradients(entropy(item))))


STAGES: dict[str, list[Callable[[Any], Any]]] = {
    "touch": [touch, touch, touch, touch_last],
    "features": [entropy, gradients, patterns, thumbnail],
}
FUSED = {"touch": touch_all, "features": features_all}


class Work:
    """The tiles, and the answer that is right."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count, self.stages, self.fused = name, count, STAGES[name], FUSED[name]
        self.cutter = tiles.Cutter([tiles.drawn(number, side=256 + 64 * number) for number in range(3)])
        self.right = digest([self.fused(item) for item in self.items(self.count)])

    def items(self, count: int, empty: Callable[..., Any] = np.empty) -> Iterator[Any]:
        for number in range(count):
            tile = self.cutter.cut(number, empty(tiles.SHAPE, np.uint8))
            yield number, tile, [], [tiles.place(tile)]

    def check(self, found: list[Any]) -> float:
        """Copies per tile, as far as blocks tell."""
        if digest(found) != self.right:
            raise AssertionError(f"{self.name}: the answer is not the serial run's")
        return sum(one != other or one is None for *_, places in found for one, other in pairwise(places)) / len(found)


def digest(found: list[Any]) -> str:
    total = hashlib.blake2b(digest_size=16)
    for number, parts, *_ in sorted(found, key=lambda one: one[0]):
        total.update(repr((number, parts)).encode())
    return total.hexdigest()


# ---- who does it: each gives a function that has all tiles described, and says how long it took -------------------

Runner = Callable[[], tuple[float, list[Any]]]


def timed(describe: Callable[[Iterator[Any]], list[Any]], work: Work, empty: Any = np.empty) -> tuple[float, list[Any]]:
    begin = time.perf_counter()
    found = describe(work.items(work.count, empty))
    return time.perf_counter() - begin, found


@contextlib.contextmanager
def pipeline(work: Work, empty: Any) -> Iterator[Runner]:
    """Every run opens its workers afresh: some tiles go through before the time begins."""
    pipe = shmrt.Pipeline("bench-tiles")
    for number, fn in enumerate(work.stages):
        pipe = pipe.map(fn, workers=1, ring=shmrt.RingSpec(slots=16), name=f"stage {number}")

    def run() -> tuple[float, list[Any]]:
        warm, begin = threading.Event(), 0.0

        def source() -> Iterator[Any]:
            nonlocal begin
            yield from work.items(WARM, empty)
            warm.wait()
            begin = time.perf_counter()
            yield from work.items(work.count, empty)

        found = []
        with pipe.run(source) as outputs:
            for output in outputs:
                found.append(output)
                if len(found) == WARM:
                    warm.set()
            seconds = time.perf_counter() - begin
        return seconds, found[WARM:]

    with shmrt.Runtime():
        yield run


@contextlib.contextmanager
def shmrt_stages(work: Work) -> Iterator[Runner]:
    with pipeline(work, np.empty) as run:
        yield run


@contextlib.contextmanager
def shmrt_empty_stages(work: Work) -> Iterator[Runner]:
    with pipeline(work, shmrt.empty) as run:
        yield run


@contextlib.contextmanager
def shmrt_fused(work: Work) -> Iterator[Runner]:
    with shmrt.Runtime(), shmrt.Pool(PROCESSES) as pool:
        list(pool.map(work.fused, work.items(WARM)))
        yield lambda: timed(lambda items: list(pool.map(work.fused, items)), work)


@contextlib.contextmanager
def multiprocessing_stages(work: Work) -> Iterator[Runner]:
    context = multiprocessing.get_context("fork")
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(context.Pool(1)) for _ in work.stages]

        def describe(items: Any) -> list[Any]:
            for pool, fn in zip(pools, work.stages, strict=True):
                items = pool.imap(fn, items)
            return list(items)

        describe(work.items(WARM))
        yield lambda: timed(describe, work)


@contextlib.contextmanager
def multiprocessing_fused(work: Work) -> Iterator[Runner]:
    with multiprocessing.get_context("fork").Pool(PROCESSES) as pool:
        list(pool.imap(work.fused, work.items(WARM)))
        yield lambda: timed(lambda items: list(pool.imap(work.fused, items)), work)


@contextlib.contextmanager
def executor_stages(work: Work) -> Iterator[Runner]:
    """Stage by stage: `map` reads its input to the end first."""
    context = multiprocessing.get_context("fork")
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(concurrent.futures.ProcessPoolExecutor(1, context)) for _ in work.stages]

        def describe(items: Any) -> list[Any]:
            for pool, fn in zip(pools, work.stages, strict=True):
                items = pool.map(fn, items)
            return list(items)

        describe(work.items(WARM))
        yield lambda: timed(describe, work)


@contextlib.contextmanager
def joblib_stages(work: Work) -> Iterator[Runner]:
    """Stage by stage on one pool of four, as joblib has it."""
    joblib = importlib.import_module("joblib")
    with joblib.parallel_config(backend="loky"), joblib.Parallel(n_jobs=PROCESSES) as parallel:

        def describe(items: Any) -> list[Any]:
            for fn in work.stages:
                items = parallel(joblib.delayed(fn)(item) for item in items)
            return list(items)

        describe(work.items(WARM))
        yield lambda: timed(describe, work)
    importlib.import_module("joblib.externals.loky").get_reusable_executor().shutdown(wait=True)


@contextlib.contextmanager
def mpire_stages(work: Work) -> Iterator[Runner]:
    mpire = importlib.import_module("mpire")
    with contextlib.ExitStack() as stack:
        pools = [stack.enter_context(mpire.WorkerPool(1, start_method="fork", keep_alive=True)) for _ in work.stages]

        def describe(items: Any, count: int = work.count) -> list[Any]:
            for pool, fn in zip(pools, work.stages, strict=True):
                # A tuple would be taken for several arguments.
                items = pool.imap(fn, ((item,) for item in items), iterable_len=count, chunk_size=1)
            return list(items)

        describe(work.items(WARM), WARM)
        yield lambda: timed(describe, work)


@contextlib.contextmanager
def ray_stages(work: Work) -> Iterator[Runner]:
    """Tasks that are given references into the object store; at most 64 tiles under way, as in the rings."""
    ray = importlib.import_module("ray")
    ray.init(num_cpus=PROCESSES, include_dashboard=False, log_to_driver=False, object_store_memory=256 << 20)
    try:
        remote = [ray.remote(num_cpus=1)(fn) for fn in work.stages]

        def describe(items: Any) -> list[Any]:
            found, under_way = [], []
            for item in items:
                reference = ray.put(item)
                for fn in remote:
                    reference = fn.remote(reference)
                under_way.append(reference)
                if len(under_way) == 64:
                    found.append(ray.get(under_way.pop(0)))
            return found + [ray.get(reference) for reference in under_way]

        describe(work.items(4 * WARM))
        yield lambda: timed(describe, work)
    finally:
        ray.shutdown()


# impl, shape, who, what has to be installed, bounded, survives a kill
WHO: list[tuple[str, str, Any, str, bool, bool]] = [
    ("shmrt.Pipeline + shmrt.empty", "stages", shmrt_empty_stages, "numpy", True, True),
    ("shmrt.Pipeline", "stages", shmrt_stages, "numpy", True, True),
    ("multiprocessing.Pool.imap", "stages", multiprocessing_stages, "numpy", False, False),
    ("ProcessPoolExecutor.map", "stages", executor_stages, "numpy", False, False),
    ("joblib.Parallel (loky)", "stages", joblib_stages, "joblib", False, False),
    ("mpire.WorkerPool.imap", "stages", mpire_stages, "mpire", False, False),
    ("ray tasks", "stages", ray_stages, "ray", True, True),
    ("shmrt.Pool.map", "fused", shmrt_fused, "numpy", True, False),
    ("multiprocessing.Pool.imap", "fused", multiprocessing_fused, "numpy", False, False),
]


def run(count: int, repeats: int, works: list[str]) -> Iterator[dict[str, Any]]:
    for name in works:
        work = Work(name, count)
        for impl, shape, who, needs, bounded, survives in WHO:
            row: dict[str, Any] = {"impl": impl, "work": name, "shape": shape}
            if importlib.util.find_spec(needs) is None:
                yield row | {"skipped": f"{needs} is not installed"}
                continue
            rates, copies = [], 0.0
            with who(work) as describe:
                for _ in range(repeats):
                    seconds, found = describe()
                    copies = work.check(found)
                    rates.append(count / seconds)
            yield row | {
                "tiles_per_s": round(statistics.median(rates), 1),
                "tiles_per_s_range": [round(min(rates), 1), round(max(rates), 1)],
                "gb_per_s": round(statistics.median(rates) * tiles.BYTES / 1e9, 4),
                "copies": round(copies, 3) if impl.startswith("shmrt.Pipeline") else None,
                "bounded": bounded,
                "survives_kill": survives,
                "processes": PROCESSES,
            }

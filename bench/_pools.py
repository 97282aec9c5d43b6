"""Runs the same measurement on every pool that is here: light ones in turns, heavy ones (ray, dask) once, at the end.

Opening ray or dask takes seconds and leaves processes that use CPU, so their turns are done on one opening, two at
most, with nothing else open.
"""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from bench._peers import present
from bench._peers.pools import POOLS, PoolPeer
from bench._work import wait_a_little

TOO_LONG = "takes too long for this size"
Take = Callable[[PoolPeer, int], None]
"""Measures one turn, whose number it gets, on an open, warm pool."""


def warm(pool: PoolPeer) -> None:
    """Every worker has done something, as far as one can make it."""
    items = range(pool.workers * 2)
    if pool.can("submit"):
        for handle in [pool.submit(wait_a_little, item) for item in items]:  # type: ignore[attr-defined]
            pool.result(handle)  # type: ignore[attr-defined]
    else:
        list(pool.map(wait_a_little, items))  # type: ignore[attr-defined]


def ask(pool: Any, fn: Any, item: Any) -> Any:
    """One task and its result; of a pool that only maps, a map of one item."""
    if pool.can("submit"):
        return pool.result(pool.submit(fn, item))
    return next(iter(pool.map(fn, [item])))


class LostError(Exception):
    """No outcome came in time."""


def outcome(pool: Any, handle: Any, seconds: float) -> Any:
    """The result, or the task's error, or LostError if there is none within the time. Packages say so differently."""
    if hasattr(handle, "wait") and hasattr(handle, "ready"):  # multiprocessing, mpire
        handle.wait(seconds)
        if not handle.ready():
            raise LostError
        return handle.get()
    if pool.package == "ray":
        ready, _ = pool.wait(handle, seconds)
        if not ready:
            raise LostError
        return pool.result(handle)
    try:
        return handle.result(seconds)
    except TimeoutError:
        if handle.done():
            raise
        raise LostError from None


def in_turns(
    take: Take, workers: int, turns: int, heavy: bool, verbs: tuple[str, ...] = (), pools: Any = POOLS
) -> Iterator[dict[str, Any]]:
    """Yields a row for each pool that is missing; calls `take` for the others. `verbs`: any of them is needed."""
    wanted = [pool for pool in pools if not verbs or any(pool.can(verb) for verb in verbs)]
    here, missing = present(wanted)
    yield from missing
    broken: set[type[PoolPeer]] = set()
    for turn in range(turns):
        for make in here:
            if not make.heavy and make not in broken:
                gc.collect()
                try:
                    with make(workers) as pool:
                        warm(pool)
                        take(pool, turn)
                except Exception as error:
                    if make.package == "shmrt":
                        raise
                    broken.add(make)  # a peer's failure is a row, not the end of the others
                    yield failed(make.impl, error)
    for make in here:
        if make.heavy and not heavy:
            yield {"impl": make.impl, "skipped": TOO_LONG}
        elif make.heavy:
            try:
                with make(workers) as pool:
                    warm(pool)
                    for turn in range(min(turns, 2)):
                        take(pool, turn)
            except Exception as error:  # on a small or busy machine they may not start in time
                yield failed(make.impl, error)


def failed(impl: str, error: Exception) -> dict[str, Any]:
    traceback.print_exc()
    return {"impl": impl, "skipped": f"failed: {type(error).__name__}"}

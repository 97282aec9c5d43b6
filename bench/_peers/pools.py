"""Pools of worker processes with the same few verbs, each used as its own documentation recommends.

`submit` begins one task and `result` waits for it; `map` gives all results in order, with the package's own choice of
chunks, `map_one_by_one` with one item each; `completed` gives results as they come. An adapter without a verb does not
define it: `can("map_unordered")` tells. All use the fork start method where there is a choice, the fastest one for
peers; loky, ray and dask start interpreters.

`after_death` says what becomes of the other tasks when a worker is killed by SIGKILL in the middle of one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import multiprocessing
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any

Fn = Callable[[Any], Any]

CONTEXT = multiprocessing.get_context("fork")
RESULT_S = 60.0


class PoolPeer:
    """Open from its making to `close`. `heavy` ones take seconds to start."""

    impl = ""
    package = ""
    after_death = ""
    heavy = False
    task_timeout = False

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @classmethod
    def can(cls, verb: str) -> bool:
        return hasattr(cls, verb)

    def close(self) -> None:
        raise NotImplementedError


class OfExecutor(PoolPeer):
    """One that follows `concurrent.futures`."""

    _pool: Any

    def submit(self, fn: Fn, item: Any) -> Any:
        return self._pool.submit(fn, item)

    def result(self, handle: Any) -> Any:
        return handle.result(RESULT_S)

    def map(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items)  # type: ignore[no-any-return]

    def map_one_by_one(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items, chunksize=1)  # type: ignore[no-any-return]

    def map_by_64(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items, chunksize=64)  # type: ignore[no-any-return]

    def completed(self, handles: list[Any]) -> Iterator[Any]:
        for handle in concurrent.futures.as_completed(handles):
            yield handle.result()

    def awaited(self, fn: Fn, item: Any) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self._pool, fn, item)

    def close(self) -> None:
        self._pool.shutdown()


class Shmrt(OfExecutor):
    impl, package = "shmrt.Pool", "shmrt"
    after_death = "finish; the worker is replaced"
    task_timeout = True

    def __init__(self, workers: int, **options: Any) -> None:
        super().__init__(workers)
        import shmrt

        self._runtime = shmrt.Runtime()  # of its own, so that its root ends with it and is in nobody else's figures
        self._runtime.__enter__()
        self._pool = shmrt.Pool(workers, **options)

    def map_unordered(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map_unordered(fn, items)  # type: ignore[no-any-return]

    def call(self, fn: Fn, item: Any) -> Any:
        return self._pool.call(fn, item)

    def awaited(self, fn: Fn, item: Any) -> Awaitable[Any]:
        # `await future` works as well, and costs gather one task more.
        return asyncio.wrap_future(self._pool.submit(fn, item))

    def submit_limited(self, fn: Fn, item: Any, seconds: float) -> Any:
        return self._pool.options(timeout=seconds).submit(fn, item)

    def close(self) -> None:
        self._pool.shutdown()
        self._runtime.__exit__(None, None, None)


class Standard(OfExecutor):
    impl, package = "ProcessPoolExecutor", "concurrent.futures"
    after_death = "fail; the pool is broken"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._pool = concurrent.futures.ProcessPoolExecutor(workers, CONTEXT)


class Multiprocessing(PoolPeer):
    impl, package = "multiprocessing.Pool", "multiprocessing"
    after_death = "finish; the killed one is awaited for ever"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._pool = CONTEXT.Pool(workers)

    def submit(self, fn: Fn, item: Any) -> Any:
        return self._pool.apply_async(fn, (item,))

    def result(self, handle: Any) -> Any:
        return handle.get(RESULT_S)

    def map(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items)

    def map_one_by_one(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.imap(fn, items)

    def map_by_64(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.imap(fn, items, 64)

    def map_unordered(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.imap_unordered(fn, items)

    def awaited(self, fn: Fn, item: Any) -> Awaitable[Any]:
        """By callbacks into the loop, as recipes for it do."""
        loop = asyncio.get_running_loop()
        future = loop.create_future()

        def done(value: Any) -> None:
            loop.call_soon_threadsafe(future.set_result, value)

        def failed(error: BaseException) -> None:
            loop.call_soon_threadsafe(future.set_exception, error)

        self._pool.apply_async(fn, (item,), callback=done, error_callback=failed)
        return future

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()


class Loky(OfExecutor):
    impl, package = "loky", "loky"
    after_death = "fail; the executor is broken"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        from loky import ProcessPoolExecutor

        self._pool = ProcessPoolExecutor(workers)

    def completed(self, handles: list[Any]) -> Iterator[Any]:
        from loky import as_completed

        for handle in as_completed(handles):
            yield handle.result()

    def close(self) -> None:
        self._pool.shutdown(kill_workers=True)


class Joblib(PoolPeer):
    """It has only maps. They choose how many items travel together by the measured time of a task."""

    impl, package = "joblib", "joblib"
    after_death = "fail; the next call has a new pool"

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        import joblib

        self._joblib = joblib
        self._parallel = joblib.Parallel(n_jobs=workers)
        self._unordered = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")

    def map(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        task = self._joblib.delayed(fn)
        return self._parallel(task(item) for item in items)  # type: ignore[no-any-return]

    def map_unordered(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        task = self._joblib.delayed(fn)
        return self._unordered(task(item) for item in items)  # type: ignore[no-any-return]

    def close(self) -> None:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(kill_workers=True)


class Mpire(PoolPeer):
    """Its workers stay between calls of one kind; a call of another kind on the same workers gets wrong arguments in
    this version, so they are made anew then."""

    impl, package = "mpire", "mpire"
    after_death = "fail; the pool ends"
    task_timeout = True

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        from mpire import WorkerPool

        self._pool = WorkerPool(workers, start_method="fork", keep_alive=True)
        self._kind = ""

    def _for(self, kind: str) -> Any:
        if kind != self._kind and self._kind:
            self._pool.stop_and_join()
        self._kind = kind
        return self._pool

    def submit(self, fn: Fn, item: Any) -> Any:
        return self._for("apply").apply_async(fn, args=(item,))

    def submit_limited(self, fn: Fn, item: Any, seconds: float) -> Any:
        return self._for("apply").apply_async(fn, args=(item,), task_timeout=seconds)

    def result(self, handle: Any) -> Any:
        return handle.get(RESULT_S)

    def map(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._for("map").map(fn, items)  # type: ignore[no-any-return]

    def map_one_by_one(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._for("imap").imap(fn, items, chunk_size=1)  # type: ignore[no-any-return]

    def map_by_64(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._for("imap").imap(fn, items, chunk_size=64)  # type: ignore[no-any-return]

    def map_unordered(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._for("unordered").imap_unordered(fn, items)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._pool.terminate()


class Pebble(OfExecutor):
    impl, package = "pebble", "pebble"
    after_death = "finish; the worker is replaced"
    task_timeout = True

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        from pebble import ProcessPool

        self._pool = ProcessPool(workers, context=CONTEXT)

    def submit(self, fn: Fn, item: Any) -> Any:
        return self._pool.schedule(fn, args=(item,))

    def submit_limited(self, fn: Fn, item: Any, seconds: float) -> Any:
        return self._pool.schedule(fn, args=(item,), timeout=seconds)

    def map(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items).result()  # type: ignore[no-any-return]

    map_one_by_one = map

    def map_by_64(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._pool.map(fn, items, chunksize=64).result()  # type: ignore[no-any-return]

    def awaited(self, fn: Fn, item: Any) -> Awaitable[Any]:
        return asyncio.wrap_future(self.submit(fn, item))

    def close(self) -> None:
        self._pool.stop()
        self._pool.join()


class Ray(PoolPeer):
    """A task is a remote function with one CPU; as many CPUs as workers."""

    impl, package = "ray", "ray"
    after_death = "finish; the worker is replaced"
    heavy = True

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        import logging
        import os

        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ray = ray
        ray.init(
            num_cpus=workers,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=512 << 20,
        )
        self._functions: dict[Fn, Any] = {}

    def _remote(self, fn: Fn) -> Any:
        if fn not in self._functions:
            self._functions[fn] = self._ray.remote(max_retries=0)(fn)
        return self._functions[fn]

    def submit(self, fn: Fn, item: Any) -> Any:
        return self._remote(fn).remote(item)

    def result(self, handle: Any) -> Any:
        return self._ray.get(handle, timeout=RESULT_S)

    def wait(self, handle: Any, seconds: float) -> Any:
        return self._ray.wait([handle], timeout=seconds)

    def map(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        task = self._remote(fn).remote
        return self._ray.get([task(item) for item in items])  # type: ignore[no-any-return]

    def completed(self, handles: list[Any]) -> Iterator[Any]:
        left = list(handles)
        while left:
            done, left = self._ray.wait(left, num_returns=min(len(left), 64), fetch_local=True)
            yield from self._ray.get(done)

    def awaited(self, fn: Fn, item: Any) -> Awaitable[Any]:
        return self.submit(fn, item)  # type: ignore[no-any-return]

    def close(self) -> None:
        self._ray.shutdown()


class Dask(PoolPeer):
    impl, package = "dask", "dask"
    after_death = "finish, after the killed one was tried on others"
    heavy = True

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        import logging

        import dask
        from distributed import Client, LocalCluster

        logging.getLogger("distributed").setLevel(logging.CRITICAL)
        dask.config.set({"distributed.admin.log-format": "%(message)s"})
        self._cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
        )
        self._client: Any = Client(self._cluster)

    def submit(self, fn: Fn, item: Any) -> Any:
        return self._client.submit(fn, item, pure=False)

    def result(self, handle: Any) -> Any:
        return handle.result(RESULT_S)

    def map(self, fn: Fn, items: Iterable[Any]) -> Iterable[Any]:
        return self._client.gather(self._client.map(fn, list(items), pure=False))  # type: ignore[no-any-return]

    def completed(self, handles: list[Any]) -> Iterator[Any]:
        from distributed import as_completed

        for _, value in as_completed(handles, with_results=True):
            yield value

    def close(self) -> None:
        self._client.close()
        self._cluster.close()


POOLS: tuple[type[PoolPeer], ...] = (
    Shmrt,
    Standard,
    Multiprocessing,
    Loky,
    Joblib,
    Mpire,
    Pebble,
    Ray,
    Dask,
)
LIGHT = tuple(pool for pool in POOLS if not pool.heavy)

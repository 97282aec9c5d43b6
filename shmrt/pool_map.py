"""Results of `Pool.map` and its kin: lazy, bounded, one task per item.

A window of tasks is under way; each result taken makes room for the next input. So inputs may be
infinite, and a consumer that stops stops the input. An exception belongs to its item: iteration goes on after it.

If a worker dies, its item alone ends in WorkerCrashed (or is tried again, by max_attempts).
"""

from __future__ import annotations

import time
from collections import deque
from queue import Empty, Full, SimpleQueue

from shmrt import _native
from shmrt.spec import check_count, check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from shmrt.pool import Pool
    from shmrt.pool_options import TaskOptions

__all__ = ["AsyncResults", "Results", "UnorderedResults"]

Future: Any = _native.future_class()
_WINDOW_PER_WORKER = 512  # enough to keep the lanes of no-ops full; each pending task costs about 0.5 KB


class _Feed:
    """Pulls argument tuples and submits them, as far as the window allows."""

    def __init__(
        self,
        pool: Pool,
        options: TaskOptions,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        timeout: float | None,
        chunksize: int | str,
        buffersize: int | None,
    ) -> None:
        if not callable(fn):
            raise TypeError(f"map() needs a callable, not {fn!r}")
        if not iterables:
            raise TypeError("map() needs at least one iterable")
        chunk = 1 if chunksize == "auto" else check_count(chunksize, "chunksize")  # type: ignore[arg-type]
        self.pool = pool
        self.fn = fn
        self.packed = options.packed()
        self.window = max(_WINDOW_PER_WORKER, 2 * chunk) * pool._max_workers
        if buffersize is not None:
            self.window = check_count(buffersize, "buffersize")
        limit = pool._max_pending
        if limit is not None:
            self.window = min(self.window, limit)
        self.inputs = zip(*iterables, strict=False) if len(iterables) > 1 else ((item,) for item in iterables[0])
        self.ended = False
        self._held: tuple[Any, ...] | None = None
        timeout = check_seconds(timeout, "timeout")
        self.end = None if timeout is None else time.monotonic() + timeout

    def next(self) -> Any:
        """The future of the next input, or None at the end. An exception of the input ends it and is raised; one
        that its pickling raises is its own outcome. Overloaded is raised, and the input kept for the next call."""
        if self.ended:
            return None
        if self._held is None:
            try:
                self._held = next(self.inputs)
            except StopIteration:
                self.ended = True
                return None
            except BaseException:
                self.ended = True
                raise
        pool = self.pool
        try:
            if pool._max_pending is None:
                future = pool._core.submit_with(self.packed, self.fn, *self._held)
            else:
                future = pool._submit_bounded(pool._core.submit_with, self.packed, self.fn, *self._held)
        except (RuntimeError, Full):  # no item's fault: the pool is full, shut down, broken, or its runtime is gone
            raise
        except Exception as error:
            future = Future()
            future.set_exception(error)
        self._held = None
        return future

    def left(self) -> float | None:
        return None if self.end is None else max(self.end - time.monotonic(), 0.0)


class Results:
    """The iterator that `Pool.map` returns."""

    def __init__(
        self, pool: Pool, options: TaskOptions, fn: Any, iterables: Any, timeout: Any, chunksize: Any, buffersize: Any
    ) -> None:
        self._feed = _Feed(pool, options, fn, iterables, timeout, chunksize, buffersize)
        self._pending: deque[Any] = deque()
        self._started = False
        self._fill()
        pool._maps.add(self)

    def _fill(self) -> None:
        while len(self._pending) < self._feed.window:
            future = self._feed.next()
            if future is None:
                break
            self._pending.append(future)

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Any:
        self._started = True
        if not self._feed.ended and len(self._pending) <= self._feed.window // 2:
            self._fill()
        if not self._pending:
            raise StopIteration
        future = self._pending[0]
        try:
            value = future.result(self._feed.left())
        except TimeoutError:
            if not future.done():  # the iterator's own time is over, as in Executor.map
                self.close()
            else:
                self._pending.popleft()
            raise
        except BaseException:
            if future.done():
                self._pending.popleft()
            raise
        self._pending.popleft()
        return value

    def _run_to_end(self) -> None:
        """By shutdown(wait=True): a map that nobody iterates does all its work; one under way ends with its window."""
        while not self._started and not self._feed.ended:
            while self._pending:
                self._pending[0].exception()
                self._pending.popleft()
            self._fill()
        self._feed.ended = True

    def close(self) -> None:
        """Cancels what has not begun and takes no more input."""
        self._feed.ended = True
        pending, self._pending = self._pending, deque()
        for future in reversed(pending):
            future.cancel()

    def __del__(self) -> None:
        if getattr(self, "_started", False) and self._pending:
            try:
                self.close()
            except Exception:
                pass  # the runtime is gone, and its tasks with it


class UnorderedResults(Results):
    """The iterator that `Pool.map_unordered` returns."""

    def __init__(self, *arguments: Any, return_exceptions: bool = False) -> None:
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._return_exceptions = return_exceptions
        self._running: set[Any] = set()
        super().__init__(*arguments)

    def _fill(self) -> None:
        while len(self._running) < self._feed.window:
            future = self._feed.next()
            if future is None:
                break
            self._running.add(future)
            future.add_done_callback(self._done.put)

    def __next__(self) -> Any:
        self._started = True
        if not self._feed.ended and len(self._running) <= self._feed.window // 2:
            self._fill()
        if not self._running:
            raise StopIteration
        try:
            future = self._done.get(timeout=self._feed.left())
        except Empty:
            self.close()
            raise TimeoutError("map_unordered() did not get its next result in time") from None
        self._running.discard(future)
        if self._return_exceptions and not future.cancelled():
            error = future.exception()
            if error is not None:
                return error
        return future.result()

    def _run_to_end(self) -> None:
        while not self._started and not self._feed.ended:
            while self._running:
                self._running.discard(self._done.get())
            self._fill()
        self._feed.ended = True

    def close(self) -> None:
        self._feed.ended = True
        running, self._running = self._running, set()
        for future in running:
            future.cancel()

    def __del__(self) -> None:
        if getattr(self, "_started", False) and self._running:
            try:
                self.close()
            except Exception:
                pass  # the runtime is gone, and its tasks with it


class AsyncResults:
    """The asynchronous iterator that `Pool.amap` returns."""

    def __init__(self, *arguments: Any) -> None:
        self._results = Results(*arguments)

    def __aiter__(self) -> AsyncResults:
        return self

    async def __anext__(self) -> Any:
        import asyncio

        results = self._results
        results._started = True
        if not results._feed.ended and len(results._pending) <= results._feed.window // 2:
            results._fill()
        if not results._pending:
            raise StopAsyncIteration
        future = results._pending.popleft()
        return await asyncio.wait_for(asyncio.wrap_future(future), results._feed.left())

    async def aclose(self) -> None:
        self._results.close()

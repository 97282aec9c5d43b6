"""Results of `Pool.map` and its kin: lazy, bounded, one task per item.

A window of tasks is under way; each result taken makes room for the next input. So inputs may be
infinite, and a consumer that stops stops the input. An exception belongs to its item: iteration goes on after it. An
exception of the input itself comes in its place, after the results of what came before it.

Never iterated, all its work is done by `shutdown(wait=True)`, also when nobody holds the iterator any more. Iterated in
part, the window's results outlive the shutdown, and asking beyond them raises what `submit` raises.

If a worker dies, its item alone ends in WorkerCrashed (or is tried again, by max_attempts).
"""

from __future__ import annotations

import threading
import time
from collections import deque
from functools import partial
from queue import Empty, Full, SimpleQueue

from shmrt import _native
from shmrt.spec import check_count, check_seconds
from shmrt.waits import next_of

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
    """Pulls argument tuples and submits them. It holds no Pool: see `Results.__del__`. What a breaker refuses is that
    item's outcome."""

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
        self.opened = pool._opened
        self.fn = fn
        self.packed = options.packed()
        self.breaker = options.breaker
        self.window = max(_WINDOW_PER_WORKER, 2 * chunk) * pool._max_workers
        if buffersize is not None:
            self.window = check_count(buffersize, "buffersize")
        if self.opened.max_pending is not None:
            self.window = min(self.window, self.opened.max_pending)
        self.inputs = zip(*iterables, strict=False) if len(iterables) > 1 else ((item,) for item in iterables[0])
        self.ended = False
        self.error: Exception | None = None
        self._held: tuple[Any, ...] | None = None
        timeout = check_seconds(timeout, "timeout")
        self.end = None if timeout is None else time.monotonic() + timeout

    def next(self, *, wait: bool = False) -> Any:
        """The future of the next input, or None at the end. What an item's pickling raises is that item's outcome; an
        exception of the input itself is the last outcome. What the pool refuses is raised, and the input kept for
        the next call. wait: for room, where the pool would raise Overloaded."""
        if self.ended:
            return None
        if self._held is None:
            try:
                self._held = next(self.inputs)
            except StopIteration:
                self.ended = True
                return None
            except Exception as error:
                self.ended = True
                self.error = error
                return _failed(error)
            except BaseException:
                self.ended = True
                raise
        opened = self.opened
        submit = opened.core.submit_with
        try:
            if opened.max_pending is not None:
                submit = partial(opened.submit_bounded, wait, submit)
            if self.breaker is not None:
                from shmrt.guard.tasks import submit_guarded

                submit = partial(submit_guarded, self.breaker, submit)
            future = submit(self.packed, self.fn, *self._held)
        except Exception as error:
            if _is_refusal(error):
                raise
            future = _failed(error)
        self._held = None
        return future

    def left(self) -> float | None:
        return None if self.end is None else max(self.end - time.monotonic(), 0.0)


def _failed(error: Exception) -> Any:
    future = Future()
    future.set_exception(error)
    return future


def _is_refusal(error: Exception) -> bool:
    """Whether no item is at fault: the pool is full, shut down or broken, or its runtime is gone. A pickling may raise
    a RuntimeError too: a RecursionError, or that of a lock of multiprocessing."""
    from shmrt.errors import Overloaded, PoolBroken, RuntimeDown

    if isinstance(error, (Overloaded, PoolBroken, RuntimeDown)):
        return True
    return type(error) is RuntimeError and str(error).startswith("cannot schedule new futures")


class Results:
    """The iterator that `Pool.map` returns."""

    def __init__(
        self, pool: Pool, options: TaskOptions, fn: Any, iterables: Any, timeout: Any, chunksize: Any, buffersize: Any
    ) -> None:
        self._feed = _Feed(pool, options, fn, iterables, timeout, chunksize, buffersize)
        self._pool: Pool | None = pool  # whoever iterates keeps the pool open
        self._pending: Any = self._new_pending()
        self._lock = threading.RLock()  # a shutdown in another thread may take inputs, too
        self._started = False
        self._fill()
        if self._feed.error is not None:
            raise self._feed.error
        with pool._lock:
            pool._maps.add(self)

    def _new_pending(self) -> Any:
        return deque()

    def _append(self, future: Any) -> None:
        self._pending.append(future)

    def _fill(self) -> None:
        """Up to the window. What the pool refuses is raised only when nothing else is left to give; that it is shut
        down or broken, at the call of map, too."""
        feed = self._feed
        with self._lock:
            while len(self._pending) < feed.window:
                try:
                    future = feed.next()
                except (RuntimeError, Full) as error:
                    if self._pending if self._started else isinstance(error, Full):
                        break
                    raise
                if future is None:
                    break
                self._append(future)

    def _start(self) -> bool:
        """Before each result: makes room good. Whether there is another one."""
        self._started = True
        if not self._feed.ended and len(self._pending) <= self._feed.window // 2:
            self._fill()
        return bool(self._pending)

    def __iter__(self) -> Results:
        return self

    def __next__(self) -> Any:
        if not self._start():
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

    def _run_to_end(self, *, keep: bool) -> None:
        """By shutdown(wait=True): a map that nobody iterates does all its work. One under way ends with its window, and
        whoever iterates beyond it hears that the pool was shut down. keep: somebody may still ask for the results."""
        feed = self._feed
        with self._lock:
            waiting = deque(self._pending)
            if not keep:
                self._pending = self._new_pending()
        while not self._started and not feed.ended:
            while len(waiting) >= feed.window:
                wait_done(waiting.popleft())
            with self._lock:
                if self._started:
                    break
                try:
                    future = feed.next(wait=True)
                except RuntimeError:
                    break  # broken or shut down: whoever iterates hears of it there
                if future is None:
                    break
                waiting.append(future)
                if keep:
                    self._append(future)

    def _cancel(self) -> None:
        """Cancels what has not begun; whoever iterates finds that in its place."""
        for future in reversed(list(self._pending)):
            future.cancel()

    def close(self) -> None:
        """Cancels what has not begun and takes no more input."""
        self._feed.ended = True
        self._cancel()
        self._pending = self._new_pending()

    def __del__(self) -> None:
        if not hasattr(self, "_started"):
            return
        try:
            if self._started:
                if self._pending:
                    self.close()
            elif not self._feed.ended and self._pool is not None and not self._pool._shutdown:
                # Never iterated: the rest of its work is done at the shutdown. It holds the pool no more, so that a
                # pool that is dropped with it is found to be dropped.
                self._feed.opened.unread.append(self)
                self._pool = None  # last: it may be what ends the pool
        except Exception:
            pass  # the runtime is gone, and its tasks with it


class UnorderedResults(Results):
    """The iterator that `Pool.map_unordered` returns."""

    def __init__(self, *arguments: Any, return_exceptions: bool = False) -> None:
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._return_exceptions = return_exceptions
        super().__init__(*arguments)

    def _new_pending(self) -> Any:
        return set()

    def _append(self, future: Any) -> None:
        self._pending.add(future)
        future.add_done_callback(self._done.put)

    def __next__(self) -> Any:
        if not self._start():
            raise StopIteration
        try:
            future = next_of(self._done, self._feed.left())
        except Empty:
            self.close()
            raise TimeoutError("map_unordered() did not get its next result in time") from None
        self._pending.discard(future)
        if self._return_exceptions and not future.cancelled():
            error = future.exception()
            if error is not None:
                return error
        return future.result()


class AsyncResults:
    """The asynchronous iterator that `Pool.amap` returns."""

    def __init__(self, *arguments: Any) -> None:
        self._results = Results(*arguments)

    def __aiter__(self) -> AsyncResults:
        return self

    async def __anext__(self) -> Any:
        import asyncio

        results = self._results
        if not results._start():
            raise StopAsyncIteration
        future = results._pending.popleft()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), results._feed.left())
        except TimeoutError:
            if not future.done() or future.cancelled():  # the iterator's own time is over
                results.close()
            raise

    async def aclose(self) -> None:
        self._results.close()


def wait_done(future: Any) -> None:
    """Until it has an outcome, whichever."""
    from concurrent.futures import CancelledError

    try:
        future.exception()
    except CancelledError:
        pass

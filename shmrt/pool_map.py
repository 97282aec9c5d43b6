"""Results of `Pool.map` and its kin: lazy, bounded, an outcome for each item.

A window of items is under way; results taken make room for the next inputs. So inputs may be infinite, and a consumer
that stops stops the input. An exception belongs to its item: iteration goes on after it. An exception of the input
itself comes in its place, after the results of what came before it.

Never iterated, all its work is done by `shutdown(wait=True)`, also when nobody holds the iterator any more. Iterated in
part, the window's results outlive the shutdown, and asking beyond them raises what `submit` raises.

If a worker dies, the item that it was running alone ends in WorkerCrashed (or is tried again, by max_attempts). Whoever
waits for a chunk of items that takes much longer than its like did takes out of it what was not begun, for other
workers.
"""

from __future__ import annotations

import threading
from collections import deque
from queue import Empty, Full, SimpleQueue

from shmrt import _native
from shmrt.pool_feed import Chunk, Feed

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.pool import Pool
    from shmrt.pool_options import TaskOptions

__all__ = ["AsyncResults", "Results", "UnorderedResults"]

Failure: Any = _native.Failure
_LATE_S = 0.01
"""Ten times what a chunk should take."""
_LATE_MOST_S = 0.1
_LOOK_EVERY = 16


class Results(_native.Ready):
    """The iterator that `Pool.map` returns. Of the inherited part: `__next__`, over the outcomes that `_more` gives."""

    def __init__(
        self, pool: Pool, options: TaskOptions, fn: Any, iterables: Any, timeout: Any, chunksize: Any, buffersize: Any
    ) -> None:
        self._feed = Feed(pool, options, fn, iterables, timeout, chunksize, buffersize)
        self._pool: Pool | None = pool  # whoever iterates keeps the pool open
        self._pending: Any = self._new_pending()
        self._under_way = 0  # items of what is pending
        self._unseen: deque[Chunk] = deque()  # whose running time is not known yet
        self._lock = threading.RLock()  # a shutdown in another thread may take inputs, too
        self._taking = threading.RLock()  # threads that share the iterator take turns
        self._started = False
        self._fill()
        if self._feed.error is not None:
            raise self._feed.error
        with pool._lock:
            pool._maps.add(self)

    def _new_pending(self) -> Any:
        return deque()

    def _append(self, entry: Any) -> None:
        self._pending.append(entry)

    def _insert_behind(self, chunk: Chunk, entries: list[Any]) -> None:
        """What was taken out of a chunk comes right after it, where it belongs."""
        pending = self._pending
        at = pending.index(chunk) + 1
        pending.rotate(-at)
        pending.extendleft(reversed(entries))
        pending.rotate(at)

    def _fill(self) -> None:
        """Up to the window. What the pool refuses is raised only when nothing else is left to give; that it is shut
        down or broken, at the call of map, too."""
        feed = self._feed
        with self._lock:
            window, made = feed.window if self._started else feed.window_first, 0
            while self._under_way < window:
                try:
                    entry = feed.next(window - self._under_way)
                except (RuntimeError, Full) as error:
                    if self._pending if self._started else isinstance(error, Full):
                        break
                    raise
                if entry is None:
                    break
                self._append(entry)
                self._under_way += _count(entry)
                made += 1
                if type(entry) is Chunk:
                    self._unseen.append(entry)
                    if made % _LOOK_EVERY == 0 and self._look() and self._started:
                        window = feed.window

    def _look(self) -> bool:
        """Learns the running times of chunks that are done meanwhile. Whether there were some."""
        unseen, seen = self._unseen, False
        while unseen and (unseen[0].future is None or unseen[0].future.done()):
            self._feed.observe(unseen.popleft())
            seen = True
        return seen

    def _start(self) -> bool:
        """Before the next results: makes room good. Whether there is another one."""
        self._started = True
        if self._feed.has_more:
            self._look()
            if self._under_way <= self._feed.window // 2:
                self._fill()
        return bool(self._pending)

    def _take(self, entry: Any) -> None:
        """The first one, done."""
        self._pending.popleft()
        self._under_way -= _count(entry)

    def _outcomes_of(self, chunk: Chunk) -> list[Any]:
        self._feed.observe(chunk)
        return chunk.take()

    def _more(self) -> list[Any]:
        with self._taking:
            return self._next_outcomes()

    def _next_outcomes(self) -> list[Any]:
        """In order."""
        if not self._start():
            raise StopIteration
        entry = self._pending[0]
        if type(entry) is Chunk:
            self._wait_chunk(entry)
            self._take(entry)
            return self._outcomes_of(entry)
        try:
            value = entry.result(self._feed.left())
        except TimeoutError:
            if not entry.done():  # the iterator's own time is over, as in Executor.map
                self.close()
            else:
                self._take(entry)
            raise
        except BaseException:
            if entry.done():
                self._take(entry)
            raise
        self._take(entry)
        return [value]

    def _wait_chunk(self, chunk: Chunk) -> None:
        """Until it is done; when that takes too long, what it has not begun is taken out of it."""
        late_s = _LATE_S
        while not chunk.future.done():
            left = self._feed.left()
            if left == 0.0:
                self.close()
                raise TimeoutError
            try:
                chunk.future.exception(late_s if left is None else min(late_s, left))
            except TimeoutError:
                self._split(chunk)
                late_s = min(2 * late_s, _LATE_MOST_S)
            except BaseException:
                if not chunk.future.done():
                    raise

    def _split(self, chunk: Chunk) -> None:
        feed = self._feed
        if len(chunk) < 2:
            return
        with self._lock:
            if self._pool is None or self._pool._shutdown or feed.opened.is_broken:
                return  # nobody else would take them
            kept = feed.opened.core.split(chunk.future)
            if 0 <= kept < len(chunk):
                rest = chunk.items[kept:]
                del chunk.items[kept:]
                self._insert_behind(chunk, feed.again(rest))

    def _run_to_end(self, *, keep: bool) -> None:
        """By shutdown(wait=True): a map that nobody iterates does all its work. One under way ends with its window, and
        whoever iterates beyond it hears that the pool was shut down. keep: somebody may still ask for the results."""
        feed = self._feed
        with self._lock:
            waiting = deque(self._pending)
            count = self._under_way
            if not keep:
                self._pending = self._new_pending()
        while not self._started and feed.has_more:
            while count >= feed.window:
                count -= _count(waiting[0])
                wait_done(waiting.popleft())
            with self._lock:
                if self._started:
                    break
                try:
                    entry = feed.next(max(feed.window - count, 1), wait=True)
                except RuntimeError:
                    break  # broken or shut down: whoever iterates hears of it there
                if entry is None:
                    break
                waiting.append(entry)
                count += _count(entry)
                if keep:
                    self._append(entry)
                    self._under_way += _count(entry)

    def _cancel(self) -> None:
        """Cancels what has not begun; whoever iterates finds that in its place."""
        for entry in reversed(list(self._pending)):
            _future_of(entry).cancel()

    def close(self) -> None:
        """Cancels what has not begun and takes no more input."""
        feed = self._feed
        feed.stop()
        for entry in list(self._pending):
            if not _future_of(entry).cancel() and type(entry) is Chunk:
                feed.opened.core.split(entry.future)
        self._pending = self._new_pending()
        self._under_way = 0
        self._unseen.clear()
        self._drop()

    def __del__(self) -> None:
        if not hasattr(self, "_started"):
            return
        try:
            if self._started:
                if self._pending:
                    self.close()
            elif self._feed.has_more and self._pool is not None and not self._pool._shutdown:
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

    def _append(self, entry: Any) -> None:
        self._pending.add(entry)
        put = self._done.put  # the future must not keep the iterator
        _future_of(entry).add_done_callback(put if type(entry) is not Chunk else lambda _: put(entry))

    def _insert_behind(self, chunk: Chunk, entries: list[Any]) -> None:
        for entry in entries:
            self._append(entry)

    def _take(self, entry: Any) -> None:
        if entry in self._pending:
            self._pending.discard(entry)
            self._under_way -= _count(entry)

    def _next_done(self) -> Any:
        late_s = _LATE_S
        while True:
            left = self._feed.left()
            try:
                return self._done.get(timeout=late_s if left is None else min(late_s, left))
            except Empty:
                if left is not None and left <= late_s:
                    self.close()
                    raise TimeoutError("map_unordered() did not get its next result in time") from None
            for entry in list(self._pending):
                if type(entry) is Chunk:
                    self._split(entry)
            late_s = min(2 * late_s, _LATE_MOST_S)

    def _next_outcomes(self) -> list[Any]:
        if not self._start():
            raise StopIteration
        entry = self._next_done()
        self._take(entry)
        if type(entry) is Chunk:
            outcomes = self._outcomes_of(entry)
            if self._return_exceptions:
                outcomes = [each.exception if type(each) is Failure else each for each in outcomes]
            return outcomes
        if self._return_exceptions and not entry.cancelled():
            error = entry.exception()
            if error is not None:
                return [error]
        return [entry.result()]


class AsyncResults:
    """The asynchronous iterator that `Pool.amap` returns."""

    def __init__(self, *arguments: Any) -> None:
        self._results = Results(*arguments)
        self._outcomes: deque[Any] = deque()

    def __aiter__(self) -> AsyncResults:
        return self

    async def __anext__(self) -> Any:
        while not self._outcomes:
            await self._wait()
        outcome = self._outcomes.popleft()
        if type(outcome) is Failure:
            raise outcome.exception
        return outcome

    async def _wait(self) -> None:
        import asyncio

        results = self._results
        if not results._start():
            raise StopAsyncIteration
        entry = results._pending[0]
        future = _future_of(entry)
        late_s = _LATE_S
        while not future.done():
            left = results._feed.left()
            patience = late_s if left is None else min(late_s, left)
            bounded = left is not None or type(entry) is Chunk
            await asyncio.wait([asyncio.wrap_future(future)], timeout=patience if bounded else None)
            if future.done():
                break
            if left is not None and left <= patience:
                results.close()
                raise TimeoutError
            if type(entry) is Chunk:
                results._split(entry)
            late_s = min(2 * late_s, _LATE_MOST_S)
        results._take(entry)
        if type(entry) is Chunk:
            self._outcomes.extend(results._outcomes_of(entry))
        else:
            self._outcomes.append(await asyncio.wrap_future(future))

    async def aclose(self) -> None:
        self._results.close()
        self._outcomes.clear()


def _future_of(entry: Any) -> Any:
    return entry.future if type(entry) is Chunk else entry


def _count(entry: Any) -> int:
    return len(entry) if type(entry) is Chunk else 1


def wait_done(entry: Any) -> None:
    """Until it has an outcome, whichever."""
    from concurrent.futures import CancelledError

    try:
        _future_of(entry).exception()
    except CancelledError:
        pass

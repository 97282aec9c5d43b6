"""The inputs of a map on their way into a pool: pulled lazily, small items many at a time.

Items whose calls are short travel together in a *chunk* (native/hub_chunk.h): one message for many, and still an
outcome for each; none is run twice, and a death concerns only the item that was running. How many go together follows
the running times that the chunks tell (`decide/chunking.py`). What has a timeout, a deadline, a breaker, or may be
tried again is a task of its own, and so is an item with big buffers or one that cannot be pickled.
"""

from __future__ import annotations

import time
from functools import partial
from operator import length_hint

from shmrt import _native
from shmrt.decide.chunking import TARGET_NS, Pace
from shmrt.spec import check_count, check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

    from shmrt.pool import Pool
    from shmrt.pool_options import TaskOptions

__all__ = ["CHUNK_ITEMS_MAX", "Chunk", "Feed", "failed"]

Future: Any = _native.future_class()
CHUNK_ITEMS_MAX = _native.LAYOUT["CHUNK_ITEMS_MAX"]
CHUNK_NS = TARGET_NS
"""Running time of a chunk, as in pipelines. Its end wakes the program, which costs the workers some ten microseconds
where no CPU is idle."""
_WINDOW_PER_WORKER = 512  # enough to keep the lanes of no-ops full; each pending task costs about 0.5 KB
_CHUNKS_PER_WORKER = 4
_ALONE = 64
"""So many items go by themselves after one that could not go with others."""


class Chunk:
    """Items under way together. Its future ends with (one outcome for each, running time in nanoseconds)."""

    __slots__ = ("future", "items", "seen")

    def __init__(self, future: Any, items: list[Any]) -> None:
        self.future = future
        self.items = items
        self.seen = False
        """Its running time is known."""

    def __len__(self) -> int:
        return len(self.items)

    def take(self) -> list[Any]:
        """The outcomes, once it is done; it keeps none of them. Cancelled, or broken with its pool: that is the
        outcome of each of its items."""
        try:
            outcomes: list[Any] = self.future.result()[0]
        except BaseException as error:
            outcomes = [_native.Failure(error) for _ in self.items]
        self.future = None
        return outcomes


class Feed:
    """Pulls items and submits them. It holds no Pool: see `Results.__del__`. What a breaker refuses is that item's
    outcome."""

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
        self.fixed = 0 if chunksize == "auto" else check_count(chunksize, "chunksize")  # type: ignore[arg-type]
        self.opened = pool._opened
        self.fn = fn
        self.packed = options.packed()
        self.breaker = options.breaker
        self.workers = pool._max_workers
        self.buffersize = None if buffersize is None else check_count(buffersize, "buffersize")
        self.star = len(iterables) > 1
        self.left_hint = _least_length(iterables)
        self.inputs = zip(*iterables, strict=False) if self.star else iter(iterables[0])
        self.ended = False
        self.error: Exception | None = None
        self.chunks = self.fixed != 1 and options.is_plain() and self.opened.may_chunk()
        self.pace = self.opened.pace_of(fn)
        self._chunk_options = (options.inherits, options.priority)
        self._held: list[Any] = []
        self._alone = 0
        self._told = False
        timeout = check_seconds(timeout, "timeout")
        self.end = None if timeout is None else time.monotonic() + timeout

    @property
    def has_more(self) -> bool:
        return not self.ended or bool(self._held) or (self.error is not None and not self._told)

    def stop(self) -> None:
        """Takes no more input."""
        self.ended = self._told = True
        self._held.clear()

    @property
    def window_first(self) -> int:
        """How many items may be under way before anybody asks for a result."""
        most = _WINDOW_PER_WORKER * self.workers if self.buffersize is None else self.buffersize
        if self.fixed and self.buffersize is None:
            most = max(most, 2 * self.fixed * self.workers)
        return most if self.opened.max_pending is None else min(most, self.opened.max_pending)

    @property
    def window(self) -> int:
        """How many items may be under way."""
        first = self.window_first
        if self.buffersize is not None or not self.chunks:
            return first
        size = self.fixed or self.pace.size(waiting=10**9, workers=1)
        return max(first, _CHUNKS_PER_WORKER * min(size, CHUNK_ITEMS_MAX) * self.workers)

    def next(self, room: int, *, wait: bool = False) -> Any:
        """The next Chunk, of at most `room` items, or future, or None at the end. What an item's pickling raises is
        that item's outcome; an exception of the input itself is the last outcome. What the pool refuses is raised, and
        the input kept for the next call. wait: for room, where the pool would raise Overloaded."""
        held = self._held
        if not held and not self.ended:
            self._pull(min(self._size(), room))
        if not held:
            if self.error is None or self._told:
                return None
            self._told = True
            return failed(self.error)
        if self.chunks and self._alone == 0:
            chunk = self._submit_chunk(held)
            if chunk is not None:
                del held[: len(chunk)]
                return chunk
            self._alone = _ALONE
        if self._alone:
            self._alone -= 1
        future = self._submit_one(held[0], wait)
        del held[0]
        return future

    def again(self, items: list[Any]) -> list[Any]:
        """Items that were taken out of a chunk, each as a chunk of its own; what the pool refuses is their outcome."""
        made = []
        for item in items:
            try:
                made.append(self._submit_chunk([item]) or self._submit_one(item, wait=False))
            except Exception as error:
                made.append(failed(error))
        return made

    def observe(self, chunk: Chunk) -> None:
        """Learns its running time, once it is done."""
        future = chunk.future
        if chunk.seen or future is None or future.cancelled() or future.exception() is not None:
            return
        chunk.seen = True
        elapsed_ns = future.result()[1]
        if elapsed_ns:
            self.pace.observe(count=len(chunk), elapsed_ns=elapsed_ns)

    def left(self) -> float | None:
        return None if self.end is None else max(self.end - time.monotonic(), 0.0)

    def _size(self) -> int:
        """How many items to pull for the next task."""
        if not self.chunks or self._alone:
            return 1
        size = self.fixed or self.pace.size(waiting=max(self.left_hint, 1), workers=self.workers)
        if self.buffersize is not None:
            size = min(size, max(1, self.buffersize // (2 * self.workers)))
        return min(size, CHUNK_ITEMS_MAX)

    def _pull(self, most: int) -> None:
        held = self._held
        try:
            self.ended = not _native.pull(self.inputs, held, most)
        except Exception as error:
            self.ended = True
            self.error = error
        except BaseException:
            self.ended = True
            raise
        self.left_hint -= len(held)

    def _submit_chunk(self, items: list[Any]) -> Chunk | None:
        found = self.opened.core.submit_chunk(self._chunk_options, self.fn, items, self.star)
        return None if found is None else Chunk(found[0], items[: found[1]])

    def _submit_one(self, item: Any, wait: bool) -> Any:
        opened = self.opened
        submit = opened.core.submit_with
        try:
            if opened.max_pending is not None:
                submit = partial(opened.submit_bounded, wait, submit)
            if self.breaker is not None:
                from shmrt.guard.tasks import submit_guarded

                submit = partial(submit_guarded, self.breaker, submit)
            return submit(self.packed, self.fn, *item) if self.star else submit(self.packed, self.fn, item)
        except Exception as error:
            if _is_refusal(error):
                raise
            return failed(error)


def failed(error: BaseException) -> Any:
    """A future that ended so."""
    future = Future()
    future.set_exception(error)
    return future


def _least_length(iterables: tuple[Iterable[Any], ...]) -> int:
    """Of those that tell; 10**9: none does."""
    told = []
    for iterable in iterables:
        try:
            told.append(length_hint(iterable, 10**9))
        except Exception:
            pass  # whoever iterates it hears of it
    return min(told, default=10**9)


def _is_refusal(error: Exception) -> bool:
    """Whether no item is at fault: the pool is full, shut down or broken, or its runtime is gone. A pickling may raise
    a RuntimeError too: a RecursionError, or that of a lock of multiprocessing."""
    from shmrt.errors import Overloaded, PoolBroken, RuntimeDown

    if isinstance(error, (Overloaded, PoolBroken, RuntimeDown)):
        return True
    return type(error) is RuntimeError and str(error).startswith("cannot schedule new futures")


def new_pace() -> Pace:
    return Pace(target_ns=CHUNK_NS, most=CHUNK_ITEMS_MAX)

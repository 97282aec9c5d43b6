"""The last good answer of a function for each of its arguments, for as long as it is worth anything.

    >>> from shmrt.clock import ManualClock
    >>> clock = ManualClock()
    >>> cache = StaleCache(100, fresh=1.0, max_stale=60.0, clock=clock)
    >>> cache.store("key", "answer")
    >>> clock.advance(5_000_000_000)
    >>> cache.look("key")
    ('stale', 'answer', 5.0)

What there is for one key, by the age of the answer:

    age < fresh           "fresh"    the function need not be asked
    age <= max_stale      "stale"    better than an error (the stale-if-error of RFC 5861)
    older                 None       forgotten; its memory is given back at the next `store`, if not before

Held by cachetools (`TLRUCache`), which bounds the entries and drops the least recently used: `pip install
"shmrt[resilience]"`. The cache belongs to its process and dies with it. The clock is monotonic: it stands still while
the machine is suspended. Values are not copied; who changes one changes it for all.
"""

from __future__ import annotations

import threading

from shmrt.clock import MONOTONIC
from shmrt.decide.fallback import FRESH, worth
from shmrt.spec import check_count, check_seconds

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any

    from shmrt.clock import Clock

__all__ = ["StaleCache"]

_NS = 1_000_000_000


class StaleCache:
    """Last good answers.

    max_entries: how many are kept; one more drops the least recently used. fresh: seconds during which the answer is as
    good as a new one (0: never; the function is always asked). max_stale: seconds after which it is worth nothing,
    counted from when the function gave it; None is no end. key(*args, **kwargs): what tells one call's arguments from
    another's; None is the arguments themselves, which must be hashable. clock: for tests.

    May be shared by threads and by several `Fallback`s, whose answers do not mix. Raises ValueError or TypeError for a
    wrong argument, ImportError if cachetools is missing.
    """

    def __init__(
        self,
        max_entries: int = 1024,
        *,
        fresh: float = 0.0,
        max_stale: float | None = 300.0,
        key: Callable[..., Hashable] | None = None,
        clock: Clock = MONOTONIC,
    ) -> None:
        self.max_entries = check_count(max_entries, "max_entries")
        young = check_seconds(fresh, "fresh")
        old = check_seconds(max_stale, "max_stale")
        if young is None:
            raise ValueError(f"fresh={fresh!r} must be seconds; an answer that is good for ever needs no fallback")
        if old is not None and young > old:
            raise ValueError(f"fresh={fresh!r} must be at most max_stale={max_stale!r}")
        if key is not None and not callable(key):
            raise TypeError(f"key must be a function of the arguments, not {key!r}")
        self.fresh, self.max_stale = young, old
        self._fresh_ns = int(young * _NS)
        self._max_stale_ns = None if old is None else int(old * _NS)
        self._clock = clock
        self._lock = threading.RLock()  # a key's __eq__ and __hash__ run below it, and are the user's
        self._hits = self._misses = self._stored = 0
        cachetools = _cachetools()
        self._key = cachetools.keys.hashkey if key is None else key
        self._entries: Any = cachetools.TLRUCache(max_entries, self._end_of, timer=clock.now_ns)

    def _end_of(self, key: object, entry: tuple[Any, int], now_ns: int) -> float:
        # cachetools drops an entry when its end is reached; here the last nanosecond of max_stale still counts.
        return float("inf") if self._max_stale_ns is None else entry[1] + self._max_stale_ns + 1

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Hashable:
        """What tells these arguments from others. TypeError if that is not hashable."""
        key: Hashable = self._key(*args, **kwargs)
        try:
            hash(key)
        except TypeError as error:
            raise TypeError(
                f"arguments that are remembered must be hashable ({error}); give StaleCache a key= function that makes "
                "something hashable of them"
            ) from None
        return key

    def store(self, key: Hashable, value: Any) -> None:
        """Remembers an answer that was given now."""
        now_ns = self._clock.now_ns()
        with self._lock:
            self._entries[key] = (value, now_ns)
            self._stored += 1

    def look(self, key: Hashable) -> tuple[str, Any, float] | None:
        """("fresh" or "stale", the answer, its age in seconds), or None."""
        with self._lock:
            now_ns = self._clock.now_ns()
            try:
                entry = self._entries[key]  # not get(), which looks twice: it may expire in between
            except KeyError:
                entry = None
            age_ns = None if entry is None else max(now_ns - entry[1], 0)
            what = worth(age_ns, fresh_ns=self._fresh_ns, max_stale_ns=self._max_stale_ns)
            if entry is None or age_ns is None or what == "nothing":
                self._misses += 1
                return None
            self._hits += 1
            return what, entry[0], age_ns / _NS

    def fresh_answer(self, key: Hashable) -> tuple[Any, float] | None:
        """The answer and its age, if it is fresh."""
        if not self._fresh_ns:
            return None
        found = self.look(key)
        return found[1:] if found is not None and found[0] == FRESH else None

    def clear(self) -> None:
        """Forgets all."""
        with self._lock:
            self._entries.clear()

    def __len__(self) -> int:
        """How many are kept that are still worth something."""
        with self._lock:
            self._entries.expire()
            return len(self._entries)

    def stats(self) -> dict[str, int]:
        """entries, max_entries, stored, hits (looked up and found) and misses."""
        with self._lock:
            counts = {"stored": self._stored, "hits": self._hits, "misses": self._misses}
            return {"entries": len(self), "max_entries": self.max_entries, **counts}

    def __reduce__(self) -> Any:
        """As settings: another process begins with nothing."""
        from functools import partial

        options: dict[str, Any] = {"fresh": self.fresh, "max_stale": self.max_stale}
        if self._key is not _cachetools().keys.hashkey:
            options["key"] = self._key
        if self._clock is not MONOTONIC:
            options["clock"] = self._clock
        return (partial(StaleCache, self.max_entries, **options), ())

    def __repr__(self) -> str:
        return f"StaleCache({self.max_entries}, fresh={self.fresh!r}, max_stale={self.max_stale!r})"


def _cachetools() -> Any:
    try:
        import cachetools
        import cachetools.keys
    except ImportError as error:
        raise ImportError(
            f'StaleCache needs cachetools ({error}): pip install "shmrt[resilience]", or cachetools itself'
        ) from error
    if not hasattr(cachetools, "TLRUCache"):
        raise ImportError("StaleCache needs cachetools 5.0 or newer: pip install --upgrade cachetools")
    return cachetools

"""Decides which ring is large enough, from rates measured with several.

Larger rings cost memory and caches, so the smallest that was not seen to be slower than the best is the one to have.
Repetitions differ: a size counts by the fastest of its own, against `PART` of the best median.

    >>> smallest_good({16: [1.0, 1.1], 256: [1.8, 2.0], 4096: [2.0, 2.0]})
    256
    >>> burst_slots(rate=200_000, pause_s=0.1)
    32768
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from shmrt.decide.tune_compare import median

__all__ = ["burst_slots", "smallest_good"]

PART = 0.95
SLOTS_MOST = 2**24


def smallest_good(rates: Mapping[int, Sequence[float]]) -> int:
    """The smallest size that was nearly as fast as the best one is usually."""
    if not rates:
        raise ValueError("rates must have at least one size")
    best = max(median(values) for values in rates.values())
    return min(size for size, values in rates.items() if max(values) >= PART * best)


def burst_slots(rate: float, pause_s: float) -> int:
    """Slots, a power of two, that hold what comes while the consumer pauses."""
    needed = max(1, int(rate * pause_s))
    return min(SLOTS_MOST, 1 << (needed - 1).bit_length())

"""Describes image tiles with numpy: large payloads that no stage copies, held back by the slowest.

    cut -> entropy -> gradients -> patterns -> thumbnail -> index
    `-- source   `--- four stages of workers ---'           `- this process

A tile is 256x256 pixels of three bytes, cut from a picture straight into shared memory (`shmrt.empty`). Every stage is
given it and returns it with what it found, so it goes on by reference: the same memory from the source to the last
stage. That is counted, not assumed: each stage notes the *place* of the tile (block and generation; a copy has
another), and `copies` of the summary are the places that changed on the way. The thumbnail is small and new; the tile
ends there.

    entropy     of each channel's histogram, in bits
    gradients   how much light changes in eight directions
    patterns    local binary patterns: which of eight neighbours are at least as bright
    thumbnail   32x32 pixels, each the mean of 64

Everything a stage does depends on its tile alone and is in whole numbers (or a sum that is exactly rounded), so the
digest of the index must equal the digest of `serial`, however many workers died, and however long one was stopped.

`pipeline(...)` is a target of `python -m shmrt run shmrt.examples.tiles:pipeline`. It needs numpy.

    >>> cutter = Cutter([drawn(0)])
    >>> tile = cutter.cut(5, np.empty(SHAPE, np.uint8))
    >>> found = describe(5, tile)
    >>> sorted(found), len(found["patterns"]), len(found["thumbnail"])
    (['entropy', 'gradients', 'patterns', 'thumbnail'], 256, 3072)
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

import shmrt
from shmrt import _native
from shmrt.examples.tiles_images import drawn, pictures

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from shmrt.pipeline import Pipeline

    Tile = NDArray[np.uint8]
    Item = tuple[int, Tile, dict[str, Any], list[Any]]

__all__ = ["BYTES", "SHAPE", "STAGES", "Cutter", "Index", "consume", "describe", "drawn", "pipeline", "place", "serial"]

SHAPE = (256, 256, 3)
BYTES = 256 * 256 * 3
SIDE = 32
SLOTS = 16
TILES = 400
ATTEMPTS = 10
_BITS = np.arange(BYTES // 3 + 1, dtype=np.float64)
_BITS[1:] *= np.log2(_BITS[1:])
"""n * log2(n)"""


def place(array: Any) -> tuple[int, int] | None:
    """Block and generation of an array in shared memory, the same in every process; None if it lies elsewhere."""
    while isinstance(array, np.ndarray):
        array = array.base
    block = array.obj if isinstance(array, memoryview) else array
    return (block.number, block.generation) if isinstance(block, _native.Block) else None


# ---- the stages: each is given the tile, and returns it with what it found --------------------------------------


def entropy_of(tile: Tile) -> list[float]:
    found = []
    for channel in range(3):
        counts = np.bincount(tile[..., channel].ravel(), minlength=256)
        found.append(math.log2(BYTES // 3) - math.fsum(_BITS[counts].tolist()) / (BYTES // 3))
    return found


def _light(tile: Tile) -> NDArray[np.int32]:
    weighted: NDArray[np.int32] = tile.astype(np.int32) @ np.array([77, 150, 29], np.int32)
    return weighted >> 8


def gradients_of(tile: Tile) -> list[int]:
    light = _light(tile)
    across, down = light[1:-1, 2:] - light[1:-1, :-2], light[2:, 1:-1] - light[:-2, 1:-1]
    octant = (across < 0) * 4 + (down < 0) * 2 + (abs(across) < abs(down))
    sums = np.bincount(octant.ravel(), (abs(across) + abs(down)).ravel(), 8)  # whole numbers far below 2**53
    return [int(value) for value in sums]


def patterns_of(tile: Tile) -> list[int]:
    light = _light(tile)
    middle, codes = light[1:-1, 1:-1], np.zeros((SHAPE[0] - 2, SHAPE[1] - 2), np.uint8)
    around = ((0, 0), (0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0))
    for bit, (y, x) in enumerate(around):
        codes |= (light[y : y + SHAPE[0] - 2, x : x + SHAPE[1] - 2] >= middle).astype(np.uint8) << bit
    return [int(value) for value in np.bincount(codes.ravel(), minlength=256)]


def thumbnail_of(tile: Tile, out: Tile) -> Tile:
    wide = SHAPE[0] // SIDE
    out[:] = tile.reshape(SIDE, wide, SIDE, wide, 3).sum((1, 3), np.uint32) // wide**2
    return out


def entropy(item: Item) -> Item:
    number, tile, found, places = item
    return number, tile, found | {"entropy": entropy_of(tile)}, [*places, place(tile)]


def gradients(item: Item) -> Item:
    number, tile, found, places = item
    return number, tile, found | {"gradients": gradients_of(tile)}, [*places, place(tile)]


def patterns(item: Item) -> Item:
    number, tile, found, places = item
    return number, tile, found | {"patterns": patterns_of(tile)}, [*places, place(tile)]


def thumbnail(item: Item) -> tuple[int, dict[str, Any], list[Any], int]:
    """The tile ends here. The last part of what it gives is the process that made it."""
    number, tile, found, places = item
    small = thumbnail_of(tile, shmrt.empty((SIDE, SIDE, 3), np.uint8))
    return number, found | {"thumbnail": small}, [*places, place(tile)], os.getpid()


STAGES: tuple[Callable[[Any], Any], ...] = (entropy, gradients, patterns, thumbnail)


def describe(number: int, tile: Tile) -> dict[str, Any]:
    """All of it without workers."""
    small = thumbnail_of(tile, np.empty((SIDE, SIDE, 3), np.uint8))
    found = {"entropy": entropy_of(tile), "gradients": gradients_of(tile), "patterns": patterns_of(tile)}
    return found | {"thumbnail": small.tobytes()}


# ---- the source -------------------------------------------------------------------------------------------------


class Cutter:
    """Tile `number` of some pictures: at a place of its own, turned over, round the edges; there is no last one."""

    def __init__(self, of: list[Tile], seed: int = 0) -> None:
        self.pictures, self.seed = of, seed

    def cut(self, number: int, out: Tile) -> Tile:
        picture = self.pictures[number % len(self.pictures)]
        drawn_from = hashlib.blake2b(f"{self.seed} {number}".encode(), digest_size=9).digest()
        top = int.from_bytes(drawn_from[:4], "big") % picture.shape[0]
        left = int.from_bytes(drawn_from[4:8], "big") % picture.shape[1]
        into = out[:: 1 - 2 * (drawn_from[8] & 1), :: 1 - (drawn_from[8] & 2)]
        for y, from_y, rows in _spans(top, picture.shape[0]):
            for x, from_x, columns in _spans(left, picture.shape[1]):
                into[y : y + rows, x : x + columns] = picture[from_y : from_y + rows, from_x : from_x + columns]
        return out


def _spans(start: int, length: int) -> Iterator[tuple[int, int, int]]:
    """(where in the tile, where in the picture, how many) until the tile is full; behind the last row comes the
    first."""
    done = 0
    while done < SHAPE[0]:
        count = min(SHAPE[0] - done, length - start)
        yield done, start, count
        done, start = done + count, 0


class Source:
    """Cuts `count` tiles, and more until `enough` says so. `given` is how many it has cut."""

    def __init__(self, cutter: Cutter, count: int, enough: Callable[[], bool] = lambda: True) -> None:
        self.cutter, self.total, self.enough, self.given = cutter, count, enough, 0

    def __call__(self) -> Iterator[Item]:
        self.given = 0
        while self.given < self.total or not self.enough():
            tile: Tile = self.cutter.cut(self.given, shmrt.empty(SHAPE, np.uint8))
            item: Item = (self.given, tile, {}, [place(tile)])
            self.given += 1
            yield item


# ---- the consumer -----------------------------------------------------------------------------------------------


class Index:
    """What is known of each tile, and which ones look alike."""

    def __init__(self) -> None:
        self._lines: dict[int, bytes] = {}
        self._groups: Counter[tuple[int, int]] = Counter()
        self.copies = 0
        self.worker = 0
        """The process that made the last thumbnail."""

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, number: int, found: dict[str, Any], places: list[Any] = [], worker: int = 0) -> None:  # noqa: B006
        if number in self._lines:
            raise ValueError(f"tile {number} came twice")
        self.copies += sum(one != other or one is None for one, other in pairwise(places))
        self.worker = worker
        small = found["thumbnail"]
        line = repr([found[name] for name in ("entropy", "gradients", "patterns")]).encode()
        pixels = small if isinstance(small, bytes) else small.tobytes()
        self._lines[number] = hashlib.blake2b(line + b"\0" + pixels, digest_size=16).digest()
        strongest = max(range(8), key=found["gradients"].__getitem__)
        self._groups[int(sum(found["entropy"]) / 3), strongest] += 1

    def digest(self) -> str:
        """One word for everything that was found, in the order of the tiles."""
        total = hashlib.blake2b(digest_size=16)
        for number in sorted(self._lines):
            total.update(number.to_bytes(8, "big") + self._lines[number])
        return total.hexdigest()

    def summary(self) -> dict[str, Any]:
        count = len(self._lines)
        return {
            "tiles": count,
            "bytes": count * BYTES,
            "groups": len(self._groups),
            "copies": self.copies,
            "copies_per_tile": self.copies / max(1, count),
            "digest": self.digest(),
        }


# ---- what `python -m shmrt run` uses ------------------------------------------------------------------------------


def stages(workers: int | None = None, slots: int = SLOTS, slot_bytes: int = 512, attempts: int = ATTEMPTS) -> Pipeline:
    """The four stages without a source; `workers` find patterns, which takes longest, and one makes thumbnails."""
    from shmrt.pipeline import Pipeline
    from shmrt.spec import RingSpec

    pipe = Pipeline("tiles")
    for fn in STAGES:
        count = (workers or max(1, len(os.sched_getaffinity(0)) - 1)) if fn is patterns else 1
        ring = RingSpec(slots=slots, slot_bytes=slot_bytes)
        pipe = pipe.map(fn, workers=count, ring=ring, max_attempts=attempts, name=fn.__name__)
    return pipe


def pipeline(
    input: str | None = None,
    *,
    workers: int | None = None,
    ring_slots: int | None = None,
    slot_bytes: int | None = None,
    max_attempts: int = ATTEMPTS,
    tiles: int = TILES,
    seed: int = 0,
) -> Pipeline:
    """The description. input: a folder with PNG or PPM pictures (None: those of the installation, or drawn ones)."""
    source = Source(Cutter(pictures(input, seed=seed)[0], seed), tiles)
    return stages(workers, ring_slots or SLOTS, slot_bytes or 512, max_attempts).source(source)


def consume(run: Iterable[Any]) -> dict[str, Any]:
    """Takes every output of a run and gives the summary that the command line prints."""
    index = Index()
    for found in run:
        index.add(*found)
    return index.summary()


def serial(
    input: str | None = None, *, tiles: int = TILES, seed: int = 0, progress: Any = None, **_: Any
) -> dict[str, Any]:
    """`consume(pipeline(...).run())` without processes, and without shared memory."""
    return run_serial(Cutter(pictures(input, seed=seed)[0], seed), tiles, progress).summary()


def run_serial(cutter: Cutter, tiles: int, progress: Any = None) -> Index:
    index, tile = Index(), np.empty(SHAPE, np.uint8)
    for number in range(tiles):
        index.add(number, describe(number, cutter.cut(number, tile)))
        if progress is not None:
            progress(number + 1)
    return index

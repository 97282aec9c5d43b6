"""Finds near-duplicate source files: many small messages, pure Python, bound by the interpreter lock.

    walk -> read -> tokenise, shingles -> MinHash -> bands -> clusters
    `------ source and three stages of workers -----'   `- this process

A file becomes the set of its *shingles* (five tokens in a row, hashed once with blake2b). One permutation of
that set is cut into 128 bins; the smallest value of each bin is the file's signature, and the share of equal
bins estimates the Jaccard similarity of two sets. Empty bins borrow from a bin that is chosen by their number
alone, so equal sets always have equal signatures. Signatures that agree in one of 32 bands of four bins are
compared; pairs at or above `SIMILAR` end up in one cluster.

Everything a stage does depends on its file alone, and the clusters are the same in whatever order signatures
arrive. So the digest of the result must equal the digest of `serial`, however many workers died on the way.

`pipeline(...)` is a target of `python -m shmrt run shmrt.examples.dedup:pipeline`. With `poison=N` it adds N
generated files that kill every worker that touches them (SIGKILL, SIGSEGV, SIGABRT in turn). What marks such
a file is a random word of this run, so no file found on a disk can do it.

    >>> one, two = shingles_of(b"def add(a, b): return a + b"), shingles_of(b"def add(a,  b): return a+b  # sum")
    >>> signature(one) == signature(two)
    True
"""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import secrets
import shutil
import signal
import sysconfig
import tempfile
import tokenize
from array import array
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import eq
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from shmrt.pipeline import Pipeline

__all__ = ["Clusters", "consume", "pipeline", "read", "serial", "shingles_of", "sign", "signature", "source_files"]

BINS = 128
BANDS = 32
WINDOW = 5
LEAST_SHINGLES = 24
"""Smaller files are all alike (`from .x import *`), so they are counted but not clustered."""
SIMILAR = 0.8
SAMPLE_SIZE_MOST = 48 << 10
SIZE_MOST = 4 << 20
"""Files beyond this many bytes are listed as failed instead of read."""

_SKIPPED = {
    tokenize.ENCODING,
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_WORD = re.compile(rb"[A-Za-z0-9_]+|[^\sA-Za-z0-9_]")
_POISON = b"# shmrt-dedup-poison "
_SIGNALS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT)
_EMPTY = 0xFFFFFFFFFFFFFFFF


class Signed(NamedTuple):
    """What the stages make of one file; `bins` is empty for a file too small to compare."""

    path: str
    size: int
    shingles: int
    bins: bytes
    problem: str = ""


# ---- the stages: pure functions of one file, run by workers -----------------------------------------


def read(path: str) -> tuple[str, bytes, str]:
    """The file's bytes, or the reason why there are none. A file that cannot be read is a result, not a failure."""
    try:
        with open(path, "rb") as file:
            content = file.read(SIZE_MOST + 1)
    except OSError as error:
        return path, b"", error.strerror or type(error).__name__
    if len(content) > SIZE_MOST:
        return path, b"", f"larger than {SIZE_MOST} bytes"
    return path, content, ""


def tokens_of(content: bytes) -> list[bytes]:
    """The tokens without comments and layout; a file that Python cannot tokenise is split into words instead."""
    try:
        return [
            token.string.encode("utf-8", "surrogatepass")
            for token in tokenize.tokenize(io.BytesIO(content).readline)
            if token.type not in _SKIPPED
        ]
    except (tokenize.TokenError, SyntaxError, ValueError, RecursionError):
        return _WORD.findall(content)


def shingles_of(content: bytes) -> bytes:
    """The distinct shingles of a file, as sorted 64-bit hashes in a row."""
    tokens = tokens_of(content)
    windows = {b"\0".join(tokens[at : at + WINDOW]) for at in range(len(tokens) - WINDOW + 1)}
    digest = hashlib.blake2b
    return b"".join(sorted(digest(window, digest_size=8).digest() for window in windows))


def shingle(item: tuple[str, bytes, str], poison: str = "") -> tuple[str, int, bytes, str]:
    path, content, problem = item
    if poison and content.startswith(_POISON + poison.encode()):
        os.kill(os.getpid(), int(content.split()[3]))
    return path, len(content), b"" if problem else shingles_of(content), problem


def signature(shingles: bytes) -> bytes:
    """128 bins of 16 bits. Equal sets give equal bins, whatever the machine."""
    count = len(shingles) // 8
    if count < LEAST_SHINGLES:
        return b""
    smallest = [_EMPTY] * BINS
    for at in range(0, len(shingles), 8):
        value = int.from_bytes(shingles[at : at + 8], "big")
        index = value & (BINS - 1)
        if value < smallest[index]:
            smallest[index] = value
    return array("H", [(smallest[_lender(smallest, index)] >> 7) & 0xFFFF for index in range(BINS)]).tobytes()


def _lender(smallest: list[int], index: int) -> int:
    """The bin itself, or the first full one of a sequence that depends on its number only."""
    state = index
    while smallest[index] == _EMPTY:  # ends: some bin is full and the generator visits all residues
        state = (state * 6364136223846793005 + 1442695040888963407) & _EMPTY
        index = state >> 57
    return index


def sign(item: tuple[str, int, bytes, str]) -> Signed:
    path, size, shingles, problem = item
    return Signed(path, size, len(shingles) // 8, b"" if problem else signature(shingles), problem)


# ---- the consumer: all state lives here --------------------------------------------------------------


class Clusters:
    """Groups signatures as they arrive; the outcome does not depend on their order.

    Files with the same signature share one representative. Representatives that share a band are compared
    with every other one of that band, so which pairs are joined depends on the set of files only.
    """

    def __init__(self) -> None:
        self._parent: dict[bytes, bytes] = {}
        self._bands: dict[tuple[int, bytes], list[bytes]] = {}
        self._bins: dict[bytes, array[int]] = {}
        self._paths: dict[bytes, list[str]] = {}
        self._lines: list[bytes] = []
        self.files = 0
        self.bytes = 0
        self.unreadable: dict[str, str] = {}

    def add(self, file: Signed) -> None:
        self.files += 1
        self.bytes += file.size
        if file.problem:
            self.unreadable[file.path] = file.problem
        line = b"\0".join((os.fsencode(file.path), b"%d %d" % (file.size, file.shingles), file.bins))
        self._lines.append(hashlib.blake2b(line, digest_size=16).digest())
        if not file.bins:
            return
        self._paths.setdefault(file.bins, []).append(file.path)
        if file.bins in self._parent:
            return
        self._parent[file.bins] = file.bins
        mine = self._bins[file.bins] = array("H", file.bins)
        width = len(file.bins) // BANDS
        for band in range(BANDS):
            bucket = self._bands.setdefault((band, file.bins[band * width : (band + 1) * width]), [])
            for other in bucket:
                root = self._root(other)
                if root != self._root(file.bins) and sum(map(eq, mine, self._bins[other])) >= SIMILAR * BINS:
                    self._parent[max(root, self._root(file.bins))] = min(root, self._root(file.bins))
            bucket.append(file.bins)

    def _root(self, bins: bytes) -> bytes:
        parent = self._parent
        while parent[bins] != bins:
            parent[bins] = bins = parent[parent[bins]]
        return bins

    def clusters(self) -> list[list[str]]:
        """Every group of two files or more, sorted."""
        groups: dict[bytes, list[str]] = {}
        for bins, paths in self._paths.items():
            groups.setdefault(self._root(bins), []).extend(paths)
        return sorted(sorted(paths) for paths in groups.values() if len(paths) > 1)

    def digest(self) -> str:
        """One word for the whole answer: every file, its signature and its cluster."""
        total = hashlib.blake2b(digest_size=16)
        for line in sorted(self._lines):
            total.update(line)
        for path in sorted(self.unreadable):
            total.update(os.fsencode(f"{path}\0{self.unreadable[path]}\0"))
        for paths in self.clusters():
            total.update(b"\n".join(os.fsencode(path) for path in paths) + b"\n\n")
        return total.hexdigest()

    def summary(self) -> dict[str, Any]:
        clusters = self.clusters()
        return {
            "files": self.files,
            "bytes": self.bytes,
            "unreadable": len(self.unreadable),
            "clusters": len(clusters),
            "clustered_files": sum(map(len, clusters)),
            "largest": max(clusters, key=len, default=[])[:10],
            "digest": self.digest(),
        }


# ---- input --------------------------------------------------------------------------------------------


def source_files(root: str | None = None, *, sample: int | None = None, seed: int = 0) -> list[str]:
    """The Python files below `root` (default: the installation of this Python), sorted.

    With `sample`, so many of them, chosen by `seed`; the choice is the same on every run over the same tree.
    """
    top = root or sysconfig.get_path("stdlib")
    if not os.path.isdir(top):
        raise NotADirectoryError(f"input={top!r} is not a directory; give a directory that holds source files")
    found = sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(top) for name in names if name.endswith(".py")
    )
    if sample is None:
        return found
    # A worker that is killed ten times a second seldom lives through a second's work, and a busy machine makes
    # a second of what is little: a sample, which is for showing, leaves large files out.
    found = [path for path in found if _size_of(path) <= SAMPLE_SIZE_MOST]
    if sample >= len(found):
        return found
    # Copies mostly keep their name and size: half of the sample is drawn from files that share both, to have clusters.
    alike: dict[tuple[str, int], list[str]] = {}
    for path in found:
        alike.setdefault((os.path.basename(path), _size_of(path)), []).append(path)
    groups = sorted(group for group in alike.values() if 2 <= len(group) <= 8)
    generator = random.Random(seed)
    generator.shuffle(groups)
    chosen: set[str] = set()
    while groups and 2 * len(chosen) < sample:
        chosen.update(groups.pop())
    others = [path for path in found if path not in chosen]
    return sorted([*chosen, *generator.sample(others, sample - len(chosen))])[:sample]


def _size_of(path: str) -> int:
    try:
        return os.path.getsize(path)
    except OSError:
        return 0  # a dangling link is a file that cannot be read, which is a result like any other


class _Input:
    """Yields the chosen files; the generated ones are spread among them and removed at the end."""

    def __init__(self, paths: list[str], poison: int, word: str) -> None:
        self.paths, self.poison, self.word = paths, poison, word
        self.total = len(paths) + poison

    def __call__(self) -> Iterator[str]:
        folder = tempfile.mkdtemp(prefix="shmrt-dedup-") if self.poison else ""
        try:
            every = len(self.paths) // (self.poison + 1) or 1
            killers = iter(poison_files(folder, self.poison, self.word))
            slices = (self.paths[at : at + every] for at in range(0, len(self.paths), every))
            for some in slices:
                yield from some
                killer = next(killers, None)
                if killer is not None:
                    yield killer
            yield from killers
            # Kept until the consumer is done: a worker may still have to open one of them again.
        finally:
            if folder:
                _REMOVE_LATER.append(folder)


_REMOVE_LATER: list[str] = []


def poison_files(folder: str, count: int, word: str) -> Iterator[str]:
    for number in range(count):
        number_signal = _SIGNALS[number % len(_SIGNALS)]
        path = os.path.join(folder, f"poison_{number}_{number_signal.name}.py")
        with open(path, "wb") as file:
            file.write(_POISON + b"%s %d\n" % (word.encode(), number_signal))
        yield path


def _remove_generated() -> None:
    while _REMOVE_LATER:
        shutil.rmtree(_REMOVE_LATER.pop(), ignore_errors=True)


# ---- what `python -m shmrt run` uses --------------------------------------------------------------------


def pipeline(
    input: str | None = None,
    *,
    workers: int | None = None,
    ring_slots: int | None = None,
    slot_bytes: int | None = None,
    max_attempts: int = 3,
    sample: int | None = None,
    seed: int = 0,
    poison: int = 0,
) -> Pipeline:
    """The description; `workers` tokenise (default: the CPUs that this process may use), one reads, one signs."""
    from shmrt.pipeline import Pipeline
    from shmrt.spec import RingSpec

    ring = RingSpec(slots=ring_slots or 1024, slot_bytes=slot_bytes or 512)
    count = workers or len(os.sched_getaffinity(0))
    word = secrets.token_hex(16) if poison else ""
    given: dict[str, Any] = {"ring": ring, "max_attempts": max_attempts}
    return (
        Pipeline("dedup")
        .map(read, workers=1, name="read", **given)
        .map(partial(shingle, poison=word), workers=count, name="shingle", **given)
        .map(sign, workers=1, name="sign", **given)
        .source(_Input(source_files(input, sample=sample, seed=seed), poison, word))
    )


def consume(run: Iterable[Signed]) -> dict[str, Any]:
    """Takes every output of a run and gives the summary that the command line prints."""
    clusters = Clusters()
    try:
        for file in run:
            clusters.add(file)
    finally:
        _remove_generated()
    return clusters.summary()


def run_serial(paths: Iterable[str], progress: Callable[[int], None] | None = None) -> Clusters:
    """The same answer without a worker: one file after the other, in this process."""
    clusters = Clusters()
    for number, path in enumerate(paths, 1):
        clusters.add(sign(shingle(read(path))))
        if progress is not None:
            progress(number)
    return clusters


def serial(
    input: str | None = None, *, sample: int | None = None, seed: int = 0, progress: Any = None, **_: Any
) -> dict[str, Any]:
    """`consume(pipeline(...).run())` without processes; generated poison files are left out."""
    return run_serial(source_files(input, sample=sample, seed=seed), progress).summary()

"""Has `tiles.py` run in little shared memory while its last worker is stopped and killed, and says what came of it.

    calm        the tiles go through, and nothing happens to anybody
    stopped     the worker that makes thumbnails gets SIGSTOP: its ring fills, then the one before it, up to the source,
                which is asked for nothing more. Memory stands still, nobody is declared dead, and with SIGCONT it goes
                on
    killed      it gets SIGKILL while it holds a block of shared memory, once and again; the block is not given back
                before the kernel has let go of the process, and the tile that it had runs again on the same memory

The limit of shared memory is the runtime's own (`Runtime(shm_limit=)`): it bounds what the runtime reserves for
payloads. Payloads lie in anonymous memory (memfd), so the size of /dev/shm, which is 64 MB in a container, bounds
nothing here.

What was looked at is judged in `tiles_verdict.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np

from shmrt import Runtime, _native
from shmrt.examples import tiles
from shmrt.examples.tiles_images import pictures
from shmrt.examples.tiles_verdict import Calm, Kill, Look, Stop, Verdict, is_full, judge
from shmrt.process.death import stat_fields
from shmrt.process.sizes import memory_of

__all__ = ["LIMIT", "run"]

LIMIT = 64 << 20
LOOKS = 5
"""How often it is looked at, at least, while all is at rest."""
TICK_S = 0.02
PATIENCE_S = 120.0
"""How long a busy machine is given for each step."""
WINDOW = 32
_NOTHING_ON_ITS_WAY = (_native.PHASE_PARKED, _native.PHASE_DECODE, _native.PHASE_RUN)
"""What a worker is doing that has published nothing of which it has yet to tell."""


class Stopped(Exception):
    """Somebody wants the demonstration to end."""


def run(
    count: int = tiles.TILES,
    stop_s: float = 5.0,
    kills: int = 3,
    seed: int = 0,
    *,
    input: str | None = None,
    workers: int | None = None,
    slots: int = tiles.SLOTS,
    limit: int = LIMIT,
    name: str | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict | None:
    """`count` tiles in calm, and as many or more while the last worker is stopped for `stop_s` seconds and killed
    `kills` times. input: a folder of pictures. workers: for the patterns. limit: bytes of shared memory for payloads.
    None: `stop` was set before the end."""
    say = progress or (lambda text: None)
    found, whence = pictures(input, seed=seed)
    cutter = tiles.Cutter(found, seed)
    with Runtime(name=name or f"tiles-{os.getpid()}", shm_limit=limit) as runtime:
        stage = Stage(runtime, cutter, workers, slots, limit, say, stop or threading.Event())
        try:
            index, calm = stage.calm(count)
            other, trouble = stage.under_fire(count, stop_s, kills)
        except Stopped:
            return None
        left = stage.arena.stats()["blocks_used"]
    total = max(len(index), len(other))
    expected = [serial.digest() for serial in serials(cutter, [len(index), len(other)], total, say)]
    assert trouble.stop is not None
    return judge(
        [index.summary(), other.summary()], expected, calm, trouble.stop, trouble.kills,
        slots=slots, limit=limit, left=left, pictures=whence, seed=seed,
    )  # fmt: skip


def serials(cutter: tiles.Cutter, counts: list[int], total: int, say: Callable[[str], None]) -> list[tiles.Index]:
    """The index of the first so many tiles, for each of the counts, without workers: each tile is described once."""
    indexes = [tiles.Index() for _ in counts]
    tile = np.empty(tiles.SHAPE, np.uint8)
    for number in range(total):
        described = tiles.describe(number, cutter.cut(number, tile))
        for index, count in zip(indexes, counts, strict=True):
            if number < count:
                index.add(number, described)
        if number % WINDOW == 0:
            say(f"serial run, to compare  {number:,} of {total:,}")
    return indexes


class Stage:
    """The runtime, and what is run on it."""

    def __init__(
        self,
        runtime: Runtime,
        cutter: tiles.Cutter,
        workers: int | None,
        slots: int,
        limit: int,
        say: Callable[[str], None],
        over: threading.Event,
    ) -> None:
        self.runtime, self.cutter, self.slots, self.limit, self.say, self.over = (
            runtime,
            cutter,
            slots,
            limit,
            say,
            over,
        )
        self.pipe = tiles.stages(workers, slots)
        self.arena: Any = runtime._arena

    def calm(self, count: int) -> tuple[tiles.Index, Calm]:
        index, came, memory = tiles.Index(), [time.monotonic()], 0
        with self.pipe.run(tiles.Source(self.cutter, count)) as run:
            for found in self.heard(run):
                index.add(*found)
                came.append(time.monotonic())
                if len(index) == count // 2:
                    memory = self.memory()
                if len(index) % WINDOW == 0:
                    self.say(f"calm  {len(index):,} of {count:,} tiles")
        return index, Calm(count / (came[-1] - came[0]), steady_after(came), memory)

    def under_fire(self, count: int, stop_s: float, kills: int) -> tuple[tiles.Index, Trouble]:
        index = tiles.Index()
        done = threading.Event()
        source = tiles.Source(self.cutter, count, done.is_set)
        with self.pipe.run(source) as run:
            trouble = Trouble(self, run, source, index, max(1, count // 4), stop_s, kills, done)
            trouble.start()
            try:
                for found in self.heard(run):
                    index.add(*found)
            finally:
                done.set()
                trouble.join()
        if trouble.mistake is not None:
            raise trouble.mistake
        return index, trouble

    def heard(self, run: Any) -> Iterator[Any]:
        for found in run:
            yield found
            if self.over.is_set():
                raise Stopped

    def workers(self) -> list[dict[str, Any]]:
        return [row for opened in list(self.runtime._pools.values()) for row in opened.core.workers()]

    def is_idle_but(self, pid: int) -> bool:
        """Whether every other worker has given back what its tasks were given, which comes after their results."""
        idle = (_native.PHASE_PARKED, _native.PHASE_SPIN)
        return all(row["phase"] in idle for row in self.workers() if row["pid"] != pid)

    def phase_of(self, pid: int) -> int | None:
        return next((row["phase"] for row in self.workers() if row["pid"] == pid), None)

    def memory(self) -> int:
        """Of the program, its root and all workers; what several share is divided among them."""
        total = memory_of(None)
        for pid in [self.runtime.pid, *(row["pid"] for row in self.workers())]:
            with contextlib.suppress(LookupError, TypeError):  # gone meanwhile
                total += memory_of(pid)
        return total


def steady_after(came: list[float]) -> float:
    """Seconds until tiles came at nine tenths of the pace at which they mostly came."""
    width = min(WINDOW, max(1, len(came) // 4))
    paces = [width / max(1e-9, later - sooner) for sooner, later in zip(came, came[width:], strict=False)]
    if not paces:
        return 0.0
    usual = statistics.median(paces)
    first = next(at for at, pace in enumerate(paces) if pace >= 0.9 * usual)
    return came[first] - came[0]


def rings_of(report: Any) -> tuple[int, ...]:
    """How many tiles each ring holds; done ones wait there for the next ring."""
    return tuple(one - following for one, following in pairwise([*(row["in"] for row in report.stages), report.out]))


class Trouble(threading.Thread):
    """Stops the last worker, lets it go on, and kills it while it holds memory."""

    def __init__(
        self,
        stage: Stage,
        run: Any,
        source: tiles.Source,
        index: tiles.Index,
        after: int,
        stop_s: float,
        kills: int,
        done: threading.Event,
    ) -> None:
        super().__init__(name="tiles-trouble", daemon=True)
        self.stage, self.flow, self.source, self.index = stage, run, source, index
        self.after, self.stop_s, self.wanted, self.done = after, stop_s, kills, done
        self.stop: Stop | None = None
        self.kills: list[Kill] = []
        self.mistake: BaseException | None = None

    def run(self) -> None:
        try:
            self.until(lambda: len(self.index) >= self.after, "the first tiles")
            self.stop = self.stopped()
            for number in range(self.wanted):
                self.kills.append(self.killed(number))
        except Stopped:
            pass
        except BaseException as error:
            self.mistake = error
        finally:
            self.done.set()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not condition():
            if self.stage.over.is_set() or self.done.is_set():
                raise Stopped
            if time.monotonic() > end:
                raise TimeoutError(f"tiles: {what} did not come within {PATIENCE_S:g} s")
            time.sleep(TICK_S / 10)

    def rings(self) -> tuple[int, ...]:
        return rings_of(self.flow.report)

    def is_at_rest(self, pid: int) -> bool:
        """Nobody but the worker `pid` has anything to do, or to give back of what it has done."""
        report = self.flow.report
        idle = self.source.given == report.stages[0]["in"] and not any(row["pending"] for row in report.stages[:-1])
        return idle and is_full(rings_of(report), self.stage.slots, self.stage.limit) and self.stage.is_idle_but(pid)

    def look(self) -> Look:
        stats = self.stage.arena.stats()
        pages = os.fstat(self.stage.arena.fd).st_blocks * 512
        return Look(self.rings(), self.source.given, stats["bytes_used"], pages, self.stage.memory())

    def stopped(self) -> Stop:
        before = self.restarts()
        while True:
            pid, began = self.index.worker, time.monotonic()
            with frozen(pid, self.until):
                if self.stage.phase_of(pid) in _NOTHING_ON_ITS_WAY:
                    looks = self.looks(pid, began)
                    break
            self.another_tile()
        seconds, came, last = time.monotonic() - began, len(self.index), looks[-1].rings[-1] if looks else 0
        self.until(lambda: len(self.index) > came + 2 * last, "tiles after the stop")
        return Stop(seconds, looks, self.restarts() - before, self.index.worker == pid, len(self.index) - came)

    def looks(self, pid: int, began: float) -> list[Look]:
        """From when all is at rest until the time is over."""
        looks: list[Look] = []
        while not self.stage.over.is_set():
            if looks or self.is_at_rest(pid):
                looks.append(self.look())
            now = time.monotonic() - began
            if now >= self.stop_s + (0.0 if len(looks) >= LOOKS else PATIENCE_S):
                break
            self.stage.say(f"stopped  {now:.1f} s, rings {', '.join(map(str, self.rings()))}")
            time.sleep(TICK_S)
        return looks

    def another_tile(self) -> None:
        """The worker was stopped between two tiles: once more."""
        came = len(self.index)
        self.until(lambda: len(self.index) > came, "another tile")

    def killed(self, number: int) -> Kill:
        arena = self.stage.arena
        while True:
            pid = self.index.worker
            with frozen(pid, self.until):
                held = arena.blocks_of(pid)
                if held > 0:
                    os.kill(pid, signal.SIGKILL)
                    break
            self.another_tile()
        early = False
        while True:
            left = arena.blocks_of(pid)
            there = stat_fields(pid) is not None
            early = early or (left < held and there)
            if not there:
                break
        self.until(lambda: arena.blocks_of(pid) == 0, "the memory of the dead")
        self.until(lambda: self.index.worker != pid, "tiles of its replacement")
        self.stage.say(f"killed  {number + 1} of {self.wanted}")
        return Kill(pid, held, early)

    def restarts(self) -> int:
        return sum(stage["restarts"] for stage in self.flow.report.stages)


@contextlib.contextmanager
def frozen(pid: int, until: Callable[[Callable[[], bool], str], None]) -> Iterator[None]:
    """The process does not run meanwhile, which the kernel has confirmed."""
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: state_of(pid) in "Tt", f"the stop of process {pid}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def state_of(pid: int) -> str:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()[0].decode()

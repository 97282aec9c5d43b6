"""A stopped consumer and little shared memory hold: large payloads wait where they are, and nobody is taken for dead.

The pipeline is the one of `shmrt.examples.tiles`; what is expected of it is judged by its own verdict (each part of
which is seen to fail in `tests/unit/test_tiles.py`), and here by the kernel's words.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import life_kit
import numpy as np
from pool_tasks import until

import shmrt
from shmrt import Pipeline, Pool, RingSpec, Runtime, _native
from shmrt.examples import tiles, tiles_run

SMALL = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"', "small")


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def test_a_stopped_and_a_killed_consumer() -> None:
    """In 64 MiB: rings fill to the last slot, memory stands still to the page, nobody dies, it goes on; then
    SIGKILL."""
    verdict = tiles_run.run(32, 0.0, 1, 7, slots=4, limit=64 << 20)
    assert verdict is not None
    print(verdict.text())
    assert all(verdict.expected.values()), verdict.expected
    assert verdict.rings == [4, 4, 4, 4] and verdict.copies_per_tile == 0 and verdict.killed == 1
    assert verdict.digests == verdict.serial_digests


def test_rings_that_would_hold_more_than_there_is_are_held_back() -> None:
    """200 slots a ring would be 157 MB; in 8 MiB the bytes bound them, and nothing is copied to make room."""
    verdict = tiles_run.run(32, 0.0, 0, 7, slots=200, limit=8 << 20)
    assert verdict is not None
    print(verdict.text())
    assert all(verdict.expected.values()), verdict.expected
    assert max(verdict.rings) <= 3 and verdict.shared_memory <= 8 << 20


def test_the_limit_is_the_runtimes_and_not_that_of_dev_shm() -> None:
    """As in a container, whose /dev/shm has 64 MB: the payloads do not lie there. A larger limit may be used up."""
    if subprocess.run([*SMALL, "true"], capture_output=True).returncode != 0:
        pytest.skip("NOT TESTED: this user may not mount a /dev/shm of its own (needs unshare -m)")
    source = """
import os
import shmrt
from shmrt.examples import tiles
place = os.statvfs("/dev/shm")
assert place.f_blocks * place.f_frsize == 64 << 20
for limit in ("64MiB", "256MiB"):
    with shmrt.Runtime(shm_limit=limit):
        with tiles.stages(1, slots=4).run(tiles.Source(tiles.Cutter([tiles.drawn(0)]), 12)) as run:
            found = tiles.consume(run)
        kept = []
        try:
            while True:
                kept.append(shmrt.empty(16 << 20, "u1"))
                kept[-1][:] = 1
        except shmrt.SegmentError:
            print(limit, found["tiles"], found["copies"], len(kept))
        del kept
assert place.f_bavail == os.statvfs("/dev/shm").f_bavail
"""
    status, out, err = life_kit.run(source, prefix=SMALL)
    assert (status, err) == (0, ""), (out, err)
    lines = [line.split() for line in out.splitlines()]
    assert [line[:3] for line in lines] == [["64MiB", "12", "0"], ["256MiB", "12", "0"]]
    assert 2 <= int(lines[0][3]) <= 4 and 14 <= int(lines[1][3]) <= 16


# ---- the same by the kernel's words alone


def hand_on(item: tuple[Any, int]) -> tuple[Any, int]:
    return item


def hold(item: tuple[Any, int]) -> tuple[int, int, int]:
    """Makes memory of its own while it has the item's."""
    array, number = item
    own = shmrt.empty(100_000, np.uint8)
    own[:] = array[0]
    return number, int(own[-1]), os.getpid()


def numbered(given: list[int], count: int) -> Iterator[tuple[Any, int]]:
    for number in range(count):
        array = shmrt.empty(tiles.BYTES, np.uint8)
        array[:] = number % 251
        given[0] = number + 1
        yield array, number


def test_a_stopped_worker_holds_back_the_source_and_the_memory() -> None:
    slots, count, given = 3, 60, [0]
    pipe = Pipeline("held").map(hand_on, workers=1, ring=RingSpec(slots=slots))
    pipe = pipe.map(hold, workers=1, ring=RingSpec(slots=slots), name="hold")
    with Runtime(shm_limit="64MiB") as runtime, pipe.run(numbered(given, count)) as run:
        arena: Any = runtime._arena
        number, value, pid = next(run)
        os.kill(pid, signal.SIGSTOP)
        try:
            until(lambda: tiles_run.state_of(pid) in "Tt")
            got = [(number, value, pid)]
            reader = threading.Thread(target=lambda: got.extend(run), name="reader")
            reader.start()

            def look() -> tuple[int, ...]:
                return given[0], len(got), arena.stats()["bytes_used"], os.fstat(arena.fd).st_blocks

            def stands_still() -> bool:
                """Full: what came out, and every slot. Nobody else has anything to do, or to give back of it."""
                found = {look() for _ in range(50)}
                for asked, came, *_ in found:
                    assert asked <= came + 2 * slots + 1  # one more: it has come, and is not in the list yet
                asked, came, *_ = found.pop()
                is_full = asked == came + 2 * slots and not run.report.stages[0].pending
                return not found and is_full and is_idle_but(runtime, pid)

            until(stands_still)
            assert os.fstat(arena.fd).st_blocks * 512 <= 64 << 20
            assert sum(stage.restarts for stage in run.report.stages) == 0
        finally:
            os.kill(pid, signal.SIGCONT)
        reader.join(tasks.LIMIT_S)
        assert not reader.is_alive()
        assert got == [(number, number % 251, pid) for number in range(count)]  # by the very same worker
        assert sum(stage.restarts for stage in run.report.stages) == 0 and run.report.balanced
        until(lambda: arena.stats()["blocks_used"] == 0)


def is_idle_but(runtime: Runtime, pid: int) -> bool:
    rows = [row for opened in runtime._pools.values() for row in opened.core.workers()]
    return all(row["phase"] in (_native.PHASE_PARKED, _native.PHASE_SPIN) for row in rows if row["pid"] != pid)


def keep_much(size: int) -> int:
    kept.append(shmrt.empty(size, np.uint8))
    return os.getpid()


kept: list[Any] = []


def test_what_a_killed_worker_held_is_given_back_after_it_was_reaped() -> None:
    """Its root is stopped meanwhile, so the dead worker stays a zombie as long as the test wants, and a block of its
    own."""
    with Runtime(shm_limit="64MiB") as runtime, Pool(1) as pool:
        arena: Any = runtime._arena
        pid, root = pool.submit(keep_much, 1_000_000).result(tasks.LIMIT_S), runtime.pid
        assert arena.blocks_of(pid) == 1 and root is not None
        os.kill(root, signal.SIGSTOP)
        try:
            until(lambda: tiles_run.state_of(root) in "Tt")
            os.kill(pid, signal.SIGKILL)
            until(lambda: tiles_run.state_of(pid) == "Z")
            shmrt.empty(1000)  # whoever looks for memory meanwhile takes nothing of it
            assert [arena.blocks_of(pid) for _ in range(100)] == [1] * 100
        finally:
            os.kill(root, signal.SIGCONT)
        until(lambda: arena.blocks_of(pid) == 0)
        assert not os.path.exists(f"/proc/{pid}")
        assert pool.submit(keep_much, 1000).result(tasks.LIMIT_S) != pid

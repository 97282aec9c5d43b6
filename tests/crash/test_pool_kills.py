"""A program is killed while it makes and while it closes an arena or a pool, at system calls of its main thread.

Neither has a name, so nothing of them may stay: no file, no process; and whoever shares the arena has all of it again.
The long tier (marked stress) takes every call, the short one a few of them. SHMRT_SEED repeats the choices.
"""

from __future__ import annotations

import ctypes
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import call_stepper
import pytest
import stepper

import shmrt
from shmrt import _native

SEED = int(os.environ.get("SHMRT_SEED", str(random.SystemRandom().randrange(2**32))))
SUBREAPER = 36  # prctl
MOST = 8 << 20


def children() -> set[int]:
    found: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found |= set(map(int, file.read().split()))
    return found


@pytest.fixture(autouse=True)
def before() -> Iterator[set[int]]:
    """The orphans of whoever dies here come to this process, which waits for them. The children that it has now."""
    reason = stepper.may_trace()
    if reason:
        pytest.skip(reason)
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
        pytest.skip("NOT TESTED: this kernel does not list the children of a process")
    print(f"SHMRT_SEED={SEED}")
    assert stepper._libc.prctl(SUBREAPER, 1, 0, 0, 0) == 0, ctypes.get_errno()
    yield children()
    stepper._libc.prctl(SUBREAPER, 0, 0, 0, 0)


def files_of(pids: set[int]) -> list[str]:
    """What is left in /dev/shm that names one of them by its pid, or by an owner's id: its low bits are the pid."""
    parts = {name: name.split("-") for name in os.listdir("/dev/shm") if name.startswith("shmrt-")}
    low = {pid & 0x3FFFFF for pid in pids}
    return [
        name for name, words in parts.items() if any(word.isdigit() and int(word) & 0x3FFFFF in low for word in words)
    ]


def wait_for_orphans(before: set[int]) -> set[int]:
    """They end by themselves; only the kernel says so, and only an orphan that never ends makes this wait."""
    ended: set[int] = set()
    while orphans := children() - before:
        for pid in orphans:
            os.waitpid(pid, 0)
        ended |= orphans
    return ended


def chosen(whole: call_stepper.Outcome, count: int | None) -> Iterator[tuple[int, int]]:
    """Stops, and instructions behind them; a few of the stops, or each."""
    rng = random.Random(SEED)
    assert whole.stops >= 4 and not whole.killed
    stops = range(whole.stops) if count is None else sorted(rng.sample(range(whole.stops), min(count, whole.stops)))
    for at in stops:
        yield at, rng.choice((0, rng.randrange(1, 300)))
    yield whole.stops + 1000, 0  # it comes to its end, and is killed then


# ---- arenas ---------------------------------------------------------------------------------------------------------

kept: list[Any] = []


def use(arena: Any) -> None:
    """Blocks of several classes, one of which is kept; a page of it is written."""
    blocks = [arena.allocate(size) for size in (100, 5000, 200_000)]
    memoryview(blocks[-1])[:4] = b"mine"
    kept.append(blocks.pop())


def make_arena() -> None:
    arena = _native.Arena.create(MOST)
    use(arena)
    kept.append(arena)


def close_arena() -> None:
    kept.clear()


def kill_the_maker(
    before: set[int], operation: Callable[[], None], prepare: Callable[[], None], count: int | None
) -> None:
    whole = call_stepper.run(operation, at=None, prepare=prepare)
    wait_for_orphans(before)
    killed = 0
    for at, then in chosen(whole, count):
        result = call_stepper.run(operation, at=at, then=then, prepare=prepare)
        killed += result.killed
        ended = wait_for_orphans(before)
        assert not files_of({result.pid} | ended), (at, then, files_of({result.pid} | ended))
    print(f"result: {whole.stops} stops, killed at {killed} of them; nothing stays")
    assert killed


def test_who_makes_an_arena_dies(before: set[int]) -> None:
    kill_the_maker(before, make_arena, lambda: None, 24)


def test_who_closes_an_arena_dies(before: set[int]) -> None:
    kill_the_maker(before, close_arena, make_arena, 8)


def share_all_ways(before: set[int], count: int | None) -> None:
    mine = _native.Arena.create(MOST)

    def take_part() -> None:
        use(mine)
        use(mine)
        kept.clear()
        mine.trim()

    def repair() -> bool:
        """What the other had is free again, and works. Whether it had anything."""
        left = mine.reclaim_dead()
        assert mine.stats()["blocks_used"] == 0 and mine.check()
        mine.trim()
        assert mine.stats()["reserved"] == 0  # granules that it was about to reserve or to give back as well
        use(mine)
        kept.clear()
        assert mine.stats()["blocks_used"] == 0 and mine.check()
        return left > 0

    whole = call_stepper.run(take_part, at=None)
    repair()
    repaired = killed = 0
    for at, then in chosen(whole, count):
        mine = _native.Arena.create(MOST)  # which has to grow yet
        killed += call_stepper.run(take_part, at=at, then=then).killed
        repaired += repair()
    assert not wait_for_orphans(before)
    print(f"result: {whole.stops} stops, killed at {killed} of them; {repaired} left blocks that the repair took back")
    assert killed >= (whole.stops if count is None else count) // 2 and repaired


def test_who_shares_an_arena_dies(before: set[int]) -> None:
    """Blocks that it had, granules that it grew or trimmed: all free after a repair."""
    share_all_ways(before, 24)


# ---- pools ----------------------------------------------------------------------------------------------------------


def make_pool() -> None:
    pool = shmrt.Pool(1)
    assert pool.submit(abs, -1).result() == 1
    kept.append(pool)


def close_pool() -> None:
    kept.pop().shutdown()


def test_who_makes_a_pool_dies(before: set[int]) -> None:
    """Its workers and its root end, whatever there is of them."""
    kill_the_maker(before, make_pool, lambda: None, 6)


def test_who_closes_a_pool_dies(before: set[int]) -> None:
    kill_the_maker(before, close_pool, make_pool, 4)


# ---- all of it ------------------------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("what", ["arena", "pool"])
@pytest.mark.parametrize("end", ["make", "close"])
def test_dies_at_every_call(before: set[int], what: str, end: str) -> None:
    """The same, at every stop."""
    make, close = (make_arena, close_arena) if what == "arena" else (make_pool, close_pool)
    if end == "make":
        kill_the_maker(before, make, lambda: None, None)
    else:
        kill_the_maker(before, close, make, None)


@pytest.mark.stress
def test_who_shares_an_arena_dies_at_every_call(before: set[int]) -> None:
    share_all_ways(before, None)

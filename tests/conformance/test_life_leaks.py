"""Opening and closing, many times: nothing grows."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from pool_tasks import until

import shmrt


def footprint() -> dict[str, int]:
    gc.collect()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "maps": len(Path("/proc/self/maps").read_text().splitlines()),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "resident": int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"),
    }


def assert_flat(cycle: Callable[[], None], warm: int, rounds: int, resident: int) -> None:
    for _ in range(warm):
        cycle()
    before = footprint()
    for _ in range(rounds):
        cycle()
    most = {"descriptors": 0, "threads": 0, "children": 0, "maps": 4, "resident": resident}
    if "SHMRT_SANITIZED_RUN" in os.environ:
        del most["resident"], most["maps"]  # a sanitizer keeps freed blocks for a while, to see whether they are used
    grown: dict[str, int] = {}

    def is_flat() -> bool:
        grown.update((key, now - before[key]) for key, now in footprint().items())
        return all(grown[key] <= bound for key, bound in most.items())

    try:
        until(is_flat, "it grew")  # a thread that was joined is listed a moment longer
    finally:
        print(grown)


def use_pool(runtime: shmrt.Runtime) -> None:
    with shmrt.Pool(1, runtime=runtime) as pool:
        assert pool.submit(abs, -1).result(60) == 1


def test_pools_come_and_go() -> None:
    """R20. A pool gives back its slots, lanes, descriptors and workers."""
    with shmrt.Runtime() as runtime:
        assert_flat(lambda: use_pool(runtime), 20, 80, 2 << 20)


def test_runtimes_come_and_go() -> None:
    """A runtime gives back its root, its threads and its table."""

    def cycle() -> None:
        with shmrt.Runtime() as runtime:
            use_pool(runtime)

    assert_flat(cycle, 5, 15, 2 << 20)


def test_tasks_come_and_go() -> None:
    """Futures that nobody keeps, results that nobody reads, functions that are made anew each time."""
    with shmrt.Runtime() as runtime, shmrt.Pool(1, runtime=runtime) as pool:

        def cycle() -> None:
            for number in range(300):
                pool.submit(abs, number)
            pool.submit(lambda: number).result(60)
            pool.drain()

        assert_flat(cycle, 10, 60, 4 << 20)


@pytest.mark.stress
def test_a_thousand_pools() -> None:
    """10^3 open/close cycles leak nothing."""
    with shmrt.Runtime() as runtime:
        assert_flat(lambda: use_pool(runtime), 50, 1000, 2 << 20)

"""The memory of a Ring: what cannot fit is refused or waited for, what the dead held comes back, nothing stays."""

from __future__ import annotations

import gc
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import ring_kit
from ring_kit import PATIENCE, context

from shmrt import MessageTooLarge, Overloaded, Ring, RingSpec, SegmentError


@pytest.fixture(scope="module", autouse=True)
def helpers_of_multiprocessing() -> Iterator[None]:
    """Its resource tracker and fork server would outlive the tests."""
    yield
    ring_kit.stop_helpers()


@pytest.fixture
def named() -> Iterator[str]:
    with ring_kit.free_name() as name:
        yield name


def test_a_message_that_can_never_fit_is_refused_at_once(named: str) -> None:
    ring = Ring.create(RingSpec(slots=8), name=named, limit="2MiB")
    for huge in (b"x" * 5_000_000, np.ones(5_000_000, "u1"), "x" * 5_000_000):
        with pytest.raises(MessageTooLarge):
            ring.put(huge)  # without a timeout: it must not wait
    ring.put(1)
    assert ring.get() == 1 and ring._arena.stats()["blocks_used"] == 0


def test_a_put_waits_for_memory_that_a_get_will_free(named: str) -> None:
    ring = Ring.create(RingSpec(slots=64), name=named, limit="4MiB")
    with pytest.raises(Overloaded, match="memory"):
        for _ in range(64):
            ring.put(b"x" * 900_000, timeout=0.05)
    held = ring.qsize()
    assert 1 <= held < 64
    thread = threading.Thread(target=lambda: ring.put(b"y" * 900_000))
    thread.start()
    taken = [ring.get(PATIENCE) for _ in range(held + 1)]
    thread.join(PATIENCE)
    assert taken[-1] == b"y" * 900_000
    assert ring._arena.stats()["blocks_used"] == 0


def test_a_receiver_that_keeps_everything_does_not_stop_its_senders(named: str) -> None:
    ring = Ring.create(RingSpec(slots=4), name=named, limit="8MiB")
    kept = []
    for i in range(100):  # far more than the limit
        ring.put(np.full(500_000, i, "u1"), timeout=PATIENCE)
        kept.append(ring.get())
    assert all((array == i).all() for i, array in enumerate(kept))


def test_memory_of_the_dead_is_used_again(named: str) -> None:
    ring, ready = Ring.create(RingSpec(slots=4), name=named, limit="4MiB"), Ring.create()
    for _ in range(10):  # ten times a third of it
        ring.put(np.full(1_000_000, 5, "u1"), timeout=PATIENCE)
        victim = context("fork").Process(target=ring_kit.hold_array_and_wait, args=(ring, ready))
        victim.start()
        ready.get(PATIENCE)
        victim.kill()
        victim.join()
    assert ring._arena.reclaim_dead() >= 0 and ring._arena.stats()["blocks_used"] == 0


def test_what_the_machine_cannot_hold_is_an_error_and_not_a_wait(named: str) -> None:
    ring = Ring.create(RingSpec(slots=4), name=named, limit="1TiB")
    with pytest.raises(SegmentError) as caught:
        ring.put(_as_if_huge(os.statvfs("/dev/shm")))
    assert caught.value.needed is not None and caught.value.free is not None
    assert caught.value.needed > caught.value.free and caught.value.hint


def _as_if_huge(space: os.statvfs_result) -> memoryview:
    """A buffer larger than the machine's shared memory, of which no page is ever touched."""
    import mmap

    size = min(space.f_bavail * space.f_frsize + (1 << 30), 1 << 39)
    return memoryview(mmap.mmap(-1, size, prot=mmap.PROT_READ, flags=mmap.MAP_PRIVATE | 0x4000))


def test_an_anonymous_ring_needs_no_dev_shm() -> None:
    """Eight times 8 MiB go through while /dev/shm is limited to 1 MiB."""
    code = (
        "import numpy as np, os; from shmrt import Ring\n"
        "assert os.statvfs('/dev/shm').f_blocks * os.statvfs('/dev/shm').f_frsize <= 1 << 20\n"
        "r = Ring.create()\nfor i in range(8): r.put(np.full(8 << 20, i, 'u1'))\n"
        "assert [int(r.get()[-1]) for i in range(8)] == list(range(8))\nprint('through')"
    )
    mount = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" -c "$1"'
    outcome = subprocess.run(
        ["unshare", "-m", "sh", "-c", mount, sys.executable, code], capture_output=True, text=True, check=False
    )
    if outcome.returncode != 0 and ("unshare" in outcome.stderr or "mount" in outcome.stderr):
        pytest.skip("this user may not mount")
    assert outcome.stdout == "through\n", outcome.stderr


def test_descriptors_and_mappings_go_with_the_ring() -> None:
    def count() -> tuple[int, int]:
        gc.collect()
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum("shmrt" in line for line in maps)

    Ring.create().put(b"x" * 9000)
    before = count()
    for _ in range(30):
        ring = Ring.create()
        ring.put(np.arange(9000))
        pickle.loads(pickle.dumps(ring)).get()
        del ring
    assert count() == before


def test_the_interpreter_ends_quietly_with_arrays_alive() -> None:
    code = (
        "import numpy as np, shmrt, threading, gc; from shmrt import Ring\n"
        "r = Ring.create(); r.put([np.arange(9000), b'x' * 9000]); keep = r.get()\n"
        "mine = shmrt.empty(9000); r.put(mine)\n"
        "view = memoryview(keep[0]); cycle = [mine, r]; cycle.append(cycle)\n"
        "lease = r.lease(); lent = lease.__enter__()\n"
        "class Late:\n    def __init__(self, *x): self.x = x\n    def __del__(self): assert self.x[0][0][1] == 1\n"
        "late = Late(keep, mine, lent); late.me = late\n"
        "threading.Thread(target=r.get, daemon=True).start()\n"
        "import sys; sys.modules['kept'] = late\n"
    )
    outcome = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, check=False)
    assert (outcome.returncode, outcome.stderr) == (0, "")

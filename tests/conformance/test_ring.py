"""Ring keeps its contract, for threads, forks and spawned processes alike."""

from __future__ import annotations

import gc
import math
import multiprocessing
import os
import pickle
import queue
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import ring_kit

import shmrt
from shmrt import (
    EndOfRing,
    MessageTooLarge,
    NotFound,
    Overloaded,
    Ring,
    RingClosed,
    RingSpec,
    SegmentError,
    _native,
)

METHODS = ("spawn", "fork", "forkserver")
PATIENCE = 60.0  # only a hang is longer


def context(method: str) -> Any:
    return multiprocessing.get_context(method)


@contextmanager
def processes(method: str, *targets: tuple[Any, ...]) -> Iterator[list[Any]]:
    """Runs ring_kit functions; at the end they have exited by themselves."""
    started = [context(method).Process(target=target, args=args) for target, *args in targets]
    for process in started:
        process.start()
    try:
        yield started
        for process in started:
            process.join(PATIENCE)
            assert process.exitcode == 0
    finally:
        for process in started:
            process.kill()
            process.join()


@pytest.fixture(scope="module", autouse=True)
def helpers_of_multiprocessing() -> Iterator[None]:
    """Its resource tracker and fork server would outlive the tests."""
    yield
    ring_kit.stop_helpers()


@pytest.fixture
def named() -> Iterator[str]:
    name = f"test {os.getpid()} {time.monotonic_ns()}"
    yield name
    with_name = [entry for entry in os.listdir("/dev/shm") if name in entry]
    for entry in with_name:
        os.unlink(f"/dev/shm/{entry}")


# ---- one process ---------------------------------------------------------------------------------------------


def test_first_in_first_out() -> None:
    ring = Ring.create(RingSpec(slots=3))
    for lap in range(5):
        for i in range(3):
            ring.put((lap, i))
        assert ring.qsize() == 3
        assert [ring.get() for _ in range(3)] == [(lap, i) for i in range(3)]
    assert ring.qsize() == 0 and ring.capacity == 3


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("slot_bytes", [16, 33, 512, 5000])
def test_any_geometry_takes_any_message(slots: int, slot_bytes: int) -> None:
    ring = Ring.create(RingSpec(slots=slots, slot_bytes=slot_bytes))
    big = [None, "x" * 100, b"y" * 10_000, list(range(3000)), {"a": np.arange(2000)}, [b"z" * 3000] * 1]
    for obj in [*big, [np.full(1000, i) for i in range(50)]]:
        ring.put(obj)
        got = ring.get(0)
        assert repr(got) == repr(obj)
    ring.close()
    del got
    gc.collect()
    assert ring._check() and ring._arena.check()


def test_put_many_and_get_many() -> None:
    ring = Ring.create(RingSpec(slots=100))
    assert ring.put_many(range(70)) == 70
    assert ring.get_many(50) == list(range(50))
    assert ring.get_many(max_items=50, timeout=0) == list(range(50, 70))
    assert ring.put_many([]) == 0
    assert ring.put_many([b"x" * 5000, 1, b"y" * 5000, 2]) == 4
    assert ring.get_many(10) == [b"x" * 5000, 1, b"y" * 5000, 2]
    with pytest.raises(queue.Empty):
        ring.get_many(1, timeout=0)
    for wrong in (0, -1, -(10**400)):
        with pytest.raises(ValueError, match="max_items"):
            ring.get_many(wrong)


def test_put_many_says_how_many_are_in() -> None:
    ring = Ring.create(RingSpec(slots=40))
    assert ring.put_many(range(100), timeout=0) == 40
    with pytest.raises(Overloaded):
        ring.put_many([1], timeout=0)
    assert ring.get_many(100) == list(range(40))


def test_put_many_sends_what_comes_before_an_error() -> None:
    ring = Ring.create(RingSpec(slots=40))
    with pytest.raises(TypeError):
        ring.put_many([1, 2, threading.Lock(), 3])
    assert ring.get_many(10) == [1, 2]

    def source() -> Iterator[int]:
        yield from range(35)
        raise LookupError("source")

    with pytest.raises(LookupError, match="source"):
        ring.put_many(source())
    assert ring.get_many(100) == list(range(35))


class Fragile:
    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> Any:
        return _fail, (self.number,)


def _fail(number: int) -> None:
    raise ZeroDivisionError(number)


def test_one_bad_message_costs_only_itself() -> None:
    ring = Ring.create(RingSpec(slots=40))
    ring.put_many([0, Fragile(1), 2, Fragile(3), Fragile(4), 5, 6])
    assert ring.get_many(10) == [0]
    assert ring.qsize() == 6
    with pytest.raises(ZeroDivisionError, match="1"):
        ring.get_many(10)
    assert ring.get() == 2
    with pytest.raises(ZeroDivisionError, match="3"):
        ring.get()
    with pytest.raises(ZeroDivisionError, match="4"):
        ring.get_many(1)
    assert ring.get_many(10) == [5, 6]
    with pytest.raises(queue.Empty):
        ring.get(0)


def test_timeouts() -> None:
    ring = Ring.create(RingSpec(slots=1))
    for get in (ring.get_nowait, lambda: ring.get(0), lambda: ring.get(timeout=0.01), lambda: ring.get_many(3, 0.01)):
        with pytest.raises(queue.Empty):
            get()
    ring.put_nowait(1)
    for put in (lambda: ring.put_nowait(2), lambda: ring.put(2, 0), lambda: ring.put(2, timeout=0.01)):
        with pytest.raises(Overloaded) as caught:
            put()
        assert caught.value.capacity == 1 and isinstance(caught.value, queue.Full)
    begin = time.monotonic()
    with pytest.raises(queue.Full):
        ring.put(2, 0.05)
    assert time.monotonic() - begin >= 0.05
    assert ring.get(math.inf) == 1


@pytest.mark.parametrize("wrong", [-1, -0.001, math.nan, -math.inf])
def test_a_timeout_that_means_nothing(wrong: float) -> None:
    ring = Ring.create()
    calls: list[Callable[[], object]] = [
        lambda: ring.put(1, wrong),
        lambda: ring.get(wrong),
        lambda: ring.get_many(1, wrong),
        lambda: ring.put_many([1], timeout=wrong),
        lambda: ring.lease(wrong).__enter__(),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="timeout"):
            call()
    assert ring.qsize() == 0


def test_wrong_arguments() -> None:
    ring = Ring.create()
    wrong: list[Callable[[], object]] = [
        *(lambda: ring.get("1"), lambda: ring.get(True), lambda: ring.put(), lambda: ring.put(1, 2, 3)),  # type: ignore
        *(lambda: ring.get(1, 2), lambda: ring.put(1, wait=2), lambda: ring.put(1, 0, timeout=0), lambda: Ring()),  # type: ignore
        *(lambda: ring.put_many(5), lambda: Ring.create(5), lambda: Ring.attach(5), lambda: ring.get_many("a")),  # type: ignore
    ]
    for call in wrong:
        with pytest.raises(TypeError):
            call()
    ring.put(obj=1, timeout=None)
    assert ring.get(timeout=None) == 1


def test_close() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2])
    ring.close()
    ring.close()
    for put in (lambda: ring.put(3), lambda: ring.put_many([3])):
        with pytest.raises(RingClosed, match="closed"):
            put()
    assert list(ring) == [1, 2]
    for get in (ring.get, ring.get_nowait, lambda: ring.get_many(1), lambda: ring.lease().__enter__()):
        with pytest.raises(EOFError):
            get()
    assert issubclass(EndOfRing, EOFError) and issubclass(RingClosed, ValueError)


def test_close_wakes_whoever_waits() -> None:
    ring, full = Ring.create(), Ring.create(RingSpec(slots=1))
    full.put(1)
    outcomes: list[type] = []

    def wait(call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:
            outcomes.append(type(error))

    threads = [threading.Thread(target=wait, args=(call,)) for call in (ring.get, ring.get, lambda: full.put(2))]
    for thread in threads:
        thread.start()
    ring.close()
    full.close()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(kind.__name__ for kind in outcomes) == ["EndOfRing", "EndOfRing", "RingClosed"]


def test_policies() -> None:
    refuse = Ring.create(RingSpec(slots=2, on_full="raise"))
    refuse.put_many([1, 2])
    with pytest.raises(Overloaded):
        refuse.put(3, timeout=PATIENCE)  # at once, whatever the timeout
    assert refuse.get_many(5) == [1, 2]

    newest = Ring.create(RingSpec(slots=2, on_full="drop_oldest"))
    for obj in (1, b"x" * 9000, 3, 4):
        newest.put(obj)
    assert newest.get_many(5) == [3, 4] and newest.stats()["drops"] == 2

    oldest = Ring.create(RingSpec(slots=2, on_full="drop_newest"))
    for obj in (1, 2, b"x" * 9000, np.arange(9000)):
        oldest.put(obj)
    assert oldest.get_many(5) == [1, 2] and oldest.stats().drops == 2


def test_stats() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2, 3])
    ring.get()
    with pytest.raises(queue.Empty):
        Ring.create().get(0.01)
    stats = ring.stats()
    assert (stats["depth"], stats["high_water"], stats["messages_in"], stats["messages_out"]) == (2, 3, 3, 1)
    assert stats.capacity == 4 and stats.bytes > 0 and stats.repairs == 0 and stats.drops == 0
    assert stats["blocked_full"] == 0.0 and isinstance(stats["blocked_empty"], float)
    with pytest.raises(AttributeError, match="depth"):
        _ = stats.nonsense


def test_a_signal_handler_interrupts_a_wait() -> None:
    ring, full = Ring.create(), Ring.create(RingSpec(slots=1))
    full.put(1)

    class Rang(Exception):
        pass

    def ring_it(*_: object) -> None:
        raise Rang

    old = signal.signal(signal.SIGALRM, ring_it)
    try:
        for call in (ring.get, lambda: ring.get(PATIENCE), lambda: full.put(2), lambda: full.put_many([2])):
            signal.setitimer(signal.ITIMER_REAL, 0.02)
            with pytest.raises(Rang):
                call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    ring.put(1)
    assert ring.get() == 1 and full.get_many(5) == [1]


def test_a_handled_signal_does_not_end_a_wait() -> None:
    ring = Ring.create()
    rings: list[int] = []

    def ring_it(*_: object) -> None:
        rings.append(1)
        if len(rings) == 3:
            ring.put("after three")  # a handler may use the ring that it interrupts

    old = signal.signal(signal.SIGALRM, ring_it)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
        assert ring.get() == "after three"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_waiting_releases_the_interpreter() -> None:
    ring = Ring.create()
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(ring.get()))
    thread.start()
    ring.put("now")
    thread.join(PATIENCE)
    assert got == ["now"]


def test_a_ring_inside_a_message() -> None:
    ring, inner = Ring.create(), Ring.create(RingSpec(slots=2))
    ring.put({"reply": inner})
    got = ring.get()["reply"]
    assert got is inner
    got.put(1)
    assert inner.get() == 1


# ---- leases --------------------------------------------------------------------------------------------------


def test_a_lease_ends_by_the_end_of_its_block() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2])
    with ring.lease() as one:
        assert one == 1 and ring.qsize() == 1 and ring.stats().leased == 1
    with pytest.raises(LookupError):
        with ring.lease() as two:
            raise LookupError(two)
    with ring.lease(timeout=0) as two:
        assert two == 2
    with pytest.raises(queue.Empty):
        with ring.lease(0.01):
            pass
    ring.close()
    with pytest.raises(EndOfRing):
        with ring.lease():
            pass


def test_leases_nest_and_come_back_in_order() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put_many([1, 2, 3])
    with pytest.raises(LookupError):
        with ring.lease() as one:
            with ring.lease() as two:
                assert (one, two) == (1, 2)
            raise LookupError
    assert ring.get_many(5) == [1, 3]


def test_arrays_of_a_lease_outlive_it() -> None:
    ring = Ring.create(RingSpec(slots=4))
    ring.put(np.full(50_000, 7, "u1"))
    with ring.lease() as kept:
        assert not kept.flags.writeable  # the message may run again
    for i in range(20):
        ring.put(np.full(50_000, i, "u1"))
        ring.get()
    assert (kept == 7).all()
    ring.put(np.full(50_000, 8, "u1"))
    with pytest.raises(LookupError):
        with ring.lease() as returned:
            raise LookupError
    assert (ring.get() == 8).all()
    for i in range(20):
        ring.put(np.full(50_000, i, "u1"))
        ring.get()
    assert (returned == 8).all()
    used = ring._arena.stats()["blocks_used"]
    del kept, returned
    gc.collect()
    assert ring._arena.stats()["blocks_used"] == used - 2


def test_a_leased_message_that_cannot_be_read_is_done() -> None:
    ring = Ring.create()
    ring.put_many([Fragile(1), 2])
    with pytest.raises(ZeroDivisionError):
        with ring.lease():
            pass
    assert ring.get(0) == 2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("big", [False, True])
def test_a_lease_comes_back_when_its_process_is_killed(method: str, big: bool) -> None:
    ring, ready = Ring.create(RingSpec(slots=4)), Ring.create()
    ring.put(np.full(50_000, 3, "u1") if big else 3)
    with processes(method) as _:
        victim = context(method).Process(target=ring_kit.lease_and_wait, args=(ring, ready))
        victim.start()
        assert ready.get(PATIENCE) == 3
        with pytest.raises(queue.Empty):
            ring.get(0)
        victim.kill()
        victim.join()
    got = ring.get(PATIENCE)
    assert (got[0] if big else got) == 3


# ---- many processes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("batch", [1, 20])
def test_many_to_many(method: str, batch: int) -> None:
    ring, out = Ring.create(RingSpec(slots=16)), Ring.create(RingSpec(slots=8))
    count, producers, consumers = 500, 2, 2
    produce = ring_kit.produce if batch == 1 else ring_kit.produce_many
    with processes(method, *[(ring_kit.collect, ring, out, batch)] * consumers):
        with processes(method, *[(produce, ring, who, count) for who in range(producers)]):
            pass
        ring.close()
        parts = [out.get(PATIENCE) for _ in range(consumers)]
    everything = sorted(tuple(item) for part in parts for item in part)
    assert everything == [(who, number) for who in range(producers) for number in range(count)]
    for part in parts:  # what one consumer gets of one producer is in order
        for who in range(producers):
            numbers = [number for producer, number in part if producer == who]
            assert numbers == sorted(numbers)
    assert ring._check()


def test_many_threads() -> None:
    ring = Ring.create(RingSpec(slots=4))
    got: list[Any] = []
    producers = [threading.Thread(target=ring_kit.produce, args=(ring, who, 500)) for who in range(4)]
    consumers = [threading.Thread(target=lambda: got.extend(list(ring))) for _ in range(4)]
    for thread in [*producers, *consumers]:
        thread.start()
    for thread in producers:
        thread.join(PATIENCE)
    ring.close()
    for thread in consumers:
        thread.join(PATIENCE)
    assert sorted(got) == [(who, number) for who in range(4) for number in range(500)]


@pytest.mark.parametrize("method", METHODS)
def test_objects_go_there_and_back(method: str) -> None:
    there, back = Ring.create(RingSpec(slots=4)), Ring.create(RingSpec(slots=4))
    objects = [1, "é", b"x" * 100_000, np.arange(100_000), {"a": [np.ones((300, 300))]}, Overloaded("full", capacity=3)]
    with processes(method, (ring_kit.echo, there, back)):
        for obj in objects:
            there.put(obj)
            got = back.get(PATIENCE)
            assert repr(got) == repr(obj) and type(got) is type(obj)
        there.close()
        assert back.get(PATIENCE) == ("end", len(objects))


def test_a_pickled_ring_attaches_in_a_process_that_runs_already() -> None:
    """Not only as an argument of a process that is being spawned."""
    ours, theirs = context("spawn").Pipe()
    with processes("spawn", (ring_kit.answer_pickled, theirs)):
        counts = []
        for number in range(20):
            ring = Ring.create(RingSpec(slots=2))
            ring.put(number)
            ours.send(pickle.dumps(ring))
            counts.append(ours.recv())
            assert ring.get(PATIENCE) == number * 2
        ours.send(None)
    assert len(set(counts[2:])) == 1, f"descriptors are left: {counts}"


def test_a_forked_child_goes_on_with_the_parents_ring() -> None:
    ring, back = Ring.create(RingSpec(slots=4)), Ring.create()
    ring.put(np.full(50_000, 1, "u1"))
    kept = ring.get()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            del kept  # the parent's block stays the parent's
            for _ in range(30):
                ring.put(np.full(50_000, 9, "u1"))
                ring.get()
            mine = shmrt.empty(50_000, "u1")
            mine[:] = 4
            back.put(mine)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0
    assert (kept == 1).all() and (back.get(PATIENCE) == 4).all()


def test_a_ring_outlives_its_maker() -> None:
    """The process that made it is gone; the one that has it goes on."""
    make = (
        "import sys, pickle, os; from shmrt import Ring, RingSpec; r = Ring.create(RingSpec(slots=4)); r.put('made');"
        "print(pickle.dumps(r).hex(), flush=True); sys.stdin.read()"
    )
    maker = subprocess.Popen([sys.executable, "-c", make], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert maker.stdout is not None and maker.stdin is not None
    data = bytes.fromhex(maker.stdout.readline().decode())
    ring = pickle.loads(data)
    maker.kill()
    maker.wait()
    maker.stdin.close()
    maker.stdout.close()
    assert ring.get(PATIENCE) == "made"
    ring.put(b"x" * 50_000)
    assert ring.get(PATIENCE) == b"x" * 50_000
    token = ring._token
    del ring
    gc.collect()
    with pytest.raises(SegmentError, match="gone"):
        pickle.loads(data)
    assert token


def test_a_descriptor_number_that_means_something_else_now() -> None:
    ring = Ring.create()
    data = pickle.dumps(ring)
    del ring
    gc.collect()
    others = [Ring.create(RingSpec(slots=7)) for _ in range(3)]
    with pytest.raises(SegmentError):
        pickle.loads(data)
    assert others


# ---- memory --------------------------------------------------------------------------------------------------


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


# ---- names ---------------------------------------------------------------------------------------------------


def test_named_rings(named: str) -> None:
    ring = Ring.create(RingSpec(slots=3, on_full="raise"), name=named)
    other = Ring.attach(named)
    assert other.capacity == 3 and other.spec.on_full == "raise" and other.name == named
    ring.put([np.arange(5000), "é"])
    assert other.get()[1] == "é"
    with pytest.raises(SegmentError, match="exists"):
        Ring.create(name=named)
    (entry,) = [entry for entry in os.listdir("/dev/shm") if named in entry]
    assert stat.S_IMODE(os.stat(f"/dev/shm/{entry}").st_mode) == 0o600
    again = pickle.loads(pickle.dumps(ring))
    again.put(1)
    assert other.get() == 1
    ring.unlink()
    ring.unlink()
    with pytest.raises(NotFound, match="no ring named"):
        Ring.attach(named)
    ring.put(2)  # whoever has it goes on
    assert other.get() == 2
    with pytest.raises(NotFound):
        pickle.loads(pickle.dumps(ring))


def test_a_named_ring_outlives_every_process(named: str) -> None:
    make = (
        "import sys; from shmrt import Ring, RingSpec; r = Ring.create(RingSpec(slots=4), name=sys.argv[1]);"
        "r.put_many([1, b'x' * 9000]); import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", make, named], check=False).returncode == -signal.SIGKILL
    ring = Ring.attach(named)
    assert ring.get_many(5) == [1, b"x" * 9000]
    ring.unlink()


def test_unlink_leaves_another_ring_of_that_name_alone(named: str) -> None:
    old = Ring.create(name=named)
    old.unlink()
    new = Ring.create(name=named)
    old.unlink()
    assert Ring.attach(named)._token == new._token
    with pytest.raises(SegmentError, match="another ring"):
        pickle.loads(pickle.dumps(old))
    new.unlink()


@pytest.mark.parametrize("wrong", ["", "a/b", "x" * 181, "é" * 91, "a\0b", "a\nb", " a", "\ud800"])
def test_names_that_cannot_be(wrong: str) -> None:
    for call in (lambda: Ring.create(name=wrong), lambda: Ring.attach(wrong)):
        with pytest.raises(ValueError, match="name"):
            call()


def test_dots_are_a_name_like_any_other(named: str) -> None:
    name = f"..{named}"
    ring = Ring.create(name=name)
    ring.unlink()
    assert not [entry for entry in os.listdir("/dev/shm") if named in entry]


def test_what_is_not_ours_is_refused(named: str) -> None:
    ring = Ring.create(RingSpec(slots=2), name=named)
    (entry,) = [entry for entry in os.listdir("/dev/shm") if named in entry]
    path = f"/dev/shm/{entry}"
    os.chmod(path, 0o644)
    with pytest.raises(SegmentError, match="mode"):
        Ring.attach(named)
    os.chmod(path, 0o600)
    with open(path, "r+b") as file:
        head = file.read(4096)
        for offset, value in (
            (0, b"\0" * 8),
            (0, b"garbage!"),
            (8, b"\xff" * 4),
            (16, b"\xff" * 8),
            (128, b"\xff" * 8),
        ):
            file.seek(0)
            file.write(head[:offset] + value + head[offset + len(value) :])
            file.flush()
            with pytest.raises(SegmentError):
                Ring.attach(named)
        file.seek(0)
        file.write(head)
    Ring.attach(named).put(1)
    assert ring.get() == 1
    ring.unlink()
    for content in (b"", b"x" * 100, b"\0" * 10_000):
        with open(path, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
        with pytest.raises(SegmentError):
            Ring.attach(named)


def test_pickle_can_be_refused(named: str) -> None:
    ring = Ring.create(name=named)
    careful = Ring.attach(named, pickle=False)
    ring.put_many([ValueError("x"), [1, b"x" * 9000, np.arange(3000)]])
    with pytest.raises(SegmentError, match="pickle=True"):
        careful.get()
    got = careful.get()
    assert got[0] == 1 and len(got[2]) == 3000
    ring.unlink()


def test_a_maker_killed_half_way_leaves_a_name_that_the_next_one_sweeps(named: str) -> None:
    die = (
        "import sys, os, signal; from shmrt.memory import names;"
        "names.create_named(sys.argv[1], 1 << 20, lambda fd: os.kill(os.getpid(), signal.SIGKILL))"
    )
    assert subprocess.run([sys.executable, "-c", die, named], check=False).returncode == -signal.SIGKILL
    prefix = f"shmrt-{os.geteuid()}-new-"
    made = {entry for entry in os.listdir("/dev/shm") if entry.startswith(prefix)}
    left = {entry for entry in made if not _native.owner_is_alive(int(entry.removeprefix(prefix).partition("-")[0]))}
    with pytest.raises(NotFound):
        Ring.attach(named)
    ring = Ring.create(name=named)
    assert not left & set(os.listdir("/dev/shm"))
    ring.unlink()

"""A worker that writes over the memory that it shares: over its lanes, its slot, its call slots, the arena's header.

A bug in a C library that a task uses can do that. `scribble.py` has tasks do it while their pool has work to do. Every
task ends, with its own value or a documented error; nobody but that worker ends; afterwards everything works. By
hand, more of it:

    python -m pytest -m stress tests/inject/test_scribble.py
    SHMRT_INJECT_SEED=7 python -m pytest tests/inject/test_scribble.py   # one seed again
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import scribble
from inject_kit import HERE, SEED, Child

import shmrt
from shmrt import SegmentError, WorkerCrashed, _native
from shmrt.process import remote

PLACES = ("positions", "records", "slot", "calls", "arena")
WORDS = {
    "positions": "the positions of its lanes",
    "records": "records in its lanes",
    "slot": "its slot",
    "calls": "its call slots",
    "arena": "the header of the arena",
}


def overwrite(shim: Path, folder: Path, place: str, first: int, count: int) -> None:
    print(f"SHMRT_INJECT_SEED={SEED} python {HERE / 'scribble.py'} {place} {SEED} {first} {count} FILE")
    child = Child(shim, folder, "scribble.py", place, SEED, first, count)
    status, reports, err = child.end()
    assert status == 0 and reports, f"{place}, seed {SEED}: status {status} at {child.at()}\n{err[-6000:]}"
    (report,) = reports
    assert not report["unexpected"], (place, SEED, report["unexpected"][:2])
    assert report["whole"] and sum(report["outcomes"].values()) == count * (scribble.TASKS + 1), report
    outcomes, ended = dict(sorted(report["outcomes"].items())), report["restarts"]
    print(f"result: a worker over {WORDS[place]}: {count} tasks do it, {ended} workers ended; {outcomes}")


@pytest.mark.parametrize("place", PLACES)
def test_a_worker_that_overwrites_what_it_shares(shim: Path, tmp_path: Path, place: str) -> None:
    overwrite(shim, tmp_path, place, 0, 8)


@pytest.mark.stress
@pytest.mark.parametrize("place", PLACES)
def test_many_that_overwrite_what_they_share(shim: Path, tmp_path: Path, place: str) -> None:
    overwrite(shim, tmp_path, place, 1000, 1000)


# ---- one word each -------------------------------------------------------------------------------------------------
def write_once(path: str, where: str, size: int, value: int | str) -> None:
    """In a worker, the first time only: `value` there. Both may be expressions of what scribble.py knows."""
    import ctypes

    sys.path[:0] = [os.path.dirname(os.path.abspath(path))]
    import scribble as known

    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    tasks, capacity, results, _ = known.own_lanes()
    for _ in range(2000):  # until it, a function and those behind it are in the lane: nothing follows
        if len(known.records(tasks, capacity)) == 2 + FEW or not where.startswith("tasks"):
            break
        threading.Event().wait(0.001)
    names = {"slot": known.own_slot(), "tasks": tasks, "results": results, "at": known.number_at}
    number = value if isinstance(value, int) else eval(value, names)
    ctypes.memmove(eval(where, names), number.to_bytes(size, "little"), size)


FEW = 3
STATE, EPOCH, PID, INDEX, PHASE, TASK, REASON, BUSY, DONE = 0, 4, 8, 24, 128, 136, 640, 168, 160
CASES = [
    *((f"slot + {STATE}", 4, value) for value in (0, 1, 3, 77)),
    *((f"slot + {EPOCH}", 4, value) for value in (0, 0xFFFFFFFF)),
    *((f"slot + {PID}", 4, value) for value in (0, 1)),
    (f"slot + {INDEX}", 4, 0xFFFFFF41),
    *((f"slot + {REASON}", 4, value) for value in (1, 9)),
    ("slot + 384", 4, 1 << 30),  # its death mutex says that it is dead
    ("slot + 644", 4, 1),  # it was asked to stop
    ("tasks", 8, 16),
    ("tasks", 8, 1),
    ("tasks", 8, "at(tasks + 128, 8) + at(tasks + 256 + at(tasks + 128, 8), 4)"),  # nothing comes behind this task
    ("tasks + 128", 8, "at(tasks, 8)"),  # nor is anything left in the lane
    ("tasks + 128", 8, 1 << 40),
    ("tasks + 128", 8, 24),
    ("results", 8, 16),
    ("results", 8, 3),
    ("results + 128", 8, 1 << 50),
]


@pytest.mark.parametrize(("where", "size", "value"), CASES, ids=lambda value: str(value).replace(" ", ""))
def test_one_word(tmp_path: Path, where: str, size: int, value: int | str) -> None:
    """The task that did it ends in one way or the other, all behind it are served, by whomever, and the root lives."""
    with shmrt.Runtime() as runtime, shmrt.Pool(1) as pool:
        root = runtime.pid
        some = pool.options(max_attempts=4)
        bad = some.submit(write_once, str(tmp_path / "once"), where, size, value)
        while not (bad.running() or bad.done()):  # it looks at the tail before those behind it come
            os.sched_yield()
        count = FEW if where.startswith("tasks") else 30
        behind = [some.submit(abs, -number) for number in range(count)]
        assert [task.result() for task in behind] == list(range(count))
        assert bad.result() is None  # a second attempt does nothing
        assert runtime.pid == root


def test_its_own_numbers_of_busy_time_divide_nothing_by_zero() -> None:
    """One task done in 2^64 - 1 ns: a mean that one cannot be added to. In a program of its own, which might die."""
    source = f"""
import sys; sys.path[:0] = [{str(HERE.parents[1])!r}, {str(HERE)!r}]
import shmrt, scribble, ctypes, threading

def lie():
    slot = scribble.own_slot()
    def go_on():
        for _ in range(300):
            ctypes.memmove(slot + {BUSY}, bytes([255] * 8), 8)
            ctypes.memmove(slot + {DONE}, bytes([1] + [0] * 7), 8)
            threading.Event().wait(0.001)
    threading.Thread(target=go_on, daemon=True).start()

with shmrt.Pool(1) as pool:
    pool.submit(lie).result()
    for number in range(300):
        assert pool.submit(abs, -number).result() == number
print("well")
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (0, "well\n"), done


@pytest.mark.parametrize("packed", [(1, b"x"), None, [1, 2, 3, 4], (None, 1, "b", "c"), b"bytes"])
def test_a_value_whose_record_calls_it_an_error(packed: object) -> None:
    error = remote.unpack_exception(packed, "pool", 0, 1, 1)
    assert isinstance(error, SegmentError) and "in worker pool/0 (pid 1)" in str(error)


def test_the_error_says_what_it_did(tmp_path: Path) -> None:
    with shmrt.Pool(1) as pool:
        task = pool.submit(write_once, str(tmp_path / "once"), f"slot + {STATE}", 4, 77)
        try:
            task.result()
        except WorkerCrashed as error:
            assert "written over memory" in str(error) and error.signal == 9
        assert pool.submit(abs, -1).result() == 1


# ---- the words of a slot, without processes ------------------------------------------------------------------------
def test_the_root_calls_a_slot_gone_whatever_it_says() -> None:
    slots = _native.Slots.create(8)
    for word in (0, 1, 2, 3, 4, 0xFFFFFFFF):
        epoch = slots.claim(2, 1, 0)
        os.pwrite(slots.fd, word.to_bytes(4, "little"), scribble.HEADER + 2 * scribble.SLOT)
        os.pwrite(slots.fd, b"\xff\xff\xff\xff", scribble.HEADER + 2 * scribble.SLOT + EPOCH)
        assert slots.gone_anyway(2, epoch, 9, False) is False
        assert (slots.state(2), slots.epoch(2), slots.info(2)["wait_status"]) == (_native.SLOT_GONE, epoch, 9)
        slots.free(2)
    epoch = slots.claim(2, 1, 0)
    assert slots.gone_anyway(2, epoch, 0, True) is True and slots.state(2) == _native.SLOT_GONE
    slots.close()

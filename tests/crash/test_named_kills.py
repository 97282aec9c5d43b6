"""Making, joining and removing what has a name, killed at system calls and at sampled instructions between them.

The long tier (marked stress) takes every call; the short one every sixth of the long operations.

Names and descriptors are not in a copy of memory, so these are real deaths of real processes. After each: nothing is
there but what the next start or `clean` removes, whoever had it goes on, and the next create works. SHMRT_SEED repeats
the choice of instructions.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import call_stepper
import pytest
import stepper

from shmrt import NotFound, Ring, RingSpec, _native

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
import ring_kit

SEED = int(os.environ.get("SHMRT_SEED", str(random.SystemRandom().randrange(2**32))))
SPEC = RingSpec(slots=2)


@pytest.fixture(autouse=True)
def _traced() -> None:
    reason = stepper.may_trace()
    if reason:
        pytest.skip(reason)
    print(f"SHMRT_SEED={SEED}")


@pytest.fixture
def named() -> Iterator[str]:
    with ring_kit.free_name() as name:
        yield name


def entries(name: str) -> list[str]:
    return [entry for entry in os.listdir("/dev/shm") if name in entry]


def private_of(pid: int, owners: set[int]) -> list[str]:
    """The private names of a maker that died; `owners` are the ids that its pid had."""
    prefix = f"shmrt-{os.geteuid()}-new-"
    found = []
    for entry in os.listdir("/dev/shm"):
        owner = entry.removeprefix(prefix).partition("-")[0]
        if entry.startswith(prefix) and owner.isdigit() and int(owner) & 0x3FFFFF == pid & 0x3FFFFF:
            owners.add(int(owner))
            found.append(entry)
    return found


def points(operation: Any, prepare: Any, clear: Any, stride: int, more: int = 1) -> Iterator[tuple[int, int]]:
    """Every `stride`-th stop of the operation, as it is and with some instructions behind it, and its end."""
    whole = call_stepper.run(operation, at=None, prepare=prepare)
    clear()
    assert whole.stops >= 4 and not whole.killed
    rng = random.Random(SEED)
    for at in range(rng.randrange(stride), whole.stops, stride):
        yield at, 0
        for _ in range(more):
            yield at, rng.randrange(1, 300)
    yield whole.stops + 1000, 0  # it comes to its end


def make_all_ways(named: str, stride: int, more: int) -> None:
    whole = half = none = 0
    kept: list[Ring] = []

    def make() -> None:
        kept.append(Ring.create(SPEC, name=named))  # its end is no part of this

    def clear() -> None:
        Ring.attach(named).unlink()

    for at, then in points(make, lambda: None, clear, stride, more):
        result = call_stepper.run(make, at=at, then=then)
        owners: set[int] = set()
        left = private_of(result.pid, owners)
        assert len(left) <= 1 and not any(map(_native.owner_is_alive, owners))
        try:
            ring = Ring.attach(named)
        except NotFound:
            assert result.killed and not entries(named), (at, then)
            none += not left
            half += len(left)
            ring = Ring.create(SPEC, name=named)
        else:  # it had its name: it is whole
            whole += 1
            with pytest.raises(Exception, match="exists"):
                Ring.create(SPEC, name=named)
        assert not private_of(result.pid, owners), (at, then)  # the next create swept
        ring.put([at, b"x" * 5000])
        assert Ring.attach(named).get(0) == [at, b"x" * 5000] and ring._check()
        ring.unlink()
        assert not entries(named)
    print(f"result: killed before the file {none} times, in the making {half}, with its name {whole}")
    assert none and half and whole


def test_a_maker_dies_at_every_call(named: str) -> None:
    """create: no name, or a whole ring; what a maker left is swept by the next one."""
    make_all_ways(named, stride=6, more=1)


@pytest.mark.stress
def test_a_maker_dies_at_every_call_and_many_instructions(named: str) -> None:
    """The same, closer."""
    make_all_ways(named, stride=1, more=8)


def test_who_joins_dies_at_every_call(named: str) -> None:
    """attach, and the first use: the ring is as it was, or has one message less, and the others go on."""
    ring = Ring.create(SPEC, name=named)
    kept: list[Any] = []

    def join() -> None:
        other = Ring.attach(named)
        kept.append(other)
        kept.append(other.get(0))

    def fill() -> None:
        while ring.qsize():
            ring.get(0)
        ring.put_many([(1, b"a" * 5000), (2, b"b")])

    fill()
    taken = kept_back = 0
    for at, then in points(join, lambda: None, fill, 2):
        call_stepper.run(join, at=at, then=then)
        first = ring.get(10)
        assert first in ((1, b"a" * 5000), (2, b"b"))
        taken += first[0] == 2
        kept_back += first[0] == 1
        if first[0] == 1:
            assert ring.get(10) == (2, b"b")
        assert ring.qsize() == 0 and ring._check() and entries(named) == [f"shmrt-{os.geteuid()}-ring-{named}"]
        fill()
    ring.unlink()
    assert taken and kept_back


def test_who_removes_dies_at_every_call(named: str) -> None:
    """unlink: the name is there, whole, or gone; whoever has the ring goes on, and the name can be had again."""
    rings: list[Ring] = []

    def take() -> None:
        rings[:] = [Ring.attach(named)]

    def remove() -> None:
        rings[0].unlink()
        rings.clear()

    def make() -> None:
        mine[:] = [Ring.create(SPEC, name=named)]
        mine[0].put(7)

    mine: list[Ring] = []
    make()
    there = gone = 0
    for at, then in points(remove, take, make, 1):
        call_stepper.run(remove, at=at, then=then, prepare=take)
        assert mine[0].get(0) == 7  # whoever has it goes on
        mine[0].put(8)
        if entries(named):
            there += 1
            assert Ring.attach(named).get(0) == 8
            mine[0].unlink()
        else:
            gone += 1
            with pytest.raises(NotFound):
                Ring.attach(named)
        assert not entries(named)
        make()
    mine[0].unlink()
    assert there and gone


def test_a_maker_without_a_name_leaves_nothing() -> None:
    """Anonymous rings and their arena: there is no name that could stay."""
    kept: list[Ring] = []

    def make() -> None:
        ring = Ring.create(SPEC)
        ring.put(b"x" * 5000)
        kept.append(ring)

    for at, then in points(make, lambda: None, lambda: None, 24):
        result = call_stepper.run(make, at=at, then=then)
        assert private_of(result.pid, set()) == []

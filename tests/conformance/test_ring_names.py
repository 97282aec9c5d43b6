"""Rings with names: found by name, left behind by the dead, never mixed up, and nothing foreign is taken for a ring."""

from __future__ import annotations

import os
import pickle
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import ring_kit

from shmrt import NotFound, Ring, RingSpec, SegmentError, _native


@pytest.fixture
def named() -> Iterator[str]:
    with ring_kit.free_name() as name:
        yield name


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

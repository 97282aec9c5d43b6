"""What another user of the machine can do with shared memory of ours: nothing. What an open umask changes: nothing."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shmrt import Ring, RingSpec, SegmentError, _native

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


@pytest.fixture
def name() -> str:
    return f"inject-users-{os.getpid()}-{os.urandom(4).hex()}"


def test_modes_under_an_open_umask(name: str) -> None:
    before = os.umask(0)
    try:
        ring = Ring.create(RingSpec(slots=4, slot_bytes=96), name=name, limit=1 << 20)
        anonymous, arena, slots = Ring.create(), _native.Arena.create(1 << 20), _native.Slots.create(8)
    finally:
        os.umask(before)
    try:
        for fd in (ring._fd, anonymous._fd, arena.fd, slots.fd):
            assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o600
    finally:
        slots.close()
        ring.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED: only root can become another user")
def test_another_user_gets_nowhere(name: str) -> None:
    """It can neither open the file nor the descriptor, does not find the name, and may have the same name itself."""
    ring = Ring.create(RingSpec(slots=4, slot_bytes=96), name=name, limit=1 << 20)
    path = f"/dev/shm/shmrt-{os.geteuid()}-ring-{name}"
    assert os.path.exists(path)
    source = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import shmrt, shmrt.memory.ring, shmrt.memory.names, posix_ipc
os.setgroups([]); os.setresgid({NOBODY}, {NOBODY}, {NOBODY}); os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
def refused(call, *errors):
    try: call()
    except errors as error: return type(error).__name__
    return "ALLOWED"
print(refused(lambda: os.open({path!r}, os.O_RDONLY), PermissionError))
print(refused(lambda: os.open("/proc/{os.getpid()}/fd/{ring._fd}", os.O_RDWR), PermissionError))
print(refused(lambda: os.unlink({path!r}), PermissionError))
print(refused(lambda: shmrt.Ring.attach({name!r}), shmrt.NotFound))
print(refused(lambda: shmrt.Ring.__new__(shmrt.Ring)._join({ring._fd}, None, False), shmrt.SegmentError))
own = shmrt.Ring.create(shmrt.RingSpec(slots=4, slot_bytes=96), name={name!r}, limit=1 << 20)
own.put(1); print(shmrt.Ring.attach({name!r}).get()); own.unlink()
"""
    try:
        os.set_inheritable(ring._fd, True)  # even one that it was given by mistake
        made = subprocess.run(
            [sys.executable, "-c", source], capture_output=True, text=True, timeout=600, close_fds=False
        )
        words = ["PermissionError"] * 3 + ["NotFound", "SegmentError", "1"]
        assert (made.returncode, made.stdout.split()) == (0, words), made
    finally:
        os.set_inheritable(ring._fd, False)
        ring.unlink()


def test_a_squatted_name_is_no_ring_of_ours(name: str, tmp_path: Path) -> None:
    """A link, a directory, a pipe, or nothing at all where the file should be: refused, and not written to."""
    path = f"/dev/shm/shmrt-{os.geteuid()}-ring-{name}"
    target = tmp_path / "precious"
    target.write_bytes(b"precious")
    for squat in (
        lambda: os.symlink(target, path),
        lambda: os.symlink(path, path),
        lambda: os.mkdir(path),
        lambda: os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600)),
    ):
        squat()
        try:
            with pytest.raises(SegmentError):
                Ring.attach(name)
            with pytest.raises(SegmentError, match="exists already"):
                Ring.create(RingSpec(slots=4, slot_bytes=96), name=name, limit=1 << 20)
        finally:
            (os.rmdir if os.path.isdir(path) and not os.path.islink(path) else os.unlink)(path)
    assert target.read_bytes() == b"precious"
    assert not [entry for entry in os.listdir("/dev/shm") if name in entry]

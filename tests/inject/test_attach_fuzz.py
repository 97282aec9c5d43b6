"""Shared memory that others wrote: whatever stands there, a documented error or an object that works comes out.

Each byte of every header takes other values, and random places take random values, before the memory is attached and
while it is in use. A process of its own does that (`fuzz.py`), with a page without access around every mapping; a
signal, a hang or any other exception is a failure that names the mutation. By hand, all of it:

    python -m pytest -m stress tests/inject/test_attach_fuzz.py
    SHMRT_INJECT_SEED=7 python -m pytest tests/inject   # one seed again
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import change
from inject_kit import HERE, SEED, Child

from shmrt import Ring, RingSpec, SegmentError, _native

NAMES = ("ring", "dropping", "arena", "named", "table", "mailbox", "guards")
# Bytes of a header and of what it leads to. The arena's are fewer: each of its growths and trims is a system call.
BYTES = {
    "ring": 4096,
    "dropping": 2048,
    "arena": 19072,
    "named": 6656,
    "table": 10816,
    "mailbox": 5120,
    "guards": 10112,
}
WORDS = {
    "random": "random words before it is attached",
    "late": "random words while it is in use",
    "few": "bytes of the header, five values",
    "every": "bytes of the header, every value",
    "any": "any byte of the header, any value",
}
PART = 4096
SLOW = {"arena": 8, "guards": 4, "table": 2}


def fuzz(shim: Path, folder: Path, name: str, kind: str, first: int, count: int) -> None:
    print(f"SHMRT_INJECT_SEED={SEED} python {HERE / 'fuzz.py'} {name} {kind} {SEED} {first} {count} FILE")
    child = Child(shim, folder, "fuzz.py", name, kind, SEED, first, count)
    status, reports, err = child.end()
    if not reports:
        at = child.at()
        what = change(kind, SEED, at, BYTES[name])
        (folder / "err").write_text(err)
        pytest.fail(f"{name}, {kind}, seed {SEED}: status {status} at mutation {at}: {what}\n{err[-6000:]}")
    (report,) = reports
    assert status == 0 and not report["unexpected"], (name, kind, SEED, report["unexpected"][:2])
    assert report["size"] >= BYTES[name] and sum(report["outcomes"].values()) == count, report
    assert "Traceback" not in err, err[-3000:]
    outcomes = dict(sorted(report["outcomes"].items()))
    print(f"result: {name}, {WORDS[kind]}: {count} changes, 0 signals, 0 hangs, 0 other errors; {outcomes}")


@pytest.mark.parametrize("name", NAMES)
def test_random_words(shim: Path, tmp_path: Path, name: str) -> None:
    """Before it is attached: some places, some values."""
    fuzz(shim, tmp_path, name, "random", 0, 1000 // SLOW.get(name, 1))


@pytest.mark.parametrize("name", NAMES)
def test_random_words_under_its_users_feet(shim: Path, tmp_path: Path, name: str) -> None:
    """After it was attached, and looked at: what was constant then may have changed."""
    fuzz(shim, tmp_path, name, "late", 0, 1000 // SLOW.get(name, 1))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_of_the_header(shim: Path, tmp_path: Path, name: str) -> None:
    """Every byte of the first lines, five values each."""
    fuzz(shim, tmp_path, name, "few", 0, 5 * (128 if name in SLOW else 512))


@pytest.mark.parametrize("name", NAMES)
def test_any_byte_and_any_value(shim: Path, tmp_path: Path, name: str) -> None:
    """A sample of what the long tier does wholly: also of the bytes that are not among the first lines."""
    fuzz(shim, tmp_path, name, "any", 0, 1000 // SLOW.get(name, 1))


EVERY = [(name, first) for name in NAMES for first in range(0, BYTES[name], PART)]
"""In parts, so that several may run side by side."""


@pytest.mark.stress
@pytest.mark.parametrize(("name", "first"), EVERY)
def test_every_byte_and_every_value(shim: Path, tmp_path: Path, name: str, first: int) -> None:
    fuzz(shim, tmp_path, name, "every", 256 * first, 256 * min(PART, BYTES[name] - first))


@pytest.mark.stress
@pytest.mark.parametrize("kind", ["random", "late"])
@pytest.mark.parametrize("name", NAMES)
def test_a_million_changes(shim: Path, tmp_path: Path, name: str, kind: str) -> None:
    """10^6 over all seven, before and after they are attached."""
    fuzz(shim, tmp_path, name, kind, 10_000, 120_000 // SLOW.get(name, 1))


# ---- files ----------------------------------------------------------------------------------------------------------


def attaches(fd: int) -> dict[str, str]:
    """What each kind of segment says to a descriptor."""
    said = {}
    for kind, attach in (
        ("arena", lambda: _native.Arena.attach(fd)),
        ("control", lambda: _native.Slots.attach(fd).close()),
        ("mailbox", lambda: _native.Mailbox.attach(fd)),
        ("ring", lambda: Ring.__new__(Ring)._join(fd, None, False)),
    ):
        try:
            attach()  # type: ignore[no-untyped-call]
        except SegmentError as error:
            said[kind] = str(error)
        else:
            said[kind] = ""
    return said


def copy_of(fd: int, size: int, *, seals: bool = True, mode: int = 0o600) -> int:
    """Another memfd with the beginning of that one."""
    made = os.memfd_create("copy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.fchmod(made, mode)
    os.ftruncate(made, size)
    os.pwrite(made, os.pread(fd, size, 0), 0)
    if seals:
        import fcntl

        fcntl.fcntl(made, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return made


@pytest.mark.parametrize("size", [0, 1, 64, 127, 128, 129, 895, 896, 4095, 4097, 8192, 1 << 20])
def test_sizes_that_lie(size: int) -> None:
    """A whole ring of 4096 bytes in a file of another size is none."""
    ring = Ring.create(RingSpec(slots=4, slot_bytes=96))
    fd = copy_of(ring._fd, size) if size else os.memfd_create("empty", os.MFD_CLOEXEC)
    if not size:
        os.fchmod(fd, 0o600)
    try:
        assert all(attaches(fd).values()), attaches(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("seals", "mode", "words"),
    [(False, 0o600, "not sealed"), (True, 0o644, "mode"), (True, 0o666, "mode"), (True, 0o610, "mode")],
)
def test_what_others_could_change(seals: bool, mode: int, words: str) -> None:
    ring = Ring.create(RingSpec(slots=4, slot_bytes=96))
    fd = copy_of(ring._fd, 4096, seals=seals, mode=mode)
    try:
        assert all(words in said for said in attaches(fd).values()), attaches(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["/dev/null", "/dev/zero", "/dev/full", "/proc/self/maps", "/", "pipe", "socket"])
def test_what_is_no_memory_at_all(path: str) -> None:
    import socket

    others: list[int] = []
    if path == "pipe":
        fd, *others = os.pipe()
    elif path == "socket":
        fd, *others = (end.detach() for end in socket.socketpair())
    else:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        assert all(attaches(fd).values())
    finally:
        for each in (fd, *others):
            os.close(each)


@pytest.mark.parametrize(
    ("offset", "content", "words"),
    [
        (0, bytes(8), "not finished"),
        (0, b"GARBAGE!", "no shmrt segment"),
        (8, b"\x01\0\0\0", "layout version"),
        (8, b"\xff\xff\xff\xff", "layout version"),
        (12, b"\x63\0\0\0", "kind"),
        (16, bytes(8), "claims"),
        (16, b"\xff" * 8, "claims"),
    ],
)
def test_headers_of_others(offset: int, content: bytes, words: str) -> None:
    """An old version, another machine's byte order, another kind, a maker that died half way."""
    ring = Ring.create(RingSpec(slots=4, slot_bytes=96))
    fd = copy_of(ring._fd, 4096)
    try:
        os.pwrite(fd, content, offset)
        assert words in attaches(fd)["ring"], attaches(fd)
        head = os.pread(ring._fd, 8, 0)
        os.pwrite(fd, head[::-1], 0)
        assert "no shmrt segment" in attaches(fd)["ring"]
    finally:
        os.close(fd)


def test_each_kind_is_taken_for_no_other() -> None:
    arena, slots, ring = _native.Arena.create(1 << 20), _native.Slots.create(8), Ring.create()
    for fd, own in ((arena.fd, {"arena"}), (slots.fd, {"control"}), (ring._fd, {"mailbox", "ring"})):
        said = attaches(fd)
        refused = {kind for kind, words in said.items() if "kind" in words}
        assert refused == {"arena", "control", "mailbox", "ring"} - own, said
    slots.close()


# ---- mutexes --------------------------------------------------------------------------------------------------------

MUTEXES = (_native.LAYOUT["ring_shared.put_mutex"], _native.LAYOUT["ring_shared.take_mutex"])
KIND = 16
"""Of a mutex: where its kind is."""
NOBODY = (1 << 30) - 16  # larger than any thread's number


@pytest.mark.parametrize("word", [NOBODY, NOBODY | 1 << 31, 1 << 31])
def test_a_lock_of_nobody_is_let_go(word: int) -> None:
    """The kernel could not mark it when its holder died, or it was overwritten: who waits for it has it in the end."""
    ring = Ring.create(RingSpec(slots=4, slot_bytes=96))
    ring.put_many([1, 2])
    for mutex in MUTEXES:
        os.pwrite(ring._fd, word.to_bytes(4, "little"), mutex)
    ring.put(3)
    assert [ring.get() for _ in range(3)] == [1, 2, 3] and ring._check()


@pytest.mark.parametrize("kind", [0, 1, 16, 17, 32, 33, 48, 64, 160, 255, 1 << 31])
def test_a_mutex_of_another_kind_is_not_touched(kind: int) -> None:
    """The C library aborts the process on some of them."""
    source = f"""
import os, shmrt
ring = shmrt.Ring.create(shmrt.RingSpec(slots=4, slot_bytes=96))
ring.put(1)
for mutex in {MUTEXES}:
    os.pwrite(ring._fd, ({kind}).to_bytes(4, "little"), mutex + {KIND})
    os.pwrite(ring._fd, ({NOBODY}).to_bytes(4, "little"), mutex)
for call in (ring.get, lambda: ring.put(2), ring.close, lambda: ring.lease().__enter__()):
    try: call()
    except shmrt.SegmentError as error: print("refused")
"""
    made = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=600)
    assert (made.returncode, made.stdout.split(), made.stderr) == (0, ["refused"] * 4, ""), made

"""Descriptors that are sent do not arrive, since their receiver's table is full: the kernel cuts the message short.

Whoever receives some: the root from the program (pools, mailboxes), the program from the root (mailboxes), a template
from the root (a worker's channel), the root from a worker (its own pools). A limit is set on the receiver while it
lives, to just what it has open. What follows is a documented error or success; nobody waits for ever; with the limit
back, all works.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import shmrt
from shmrt import _native
from shmrt.errors import ShmrtError
from shmrt.supervise.protocol import Channel

ROOT = Path(__file__).resolve().parents[2]
MANY = 5


@contextmanager
def full_table(pid: int = 0, room: int = 0) -> Iterator[None]:
    """That process can have `room` more descriptors than it has now."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    folder = f"/proc/{pid or os.getpid()}/fd"
    listed = os.listdir(folder)
    opened = {int(name) for name in listed if os.path.lexists(f"{folder}/{name}")}  # but for the one that listed them
    free = [number for number in range(4096) if number not in opened]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[room], before[1]))
    try:
        yield
    finally:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        except ProcessLookupError:
            pass  # it ended of it


def run(source: str) -> list[str]:
    """In a process of its own, whose table may be full without hurting the tests."""
    head = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]\n"
    done = subprocess.run([sys.executable, "-c", head + source], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done
    return done.stdout.split()


# ---- one message ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("room", range(MANY))
def test_a_message_cut_short_is_refused_and_closed(room: int) -> None:
    said = run(f"""
import os, resource
import test_descriptors as kit
from shmrt import _native
from shmrt.supervise.protocol import Channel
here, there = _native.socketpair(False)
sent, heard = Channel(there), Channel(here)
passed = tuple(os.open("/dev/null", os.O_RDONLY) for _ in range({MANY}))
sent.send(("before",))
before = heard.receive()
sent.send(("with", "descriptors"), passed)
names = sorted(os.listdir("/proc/self/fd"))
with kit.full_table(room={room}):
    came = heard.receive()
print(len(before), len(came), heard.closed, "open" in heard.failed, sorted(os.listdir("/proc/self/fd")) == names)
""")
    assert said == ["1", "0", "True", "True", "True"]


def test_a_message_that_just_fits_arrives() -> None:
    said = run(f"""
import os
import test_descriptors as kit
from shmrt import _native
from shmrt.supervise.protocol import Channel
here, there = _native.socketpair(False)
sent, heard = Channel(there), Channel(here)
sent.send(("with",), tuple(os.open("/dev/null", os.O_RDONLY) for _ in range({MANY})))
with kit.full_table(room={MANY}):
    ((message, fds),) = heard.receive()
print(message[0], len(fds), heard.closed, repr(heard.failed))
""")
    assert said == ["with", str(MANY), "False", "''"]


def test_the_end_of_a_peer_is_no_failure() -> None:
    here, there = _native.socketpair(False)
    heard = Channel(here)
    os.close(there)
    assert heard.receive() == [] and heard.closed and not heard.failed
    heard.shut()


def children_of(pid: int | None) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


# ---- the root ------------------------------------------------------------------------------------------------------
class Adder(shmrt.Server):
    def init(self) -> None:
        self.n = 0

    @shmrt.call
    def add(self, by: int) -> int:
        self.n += by
        return self.n


def use_pool() -> None:
    with shmrt.Pool(1) as pool:
        assert pool.submit(abs, -1).result() == 1


def use_preloading_pool() -> None:
    with shmrt.Pool(1, preload=["json"]) as pool:
        assert pool.submit(abs, -1).result() == 1


def use_server() -> None:
    ref = shmrt.start(Adder)
    assert ref.add(2) == 2
    ref.stop()


def nested() -> int:
    with shmrt.Pool(1) as pool:
        return int(pool.submit(abs, -7).result())


def use_nested_pool() -> None:
    with shmrt.Pool(1) as pool:
        assert pool.submit(nested).result() == 7


@pytest.mark.parametrize("room", range(8))
@pytest.mark.parametrize(
    "use", [use_pool, use_preloading_pool, use_server, use_nested_pool], ids=lambda use: use.__name__
)
def test_the_root_has_no_room(use: object, room: int) -> None:
    """It ends as one that died, and another takes its place; or it says what it could not do."""
    assert callable(use)
    with shmrt.Runtime() as runtime:
        use()
        with full_table(runtime.pid or 0, room):
            try:
                use()
            except (ShmrtError, OSError) as error:
                assert str(error), error
                assert "written over" not in str(error), error  # two in one slot would look like that
        use()
        # Nobody but who stands by for a pool that is just ending; who was killed is listed until it is reaped.
        end = time.monotonic() + 60
        while len(children_of(runtime.pid)) > 1:
            assert time.monotonic() < end, children_of(runtime.pid)


# ---- the program ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("room", [0, 2])
@pytest.mark.parametrize("use", ["use_pool", "use_server"])
def test_the_program_has_no_room(use: str, room: int) -> None:
    """Without descriptors it cannot start another root either: then the runtime has ended, and the next one works."""
    said = run(f"""
import json
import shmrt
import test_descriptors as kit
from shmrt.errors import RuntimeDown, ShmrtError
with shmrt.Runtime():
    kit.{use}()
    try:
        with kit.full_table(room={room}):
            kit.{use}()
        said = "went"
    except (ShmrtError, OSError) as error:
        said = type(error).__name__
    try:
        kit.{use}()
    except RuntimeDown as error:
        assert "Too many open files" in str(error), error
with shmrt.Runtime():
    kit.{use}()
print(json.dumps(said))
""")
    assert isinstance(json.loads(said[0]), str)

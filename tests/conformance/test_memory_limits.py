"""Little memory, few descriptors, few processes: an answer that names the limit, or work that goes on; never SIGBUS."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from life_kit import run

PRELUDE = """
import os, resource, sys, time
import numpy
import shmrt
def twice(a): return a * 2
def tell(error): print(type(error).__name__, error.needed, error.free, error.hint, "|", error, flush=True)
"""
SMALL_SHM = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "small")


def small_shm() -> tuple[str, ...]:
    if shutil.which("unshare") and subprocess.run([*SMALL_SHM, "true"], capture_output=True).returncode == 0:
        return SMALL_SHM
    pytest.skip("NOT TESTED: this user may not mount a /dev/shm of its own (needs unshare -m)")


FILES = {"memory": ("memory.limit_in_bytes", "memory.max"), "pids": ("pids.max", "pids.max")}


class Group:
    """A cgroup of version 1 or 2 below this process's own."""

    def __init__(self, limit: int, controller: str = "memory") -> None:
        self.path: Path | None = None
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controller in controllers.split(","):
                self._make(Path(f"/sys/fs/cgroup/{controller}{path}"), FILES[controller][0], limit)
            elif not controllers and self.path is None:
                self._make(Path("/sys/fs/cgroup" + path), FILES[controller][1], limit)
        if self.path is None:
            pytest.skip(f"NOT TESTED: this user may not make a {controller} cgroup")

    def _make(self, parent: Path, file: str, limit: int) -> None:
        try:
            path = parent / f"shmrt-test-{os.getpid()}-{os.urandom(4).hex()}"
            path.mkdir()
        except OSError:
            return
        try:
            (path / file).write_text(str(limit))
            self.path = path
        except OSError:
            path.rmdir()

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$@"', "group")

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.path is not None
        while True:  # the kernel lets go of the last member a moment after its end
            try:
                self.path.rmdir()
                return
            except OSError:
                os.sched_yield()


def test_a_small_dev_shm_is_no_limit() -> None:
    source = """
assert os.statvfs("/dev/shm").f_blocks * os.statvfs("/dev/shm").f_frsize == 1 << 20
with shmrt.Pool(2) as pool:
    print(pool.submit(twice, numpy.ones(1 << 20)).result().sum(), list(pool.map(abs, [-1, 2])))
ring = shmrt.Ring.create(shmrt.RingSpec(slots=1000, slot_bytes=4096))
ring.put(b"x" * 3_000_000); print(len(ring.get()))
"""
    assert run(PRELUDE + source, prefix=small_shm()) == (0, "2097152.0 [1, 2]\n3000000\n", "")


def test_a_named_ring_that_does_not_fit_names_what_it_needs() -> None:
    source = """
try: shmrt.Ring.create(shmrt.RingSpec(slots=10_000, slot_bytes=1000), name=f"life-{os.getpid()}")
except shmrt.SegmentError as error: tell(error); assert error.needed > error.free >= 0 and isinstance(error, OSError)
print(os.listdir("/dev/shm"))
"""
    status, out, err = run(PRELUDE + source, prefix=small_shm())
    assert status == 0 and out.startswith("SegmentError") and out.endswith("\n[]\n"), (out, err)
    assert "file system" in out


@pytest.mark.slow
def test_a_group_too_small_for_a_pool_is_told() -> None:
    """Everything is refused before the kernel would have to kill: needed, free, whose limit."""
    source = """
used = int(open(path + "/memory.usage_in_bytes" if os.path.exists(path + "/memory.usage_in_bytes")
                else path + "/memory.current").read())
file = path + ("/memory.limit_in_bytes" if os.path.exists(path + "/memory.limit_in_bytes") else "/memory.max")
open(file, "w").write(str(used + (8 << 20)))
for make in (lambda: shmrt.Pool(8), lambda: shmrt.Ring.create(shmrt.RingSpec(slots=100_000)),
             lambda: shmrt.empty(1 << 24)):
    try: make(); print("made")
    except shmrt.SegmentError as error:
        tell(error); assert error.needed > error.free >= 0 and "memory cgroup" in str(error)
"""
    with Group(1 << 30) as group:
        status, out, err = run(f"path = {str(group.path)!r}\n" + PRELUDE + source, prefix=group.prefix)
        assert (status, err) == (0, ""), (out, err)
        assert [line.split()[0] for line in out.splitlines()] == ["SegmentError"] * 3, out


@pytest.mark.slow
def test_memory_ends_under_load_and_the_program_lives() -> None:
    """Results are kept until memory ends: a typed error comes, or a worker is taken; never the program."""
    source = """
kept = []
with shmrt.Pool(2) as pool:
    try:
        while True: kept.append(pool.submit(numpy.ones, 1 << 20).result())
    except (shmrt.SegmentError, shmrt.WorkerCrashed, shmrt.errors.PoolBroken) as error:
        if isinstance(error, shmrt.WorkerCrashed): assert error.oom, error
        print(type(error).__name__, bool(kept))
"""
    with Group(160 << 20) as group:
        status, out, err = run(PRELUDE + source, prefix=group.prefix)
        assert status == 0 and out.split()[0] in ("SegmentError", "WorkerCrashed", "PoolBroken"), (status, out, err)


def test_the_kernel_takes_a_worker_before_the_program() -> None:
    source = """
def adjusted(pid='self'): return open(f"/proc/{pid}/oom_score_adj").read()
with shmrt.Pool(1) as pool, shmrt.Pool(1, preload=["decimal"]) as other:
    print(int(pool.submit(adjusted).result()), int(other.submit(adjusted).result()),
          int(adjusted(shmrt.runtime().pid)), int(adjusted()) < 900)
"""
    assert run(PRELUDE + source) == (0, "1000 1000 900 True\n", "")


def test_little_address_space() -> None:
    source = """
resource.setrlimit(resource.RLIMIT_AS, (500 << 20,) * 2)
with shmrt.Pool(2) as pool: print(pool.submit(twice, numpy.ones(1 << 17)).result().sum())
"""
    assert run(PRELUDE + source) == (0, "262144.0\n", "")


def test_too_little_address_space_is_told() -> None:
    source = """
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + (40 << 20),) * 2)
try: shmrt.Pool(2)
except shmrt.SegmentError as error: tell(error); assert error.needed > error.free
"""
    status, out, err = run(PRELUDE + source)
    assert status == 0 and "ulimit -v" in out, (out, err)


def test_few_descriptors() -> None:
    """64 are plenty; with 10 the error says what to raise, and nothing is left open by the attempt."""
    source = """
import cloudpickle, shmrt.pool, shmrt.runtimes, shmrt.supervise.link, shmrt.process.remote
before = os.listdir("/proc/self/fd")
resource.setrlimit(resource.RLIMIT_NOFILE, (10, 64))
for _ in range(5):
    try:
        with shmrt.Runtime(): shmrt.Pool(2)
    except OSError as error: print(error.errno, "ulimit -n" in str(error))
    except shmrt.RuntimeDown as error: print(24, "ulimit -n" in error.reason)  # the root fell first, as it may
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
after = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")]
assert len(after) <= len(before) + 1, after  # the default arena stays
with shmrt.Pool(2) as pool: print(list(pool.map(abs, range(-3, 0))))
"""
    status, out, err = run(PRELUDE + source)
    assert status == 0 and out.splitlines()[-1] == "[3, 2, 1]", (out, err)
    assert out.splitlines()[:5] == ["24 True"] * 5, out


@pytest.mark.slow
def test_few_processes_and_threads() -> None:
    """From one to ten: an error of some step or a pool that works; after more were allowed, the same program works."""
    source = """
results = []
for limit in range(1, 11):
    open(path + "/pids.max", "w").write(str(limit))
    try:
        with shmrt.Runtime(), shmrt.Pool(2) as pool: results.append(pool.submit(abs, -limit).result())
    except (OSError, RuntimeError) as error: results.append(0)
assert results[0] == 0 and results[-1] == 10, results
while len(os.listdir("/proc/self/task")) > 1: pass  # a joined thread is listed a moment longer
try: os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT); print("a child is left")
except ChildProcessError: print("fine")
"""
    with Group(1000, "pids") as group:
        os.environ["OPENBLAS_NUM_THREADS"] = "1"
        status, out, err = run(f"path = {str(group.path)!r}\n" + PRELUDE + source, prefix=group.prefix)
        assert (status, out) == (0, "fine\n"), (out, err)

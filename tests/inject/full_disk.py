"""In mount namespaces of their own: what is tried while the disk below it is full, or may not be written to.

    python full_disk.py OPERATION WHERE HOW STEP PROGRESS

WHERE is a tmpfs of this process's own: `runtime` (below the runtime directory) or `shm` (in the place of /dev/shm).
HOW: `files` (there is room for k more of them), `bytes` (there are k more pages), or `read-only`. k grows from 0, by
1 and from 4 on by STEP, until the operation goes through; whatever it says until then must be documented, and nothing
may be left behind. One line of JSON for each finding, one at the end.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import json
import mmap
import os
import struct
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import shmrt  # noqa: E402
from shmrt import Ring, RingSpec  # noqa: E402
from shmrt.errors import ConfigError, Overloaded, SegmentError  # noqa: E402

PAGE = mmap.PAGESIZE
SIZE = 4 << 20
MOST = 400  # files or pages; every operation is content with fewer
RDONLY, REMOUNT = 1, 32


class Failed(Exception):
    """What a command said that ended with code 2 or 6."""


def mount(target: str, flags: int, options: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"none", target.encode(), b"tmpfs", flags, options.encode()) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), target)


class Disk:
    """Small, and filled to its last page or file when it is armed."""

    def __init__(self, target: str) -> None:
        self.target = target
        mount(target, 0, f"size={SIZE},mode=1777")

    def arm(self, how: str, k: int) -> None:
        info = os.statvfs(self.target)
        if how == "files":
            mount(self.target, REMOUNT, f"size={SIZE},nr_inodes={info.f_files - info.f_ffree + k}")
        elif how == "read-only":
            mount(self.target, REMOUNT | RDONLY, f"size={SIZE}")
        else:
            with open(os.path.join(self.target, "fill"), "wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(1, info.f_bavail - k) * info.f_bsize)

    def disarm(self) -> None:
        mount(self.target, REMOUNT, f"size={SIZE},nr_inodes=4096")
        if os.path.exists(os.path.join(self.target, "fill")):
            os.unlink(os.path.join(self.target, "fill"))

    def left(self) -> list[str]:
        """But for the place itself, which holds the directories of all runtimes."""
        place = os.path.join(self.target, "place")
        inside = os.listdir(place) if os.path.isdir(place) else []
        return inside + [entry for entry in os.listdir(self.target) if entry not in ("fill", "place")]


# ---- operations ----------------------------------------------------------------------------------------------------
def runtime() -> None:
    with shmrt.Runtime(name="full") as made:
        assert made.pid


def command() -> None:
    """The same by `run`, which ends at once: its pipeline has nothing to do."""
    words = ["--name", "full", "run", "full_disk_target:pipe"]
    done = subprocess.run([sys.executable, "-m", "shmrt", *words], capture_output=True, text=True, timeout=600)
    if done.returncode in (2, 6):
        assert "Traceback" not in done.stderr and 1 <= len(done.stderr.splitlines()) <= 4, done.stderr
        raise Failed(done.stderr)
    assert done.returncode == 0 and "Traceback" not in done.stderr, (done.returncode, done.stderr)


def ring() -> None:
    made = Ring.create(RingSpec(slots=64, slot_bytes=96), name="full", limit=2 << 20)
    try:
        other = Ring.attach("full")
        other.put(b"x" * 3000, 0)  # nobody takes it meanwhile: who waited for room would wait for ever
        made.put_many([1, b"y" * 100_000], 0)
        assert [made.get(0), made.get(0), made.get(0)] == [b"x" * 3000, 1, b"y" * 100_000]
    finally:
        made.unlink()


OPERATIONS: dict[str, Callable[[], None]] = {"runtime": runtime, "command": command, "ring": ring}
DOCUMENTED = (ConfigError, SegmentError, Overloaded, OSError, Failed)


def main() -> None:
    name, where, how, step, progress = sys.argv[1:6]
    faulthandler.enable()
    warnings.simplefilter("ignore")
    with open(progress, "r+b") as file:
        at = mmap.mmap(file.fileno(), 8)
    target = os.path.join(os.path.dirname(progress), "disk") if where == "runtime" else "/dev/shm"
    os.makedirs(target, exist_ok=True)
    os.environ["SHMRT_RUNTIME_DIR"] = os.path.join(target, "place") if where == "runtime" else ""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.path.dirname(progress)])
    Path(progress).with_name("full_disk_target.py").write_text(
        "import shmrt\npipe = shmrt.Pipeline('p').map(str).source([])\n"
    )
    from nth import belongings, settled

    disk = Disk(target)
    OPERATIONS[name]()  # what is made once stays
    before = belongings()
    said: collections.Counter[str] = collections.Counter()
    through = False
    for k in [0] if how == "read-only" else [0, 1, 2, 3, *range(4, MOST, int(step))]:
        at[:] = struct.pack("<Q", k + 1)
        problem = ""
        disk.arm(how, k)
        try:
            OPERATIONS[name]()
        except DOCUMENTED as error:
            text = str(error)
            said[f"{type(error).__name__} {getattr(error, 'errno', None)}"] += 1
            if not any(word in text for word in ("full", target, "no space", "of the ring")):
                problem = f"it names nothing: {text}"
        except BaseException:
            problem = traceback.format_exc()[-3000:]
        else:
            said["went through"] += 1
            through = True
        disk.disarm()
        if left := disk.left():
            problem += f" left on the disk: {left}"
        if more := settled(before):
            problem += f" left behind: {more}"
        try:
            OPERATIONS[name]()
        except BaseException:
            problem += " the next try: " + traceback.format_exc()[-2000:]
        if problem:
            print(json.dumps({"k": k, "problem": problem}), flush=True)
        if through or left:
            break
    print(json.dumps({"end": True, "through": through, "said": said}), flush=True)


if __name__ == "__main__":
    main()

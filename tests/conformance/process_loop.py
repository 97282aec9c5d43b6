"""A loop in pure Python for tests of the process layer: parks until it is asked to stop.

Options say what it does besides: `"do": "module:function"` is called with the loop before it parks.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from shmrt import _native


class ParkLoop:
    def __init__(self, slots, slot, lanes_fd, pair, arena_fd, options):
        self.slots, self.slot, self.lanes_fd, self.pair = slots, slot, lanes_fd, pair
        self.options = options
        self.note_path = options.get("notes")

    def note(self, kind, value):
        if self.note_path:
            fd = os.open(self.note_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(fd, f"{kind} {self.slot} {os.getpid()} {value!r}\n".encode())
            os.close(fd)

    def start_failed(self, error):
        self.note("failed", repr(error))

    def log(self, row):
        self.note("log", row)

    def exit_value(self, value):
        self.note("exit", value)

    def run(self):
        do = self.options.get("do")
        if do:
            globals()[do](self)
        while not self.slots.info(self.slot)["stop_requested"]:
            self.slots.park(self.slot, -1)


def grandchildren(loop):
    """One that stays in the group, one that leaves it and its parent."""
    stays = subprocess.Popen(["sleep", "1000"])
    leaves = subprocess.Popen(
        [
            sys.executable,
            "-S",
            "-c",
            "import os\npid = os.fork()\n"
            "if not pid:\n os.setsid()\n os.execvp('sleep', ['sleep', '1000'])\nprint(pid, flush=True)",
        ],
        stdout=subprocess.PIPE,
    )
    pid = int(leaves.stdout.readline())
    leaves.wait()
    loop.note("children", [stays.pid, pid])


def spin(loop):
    loop.note("spin", os.getpid())
    while True:
        time.sleep(1000)


def surroundings(loop):
    import random

    loop.note(
        "world",
        {
            "cwd": os.getcwd(),
            "path": sys.path,
            "mark": os.environ.get("SHMRT_TEST_MARK"),
            "omp": os.environ.get("OMP_NUM_THREADS"),
            "random": random.random(),
            "main": sorted(vars(sys.modules["__main__"])),
            "pgid": os.getpgid(0) == os.getpid(),
            "fds": sorted(
                os.readlink(f"/proc/self/fd/{fd}")
                for fd in os.listdir("/proc/self/fd")
                if os.path.exists(f"/proc/self/fd/{fd}")
            ),
            "sigint": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "hash": hash("shmrt"),
            "threads": len(os.listdir("/proc/self/task")),
        },
    )


def logs(loop):
    import logging

    logging.getLogger("a.b").warning("hello %d", 7)


def leave_main_thread(loop):
    """The process lives on, its main thread does not: only a kill ends it."""
    import ctypes
    import threading

    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    ctypes.CDLL(None).pthread_exit(None)


def become_another(loop):
    os.execvp("sleep", ["sleep", "1000"])


def refuse():
    raise ValueError("this initializer never works")


def goodbye():
    return "bye"


__all__ = ["ParkLoop", "_native"]

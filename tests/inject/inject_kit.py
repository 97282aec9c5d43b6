"""Builds the shim, and starts processes that are expected to survive anything: what ends them is told with its
cause."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SANITIZED = "SHMRT_SANITIZED_RUN" in os.environ  # tests/sanitize.py
STUCK_S = 120.0  # without any progress: only a hang takes so long
SEED = int(os.environ.get("SHMRT_INJECT_SEED", "0")) or random.SystemRandom().randrange(1 << 32)


def build_shim(folder: Path) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        pytest.skip("NOT TESTED: no C compiler, so the shim that injects faults cannot be built")
    target = folder / "shim.so"
    if not target.exists():
        fresh = folder / f"shim-{os.getpid()}.so"
        flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread"]
        if SANITIZED:  # the blocks are the sanitizer's
            flags += [f"-D__libc_{name}=__interceptor_{name}" for name in ("malloc", "calloc", "realloc", "memalign")]
        made = subprocess.run([compiler, *flags, "-o", fresh, HERE / "shim.c", "-ldl"], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        fresh.replace(target)  # another worker of the same run may have been faster; its file is the same
    return target


class Child:
    """A script of this folder under the shim. Its progress is a number in a file; if that stands still, it hangs."""

    def __init__(
        self, shim: Path, folder: Path, script: str, *words: object, under: tuple[str, ...] = (), **environment: str
    ) -> None:
        self.progress = folder / "progress"
        self.progress.write_bytes(bytes(8))
        self.out, self.err = folder / "out", folder / "err"
        preloaded = f"{shim} {os.environ['LD_PRELOAD']}" if SANITIZED else str(shim)
        given = os.environ | {"LD_PRELOAD": preloaded, "PYTHONPATH": "", "OPENBLAS_NUM_THREADS": "1"} | environment
        command = [*under, sys.executable, "-P", str(HERE / script), *map(str, words), str(self.progress)]
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=given)

    def at(self) -> int:
        return int.from_bytes(self.progress.read_bytes(), "little")

    def end(self) -> tuple[int, list[dict[str, Any]], str]:
        """Its status, the JSON lines that it wrote, and what it wrote beside them. One that hangs or dies does not
        remove the named rings that it made: that is done here."""
        try:
            status = self._wait()
        finally:
            for left in Path("/dev/shm").glob(f"shmrt-{os.getuid()}-ring-inject-*{self.process.pid}"):
                left.unlink(missing_ok=True)
        lines = [json.loads(line) for line in self.out.read_text(errors="replace").splitlines() if line.startswith("{")]
        return status, lines, self.err.read_text(errors="replace")

    def _wait(self) -> int:
        last, since = self.at(), time.monotonic()
        while True:
            try:
                return self.process.wait(0.2)
            except subprocess.TimeoutExpired:
                now = self.at()
                if now != last:
                    last, since = now, time.monotonic()
                elif time.monotonic() - since > STUCK_S:
                    self.process.send_signal(signal.SIGABRT)  # faulthandler says where it stands
                    self.process.wait()
                    pytest.fail(f"it hangs at {last}:\n{self.err.read_text(errors='replace')[-6000:]}")

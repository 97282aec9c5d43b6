"""What a figure of this machine is worth: its facts, and how long a cache line and a wake take just now."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def line_ns(rounds: int) -> float | None:
    """Median nanoseconds for a cache line to travel to another CPU and back; None with one CPU, or one too busy."""
    return _native_probe("ping_pong_ns", rounds)


def wake_us(rounds: int, rest_s: float = 0.0) -> float | None:
    """Median microseconds to wake a sleeping process on another CPU by a futex and be woken by it. After a rest before
    each round it takes longer: an idle CPU has to come back."""
    found = _native_probe("wake_round_trip_ns", rounds, int(rest_s * 1e9))
    return None if found is None else round(found / 1000, 2)


def _native_probe(name: str, *arguments: int) -> float | None:
    try:
        from shmrt import _native
    except ImportError:
        return None
    if len(os.sched_getaffinity(0)) < 2:
        return None
    try:
        return round(float(getattr(_native, name)(*arguments)), 1)
    except TimeoutError:  # the machine has no time for it, which the page says, too
        return None


def memcpy_gb_per_s(size: int, seconds: float) -> float:
    """Of a copy between two warm buffers: what no transport that copies once can pass."""
    source, target = memoryview(bytearray(size)), memoryview(bytearray(size))
    rates = []
    end = time.perf_counter() + seconds
    while True:
        begin = time.perf_counter()
        target[:] = source
        now = time.perf_counter()
        rates.append(size / (now - begin) / 1e9)
        if now >= end:
            rates.sort()
            return rates[len(rates) // 2]


def facts() -> dict[str, Any]:
    """What a figure depends on. `commit` ends in -dirty when the tree had changes."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = None
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), None)
    return {
        "commit": commit,
        "cpu": model or platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def build() -> dict[str, Any]:
    """The compiler of the extension, as it says itself, and the flags that the project gives it."""
    from shmrt import _native

    found = re.search(rb"(?:GCC: \([^)]*\)|clang version) [\d.]+", Path(_native.__file__).read_bytes())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    flags = project["tool"]["setuptools"]["ext-modules"][0].get("extra-compile-args", [])
    flags = [*flags, *["-flto=auto"] * _native.OVER_ALL_FILES]
    return {"compiler": found.group().decode() if found else "unknown", "flags": " ".join(flags)}

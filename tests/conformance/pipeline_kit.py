"""What the tests of pipelines share: the pretended executor and the real one, deaths on order, and functions of stages.

The workers import the functions from here.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

import fake_pool
from fake_pool import FakeEngine

__all__ = [
    "ENGINES",
    "Custom",
    "FakeEngine",
    "Running",
    "crash",
    "double",
    "make_engine",
    "odd",
    "once",
    "seventh",
]

ENGINES = ("fake", pytest.param("pool", marks=pytest.mark.slow))
"""Every promise is kept with seeded deaths in pretended workers and, where it can run, by the real pool."""


def make_engine(name: str) -> Any:
    if name == "fake":
        return FakeEngine()
    pytest.importorskip("shmrt.pool", exc_type=ImportError)
    return "local"


def crash() -> None:
    """The process that runs this is dead, or pretends to be."""
    if getattr(fake_pool._local, "memory", None) is not None:
        fake_pool.die()
    os.kill(os.getpid(), signal.SIGKILL)


def once(path: Path) -> bool:
    """True for the first caller of all processes."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def double(x: int) -> int:
    return 2 * x


def odd(x: int) -> bool:
    return x % 2 == 1


def seventh(x: int) -> int:
    return x % 7


class Running:
    """The sum of the numbers seen by key, which is right only if a key stays with its instance."""

    def __init__(self) -> None:
        self.sums: dict[int, int] = {}

    def __call__(self, x: int) -> tuple[int, int]:
        self.sums[x % 7] = self.sums.get(x % 7, 0) + x
        return x, self.sums[x % 7]


class Custom(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> Any:
        return Custom, (self.code, str(self))

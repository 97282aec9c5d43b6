"""The judges of guards are the models of `tests/model`; no simulated guard joins a runtime of another test."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

from shmrt import _native
from shmrt.guard import place


@pytest.fixture(autouse=True)
def guards_of_this_process() -> Iterator[None]:
    """No guard joins a runtime meanwhile."""
    _native.guards_ask(lambda: None)
    yield
    _native.guards_ask(place._area)

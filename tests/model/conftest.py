"""What is tested beside a model is this process's own, also where another test has started the default runtime."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shmrt import _native
from shmrt.guard import place


@pytest.fixture(autouse=True)
def guards_of_this_process() -> Iterator[None]:
    """No guard joins a runtime meanwhile."""
    _native.guards_ask(lambda: None)
    yield
    _native.guards_ask(place._area)

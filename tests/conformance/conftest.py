"""A watchdog for the tests of trees and guards, whose requests wait as long as their children take."""

from __future__ import annotations

import faulthandler
import sys
from collections.abc import Iterator

import pytest

HANGS_S = 600.0  # far beyond what the slowest of them needs on a busy machine


@pytest.fixture(autouse=True)
def watchdog(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whoever hangs says where, and ends the test process: that is loud, under xdist too."""
    if not request.module.__name__.startswith(("test_tree", "test_breaker", "test_bulkheads", "test_rate")):
        yield
        return
    faulthandler.dump_traceback_later(HANGS_S, exit=True, file=sys.__stderr__)
    yield
    faulthandler.cancel_dump_traceback_later()

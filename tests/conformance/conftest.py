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


@pytest.fixture(autouse=True)
def no_guard_joins_the_default_runtime(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Where guards are tested outside any runtime, the one that another test of this process has started is none."""
    if request.module.__name__.rpartition(".")[2] not in GUARDED:
        yield
        return
    from shmrt import _native, runtimes
    from shmrt.guard import place

    found = place._runtime
    monkeypatch.setattr(place, "_runtime", lambda: None if (one := found()) is runtimes._default else one)
    _native.guards_moved()
    yield
    monkeypatch.undo()
    _native.guards_moved()


GUARDED = (
    "test_breakers",
    "test_breaker_calls",
    "test_bulkheads_permits",
    "test_rate_limit",
    "test_cli_breaker",
    "test_health",
)

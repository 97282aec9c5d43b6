"""How many items travel together, which worker a key belongs to, and what an item weighs."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmrt.decide.chunking import CHUNK_MOST, Pace
from shmrt.decide.routing import route, weigh


@given(st.lists(st.tuples(st.integers(-1, 300), st.integers(-5, 10**10))), st.integers(1, 10**6), st.integers(1, 64))
def test_chunks_stay_within_bounds(observed, waiting, workers) -> None:
    """Whatever was measured, a chunk is from 1 to the most, and an even share of what waits."""
    pace = Pace()
    for count, elapsed_ns in observed:
        pace.observe(count=count, elapsed_ns=elapsed_ns)
    size = pace.size(waiting=waiting, workers=workers)
    assert 1 <= size <= min(CHUNK_MOST, max(1, -(-waiting // (2 * workers))))
    assert 2 <= pace.depth() <= 32


class Named(str):
    pass


class Odd:
    @property
    def nbytes(self) -> int:
        raise OSError("no")


@given(st.one_of(st.text(), st.binary(), st.integers(), st.booleans(), st.tuples(st.text(), st.integers())))
def test_equal_keys_have_equal_routes(key) -> None:
    """Equality decides, not the type: 1, 1.0 and True are one key, a subclass of str goes with the string."""
    for workers in (1, 2, 7):
        assert 0 <= route(key, workers) < workers
        if isinstance(key, str):
            assert route(Named(key), workers) == route(key, workers)
        if isinstance(key, int) and abs(key) < 2**50:
            assert route(float(key), workers) == route(key, workers)


def test_routes_are_the_same_in_every_run_and_spread() -> None:
    """Strings do not depend on the hash seed; keys that share a factor still use every worker."""
    assert [route(key, 8) for key in ("alice", b"bob", ("carol", 3))] == [1, 3, 3]
    assert {route(8 * number, 8) for number in range(100)} == set(range(8))
    with pytest.raises(TypeError):
        route([], 2)


def test_weighing_never_fails() -> None:
    """An estimate for anything, near enough for what is big."""
    deep: list[Any] = []
    deep.append(deep)
    for item in (None, 1, "x", deep, {}, {"a": b"x" * 100}, Odd(), object(), type, [b"x" * 1000] * 50):
        assert weigh(item) > 0
    assert weigh([b"x" * 1000] * 50) > 40_000

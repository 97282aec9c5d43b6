"""What a pool's end, its failure to start and its seed mean to whoever holds it."""

from __future__ import annotations

from collections.abc import Iterator

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool, PoolBroken


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def test_a_broken_pool_says_why_at_every_submit() -> None:
    with Pool(1, initializer=tasks.kill_self) as pool:
        assert isinstance(pool.submit(abs, 1).exception(LIMIT_S), PoolBroken)
        with pytest.raises(PoolBroken) as refused:
            pool.submit(abs, 1)
        assert any("signal 9" in reason for reason in refused.value.reasons)


def draw() -> tuple[float, float]:
    import random

    import numpy

    return random.random(), float(numpy.random.random())


def test_a_seed_is_the_same_whenever_numpy_is_imported() -> None:
    drawn = []
    for _ in range(2):
        with Pool(1, seed=12) as pool:
            drawn.append(pool.submit(draw).result(LIMIT_S))
    assert drawn[0] == drawn[1]


def test_what_runs_when_its_pool_is_left_by_an_exception_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.pool._GRACE_S", 0.1)
    with pytest.raises(KeyError), Pool(1) as pool:
        future = pool.submit(tasks.sleep_long)
        tasks.until(future.running)
        raise KeyError
    assert future.cancelled()

"""Times beyond what a clock counts mean "for ever"; and arguments of pools and runtimes that are no such thing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pool_tasks as tasks
import pytest

from shmrt import Pipeline, Pool, Runtime
from shmrt.pool_options import TaskOptions, nanoseconds
from shmrt.spec import FOREVER, check_seconds, parse_duration

HUGE: list[Any] = [10**400, 10**5000, 1e300, math.inf, 3.1e9]
IDS = ["1e400", "1e5000", "1e300", "inf", "a century"]


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(1) as pool:
        yield pool


@pytest.mark.parametrize("huge", HUGE, ids=IDS)
def test_huge_seconds_are_no_limit(huge: Any) -> None:
    assert check_seconds(huge, "timeout") is None
    assert nanoseconds(huge) == -1 and nanoseconds(huge, none=0) == 0
    options = TaskOptions().replace(timeout=huge, deadline=huge)
    assert options.packed()[:2] == (-1, -1)
    with pytest.raises(ValueError):
        check_seconds(-huge, "timeout")


def test_seconds_below_that_are_kept() -> None:
    assert check_seconds(5, "timeout") == 5.0 and check_seconds(FOREVER, "timeout") == FOREVER
    for wrong in (-1, -0.5, -(10**400), math.nan, -math.inf):
        with pytest.raises(ValueError, match="timeout"):
            check_seconds(wrong, "timeout")
    for no_time in (10**400, math.inf, "1e400"):
        with pytest.raises(ValueError, match="must be finite"):
            parse_duration(no_time)


@pytest.mark.parametrize("huge", HUGE, ids=IDS)
def test_huge_times_of_calls(pool: Pool, huge: Any) -> None:
    assert list(pool.map(abs, [-1, 2], timeout=huge)) == [1, 2]
    assert sorted(pool.map_unordered(abs, [-1, 2], timeout=huge)) == [1, 2]
    assert pool.options(timeout=huge, deadline=huge).submit(abs, -3).result() == 3
    assert pool.call(abs, -4, timeout=huge) == 4
    assert pool.drain(timeout=huge)


@pytest.mark.parametrize("huge", HUGE, ids=IDS)
def test_huge_times_of_pipelines(huge: Any) -> None:
    pipe = Pipeline().source(range(5)).batch(2, timeout=huge).map(sum, workers=1, timeout=huge)
    with pipe.run() as run:
        assert list(run) == [1, 5, 4]


@pytest.mark.parametrize("huge", HUGE, ids=IDS)
def test_huge_times_of_pools(huge: Any) -> None:
    """The root lives on: it counts nanoseconds, and max_seconds=inf once ended every root."""
    with Pool(1, max_seconds=huge, max_restarts=3, max_age=huge, task_timeout=huge) as pool:
        assert pool.submit(abs, -1).result() == 1
        first = pool._runtime.pid
        assert pool.options(max_attempts=2).submit(abs, -2).result() == 2
        with pytest.raises(Exception, match=r"."):
            pool.submit(tasks.kill_self).result()
        assert pool.submit(abs, -3).result() == 3  # the worker was replaced within the period
        assert pool._runtime.pid == first


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"max_seconds": None}, TypeError, "max_seconds"),
        ({"max_seconds": 0}, ValueError, "max_seconds=0"),
        ({"max_seconds": math.nan}, ValueError, "max_seconds=nan"),
        ({"runtime": 5}, TypeError, "runtime must be a Runtime, not 5"),
        ({"preload": 5}, TypeError, "preload must be .*not 5"),
        ({"preload": "json"}, TypeError, "preload must be .*not 'json'"),
        ({"initializer": print, "initargs": 5}, TypeError, "initargs must be .*not 5"),
    ],
)
def test_what_a_pool_refuses(arguments: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        Pool(1, **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"preload": "json"}, "preload must be .*not 'json'"),
        ({"preload": 5}, "preload must be .*not 5"),
        ({"preload": [5]}, "preload must be .*not "),
        ({"on_event": 5}, "on_event must be .*not 5"),
    ],
)
def test_what_a_runtime_refuses(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        Runtime(**arguments)


@pytest.mark.parametrize("wrong", [5, "ValueError", [5], int])
def test_what_retry_on_refuses(pool: Pool, wrong: Any) -> None:
    with pytest.raises(TypeError, match="retry_on must name exception types"):
        pool.options(retry_on=wrong)

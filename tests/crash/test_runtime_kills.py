"""A program is killed while it starts and while it ends a named runtime, at system calls of its main thread.

After each death its processes end, and what stays is at most the one directory, which the next start of that name or
`clean` removes; that next start works. The long tier (marked stress) takes every call. SHMRT_SEED repeats the choices.
"""

from __future__ import annotations

import os
import random
import sys
from pathlib import Path
from typing import Any

import call_stepper
import pytest
import stepper

import shmrt
from shmrt.supervise.directory import find, remove_stale

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from tree_kit import alive, until

SEED = int(os.environ.get("SHMRT_SEED", str(random.SystemRandom().randrange(2**32))))
NAME = "killed"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    reason = stepper.may_trace()
    if reason:
        pytest.skip(reason)
    print(f"SHMRT_SEED={SEED}")
    monkeypatch.setenv("SHMRT_RUNTIME_DIR", str(tmp_path))
    return str(tmp_path)


def start() -> shmrt.Runtime:
    return shmrt.Runtime(name=NAME)


def start_and_keep() -> None:
    kept.append(start().__enter__())


kept: list[Any] = []


def end() -> None:
    kept.pop().stop()


def names_of(pid: int) -> list[str]:
    return [entry for entry in os.listdir("/dev/shm") if "shmrt" in entry and str(pid) in entry.split("-")]


def settle(place: str, pid: int, by_clean: bool) -> str:
    """Waits until nobody of that runtime lives, looks at what stays, and starts again. How the directory was found."""
    until(lambda: all(found.state == "stale" for found in find(place)), "its processes do not end")
    left = find(place)
    assert len(left) <= 1 and all(found.name == NAME and not alive(found.root or 0) for found in left)
    assert not names_of(pid)
    if left and by_clean:
        assert remove_stale(NAME, place) and find(place) == []
        assert not [entry for entry in os.listdir(place) if not entry.startswith(".")]
    with start():
        assert [found.state for found in find(place)] == ["running"]
    assert find(place) == [] and not [entry for entry in os.listdir(place) if not entry.startswith(".")]
    return left[0].state if left else "nothing"


def kill_all_ways(place: str, operation: Any, prepare: Any, count: int | None) -> None:
    whole = call_stepper.run(operation, at=None, prepare=prepare)
    settle(place, whole.pid, True)
    rng = random.Random(SEED)
    stops = list(range(whole.stops))
    if count is not None:
        stops = sorted(rng.sample(stops, min(count, len(stops))))
    seen: dict[str, int] = {}
    for number, at in enumerate(stops):
        result = call_stepper.run(operation, at=at, then=rng.choice((0, rng.randrange(200))), prepare=prepare)
        how = settle(place, result.pid, number % 2 == 0)
        seen[how] = seen.get(how, 0) + 1
    print(f"result: {whole.stops} stops, {len(stops)} deaths: {seen}")


@pytest.mark.parametrize("count", [10, pytest.param(None, marks=pytest.mark.stress)])
def test_killed_while_it_starts(place: str, count: int | None) -> None:
    kill_all_ways(place, start_and_keep, lambda: None, count)


@pytest.mark.parametrize("count", [6, pytest.param(None, marks=pytest.mark.stress)])
def test_killed_while_it_ends(place: str, count: int | None) -> None:
    kill_all_ways(place, end, start_and_keep, count)

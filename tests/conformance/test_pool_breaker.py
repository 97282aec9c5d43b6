"""`pool.options(breaker=...)`: who is refused, what counts, and that nobody knows a result before the breaker does."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, as_completed
from pathlib import Path
from typing import Any

import pytest
import tree_kit

from shmrt import CircuitBreaker, CircuitOpen, Pool, RuntimeDown, TaskTimeout, WorkerCrashed

LIMIT_S = tree_kit.PATIENCE_S
WAIT_S = 3000.0  # a reset that never comes by itself


def fails() -> None:
    raise ValueError("bad")


def dies() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sleeps(path: str | None = None) -> None:
    if path is not None:
        Path(path).touch()
    signal.pause()


def same(value: object = 1) -> object:
    return value


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        pool.submit(same).result(LIMIT_S)
        yield pool


def breaker_of(**options: object) -> CircuitBreaker:
    name = f"test-{os.getpid()}-{next(_numbers)}"
    return CircuitBreaker(name, **{"failure_threshold": 3, "reset_timeout": WAIT_S, **options})  # type: ignore[arg-type]


_numbers = iter(range(10**9))


def test_exceptions_deaths_and_timeouts_count(pool: Pool) -> None:
    """Each is known to the breaker when its result is known to the caller."""
    breaker = breaker_of()
    view = pool.options(breaker=breaker)
    with pytest.raises(ValueError, match="bad"):
        view.submit(fails).result(LIMIT_S)
    assert breaker.stats()["failures_in_row"] == 1
    with pytest.raises(WorkerCrashed):
        view.submit(dies).result(LIMIT_S)
    assert breaker.stats()["failures_in_row"] == 2
    with pytest.raises(TaskTimeout):
        view.options(timeout=0.2).submit(sleeps).result(LIMIT_S)
    assert breaker.state == "open"
    with pytest.raises(CircuitOpen, match=breaker.name) as refusal:
        view.submit(same)
    assert refusal.value.retry_after is not None and refusal.value.retry_after > WAIT_S / 2
    assert pool.submit(same, 5).result(LIMIT_S) == 5  # the pool itself goes on
    assert not breaker._pending


def test_every_way_of_asking_finds_the_breaker_knowing(pool: Pool) -> None:
    """A callback, as_completed, exception() and a thread that waits: none is faster than the breaker."""
    for ask in ("callback", "as_completed", "exception", "thread"):
        breaker = breaker_of(failure_threshold=1)
        future = pool.options(breaker=breaker).submit(fails)
        assert states_seen(ask, future, breaker) == ["open"], ask


def states_seen(ask: str, future: Any, breaker: CircuitBreaker) -> list[str]:
    """The breaker's state as whoever hears of the outcome in this way finds it."""
    seen: list[str] = []
    told = threading.Event()
    if ask == "callback":
        future.add_done_callback(lambda _: (seen.append(breaker.state), told.set()))
        assert told.wait(LIMIT_S)
    elif ask == "as_completed":
        seen += [breaker.state for _ in as_completed([future], LIMIT_S)]
    elif ask == "exception":
        assert type(future.exception(LIMIT_S)) is ValueError
        seen.append(breaker.state)
    else:
        thread = threading.Thread(target=lambda: (future.exception(LIMIT_S), seen.append(breaker.state)))
        thread.start()
        thread.join(LIMIT_S)
    return seen


def test_what_waits_is_refused_once_it_is_open(pool: Pool) -> None:
    """Tasks that were let through and have not begun end in CircuitOpen, and are never run; those that run go on."""
    breaker = breaker_of(failure_threshold=1)
    view = pool.options(breaker=breaker)
    futures = []
    for _ in range(3000):
        try:
            futures.append(view.submit(fails))
        except CircuitOpen:
            break
    kinds = {type(future.exception(LIMIT_S)) for future in futures}
    assert kinds <= {ValueError, CircuitOpen} and ValueError in kinds
    counted = breaker.stats()["counters"]
    ran = sum(type(future.exception()) is ValueError for future in futures)
    assert counted["failures"] == ran and counted["failures"] + counted["ignored"] == len(futures)
    assert not breaker._pending


def test_cancelled_and_expired_tasks_say_nothing(pool: Pool, tmp_path: Path) -> None:
    """A trial is given back by a task that was cancelled, killed, or whose deadline passed before it began."""
    breaker = breaker_of(failure_threshold=1, reset_timeout=0.001)
    view = pool.options(breaker=breaker)
    with pytest.raises(ValueError, match="bad"):
        view.submit(fails).result(LIMIT_S)
    tree_kit.until(lambda: breaker.state == "half_open")
    path = tmp_path / "runs"
    trial = view.submit(sleeps, str(path))
    with pytest.raises(CircuitOpen, match="half open"):
        view.submit(same)
    tree_kit.until(path.exists)
    trial.kill()
    with pytest.raises(CancelledError):
        trial.result(LIMIT_S)
    assert breaker.state == "half_open" and breaker.stats()["trials"] == 0
    blockers = [pool.submit(sleeps, str(tmp_path / str(n))) for n in range(2)]
    tree_kit.until(lambda: all((tmp_path / str(n)).exists() for n in range(2)))
    late = view.options(deadline=0.01).submit(same)
    with pytest.raises(TaskTimeout):
        late.result(LIMIT_S)
    assert breaker.state == "half_open" and breaker.stats()["trials"] == 0
    for blocker in blockers:
        blocker.kill()
    assert view.submit(same, 7).result(LIMIT_S) == 7
    assert breaker.state == "closed"


def test_maps_give_each_refused_item_its_error(pool: Pool) -> None:
    """An open breaker refuses items, not the map."""
    breaker = breaker_of()
    view = pool.options(breaker=breaker)
    assert list(view.map(same, range(10))) == list(range(10))
    breaker.trip()
    results = view.map(same, range(3))
    for _ in range(3):
        with pytest.raises(CircuitOpen):
            next(results)
    with pytest.raises(StopIteration):
        next(results)
    refused = list(view.map_unordered(same, range(3), return_exceptions=True))
    assert [type(each) for each in refused] == [CircuitOpen] * 3
    breaker.reset()
    assert sorted(view.map_unordered(same, range(3))) == [0, 1, 2]


def test_values_can_be_failures(pool: Pool) -> None:
    """failure_if looks at the decoded result before the caller has it; an excluded exception says nothing."""
    breaker = breaker_of(failure_threshold=1, failure_if=lambda value: value == {"no": "good"})
    view = pool.options(breaker=breaker)
    assert view.submit(same, {"good": 1}).result(LIMIT_S) == {"good": 1}
    assert breaker.state == "closed"
    assert view.submit(same, {"no": "good"}).result(LIMIT_S) == {"no": "good"}
    assert breaker.state == "open"
    lenient = breaker_of(failure_threshold=1, exclude=ValueError)
    with pytest.raises(ValueError, match="bad"):
        pool.options(breaker=lenient).submit(fails).result(LIMIT_S)
    assert lenient.state == "closed"


def test_a_pool_with_a_bound_gives_the_trial_back_that_found_no_room() -> None:
    """What the pool refuses was never called."""
    from shmrt import Overloaded

    breaker = breaker_of(failure_threshold=1, reset_timeout=0.001)
    with Pool(1, max_pending=1, on_full="raise") as pool:
        view = pool.options(breaker=breaker)
        with pytest.raises(ValueError, match="bad"):
            view.submit(fails).result(LIMIT_S)
        tree_kit.until(lambda: breaker.state == "half_open")
        blocker = pool.submit(sleeps)
        with pytest.raises(Overloaded):
            view.submit(same)
        assert breaker.stats()["trials"] == 0
        blocker.kill()


def test_the_end_of_the_runtime_says_nothing() -> None:
    """RuntimeDown is no failure of the callee."""
    from shmrt import Runtime

    breaker = breaker_of(failure_threshold=1)
    runtime = Runtime().start()
    pool = Pool(1, runtime=runtime)
    future = pool.options(breaker=breaker).submit(sleeps)
    runtime.stop(0.0)
    assert isinstance(future.exception(LIMIT_S), (RuntimeDown, CancelledError))
    assert breaker.state == "closed"


def test_wrong_breakers_are_named(pool: Pool) -> None:
    with pytest.raises(TypeError, match="breaker must be a CircuitBreaker or None, not 'open'"):
        pool.options(breaker="open")
    assert pool.options(breaker=None).submit(same).result(LIMIT_S) == 1

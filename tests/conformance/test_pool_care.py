"""How a pool looks after its workers: recycling, spares, seeds, exits, sizes; and what it tells about itself."""

from __future__ import annotations

import logging
import math
import os
import pickle
import random
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import Pool, PoolBroken, RingSpec, WorkerCrashed


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def number_and_pid(number: int) -> tuple[int, int]:
    return number, os.getpid()


# ---- recycling ----


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "most", "count"), [(1, 1, 6), (1, 5, 13), (2, 3, 15)])
def test_a_worker_runs_exactly_its_number_of_tasks(workers: int, most: int, count: int) -> None:
    with Pool(workers, max_tasks_per_child=most) as pool:
        found = [future.result(LIMIT_S) for future in [pool.submit(number_and_pid, n) for n in range(count)]]
        assert pool.stats()["crashed"] == 0
    assert [number for number, _ in found] == list(range(count))
    runs = Counter(pid for _, pid in found)
    assert max(runs.values()) <= most
    if workers == 1:
        assert list(runs.values()) == [most] * (count // most) + [count % most] * (count % most > 0)
    else:
        assert len(runs) >= count // most


@pytest.mark.slow
def test_failed_tasks_count_and_deaths_do_not_carry_over() -> None:
    with Pool(1, max_tasks_per_child=3) as pool:
        first = pool.submit(tasks.pid).result(LIMIT_S)
        assert type(pool.submit(tasks.raise_it, KeyError("x")).exception(LIMIT_S)) is KeyError
        assert pool.submit(tasks.pid).result(LIMIT_S) == first
        assert pool.submit(tasks.pid).result(LIMIT_S) != first
        assert type(pool.submit(tasks.kill_self).exception(LIMIT_S)) is WorkerCrashed
        assert len({pool.submit(tasks.pid).result(LIMIT_S) for _ in range(3)}) == 1


@pytest.mark.slow
def test_an_old_worker_is_replaced_and_no_task_is_lost() -> None:
    found: list[tuple[int, int]] = []
    with Pool(1, max_age=0.1) as pool:
        while len({pid for _, pid in found}) < 3:
            base = len(found)
            found += [future.result(LIMIT_S) for future in [pool.submit(number_and_pid, base + n) for n in range(50)]]
        stats = pool.stats()
    assert [number for number, _ in found] == list(range(len(found)))
    assert (stats["crashed"], stats["retried"], stats["completed"]) == (0, 0, len(found))
    order = [pid for n, (_, pid) in enumerate(found) if n == 0 or found[n - 1][1] != pid]
    assert len(order) == len(set(order))  # the new one takes over once, and for good


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"max_age": 0.0001}, {"max_rss": "1MiB"}])
def test_a_limit_that_workers_pass_before_they_are_ready_lets_each_serve(limit: dict[str, Any]) -> None:
    """They are replaced all the time, but not before they did something."""
    with Pool(1, **limit) as pool:
        found: list[tuple[int, int]] = []
        while len({pid for _, pid in found}) < 4:
            found.append(pool.submit(number_and_pid, len(found)).result(LIMIT_S))
        assert pool.stats()["crashed"] == 0
    assert [number for number, _ in found] == list(range(len(found)))


kept: list[bytearray] = []


def keep(size: int, number: int) -> tuple[int, int]:
    if not kept:
        kept.append(bytearray(os.urandom(1 << 20) * (size >> 20)))
    tasks.spin_for(0.02, None)  # memory is measured while a worker works
    return number, os.getpid()


@pytest.mark.slow
def test_a_worker_that_grew_is_replaced_and_no_task_is_lost() -> None:
    found: list[tuple[int, int]] = []
    with Pool(1, max_rss="96MiB") as pool:
        while len({pid for _, pid in found}) < 2:
            base = len(found)
            found += [future.result(LIMIT_S) for future in [pool.submit(keep, 160 << 20, base + n) for n in range(5)]]
        assert pool.stats()["crashed"] == 0
    assert [number for number, _ in found] == list(range(len(found)))


def test_a_small_worker_is_left_alone() -> None:
    with Pool(1, max_rss="4GiB", max_age=3600, max_tasks_per_child=10**9) as pool:
        assert len({pool.submit(tasks.pid).result(LIMIT_S) for _ in range(300)}) == 1


def test_a_spare_takes_over_and_adds_nothing(tmp_path: Path) -> None:
    with Pool(1, spares=1) as pool:
        tasks.until(lambda: len(tasks.ready(pool)) == 2)
        pids = {row["pid"] for row in tasks.ready(pool)}
        first = pool.submit(tasks.started_then_wait, str(tmp_path / "started"), str(tmp_path / "go"))
        tasks.until(lambda: tasks.notes(tmp_path / "started"))
        running = int(tasks.notes(tmp_path / "started")[0])
        second = pool.submit(tasks.pid)
        os.kill(running, signal.SIGKILL)
        assert type(first.exception(LIMIT_S)) is WorkerCrashed
        assert second.result(LIMIT_S) in pids - {running}
        tasks.until(lambda: len(tasks.ready(pool)) == 2)
        assert pool.health() == {"status": "healthy", "workers_ready": 2, "workers_wanted": 1}


# ---- what a worker starts with, and leaves ----


def draw(count: int) -> list[float]:
    return [random.random() for _ in range(count)]


def draw_arrays(count: int) -> list[float]:
    import numpy.random

    return [float(value) for value in numpy.random.random(count)]


@pytest.mark.slow
@pytest.mark.parametrize("task", [draw, draw_arrays])
def test_a_seed_fixes_what_is_drawn(task: Any) -> None:
    def drawn(seed: int | None) -> list[list[float]]:
        with Pool(1, seed=seed, preload=("numpy.random",) if task is draw_arrays else ()) as pool:
            first = [pool.submit(task, 3).result(LIMIT_S) for _ in range(2)]
            assert type(pool.submit(tasks.kill_self).exception(LIMIT_S)) is WorkerCrashed
            return [*first, pool.submit(task, 3).result(LIMIT_S)]

    for seed in (0, 2**63 - 1):
        once, again = drawn(seed), drawn(seed)
        assert once == again
        assert once[0] != once[1] != once[2] != once[0]  # the replacement does not repeat what was drawn before it
        assert once != drawn(seed ^ 1)
    assert drawn(None) != drawn(None)


def leave(path: str) -> str:
    tasks.note(path)
    return f"{os.getpid()} left"


def leave_badly() -> Any:
    raise LookupError("at the end")


@pytest.mark.slow
def test_every_worker_that_ends_by_itself_leaves_its_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.pool_opened._GRACE_S", LIMIT_S)  # they import this file before they leave
    path = str(tmp_path / "left")

    def leave_here() -> str:
        return leave(path)

    pool = Pool(1, max_tasks_per_child=2, worker_exit=leave_here)
    pids = [pool.submit(tasks.pid).result(LIMIT_S) for _ in range(6)]
    assert type(pool.submit(tasks.kill_self).exception(LIMIT_S)) is WorkerCrashed
    pids.append(pool.submit(tasks.pid).result(LIMIT_S))
    pool.shutdown()
    left = pool.exit_values
    assert {f"{pid} left" for pid in pids} <= set(left)
    assert len(left) == len(set(left)) == len(tasks.notes(path))


@pytest.mark.parametrize("end", [leave_badly, threading.Lock])
def test_a_worker_exit_that_fails_harms_nobody(end: Any) -> None:
    with Pool(1, worker_exit=end) as pool:
        assert pool.submit(tasks.same, 5).result(LIMIT_S) == 5
        assert pool.stats()["crashed"] == 0
    assert pool.stats()["completed"] == 1


def loaded(name: str) -> bool:
    return name in sys.modules


def test_modules_may_be_loaded_before_the_first_task() -> None:
    with Pool(1, preload=(name for name in ["colorsys", "this_is_no_module"][:1])) as pool:  # type: ignore[arg-type]
        assert pool.submit(loaded, "colorsys").result(LIMIT_S)
    with Pool(1) as pool:
        assert not pool.submit(loaded, "colorsys").result(LIMIT_S)


@pytest.mark.slow
def test_a_module_that_cannot_be_loaded_breaks_the_pool() -> None:
    with Pool(1, preload=["this_is_no_module"]) as pool:
        try:
            error = pool.submit(tasks.same, 1).exception(LIMIT_S)
        except PoolBroken:
            return  # that early; the reasons are with the futures
        assert type(error) is PoolBroken
        assert "this_is_no_module" in "".join(error.reasons)


@pytest.mark.parametrize("threads", [1, 3, None])
def test_threads_of_libraries_are_bounded(threads: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    with Pool(1, threads_per_worker=threads) as pool:
        found = [pool.submit(os.getenv, f"{name}_NUM_THREADS").result(LIMIT_S) for name in ("OMP", "OPENBLAS")]
    assert found == [None if threads is None else str(threads), "7"]  # what the user has set stays


@pytest.mark.slow
def test_too_many_deaths_break_a_pool_that_counts_them() -> None:
    with Pool(1, max_restarts=2, max_seconds=3600) as pool:
        for _ in range(2):
            assert type(pool.submit(tasks.kill_self).exception(LIMIT_S)) is WorkerCrashed
            assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1
        assert type(pool.submit(tasks.kill_self).exception(LIMIT_S)) is WorkerCrashed
        with pytest.raises(PoolBroken):
            pool.submit(tasks.same, 1).result(LIMIT_S)
    with Pool(1) as pool:  # and no other one
        for _ in range(8):
            assert type(pool.submit(tasks.kill_self).exception(LIMIT_S)) is WorkerCrashed
        assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1


# ---- sizes ----


def test_a_pool_grows_and_shrinks_under_load_and_loses_nothing() -> None:
    seed = random.randrange(10**6)
    print("seed", seed)
    rng = random.Random(seed)
    with Pool(2) as pool:
        futures: list[Any] = []
        for _ in range(15):
            futures += [pool.submit(tasks.same, len(futures) + number) for number in range(rng.randrange(300))]
            count = rng.randrange(1, 5)
            pool.resize(count)
            assert pool._max_workers == count
            assert pool.health()["workers_wanted"] == count
        assert [future.result(LIMIT_S) for future in futures] == list(range(len(futures)))
        assert pool.stats()["crashed"] == 0


def test_a_size_that_cannot_be_is_refused() -> None:
    with Pool(1) as pool:
        for bad, kind in ((0, ValueError), (-1, ValueError), ("2", TypeError), (1.0, TypeError), (True, TypeError)):
            with pytest.raises(kind, match="max_workers"):
                pool.resize(bad)  # type: ignore[arg-type]
        assert pool._max_workers == 1
        assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.resize(2)


# ---- what it tells ----


def test_drain_says_whether_everything_is_done(tmp_path: Path) -> None:
    go = str(tmp_path / "go")
    with Pool(1) as pool:
        assert pool.drain() and pool.drain(0)
        future = pool.submit(tasks.wait_for_file, go)
        waiting = [pool.submit(tasks.same, number) for number in range(20)]
        assert not pool.drain(0)
        assert not pool.drain(0.01)
        tasks.note(go)
        assert pool.drain(LIMIT_S)
        assert future.done() and all(one.done() for one in waiting)
        assert pool.submit(tasks.same, 1).result(LIMIT_S) == 1  # it takes more
        for bad, kind in ((-1, ValueError), ("1", TypeError), (math.nan, ValueError)):
            with pytest.raises(kind, match="timeout"):
                pool.drain(bad)  # type: ignore[arg-type]


def test_the_counters_account_for_every_task(tmp_path: Path) -> None:
    with Pool(1) as pool:
        fine = [pool.submit(tasks.same, number) for number in range(30)]
        bad = [pool.submit(tasks.raise_it, KeyError("x")) for _ in range(7)]
        dead = [pool.submit(tasks.kill_self) for _ in range(2)]
        poison = pool.options(max_attempts=2).submit(tasks.kill_self)
        late = pool.options(timeout=0.01).submit(tasks.sleep_long)
        assert late.exception(LIMIT_S) is not None
        again = pool.options(max_attempts=2).submit(tasks.die_first, str(tmp_path / "died"), 1, "x")
        held = pool.submit(tasks.started_then_wait, str(tmp_path / "started"), str(tmp_path / "go"))
        tasks.until(lambda: tasks.notes(tmp_path / "started"))
        gone = pool.submit(tasks.same, 1)
        assert gone.cancel()
        assert pool.stats()["running"] == pool.stats()["pending"] == 1
        tasks.note(str(tmp_path / "go"))
        assert pool.drain(LIMIT_S)
        assert all(one.done() for one in [*fine, *bad, *dead, poison, late, again, held, gone])
    stats = pool.stats()  # they outlive the pool
    named = {name: stats[name] for name in ("submitted", "completed", "failed", "cancelled", "crashed", "timed_out")}
    assert named == {
        "submitted": 44,
        "completed": 32,
        "failed": 7,
        "cancelled": 1,
        "crashed": 3,
        "timed_out": 1,
    }  # with the poison
    assert (stats["poisoned"], stats["retried"]) == (1, 2)
    assert (stats["pending"], stats["running"], stats["backlog"], stats["in_lanes"]) == (0, 0, 0, 0)


def test_health_tells_of_what_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "may start"
    path.touch()
    with Pool(2, initializer=tasks.wait_for_file, initargs=(str(path),)) as pool:
        tasks.until(lambda: pool.health()["status"] == "healthy")
        path.unlink()  # a replacement has to wait
        rows = tasks.ready(pool)
        os.kill(rows[0]["pid"], signal.SIGKILL)
        tasks.until(lambda: pool.health() == {"status": "degraded", "workers_ready": 1, "workers_wanted": 2})
        os.kill(rows[1]["pid"], signal.SIGKILL)
        tasks.until(lambda: pool.health() == {"status": "unhealthy", "workers_ready": 0, "workers_wanted": 2})
        waiting = pool.submit(tasks.same, 5)
        path.touch()
        assert waiting.result(LIMIT_S) == 5
        tasks.until(lambda: pool.health()["status"] == "healthy")
    assert pool.health()["status"] == "unhealthy"


def log(text: str) -> None:
    logging.getLogger("shmrt.test").warning(text)


def test_its_name_is_on_whatever_comes_from_it(caplog: pytest.LogCaptureFixture) -> None:
    with Pool(1, name="die Werkstatt №1") as pool:
        assert pool.name == "die Werkstatt №1"
        future = pool.submit(tasks.raise_it, KeyError("x"))
        assert "worker die Werkstatt №1/0 " in str(future.exception(LIMIT_S).__cause__)
        assert future.worker == "die Werkstatt №1/0"
        assert "die Werkstatt №1/0" in str(pool.submit(tasks.kill_self).exception(LIMIT_S))
        pool.call(log, "hello")
        tasks.until(lambda: "hello" in caplog.text)
        assert caplog.records[-1].processName == "die Werkstatt №1/0"
        assert "die Werkstatt №1" in repr(pool)
    with Pool(1) as one, Pool(1) as other:
        assert one.name != other.name
        assert re.fullmatch(r"pool-\d+", one.name)


def test_a_pool_stays_where_it_was_made() -> None:
    with Pool(1, "spawn", ring=RingSpec(slots=2, slot_bytes=64)) as pool:  # a context is accepted and ignored
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(pool)
        with pytest.raises(TypeError, match="cannot be pickled"):
            pool.submit(tasks.same, pool)
        assert list(pool.map(len, [b"x" * 100_000] * 20)) == [100_000] * 20  # far more than its lanes hold

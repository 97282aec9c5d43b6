"""Who gets into a pool with a bound, who waits and who is refused: exact under contention, and nobody waits for
himself."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from overload_kit import PATIENCE_S, held, let_go, lines, trace, until

from shmrt import Child, Overloaded, Pool, Runtime, Supervisor, TaskTimeout, WorkerCrashed, whereis

LIMIT = 5


def tree(on_full: str, max_pending: int, workers: int = 1) -> Supervisor:
    options = {"max_workers": workers, "max_pending": max_pending, "on_full": on_full}
    return Supervisor([Child(Pool, kwargs=options, name="bounded", id="bounded")])


def submit_many(pool: Pool, count: int, path: str, seed: int) -> list[int]:
    """One after the other, in three ways; what came back."""
    rng, results = random.Random(seed), []
    for number in range(count):
        view: Any = rng.choice([pool, pool.options(priority=rng.randrange(3)), pool.options(max_attempts=9)])
        results.append(view.submit(abs, -number).result(PATIENCE_S))
    return results


def test_pending_never_passes_the_bound_and_nobody_is_refused_who_may_wait(tmp_path: Path) -> None:
    """Eight threads, workers that are killed meanwhile, a map beside: the highest is the bound, and each gets its
    own."""
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    with Pool(2, max_pending=LIMIT, max_attempts=50) as pool:
        results: dict[int, list[int]] = {}
        stop = threading.Event()

        def kill() -> None:
            rng = random.Random(seed)
            while not stop.wait(0.02):
                pool.chaos_kill(rng)

        first = [pool.submit(held, tmp_path / "held") for _ in range(LIMIT)]  # full, until they are let go
        late = pool.options(deadline=0.001).submit(abs, -1)
        threads = [
            threading.Thread(
                target=lambda who=who: results.update({who: submit_many(pool, 60, str(tmp_path), seed + who)})  # type: ignore[misc]
            )
            for who in range(8)
        ]
        killer = threading.Thread(target=kill)
        for thread in threads:
            thread.start()
        let_go(tmp_path / "held")
        killer.start()
        mapped = list(pool.map(abs, range(-100, 0)))
        for thread in threads:
            thread.join()
        stop.set()
        killer.join()
        assert [one.result(PATIENCE_S) for one in first] == [None] * LIMIT
        assert isinstance(late.exception(0), TaskTimeout)
        assert mapped == list(range(100, 0, -1))
        assert results == {who: list(range(60)) for who in range(8)}
        stats = pool.stats()
        assert stats["pending_most"] == LIMIT and stats["pending"] == 0 and stats["refused"] == 0
        assert stats["submitted"] == LIMIT + 8 * 60 + 100 and stats["blocked_submit_ns"] > 0


class Slow:
    """Lets others in while it is pickled: between the look for a place and the taking of it."""

    def __reduce__(self) -> Any:
        threading.Event().wait(0.002)
        return int, (7,)


def test_refused_and_accepted_are_exact(tmp_path: Path) -> None:
    """As many as there is room for, however many ask at once; a place that is free again is given once."""
    path = tmp_path / "trace"
    with Pool(1, max_pending=LIMIT, on_full="raise") as pool:
        first = pool.submit(held, str(path))
        accepted: list[Any] = [first]
        refused: list[Overloaded] = []
        begin = threading.Barrier(8)

        def ask() -> None:
            begin.wait()
            for _ in range(50):
                try:
                    accepted.append(pool.submit(abs, Slow()))
                except Overloaded as error:
                    refused.append(error)

        for round_number in range(3):
            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(accepted) == LIMIT + round_number * 2 and pool.stats()["pending_most"] == LIMIT
            assert pool.stats()["refused"] == len(refused) == 400 * (round_number + 1) - (len(accepted) - 1)
            done = [future for future in accepted if not future.done() and future is not first]
            assert done[0].cancel() and done[1].cancel()
        let_go(path)
        first.result(PATIENCE_S)


def test_a_worker_that_dies_makes_room_for_who_waits(tmp_path: Path) -> None:
    """A blocked submit goes on when the task that was in its way ends by a death."""
    path = tmp_path / "trace"
    with Pool(1, max_pending=1) as pool:
        first = pool.submit(held, str(path))
        until(lambda: lines(path))
        waiting = [threading.Thread(target=lambda: pool.submit(trace, str(path), "went on").result()) for _ in range(3)]
        for thread in waiting:
            thread.start()
        os.kill(int(lines(path)[0].split()[1]), signal.SIGKILL)
        with pytest.raises(WorkerCrashed):
            first.result(PATIENCE_S)
        for thread in waiting:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        assert lines(path)[1:] == ["went on"] * 3 and pool.stats()["pending_most"] == 1


def test_a_loops_thread_is_refused_where_others_wait(tmp_path: Path) -> None:
    path = tmp_path / "trace"

    async def ask(pool: Pool) -> int:
        refused = 0
        for _ in range(3):
            with pytest.raises(Overloaded):
                pool.submit(os.getpid)
            refused += 1
        with pytest.raises(Overloaded):
            pool.options(deadline=9.0).submit(os.getpid)
        return refused + 1

    with Pool(1, max_pending=1) as pool:
        first = pool.submit(held, str(path))
        assert asyncio.run(ask(pool)) == 4 == pool.stats()["refused"]
        let_go(path)
        first.result(PATIENCE_S)


# ---- through a pool's name, from other processes
def submit_to_own(path: str) -> str:
    """In a worker of the bounded pool, which is full of this very task."""
    try:
        whereis("bounded").submit(trace, path, "nested").result(PATIENCE_S)
    except Overloaded as error:
        return f"{error.where} {error.capacity}"
    return "done"


@pytest.mark.parametrize("on_full", ["block", "raise"])
def test_a_worker_of_the_pool_is_refused_at_once(on_full: str, tmp_path: Path) -> None:
    """It would wait for itself; where there is a place it gets one."""
    path = tmp_path / "trace"
    with Runtime(tree(on_full, 1)):
        pool = until(lambda: whereis("bounded"))
        assert pool.submit(submit_to_own, str(path)).result(PATIENCE_S) == "bounded 1"
        assert pool.stats()["refused"] == 1 and pool.stats()["pending_most"] == 1
    assert lines(path) == []
    with Runtime(tree(on_full, 2, workers=2)):
        pool = until(lambda: whereis("bounded"))
        assert pool.submit(submit_to_own, str(path)).result(PATIENCE_S) == "done"
    assert lines(path) == ["nested"]


def submit_from_outside(path: str, words: list[str]) -> list[str]:
    futures = [whereis("bounded").submit(trace, path, word) for word in words]
    ends = []
    for future in futures:
        try:
            future.result(PATIENCE_S)
            ends.append("done")
        except Overloaded:
            ends.append("refused")
    return ends


def submit_to_own_when_told(path: str) -> str:
    until(lambda: os.path.exists(f"{path}.ask"))
    return submit_to_own(path)


def test_strangers_wait_at_the_door_and_keep_nobody_from_it(tmp_path: Path) -> None:
    """What workers of another pool send to a full one is held in order, while its own worker is refused at once."""
    path = tmp_path / "trace"
    with Runtime(tree("block", 2, workers=2)), Pool(2, name="other") as other:
        pool = until(lambda: whereis("bounded"))
        first, second = pool.submit(held, str(path)), pool.submit(submit_to_own_when_told, str(path))
        until(lambda: lines(path))
        words = [f"word {number}" for number in range(6)]
        sent = other.submit(submit_from_outside, str(path), words)
        more = other.submit(submit_from_outside, str(path), ["more"])
        until(lambda: _held_by(pool) == 7)
        (tmp_path / "trace.ask").touch()
        assert second.result(PATIENCE_S) == "bounded 2"
        let_go(path)
        first.result(PATIENCE_S)
        assert sent.result(PATIENCE_S) == ["done"] * 6 and more.result(PATIENCE_S) == ["done"]
        assert sorted(line for line in lines(path) if line.startswith("word")) == words and "more" in lines(path)
        assert pool.stats()["pending_most"] == 2 and pool.stats()["refused"] == 1
        until(lambda: not any(thread.name.startswith("shmrt-held") for thread in threading.enumerate()))


def test_strangers_are_refused_by_a_pool_that_raises(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Runtime(tree("raise", 2)), Pool(1, name="other") as other:
        pool = until(lambda: whereis("bounded"))
        first = pool.submit(held, str(path))
        until(lambda: lines(path))
        sent = other.submit(submit_from_outside, str(path), ["one", "two", "three"])
        until(lambda: pool.stats()["refused"] == 2)
        let_go(path)
        first.result(PATIENCE_S)
        assert sorted(sent.result(PATIENCE_S)) == ["done", "refused", "refused"]


def test_a_stranger_that_dies_at_the_door_holds_up_nobody(tmp_path: Path) -> None:
    """Its task goes on, as one that had been accepted; those behind it have their turn."""
    path = tmp_path / "trace"
    with Runtime(tree("block", 1)), Pool(1, name="other") as other:
        pool = until(lambda: whereis("bounded"))
        first = pool.submit(held, str(path))
        until(lambda: lines(path))
        pid = other.submit(os.getpid).result(PATIENCE_S)
        lost = other.submit(submit_from_outside, str(path), ["lost"])
        until(lambda: _held_by(pool) == 1)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerCrashed):
            lost.result(PATIENCE_S)
        sent = other.submit(submit_from_outside, str(path), ["kept"])
        until(lambda: _held_by(pool) == 2)
        let_go(path)
        first.result(PATIENCE_S)
        assert sent.result(PATIENCE_S) == ["done"]
        assert lines(path)[1:] == ["lost", "kept"]


def _held_by(pool: Pool) -> int:
    side = pool._runtime.trees
    return next(len(inside.door._held) for inside in side.inside.values() if inside.pool is pool)


def test_a_pool_that_ends_answers_who_waits_at_its_door(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    with Runtime(tree("block", 1)) as runtime, Pool(1, name="other") as other:
        pool = until(lambda: whereis("bounded"))
        pool.submit(held, str(path))
        until(lambda: lines(path))
        sent = other.submit(submit_from_outside, str(path), ["never"])
        until(lambda: _held_by(pool) == 1)
        pool.kill_workers()
        with pytest.raises(RuntimeError):
            sent.result(PATIENCE_S)
        assert runtime.pid
    assert lines(path)[1:] == []

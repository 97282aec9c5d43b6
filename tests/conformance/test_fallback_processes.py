"""Fallback over processes: real timeouts, real deaths, in a pool that was given and in its own."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from guard_tasks import die, gone, hang, hang_and_say, in_module, late, leave, pid, pid_or_hang
from pool_tasks import until, watchdog

from shmrt import (
    Bulkheads,
    Fallback,
    Outcome,
    Overloaded,
    Pool,
    PoolRef,
    Runtime,
    Supervisor,
    TaskTimeout,
    WorkerCrashed,
    whereis,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    with watchdog():
        yield


def pid_written(path: str) -> int:
    until(lambda: os.path.exists(path + ".done"))
    with open(path + ".done") as file:
        return int(file.read())


# ---- its own pool ---------------------------------------------------------------------------------------------------
def test_a_hung_source_is_killed_and_the_next_one_asked() -> None:
    """No pool is given, and no thread is left behind: the process that hung is dead."""
    limits = {"primary": 2.0, "a": 0.5, "b": 60}
    with Fallback(pid_or_hang, ("a", hang), ("b", pid), default=0, timeout=limits, pool=1) as made:
        process = made("").value
        assert process != os.getpid() and not gone(process)
        threads = set(threading.enumerate())
        outcome = made("hang")
        assert outcome.source == "b" and outcome.value not in (process, os.getpid())
        assert [type(error) for error in outcome.errors] == [TaskTimeout, TaskTimeout]
        assert "pid_or_hang" in (outcome.errors["primary"].stack or "pid_or_hang")
        until(lambda: gone(process))
        assert set(threading.enumerate()) <= threads


def test_a_dead_source_is_a_failed_one() -> None:
    with Fallback(die, default="d", timeout=60) as made:
        for _ in range(3):
            outcome = made()
            assert outcome.source == "default" and isinstance(outcome.errors["primary"], WorkerCrashed)
            assert outcome.errors["primary"].signal is signal.SIGKILL
    copy = pickle.loads(pickle.dumps(outcome))
    assert copy == outcome and copy.errors[0].signal is signal.SIGKILL


def test_its_own_pool_starts_at_first_need_and_ends_with_it() -> None:
    made = Fallback(pid, ("a", pid), timeout={"a": 60})
    assert made().value == os.getpid() and made._own is None, "the primary has no timeout: it runs here"
    timed = Fallback(pid, timeout=60, pool=1)
    first = timed().value
    assert first not in (os.getpid(),) and timed().value == first
    timed.close()
    until(lambda: gone(first))
    assert timed().value != first, "a closed one opens again"
    second = timed().value
    del timed
    until(lambda: gone(second), "a Fallback that is forgotten takes its pool along")


def test_its_own_pool_follows_the_runtime() -> None:
    made = Fallback(pid, timeout=60, pool=1)
    with Runtime():
        first = made().value
    assert gone(first)
    with Runtime():
        assert made().value not in (first, os.getpid())
    made.close()


def test_a_number_of_workers_is_a_pool_of_its_own() -> None:
    with Fallback(pid, pool=1) as made:
        assert made().value == made().value != os.getpid()
        assert made._own._max_workers == 1


def test_calls_beyond_the_workers_are_dropped_in_time() -> None:
    """The time in the queue counts: with one worker that hangs, nobody waits for longer than his own timeout allows."""
    with Fallback(hang, default=0, timeout=0.5, pool=1) as made:
        outcomes: list[Outcome] = []
        threads = [threading.Thread(target=lambda: outcomes.append(made())) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [outcome.source for outcome in outcomes] == ["default"] * 6
        assert all(isinstance(outcome.errors[0], TaskTimeout) for outcome in outcomes)
        until(lambda: made._own.stats()["pending"] == 0)  # the one that ran is pending until its worker is torn down


def test_from_a_worker_and_from_a_child_that_was_forked() -> None:
    assert pickle.loads(pickle.dumps(in_module)) is in_module
    with Pool(1) as pool:
        value, source, errors = pool.submit(in_module, 7).result()
        assert (value, source, errors) == (7, "primary", ())
        assert pool.submit(Fallback(die, default=1, timeout=60)).result().source == "default"


# ---- a pool that was given ------------------------------------------------------------------------------------------
def test_in_a_pool() -> None:
    with Pool(2) as pool:
        made = Fallback(pid, ("a", pid), pool={"primary": pool})
        assert made().value != os.getpid()
        timed = Fallback(
            hang, ("a", die), ("b", late), default=0, pool=pool, timeout={"primary": 0.5, "a": 60, "b": 60}
        )
        outcome = timed()
        assert [type(error) for error in outcome.errors] == [TaskTimeout, WorkerCrashed, TimeoutError]
        assert outcome.errors["a"].worker.startswith(pool.name) and outcome.errors["b"].args == ("mine",)
        assert pool.stats()["timed_out"] == 1 and timed._own is None
        assert pool.submit(pid).result() != os.getpid(), "the pool serves on"


def test_in_a_pool_with_a_timeout_of_its_own() -> None:
    with Pool(1, task_timeout=0.5) as pool:
        assert isinstance(Fallback(hang, default=0, pool=pool)().errors[0], TaskTimeout)


def test_a_full_bulkhead_hands_over_at_once() -> None:
    with Bulkheads(slow={"max_workers": 1, "max_pending": 1}, other=1) as bulkheads:
        running = bulkheads.slow.submit(hang)
        made = Fallback(pid, ("other", pid), pool={"primary": bulkheads.slow, "other": bulkheads.other}, timeout=60)
        outcome = made()
        assert outcome.source == "other" and isinstance(outcome.errors["primary"], Overloaded)
        running.kill()


def test_a_pool_that_makes_callers_wait_is_refused() -> None:
    with Pool(1, max_pending=1, name="narrow") as pool:
        for view in (pool, pool.options(priority=1)):
            with pytest.raises(ValueError, match=r"pool narrow makes callers wait .* on_full='raise'"):
                Fallback(pid, pool=view, timeout=1)
        assert Fallback(pid, pool=pool)().source == "primary"


def test_a_pool_of_a_tree() -> None:
    def through(_: Any) -> Any:
        ref = whereis("work")
        assert isinstance(ref, PoolRef)
        return Fallback(die, ("a", pid), pool=ref)()

    with Runtime(Supervisor(Bulkheads(work=2).children())), Pool(1) as pool:
        outcome = pool.submit(through, 1).result()
        assert outcome.source == "a" and isinstance(outcome.errors["primary"], WorkerCrashed)
        with pytest.raises(TypeError, match="not PoolRef"):
            pool.submit(lambda: Fallback(pid, pool=whereis("work"), timeout=1)).result()


def test_an_exit_in_a_worker_is_its_death() -> None:
    """Of the worker, not of the program: SystemExit does not pass through here."""
    with Pool(1) as pool:
        outcome = Fallback(leave, default=0, pool=pool)()
        assert isinstance(outcome.errors[0], WorkerCrashed) and outcome.errors[0].exitcode == 3


def test_ctrl_c_kills_the_call_that_was_waited_for(tmp_path: Any) -> None:
    path = str(tmp_path / "pid")
    with Pool(1) as pool:
        made = Fallback(hang_and_say, default=0, pool=pool)

        def interrupt() -> None:
            pid_written(path)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            made(path)
        thread.join()
        until(lambda: gone(pid_written(path)))
        assert pool.submit(len, "ab").result() == 2 and made.stats()["calls"] == 0


# ---- in an event loop -----------------------------------------------------------------------------------------------
def test_a_loop_goes_on_while_a_source_hangs() -> None:
    async def main() -> None:
        beats = 0

        async def beat() -> None:
            nonlocal beats
            while True:
                beats += 1
                await asyncio.sleep(0.001)

        beating = asyncio.ensure_future(beat())
        with Fallback(hang, ("dies", die), ("a", pid), timeout={"primary": 0.5, "dies": 60, "a": 60}) as made:
            outcome = await made.acall()
            assert outcome.source == "a" and outcome.value != os.getpid()
            assert [type(error) for error in outcome.errors] == [TaskTimeout, WorkerCrashed]
            assert beats > 3, "the loop ran meanwhile"
        beating.cancel()

    asyncio.run(main())


def test_a_cancelled_call_is_killed(tmp_path: Any) -> None:
    path = str(tmp_path / "pid")

    async def main() -> None:
        with Fallback(hang_and_say, default=0, timeout=600) as made:
            task = asyncio.ensure_future(made.acall(path))
            while not os.path.exists(path + ".done"):
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            until(lambda: gone(pid_written(path)))

    asyncio.run(main())

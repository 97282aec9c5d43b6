"""A breaker that real processes share: trials under contention and SIGKILL, whose it is, and what stays of it."""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from guard_kit import (
    attempt,
    half_open,
    hammer_breaker,
    hold,
    interrupted,
    pid_in,
    stop_with_mutex,
    traces,
    under_fire,
)
from guard_kit import try_together as together
from tree_kit import Journal, alive, kill, until

import shmrt
from shmrt import (
    Bulkhead,
    CircuitBreaker,
    CircuitOpen,
    ConfigError,
    Overloaded,
    Pool,
    RateLimit,
    Runtime,
    WorkerCrashed,
)

CALLERS = 8
SOON = 0.001  # a reset_timeout for tests that wait for it


# ---- trials --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("window", [None, 10], ids=["in a row", "window"])
@pytest.mark.parametrize("most", [1, 3])
def test_exactly_so_many_trials_pass(tmp_path: Path, most: int, window: int | None) -> None:
    """Eight processes ask a half-open breaker at once; those inside stay until all have asked."""
    breaker = CircuitBreaker("store", reset_timeout=SOON, half_open_max=most, success_threshold=most, window=window)
    with Runtime(), Pool(CALLERS) as pool:
        for turn in range(3):
            journal = Journal(tmp_path / f"turn{turn}")
            half_open(breaker)
            ends = [pool.submit(together, breaker, journal, CALLERS) for _ in range(CALLERS)]
            results = sorted(end.result() for end in ends)
            assert results == ["passed"] * most + ["refused"] * (CALLERS - most)
            assert len(journal.lines("in ")) == most
            assert breaker.state == "closed"
        counters = breaker.stats()["counters"]
        assert (counters["trials_begun"], counters["lost"], counters["late"]) == (3 * most, 0, 0)
        assert (counters["successes"], counters["refused"]) == (3 * most, 3 * (CALLERS - most))


def test_many_trials_that_fail_open_it_once(tmp_path: Path) -> None:
    breaker = CircuitBreaker("store", reset_timeout=SOON, half_open_max=3)
    with Runtime() as runtime, Pool(CALLERS) as pool:
        half_open(breaker)
        journal = Journal(tmp_path / "journal")
        ends = [pool.submit(together, breaker, journal, CALLERS, "raise") for _ in range(CALLERS)]
        assert sorted(end.result() for end in ends) == ["failed"] * 3 + ["refused"] * 5
        counters = breaker.stats()["counters"]
        assert (counters["opened"], counters["failures"], counters["late"]) == (2, 3, 2)

        def told() -> list[str]:
            found = [event["event"] for event in runtime.events() if event["event"].startswith("breaker.")]
            return [event for event in found if event != "breaker.reject"]

        until(lambda: len(told()) >= 3, told)
        events = told()
        assert sorted(events) == ["breaker.half_open", "breaker.open", "breaker.open"]


@pytest.mark.slow
@pytest.mark.parametrize("kills", [15, pytest.param(1000, marks=pytest.mark.stress)])
def test_a_process_that_is_killed_inside_a_trial_counts_as_failed(tmp_path: Path, kills: int) -> None:
    breaker = CircuitBreaker("store", reset_timeout=SOON)
    with Runtime(), Pool(2) as pool:
        for number in range(kills):
            journal = Journal(tmp_path / "journal")
            half_open(breaker)
            end = pool.submit(hold, breaker, journal)
            pid = pid_in(journal)
            assert attempt(breaker) == "refused" and breaker.state == "half_open"
            kill(pid)
            assert isinstance(end.exception(), WorkerCrashed)
            until(lambda: attempt(breaker, error=False) == "passed")
            assert breaker.stats()["counters"]["lost"] == number + 1
            assert breaker.state == "closed"
            journal.clear()
        counters = breaker.stats()["counters"]
        assert counters["lost"] == kills and counters["late"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("kills", [25, pytest.param(1000, marks=pytest.mark.stress)])
def test_kills_at_any_moment_leave_nothing_stuck(tmp_path: Path, kills: int) -> None:
    """Four processes open and close one breaker as fast as they can, and are killed somewhere in it."""
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    print(f"SEED={seed}")
    draw = random.Random(seed)
    breaker = CircuitBreaker("store", failure_threshold=1, reset_timeout=SOON, half_open_max=2, trial_timeout=3600)
    journal = Journal(tmp_path / "journal")
    with Runtime(), Pool(4) as pool:
        under_fire(
            journal,
            draw,
            kills,
            lambda number: pool.submit(hammer_breaker, breaker, journal, number),
            lambda: breaker.stats()["counters"]["opened"],
        )
        until(lambda: attempt(breaker, error=False) == "passed" and breaker.state == "closed")
        stats = breaker.stats()
        assert stats["trials"] == 0
        counters = stats["counters"]
        print(counters)
        assert counters["closed"] <= counters["opened"] + kills
        assert counters["opened"] <= counters["trials_begun"] + kills + 1  # each phase but the first takes a trial
        assert counters["lost"] <= kills


def test_a_root_that_is_killed_takes_its_workers_and_no_state(tmp_path: Path) -> None:
    """It is killed while a trial is under way: the worker dies with it, and its trial counts as failed."""
    breaker = CircuitBreaker("store", reset_timeout=SOON)
    journal = Journal(tmp_path / "journal")
    with Runtime() as runtime, Pool(1) as pool:
        half_open(breaker)
        end = pool.submit(hold, breaker, journal)
        pid = pid_in(journal)
        root = runtime.pid
        assert root is not None
        kill(root)
        assert isinstance(end.exception(), WorkerCrashed)
        until(lambda: not alive(pid))
        until(lambda: attempt(breaker, error=False) == "passed")
        assert breaker.is_shared and breaker.state == "closed" and breaker.stats()["counters"]["lost"] == 1
        breaker.trip()
        until(lambda: runtime.pid not in (None, root))
        assert pool.submit(attempt, breaker).result() in ("refused", "failed")
        assert breaker.stats()["counters"]["opened"] >= 3


def test_a_trial_that_takes_too_long_counts_as_failed(tmp_path: Path) -> None:
    breaker = CircuitBreaker("store", reset_timeout=SOON, trial_timeout=0.05)
    journal = Journal(tmp_path / "journal")
    with Runtime(), Pool(1) as pool:
        half_open(breaker)
        end = pool.submit(hold, breaker, journal)
        pid = pid_in(journal)
        until(lambda: attempt(breaker, error=False) == "passed")
        assert alive(pid) and breaker.state == "closed"
        assert breaker.stats()["counters"]["lost"] == 1
        kill(pid)
        end.exception()


# ---- seen by others ------------------------------------------------------------------------------------------------
def trip_and_tell(breaker: CircuitBreaker) -> int:
    breaker.trip()
    return time.monotonic_ns()


def call_until_refused(breaker: CircuitBreaker, journal: Journal) -> int:
    breaker.call(int)
    journal.note("calling")
    call = breaker(int)
    try:
        while True:
            call()
    except CircuitOpen:
        return time.monotonic_ns()


def test_a_trip_is_seen_by_the_next_call_of_another_process() -> None:
    breaker = CircuitBreaker("store")
    with Runtime(), Pool(2) as pool:
        assert pool.submit(attempt, breaker, False).result() == "passed"
        pool.submit(trip_and_tell, breaker).result()
        assert [pool.submit(attempt, breaker, False).result() for _ in range(4)] == ["refused"] * 4
        assert breaker.state == "open"
        breaker.reset()
        assert [pool.submit(attempt, breaker, False).result() for _ in range(4)] == ["passed"] * 4
        assert [pool.submit(attempt, breaker).result() for _ in range(6)] == ["failed"] * 5 + ["refused"]


@pytest.mark.slow
@pytest.mark.stress
def test_two_processes_see_a_trip_within_a_millisecond(tmp_path: Path) -> None:
    breaker = CircuitBreaker("store")
    taken = []
    with Runtime(), Pool(2) as pool:
        for turn in range(200):
            breaker.reset()
            journal = Journal(tmp_path / f"turn{turn}")
            seen = pool.submit(call_until_refused, breaker, journal)
            journal.wait("calling")
            taken.append((seen.result, pool.submit(trip_and_tell, breaker).result()))
            taken[-1] = max(taken[-1][0]() - taken[-1][1], 0)  # it may be seen before trip() has returned
    taken.sort()
    print(f"a trip is seen after {statistics.median(taken) / 1000:.1f} us (median), {taken[-2] / 1000:.1f} us (99th)")
    assert statistics.median(taken) < 1_000_000


# ---- whose it is ---------------------------------------------------------------------------------------------------
def test_equal_names_with_other_settings_name_both() -> None:
    first, other = CircuitBreaker("store"), CircuitBreaker("store", failure_threshold=7, exclude=[OSError])
    with Runtime(), Pool(1) as pool:
        assert pool.submit(attempt, first, False).result() == "passed"
        for use in (lambda: other.call(int), lambda: other.state, lambda: pool.submit(attempt, other).result()):
            with pytest.raises(
                ConfigError, match=r"'store'.*failure_threshold=5.*failure_threshold=7.*exclude=OSError|builtins"
            ):
                use()
        assert first.call(int) == 0
        Bulkhead("store", 1).call(int), RateLimit("store", 5).call(int)  # a name of each kind
    assert other.call(int) == 0  # outside there is nobody to differ from


def test_a_number_that_differs_a_little_is_another_setting() -> None:
    with Runtime():
        assert CircuitBreaker("store", reset_timeout=1234567.0).call(int) == 0
        assert CircuitBreaker("store", reset_timeout=1234567).call(int) == 0
        with pytest.raises(ConfigError):
            CircuitBreaker("store", reset_timeout=1234568.0).call(int)


def test_private_joined_and_carried() -> None:
    """What it knows goes along: into a runtime where nobody has used it, and out of one that ends."""
    breaker = CircuitBreaker("store", failure_threshold=2)
    assert not breaker.is_shared
    breaker.trip()
    with Runtime(), Pool(1) as pool:
        assert breaker.is_shared and breaker.state == "open"
        assert pool.submit(attempt, breaker).result() == "refused"
        breaker.reset()
        assert [pool.submit(attempt, breaker).result() for _ in range(3)] == ["failed", "failed", "refused"]
    assert not breaker.is_shared and breaker.state == "open"
    assert breaker.stats()["counters"]["failures"] == 2
    with Runtime() as runtime:
        assert breaker.state == "open" and runtime.pid
        breaker.reset()
    assert breaker.state == "closed"


def test_the_first_to_bring_a_state_is_heard_and_later_ones_not() -> None:
    tripped, fresh = CircuitBreaker("store"), CircuitBreaker("store")
    with Runtime():
        fresh.trip(), fresh.reset()
        assert fresh.state == "closed"
    tripped.trip()
    with Runtime():
        fresh.trip(), fresh.reset()  # the runtime's has a history now
        assert tripped.state == "closed"


def test_nested_runtimes_have_breakers_of_their_own() -> None:
    breaker = CircuitBreaker("store")
    with Runtime():
        breaker.disable()
        with Runtime(), Pool(1) as pool:
            assert breaker.state == "disabled"  # brought along: nobody had used it there
            breaker.trip()
            assert pool.submit(attempt, breaker).result() == "refused"
        assert breaker.is_shared and breaker.state == "disabled"


def inside(breaker: CircuitBreaker) -> list[Any]:
    found: list[Any] = [breaker.is_shared, breaker.state]
    with Runtime():
        found += [breaker.is_shared, breaker.state]
        breaker.force_open()
        found.append(breaker.state)
    return [*found, breaker.is_shared, breaker.state]


def test_a_runtime_inside_a_worker_is_another_one() -> None:
    breaker = CircuitBreaker("store")
    with Runtime(), Pool(1) as pool:
        breaker.trip()
        found = pool.submit(inside, breaker).result()
        assert found == [True, "open", True, "open", "forced_open", True, "open"]
        assert breaker.state == "open"


def fork_and_look(breaker: CircuitBreaker) -> list[Any]:
    """What a forked child finds, and what its parent has afterwards."""
    before = [breaker.is_shared, breaker.state]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            found = [breaker.is_shared, breaker.state]
            breaker.force_open()
            os.write(writer, repr([*found, breaker.state]).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        told = pipe.read()
    os.waitpid(pid, 0)
    return [before, told, [breaker.is_shared, breaker.state]]


@pytest.mark.parametrize("where", ["outside", "program", "worker"])
def test_a_forked_child_has_a_copy_of_its_own(where: str) -> None:
    breaker = CircuitBreaker("store")
    breaker.trip()
    shared = where != "outside"
    expected = [[shared, "open"], "[False, 'open', 'forced_open']", [shared, "open"]]
    if where == "outside":
        assert fork_and_look(breaker) == expected
        return
    with Runtime(), Pool(1) as pool:
        assert breaker.state == "open"
        found = fork_and_look(breaker) if where == "program" else pool.submit(fork_and_look, breaker).result()
        assert found == expected


def look_and_trip(breaker: CircuitBreaker, results: Any) -> None:
    results.put((breaker.is_shared, breaker.state))
    breaker.force_open()


def test_a_process_of_multiprocessing_has_a_copy_of_its_own() -> None:
    breaker = CircuitBreaker("store")
    with Runtime():
        breaker.trip()
        context = multiprocessing.get_context("fork")
        results = context.SimpleQueue()
        child = context.Process(target=look_and_trip, args=(breaker, results))
        child.start()
        assert results.get() == (False, "open")
        child.join()
        assert breaker.state == "open"
        results.close()


# ---- a process that is stopped where it counts ---------------------------------------------------------------------
def test_others_can_be_interrupted_while_a_stopped_process_holds_the_mutex(tmp_path: Path) -> None:
    breaker = CircuitBreaker("a-rather-special-name", reset_timeout=3600)
    journal = Journal(tmp_path / "journal")
    with Runtime(), Pool(1) as pool:
        end = pool.submit(stop_with_mutex, breaker, journal)
        pid = pid_in(journal)
        assert attempt(breaker, error=False) == "passed"  # who only passes needs no mutex
        for blocked in (breaker.trip, breaker.reset, lambda: attempt(breaker)):
            with interrupted():
                blocked()
        assert breaker.state == "closed" and breaker.stats()["attempt"] == 0
        kill(pid)  # the mutex of the dead is the next one's
        end.exception()
        breaker.trip()
        assert breaker.state == "open"


# ---- room ----------------------------------------------------------------------------------------------------------
@pytest.mark.slow
def test_many_names_until_the_area_is_full() -> None:
    with Runtime():
        made = 0
        with pytest.raises(Overloaded, match=r"16 MiB.*full.*breaker 'big\d+'.*fewer names") as caught:
            for made in range(10_000):
                CircuitBreaker(f"big{made}", window=65536).call(int)
        assert caught.value.where == "guards" and 200 < made < 300
        again = CircuitBreaker("big0", window=65536)
        assert again.call(int) == 0 and again.stats()["counters"]["successes"] == 2
    assert CircuitBreaker("big10000", window=65536).call(int) == 0


# ---- what stays ----------------------------------------------------------------------------------------------------
def use_all() -> None:
    for turn in range(3):
        CircuitBreaker("store").call(int), Bulkhead("disk", 2).call(int), RateLimit(f"api{turn}", 1000).call(int)


def test_nothing_stays_of_a_runtime_that_ended() -> None:
    breaker, bulkhead, limit = CircuitBreaker("store"), Bulkhead("disk", 2), RateLimit("api", 10)

    def turn() -> None:
        with bulkhead:
            with Runtime(), Pool(1) as pool:
                breaker.call(int), bulkhead.call(int), limit.try_acquire()
                pool.submit(use_all).result()
                bulkhead.acquire()
            bulkhead.release()  # its runtime has ended: there is nothing to give back, and no error

    turn()
    gc.collect()
    before = traces()
    assert before["mappings of a runtime"] == 0
    for _ in range(3):
        turn()
    gc.collect()
    until(lambda: traces() == before, lambda: (traces(), before))
    assert breaker.call(int) == 0 and bulkhead.in_use == 0


def test_creating_one_starts_nothing() -> None:
    source = """
import os, sys, threading
import shmrt
shmrt.CircuitBreaker("store").call(int); shmrt.Bulkhead("disk", 1).call(int); shmrt.RateLimit("api", 5).call(int)
print(threading.active_count(), [m for m in ("asyncio", "typing", "shmrt.runtimes", "numpy") if m in sys.modules])
print(len(os.listdir("/proc/self/fd")))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False, close_fds=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["1", "[]", "4"]


def test_the_default_runtime_is_joined_once_it_is_up() -> None:
    source = """
import shmrt
store = shmrt.CircuitBreaker("store", failure_threshold=1)
print(store.is_shared)
with shmrt.Pool(1) as pool:
    print(store.is_shared, type(pool.submit(store(int), "x").exception()).__name__, store.state)
print(store.is_shared)
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=False)
    assert (done.stdout.split(), done.stderr) == (["False", "True", "ValueError", "open", "True"], "")


def test_a_breaker_that_was_not_made_by_its_constructor() -> None:
    for kind in (shmrt._native.Breaker, shmrt._native.PermitPool, shmrt._native.TokenBucket):
        guard: Any = kind.__new__(kind)
        for verb in (
            "_look",
            "try_acquire",
            "release",
            "__enter__",
            "_begin",
            "refill",
            "_acquire",
            "_resize",
            "_poll",
        ):
            if hasattr(guard, verb):
                with pytest.raises((RuntimeError, TypeError)):
                    getattr(guard, verb)(*[1] * (verb in ("_acquire", "_resize")), *[None] * (verb == "_poll"))
        for what in ("is_shared", "tokens", "_counters", "_state"):
            with pytest.raises((RuntimeError, AttributeError)):
                getattr(guard, what)
        if hasattr(guard, "__exit__"):
            with contextlib.suppress(RuntimeError):
                guard.__exit__(None, None, None)
        assert guard.name is None

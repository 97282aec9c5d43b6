"""A bulkhead that real processes share: never one too many, never one stuck, whoever is killed or stopped."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from guard_kit import hammer_permits, hold, interrupted, pid_in, stop_with_mutex, under_fire
from tree_kit import Journal, alive, kill, until

from shmrt import Bulkhead, BulkheadFull, ConfigError, Overloaded, Pool, Runtime, WorkerCrashed


def stay(bulkhead: Bulkhead, journal: Journal, line: str, name: str = "") -> str:
    """Inside until the journal has a line."""
    try:
        with bulkhead:
            journal.note("in", name, os.getpid())
            journal.wait(line)
    except BulkheadFull as refusal:
        assert isinstance(refusal, Overloaded)
        return str(refusal)
    return "done"


# ---- how many ------------------------------------------------------------------------------------------------------
def test_never_more_than_its_permits(tmp_path: Path) -> None:
    bulkhead, journal = Bulkhead("disk", 3), Journal(tmp_path / "journal")
    with Runtime(), Pool(6) as pool:
        inside = [pool.submit(stay, bulkhead, journal, "go") for _ in range(3)]
        until(lambda: len(journal.lines("in ")) == 3)
        refused = [pool.submit(stay, bulkhead, journal, "go").result() for _ in range(3)]
        assert all("'disk' is full: 3 of 3 permits are out; nobody may wait" in text for text in refused)
        with pytest.raises(BulkheadFull) as caught:
            bulkhead.call(int)
        assert caught.value.capacity == 3 and caught.value.where == "bulkhead disk"
        assert (bulkhead.in_use, bulkhead.available, bulkhead.try_acquire()) == (3, 0, False)
        journal.note("go")
        assert [end.result() for end in inside] == ["done"] * 3
        assert bulkhead.in_use == 0 and bulkhead.call(int) == 0
        stats = bulkhead.stats()
        assert stats["high_water"] == 3 and stats["counters"]["taken"] == 4 and stats["counters"]["refused"] == 5


def test_who_came_first_goes_first(tmp_path: Path) -> None:
    bulkhead, journal = Bulkhead("disk", 1, max_waiting=3), Journal(tmp_path / "journal")
    with Runtime(), Pool(5) as pool:
        ends = [pool.submit(stay, bulkhead, journal, "go", "0")]
        until(lambda: journal.lines("in "))
        for number in range(1, 4):
            ends.append(pool.submit(stay, bulkhead, journal, "go", str(number)))
            until(lambda number=number: bulkhead.stats()["waiting"] == number)
        assert "3 of 3 that may wait do" in pool.submit(stay, bulkhead, journal, "go").result()
        journal.note("go")
        assert [end.result() for end in ends] == ["done"] * 4
        assert [line.split()[1] for line in journal.lines("in ")] == ["0", "1", "2", "3"]
        counters = bulkhead.stats()["counters"]
        assert (counters["taken"], counters["waited"], counters["refused"], counters["timed_out"]) == (4, 3, 1, 0)


def test_a_waiter_gives_up_in_time(tmp_path: Path) -> None:
    bulkhead, journal = Bulkhead("disk", 1, max_waiting=3, timeout=0.05), Journal(tmp_path / "journal")
    with Runtime(), Pool(1) as pool:
        end = pool.submit(stay, bulkhead, journal, "go")
        until(lambda: journal.lines("in "))
        with pytest.raises(BulkheadFull, match=r"none came back within 0\.05 s"):
            bulkhead.call(int)
        assert bulkhead.acquire(timeout=0.01) is False
        assert asyncio.run(bulkhead.aacquire(timeout=0.01)) is False
        stats = bulkhead.stats()
        assert stats["waiting"] == 0 and stats["counters"]["timed_out"] == 3
        journal.note("go")
        assert end.result() == "done"


def test_resized_below_what_is_out(tmp_path: Path) -> None:
    bulkhead, journal = Bulkhead("disk", 3), Journal(tmp_path / "journal")
    with Runtime(), Pool(3) as pool:
        ends = [pool.submit(stay, bulkhead, journal, f"go {n}") for n in range(3)]
        until(lambda: len(journal.lines("in ")) == 3)
        bulkhead.resize(1)
        assert (bulkhead.in_use, bulkhead.available, bulkhead.max_concurrent) == (3, 0, 1)
        for number in range(2):
            journal.note(f"go {number}")
            until(lambda number=number: bulkhead.in_use == 2 - number)
            assert not bulkhead.try_acquire()
        journal.note("go 2")
        assert [end.result() for end in ends] == ["done"] * 3
        assert bulkhead.call(int) == 0
        bulkhead.resize(64)
        with pytest.raises(ValueError, match=r"max_concurrent=65 .*from 1 to 64"):
            bulkhead.resize(65)
    assert bulkhead.max_concurrent == 64  # its size goes along


def test_a_resize_wakes_who_waits(tmp_path: Path) -> None:
    bulkhead, journal = Bulkhead("disk", 1, max_waiting=3), Journal(tmp_path / "journal")
    with Runtime(), Pool(3) as pool:
        ends = [pool.submit(stay, bulkhead, journal, "go") for _ in range(3)]
        until(lambda: bulkhead.stats()["waiting"] == 2)
        bulkhead.resize(3)
        until(lambda: len(journal.lines("in ")) == 3)
        journal.note("go")
        assert [end.result() for end in ends] == ["done"] * 3


# ---- deaths --------------------------------------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("kills", [15, pytest.param(1000, marks=pytest.mark.stress)])
def test_a_killed_holder_gives_all_back(tmp_path: Path, kills: int) -> None:
    bulkhead, journal = Bulkhead("disk", 2, max_waiting=5), Journal(tmp_path / "journal")
    with Runtime(), Pool(1) as pool:
        for number in range(kills):
            end = pool.submit(hold_two, bulkhead, journal)
            pid = pid_in(journal)
            assert not bulkhead.try_acquire()
            kill(pid)
            with bulkhead:  # waits for it, and hears of the death by itself
                until(lambda pid=pid: not alive(pid))  # its permits may be free a moment before it is gone
            assert isinstance(end.exception(), WorkerCrashed)
            assert bulkhead.stats()["counters"]["lost"] == 2 * (number + 1) and bulkhead.in_use == 0
            journal.clear()


def hold_two(bulkhead: Bulkhead, journal: Journal) -> None:
    with bulkhead:
        hold(bulkhead, journal)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [8, pytest.param(300, marks=pytest.mark.stress)])
def test_a_killed_waiter_frees_its_place(tmp_path: Path, kills: int) -> None:
    bulkhead, journal = Bulkhead("disk", 1, max_waiting=1), Journal(tmp_path / "journal")
    with Runtime(), Pool(1) as pool, bulkhead:
        for _ in range(kills):
            end = pool.submit(wait_in_line, bulkhead, journal)
            pid = pid_in(journal)
            until(lambda: bulkhead.stats()["waiting"] == 1)
            assert bulkhead.acquire(timeout=0.01) is False  # the line is full
            kill(pid)
            assert isinstance(end.exception(), WorkerCrashed)
            until(lambda: bulkhead.stats()["waiting"] == 0)
            journal.clear()
        assert bulkhead.stats()["counters"]["lost"] == 0


def wait_in_line(bulkhead: Bulkhead, journal: Journal) -> None:
    journal.note("in", os.getpid())
    bulkhead.acquire()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [25, pytest.param(1000, marks=pytest.mark.stress)])
def test_kills_at_any_moment_leave_nothing_stuck(tmp_path: Path, kills: int) -> None:
    """Four processes take, wait for and give back two permits as fast as they can, and are killed somewhere in it."""
    seed = int(os.environ.get("SEED", random.randrange(2**32)))
    print(f"SEED={seed}")
    bulkhead, journal = Bulkhead("disk", 2, max_waiting=3), Journal(tmp_path / "journal")
    with Runtime(), Pool(4) as pool:
        under_fire(
            journal,
            random.Random(seed),
            kills,
            lambda number: pool.submit(hammer_permits, bulkhead, journal, str(tmp_path), number),
            lambda: bulkhead.stats()["counters"]["taken"],
        )
        assert journal.lines("too many") == []
        stats = bulkhead.stats()
        print(stats)
        assert (stats["in_use"], stats["waiting"]) == (0, 0)
        assert stats["high_water"] == 2 and stats["counters"]["lost"] <= kills
        assert stats["counters"]["waited"] > 0
        assert bulkhead.acquire(0) and bulkhead.acquire(0) and not bulkhead.acquire(0)


def test_a_stopped_waiter_is_passed_by(tmp_path: Path) -> None:
    bulkhead, journal = Bulkhead("disk", 1, max_waiting=3), Journal(tmp_path / "journal")
    with Runtime(), Pool(2) as pool:
        with bulkhead:
            end = pool.submit(stay, bulkhead, journal, "go", "stopped")
            until(lambda: bulkhead.stats()["waiting"] == 1)
            pid = next(row for row in [pool.submit(os.getpid).result()] if row)
            stopped = pool.submit(os.getppid).result() and _other_worker(pool, pid)
            kill(stopped, signal.SIGSTOP)
        with bulkhead:  # it is first in the line, and does not come
            assert journal.lines("in ") == []
        kill(stopped, signal.SIGCONT)
        journal.note("go")
        assert end.result() == "done"


def _other_worker(pool: Pool, pid: int) -> int:
    children = Path(f"/proc/{_parent(pid)}/task/{_parent(pid)}/children").read_text().split()
    return next(int(child) for child in children if int(child) != pid)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_permits_go_back_past_a_stopped_process_that_holds_the_mutex(tmp_path: Path) -> None:
    bulkhead = Bulkhead("a-rather-special-name", 2, max_waiting=3)
    journal = Journal(tmp_path / "journal")
    with Runtime(), Pool(1) as pool:
        assert bulkhead.try_acquire()
        end = pool.submit(stop_with_mutex, bulkhead, journal)
        pid = pid_in(journal)
        bulkhead.release()
        for blocked in (bulkhead.try_acquire, bulkhead.acquire, lambda: bulkhead.in_use, lambda: bulkhead.resize(2)):
            with interrupted():
                blocked()
        kill(pid)
        end.exception()
        stats = bulkhead.stats()
        assert (stats["in_use"], stats["waiting"]) == (0, 0)
        assert bulkhead.acquire(0) and bulkhead.acquire(0) and not bulkhead.acquire(0)


# ---- whose it is ---------------------------------------------------------------------------------------------------
def test_a_permit_goes_back_where_it_was_taken() -> None:
    bulkhead = Bulkhead("disk", 2)
    with Runtime():
        with bulkhead:
            with Runtime():
                assert bulkhead.in_use == 0
                with bulkhead:
                    assert bulkhead.in_use == 1
            assert bulkhead.in_use == 1
        assert bulkhead.in_use == 0
        bulkhead.acquire()
        with Runtime():
            bulkhead.release()
        assert bulkhead.in_use == 0
    with bulkhead:
        with Runtime():
            assert bulkhead.in_use == 0
        assert bulkhead.in_use == 1
    assert bulkhead.in_use == 0


def test_a_block_that_outlives_its_runtime_ends_without_an_error() -> None:
    bulkhead = Bulkhead("disk", 1)
    runtime = Runtime().start()
    with runtime, bulkhead:
        assert bulkhead.is_shared
        runtime.stop()
        with bulkhead:  # another one, of the process alone
            assert bulkhead.in_use == 1
    assert bulkhead.in_use == 0
    with pytest.raises(RuntimeError, match="no permit of this process"):
        bulkhead.release()


def test_equal_names_with_other_settings_name_both() -> None:
    with Runtime():
        assert Bulkhead("disk", 2).call(int) == 0
        with pytest.raises(ConfigError, match=r"max_concurrent=2 max_waiting=0.*max_concurrent=3 max_waiting=0"):
            Bulkhead("disk", 3).call(int)


def fork_and_release(bulkhead: Bulkhead) -> list[Any]:
    with bulkhead:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                try:
                    bulkhead.release()
                except RuntimeError:
                    status = 0 if bulkhead.in_use == 0 and bulkhead.try_acquire() else 2
                    bulkhead.release(), bulkhead.release()  # its own, and one that is its parent's: left alone
            finally:
                os._exit(status)
        status = os.waitpid(pid, 0)[1]
        return [status, bulkhead.in_use]


@pytest.mark.parametrize("where", ["outside", "program", "worker"])
def test_a_forked_child_holds_none_of_its_parents_permits(where: str) -> None:
    bulkhead = Bulkhead("disk", 1)
    if where == "outside":
        assert fork_and_release(bulkhead) == [0, 1]
    else:
        with Runtime(), Pool(1) as pool:
            if where == "program":
                assert fork_and_release(bulkhead) == [0, 1]
            else:
                assert pool.submit(fork_and_release, bulkhead).result() == [0, 1]
            assert bulkhead.in_use == 0
    assert bulkhead.in_use == 0


def test_threads_and_tasks_wait_in_one_line() -> None:
    bulkhead = Bulkhead("threads", 2, max_waiting=100)
    inside, most = 0, 0
    lock = threading.Lock()

    def enter(change: int) -> None:
        nonlocal inside, most
        with lock:
            inside += change
            most = max(most, inside)

    def work() -> None:
        for _ in range(50):
            with bulkhead:
                enter(1)
                enter(-1)

    async def one() -> None:
        async with bulkhead:
            enter(1)
            await asyncio.sleep(0.0001)
            enter(-1)

    async def tasks() -> None:
        await asyncio.gather(*(one() for _ in range(20)))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    asyncio.run(tasks())
    for thread in threads:
        thread.join()
    stats = bulkhead.stats()
    assert most <= 2 and stats["in_use"] == stats["waiting"] == 0 and stats["counters"]["taken"] == 220


def test_a_cancelled_task_leaves_the_line() -> None:
    bulkhead = Bulkhead("tasks", 1, max_waiting=1)

    async def use() -> None:
        with bulkhead:
            task = asyncio.create_task(bulkhead.aacquire())
            while bulkhead.stats()["waiting"] == 0:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert bulkhead.stats()["waiting"] == 0

    asyncio.run(use())
    assert bulkhead.in_use == 0


def test_an_object_that_goes_gives_its_permits_back() -> None:
    with Runtime():
        keeper = Bulkhead("disk", 1)
        keeper.acquire()
        other = Bulkhead("disk", 1)
        assert other.in_use == 1
        del keeper
        assert other.in_use == 0

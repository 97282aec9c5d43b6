"""A thread that waits for a result sleeps until it is there: no wake-up is lost, whichever thread finds the outcome.

Waiting threads wake now and then for a signal that interrupted nothing; here they do not (`Hub.signal_ns`), so a
wake-up that is lost is a thread that never comes back. The interleavings themselves: tests/native/test_hub_park.c,
tests/model/promela/park.pml and behind.pml.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import pytest

import shmrt

WATCHDOG_S = 120
NEVER_NS = 1 << 62


def echo(value: int) -> int:
    return value


def wait_for_byte(path: str) -> str:
    with open(path) as gate:
        return gate.read(1)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Open for both directions as long as there is a pool: no end of it waits for the other one."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    end = os.open(path, os.O_RDWR)
    yield path
    os.close(end)


@pytest.fixture
def pool(gate: Path) -> Iterator[shmrt.Pool]:
    with shmrt.Pool(max_workers=2) as pool:
        pool.submit(echo, 0).result()
        hub_of(pool).signal_ns = NEVER_NS
        yield pool


def hub_of(pool: shmrt.Pool) -> Any:
    return pool._runtime._hub


class Waiter(threading.Thread):
    """Calls `wait`; `outcome` is what it returned or raised."""

    def __init__(self, wait: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self.wait = wait
        self.outcome: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.outcome = self.wait()
        except BaseException as error:
            self.outcome = error

    def end(self) -> Any:
        self.join(WATCHDOG_S)
        assert not self.is_alive(), "its wake-up was lost"
        return self.outcome


def until_parked(pool: shmrt.Pool, threads: int) -> None:
    while hub_of(pool).stats()["parked"] < threads:
        pass


@pytest.fixture
def held(pool: shmrt.Pool, gate: Path) -> Iterator[shmrt.Future[str]]:
    """The only task, and it runs on. With a second one the hub would look again by itself, to rebalance."""
    future = pool.submit(wait_for_byte, str(gate))
    yield future
    gate.write_bytes(b".")


def test_a_result_set_by_hand_wakes_who_waits(pool: shmrt.Pool, held: shmrt.Future[str]) -> None:
    waiters = [Waiter(held.result), Waiter(held.exception)]
    until_parked(pool, 2)
    held.set_result("by hand")
    assert [waiter.end() for waiter in waiters] == ["by hand", None]


def test_an_exception_set_by_hand_wakes_who_waits(pool: shmrt.Pool, held: shmrt.Future[str]) -> None:
    waiter = Waiter(held.result)
    until_parked(pool, 1)
    held.set_exception(KeyError("by hand"))
    assert isinstance(waiter.end(), KeyError)


def test_a_cancel_wakes_who_waits(pool: shmrt.Pool) -> None:
    pool._opened.core.pause(True)
    future = pool.submit(echo, 1)
    waiters = [Waiter(future.result), Waiter(lambda: pool._opened.core.wait_pending(0, -1))]
    until_parked(pool, 2)
    assert future.cancel()
    assert isinstance(waiters[0].end(), CancelledError)
    assert waiters[1].end() is True
    pool._opened.core.pause(False)


def test_a_kill_wakes_who_waits(pool: shmrt.Pool, held: shmrt.Future[str]) -> None:
    waiters = [Waiter(held.result), Waiter(held.exception)]
    until_parked(pool, 2)
    assert held.kill()
    assert all(isinstance(waiter.end(), CancelledError) for waiter in waiters)


def of_threads_without_python() -> int:
    """How often they slept. One of them is the hub's."""
    ours = {str(thread.native_id) for thread in threading.enumerate()}
    slept = 0
    for task in Path("/proc/self/task").iterdir():
        if task.name in ours:
            continue
        with contextlib.suppress(OSError):  # one that ends meanwhile
            slept += int((task / "status").read_text().partition("\nvoluntary_ctxt_switches:")[2].split()[0])
    return slept


def test_a_result_wakes_who_waits_and_not_the_hubs_thread_too(pool: shmrt.Pool) -> None:
    before, rounds = of_threads_without_python(), 200
    for _ in range(rounds):
        pool.submit(time.sleep, 0.001).result()
    assert of_threads_without_python() - before < rounds / 2, "it was woken beside whoever waits"


def test_a_callback_that_takes_its_time_keeps_nobody_asleep(pool: shmrt.Pool) -> None:
    """The dispatcher completes a future with callbacks, after whoever waits for it was woken and has looked."""
    for _ in range(20):
        future, called = pool.submit(echo, 1), threading.Event()
        future.add_done_callback(lambda _, called=called: called.set())
        waiter = Waiter(future.result)
        assert waiter.end() == 1 and called.wait(WATCHDOG_S)


@pytest.mark.parametrize("watched", [False, True], ids=["bare", "watched"])
@pytest.mark.parametrize("threads", [2, 6])
def test_many_threads_wait_and_none_is_forgotten(pool: shmrt.Pool, threads: int, watched: bool) -> None:
    def rounds(number: int) -> int:
        for turn in range(300):
            future = pool.submit(echo, number * 1000 + turn)
            if watched:
                future.add_done_callback(bool)
            assert future.result() == number * 1000 + turn
        return number

    waiters = [Waiter(lambda number=number: rounds(number)) for number in range(threads)]
    assert [waiter.end() for waiter in waiters] == list(range(threads))

"""What the root's death watch does about a death while the root sleeps, and what the root makes of it when it wakes."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from shmrt import _native
from shmrt.supervise.crew import Crew, Worker
from shmrt.supervise.standbys import Standby, Standbys, message

POOL, FIRST, COUNT = 3, 2, 4


class Table:
    """Slots with a death watch, and processes that hold some of them."""

    def __init__(self) -> None:
        self.slots = _native.Slots.create(16)
        self.events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.watch = _native.DeathWatch(self.slots, self.events)
        self.reads, self.writes = os.pipe2(os.O_CLOEXEC)
        self.pids: list[int] = []

    def worker(self, slot: int) -> tuple[int, int, int, int]:
        """A process that is ready in this slot, as an order names it."""
        epoch = self.slots.claim(slot, POOL, slot - FIRST)
        ready, says = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.slots.hold_death_mutex(slot)
            self.slots.ready(slot)
            os.write(says, b"r")
            while True:
                signal.pause()
        os.read(ready, 1)
        os.close(ready)
        os.close(says)
        self.slots.set_process(slot, pid)
        self.pids.append(pid)
        return slot, epoch, slot - FIRST, 1

    def kill(self, at: int = 0) -> None:
        pid = self.pids.pop(at)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)

    def place(self, *workers: tuple[int, int, int, int]) -> None:
        self.watch.place([(POOL, FIRST, COUNT, self.writes, list(workers))])

    def wait_for_news(self) -> None:
        _native.poll([(self.events, _native.POLLIN)], -1)
        os.eventfd_read(self.events)

    def close(self) -> None:
        while self.pids:
            self.kill()
        self.watch.stop()
        for fd in (self.events, self.reads, self.writes):
            os.close(fd)
        self.slots.close()


@pytest.fixture
def table():
    made = Table()
    yield made
    made.close()


def test_the_watch_sends_the_standby_by_itself(table: Table) -> None:
    order = table.worker(FIRST)
    table.place(order)
    table.kill()
    words = memoryview(os.read(table.reads, 4096)).cast("I").tolist()  # nobody else does anything meanwhile
    epoch = table.slots.epoch(FIRST + 1)
    assert words == [FIRST + 1, epoch, 1, 0, 1]
    assert bytes(memoryview(message(FIRST + 1, epoch, FIRST, 0, 1))) == b"".join(w.to_bytes(4, "little") for w in words)
    assert table.slots.state(FIRST + 1) == _native.SLOT_STARTING
    assert table.watch.take_back() == [(POOL, FIRST, FIRST + 1, epoch, 0, True)]
    assert table.watch.take_back() == []


def test_the_root_hears_of_it_when_the_standby_is_ready(table: Table) -> None:
    """And before that only if it takes too long, or somebody else dies."""
    first, second = table.worker(FIRST), table.worker(FIRST + 1)
    table.place(first, second)
    table.wait_for_news()  # the start of the watch, and the two claims
    table.kill()
    os.read(table.reads, 4096)
    table.slots.ready(FIRST + 2)
    table.slots.ring(_native.SLOT_ROOT)
    table.wait_for_news()
    table.kill()
    table.wait_for_news()
    assert [row[1] for row in table.watch.take_back()] == [FIRST]


def test_without_an_order_nothing_is_sent(table: Table) -> None:
    order = table.worker(FIRST)
    table.place(order)
    assert table.watch.take_back() == []
    table.kill()
    table.wait_for_news()
    while not table.slots.is_abandoned(FIRST):
        table.wait_for_news()
    os.set_blocking(table.reads, False)
    with pytest.raises(BlockingIOError):
        os.read(table.reads, 4096)


@pytest.mark.parametrize(
    "rows, error",
    [
        ((), TypeError),
        ([(1, 2)], TypeError),
        ([(POOL, FIRST, COUNT, 0, ())], TypeError),
        ([(POOL, FIRST, COUNT, 0, [(1, 2, 3)])], TypeError),
        ([(POOL, FIRST, 17, 0, [])], IndexError),
        ([(POOL, FIRST, COUNT, 0, [(16, 1, 0, 0)])], IndexError),
        ([(POOL, FIRST, COUNT, 0, [(FIRST, 1, 0, 0)] * 1025)], ValueError),
        ([(POOL, FIRST, COUNT, 0, [])] * 1025, TypeError),
    ],
)
def test_orders_that_mean_nothing_are_refused(table: Table, rows: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        table.watch.place(rows)
    assert table.watch.take_back() == []


# ---- what the root makes of it -------------------------------------------------------------------------------------
class Starts:
    def __init__(self) -> None:
        self.done: list[tuple[Any, ...]] = []

    def started(self, one: Worker, pid: int) -> None:
        self.done.append(("started", one.slot, one.epoch, one.number, pid, one.channel is not None))

    able = True

    def can_man(self, crew: Crew) -> bool:
        return self.able

    def man(self, crew: Crew, one: Worker) -> bool:
        self.done.append(("manned", one.slot, one.epoch, one.number))
        return True

    def not_started(self, one: Worker, reason: str, *, from_outside: bool = False) -> None:
        self.done.append(("not started", one.slot, one.number, from_outside))


def crew_of(workers: int, *, standby_pid: int = 77) -> tuple[Crew, list[int]]:
    """A pool whose workers are ready and that has a standby; the descriptors of that."""
    crew = Crew(POOL, {"name": "p", "workers": workers}, FIRST, 8, [], SimpleNamespace())  # type: ignore[arg-type]
    for number in range(workers):
        one = crew.enlist(FIRST + number, 10 + number, number, 0)
        one.ready = True
    orders = os.open("/dev/null", os.O_WRONLY)
    control = os.open("/dev/null", os.O_RDWR)
    crew.standby = Standby(1, orders, control)
    crew.standby.pid = standby_pid
    return crew, [orders, control]


def staffed(crew: Crew) -> tuple[Standbys, Starts]:
    starts = Starts()
    return Standbys(SimpleNamespace(crews={POOL: crew}), starts), starts  # type: ignore[arg-type]


def test_every_ready_worker_of_a_whole_pool_is_watched() -> None:
    crew, fds = crew_of(2)
    standbys, _ = staffed(crew)
    assert standbys.orders(0) == [(POOL, FIRST, 8, fds[0], [(FIRST, 10, 0, 1), (FIRST + 1, 11, 1, 1)])]
    standbys.forget(crew)


@pytest.mark.parametrize(
    "change",
    [
        lambda crew: setattr(crew, "removing", True),
        lambda crew: crew.replacing.append((FIRST, 10)),
        lambda crew: setattr(crew.standby, "pid", 0),
        lambda crew: setattr(crew.keeper, "broken", True),
        lambda crew: setattr(crew.keeper, "next_ns", 1),
        lambda crew: crew.keeper.resize(3),
        lambda crew: crew.keeper.resize(1),
        lambda crew: setattr(crew.workers[FIRST], "retiring", True),
    ],
)
def test_where_the_root_might_decide_otherwise_there_are_no_orders(change: Any) -> None:
    crew, _ = crew_of(2)
    standbys, _ = staffed(crew)
    change(crew)
    assert standbys.orders(0) == []
    standbys.forget(crew)


def test_only_who_is_ready_is_watched() -> None:
    crew, _ = crew_of(2)
    crew.workers[FIRST].ready = False
    standbys, _ = staffed(crew)
    assert [row[4] for row in standbys.orders(0)] == [[(FIRST + 1, 11, 1, 1)]]
    standbys.forget(crew)


def test_the_standby_that_was_sent_is_a_worker() -> None:
    crew, _ = crew_of(2)
    standbys, starts = staffed(crew)
    standbys.hear([(POOL, FIRST, FIRST + 2, 40, 0, True)], 5)
    assert starts.done == [("started", FIRST + 2, 40, 0, 77, True)]
    assert crew.standby is None and crew.restarts == {0: 1, 1: 0} and crew.workers[FIRST + 2].start_ns == 5
    crew.workers[FIRST + 2].close_channel()


@pytest.mark.parametrize("able", [True, False])
def test_a_standby_that_had_died_too_is_nobodys_loss(able: bool) -> None:
    crew, _ = crew_of(1)
    standbys, starts = staffed(crew)
    starts.able = able
    standbys.hear([(POOL, FIRST, FIRST + 1, 40, 0, False)], 5)
    assert starts.done == [("manned", FIRST + 1, 40, 0) if able else ("not started", FIRST + 1, 0, True)]
    standbys.forget(crew)

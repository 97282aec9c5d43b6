"""Every bounded place answers by its policy and counts it: what the caller gets, what is counted, and who may die
meanwhile.

The table below is the one of docs/resilience-overload.md, row by row; a test compares the two.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from overload_kit import PATIENCE_S, Clerk, hold_server, let_go, lines, until

from shmrt import Overloaded, Pool, Ring, RingSpec, Runtime, ServerDown, TaskTimeout, start

ROOT = Path(__file__).resolve().parents[2]
FORK = multiprocessing.get_context("fork")


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Runtime]:
    with Runtime() as made:
        yield made


# ---- the table: (place, policy) -> what one more gets, and which counts it raises
def ring_of(policy: Any) -> Ring:
    ring = Ring.create(RingSpec(slots=2, on_full=policy))
    ring.put("a")
    ring.put("b")
    return ring


def outcome(put: Callable[[], Any]) -> str:
    try:
        put()
    except Overloaded as error:
        assert isinstance(error, queue.Full) and error.capacity and error.where and str(error.capacity) in str(error)
        return "`Overloaded`"
    return "nothing"


RINGS = {
    "raise": ("`Overloaded`", {"refused": 1}),
    "block": ("waits; `Overloaded` after `timeout`", {"refused": 1}),
    "drop_oldest": ("nothing; the oldest is gone", {"drops": 1}),
    "drop_newest": ("nothing; this one is gone", {"drops": 1}),
}
MAILBOXES = {
    "raise": ("`Overloaded`", {"refused": 1}),
    "block": ("waits; `Overloaded` after `timeout`", {"refused": 1}),
    "drop_oldest": ("nothing; the oldest is gone", {"drops": 1}),
    "drop_newest": ("`False` for a cast, `Overloaded` for a call", {"drops": 1}),
}
POOLS = {
    "raise": ("`Overloaded`", {"refused": 1}),
    "block": ("waits; `Overloaded` in an event loop or in a worker of the pool", {"refused": 0}),
}


@pytest.mark.parametrize("policy", RINGS)
def test_a_full_ring(policy: str) -> None:
    words, counts = RINGS[policy]
    ring = ring_of(policy)
    before = ring.stats()
    assert (
        outcome(lambda: ring.put("c", timeout=0.01))
        == words.replace("waits; ", "").partition(" after")[0].partition(";")[0]
    )
    after = ring.stats()
    assert {key: after[key] - before[key] for key in ("refused", "drops") if after[key] != before[key]} == counts
    left = {"drop_oldest": ["b", "c"]}.get(policy, ["a", "b"])
    assert ring.get_many(5) == left and after["depth"] == 2 and after["high_water"] == 2
    assert (after["blocked_full"] > 0) == (policy == "block")


@pytest.mark.parametrize("put", ["put_nowait", "put_many"])
def test_every_put_that_is_refused_is_counted_once(put: str) -> None:
    ring = ring_of("block")
    for _ in range(3):
        with pytest.raises(Overloaded):
            ring.put_nowait("c") if put == "put_nowait" else ring.put_many(["c", "d"], timeout=0.0)
    assert ring.stats().refused == 3
    ring.get()
    assert ring.put_many(["c", "d", "e"], timeout=0.0) == 1  # the rest counts as one
    assert ring.stats().refused == 4


def test_a_ring_is_called_by_its_name() -> None:
    name = f"test overload {os.getpid()}"
    ring = Ring.create(RingSpec(slots=1, on_full="raise"), name=name)
    try:
        ring.put(1)
        with pytest.raises(
            Overloaded, match=rf"the ring {name} holds its 1 messages; take some out.*more slots"
        ) as caught:
            ring.put(2)
        assert (caught.value.capacity, caught.value.where) == (1, name)
        assert Ring.attach(name).stats().refused == 1  # of the ring, not of this object
    finally:
        ring.unlink()


def cast_and_call(ref: Any, policy: str) -> tuple[str, str]:
    def one(put: Callable[[], Any]) -> str:
        try:
            return repr(put())
        except Overloaded as error:
            assert (error.capacity, error.where) == (2, ref.name or ref._label()) and "give it more slots" in str(error)
            return "Overloaded"

    by_call = one(lambda: ref.call("ask", "called", timeout=0.02)) if policy != "drop_oldest" else ""
    return one(lambda: ref.cast("note", "cast", timeout=0.02)), by_call


@pytest.mark.parametrize("policy", MAILBOXES)
def test_a_full_mailbox(policy: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), mailbox=RingSpec(slots=2, on_full=policy))
    holding = hold_server(ref, path)
    assert ref.note("a") is None and ref.note("b") is None
    before = ref.mailbox_stats()
    assert before["depth"] == before["capacity"] == 2 and before["policy"] == policy
    expected = {
        "raise": ("Overloaded", "Overloaded"),
        "block": ("Overloaded", "Overloaded"),
        "drop_oldest": ("True", ""),
        "drop_newest": ("False", "Overloaded"),
    }
    assert cast_and_call(ref, policy) == expected[policy]
    after = ref.mailbox_stats()
    moved = {key: after[key] - before[key] for key in ("refused", "drops", "expired") if after[key] != before[key]}
    times = 1 if policy == "drop_oldest" else 2
    assert moved == {key: value * times for key, value in MAILBOXES[policy][1].items()}
    assert (after["blocked_full"] > 0) == (policy == "block")
    let_go(path)
    assert holding.result(PATIENCE_S) == "went on"
    until(lambda: ref.mailbox_stats()["depth"] == 0)
    ref.ask("end")
    assert lines(path)[1:] == (["b", "cast", "end"] if policy == "drop_oldest" else ["a", "b", "end"])
    ref.stop()


def test_whose_call_is_dropped_hears_so(tmp_path: Path) -> None:
    """And by which policy."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), name="dropping", mailbox=RingSpec(slots=1, on_full="drop_oldest"))
    holding = hold_server(ref, path)
    waiting = ref.request("ask", "old")
    assert ref.note("new") is None
    with pytest.raises(Overloaded, match="server dropping is full: 1 messages, and dropped this call for a newer"):
        waiting.result(PATIENCE_S)
    let_go(path)
    holding.result(PATIENCE_S)
    ref.stop()
    assert "old" not in lines(path) and "new" in lines(path)


def test_requests_and_infos_name_the_server(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), name="named", mailbox=RingSpec(slots=1, on_full="raise"))
    holding = hold_server(ref, path)
    ref.note("a")
    for put in (lambda: ref.info("x"), lambda: ref.request("ask"), lambda: ref.ask(), lambda: ref.note("b")):
        with pytest.raises(
            Overloaded, match="the mailbox of server named is full: 1 messages; call less often"
        ) as caught:
            put()
        assert (caught.value.capacity, caught.value.where) == (1, "named")
    assert ref.mailbox_stats()["refused"] == 4
    let_go(path)
    holding.result(PATIENCE_S)
    ref.stop()


def test_counts_of_a_mailbox_outlive_its_servers(tmp_path: Path) -> None:
    """A SIGKILL of the server in the middle of a handler, and the restart, reset nothing."""
    path = tmp_path / "trace"
    small = RingSpec(slots=1, on_full="raise")
    ref = start(Clerk, str(path), name="lasting", mailbox=small, restart="permanent")
    holding = hold_server(ref, path)
    ref.note("a")
    for _ in range(3):
        with pytest.raises(Overloaded):
            ref.note("b")
    pid = ref.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerDown):
        holding.result(PATIENCE_S)
    until(lambda: lines(path)[1:] == ["a"])  # what was in the mailbox is for the next one
    assert ref.pid != pid and ref.ask("back") == "back"
    assert ref.mailbox_stats()["refused"] == 3
    ref.stop("shutdown")


@pytest.mark.parametrize("policy", POOLS)
def test_a_full_pool(policy: Any, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    from overload_kit import held

    with Pool(1, max_pending=2, on_full=policy, name="full") as pool:
        first, second = pool.submit(held, str(path)), pool.submit(os.getpid)
        if policy == "raise":
            with pytest.raises(
                Overloaded, match="pool full has 2 tasks pending, its max_pending; wait for some"
            ) as caught:
                pool.submit(os.getpid)
            assert (caught.value.capacity, caught.value.where) == (2, "full")
        else:
            late = threading.Timer(0.05, let_go, [path])
            late.start()
            assert pool.submit(os.getpid).result(PATIENCE_S)
            late.join()
        stats = pool.stats()
        assert stats["refused"] == POOLS[policy][1]["refused"] and stats["pending_most"] == 2
        assert (stats["blocked_submit_ns"] > 0) == (policy == "block")
        let_go(path)
        first.result(PATIENCE_S), second.result(PATIENCE_S)
    assert pool.stats()["refused"] == POOLS[policy][1]["refused"] and pool.stats()["pending_most"] == 2


def test_the_table_of_the_manual_is_this_one() -> None:
    """docs/resilience-overload.md has a row for each place and policy, with these words and these counts."""
    text = (ROOT / "docs" / "resilience-overload.md").read_text()
    rows = re.findall(r"^\| (Ring|Mailbox|Pool) \| `(\w+)` \| (.+?) \| (.+?) \|", text, flags=re.M)
    known = {
        (place, policy): (words, {key for key, value in counts.items() if value})
        for place, table in (("Ring", RINGS), ("Mailbox", MAILBOXES), ("Pool", POOLS))
        for policy, (words, counts) in table.items()
    }
    written = {
        (place, policy): (words, set(re.findall(r"`(refused|drops)`", counts))) for place, policy, words, counts in rows
    }
    assert written == known


# ---- bounds under contention
def stuff(ring: Ring, count: int, results: Any) -> None:
    refused = 0
    for number in range(count):
        try:
            ring.put_nowait(number)
        except Overloaded:
            refused += 1
    results.put(refused)


@pytest.mark.parametrize("policy", ["raise", "drop_newest", "drop_oldest"])
def test_what_processes_put_is_in_or_counted(policy: Any) -> None:
    """Four processes put into seven places while two take: in + refused or dropped is what was put, exactly."""
    ring, results = Ring.create(RingSpec(slots=7, on_full=policy)), FORK.SimpleQueue()
    done, taken = threading.Event(), []

    def take() -> None:
        while not done.is_set() or ring.qsize():
            taken.extend(ring.get_many(3, timeout=0.0) if ring.qsize() else [])

    putters = [FORK.Process(target=stuff, args=(ring, 3000, results)) for _ in range(4)]
    for putter in putters:
        putter.start()
    takers = [threading.Thread(target=lambda: _quietly(take)) for _ in range(2)]
    for taker in takers:
        taker.start()
    heard = sum(results.get() for _ in putters)
    for putter in putters:
        putter.join()
        assert putter.exitcode == 0
    done.set()
    for taker in takers:
        taker.join()
    taken.extend(ring.get_many(7) if ring.qsize() else [])
    stats = ring.stats()
    assert stats.refused == heard and (heard == 0) == (policy != "raise")
    assert len(taken) + stats.refused + stats.drops == 12_000 and stats.high_water <= 7
    assert stats.drops == 0 if policy == "raise" else stats.drops > 0


def _quietly(take: Callable[[], None]) -> None:
    while True:
        try:
            return take()
        except queue.Empty:  # the other one was faster
            continue


def put_for_ever(ring: Ring, begun: Any) -> None:
    begun.put(os.getpid())
    while True:
        ring.put(os.getpid())


def test_producers_killed_while_they_wait_for_room_take_nothing_along() -> None:
    """Eight wait at a full ring; four are killed there, in the middle of it; the others go on, and the counts fit."""
    ring, begun = Ring.create(RingSpec(slots=2)), FORK.SimpleQueue()
    putters = [FORK.Process(target=put_for_ever, args=(ring, begun)) for _ in range(8)]
    try:
        for putter in putters:
            putter.start()
        for _ in putters:
            begun.get()
        until(lambda: ring.qsize() == 2)
        for putter in putters[:4]:
            putter.kill()
            putter.join()
        alive = {putter.pid for putter in putters[4:]}
        seen: set[Any] = set()
        until(lambda: seen.add(ring.get(timeout=PATIENCE_S)) or alive <= seen)
    finally:
        for putter in putters:
            putter.kill()
            putter.join()
    left = ring.get_many(2) if ring.qsize() else []
    stats = ring.stats()
    assert stats.depth == 0 and stats.high_water == 2 and stats.refused == 0 and len(left) <= 2
    assert stats.messages_in == stats.messages_out and stats.blocked_full > 0
    assert ring._check()
    assert ring.put(1) is None and ring.get() == 1


def test_a_signal_does_not_lose_the_time_that_a_put_waited() -> None:
    """Seconds blocked are counted, however often the wait was interrupted."""
    ring = ring_of("block")
    seen = []
    old = signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
    begin = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        with pytest.raises(Overloaded):
            ring.put("c", timeout=0.3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert seen and 0.2 < ring.stats().blocked_full <= time.monotonic() - begin


def test_a_mailbox_that_a_restart_empties_counts_what_it_threw_away(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ref = start(
        Clerk, str(path), name="forgetful", restart="permanent", mailbox=RingSpec(slots=8), mailbox_on_restart="drop"
    )
    holding = hold_server(ref, path)
    for number in range(3):
        ref.note(number)
    pid = ref.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ServerDown):
        holding.result(PATIENCE_S)
    until(lambda: ref.pid not in (pid, None))
    assert ref.ask("back") == "back" and lines(path)[1:] == ["back"]
    assert ref.mailbox_stats()["cleared"] == 3
    ref.stop("shutdown")


def test_a_wait_for_a_place_ends_with_the_deadline(tmp_path: Path) -> None:
    """It counts from the call: the future ends in TaskTimeout, the task never runs, and both places count it."""
    from overload_kit import held, trace

    path = tmp_path / "trace"
    with Pool(1, max_pending=1) as pool:
        first = pool.submit(held, str(path))
        until(lambda: lines(path))
        with pytest.raises(TaskTimeout, match="waited for a place among its 1 pending"):
            pool.options(deadline=0.03).submit(trace, str(path), "late").result(PATIENCE_S)
        let_go(path)
        first.result(PATIENCE_S)
        assert pool.options(deadline=PATIENCE_S).submit(trace, str(path), "in time").result(PATIENCE_S) is None
        assert (pool.stats()["expired"], pool.stats()["refused"], pool.stats()["pending_most"]) == (1, 0, 1)
    assert lines(path)[1:] == ["in time"]

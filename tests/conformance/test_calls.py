"""Calls and mailboxes between processes: every call ends, rightly and once, whatever the value and whoever is slow."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import Any

import numpy as np
import pytest
from call_kit import (
    BLOCK,
    CLOSED,
    DOWN,
    ERROR,
    PATIENCE,
    REPLY,
    TARGET,
    TIMEOUT,
    Office,
    Unreadable,
    office,
    wait_until,
)

from shmrt import Overloaded, RingClosed, SegmentError, _native
from shmrt._native import Arena, Calls, Mailbox

VALUES: list[Any] = [None, 5, "text", b"x" * 700, b"y" * 3000, b"z" * 3_000_000, {"a": [1, (2, 3)]}, 1j, frozenset({1})]


def test_values_arrive_as_they_were_sent() -> None:
    """Small ones in the slots, large ones in blocks, none of which is left."""
    with office() as here:
        here.serve()
        before = Arena.default().stats()["blocks_used"]
        for value in VALUES:
            assert here.call("echo", value, 1, key=value) == (REPLY, ("echo", (value, 1), {"key": value}))
        status, answer = here.call("echo", np.arange(50_000.0))
        assert status == REPLY and (answer[1][0] == np.arange(50_000.0)).all()
        del answer
        wait_until(lambda: Arena.default().stats()["blocks_used"] <= before)  # others' may go, too
        assert here.calls._check()


def test_a_value_that_cannot_be_read_is_told_and_blocks_nothing() -> None:
    """In a request it reaches the handler as an exception, in a reply it raises in the caller; its slot is free."""
    with office() as here:
        here.serve()
        assert here.call("echo", Unreadable()) == (ERROR, "ZeroDivisionError('this value cannot be read')")
        with pytest.raises(ZeroDivisionError):
            here.call("unreadable")
        reference = here.begin("unreadable")
        ((collected, status, error),) = here.calls.collect(PATIENCE)
        assert (collected, status) == (reference, ERROR) and isinstance(error, ZeroDivisionError)
        stats = here.calls.stats()
        assert (stats["waiting"], stats["taken"], stats["replied"]) == (0, 0, 0)
        with pytest.raises(TypeError):
            here.call("echo", threading.Lock())
        assert here.call("echo", 1) == (REPLY, ("echo", (1,), None))


def test_a_late_reply_is_dropped_at_the_door() -> None:
    """The caller has gone on: its next call in the same slot gets its own reply."""
    with office() as here:
        begin = time.monotonic()
        assert here.call("late", timeout=0.05) == (TIMEOUT, None)
        assert time.monotonic() - begin >= 0.05
        assert here.take() is None  # nobody wants it done any more
        reference = here.begin("slow", timeout=0.5)
        assert here.take()[:2] == (_native.MAIL_CALL, reference)
        assert here.calls.collect(PATIENCE) == [(reference, TIMEOUT, None)]
        second = here.begin("next")
        assert second >> 32 == reference >> 32  # the same slot
        assert not here.calls.is_waiting(reference) and here.calls.is_waiting(second)
        assert not here.calls.reply(reference, REPLY, "late")
        assert here.calls.reply(second, REPLY, "in time")
        assert not here.calls.reply(second, REPLY, "again")
        assert here.calls.collect(PATIENCE) == [(second, REPLY, "in time")]
        assert here.calls.stats()["replies_dropped"] == 2


def test_a_timeout_of_zero_and_none() -> None:
    with office() as here:
        assert here.call("echo", timeout=0) == (TIMEOUT, None)
        here.serve()
        assert here.call("echo", timeout=None) == (REPLY, ("echo", (), None))
        for timeout in (-1.0, float("nan")):
            with pytest.raises(ValueError):
                here.call("echo", timeout=timeout)
        with pytest.raises(ValueError, match="255"):
            here.call("x" * 256)
        assert here.call("ü" * 127) == (REPLY, ("ü" * 127, (), None))


def test_watched_calls_are_collected_by_one() -> None:
    """In any order, each once; cancelled ones never; a collect ends when it is told to."""
    with office() as here:
        here.serve()
        references = {here.begin("echo", number): number for number in range(40)}
        got: dict[int, Any] = {}
        while len(got) < 40:
            for reference, status, value in here.calls.collect(PATIENCE):
                assert status == REPLY and reference not in got
                got[reference] = value[1][0]
        assert got == references
        kept = here.begin("forget", timeout=None)
        assert here.calls.cancel(kept) and not here.calls.cancel(kept)
        assert here.calls.collect(0) == []
        waker = threading.Thread(target=here.calls.wake)
        waker.start()
        assert here.calls.collect(PATIENCE) == []
        waker.join()
        assert here.calls.stats()["watched"] == 0


def test_a_call_begun_while_another_thread_collects_ends_in_time() -> None:
    """The collector sleeps without an end; a new deadline, or a reply, wakes it."""
    with office() as here:
        found: list[Any] = []

        def collect() -> None:
            while len(found) < 2:
                found.extend(here.calls.collect(None))

        thread = threading.Thread(target=collect, daemon=True)
        thread.start()

        def sleeps() -> bool:
            with open(f"/proc/self/task/{thread.native_id}/stat") as file:
                return here.calls.stats()["idle"] == 1 and file.read().rpartition(")")[2].split()[0] == "S"

        wait_until(sleeps)  # the door is open
        first = here.begin("forget", timeout=0.02)
        wait_until(lambda: found)
        assert found == [(first, TIMEOUT, None)]
        second = here.begin("echo", timeout=None)
        assert here.calls.reply(second, REPLY, 2)
        thread.join(PATIENCE)
        assert found[1:] == [(second, REPLY, 2)]


def test_threads_call_beside_each_other() -> None:
    with office() as here:
        here.serve()
        wrong: list[Any] = []

        def call(who: int) -> None:
            for number in range(200):
                answer = here.call("echo", who, number)
                if answer != (REPLY, ("echo", (who, number), None)):
                    wrong.append(answer)

        threads = [threading.Thread(target=call, args=(who,)) for who in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not wrong and here.calls.stats()["begun"] == 1200
        assert here.calls.stats()["idle"] <= 7


def test_a_forked_child_has_slots_of_its_own() -> None:
    """It inherits the object, not the slots."""
    with office() as here:
        here.serve()
        assert here.call("echo", 1)[0] == REPLY
        watched = here.begin("forget", timeout=None)
        assert here.call("echo", 2)[0] == REPLY and here.calls.stats()["kept"] == 1

        def child() -> None:
            assert here.calls.stats()["kept"] == 0 and here.calls.collect(0) == []
            for number in range(50):
                assert here.call("echo", number) == (REPLY, ("echo", (number,), None))

        pids = [here.fork(child) for _ in range(2)]
        for number in range(50):
            assert here.call("echo", -number) == (REPLY, ("echo", (-number,), None))
        for pid in pids:
            assert os.waitpid(pid, 0)[1] == 0
            del here.children[pid]
        assert here.calls.is_waiting(watched)
        here.calls.reclaim()
        stats = here.calls.stats()
        assert stats["free"] == stats["capacity"] - stats["idle"] - 1 and stats["idle"] == stats["kept"] + 1  # the door


def test_more_calls_than_slots_are_refused() -> None:
    with office(2000) as here:
        references = []
        with pytest.raises(Overloaded) as raised:
            for _ in range(2000):
                references.append(here.begin("forget", timeout=None))
        assert raised.value.where == "calls" and raised.value.capacity == here.calls.stats()["capacity"]
        assert len(references) == raised.value.capacity - 1  # the door is a slot, too
        for reference in references:
            assert here.calls.cancel(reference)
        assert here.calls.stats()["free"] >= raised.value.capacity - 40
        here.serve()
        assert here.call("echo")[0] == REPLY


def test_an_interrupted_call_leaves_nothing_behind() -> None:
    """Ctrl-C ends the wait at once; the slot is the caller's again."""
    with office() as here:

        def child() -> None:
            here.slots.claim(5, 0, 0)
            try:
                here.call("forget", timeout=None)
            except KeyboardInterrupt:
                stats = here.calls.stats()
                assert (stats["waiting"], stats["kept"]) == (0, 1), stats
                return
            raise AssertionError("it was not interrupted")

        pid = here.fork(child)
        wait_until(lambda: here.mailbox.qsize() == 1)
        while os.waitpid(pid, os.WNOHANG)[0] == 0:  # the first may come before it sleeps
            os.kill(pid, signal.SIGINT)
            time.sleep(0.001)
        del here.children[pid]
        assert here.take() is None


def test_a_closed_mailbox_ends_every_call() -> None:
    """Those that wait hear why, those that come later that it is closed."""
    with office() as here:
        results: list[Any] = []
        threads = [threading.Thread(target=lambda: results.append(here.call("forget", timeout=None))) for _ in range(3)]
        for thread in threads:
            thread.start()
        wait_until(lambda: here.mailbox.qsize() == 3)
        other = here.calls.begin(here.mailbox, TARGET + 1, "other", (), None, None)
        here.mailbox.close()
        assert here.calls.fail_waiting(TARGET, ("shutdown", "lost")) == 3
        for thread in threads:
            thread.join(PATIENCE)
        assert results == [(DOWN, ("shutdown", "lost"))] * 3
        assert here.calls.is_waiting(other)
        assert here.mailbox.drop_all(here.calls, "gone") == 4
        assert here.calls.collect(PATIENCE) == [(other, DOWN, "gone")]
        assert here.call("echo") == (CLOSED, None)
        with pytest.raises(RingClosed):
            here.cast("echo")
        with pytest.raises(RingClosed):
            here.begin("echo")


def test_closing_and_failing_race_with_callers() -> None:
    """A put that comes before the close is failed, one that comes after it is told: nobody waits on."""
    for _ in range(30):
        with office(8) as here:
            results: list[Any] = []

            def call(here: Office = here, results: list[Any] = results) -> None:
                while not results or results[-1][0] not in (CLOSED, DOWN):
                    results.append(here.call("echo", timeout=None))

            here.serve()
            threads = [threading.Thread(target=call) for _ in range(2)]
            for thread in threads:
                thread.start()
            wait_until(lambda results=results: len(results) > 10)
            pid = next(iter(here.children))
            os.kill(pid, signal.SIGKILL)
            here.bury(pid, "killed")
            here.mailbox.close()
            here.calls.fail_waiting(TARGET, "lost")
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()


def test_a_reason_of_any_length_arrives() -> None:
    """In blocks if it needs them; cut short only if there is no memory for it."""
    with office() as here:
        reason = ("error", "ValueError", "x" * 5000, "y" * 100_000)
        reference = here.begin("forget", timeout=None)
        here.mailbox.close()
        assert here.calls.fail_waiting(TARGET, reason) == 1
        assert here.calls.collect(PATIENCE) == [(reference, DOWN, reason)]
        with pytest.raises(TypeError):
            here.calls.fail_all(threading.Lock())


def test_what_does_not_fit_together_is_refused() -> None:
    with office() as here:
        with pytest.raises(TypeError):
            here.calls.call(object(), TARGET, "x", (), None, None)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            here.calls.call(here.mailbox, TARGET, "x", [], None, None)  # type: ignore[arg-type]
        with pytest.raises(ValueError):
            here.mailbox.cast(_native.MAIL_CALL, "x", (), None, None)
        with pytest.raises(ValueError):
            here.calls.reply(0, 99, None)
        with pytest.raises(SegmentError):
            Mailbox.attach(here.slots.fd)
        assert not here.calls.reply(2**64 - 1, REPLY, None)
        again = Mailbox.attach(here.mailbox.fd)
        assert (again.token, again.inode, again.capacity, again.on_full) == (
            here.mailbox.token,
            here.mailbox.inode,
            64,
            BLOCK,
        )
        assert again.cast(_native.MAIL_INFO, "info", (1,), {"a": 2}, None)
        assert here.take() == (_native.MAIL_INFO, 0, "info", (1,), {"a": 2})
        kept = Calls(here.slots)
        kept.reserve()
        kept.reserve()
        assert kept.stats()["capacity"] == _native.LAYOUT["CALLS_DEFAULT"]
    with pytest.raises(TypeError, match="open"):
        here.call("echo")

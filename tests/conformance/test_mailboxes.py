"""Mailboxes: what a full one does by policy, what a stopped or dead process leaves, and that the root is heard."""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import signal
import struct
import threading
import time
from typing import Any

import pytest
from call_kit import (
    BLOCK,
    CLOSED,
    DROP_NEWEST,
    DROP_OLDEST,
    OVERLOADED,
    PATIENCE,
    RAISE,
    REPLY,
    TIMEOUT,
    Office,
    office,
    wait_until,
)

from shmrt import Overloaded, RingClosed, SegmentError, _native

# ---- policies


def test_block_waits_for_room() -> None:
    """As long as it may; then a full mailbox is called by its name."""
    with office(2, BLOCK) as here:
        assert here.cast("a") and here.cast("b")
        begin = time.monotonic()
        with pytest.raises(Overloaded) as raised:
            here.cast("c", timeout=0.03)
        assert (raised.value.capacity, raised.value.where) == (2, "mailbox")
        assert here.call("c", timeout=0.03) == (OVERLOADED, None)
        with pytest.raises(Overloaded):
            here.begin("c", timeout=0.03)
        assert time.monotonic() - begin >= 0.09
        thread = threading.Thread(target=here.cast, args=("d",))
        thread.start()
        assert here.take()[2] == "a"
        thread.join(PATIENCE)
        assert [here.take()[2], here.take()[2], here.take()] == ["b", "d", None]


@pytest.mark.parametrize("policy", [RAISE, DROP_NEWEST])
def test_raise_and_drop_newest_wait_for_nothing(policy: int) -> None:
    """A call ends at once; a cast raises, or is dropped and counted."""
    with office(2, policy) as here:
        assert here.cast("a") and here.cast("b")
        begin = time.monotonic()
        assert here.call("c", timeout=PATIENCE) == (OVERLOADED, None)
        if policy == RAISE:
            with pytest.raises(Overloaded):
                here.cast("c", timeout=PATIENCE)
        else:
            assert here.cast("c") is False
        with pytest.raises(Overloaded):
            here.begin("c", timeout=PATIENCE)
        assert time.monotonic() - begin < PATIENCE / 2
        assert here.mailbox.stats()["drops"] == (0 if policy == RAISE else 3)
        assert [here.take()[2], here.take()[2], here.take()] == ["a", "b", None]
        stats = here.calls.stats()
        assert (stats["waiting"], stats["watched"]) == (0, 0)


def test_drop_oldest_tells_whose_call_it_drops() -> None:
    """At once, however patient that caller is; casts are dropped silently and counted."""
    with office(2, DROP_OLDEST) as here:
        first = here.begin("first", timeout=None)
        assert here.cast("second") and here.cast("third")
        assert here.calls.collect(PATIENCE) == [(first, OVERLOADED, None)]
        fourth = here.begin("fourth", timeout=None)
        assert [message[2] for message in (here.take(), here.take())] == ["third", "fourth"]
        assert here.mailbox.stats()["drops"] == 2
        assert here.calls.reply(fourth, REPLY, 4) and here.calls.collect(PATIENCE) == [(fourth, REPLY, 4)]
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(here.call("fifth", timeout=None)))
        thread.start()
        wait_until(lambda: here.mailbox.qsize() == 1)
        assert here.cast("sixth") and here.cast("seventh")
        thread.join(PATIENCE)
        assert results == [(OVERLOADED, None)]


def test_a_callers_place_is_free_when_the_mailbox_closes() -> None:
    """Who waits for room hears it, too."""
    with office(1, BLOCK) as here:
        assert here.cast("a")
        results: list[Any] = []

        def cast() -> None:
            with pytest.raises(RingClosed):
                here.cast("b")
            results.append("closed")

        threads = [
            threading.Thread(target=cast),
            threading.Thread(target=lambda: results.append(here.call("c", timeout=None))),
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: here.calls.stats()["waiting"] == 1)
        here.mailbox.close()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(results, key=str) == [(CLOSED, None), "closed"]
        assert here.take()[2] == "a" and here.take() is None


# ---- a holder of the mutex that is stopped


def hold_mutex(here: Office) -> None:
    """Locks the mailbox's mutexes in this process, and stops."""
    memory = mmap.mmap(here.mailbox.fd, 4096)
    for name in ("put_mutex", "take_mutex"):
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + _native.LAYOUT[f"ring_shared.{name}"]
        assert ctypes.CDLL(None).pthread_mutex_lock(ctypes.c_void_p(address)) == 0
    os.kill(os.getpid(), signal.SIGSTOP)


def test_a_stopped_holder_makes_nobody_late() -> None:
    """Calls, casts, takes and the root's close end in time; when it dies, all is as if it had never been."""
    with office(4, BLOCK) as here:
        here.cast("a")
        pid = here.fork(lambda: hold_mutex(here))
        os.waitpid(pid, os.WUNTRACED)
        begin = time.monotonic()
        assert here.call("b", timeout=0.05) == (TIMEOUT, None)
        with pytest.raises(Overloaded):
            here.cast("c", timeout=0.05)
        with pytest.raises(Overloaded):
            here.begin("d", timeout=0.05)
        assert here.take(0.05) is None
        assert 0.2 <= time.monotonic() - begin < 5
        stats = here.calls.stats()
        assert (stats["waiting"], stats["watched"]) == (0, 0)
        os.kill(pid, signal.SIGKILL)
        here.bury(pid)
        assert here.cast("e") and [here.take()[2], here.take()[2], here.take()] == ["a", "e", None]
        assert here.mailbox.stats()["repairs"] <= 1
        pid = here.fork(lambda: hold_mutex(here))
        os.waitpid(pid, os.WUNTRACED)
        results: list[Any] = []
        thread = threading.Thread(target=lambda: results.append(here.call("f", timeout=None)))
        thread.start()
        wait_until(lambda: here.calls.stats()["waiting"] == 1)
        here.mailbox.close()
        assert here.calls.fail_waiting(7, "lost") == 1
        os.kill(pid, signal.SIGKILL)
        here.bury(pid)
        thread.join(PATIENCE)
        assert results and results[0][0] != REPLY and here.call("g") == (CLOSED, None)


# ---- the root


def test_a_parked_server_hears_the_root() -> None:
    """Again and again, at every moment of its falling asleep: no wake-up is lost."""
    with office() as here:
        back = os.pipe()

        def serve() -> None:
            here.slots.claim(3, 0, 0)
            here.slots.set_process(3, os.getpid())
            here.slots.ready(3)
            seen = 0
            while seen < 3000:
                message = here.mailbox.take(here.calls, here.slots, 3, seen, None)
                assert message == seen + 1
                seen += 1
                os.write(back[1], b".")

        pid = here.fork(serve)
        wait_until(lambda: here.slots.state(3) == _native.SLOT_READY)
        for number in range(3000):
            if number % 100 == 0:
                wait_until(lambda: here.slots.info(3)["phase"] == _native.PHASE_PARKED)
            assert here.slots.send_control(3) == number + 1
            here.mailbox.ring()
            assert select.select([back[0]], [], [], PATIENCE)[0], "it sleeps on"
            assert os.read(back[0], 1) == b"."
        assert here.slots.control_count(3) == 3000
        assert os.waitpid(pid, 0)[1] == 0
        del here.children[pid]
        for descriptor in back:
            os.close(descriptor)


def test_what_the_root_says_comes_before_messages() -> None:
    with office() as here:
        here.cast("a")
        here.slots.send_control(2)
        assert here.take(seen=0) == 1
        assert here.take(seen=1)[2] == "a"
        here.slots.request_stop(2)
        assert here.take(seen=1) == 1  # stop is asked for: the same number again


def test_phase_and_counts_of_a_server() -> None:
    """What status shows: what it does, since when, and how much it did."""
    with office() as here:
        phases: list[int] = []

        class Looks:
            def __reduce__(self) -> Any:
                return int, (3,)

        here.mailbox.cast(_native.MAIL_CAST, "look", (Looks(),), None, None)
        assert here.take() == (_native.MAIL_CAST, 0, "look", (3,), None)
        phases.append(here.slots.info(2)["phase"])
        assert here.slots.info(2)["task_start_ns"] > 0
        here.mailbox.done(here.slots, 2)
        info = here.slots.info(2)
        assert phases == [_native.PHASE_RUN] and info["phase"] == _native.PHASE_SPIN
        assert (info["started"], info["done"]) == (1, 1) and info["busy_ns"] > 0
        assert here.take(0.001) is None


def test_an_idle_server_sleeps() -> None:
    """No timer, no spinning: it is switched to and from the CPU not once."""
    with office() as here:
        pid = here.serve()
        index = here.next_slot - 1
        assert here.call("echo")[0] == REPLY
        wait_until(lambda: here.slots.info(index)["phase"] == _native.PHASE_PARKED)

        def switches() -> list[str]:
            with open(f"/proc/{pid}/status") as file:
                return [line for line in file if "ctxt_switches" in line]

        wait_until(lambda: open(f"/proc/{pid}/wchan").read() != "0")  # noqa: SIM115
        before = switches()
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            time.sleep(0.001)
        assert switches() == before


# ---- bytes that no writer leaves


def test_damaged_words_are_refused() -> None:
    """An envelope, a reply: SegmentError in whoever reads it, and the next one is fine."""
    with office() as here:
        layout = _native.LAYOUT
        here.cast("a" * 20)
        memory = mmap.mmap(here.mailbox.fd, 0)
        at = memory.find(b"a" * 20) - layout["mail_envelope"]
        memory[at] = 9  # no such kind
        with pytest.raises(SegmentError):
            here.take()
        here.cast("b" * 20)
        at = memory.find(b"b" * 20) - layout["mail_envelope"]
        memory[at + layout["mail_envelope.name_size"]] = 255  # longer than the message
        with pytest.raises(SegmentError):
            here.take()
        here.cast("c")
        assert here.take()[2] == "c"
        memory.close()
        reference = here.begin("d", timeout=None)
        assert here.take()[1] == reference and here.calls.reply(reference, REPLY, "fine")
        control = mmap.mmap(here.slots.fd, 0)
        (calls_offset,) = struct.unpack_from("<Q", control, layout["control.calls_offset"])
        slot = calls_offset + (reference >> 32) * layout["call_slot"]
        struct.pack_into("<I", control, slot + layout["call_slot.inline_size"], 2**31)
        control.close()
        ((_, status, error),) = here.calls.collect(PATIENCE)
        assert status == _native.CALL_ERROR and isinstance(error, SegmentError)
        assert here.calls._check()

"""SIGKILL at any moment of a caller or a server: every call ends, none runs twice, no slot and no block is lost."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from typing import Any

import numpy as np
from call_kit import DOWN, OVERLOADED, PATIENCE, REPLY, TIMEOUT, Office, office, wait_until

from shmrt import _native
from shmrt._native import Arena


def test_the_call_that_a_server_died_of_ends_at_once() -> None:
    """Those behind it stay, and the next incarnation takes them; the fatal one never comes back."""
    with office() as here:
        pid = here.serve()
        os.kill(pid, signal.SIGSTOP)  # so that all of them wait
        results: dict[int, Any] = {}

        def call(number: int) -> None:
            results[number] = here.call("die" if number == 0 else "echo", number, timeout=None)

        threads = []
        for number in range(3):
            threads.append(threading.Thread(target=call, args=(number,)))
            threads[-1].start()
            wait_until(lambda number=number: here.mailbox.qsize() == number + 1)
        os.kill(pid, signal.SIGCONT)
        assert here.bury(pid, ("signal", "SIGKILL")) == 1
        threads[0].join(PATIENCE)
        assert results == {0: (DOWN, ("signal", "SIGKILL"))}
        here.serve()
        for thread in threads:
            thread.join(PATIENCE)
        assert results[1] == (REPLY, ("echo", (1,), None)) and results[2] == (REPLY, ("echo", (2,), None))


def test_a_call_taken_and_passed_on_is_failed_with_its_taker() -> None:
    """noreply: the taker keeps the reference. Somebody else may answer it, once, and then the death changes nothing."""
    with office() as here:
        pid = here.serve(lambda *_: None)
        kept, answered = here.begin("keep", timeout=None), here.begin("keep", timeout=None)
        wait_until(lambda: here.calls.stats()["taken"] == 2)

        def answer() -> None:
            assert here.calls.reply(answered, REPLY, os.getpid())

        other = here.fork(answer)
        assert here.calls.collect(PATIENCE) == [(answered, REPLY, other)]
        here.bury(other)
        os.kill(pid, signal.SIGKILL)
        assert here.bury(pid, "killed") == 1
        assert here.calls.collect(PATIENCE) == [(kept, DOWN, "killed")]


def test_what_dead_callers_had_is_reclaimed() -> None:
    """Slots, replies that nobody read, and their blocks."""
    with office() as here:
        before = Arena.default().stats()["blocks_used"]

        def child() -> None:
            for number in range(5):
                here.begin("forget", np.zeros(5000), number, timeout=None)
            os.kill(os.getpid(), signal.SIGKILL)

        pid = here.fork(child)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        references = [here.take()[1] for _ in range(4)]
        for reference in references[:2]:
            assert here.calls.reply(reference, REPLY, np.ones(5000))
        here.bury(pid)
        assert not here.calls.reply(references[2], REPLY, np.ones(5000))
        assert here.take() is None  # nobody waits for the fifth
        stats = here.calls.stats()
        assert stats["free"] == stats["capacity"]
        assert Arena.default().stats()["blocks_used"] <= before


def test_the_end_of_everything_reaches_everybody() -> None:
    """fail_all: waiting, taken, and what dead writers left."""
    with office() as here:
        here.serve(lambda *_: None)
        taken = here.begin("keep", timeout=None)
        wait_until(lambda: here.calls.stats()["taken"] == 1)
        pid = next(iter(here.children))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        del here.children[pid]
        waiting = here.begin("wait", timeout=None)
        assert here.calls.fail_all("the runtime ends") == 2
        ended = sorted(here.calls.collect(PATIENCE))
        assert ended == sorted([(taken, DOWN, "the runtime ends"), (waiting, DOWN, "the runtime ends")])


def chaos(here: Office, seed: int, seconds: float) -> None:
    draw = random.Random(seed)
    counts = {REPLY: 0, DOWN: 0, TIMEOUT: 0, OVERLOADED: 0}  # a full mailbox, and no patience

    def payload(number: int) -> Any:
        return (number, b"x" * 100, np.full(2000, number))[number % 3]

    def is_echo(value: Any, number: int) -> bool:
        sent = payload(number)
        return bool(np.array_equal(value[1][1], sent)) and value[1][0] == number

    def client() -> None:  # killed at any moment
        number = 0
        while True:
            status, value = here.call("echo", number, payload(number), timeout=None if number % 4 else 0.0005)
            assert status in counts and (status != REPLY or is_echo(value, number))
            number += 1

    done = threading.Event()
    wrong: list[Any] = []

    def survivor() -> None:
        number = 0
        while not done.is_set():
            name = "echo" if number % 100 else "die"  # so that some calls surely meet a death
            status, value = here.call(name, number, payload(number), timeout=None if number % 7 else 0.0005)
            counts[status] += 1
            if status == REPLY and not is_echo(value, number):
                wrong.append(value)
            number += 1

    thread = threading.Thread(target=survivor)
    servers, clients = [here.serve() for _ in range(2)], [here.fork(client) for _ in range(2)]
    thread.start()
    end = time.monotonic() + seconds
    while time.monotonic() < end or counts[REPLY] <= 50 or counts[DOWN] == 0:
        time.sleep(draw.random() * 0.004)
        victims = servers if draw.random() < 0.6 else clients
        index = draw.randrange(2)
        os.kill(victims[index], signal.SIGKILL)
        here.bury(victims[index])
        here.next_slot = _native.SLOT_FIRST_WORKER
        if victims is clients:
            clients[index] = here.fork(client)
        else:
            victims[index] = restart(here)
    done.set()
    last = time.monotonic() + PATIENCE
    while thread.is_alive() and time.monotonic() < last:  # its last call may have killed a server
        for index, pid in enumerate(servers):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                here.bury(pid)
                servers[index] = restart(here)
        thread.join(0.001)
    assert not thread.is_alive() and not wrong, wrong


def restart(here: Office) -> int:
    """In a slot that nobody has: the one of the server that is gone."""
    for index in range(_native.SLOT_FIRST_WORKER, here.slots.count):
        if here.slots.state(index) == _native.SLOT_READY and here.slots.info(index)["pid"] not in here.children:
            here.slots.gone(index, 0, False)
            here.slots.free(index)
        if here.slots.state(index) == _native.SLOT_EMPTY:
            here.next_slot = index
            return here.serve()
    raise AssertionError("no slot")


def test_kills_at_random_moments() -> None:
    """Servers and clients die all the time; a living caller is never left waiting and never gets another's reply."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    before = Arena.default().stats()["blocks_used"]
    with office(8) as here:
        chaos(here, seed, 3.0)
        for pid in list(here.children):
            os.kill(pid, signal.SIGKILL)
            here.bury(pid)
        here.mailbox.close()
        here.mailbox.drop_all(here.calls, "over")
        here.calls.reclaim()
        assert here.calls._check()
        stats = here.calls.stats()
        assert stats["free"] + stats["idle"] == stats["capacity"] and stats["idle"] <= 2
        wait_until(lambda: Arena.default().reclaim_dead() >= 0 and Arena.default().stats()["blocks_used"] <= before)

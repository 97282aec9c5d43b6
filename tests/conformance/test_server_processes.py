"""Servers in real processes: calls through shared memory, and who hears of which death."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
from server_root import Root, in_another_process, root

import shmrt
from shmrt import Server, ServerDown, call, cast, noreply


@pytest.fixture
def r() -> Iterator[Root]:
    with root() as made:
        yield made


class Counter(Server):
    def init(self, start: int = 0, trap: bool = False) -> None:
        self.n = start
        self.trap_exit = trap
        self.kept: list[Any] = []

    @call
    def add(self, by: Any = 1) -> Any:
        self.n = self.n + by
        return self.n

    @cast
    def reset(self) -> None:
        self.n = 0

    @call
    def process(self) -> int:
        return os.getpid()

    @call
    def later(self) -> Any:
        self.kept.append(self.sender)
        return noreply

    @call
    def senders(self) -> list[Any]:
        return self.kept

    @call
    def hang(self, started: int) -> None:
        os.write(started, b"x")
        time.sleep(3600)

    @call
    def ask_other(self, other: Any, by: int) -> int:
        answer: int = other.add(by)
        return answer

    def terminate(self, reason: Any) -> None:
        if self.kept and isinstance(self.kept[0], int):
            os.write(self.kept[0], repr(reason).encode())

    def handle_info(self, message: Any) -> None:
        self.kept.append(message)


def test_calls_casts_and_infos_reach_another_process(r: Root) -> None:
    server = r.start(Counter, 10, name="counter")
    ref = server.ref
    assert ref.process() == server.pid != os.getpid()
    assert ref.add(5) == 15
    ref.reset()
    assert ref.add() == 1 and ref.call("add", by=2) == 3
    ref.info(("any", {"thing": 1}))
    assert ref.senders() == [("any", {"thing": 1})]
    with pytest.raises(AttributeError, match="server counter has no handler 'nope'"):
        ref.call("nope")
    assert ref.request("add").result(60) == 4
    ref.stop(("shutdown", "enough"))
    assert server.reason == ("shutdown", "enough")
    with pytest.raises(ServerDown) as caught:
        ref.stop()
    assert caught.value.reason == "noproc"


def test_large_values_travel_by_reference(r: Root) -> None:
    ref = r.start(Counter, numpy.zeros(200_000)).ref
    assert ref.add(numpy.ones(200_000)).sum() == 200_000
    assert ref.add(1.0).sum() == 400_000


def test_an_exception_comes_from_its_process(r: Root) -> None:
    server = r.start(Counter, 1, name="counter")
    with pytest.raises(TypeError) as caught:
        server.ref.add("text")
    assert f"in server counter (pid {server.pid})" in str(caught.value.__cause__)
    assert server.wait()[:2] == ("error", "TypeError")


def test_a_ref_and_a_sender_work_in_any_process(r: Root) -> None:
    ref = r.start(Counter, 1).ref
    future = ref.request("later")
    senders = ref.senders()
    data = pickle.dumps((ref, senders[0]))

    def elsewhere() -> Any:
        other, sender = pickle.loads(data)
        return os.getpid(), other.add(5), other == ref, Server.reply(sender, "from elsewhere"), Server.reply(sender, 2)

    pid, *rest = in_another_process(r, elsewhere)
    assert pid != os.getpid() and rest == [6, True, True, False]
    assert future.result(60) == "from elsewhere"


def test_servers_call_each_other_and_not_themselves(r: Root) -> None:
    first, second = r.start(Counter, 100).ref, r.start(Counter, 200).ref
    assert first.ask_other(second, 1) == 201
    with pytest.raises(RuntimeError, match="called itself"):
        first.ask_other(first, 1)


def test_a_server_killed_in_a_call_is_known_to_its_caller_at_once(r: Root) -> None:
    reader, writer = os.pipe()
    server = r.start(Counter, 1)
    hanging = server.ref.request("hang", writer)
    os.read(reader, 1)
    waiting = server.ref.request("add", 5)
    server.ref.reset()
    assert server.kill() == "killed"
    with pytest.raises(ServerDown) as caught:
        hanging.result(60)
    assert caught.value.reason == "killed" and not waiting.done()
    server.start()
    assert waiting.result(60) == 6, "what was in the mailbox waits for the next incarnation, in order"
    assert server.ref.add() == 1
    os.close(reader)
    os.close(writer)


def test_those_whose_answer_was_put_off_hear_of_the_death(r: Root) -> None:
    server = r.start(Counter)
    futures = [server.ref.request("later") for _ in range(3)]
    assert len(server.ref.senders()) == 3
    server.kill()
    for future in futures:
        with pytest.raises(ServerDown):
            future.result(60)


@pytest.mark.parametrize("inside", [False, True])
def test_term_is_a_shutdown(r: Root, inside: bool) -> None:
    reader, writer = os.pipe()
    server = r.start(Counter)
    server.ref.info(writer)
    if inside:
        future = server.ref.request("hang", writer)
        assert os.read(reader, 1) == b"x"
    else:
        assert server.ref.senders() == [writer]
    os.kill(server.pid, signal.SIGTERM)
    server.tell("shutdown")
    assert server.wait() == "shutdown"
    assert os.read(reader, 100) == b"'shutdown'", "terminate has run"
    if inside:
        with pytest.raises(ServerDown) as caught:
            future.result(60)
        assert caught.value.reason == "shutdown"
    os.close(reader)
    os.close(writer)


def test_state_from_outside(r: Root) -> None:
    ref = r.start(Counter, 1).ref
    ref.reset()
    assert shmrt.get_state(ref) == {"n": 0, "kept": []}
    assert shmrt.replace_state(ref, lambda state: {**state, "n": 41})["n"] == 41
    assert ref.add() == 42


@pytest.mark.slow
def test_many_callers_of_a_small_mailbox_lose_nothing(r: Root) -> None:
    ref = r.start(Counter, 0, slots=2).ref
    rounds = 300
    totals: list[Any] = []
    data = pickle.dumps(ref)

    def work() -> None:
        mine = pickle.loads(data)
        for _ in range(rounds):
            mine.call("add", 1, timeout=60)

    threads = [threading.Thread(target=work) for _ in range(3)]
    threads.append(threading.Thread(target=lambda: totals.append(in_another_process(r, work))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert totals == [None] and ref.add(0) == 4 * rounds

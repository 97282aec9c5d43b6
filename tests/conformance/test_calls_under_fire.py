"""Ten thousand calls against a server that is killed every 50 ms: each has one end, and it is its own."""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import random
import threading
import time
from typing import Any

import pytest
from tree_kit import PATIENCE_S, until

from shmrt import CallTimeout, Child, Runtime, Server, ServerDown, Supervisor, TaskSupervisor, call, whereis

FOR_EVER = {"max_restarts": 1_000_000, "max_seconds": 1.0}


class Echo(Server):
    """Gives back what it is asked, now and then after a while."""

    @call
    def echo(self, value: Any, seconds: float = 0.0) -> Any:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.0005)
        return value


def ask(name: str, caller: int, count: int, seconds: float) -> dict[str, int]:
    """In any process: how the calls ended. AssertionError for an answer that belongs to another call."""
    ends: collections.Counter[str] = collections.Counter()
    ref = until(lambda: whereis(name))
    for number in range(count):
        question = (caller, number)
        try:
            answer = ref.call("echo", question, seconds if number % 10 == 0 else 0.0, timeout=PATIENCE_S)
        except ServerDown:
            ends["down"] += 1
        except CallTimeout:
            ends["timeout"] += 1
        else:
            assert answer == question, (answer, question)
            ends["answer"] += 1
    return dict(ends)


def fire(count: int, callers: int, seconds: float, seed: int) -> tuple[collections.Counter[str], int]:
    """`callers` threads of the program and as many processes; every one of its calls ends."""
    rng = random.Random(seed)
    over = threading.Event()
    kills = 0
    total: collections.Counter[str] = collections.Counter()
    tree = Supervisor([Child(Echo, name="echo"), Child(TaskSupervisor(name="tasks"))], **FOR_EVER)
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()

        def kill() -> None:
            nonlocal kills
            while not over.wait(rng.uniform(0.04, 0.06)):
                pid = supervisor.which_child("echo")[1]
                if isinstance(pid, int):
                    with contextlib.suppress(ProcessLookupError):  # the one before, whose death is not told yet
                        os.kill(pid, 9)
                        kills += 1

        killer = threading.Thread(target=kill)
        killer.start()
        each = count // (2 * callers)
        tasks = TaskSupervisor(name="tasks")
        others = [tasks.async_nolink(ask, "echo", callers + number, each, seconds) for number in range(callers)]
        found: list[dict[str, int]] = []
        threads = [
            threading.Thread(target=lambda number=number: found.append(ask("echo", number, each, seconds)))  # type: ignore[misc]
            for number in range(callers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found += [task.result(PATIENCE_S) for task in others]
        over.set()
        killer.join()
        for ends in found:
            total.update(ends)
        assert len(found) == 2 * callers and sum(total.values()) == 2 * callers * each
        assert until(lambda: whereis("echo")).call("echo", 1, timeout=PATIENCE_S) == 1
        stats = runtime._home.calls.stats()
        until(lambda: runtime._home.calls.stats()["waiting"] == 0)
        assert stats["corrupt"] == 0
    return total, kills


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """For this test, not for those after it in the same process."""
    caplog.set_level(logging.CRITICAL, logger="shmrt.supervisor")


@pytest.mark.slow
def test_two_thousand_calls_under_fire() -> None:
    """The same, short enough for every run."""
    seed = random.randrange(2**31)
    print(f"seed {seed}")
    total, kills = fire(2_000, 2, 0.01, seed)
    print(dict(total), kills, "kills")
    assert total["answer"] and kills and not total["timeout"]


@pytest.mark.stress
def test_ten_thousand_calls_under_fire() -> None:
    """10,000 calls, a SIGKILL every 50 ms: an answer, ServerDown or CallTimeout; none hangs, none is another's."""
    for seconds in (0.0, 0.005):
        seed = random.randrange(2**31)
        total, kills = fire(10_000, 2, seconds, seed)
        print(f"seed {seed}: {dict(total)}, {kills} kills")
        assert total["answer"] and kills and not total["timeout"]

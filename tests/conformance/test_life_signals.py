"""Ctrl-C and SIGTERM: the terminal's signal goes to the whole group, the program alone decides."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from life_kit import Program

PRELUDE = """
import os, sys, time, threading
import shmrt
def sleep_for(s): time.sleep(s); return s
def say(*words): print(*words, flush=True)
def caught(work):
    try:
        work()
    except KeyboardInterrupt:
        say("interrupted")
        raise SystemExit(130)
    say("not interrupted")
"""

BLOCKED_IN = {
    "result": "pool.submit(sleep_for, 1000).result()",
    "map": "list(pool.map(sleep_for, [1000] * 8))",
    "map_unordered": "list(pool.map_unordered(sleep_for, [1000] * 8))",
    "call": "pool.call(sleep_for, 1000)",
    "drain": "pool.submit(sleep_for, 1000), pool.drain()",
    "leaving the with block": "pool.submit(sleep_for, 1000)",
    "concurrent.futures.wait": "__import__('concurrent.futures').futures.wait([pool.submit(sleep_for, 1000)])",
}


@pytest.mark.parametrize("place", BLOCKED_IN)
def test_ctrl_c_interrupts_the_program_wherever_it_waits(place: str) -> None:
    """One SIGINT to the group: KeyboardInterrupt in the program, no traceback of a worker, nothing left."""
    source = f"""{PRELUDE}
def work():
    with shmrt.Pool(2) as pool:
        started = pool.submit(sleep_for, 0)
        started.result()
        threading.Thread(target=lambda: (watch(pool), say("ready")), daemon=True).start()
        {BLOCKED_IN[place]}
def watch(pool):
    while not pool.stats()["running"]: time.sleep(0.001)
caught(work)
"""
    with Program(source) as program:
        assert program.line() == "ready"
        os.killpg(program.pid, signal.SIGINT)
        status, out, err = program.end()
        assert (status, out) == (130, "interrupted\n"), err
        assert "Traceback" not in err
        _, left = program.seconds_until_nobody()
        assert not left


def test_workers_ignore_the_terminals_interrupt() -> None:
    """The program handles SIGINT itself and goes on; no worker died of it."""
    source = f"""{PRELUDE}
import signal
signal.signal(signal.SIGINT, lambda *_: say("seen"))
with shmrt.Pool(2) as pool:
    pool.submit(sleep_for, 0).result()
    pids = sorted(row["pid"] for row in pool._core.workers())
    futures = [pool.submit(sleep_for, 0.3) for _ in range(4)]
    say("ready")
    print(sum(future.result() for future in futures), pool.stats()["restarts"])
"""
    with Program(source) as program:
        assert program.line() == "ready"
        os.killpg(program.pid, signal.SIGINT)
        status, out, err = program.end()
        assert (status, out) == (0, "seen\n1.2 0\n"), err


def test_a_second_interrupt_ends_the_wait() -> None:
    """Leaving by an exception kills after the grace time; a second Ctrl-C does not wait for that."""
    source = f"""{PRELUDE}
try:
    with shmrt.Pool(1) as pool:
        pool.submit(sleep_for, 0).result()
        future = pool.submit(sleep_for, 1000)
        while not future.running(): pass
        try:
            say("ready")
            future.result()
        except KeyboardInterrupt:
            say("first")
            raise ValueError("on its way out") from None
except KeyboardInterrupt:
    say("second")
except ValueError:
    say("left")
"""
    with Program(source) as program:
        assert program.line() == "ready"
        os.kill(program.pid, signal.SIGINT)
        assert program.line() == "first"
        os.kill(program.pid, signal.SIGINT)
        status, out, err = program.end()
        assert out == "second\n", (status, out, err)
        _, left = program.seconds_until_nobody()
        assert not left


def test_sigterm_leaves_nothing() -> None:
    """The default action of SIGTERM ends the program at once; the root takes the rest along."""
    source = f"""{PRELUDE}
pool = shmrt.Pool(2)
pool.submit(sleep_for, 0).result()
futures = [pool.submit(sleep_for, 1000) for _ in range(4)]
say("ready")
futures[0].result()
"""
    with Program(source) as program:
        assert program.line() == "ready"
        program.kill(signal.SIGTERM)
        status, _, _ = program.end()
        assert status == -signal.SIGTERM
        _, left = program.seconds_until_nobody()
        assert not left

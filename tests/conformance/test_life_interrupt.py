"""Ctrl-C in two stages: the first ends what waits and gives what runs a moment, the second ends everything at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from life_kit import Program

PRELUDE = """
import os, sys, threading, time
import shmrt, shmrt.pool, shmrt.runtimes
shmrt.pool._GRACE_S = shmrt.runtimes._GRACE_S = float(sys.argv[1])
def s(x):
    print("in", flush=True)
    time.sleep(x)
def begun(pool, count=1):
    while pool.stats()["running"] < count: pass
    print("go", flush=True)
"""
WAITS = {
    "result": "    f = pool.submit(s, 1000); begun(pool); f.result()",
    "exception": "    f = pool.submit(s, 1000); begun(pool); f.exception()",
    "call": "    threading.Thread(target=begun, args=(pool,), daemon=True).start(); pool.call(s, 1000)",
    "map": "    r = pool.map(s, [1000] * 6); begun(pool, 2); list(r)",
    "map_unordered": "    r = pool.map_unordered(s, [1000] * 6); begun(pool, 2); list(r)",
    "as_completed": "    import concurrent.futures as c\n"
    "    f = pool.submit(s, 1000); begun(pool); list(c.as_completed([f]))",
    "concurrent.futures.wait": "    import concurrent.futures as c\n"
    "    f = pool.submit(s, 1000); begun(pool); c.wait([f])",
    "shutdown": "    f = pool.submit(s, 1000); begun(pool); pool.shutdown()",
    "leaving with": "    f = pool.submit(s, 1000); begun(pool)",
    "drain": "    f = pool.submit(s, 1000); begun(pool); pool.drain()",
    "full pool": "    q = shmrt.Pool(1, max_pending=1); q.submit(s, 1000); begun(q); q.submit(s, 1000)",
    "interpreter exit": "    q = shmrt.Pool(1); q.submit(s, 1000); begun(q)",
    "asyncio": "    import asyncio\n"
    "    async def main():\n        f = pool.submit(s, 1000); begun(pool); await f\n    asyncio.run(main())",
}


def lines_until_go(program: Program) -> None:
    while program.line() != "go":
        pass


@pytest.mark.slow
@pytest.mark.parametrize("wait", WAITS)
def test_first_interrupt_ends_any_wait(wait):
    """A long task is under way and a terminal sends SIGINT to the whole group: the program ends by it."""
    with Program(PRELUDE + "with shmrt.Pool(2) as pool:\n" + WAITS[wait], arguments=("0.05",)) as program:
        lines_until_go(program)
        os.killpg(program.pid, signal.SIGINT)
        status, _, errors = program.end()
        assert "KeyboardInterrupt" in errors
        # At exit the program's own status was decided before the signal came.
        assert status == -signal.SIGINT or (wait == "interpreter exit" and status == 0), (status, errors)
        _, left = program.seconds_until_nobody()
        assert not left


@pytest.mark.slow
@pytest.mark.parametrize("wait", ["result", "map", "leaving with", "drain", "asyncio"])
def test_second_interrupt_ends_at_once(wait):
    """With an endless grace only the second Ctrl-C can be what ends the program."""
    source = PRELUDE + (
        "old = shmrt.Pool._cancel_queue\n"
        "def noted(pool): old(pool); print('graceful', flush=True)\n"
        "shmrt.Pool._cancel_queue = noted\n"
        "with shmrt.Pool(2) as pool:\n"
    )
    with Program(source + WAITS[wait], arguments=("100000",)) as program:
        lines_until_go(program)
        os.killpg(program.pid, signal.SIGINT)
        while program.line() != "graceful":
            pass
        os.killpg(program.pid, signal.SIGINT)
        status, _, errors = program.end()
        assert status == -signal.SIGINT, (status, errors)
        _, left = program.seconds_until_nobody()
        assert not left


@pytest.mark.slow
def test_what_runs_gets_its_grace_and_what_waits_is_cancelled():
    source = (
        PRELUDE
        + """
def finish(i):
    print("in", flush=True)
    while not os.path.exists(sys.argv[2]): time.sleep(0.001)
    return i
try:
    with shmrt.Pool(1) as pool:
        futures = [pool.submit(finish, i) for i in range(5)]
        old = pool._cancel_queue
        def noted(): old(); open(sys.argv[2], "w").close()
        pool._cancel_queue = noted
        begun(pool)
        futures[0].result()
except KeyboardInterrupt:
    print(futures[0].result(), [f.cancelled() for f in futures])
"""
    )
    path = f"/tmp/shmrt-life-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        with Program(source, arguments=("100000", path)) as program:
            lines_until_go(program)
            os.killpg(program.pid, signal.SIGINT)
            status, out, errors = program.end()
            assert (status, out.splitlines()[-1]) == (0, "0 [False, True, True, True, True]"), (out, errors)
            _, left = program.seconds_until_nobody()
            assert not left
    finally:
        if os.path.exists(path):
            os.unlink(path)


@pytest.mark.slow
def test_an_interrupt_is_never_lost():
    """At any moment of the wait: the signal may come just before the thread sleeps."""
    source = (
        PRELUDE
        + """
import random
moments = random.Random(int(sys.argv[2]))
with shmrt.Pool(1) as pool:
    f = pool.submit(s, 1000)
    begun(pool)
    for i in range(100):
        timer = threading.Timer(moments.random() * 0.002, os.kill, (os.getpid(), 2))
        try:
            timer.start()
            f.result()
        except KeyboardInterrupt:
            pass
    f.kill()
    print("all", flush=True)
"""
    )
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    with Program(source, arguments=("0", str(seed))) as program:
        status, out, errors = program.end()
        assert (status, out.splitlines()[-1]) == (0, "all"), errors


@pytest.mark.slow
def test_an_interrupt_on_the_way_out_by_another_exception():
    source = (
        PRELUDE
        + """
old = shmrt.Pool._cancel_queue
def noted(pool): old(pool); print("graceful", flush=True)
shmrt.Pool._cancel_queue = noted
try:
    with shmrt.Pool(1) as pool:
        f = pool.submit(s, 1000)
        begun(pool)
        raise ValueError("first")
except KeyboardInterrupt as error:
    print(repr(error.__context__))
"""
    )
    with Program(source, arguments=("100000",)) as program:
        lines_until_go(program)
        while program.line() != "graceful":
            pass
        os.killpg(program.pid, signal.SIGINT)
        status, out, errors = program.end()
        assert (status, out.splitlines()[-1]) == (0, "ValueError('first')"), errors  # the task may say "in" only now
        _, left = program.seconds_until_nobody()
        assert not left


def test_workers_do_not_hear_the_terminal(tmp_path):
    source = (
        PRELUDE
        + """
signal_seen = []
import signal
signal.signal(signal.SIGINT, lambda *_: signal_seen.append(1))
def wait():
    while not os.path.exists(sys.argv[2]): time.sleep(0.001)
with shmrt.Pool(2) as pool:
    pids = {pool.submit(os.getpid).result() for _ in range(20)}
    f = pool.submit(wait)
    begun(pool)
    while not signal_seen: pass
    for row in pool._core.workers(): os.kill(row["pid"], 2)
    open(sys.argv[2], "w").close()
    f.result()
    assert pool.stats()["restarts"] == 0
    print("fine")
"""
    )
    with Program(source, arguments=("0", str(tmp_path / "go"))) as program:
        lines_until_go(program)
        os.killpg(program.pid, signal.SIGINT)
        status, out, errors = program.end()
        assert (status, out) == (0, "fine\n"), errors

"""The program dies, or ends in any way that programs end: nothing that shmrt or user code started is left."""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from life_kit import PATIENCE_S, Program, run, shared_names

PRELUDE = """
import os, subprocess, sys, threading, time
import shmrt
def square(x): return x * x
def sleep_for(s): time.sleep(s); return s
def say(*words): print(*words, flush=True)
"""

STATES = {
    "busy": """
pool = shmrt.Pool(2)
futures = [pool.submit(sleep_for, 1000) for _ in range(4)]
while pool.stats()["workers_ready"] < 2: pass
say("ready"); time.sleep(1000)
""",
    "flooded": """
pool = shmrt.Pool(2)
pool.submit(square, 3).result()
say("ready")
for value in pool.map(square, iter(int, 1)): pass
""",
    "idle": """
pool = shmrt.Pool(2)
list(pool.map(square, range(10)))
say("ready"); time.sleep(1000)
""",
    "starting": """
say("ready")
pools = [shmrt.Pool(2) for _ in range(5)]
time.sleep(1000)
""",
    "starting with a slow initializer": """
def begin():
    if os.fork() == 0: time.sleep(1000)
    say("ready"); time.sleep(1000)
pool = shmrt.Pool(1, initializer=begin)
time.sleep(1000)
""",
    "starting with a template": """
say("ready")
pool = shmrt.Pool(2, preload=["decimal", "email.message"])
time.sleep(1000)
""",
    "shutting down": """
pool = shmrt.Pool(2)
futures = [pool.submit(sleep_for, 1000) for _ in range(4)]
while not futures[0].running(): pass
threading.Thread(target=say, args=("ready",)).start()
pool.shutdown()
""",
    "children of user code": """
def start_children():
    stays = subprocess.Popen(["sleep", "1000"])
    gone = subprocess.Popen([sys.executable, "-S", "-c",
        "import os\\nif os.fork() == 0:\\n os.setsid(); os.execvp('sleep', ['sleep', '1000'])"])
    gone.wait()
    if os.fork() == 0:
        time.sleep(1000)
    return os.getpid()
pool = shmrt.Pool(2)
pids = [pool.submit(start_children).result() for _ in range(2)]
say("ready"); time.sleep(1000)
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_after_kill_nothing_stays(state, record_property):
    with Program(PRELUDE + STATES[state]) as program:
        assert program.line() == "ready"
        if state == "children of user code":
            end = time.monotonic() + PATIENCE_S  # those that left their parent become `sleep` a moment after it ends
            while sum(command.startswith("sleep") for command in program.family().values()) != 4:
                assert time.monotonic() < end, program.family()
        seed = random.randrange(1 << 30)
        print(f"seed {seed}")
        if state.startswith("starting"):
            time.sleep(random.Random(seed).random() * 0.1)  # the moment within the start is what varies
        program.kill()
        taken, left = program.seconds_until_nobody()
        print(f"{state}: nobody left after {taken * 1e3:.0f} ms")
        record_property("seconds", taken)
        assert not left
    assert not shared_names(program.pid)


@pytest.mark.slow
def test_killed_in_its_start_at_any_moment():
    """Thirty moments from before the root exists until work flows."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for _ in range(15):
        with Program(PRELUDE + STATES["busy"].replace("pool =", "say('on'); pool =")) as program:
            assert program.line() == "on"
            time.sleep(moments.random() * 0.06)
            program.kill()
            _, left = program.seconds_until_nobody()
            assert not left


BUSY = """
pool = shmrt.Pool(2)
futures = [pool.submit(sleep_for, 1000) for _ in range(3)]
while not futures[0].running(): pass
"""
IDLE = "pool = shmrt.Pool(2)\nassert list(pool.map(square, range(5))) == [0, 1, 4, 9, 16]\n"
ENDS = {
    "falls off its end": (IDLE, 0),
    "sys.exit": (IDLE + "sys.exit(7)", 7),
    "unhandled exception": (IDLE + "raise LookupError('mine')", 1),
    "os._exit idle": (IDLE + "os._exit(3)", 3),
    "os._exit busy": (BUSY + "os._exit(3)", 3),
    "exec": (BUSY + "os.execv(sys.executable, [sys.executable, '-c', 'print(\"another\")'])", 0),
    "abort": (BUSY + "os.abort()", -signal.SIGABRT),
    "terminated": (BUSY + "os.kill(os.getpid(), 15); time.sleep(1000)", -signal.SIGTERM),
    "hang up": (BUSY + "os.kill(os.getpid(), 1); time.sleep(1000)", -signal.SIGHUP),
    "sys.exit in a thread": (IDLE + "t = threading.Thread(target=sys.exit, args=(3,)); t.start(); t.join()", 0),
    "no pool, one runtime": ("shmrt.runtime()", 0),
    "runtime never used": ("shmrt.Runtime()", 0),
    "pending futures": (
        "pool = shmrt.Pool(2)\nfutures = [pool.submit(sleep_for, 0.01) for _ in range(20)]\n"
        "for f in futures: f.add_done_callback(lambda f: None)\nfutures = None",
        0,
    ),
    "pool that nobody holds": ("shmrt.Pool(2).submit(square, 3)", 0),
    "blocked daemon thread": (
        "pool = shmrt.Pool(2)\nf = pool.submit(sleep_for, 0.3)\ng = shmrt.Future()\n"
        "for x in (f, g): threading.Thread(target=x.result, daemon=True).start()\n",
        0,
    ),
    "atexit uses the pool": (IDLE + "import atexit\natexit.register(pool.shutdown)", 0),
    "exit inside with": ("with shmrt.Pool(2) as pool:\n    pool.submit(square, 2).result(); sys.exit(5)", 5),
    "main thread ends, another goes on": (
        IDLE + "import ctypes\n"
        "def work():\n"
        "    while open('/proc/self/stat').read().split()[2] != 'Z': pass\n"
        "    say(pool.submit(square, 9).result()); os._exit(4)\n"
        "threading.Thread(target=work).start(); ctypes.CDLL(None).pthread_exit(None)",
        4,
    ),
    "live shared arrays": (
        "import numpy\npool = shmrt.Pool(2)\nkept = [pool.submit(numpy.ones, 100_000).result() for _ in range(4)]\n"
        "assert all(a.sum() == 100_000 for a in kept)",
        0,
    ),
    "daemonic multiprocessing process": (
        "import multiprocessing\n"
        "def child():\n    with shmrt.Pool(2) as pool: assert pool.submit(square, 4).result() == 16\n"
        "p = multiprocessing.get_context('fork').Process(target=child, daemon=True); p.start(); p.join()\n"
        "sys.exit(p.exitcode)",
        0,
    ),
    "multiprocessing child that leaves its pool open": (
        "import multiprocessing\n"
        "def child():\n    global pool; pool = shmrt.Pool(2); assert pool.submit(square, 4).result() == 16\n"
        "p = multiprocessing.get_context('fork').Process(target=child); p.start(); p.join()\n"
        "sys.exit(p.exitcode)",
        0,
    ),
    "started in a short-lived thread": (
        "pools = []\nt = threading.Thread(target=lambda: pools.append(shmrt.Pool(2))); t.start(); t.join()\n"
        "while '/proc/self/task/%d' % t.native_id in os.listdir('/proc/self/task'): pass\n"
        "pool = pools[0]\nassert list(pool.map(square, range(50))) == [i * i for i in range(50)]\n"
        "assert pool.stats()['restarts'] == 0",
        0,
    ),
    "asyncio": (
        "import asyncio\n"
        "async def main():\n"
        "    pool = shmrt.Pool(2)\n"
        "    found = await asyncio.gather(*[pool.submit(square, i) for i in range(1000)])\n"
        "    assert found == [i * i for i in range(1000)]\n"
        "    loop = asyncio.get_running_loop()\n"
        "    assert await loop.run_in_executor(pool, square, 5) == 25\n"
        "    assert [x async for x in pool.amap(square, range(20))] == [i * i for i in range(20)]\n"
        "asyncio.run(main())",
        0,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_every_end_leaves_nothing(end):
    source, status = ENDS[end]
    with Program(PRELUDE + source) as program:
        result = program.end()
        assert result[0] == status, result
        taken, left = program.seconds_until_nobody()
        print(f"{end}: nobody left after {taken * 1e3:.0f} ms")
        assert not left, result
        if status >= 0:
            allowed = {"unhandled exception": "mine"}.get(end)
            assert result[2] == "" or (allowed and allowed in result[2]), result[2]
    assert not shared_names(program.pid)


def test_exit_finishes_accepted_work():
    """A pool left open at exit does what it accepted, and callbacks run."""
    source = (
        "pool = shmrt.Pool(2)\nfor i in range(8): pool.submit(square, i).add_done_callback(lambda f: say(f.result()))\n"
    )
    status, out, err = run(PRELUDE + source)
    assert (status, err) == (0, "")
    assert sorted(map(int, out.split())) == [i * i for i in range(8)]


def test_grandchildren_end_with_their_worker():
    """While the root lives, what user code leaves behind ends with the worker that started it."""
    source = STATES["children of user code"].replace("say(", "os.kill(pids[0], 9); say(")
    with Program(PRELUDE + source.replace("for _ in range(2)", "for _ in range(1)")) as program:
        assert program.line() == "ready"
        end = time.monotonic() + PATIENCE_S
        while any(command.startswith("sleep") for command in program.family().values()):
            assert time.monotonic() < end, program.family()
        assert program.root()

"""A Ctrl-C that the kernel gives to another thread, or that comes just before a wait, ends the wait all the same."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

import pytest

from shmrt.waits import next_of, until_set

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 120

WAITS = {
    "a pipeline's consumer": """
def source():
    yield 1
    threading.Event().wait()
with Pipeline().map(abs, workers=1).run(source) as run:
    next(run)
    told()
    next(run)
""",
    "map_unordered": """
with Pool(1) as pool:
    results = pool.map_unordered(wait_for_ever, [1])
    told()
    next(results)
""",
    "a result": """
with Pool(1) as pool:
    future = pool.submit(wait_for_ever, 1)
    told()
    future.result()
""",
    "a ring's taker": """
with contextlib.closing(Ring.create()) as ring:
    told()
    ring.get()
""",
    "a taker with patience": """
with contextlib.closing(Ring.create()) as ring:
    told()
    ring.get(timeout=1000)
""",
    "a ring's putter": """
with contextlib.closing(Ring.create(RingSpec(slots=8))) as ring:
    for number in range(8):
        ring.put(number)
    told()
    ring.put(8)
""",
    "a call": """
with Agent(0) as agent:
    told()
    agent.get(wait_for_ever, timeout=1000)
""",
    "an end": """
agent = Agent(0)
agent.cast(wait_for_ever)
told()
agent.stop()
""",
    "a runtime": """
with Runtime() as runtime:
    told()
    runtime.wait()
""",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAITS)
def test_a_signal_that_interrupts_no_sleep(name: str) -> None:
    """The main thread does not take it: its sleep goes on, and nothing else would end it."""
    body = "".join(f"    {line}\n" for line in WAITS[name].strip().splitlines())
    program = f"""
import contextlib, signal, sys, threading
from shmrt import Agent, Pipeline, Pool, Ring, RingSpec, Runtime
def wait_for_ever(_):
    threading.Event().wait()
def told():
    threading.Thread(target=threading.Event().wait, daemon=True).start()  # which takes the signal
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    print("ready", flush=True)
try:
{body}except KeyboardInterrupt:
    print("interrupted", flush=True)
    sys.stdout.flush()
    import os
    os._exit(0)  # how the rest ends is told elsewhere
"""
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=WATCHDOG_S)
    finally:
        child.kill()
        child.wait()
    assert (out, child.returncode) == ("interrupted\n", 0)


def test_timeouts_are_kept() -> None:
    """Shorter and longer ones than a look for signals, in the main thread and in others."""

    def look() -> None:
        for seconds in (0.0, 0.01, 0.3):
            with pytest.raises(Empty):
                next_of(SimpleQueue(), seconds)
            assert until_set(threading.Event(), seconds) is False
        done.set()

    done = threading.Event()
    look()
    assert done.is_set()
    done.clear()
    threading.Thread(target=look).start()
    assert until_set(done)
    late: SimpleQueue[int] = SimpleQueue()
    threading.Timer(0.3, late.put, [7]).start()
    assert next_of(late) == 7

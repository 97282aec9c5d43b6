"""What is inside a pipeline is bounded at every moment, and nothing of a run is left when it is over or left early."""

from __future__ import annotations

import gc
import itertools
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from pipeline_kit import ENGINES, FakeEngine, double, make_engine

from shmrt.pipeline import Pipeline
from shmrt.spec import RingSpec


@pytest.fixture(params=ENGINES)
def engine(request: Any) -> Any:
    return make_engine(request.param)


# ---- bounds


@pytest.mark.parametrize("slots", [1, 3, 8])
def test_the_source_is_never_far_ahead_of_the_consumer(engine: Any, slots: int) -> None:
    """R8, D4, P8. An endless source and a slow consumer: what is inside is bounded by the rings at every moment."""
    given_ = 0

    def source() -> Any:
        nonlocal given_
        while True:
            given_ += 1
            yield given_

    ring = RingSpec(slots=slots)
    taken = 0
    with Pipeline().map(double, ring=ring).batch(2).map(sum, ring=ring).run(source, engine=engine) as run:
        for _ in itertools.islice(run, 50):
            taken += 1
            # an edge in front (slots), a batch open and one full (4), pairs in the second edge and at the end
            assert given_ - 2 * taken <= slots + 4 + 2 * slots + 2 * slots
    assert taken == 50


def count_for_ever(x: int) -> Any:
    return ((x, n) for n in itertools.count())


def test_an_endless_flat_map_is_held_back(engine: Any) -> None:
    """P8. A function that never stops giving streams, and waits for the consumer between its groups."""
    pipe = Pipeline().flat_map(count_for_ever, workers=1, group_bytes="4KiB", ring=RingSpec(slots=4))
    with pipe.run([7], engine=engine) as run:
        assert list(itertools.islice(run, 3000)) == [(7, n) for n in range(3000)]
        assert run.report.stages[0].pending == 1


# ---- leaving


def test_leaving_early_ends_everything(engine: Any) -> None:
    """P6. A break ends feeder, coordinator and workers; the generator made for the run is closed."""
    closed = threading.Event()

    def source() -> Any:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    with Pipeline("leave").map(double).run(source, engine=engine) as run:
        for item in run:
            if item > 100:
                break
    assert closed.wait(30)
    for thread in run._motor.threads:
        thread.join(30)
        assert not thread.is_alive()
    assert next(run, "over") == "over"
    run.close()


def test_a_source_that_blocks_does_not_hold_the_run(engine: Any) -> None:
    """What was given is delivered at once, although the source never gives more; leaving does not wait for it."""
    gate = threading.Event()

    def source() -> Any:
        yield 1
        gate.wait()

    with Pipeline().map(double).run(source, engine=engine) as run:
        assert next(run) == 2
    assert not gate.is_set()
    gate.set()
    run._motor.threads[1].join(30)


def test_ctrl_c_reaches_a_waiting_consumer(tmp_path: Path) -> None:
    """The consumer waits for a source that blocks; SIGINT is a KeyboardInterrupt in it, and the program ends."""
    root = Path(__file__).parent.parent
    program = f"""
import sys, threading
sys.path[:0] = [{str(root.parent)!r}, {str(root / "unit")!r}]
from fake_pool import FakeEngine
from shmrt.pipeline import Pipeline
def source():
    yield 1
    threading.Event().wait()
try:
    with Pipeline().map(abs).run(source, engine=FakeEngine()) as run:
        for item in run:
            print("got", item, flush=True)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None and child.stdout.readline() == "got 1\n"
        child.send_signal(signal.SIGINT)
        out, _ = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert (out, child.returncode) == ("interrupted\n", 0)


def test_a_run_leaves_no_thread() -> None:
    """P6. After a run the program has the threads that it had; also when the run is dropped in the middle, unclosed."""
    before = set(threading.enumerate())
    with Pipeline("clean").map(double).run(range(100), engine=FakeEngine()) as run:
        list(run)
    for thread in run._motor.threads:
        thread.join(30)
    assert set(threading.enumerate()) <= before

    engine = FakeEngine()
    dropped = Pipeline("dropped").map(double).run(itertools.count(), engine=engine)
    assert next(dropped) == 0
    threads = [*dropped._motor.threads, *engine.pools[0].threads]
    del dropped
    gc.collect()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()

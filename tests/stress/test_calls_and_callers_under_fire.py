"""C1. Calls with numbers and checksums, while the server, the callers and the root are killed all the time.

Each call of a caller that lives has one end: its own answer, whole, or `ServerDown`. The server writes down every
execution: none runs twice, and every answer was executed. Ten thousand calls of living callers against a dying server
are in tests/conformance/test_calls_under_fire.py; here the callers die, too, and the root.
"""

from __future__ import annotations

import contextlib
import logging
import os
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fire_kit
import pytest
from fire_kit import FEW, MESSAGES, SEED

from shmrt import (
    Child,
    NotFound,
    Pool,
    Runtime,
    RuntimeDown,
    Server,
    ServerDown,
    Supervisor,
    WorkerCrashed,
    call,
    whereis,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
from tree_kit import PATIENCE_S, until

BATCH = 20
ANSWERED, DOWN, WRONG = 1, 2, 3
FOR_EVER = {"max_restarts": 1_000_000, "max_seconds": 1.0}


class Book(Server):
    """Gives the message back, and counts in a file how often each number was executed."""

    def init(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    @call
    def enter(self, thing: fire_kit.Message) -> fire_kit.Message:
        number = thing[0]
        before = os.pread(self.fd, 1, number)[0]
        os.pwrite(self.fd, bytes([min(before + 1, 255)]), number)
        return fire_kit.hand_on(thing)


def ask(first: int, path: str) -> None:
    """In any process: BATCH calls; how each ended is in the file before the next one begins."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for number in range(first, first + BATCH):
            thing = fire_kit.message(number)
            try:
                ref = until(lambda: whereis("book"), "the server never comes back")
                end = ANSWERED if ref.call("enter", thing, timeout=PATIENCE_S) == thing else WRONG
            except (ServerDown, NotFound, RuntimeDown):
                end = DOWN
            os.pwrite(fd, bytes([end]), number)
    finally:
        os.close(fd)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """For this test, not for those after it in the same process."""
    caplog.set_level(logging.CRITICAL, logger="shmrt.supervisor")


def fire(count: int, kills: int, pause_s: float, folder: Path) -> None:
    print(f"SHMRT_SEED={SEED}")
    executed, ended = folder / "executed", folder / "ended"
    most = 100 * count + 100 * BATCH  # a machine may be faster than the killer
    for path in (executed, ended):
        path.write_bytes(b"")
        os.truncate(path, most)
    roots = fire_kit.Roots(least_s=2.0)
    moved = -1
    done = 0
    dead_batches: list[int] = []
    with Runtime(Supervisor([Child(Book, str(executed), name="book")], **FOR_EVER)) as runtime, Pool(2) as pool:
        supervisor = runtime.supervisor()

        def choose(rng: random.Random) -> int | None:
            nonlocal moved
            if done == moved and rng.random() < 0.95:  # else nobody would come to do anything
                return None
            moved = done
            draw = rng.random()
            if draw < 0.05:
                return runtime.pid if roots.may_die() else None
            if draw < 0.7:
                with contextlib.suppress(Exception):  # between two roots nobody answers
                    pid = supervisor.which_child("book")[1]
                    return pid if isinstance(pid, int) else None
                return None
            ready = [row["pid"] for row in pool._core.workers() if row["ready"]]
            return rng.choice(ready) if ready else None

        first = 0
        under_way: dict[Any, int] = {}
        with fire_kit.killing(choose, pause_s, SEED) as killed:
            while first < count or len(killed) < kills or not roots.deaths or under_way:
                more = first < count or len(killed) < kills or not roots.deaths
                while more and len(under_way) < 8:
                    assert first + BATCH < most
                    under_way[pool.submit(ask, first, str(ended))] = first
                    first += BATCH
                future = next(iter(under_way))
                error = future.exception(PATIENCE_S)
                batch = under_way.pop(future)
                done += error is None
                assert error is None or isinstance(error, WorkerCrashed), error
                if error is not None:
                    dead_batches.append(batch)

        def enter() -> Any:
            """None while there is no server: the last kill may have been the root's."""
            ref = whereis("book")
            with contextlib.suppress(ServerDown, NotFound, RuntimeDown):
                return ref and ref.call("enter", fire_kit.message(first), timeout=PATIENCE_S)

        assert until(enter) == fire_kit.message(first)
        until(lambda: runtime._home.calls.stats()["waiting"] == 0)
        corrupted = runtime._home.calls.stats()["corrupt"]
    runs, ends = executed.read_bytes(), ended.read_bytes()
    told = Counter(ends[:first])
    cut = sum(ends[number] == 0 for batch in dead_batches for number in range(batch, batch + BATCH))
    verdict = {
        "lost": told[0] - cut + sum(ends[n] == ANSWERED and runs[n] == 0 for n in range(first)),
        "duplicated": sum(count > 1 for count in runs[:first]),
        "unexpected": sum(runs[first + 1 :]) + sum(ends[first:]),
        "corrupted": told[WRONG] + corrupted,
    }
    print(
        f"result: {first} calls, {len(killed)} processes killed, {len(roots.deaths)} roots lately: "
        f"{told[ANSWERED]} answers, {told[DOWN]} down, {cut} of callers that died: {verdict}"
    )
    assert verdict == fire_kit.NOTHING and told[ANSWERED]


@pytest.mark.slow
def test_calls_and_callers_under_fire(tmp_path: Path) -> None:
    """The same, short enough for every run."""
    fire(FEW // 2, kills=10, pause_s=0.03, folder=tmp_path)


@pytest.mark.stress
def test_calls_and_callers_under_long_fire(tmp_path: Path) -> None:
    """10^5 calls, or as many as SHMRT_MESSAGES says."""
    fire(MESSAGES, kills=200, pause_s=0.05, folder=tmp_path)

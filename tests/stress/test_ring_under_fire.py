"""C1. Messages with numbers and checksums go through two named rings; producers and relays are killed all the time.

producers -> ring -> relays, which hold a lease while they pass a message on -> ring -> this process. What a put
returned for comes out; a relay that dies between its put and the end of its lease repeats that one message, which is
the promise of leases, and nothing else comes twice.
"""

from __future__ import annotations

import mmap
import multiprocessing
import queue
import random
import sys
from pathlib import Path
from typing import Any

import fire_kit
import pytest
from fire_kit import FEW, MESSAGES, NOTHING, SEED, Ledger

from shmrt import Ring, RingSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "conformance"))
import ring_kit

FORK = multiprocessing.get_context("fork")
STEP = 1 << 40
"""Numbers of one life of a producer begin at a multiple of it."""


def produce(name: str, counters: Any, life: int) -> None:
    """Until it is killed. `counters[life]` says how many of its puts returned."""
    ring = Ring.attach(name)
    number = 0
    while True:
        ring.put(fire_kit.message(life * STEP + number))
        number += 1
        counters[life] = number


def relay(name: str, out_name: str) -> None:
    source, out = Ring.attach(name), Ring.attach(out_name)
    while True:
        with source.lease() as thing:
            out.put(fire_kit.hand_on(thing))


def fire(name: str, count: int, every: int) -> None:
    """A process is killed after about so many messages; when is counted, who is drawn."""
    print(f"SHMRT_SEED={SEED}")
    rng = random.Random(SEED)
    lives_most = 4 + 2 * count // every
    counters = memoryview(mmap.mmap(-1, 8 * lives_most)).cast("Q")
    ring, out = Ring.create(RingSpec(slots=64), name=name), Ring.create(RingSpec(slots=64), name=f"{name} out")
    ledger = Ledger()
    lives = relays_killed = repeated = 0
    producers: dict[int, Any] = {}
    relays: list[Any] = []

    def start(function: Any, *arguments: Any) -> Any:
        process = FORK.Process(target=function, args=arguments, daemon=True)
        process.start()
        return process

    def new_producer() -> None:
        nonlocal lives
        producers[lives] = start(produce, name, counters, lives)
        lives += 1

    def take(thing: Any) -> None:
        nonlocal repeated
        if fire_kit.is_whole(thing) and thing[0] in ledger.seen:
            repeated += 1  # judged below
            return
        ledger.take(thing, lives * STEP)  # no number of a life that has not begun

    def kill_one() -> None:
        nonlocal relays_killed
        if rng.random() < 0.5 and lives < lives_most:
            life = rng.choice(list(producers))
            process = producers.pop(life)
            process.kill()
            process.join()
            new_producer()
        else:
            process = relays.pop(rng.randrange(len(relays)))
            process.kill()
            process.join()
            relays_killed += 1
            relays.append(start(relay, name, f"{name} out"))

    try:
        for _ in range(2):
            new_producer()
            relays.append(start(relay, name, f"{name} out"))
        until_next = rng.randrange(1, 2 * every)
        while len(ledger.seen) < count:
            take(out.get(ring_kit.PATIENCE))
            until_next -= 1
            if until_next == 0:
                kill_one()
                until_next = rng.randrange(1, 2 * every)
        for process in producers.values():
            process.kill()
            process.join()
        while ring.qsize() or ring.stats()["leased"]:
            try:
                take(out.get(0.05))
            except queue.Empty:
                continue
    finally:
        for process in [*producers.values(), *relays]:
            process.kill()
            process.join()
    relays_killed += len(relays)
    while True:
        try:
            take(out.get(0))
        except queue.Empty:
            break
    acknowledged = lost = unexpected = 0
    by_life: dict[int, set[int]] = {life: set() for life in range(lives)}
    for number in ledger.seen:
        by_life.setdefault(number // STEP, set()).add(number % STEP)
    for life, numbers in by_life.items():
        acknowledged += counters[life]
        lost += len(set(range(counters[life])) - numbers)
        # The last put may have been in when its producer died before it could say so.
        unexpected += len(numbers - set(range(counters[life] + 1)))
    verdict = ledger.verdict(len(ledger.seen)) | {"lost": lost, "unexpected": ledger.unexpected + unexpected}
    print(
        f"result: {acknowledged} messages, {lives - 2} producers and {relays_killed} relays killed: {verdict}, "
        f"{repeated} repeated by leases"
    )
    assert verdict == NOTHING and repeated <= relays_killed
    assert ring._check() and out._check() and ring.stats()["leased"] == 0
    ring.unlink()
    out.unlink()


@pytest.mark.slow
def test_a_named_ring_under_fire() -> None:
    """P1, P2. The same, short enough for every run."""
    with ring_kit.free_name() as name:
        fire(name, FEW, every=100)


@pytest.mark.stress
def test_a_named_ring_under_long_fire() -> None:
    """10^5 messages, or as many as SHMRT_MESSAGES says."""
    with ring_kit.free_name() as name:
        fire(name, MESSAGES, every=300)

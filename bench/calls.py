"""One call to a server in another process and its reply, beside what others use to ask a process something.

Round trips of a request (name, arguments) and its answer (the argument, given back), one after the other. `hot`:
the next call comes at once, so both sides may still look when it arrives. `parked`: a millisecond lies between two
calls, so the server sleeps and has to be woken, and so may the caller. `shmrt.Server` is `ref.echo(value)`,
`shmrt.Calls` what lies below it. Peers: a Pipe with a loop that answers, a proxy of multiprocessing.Manager, pyzmq's
REQ and REP with pickles, an actor of ray. Median of the turns' medians with the lowest and highest. Not measured: many
callers at once, large values, and what a server is for: the peers but ray have no deadline, no bounded mailbox, no
restart, and a caller of a Pipe or of REQ waits for ever if the server dies.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.managers import BaseManager
from typing import Any

import shmrt
from bench._measure import check, latency
from bench._peers import present
from bench._peers.channels import CONTEXT
from bench._views import Pivot, Plot
from shmrt import _native

SMOKE = {"hot": 200, "parked": 20, "turns": 1, "gap_s": 0.001, "heavy": False}
FULL = {"hot": 10_000, "parked": 400, "turns": 5, "gap_s": 0.001, "heavy": True}

VIEWS = (
    Pivot("Call and reply, median µs", "p50_us", "mode", better="less", beside={"if_it_dies": "if the server dies"}),
    Pivot("Call and reply, 99th percentile, µs", "p99_us", "mode", better="less"),
    Plot("calls", "Call and reply, hot", "p50_us", where={"mode": "hot"}, y_label="µs", log_y=True),
)

SLOT = _native.SLOT_FIRST_WORKER
Call = Callable[[int], Any]


class Echo(shmrt.Server):
    @shmrt.call
    def echo(self, value: int) -> int:
        return value


@contextmanager
def over_server() -> Iterator[Call]:
    with shmrt.Runtime():
        ref = shmrt.start(Echo)
        yield ref.echo
        ref.stop()


def serve_calls(slots: _native.Slots, mailbox: _native.Mailbox) -> None:
    calls = _native.Calls(slots)
    slots.set_process(SLOT, os.getpid())
    slots.ready(SLOT)
    while True:
        message = mailbox.take(calls, slots, SLOT, 0, None)
        if not isinstance(message, tuple):
            return
        _, reference, _, args, _ = message
        calls.reply(reference, _native.CALL_REPLY, args[0])
        mailbox.done(slots, SLOT)


@contextmanager
def over_calls() -> Iterator[Call]:
    slots = _native.Slots.create(8)
    slots.claim(SLOT, 0, 0)
    calls = _native.Calls(slots)
    calls.reserve()
    mailbox = _native.Mailbox.create(64, 512, _native.LAYOUT["RING_BLOCK"])
    server = CONTEXT.Process(target=serve_calls, args=(slots, mailbox))
    server.start()
    yield lambda number: calls.call(mailbox, 1, "echo", (number,), None, 60.0)[1]
    slots.send_control(SLOT)
    mailbox.ring()
    server.join()
    slots.close()


def serve_pipe(pipe: Any) -> None:
    while True:
        message = pipe.recv()
        if message is None:
            return
        _, args, _ = message
        pipe.send(args[0])


@contextmanager
def over_pipe() -> Iterator[Call]:
    mine, its = CONTEXT.Pipe()
    server = CONTEXT.Process(target=serve_pipe, args=(its,))
    server.start()

    def call(number: int) -> Any:
        mine.send(("echo", (number,), None))
        return mine.recv()

    yield call
    mine.send(None)
    server.join()
    mine.close()
    its.close()


class Plain:
    def echo(self, value: int) -> int:
        return value


class Manager(BaseManager):
    pass


Manager.register("Plain", Plain)


@contextmanager
def over_manager() -> Iterator[Call]:
    with Manager(ctx=CONTEXT) as manager:
        yield manager.Plain().echo  # type: ignore[attr-defined]


def serve_zmq(address: str) -> None:
    import zmq

    socket = zmq.Context().socket(zmq.REP)
    socket.bind(address)
    while (message := pickle.loads(socket.recv())) is not None:
        _, args, _ = message
        socket.send(pickle.dumps(args[0], 5))
    socket.send(b"")


@contextmanager
def over_zmq() -> Iterator[Call]:
    import zmq

    place = tempfile.mkdtemp(prefix="shmrt-bench-")
    server = CONTEXT.Process(target=serve_zmq, args=(f"ipc://{place}/call",))
    server.start()
    socket = zmq.Context().socket(zmq.REQ)
    socket.connect(f"ipc://{place}/call")

    def call(number: int) -> Any:
        socket.send(pickle.dumps(("echo", (number,), None), 5))
        return pickle.loads(socket.recv())

    yield call
    socket.send(pickle.dumps(None))
    socket.recv()
    server.join()
    socket.close()
    shutil.rmtree(place)


@contextmanager
def over_ray() -> Iterator[Call]:
    from bench._peers.pools import Ray

    with Ray(1) as pool:
        import ray

        actor = ray.remote(Plain).remote()
        yield lambda number: ray.get(actor.echo.remote(number))
        pool.result(actor.echo.remote(0))


class Way:
    def __init__(self, impl: str, package: str, opened: Any, if_it_dies: str) -> None:
        self.impl, self.package, self.opened, self.if_it_dies = impl, package, opened, if_it_dies


WAYS = (
    Way("shmrt.Server", "shmrt", over_server, "ServerDown, and a restart if asked"),
    Way("shmrt.Calls", "shmrt", over_calls, "ServerDown"),
    Way("multiprocessing.Pipe", "multiprocessing", over_pipe, "EOFError if no copy of its end is open"),
    Way("multiprocessing.Manager", "multiprocessing", over_manager, "EOFError"),
    Way("pyzmq REQ/REP", "pyzmq", over_zmq, "waits for ever"),
    Way("ray actor", "ray", over_ray, "RayActorError, and a restart if asked"),
)


def one_turn(opened: Any, count: int, gap_s: float, impl: str) -> list[float]:
    taken = []
    with opened() as call:
        for number in range(count + 20):
            if gap_s:
                time.sleep(gap_s)
            begin = time.perf_counter()
            answer = call(number)
            now = time.perf_counter()
            if number >= 20:  # the first ones warm up
                taken.append(now - begin)
            if answer != number:
                check(answer, number, f"{impl}, an answer")
    return taken


def run(hot: int, parked: int, turns: int, gap_s: float, heavy: bool) -> Iterator[dict[str, Any]]:
    here, missing = present(WAYS)  # type: ignore[type-var]
    yield from missing
    found: dict[tuple[Any, str], list[list[float]]] = {}
    for turn in range(turns):
        for mode, count, gap in (("hot", hot, 0.0), ("parked", parked, gap_s)):
            for way in here:
                if way.package != "ray":
                    found.setdefault((way, mode), []).append(one_turn(way.opened, count, gap, way.impl))
                elif heavy and turn == 0:
                    found.setdefault((way, mode), []).append(one_turn(way.opened, min(count, 1000), gap, way.impl))
    for (way, mode), rounds in found.items():
        yield {"impl": way.impl, "mode": mode, **latency(rounds), "if_it_dies": way.if_it_dies}

"""Runs at their limits: memory smaller than what is under way, several consumers, forks, poison among small items."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import MessageTooLarge, Pipeline, PoisonMessage, Pool, Runtime


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def ones(count: int) -> numpy.ndarray[Any, Any]:
    return numpy.ones(count, dtype=numpy.uint8)


def more(array: numpy.ndarray[Any, Any]) -> numpy.ndarray[Any, Any]:
    return array + 1


def die_of_five(number: int) -> int:
    if number == 5:
        os.abort()
    return number


@pytest.mark.slow
@pytest.mark.parametrize(("stages", "megabytes"), [(1, 8), (2, 4)])
def test_items_of_much_of_the_memory_go_through(stages: int, megabytes: int) -> None:
    """All stages together would hold several times the 32 MiB that there are; the source is held back instead."""
    pipe = Pipeline("big").map(ones)
    for number in range(stages):
        pipe = pipe.map(more, name=f"more {number}")
    with Runtime(shm_limit="32MiB"), pipe.run([megabytes << 20] * 30) as run:
        assert sum(int(array[0]) + len(array) for array in run) == 30 * (1 + stages + (megabytes << 20))


class Lingering:
    """Where it was made, it goes only when a byte comes: after the program has been told of it."""

    def __init__(self, gate: str) -> None:
        self.gate = gate

    def __reduce__(self) -> tuple[Any, ...]:
        return Lingering, ("",)

    def __del__(self) -> None:
        if self.gate:
            with open(self.gate) as gate:
                gate.read(1)


def linger(array: numpy.ndarray[Any, Any], gate: str) -> Lingering:
    return Lingering(gate)


def test_memory_that_a_worker_has_yet_to_give_back_is_waited_for(tmp_path: Path) -> None:
    """Its result is there, nothing is pending, and what the task was given is not free yet."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    end = os.open(gate, os.O_RDWR)
    array = numpy.zeros(24 << 20, dtype=numpy.uint8)
    with Runtime(shm_limit="32MiB") as runtime, Pool(2) as pool:
        lingering = pool.submit(linger, array, str(gate))
        while not lingering.done():  # its worker has told it and rings later: its neighbour does now
            pool.submit(len, b"").result(LIMIT_S)
        assert lingering.exception() is None
        before, submitted = runtime._hub.stats()["pumps"], threading.Event()

        def open_the_gate() -> None:
            while runtime._hub.stats()["pumps"] < before + 5 and not submitted.is_set():
                pass
            os.write(end, b".")

        opener = threading.Thread(target=open_the_gate)
        opener.start()
        try:
            assert pool.submit(len, array).result(LIMIT_S) == 24 << 20
        finally:
            submitted.set()
            opener.join()
    os.close(end)


def test_what_can_never_fit_is_told_with_size_and_limit() -> None:
    with Runtime(shm_limit="32MiB"), Pool(1) as pool:
        for error in (pool.submit(ones, 64 << 20).exception(LIMIT_S), _raised(pool)):
            assert isinstance(error, MessageTooLarge), error
            assert error.size is not None and error.size >= 64 << 20 and error.limit == 32 << 20
        with Pipeline("some").map(ones).run([1, 64 << 20, 2], on_error="dead_letter") as run:
            assert [len(array) for array in run] == [1, 2]
        assert isinstance(run.dead_letters[0].error, MessageTooLarge)


def _raised(pool: Pool) -> BaseException | None:
    try:
        pool.submit(len, ones(64 << 20))
    except MessageTooLarge as error:
        return error
    return None


def test_each_output_goes_to_one_of_several_consumers() -> None:
    got: list[int] = []
    with Pipeline("shared").map(abs).run(range(2000)) as run:
        threads = [threading.Thread(target=lambda: got.extend(run)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LIMIT_S)
            assert not thread.is_alive()
    assert sorted(got) == list(range(2000))
    assert run.report.balanced


class Outbox:
    """Says when somebody waits in it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.put = self._queue.put
        self.waits = threading.Event()

    def get(self, timeout: float | None = None) -> Any:
        self.waits.set()
        return self._queue.get(timeout=timeout)


def test_the_end_of_a_run_takes_nothing_from_another_consumer() -> None:
    """One consumer has taken the last outputs when another one, that waits, finds the end: they are still given, to
    either of them."""
    got: list[int] = []
    with Pipeline("end").map(abs).run(range(10)) as run:
        run._motor.threads[0].join(LIMIT_S)
        last: list[int] = []
        while isinstance(message := run._motor.outbox.get(), list):
            last += message
        assert message is None and last == list(range(10))
        run._motor.outbox = outbox = Outbox()  # type: ignore[assignment]
        other = threading.Thread(target=lambda: got.extend(run))
        other.start()
        assert outbox.waits.wait(LIMIT_S)
        run._buffer.extend(last)
        outbox.put(None)
        other.join(LIMIT_S)
        assert not other.is_alive()
        assert sorted([*got, *run]) == last


def test_leaving_a_run_ends_the_wait_of_another_thread() -> None:
    go = threading.Event()

    def source() -> Iterator[int]:
        yield 1
        go.wait(LIMIT_S)

    with Pipeline("left").map(abs).run(source) as run:
        assert next(run) == 1
        thread = threading.Thread(target=lambda: list(run))
        thread.start()
    go.set()
    thread.join(LIMIT_S)
    assert not thread.is_alive()


def test_a_forked_child_owns_nothing_of_a_run() -> None:
    with Pipeline("forked").map(abs).run(range(5000)) as run:
        assert next(run) == 0
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(writer, repr(next(run)).encode())
            except BaseException as error:
                os.write(writer, f"{type(error).__name__} {error}".encode())
            run.close()
            os._exit(0)
        os.close(writer)
        with open(reader, "rb") as file:
            said = file.read().decode()
        os.waitpid(pid, 0)
        assert said.startswith("RuntimeDown") and str(pid) in said and str(os.getpid()) in said, said
        assert sum(1 for _ in run) == 4999


@pytest.mark.parametrize("attempts", [2, 3, 5])
def test_poison_among_small_items_says_how_many_workers_it_cost(attempts: int) -> None:
    with Pipeline("p").map(die_of_five, max_attempts=attempts).run(range(20), on_error="dead_letter") as run:
        assert list(run) == [number for number in range(20) if number != 5]
    (letter,) = run.dead_letters
    assert letter.attempts == attempts and type(letter.error) is PoisonMessage
    assert letter.error.attempts == attempts and f"killed its worker {attempts} times" in str(letter.error)

"""Arguments, results and exceptions that refuse to travel, or harm whoever touches them: one task pays, nobody else."""

from __future__ import annotations

import copy
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S, until

from shmrt import Pool, RemoteError, WorkerCrashed

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def fail(*_: Any) -> Any:
    raise ZeroDivisionError("on purpose")


def die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


HOME = os.getpid()


def fail_elsewhere(*_: Any) -> Any:
    if os.getpid() != HOME:
        raise ZeroDivisionError("on purpose")
    return Plain()


def die_elsewhere(*_: Any) -> Any:
    if os.getpid() != HOME:
        os.kill(os.getpid(), signal.SIGKILL)
    return Plain()


class Plain:
    pass


class Reduced:
    """Pickles to a call."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call = (call, arguments)

    def __reduce__(self) -> Any:
        return self.call


class ReduceRaises:
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("on purpose")


class ReduceKills:
    def __reduce__(self) -> Any:
        die()


class StateRaises:
    def __getstate__(self) -> Any:
        return {"a": 1}

    def __setstate__(self, state: Any) -> None:
        raise ZeroDivisionError("on purpose")


class StateKills(StateRaises):
    def __setstate__(self, state: Any) -> None:
        die()


def make(kind: type, *arguments: Any) -> Any:
    return kind(*arguments)


def raise_a(kind: type, *arguments: Any) -> Any:
    raise kind(*arguments)


def others(pool: Pool) -> list[Any]:
    return [pool.submit(tasks.same, number) for number in range(40)]


def whole(futures: list[Any]) -> None:
    assert [future.result(LIMIT_S) for future in futures] == list(range(40))


@pytest.mark.parametrize("value", [ReduceRaises(), (x for x in ()), sys._getframe()])
def test_an_argument_that_cannot_be_pickled_raises_in_submit(pool: Pool, value: Any) -> None:
    around = others(pool)
    with pytest.raises((TypeError, ZeroDivisionError)):
        pool.submit(tasks.same, value)
    whole(around)
    whole(others(pool))


@pytest.mark.parametrize("value", [Reduced(fail), StateRaises()])
def test_an_argument_that_cannot_be_unpickled_fails_its_task(pool: Pool, value: Any) -> None:
    around = others(pool)
    future = pool.submit(tasks.same, value)
    around2 = others(pool)
    error = future.exception(LIMIT_S)
    assert type(error) is ZeroDivisionError
    assert "on purpose" in str(error.__cause__)
    whole(around)
    whole(around2)


@pytest.mark.parametrize("value", [Reduced(die), StateKills()])
def test_an_argument_that_kills_its_reader_kills_one_worker(pool: Pool, value: Any) -> None:
    around = others(pool)
    future = pool.submit(tasks.same, value)
    around2 = others(pool)
    error = future.exception(LIMIT_S)
    assert type(error) is WorkerCrashed
    assert error.signal is signal.SIGKILL
    assert error.attempts == 1
    whole(around)
    whole(around2)


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        (ReduceRaises, (), ZeroDivisionError),
        (StateRaises, (), ZeroDivisionError),
        (Reduced, (fail,), ZeroDivisionError),
        (ReduceKills, (), WorkerCrashed),
        (StateKills, (), WorkerCrashed),
        (Reduced, (die,), WorkerCrashed),
    ],
)
def test_a_result_that_cannot_travel_fails_its_task(pool: Pool, kind: Any, arguments: Any, expected: Any) -> None:
    around = others(pool)
    future = pool.submit(make, kind, *arguments)
    around2 = others(pool)
    error = future.exception(LIMIT_S)
    assert isinstance(error, expected), repr(error)
    whole(around)
    whole(around2)


class Signature(Exception):
    def __init__(self, code: int, *, reason: str) -> None:
        super().__init__(f"{code}: {reason}")
        self.code = code


class TwoArguments(Exception):
    def __init__(self, left: int, right: int) -> None:
        super().__init__(f"{left} and {right}")
        self.left = left


class Unshowable(Exception):
    def __str__(self) -> str:
        raise ZeroDivisionError("on purpose")

    __repr__ = __str__


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise ZeroDivisionError("on purpose")


class KillsWhenPickled(Exception):
    def __reduce__(self) -> Any:
        die()


class KillsWhenShown(Exception):
    def __str__(self) -> str:
        die()
        return ""


class KillsWhenRead(Exception):
    def __reduce__(self) -> Any:
        return die, ()


class OpaqueError(Exception):
    __module__ = "no.such.module"


def raise_signature() -> None:
    raise Signature(5, reason="because")


def raise_noted() -> None:
    error = KeyError("key")
    error.add_note("a note of the worker")
    raise error


@pytest.mark.parametrize(
    ("kind", "arguments", "expected"),
    [
        (ValueError, ("a text", 5), ValueError),
        (TwoArguments, (1, 2), RemoteError),
        (Unshowable, ("x",), Unshowable),
        (UnpicklableError, ("x",), RemoteError),
        (KillsWhenPickled, (), WorkerCrashed),
        (KillsWhenShown, (), WorkerCrashed),
        (KillsWhenRead, (), WorkerCrashed),
        (KeyboardInterrupt, (), KeyboardInterrupt),
        (GeneratorExit, (), GeneratorExit),
        (StopIteration, (5,), StopIteration),
    ],
)
def test_an_exception_arrives_or_is_stood_for(pool: Pool, kind: Any, arguments: Any, expected: Any) -> None:
    around = others(pool)
    future = pool.submit(raise_a, kind, *arguments)
    around2 = others(pool)
    error = future.exception(LIMIT_S)
    assert type(error) is expected
    if not isinstance(error, WorkerCrashed):
        cause = str(error.__cause__)
        assert "in raise_a" in cause
        assert f"worker {future.worker}" in cause
        assert "attempt 1" in cause
        assert "pid " in cause
    if expected is RemoteError:
        assert error.type_name.endswith(kind.__qualname__)
        assert "in raise_a" in error.traceback_text
    whole(around)
    whole(around2)


def test_a_signature_of_its_own_is_kept_by_name(pool: Pool) -> None:
    error = pool.submit(raise_signature).exception(LIMIT_S)
    assert type(error) is RemoteError
    assert error.type_name.endswith("Signature")
    assert "5: because" in str(error)


def test_notes_are_kept(pool: Pool) -> None:
    error = pool.submit(raise_noted).exception(LIMIT_S)
    assert type(error) is KeyError
    assert error.__notes__ == ["a note of the worker"]


MAIN = """
from shmrt import Pool
class Mine(Exception):
    def __init__(self, a, b=2):
        super().__init__(a)
        self.b = b
def bad():
    raise Mine("x", 7)
class Value:
    def __init__(self, n): self.n = n
def twice(value): return Value(value.n * 2)
with Pool(1) as pool:
    try:
        pool.submit(bad).result()
    except Mine as error:
        print(error, error.b, "in bad" in str(error.__cause__))
    got = pool.submit(twice, Value(4)).result()
    print(got.n, isinstance(got, Value), type(got) is Value)
"""


def test_exceptions_and_classes_of_main_are_its_own(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(MAIN)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py")],
        env={**os.environ, "PYTHONPATH": str(HERE.parent.parent)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.stdout.split() == ["x", "7", "True", "8", "True", "True"], done.stderr


class Asks:
    """Garbage that wants results when it is collected."""

    def __init__(self, futures: list[Any], told: list[object]) -> None:
        self.itself, self.futures, self.told = self, futures, told

    def __del__(self) -> None:
        self.told.extend([future.result(LIMIT_S / 4) for future in self.futures])


@pytest.mark.parametrize("value", [7, "text", (1, "two"), [3], {"four": 4.0}], ids=str)
def test_a_finalizer_may_ask_for_results_that_have_just_come(value: Any, tmp_path: Path) -> None:
    """The collector runs where a value is made; every result that came with it must be in its future by then."""
    told: list[object] = []
    before = gc.get_threshold()
    with Pool(1) as pool:
        futures = [pool.submit(copy.copy, value) for _ in range(50)]
        pool.submit((tmp_path / "done").touch)
        until((tmp_path / "done").exists, "the tasks are not done")  # their results have come, and nobody has looked
        ask = futures[0].result
        gc.disable()
        gc.collect()
        try:
            Asks(futures, told)
            gc.set_threshold(20, 1, 1)  # were they all decoded in one go, it would run among them
            gc.enable()
            got = ask(LIMIT_S)
            gc.collect()
        finally:
            gc.enable()
            gc.set_threshold(*before)
        assert got == value
        assert told == [value] * 50


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif("SHMRT_SANITIZED_RUN" in os.environ, reason="a sanitizer keeps freed blocks for a while")
def test_a_small_result_takes_no_more_than_its_future(pool: Pool) -> None:
    count, batch = 60_000, 600  # few at a time, so that none of the memory is of tasks that wait for their turn
    kept = [pool.submit(abs, -1) for _ in range(batch)]
    assert all(future.result(LIMIT_S) == 1 for future in kept)
    before = resident()
    for _ in range(count // batch):
        futures = [pool.submit(abs, -1) for _ in range(batch)]
        until(lambda: pool.stats()["pending"] == 0, "the tasks are not done")
        assert futures[-1].done()  # delivered, and asked for by nobody
        kept += futures
    each = (resident() - before) / count
    print(f"{each:.0f} bytes each")
    assert each < 250

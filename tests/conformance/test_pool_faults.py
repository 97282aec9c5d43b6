"""Arguments, results and exceptions that do not travel well concern their own task only."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import PoisonMessage, Pool, RemoteError, TaskTimeout, WorkerCrashed

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


@pytest.fixture
def pool() -> Iterator[Pool]:
    with Pool(2) as pool:
        yield pool


def serves(pool: Pool) -> None:
    futures = [pool.submit(tasks.same, number) for number in range(100)]
    assert [future.result(LIMIT_S) for future in futures] == list(range(100))


class Reduce:
    """What its reduction does is chosen by a word."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __reduce__(self) -> Any:
        if self.word == "raise":
            raise LookupError("no reduction")
        if self.word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.word == "exit":
            sys.exit(9)
        return (undo, (self.word, os.getpid()))


def undo(word: str, maker: int) -> Any:
    if word == "fails there" and os.getpid() != maker:
        raise LookupError("not here")
    if word == "kills there" and os.getpid() != maker:
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "fails everywhere":
        raise LookupError("nowhere")
    if word == "changes":
        return 5
    return Reduce(word)


def make_reduce(word: str) -> Reduce:
    return Reduce(word)


class State:
    def __init__(self, word: str) -> None:
        self.word = word

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise LookupError("no state")


class Del:
    def __init__(self, kill: bool) -> None:
        self.kill = kill

    def __del__(self) -> None:
        if self.kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise LookupError("no end")


class Repr:
    def __repr__(self) -> str:
        raise LookupError("no words")

    __str__ = __repr__


def make_and_drop(kill: bool) -> int:
    Del(kill)
    return 1


def test_arguments_that_cannot_be_pickled_raise_in_submit(pool: Pool) -> None:
    for bad in (threading.Lock(), (i for i in ()), Reduce("raise"), {"deep": [threading.Lock()]}):
        with pytest.raises((TypeError, LookupError, pickle.PicklingError)):
            pool.submit(tasks.same, bad)
        with pytest.raises((TypeError, LookupError, pickle.PicklingError)):
            pool.submit(tasks.same, value=bad)
    with pytest.raises(TypeError):
        pool.submit(threading.Lock().acquire)
    assert pool.stats()["submitted"] == 0
    serves(pool)


@pytest.mark.parametrize("make", [lambda: Reduce("fails there"), lambda: State("x")])
def test_arguments_that_fail_there_fail_their_task(pool: Pool, make: Any) -> None:
    future = pool.submit(tasks.same, make())
    assert type(future.exception(LIMIT_S)) is LookupError
    serves(pool)
    assert pool.stats()["restarts"] == 0


def test_an_argument_that_kills_there_is_a_death_of_its_task(pool: Pool) -> None:
    future = pool.submit(tasks.same, Reduce("kills there"))
    assert type(future.exception(LIMIT_S)) is WorkerCrashed
    serves(pool)


def test_an_argument_whose_end_raises_or_has_no_words_is_an_argument(pool: Pool) -> None:
    assert pool.submit(id, Repr()).result(LIMIT_S)
    assert isinstance(pool.submit(tasks.same, Repr()).result(LIMIT_S), Repr)
    assert pool.submit(make_and_drop, False).result(LIMIT_S) == 1
    serves(pool)


@pytest.mark.parametrize("word", ["raise", "fails everywhere", "changes"])
def test_a_result_that_cannot_travel_fails_its_task(pool: Pool, word: str) -> None:
    error = pool.submit(make_reduce, word).exception(LIMIT_S)
    assert isinstance(error, TypeError if word == "changes" else LookupError)
    serves(pool)
    assert pool.stats()["restarts"] == 0


def lock() -> Any:
    return threading.Lock()


def generator() -> Any:
    return (number for number in range(3))


@pytest.mark.parametrize("make", [lock, generator])
def test_a_result_that_no_pickle_knows_fails_its_task(pool: Pool, make: Any) -> None:
    error = pool.submit(make).exception(LIMIT_S)
    assert isinstance(error, (TypeError, pickle.PicklingError))
    serves(pool)


def test_a_result_that_cannot_be_read_here_fails_its_task(pool: Pool) -> None:
    error = pool.submit(make_reduce, "fails there").exception(LIMIT_S)
    assert error is not None
    serves(pool)


@pytest.mark.parametrize("word", ["kill", "exit"])
def test_a_result_whose_reduction_ends_the_process_is_a_death_of_its_task(pool: Pool, word: str) -> None:
    error = pool.submit(make_reduce, word).exception(LIMIT_S)
    assert type(error) is WorkerCrashed, repr(error)
    assert error.signal is (signal.SIGKILL if word == "kill" else None)
    assert error.exitcode == (None if word == "kill" else 9)
    serves(pool)


def test_a_value_whose_end_kills_concerns_no_other_task(pool: Pool) -> None:
    assert type(pool.submit(make_and_drop, True).exception(LIMIT_S)) is WorkerCrashed
    serves(pool)


class Callable:
    """A function that is an object: its unpickling is done in the first task that names it."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self) -> str:
        return self.word

    def __reduce__(self) -> Any:
        return (make_callable, (self.word, os.getpid()))


def make_callable(word: str, maker: int) -> Callable:
    if os.getpid() != maker:
        if word == "raise":
            raise LookupError("not here")
        if word == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if word == "exit":
            sys.exit(6)
        if word == "hang":
            signal.pause()
    return Callable(word)


def test_a_function_that_cannot_be_read_there_fails_its_tasks(pool: Pool) -> None:
    assert pool.submit(Callable("fine")).result(LIMIT_S) == "fine"
    raises = Callable("raise")
    errors = [pool.submit(raises).exception(LIMIT_S) for _ in range(3)]
    assert [type(error) for error in errors] == [LookupError] * 3
    serves(pool)
    assert pool.stats()["restarts"] == 0


def test_a_function_whose_reading_ends_the_worker_is_a_death_of_the_task(pool: Pool) -> None:
    error = pool.submit(Callable("kill")).exception(LIMIT_S)
    assert (type(error), error.signal) == (WorkerCrashed, signal.SIGKILL)
    error = pool.submit(Callable("exit")).exception(LIMIT_S)
    assert (type(error), error.exitcode) == (WorkerCrashed, 6)
    error = pool.options(timeout=0.3).submit(Callable("hang")).exception(LIMIT_S)
    assert type(error) is TaskTimeout
    poison = pool.options(max_attempts=2).submit(Callable("kill"))
    assert type(poison.exception(LIMIT_S)) is PoisonMessage
    serves(pool)


# ---- exceptions ----


class Signature(Exception):
    def __init__(self, code: int, *, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code
        self.text = text

    def __reduce__(self) -> Any:
        return (make_signature, (self.code, self.text))


def make_signature(code: int, text: str) -> Signature:
    return Signature(code, text=text)


class NoPickle(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("two words")


class BadReduce(ValueError):
    def __reduce__(self) -> Any:
        raise LookupError("no reduction")


class BadWords(ValueError):
    def __str__(self) -> str:
        raise LookupError("no words")

    __repr__ = __str__


class KillingReduce(ValueError):
    def __reduce__(self) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class KillingWords(ValueError):
    def __str__(self) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


class ExitingWords(ValueError):
    def __str__(self) -> str:
        sys.exit(4)


class OnlyThere(ValueError):
    def __reduce__(self) -> Any:
        return (only_there, (os.getpid(),))


def only_there(maker: int) -> OnlyThere:
    if os.getpid() != maker:
        raise LookupError("not here")
    return OnlyThere("there")


def raise_named(name: str, *args: Any, **kwargs: Any) -> None:
    raise globals()[name](*args, **kwargs)


def test_an_exception_arrives_as_its_own_type_with_where_it_came_from(pool: Pool) -> None:
    future = pool.submit(raise_named, "Signature", 5, text="five")
    error = future.exception(LIMIT_S)
    assert type(error) is Signature
    assert (error.code, error.text) == (5, "five")
    text = str(error.__cause__)
    assert "in raise_named" in text
    assert "Signature: 5: five" in text
    assert future.worker in text
    assert "attempt 1" in text
    assert f"pid {pool.submit(tasks.pid).result(LIMIT_S)}" in text or "pid " in text
    shown = "".join(traceback.format_exception(error))
    assert "in raise_named" in shown
    assert future.worker in shown


def with_notes() -> None:
    error = ValueError("noted")
    error.add_note("first note")
    error.add_note("second note")
    raise error


def with_cause() -> None:
    try:
        raise KeyError("the cause")
    except KeyError as error:
        raise ValueError("the effect") from error


def with_group() -> None:
    raise ExceptionGroup("several", [ValueError("one"), ExceptionGroup("inner", [TypeError("two"), OSError(5, "io")])])


def test_notes_and_causes_and_groups_stay(pool: Pool) -> None:
    noted = pool.submit(with_notes).exception(LIMIT_S)
    assert noted.__notes__ == ["first note", "second note"]
    effect = pool.submit(with_cause).exception(LIMIT_S)
    assert "KeyError: 'the cause'" in str(effect.__cause__)
    assert "direct cause" in str(effect.__cause__)
    group = pool.submit(with_group).exception(LIMIT_S)
    assert type(group) is ExceptionGroup
    assert [type(one) for one in group.exceptions] == [ValueError, ExceptionGroup]
    assert group.exceptions[1].exceptions[1].errno == 5
    assert "TypeError: two" in str(group.__cause__)


@pytest.mark.parametrize(
    ("name", "arguments"), [("NoPickle", (1, 2)), ("BadReduce", ("x",)), ("OnlyThere", ("there",))]
)
def test_an_exception_that_does_not_survive_is_stood_in_for(pool: Pool, name: str, arguments: Any) -> None:
    error = pool.submit(raise_named, name, *arguments).exception(LIMIT_S)
    assert type(error) is RemoteError
    assert error.type_name.endswith(name)
    assert "in raise_named" in error.traceback_text
    assert name in str(error)
    serves(pool)
    assert pool.stats()["restarts"] == 0


def test_an_exception_without_words_is_still_its_type(pool: Pool) -> None:
    error = pool.submit(raise_named, "BadWords", "x").exception(LIMIT_S)
    assert type(error) is BadWords
    assert "BadWords" in str(error.__cause__)
    serves(pool)


@pytest.mark.parametrize("name", ["KillingReduce", "KillingWords"])
def test_an_exception_that_kills_on_its_way_is_a_death_of_its_task(pool: Pool, name: str) -> None:
    assert type(pool.submit(raise_named, name, "x").exception(LIMIT_S)) is WorkerCrashed
    serves(pool)


def test_an_exception_whose_words_exit_is_that_task_s_only(pool: Pool) -> None:
    error = pool.submit(raise_named, "ExitingWords", "x").exception(LIMIT_S)
    assert isinstance(error, (ExitingWords, RemoteError, WorkerCrashed))
    serves(pool)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, BaseException, StopIteration, RecursionError])
def test_every_base_exception_is_an_outcome(pool: Pool, kind: type[BaseException]) -> None:
    error = pool.submit(tasks.raise_it, kind("x")).exception(LIMIT_S)
    assert type(error) is kind
    serves(pool)
    assert pool.stats()["restarts"] == 0


MAIN = """
from shmrt import Pool
import pool_tasks as tasks

class Own(Exception):
    def __init__(self, code, other):
        super().__init__(code, other)
        self.code = code

class Value:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return type(self) is type(other) and self.n == other.n

def fail(): raise Own(5, "x")
def back(value): return value

with tasks.watchdog(), Pool(2) as pool:
    error = pool.submit(fail).exception()
    print(type(error) is Own, error.code, "in fail" in str(error.__cause__))
    print(pool.submit(back, Value(3)).result() == Value(3))
    print(pool.submit(lambda: Value(4)).result().n)
    try:
        pool.submit(fail).result()
    except Own as caught:
        print("caught", caught.args)
"""


def test_what_lives_in_main_comes_back_as_itself(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(MAIN)
    path = os.pathsep.join([str(HERE.parent.parent), str(HERE)])
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.stdout.splitlines() == ["True 5 True", "True", "4", "caught (5, 'x')"], done.stderr

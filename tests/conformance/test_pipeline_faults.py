"""Deaths and failures in a pipeline: a killed worker costs nothing, a failure concerns its own item only."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_kit import ENGINES, Custom, crash, double, make_engine, once

import shmrt
from shmrt.pipeline import DeadLetter, Pipeline
from shmrt.spec import RingSpec


@pytest.fixture(params=ENGINES)
def engine(request: Any) -> Any:
    return make_engine(request.param)


# ---- deaths


@pytest.mark.parametrize("ordered", [True, False])
def test_a_killed_worker_costs_nothing(engine: Any, tmp_path: Path, ordered: bool) -> None:
    """P2, P3. Workers die in every stage in the middle of the work; every output comes once."""

    def step(place: int) -> Callable[[int], int]:
        def work(x: int) -> int:
            if x % 50 == 10 + place and once(tmp_path / f"{place}-{x}"):
                crash()
            return x

        return work

    pipe = Pipeline().map(step(0), workers=2).map(step(1), workers=2).map(step(2), workers=1)
    with pipe.run(range(300), ordered=ordered, engine=engine) as run:
        got = list(run)
    assert (got if ordered else sorted(got)) == list(range(300))
    assert run.report.balanced and 6 <= run.report.restarts <= 18 and run.report.failed == 0


@pytest.mark.parametrize("attempts", [1, 2, 3])
@pytest.mark.parametrize("poison", [0, 90])
def test_an_item_that_kills_costs_exactly_its_attempts(engine: Any, tmp_path: Path, attempts: int, poison: int) -> None:
    """C6. A poison message, alone or in company: as many deaths as it may cost, then a dead letter; the others flow."""
    log = tmp_path / "deaths"

    def work(x: int) -> int:
        if x == poison:
            with open(log, "a") as file:
                file.write("x")
            crash()
        return x

    pipe = Pipeline("p").map(work, workers=1, max_attempts=attempts, name="w")
    with pipe.run(range(200), on_error="dead_letter", engine=engine) as run:
        assert list(run) == [x for x in range(200) if x != poison]
    assert log.read_text() == "x" * attempts
    (letter,) = run.dead_letters
    assert (letter.item, letter.attempts, letter.stage) == (poison, attempts, "w")
    kind = shmrt.PoisonMessage if attempts > 1 else shmrt.WorkerCrashed
    assert type(letter.error) is kind and letter.error.attempts == attempts
    stage = run.report.stages["w"]
    assert (stage.failed, stage.done, stage.restarts, stage.retried) == (1, 199, attempts, attempts - 1)
    assert run.report.balanced and run.report.dead_letters == 1


def test_after_a_death_a_key_keeps_its_worker_and_order(engine: Any, tmp_path: Path) -> None:
    """The replacement gets the interrupted items first and in order; the state of the instance starts afresh."""
    log = tmp_path / "seen"

    def work(x: int) -> tuple[int, int]:
        if x == 40 and once(tmp_path / "died"):
            crash()
        with open(log, "a") as file:
            file.write(f"{x}\n")
        return x

    pipe = Pipeline().key_by(lambda x: x % 3).map(work, workers=2)
    with pipe.run(range(120), engine=engine) as run:
        assert list(run) == list(range(120))
    last = {int(line): place for place, line in enumerate(log.read_text().split())}
    for key in range(3):
        places = [last[x] for x in range(key, 120, 3)]
        assert places == sorted(places)


def test_a_stream_that_dies_fails_and_is_not_run_again(engine: Any, tmp_path: Path) -> None:
    """Its published outputs stay, once; the other inputs are whole. Below group_bytes an input is all or nothing."""
    log = tmp_path / "starts"

    def many(x: int) -> Any:
        with open(log, "a") as file:
            file.write(f"{x} ")
        for n in range(100):
            if x == 1 and n == 60:
                crash()
            yield x, n

    pipe = Pipeline().flat_map(many, workers=2, group_bytes=1000, ring=RingSpec(slots=4))
    with pipe.run(range(4), on_error="dead_letter", engine=engine) as run:
        got = list(run)
    part = [n for x, n in got if x == 1]
    assert part == list(range(len(part))) and 0 < len(part) <= 60
    assert [pair for pair in got if pair[0] != 1] == [(x, n) for x in (0, 2, 3) for n in range(100)]
    assert [letter.item for letter in run.dead_letters] == [1]
    assert log.read_text().split().count("1") == 1
    assert run.report.balanced

    log.unlink()
    with Pipeline().flat_map(many).run(range(4), on_error="dead_letter", engine=engine) as run:
        assert list(run) == [(x, n) for x in (0, 2, 3) for n in range(100)]
    assert log.read_text().split().count("1") == 3


# ---- failures


class Stubborn(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail_on_five(x: int) -> int:
    if x == 5:
        raise Custom(7, "five is bad")
    return x


def test_raise_stops_at_the_first_failure(engine: Any) -> None:
    """The own exception with the remote traceback as cause and a note; what came before it was delivered."""
    got = []
    with Pipeline("p").map(fail_on_five).map(double).run(itertools.count(), engine=engine) as run:
        with pytest.raises(Custom, match="five is bad") as caught:
            for item in run:
                got.append(item)
        assert list(run) == []
    assert got == [0, 2, 4, 6, 8] and caught.value.code == 7
    assert "fail_on_five" in str(caught.value.__cause__)
    assert caught.value.__notes__ == ["in stage 'fail_on_five' of pipeline 'p', item 5"]


def test_dead_letters_and_skip(engine: Any) -> None:
    """Failures are listed with item, error, attempts and stage; or only counted."""
    pipe = Pipeline().map(fail_on_five, name="first").filter(lambda x: 1 / (x - 7), name="second")
    with pipe.run(range(20), on_error="dead_letter", engine=engine) as run:
        got = list(run)
    assert got == [x for x in range(20) if x not in (5, 7)]
    letters = sorted(run.dead_letters, key=lambda letter: letter.item)
    assert [(x.item, x.attempts, x.stage, type(x.error)) for x in letters] == [
        (5, 1, "first", Custom),
        (7, 1, "second", ZeroDivisionError),
    ]
    assert all(isinstance(letter, DeadLetter) for letter in letters)
    with pipe.run(range(20), on_error="skip", engine=engine) as run:
        assert list(run) == got
    assert run.dead_letters == [] and run.report.failed == 2 and run.report.balanced


def refuse(x: int) -> Any:
    return {
        1: lambda: sys.exit(3),
        2: lambda: next(iter(())),
        3: lambda: (_ for _ in ()).throw(Stubborn(1, 2)),
        4: lambda: threading.Lock(),
    }.get(x, lambda: x)()


def test_hostile_outcomes_concern_their_own_item(engine: Any) -> None:
    """P5, P7. SystemExit, StopIteration, exceptions and results that do not pickle, items that do not pickle."""
    source = [0, 1, 2, 3, 4, threading.Lock(), 6]
    with Pipeline().map(refuse).run(source, on_error="dead_letter", engine=engine) as run:
        got = list(run)
    assert got == [0, 6]
    errors = {str(letter.item)[:1]: letter.error for letter in run.dead_letters}
    assert isinstance(errors["1"], shmrt.RemoteError) and errors["1"].type_name == "builtins.SystemExit"
    assert isinstance(errors["2"], StopIteration)
    assert isinstance(errors["3"], shmrt.RemoteError) and "1 and 2" in str(errors["3"])
    assert isinstance(errors["4"], Exception) and isinstance(errors["<"], Exception)
    assert run.report.balanced
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        with Pipeline().map(refuse).run([0, 2], engine=engine) as run:
            list(run)


def test_a_key_that_cannot_be_used_fails_its_item(engine: Any) -> None:
    """Unhashable keys and raising key functions are failures of the key_by stage; the others flow."""
    keys: dict[int, Any] = {3: [], 4: None}

    def key(x: int) -> Any:
        return 1 / 0 if x == 4 else keys.get(x, x)

    doubled = Pipeline().map(double).key_by(lambda x: key(x // 2), name="key")
    for pipe in (doubled.map(str), Pipeline().key_by(key, name="key").map(str)):
        with pipe.run(range(8), on_error="dead_letter", engine=engine) as run:
            assert len(list(run)) == 6
        assert [(letter.stage, type(letter.error)) for letter in run.dead_letters] == [
            ("key", TypeError),
            ("key", ZeroDivisionError),
        ]
        assert run.report.balanced and run.report.stages["key"].failed == 2


def test_errors_of_the_source_reach_the_consumer(engine: Any) -> None:
    """After the outputs of everything that the source gave; the function that makes it is covered too."""

    def source() -> Any:
        yield from range(10)
        raise Custom(1, "no more")

    def broken() -> Any:
        raise Custom(2, "cannot open")

    got = []
    with Pipeline().map(double).batch(4).run(source, engine=engine) as run:
        with pytest.raises(Custom, match="no more"):
            for item in run:
                got.append(item)
    assert got == [[0, 2, 4, 6], [8, 10, 12, 14], [16, 18]]
    for bad, message in ((broken, "cannot open"), (lambda: 5, "must return an iterable")):
        with Pipeline().run(bad, engine=engine) as run:
            with pytest.raises((Custom, TypeError), match=message):
                list(run)

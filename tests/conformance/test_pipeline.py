"""What a pipeline promises, against a pretended executor with seeded deaths and, where it can run, the real pool."""

from __future__ import annotations

import copy
import gc
import io
import itertools
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "unit"))

import fake_pool
from fake_pool import FakeEngine

import shmrt
from shmrt.pipeline import DeadLetter, Pipeline
from shmrt.pipeline_report import Progress
from shmrt.spec import RingSpec


def _real_engine() -> Any:
    pytest.importorskip("shmrt.pool", exc_type=ImportError)
    return "local"


@pytest.fixture(params=["fake", pytest.param("pool", marks=pytest.mark.slow)])
def engine(request: Any) -> Any:
    return FakeEngine() if request.param == "fake" else _real_engine()


def crash() -> None:
    """The process that runs this is dead, or pretends to be."""
    if getattr(fake_pool._local, "memory", None) is not None:
        fake_pool.die()
    os.kill(os.getpid(), signal.SIGKILL)


def once(path: Path) -> bool:
    """True for the first caller of all processes."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def double(x: int) -> int:
    return 2 * x


def odd(x: int) -> bool:
    return x % 2 == 1


def seventh(x: int) -> int:
    return x % 7


class Running:
    """The sum of the numbers seen by key, which is right only if a key stays with its instance."""

    def __init__(self) -> None:
        self.sums: dict[int, int] = {}

    def __call__(self, x: int) -> tuple[int, int]:
        self.sums[x % 7] = self.sums.get(x % 7, 0) + x
        return x, self.sums[x % 7]


# ---- outputs


def test_the_outputs_are_those_of_the_serial_run(engine: Any) -> None:
    """P3. Every kind of stage in one line; order, contents and accounts as computed without workers."""
    pipe = (
        Pipeline("all")
        .map(double, workers=2)
        .filter(lambda x: x % 3 != 0)
        .flat_map(lambda x: range(x, x + x % 4))
        .batch(5)
        .map(sum)
        .key_by(seventh)
        .map(Running, workers=2)
    )
    with pipe.run(range(500), engine=engine) as run:
        got = list(run)
    serial = pipe.run_serial(range(500))
    assert got == list(serial) and got
    report = run.report
    assert report.balanced and report["in"] == report.in_ == 500 and report.out == len(got)
    same = ("name", "kind", "in", "out", "done", "filtered", "failed", "pending")
    assert [[stage[key] for key in same] for stage in report.stages] == [
        [stage[key] for key in same] for stage in serial.report.stages
    ]
    json.dumps(report)
    assert pickle.loads(pickle.dumps(report)) == report == copy.deepcopy(report)


def test_nothing_in_nothing_out(engine: Any) -> None:
    """The empty source, and the pipeline without stages."""
    with Pipeline().map(double).batch(3).run([], engine=engine) as run:
        assert list(run) == []
    assert run.report.balanced
    with Pipeline().run(iter("abc"), engine=engine) as run:
        assert list(run) == ["a", "b", "c"]


STAGES: dict[str, Callable[[Pipeline, int], Pipeline]] = {
    "map": lambda pipe, n: pipe.map(lambda x, n=n: (n, x), workers=1 + n % 3, ring=RingSpec(slots=1 + n % 5)),
    "filter": lambda pipe, n: pipe.filter(lambda x, n=n: len(repr(x)) % 4 != n % 4, ring=RingSpec(slots=1 + n % 9)),
    "flat_map": lambda pipe, n: pipe.flat_map(
        lambda x, n=n: ((x, i) for i in range(len(repr(x)) % (n + 1))), group_bytes=(300, "1MiB")[n % 2]
    ),
    "batch": lambda pipe, n: pipe.batch(n),
    "keyed": lambda pipe, n: pipe.key_by(lambda x: len(repr(x))).map(lambda x: [x], workers=n),
    "raises": lambda pipe, n: pipe.map(lambda x, n=n: 1 / (len(repr(x)) % (n + 3)) and x),
}


@settings(max_examples=60, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    kinds=st.lists(st.tuples(st.sampled_from(sorted(STAGES)), st.integers(1, 6)), max_size=5),
    count=st.integers(0, 50),
    seed=st.integers(0, 2**32),
    rate=st.sampled_from([0.0, 0.2]),
    policy=st.sampled_from(["raise", "dead_letter", "skip"]),
)
def test_any_pipeline_equals_its_serial_run(kinds: Any, count: int, seed: int, rate: float, policy: Any) -> None:
    """Outputs, failures and accounts of random pipelines under random deaths; streams excepted."""
    pipe = Pipeline()
    for kind, number in kinds:
        pipe = STAGES[kind](pipe, number)
    if any(kind == "flat_map" for kind, _ in kinds):
        rate = 0.0
    note(f"seed={seed} {pipe}")
    serial = pipe.run_serial(range(count), on_error=policy)
    expected, problem = _drain(serial)
    with pipe.run(range(count), on_error=policy, engine=FakeEngine(seed, rate)) as run:
        got, error = _drain(run)
    assert got == expected[: len(got)] and type(error) is type(problem)
    if problem is None:
        assert got == expected and run.report.balanced and serial.report.balanced
    assert [(x.item, x.stage, type(x.error)) for x in sorted(run.dead_letters, key=repr)] == [
        (x.item, x.stage, type(x.error)) for x in sorted(serial.dead_letters, key=repr)
    ]


def _drain(run: Any) -> tuple[list[Any], BaseException | None]:
    got: list[Any] = []
    try:
        for item in run:
            got.append(item)
    except Exception as error:
        return got, error
    return got, None


def test_unordered_outputs_are_the_same_set(engine: Any) -> None:
    """ordered=False changes the order only; keyed stages still see their keys in the order of the source."""
    pipe = Pipeline().map(double, workers=2).key_by(seventh).map(Running, workers=2)
    with pipe.run(range(300), ordered=False, engine=engine) as run:
        got = list(run)
    assert sorted(got) == sorted(pipe.run_serial(range(300)))


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


# ---- failures


class Custom(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code

    def __reduce__(self) -> Any:
        return Custom, (self.code, str(self))


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


def test_a_description_runs_many_times_also_without_with(engine: Any) -> None:
    """Runs are independent; a run iterated to its end closes itself; a run that is over cannot be entered again."""
    pipe = Pipeline().map(double).source(lambda: range(5))
    assert pipe.has_source
    runs = [pipe.run(engine=engine) for _ in range(2)]
    assert [list(run) for run in runs] == [[0, 2, 4, 6, 8]] * 2
    with pytest.raises(RuntimeError, match="is over"):
        runs[0].__enter__()


# ---- time and state


def test_a_batch_does_not_wait_longer_than_its_timeout(engine: Any) -> None:
    """The source blocks until the consumer has the short batch: only the timeout can let it out."""
    seen = threading.Event()

    def source() -> Any:
        yield from (1, 2)
        assert seen.wait(60)
        yield 3

    got = []
    with Pipeline().batch(10, timeout=0.02).map(sum).run(source, engine=engine) as run:
        for item in run:
            got.append(item)
            seen.set()
    assert sum(got) == 6 and got[-1] == 3


class Counter:
    made = 0

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, x: int) -> tuple[int, int]:
        self.seen += 1
        return id(self), self.seen


def test_a_class_is_one_instance_per_worker(engine: Any) -> None:
    """Made in the worker, kept from item to item; `int` and other classes without __call__ are plain functions."""
    with Pipeline().map(Counter, workers=1).map(lambda pair: pair[1]).run(range(100), engine=engine) as run:
        assert list(run) == list(range(1, 101))
    assert list(Pipeline().map(int).run_serial(["1", "2"])) == [1, 2]


# ---- descriptions


def test_a_description_is_plain_data() -> None:
    """Immutable, picklable with lambdas, engine-neutral; `source` works as a statement too."""
    base = Pipeline("base")
    longer = base.map(lambda x: x + 1).batch(2)
    assert base.stages == () and len(longer.stages) == 2
    again = pickle.loads(pickle.dumps(longer))
    assert list(again.run_serial([1, 2, 3])) == [[2, 3], [4]] and again.name == "base"
    first, second = longer.source([1]), longer.source([5])
    assert (list(first.run_serial()), list(second.run_serial())) == ([[2]], [[6]])
    assert longer.has_source and not base.has_source
    names = Pipeline().map(double).map(double).map(lambda x: x).map(lambda x: x)
    assert [stage.name for stage in names.stages] == ["double", "double-2", "map", "map-2"]
    assert "double -> double-2" in repr(names)


async def asynchronous(x: int) -> int:
    return x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda p: p.map(5), r"stage 2 \(map 'map'\) of pipeline 'p': fn must be callable, not 5"),
        (lambda p: p.map(asynchronous), "asynchronous"),
        (lambda p: p.map(double, workers=0), r"workers=0 must be from 1"),
        (lambda p: p.map(double, workers=1.5), r"workers must be a whole number, not 1.5"),
        (lambda p: p.map(double, timeout=0), r"timeout=0 must be more than 0"),
        (lambda p: p.map(double, timeout="soon"), r"timeout must be seconds or None, not 'soon'"),
        (lambda p: p.filter(odd, max_attempts=0), r"max_attempts=0 must be from 1"),
        (lambda p: p.filter(odd, ring=5), r"ring must be a RingSpec, not 5"),
        (lambda p: p.filter(odd, ring=RingSpec(on_full="raise")), r"on_full='raise', must be 'block'"),
        (lambda p: p.map(double, name="odd"), r"name='odd' is taken"),
        (lambda p: p.map(double, name=""), r"name must be a string"),
        (lambda p: p.flat_map(range, group_bytes=0), r"group_bytes=0"),
        (lambda p: p.batch(0), r"size=0 must be from 1"),
        (lambda p: p.batch(2, timeout=-1), r"timeout=-1"),
        (lambda p: p.key_by(None), r"fn must be callable, not None"),
        (lambda p: p.key_by(odd).batch(2), r"cannot follow key_by 'odd-2'"),
        (lambda p: p.source(5), r"source must be an iterable"),
        (lambda p: p.run(), r"has no source"),
        (lambda p: p.run(5), r"source must be an iterable"),
        (lambda p: p.run([], on_error="ignore"), r"on_error='ignore' must be one of 'raise'"),
        (lambda p: p.run([], engine="dask"), r"engine='dask' cannot run a pipeline; there is the engine 'local'"),
        (lambda p: p.map(threading.Lock().acquire).run([], engine=FakeEngine()), r"cannot be sent to a worker"),
        (lambda p: Pipeline(5), r"name must be a string"),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_argument_says_where_and_what(build: Any, message: str) -> None:
    """P7. Stage, argument and value are named at the call."""
    with pytest.raises((ValueError, TypeError), match=message):
        build(Pipeline("p").filter(odd, name="odd"))


def test_progress_draws_on_a_terminal_only(capsys: Any, engine: Any) -> None:
    """Silent when standard error is no terminal; a line that ends with the totals when it is one."""
    with Pipeline("bar").map(double).run(range(10), progress=True, engine=engine) as run:
        list(run)
    assert capsys.readouterr().err == ""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    bar = Progress(10, 0, stream)
    bar.draw("bar", 5, 4, 1, 200_000_000)
    bar.draw("bar", 6, 5, 1, 210_000_000)
    bar.draw("bar", 10, 9, 1, 10**9, last=True)
    assert stream.getvalue().count("\r") == 2
    assert stream.getvalue().endswith("100% bar: 10 in, 9 out, 1 failed, 9/s\n")


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

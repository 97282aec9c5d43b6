"""A pipeline is a description: plain data that runs many times, names mistakes at the call, and can show progress."""

from __future__ import annotations

import io
import pickle
import threading
from typing import Any

import pytest
from pipeline_kit import ENGINES, FakeEngine, double, make_engine, odd

from shmrt.pipeline import Pipeline
from shmrt.pipeline_report import Progress
from shmrt.spec import RingSpec


@pytest.fixture(params=ENGINES)
def engine(request: Any) -> Any:
    return make_engine(request.param)


def test_a_description_runs_many_times_also_without_with(engine: Any) -> None:
    """Runs are independent; a run iterated to its end closes itself; a run that is over cannot be entered again."""
    pipe = Pipeline().map(double).source(lambda: range(5))
    assert pipe.has_source
    runs = [pipe.run(engine=engine) for _ in range(2)]
    assert [list(run) for run in runs] == [[0, 2, 4, 6, 8]] * 2
    with pytest.raises(RuntimeError, match="is over"):
        runs[0].__enter__()


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

"""The outputs of a pipeline: those of its serial run, in order, whatever its stages, their state and the time.

Deaths and failures are in test_pipeline_faults.py, bounds and leaving in test_pipeline_bounds.py, descriptions and
their mistakes in test_pipeline_descriptions.py.
"""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, note, settings
from hypothesis import strategies as st
from pipeline_kit import ENGINES, FakeEngine, Running, double, make_engine, seventh

from shmrt.pipeline import Pipeline
from shmrt.spec import RingSpec


@pytest.fixture(params=ENGINES)
def engine(request: Any) -> Any:
    return make_engine(request.param)


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


@example([("batch", 5), ("raises", 1), ("batch", 2)], 9, 0, 0.0, "raise")  # the last batch fails while one is open
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

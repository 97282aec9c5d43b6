"""The gate on hot paths: instruction counts of this build beside the recorded ones (`bench/instructions.py`)."""

from __future__ import annotations

import os

import pytest

from bench import instructions
from bench.instructions import Cost, NotCounted, judge

RECORD = {
    "compiler": "cc 1",
    "python": "py 1",
    "path": {"put": {"native": 100.0, "all": 300.0}, "get": {"native": 50.0, "all": 90.0}},
}
GET = {"get": Cost(50.0, 90.0)}


@pytest.mark.parametrize(
    "put, compiler, python, wrong",
    [
        (Cost(100.0, 300.0), "cc 1", "py 1", []),
        (Cost(105.0, 315.0), "cc 1", "py 1", []),
        (Cost(60.0, 100.0), "cc 1", "py 1", []),
        (Cost(105.1, 300.0), "cc 1", "py 1", ["put: 105.1 native instructions, 100.0 are recorded"]),
        (Cost(105.1, 300.0), "cc 1", "py 2", ["put: 105.1 native instructions, 100.0 are recorded"]),
        (Cost(100.0, 315.1), "cc 1", "py 1", ["put: 315.1 instructions in all, 300.0 are recorded"]),
        (Cost(100.0, 315.1), "cc 1", "py 2", []),
        (Cost(900.0, 900.0), "cc 2", "py 1", []),
    ],
)
def test_what_may_grow_how_far(put: Cost, compiler: str, python: str, wrong: list[str]) -> None:
    assert list(judge({"put": put, **GET}, RECORD, compiler, python)) == wrong


def test_paths_that_only_one_side_knows() -> None:
    found = {"put": Cost(1.0, 1.0), "peek": Cost(1.0, 1.0)}
    assert list(judge(found, RECORD, "cc 1", "py 1")) == [
        "get: recorded, and not counted any more",
        "peek: not recorded",
    ]


@pytest.mark.slow
def test_no_hot_path_costs_more_than_is_recorded() -> None:
    record = instructions.recorded()
    if instructions.compiler() != record["compiler"]:
        pytest.skip(
            f"NO INSTRUCTIONS COMPARED: this extension was made by {instructions.compiler()}, recorded are those of "
            f"{record['compiler']}"
        )
    if "LD_PRELOAD" in os.environ:
        pytest.skip("NO INSTRUCTIONS COMPARED: another library is loaded before the others, as sanitizers do")
    try:
        found = instructions.measure(record["count"])
    except NotCounted as reason:
        pytest.skip(f"NO INSTRUCTIONS COMPARED: {reason}")
    wrong = list(judge(found, record, instructions.compiler(), instructions.interpreter()))
    assert not wrong, "; if that is meant: python -m bench.instructions record\n" + "\n".join(wrong)

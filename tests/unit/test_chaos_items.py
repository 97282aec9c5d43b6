"""What `chaos` compares values by, and the numbered items that it sends through a target's own functions."""

from __future__ import annotations

import collections
import copy
import dataclasses
import datetime
import decimal
import enum
import os
import pickle
import random
from pathlib import Path
from typing import Any

import numpy
import pytest

from shmrt import Pipeline
from shmrt.cli.chaos_digest import digest
from shmrt.cli.chaos_items import Numbered, Tally, item, numbered, opened, received


class Colour(enum.Enum):
    RED = 1


class Plain:
    def __init__(self, value: object) -> None:
        self.value = value


@dataclasses.dataclass(slots=True)
class Slotted:
    one: int
    two: list[int]


Pair = collections.namedtuple("Pair", "left right")


class Refusing:
    def __reduce_ex__(self, _: Any) -> Any:
        raise TypeError("not me")


VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**70, -(2**70), 0.0, 1.5, float("inf"), 1j, "", "a", "\ud800", b"", b"a"),
    *([], [1], (1,), {1}, {}, {1: 2}, {"a": [1, (2, {3})]}, [[]], [[], []], ["ab"], ["a", "b"]),
    *(Colour.RED, Pair(1, 2), Plain(1), Plain("1"), Slotted(1, [2]), Slotted(2, [1]), decimal.Decimal("1.10")),
    *(datetime.date(2024, 2, 29), collections.OrderedDict(a=1), collections.Counter("aab"), range(3), slice(1, 2)),
    *(numpy.arange(3), numpy.arange(4), numpy.arange(3.0), numpy.arange(6).reshape(2, 3), numpy.arange(6)),
    *(numpy.float32(1.5), ValueError("x"), ValueError("y"), KeyError("x"), len, print, int, str, os.path.join),
    *(numpy.array([1, "x"], dtype=object), numpy.zeros(2, dtype=[("a", "i4")])),
]


def test_different_values_have_different_numbers() -> None:
    """Also where `==` or a careless encoding would take them for the same."""
    found = [digest(value) for value in VALUES]
    assert len(set(found)) == len(VALUES)
    assert digest(0) != digest(False) != digest(0.0) and digest(0.0) != digest(-0.0)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_that_has_travelled_has_the_same_number(value: Any) -> None:
    for protocol in (2, 5):
        assert digest(pickle.loads(pickle.dumps(value, protocol))) == digest(value)
    assert digest(copy.deepcopy(value)) == digest(value)


def test_what_is_no_difference_in_value_makes_none() -> None:
    """Sharing, the order in sets and dicts, and what kind of bytes it is."""
    shared = ["x" * 50]
    assert digest([shared, shared]) == digest([["x" * 50], ["x" * 50]])
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    words = [f"{n:x}" for n in range(500)]
    other = words[::-1]
    assert digest(set(words)) == digest(set(other)) and digest(frozenset(words)) == digest(frozenset(other))
    assert digest(b"ab") == digest(bytearray(b"ab")) == digest(memoryview(b"xaby")[1:3])
    assert digest(numpy.arange(10)[::2]) == digest(numpy.array([0, 2, 4, 6, 8]))
    assert digest([1, 2]) != digest([2, 1]) and digest((1,)) != digest([1])


def test_every_changed_byte_is_another_number() -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    content = bytearray(rng.randbytes(300))
    before = digest({"payload": content, "n": 1})
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << rng.randrange(8)
        assert digest({"payload": changed, "n": 1}) != before


def test_it_never_fails() -> None:
    """What lies in itself, is too deep, or refuses to be taken apart still has a number, and always the same one."""
    loop: list[Any] = [1]
    loop.append(loop)
    assert digest(loop) == digest(loop) != digest([1, [1]])
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    assert digest(deep) == digest(deep)
    assert digest(Refusing()) == digest(Refusing()) != digest(Plain(1))
    assert digest([1, Refusing()]) == digest([1, Refusing()])
    assert digest(lambda: 1) != digest(lambda x: x + 1)


# ---- items
class Counting:
    """Stateful: how many it has seen."""

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, value: int) -> tuple[int, int]:
        self.seen += 1
        return value, self.seen


def test_a_function_sees_values_and_the_numbers_go_along() -> None:
    assert opened(Numbered(str, "map", stateful=False)(item(4, 7))) == ((4,), "7", False)
    assert Numbered(bool, "filter", stateful=False)(item(4, 0)) is False
    assert Numbered(lambda x: x % 3, "key_by", stateful=False)(item(4, 5)) == 2
    outs = list(Numbered(range, "flat_map", stateful=False)(item(4, 2)))
    assert [opened(out) for out in outs] == [((4,), 0, False), ((4,), 1, False)]
    stateful = Numbered(Counting, "map", stateful=True)
    assert [opened(stateful(item(n, n)))[1] for n in (5, 6)] == [(5, 1), (6, 2)]


def test_it_travels_without_its_instance() -> None:
    stateful = Numbered(Counting, "map", stateful=True)
    stateful(item(0, 0))
    fresh = pickle.loads(pickle.dumps(stateful))
    assert opened(fresh(item(1, 1)))[1] == (1, 1)


def test_a_batch_has_the_numbers_of_all_its_members() -> None:
    batch = [item(1, "a"), [item(2, "b"), item(5, "c")]]
    assert opened(batch) == ((1, 2, 5), ["a", ["b", "c"]], False)
    assert received(batch)[0] == (1, 2, 5)
    assert received(batch)[1] != received([item(1, "a"), [item(2, "c"), item(5, "b")]])[1]


def test_what_changed_on_its_way_is_known_from_then_on() -> None:
    """A value that is not what its checksum says marks its item, and whatever is made of that."""
    origin, check, _, value = item(3, [1, 2])
    changed = (origin, check, False, [*value, 3])
    assert opened(changed)[2] and received(changed)[2]
    made = Numbered(len, "map", stateful=False)(changed)
    assert received(made)[2] and received(made)[0] == (3,)
    assert all(received(out)[2] for out in Numbered(iter, "flat_map", stateful=False)(changed))
    assert received([item(1, 1), changed])[2] and not received([item(1, 1), item(3, [1, 2])])[2]


def test_the_numbered_pipeline_gives_what_the_pipeline_gives() -> None:
    """The same stages with the same options; without faults the same values."""
    pipe = (
        Pipeline("all")
        .flat_map(lambda n: [n, -n], workers=3, timeout=5.0)
        .filter(lambda n: n != 2)
        .batch(3)
        .map(sum, name="sum", max_attempts=7)
        .key_by(lambda n: n % 2)
        .map(Counting, workers=2)
    )
    around = numbered(pipe)
    assert around.name == pipe.name and around.stages != pipe.stages
    same = [(stage.kind, stage.name, stage.workers, stage.timeout, stage.max_attempts) for stage in pipe.stages]
    assert [
        (stage.kind, stage.name, stage.workers, stage.timeout, stage.max_attempts) for stage in around.stages
    ] == same
    one = [dataclasses.replace(stage, workers=1) for stage in around.stages]  # serially, instances are made per worker
    around._stages = tuple(one)
    pipe._stages = tuple(dataclasses.replace(stage, workers=1) for stage in pipe.stages)
    outputs = list(around.run_serial([item(n, n) for n in range(12)]))
    assert [opened(output)[1] for output in outputs] == list(pipe.run_serial(range(12)))
    members = collections.Counter(number for output in outputs for number in opened(output)[0])
    assert members == collections.Counter([*range(12), *range(12)]) - collections.Counter([2])


def test_a_tally_counts_calls_of_every_process(tmp_path: Path) -> None:
    with Tally() as tally:
        one = pickle.loads(pickle.dumps(Numbered(str, "map", stateful=False, tally=tally.path)))
        two = pickle.loads(pickle.dumps(Numbered(str, "map", stateful=False, tally=tally.path)))
        try:
            for number in range(3):
                one(item(number, number))
                two(item(number, number))
            assert tally.take() == 6 and tally.take() == 0
            one(item(0, 0))
            assert tally.take() == 1
        finally:
            for made in (one, two):
                os.close(made._tally)

"""The codec: every object arrives as pickle would bring it, and no bytes bring the reader down."""

from __future__ import annotations

import collections
import datetime
import decimal
import enum
import math
import pickle
import random
import struct
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmrt import _native
from shmrt.errors import SegmentError

SEED = 20261124


def through(obj: object) -> Any:
    return _native.decode(_native.encode(obj))


def same(one: Any, two: Any) -> bool:
    """Equal values of equal types all the way down; NaNs by their bits."""
    if type(one) is not type(two):
        return False
    if isinstance(one, float):
        return struct.pack("<d", one) == struct.pack("<d", two)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict):
        return list(map(repr, one)) == list(map(repr, two)) and all(same(one[key], two[key]) for key in one)
    return bool(one == two)


class Colour(enum.IntEnum):
    RED = 1


Point = collections.namedtuple("Point", "x y")


class Text(str):
    pass


FAST: list[Any] = [
    *(None, True, False, 0.0, -0.0, math.inf, 1j, complex(math.inf, -0.0)),
    *(sign * 2**power + step for power in (0, 7, 8, 31, 32, 63, 64, 2000) for step in (-1, 0, 1) for sign in (1, -1)),
    *("", "a", "é", "€", "\U0001f600", "\ud800", "a\0b", "x" * 255, "x" * 256, "é" * 300, "€" * 3000, "😀" * 70000),
    *(b"", b"\0", b"x" * 255, b"x" * 256, b"x" * 2047, b"x" * 2048, b"y" * 3_000_000),
    *(bytearray(), bytearray(b"abc"), bytearray(5000)),
    *((), (1,), tuple(range(255)), tuple(range(256)), [], [[]], [1, [2, (3, {4: [5]})]]),
    *({}, {"a": {"b": None}}, {(1, 2): 3}, set(), {1, "a", (2,)}, frozenset(), frozenset({frozenset({1})})),
]
SLOW: list[Any] = [
    *(Colour.RED, Point(1, [2]), collections.OrderedDict(a=1), collections.Counter("abc"), Text("abc")),
    *(decimal.Decimal("1.5"), datetime.datetime(2026, 1, 1), range(5), slice(1, 2), len, int, ValueError),
    *([1, Colour.RED], {"when": datetime.date(2026, 1, 1)}, {1, decimal.Decimal(2)}),
]


def name_of(obj: Any) -> str:
    """The same in every process: what a set prints depends on the hash seed."""
    shown = str(len(obj)) if isinstance(obj, (set, frozenset)) else repr(obj)[:20]
    return f"{type(obj).__name__}-{shown!r}"


@pytest.mark.parametrize("obj", [*FAST, *SLOW], ids=name_of)
def test_arrives_as_it_was(obj: object) -> None:
    assert same(through(obj), obj)


@pytest.mark.parametrize("obj", FAST, ids=name_of)
def test_builtins_need_no_pickle(obj: object) -> None:
    assert same(_native.decode(_native.encode(obj), False), obj)


def test_nan_keeps_its_bits() -> None:
    for bits in (0x7FF8000000000000, 0xFFF8000000000001, 0x7FF0000000000001):
        (nan,) = struct.unpack("<d", struct.pack("<Q", bits))
        assert struct.pack("<d", through(nan)) == struct.pack("<d", nan)


atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers(allow_nan=False)
    | st.text(st.characters())
    | st.binary(max_size=300)
)
keys = st.integers() | st.text(max_size=5) | st.binary(max_size=5) | st.tuples(st.integers(), st.text(max_size=2))
trees = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.dictionaries(keys, inner, max_size=5)
        | st.sets(keys, max_size=5)
        | st.frozensets(keys, max_size=5)
    ),
    max_leaves=30,
)


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(trees)
def test_any_tree_of_builtins(tree: object) -> None:
    assert same(through(tree), tree)


# ---- identity ------------------------------------------------------------------------------------------------


def test_a_list_met_twice_arrives_as_one() -> None:
    shared = [1]
    for obj in ((shared, shared), [shared, {"a": shared}], {"a": shared, "b": (shared,)}):
        got = through(obj)
        first, second = (got[0], got[1]) if not isinstance(got, dict) else (got["a"], got["b"][0])
        second = second["a"] if isinstance(second, dict) else second
        assert first is second and first == [1]


@pytest.mark.parametrize("count", [5, 9, 40, 1000])
def test_many_shared_objects_are_told_apart(count: int) -> None:
    lists: list[list[int]] = [[i] for i in range(count)]
    assert through([*lists]) == lists  # each referred to twice, met once
    got = through([*lists, lists[-1]])
    assert got == [*lists, lists[-1]] and got[-1] is got[-2]


def test_cycles_end() -> None:
    a: list[Any] = []
    a.append(a)
    got = through(a)
    assert got[0] is got
    d: dict[str, Any] = {}
    d["self"] = (d, [d])
    got = through(d)
    assert got["self"][0] is got and got["self"][1][0] is got


def test_a_shared_tree_does_not_explode() -> None:
    tree: Any = (1,)
    for _ in range(200):
        tree = (tree, tree)
    assert len(_native.encode(tree)) < 10_000
    text = "x" * 100_000
    assert len(_native.encode([text] * 1000)) < 300_000
    blob = b"x" * 100_000
    assert len(_native.encode([blob] * 1000)) < 300_000


@pytest.mark.parametrize("depth", [1, 63, 64, 65, 66, 150])
def test_nesting(depth: int) -> None:
    for wrap in (lambda x: [x], lambda x: (x,), lambda x: {"k": x}, lambda x: frozenset([x])):
        obj: Any = 7
        for _ in range(depth):
            obj = wrap(obj)
        assert through(obj) == obj


def test_nesting_beyond_the_stack_is_an_error_of_the_caller() -> None:
    obj: Any = []
    for _ in range(200_000):
        obj = [obj]
    with pytest.raises(RecursionError):
        _native.encode(obj)
    while obj:
        obj = obj.pop()


# ---- whatever pickle takes -------------------------------------------------------------------------------------


def test_what_reduce_raises_reaches_the_caller() -> None:
    class Stubborn:
        calls = 0

        def __reduce__(self) -> Any:
            Stubborn.calls += 1
            raise LookupError("not me")

    with pytest.raises(LookupError, match="not me"):
        _native.encode([1, Stubborn()])
    assert Stubborn.calls == 1


def test_the_unpicklable_is_an_error_of_the_caller() -> None:
    with pytest.raises((TypeError, pickle.PicklingError)):
        _native.encode(threading.Lock())
    with pytest.raises((TypeError, pickle.PicklingError)):
        _native.encode({"a": [lambda: 1, (i for i in range(3))]})


def test_lambdas_and_local_classes_travel_by_value() -> None:
    base = 40

    class Local:
        def answer(self) -> int:
            return base + 2

    assert through(lambda: base + 1)() == 41
    assert through([Local()])[0].answer() == 42


def test_main_travels_by_value() -> None:
    """A class of __main__ arrives in an interpreter whose __main__ has none."""
    make = "import sys\nfrom shmrt import _native\nclass C:\n    x = 3\nprint(_native.encode(C()).hex())"
    data = bytes.fromhex(
        subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True).stdout
    )
    assert type(_native.decode(data)).__name__ == "C" and _native.decode(data).x == 3


class Fragile:
    def __reduce__(self) -> Any:
        return (_fail, ())


def _fail() -> None:
    raise ZeroDivisionError("at the reader")


def test_what_unpickling_raises_reaches_the_reader() -> None:
    with pytest.raises(ZeroDivisionError, match="at the reader"):
        through(Fragile())


def test_pickle_can_be_refused() -> None:
    with pytest.raises(SegmentError, match="pickle=True"):
        _native.decode(_native.encode(Colour.RED), False)


def test_reentrant_pickling() -> None:
    class Nested:
        def __reduce__(self) -> Any:
            return bytes, (_native.encode([1, 2, b"z" * 5000]),)

    assert _native.decode(through([Nested(), b"y" * 4000])[0]) == [1, 2, b"z" * 5000]


def test_a_set_that_a_finaliser_changes() -> None:
    """Encoding allocates nothing that could collect: a cycle's finaliser cannot change what is walked."""
    victim = [{i} for i in range(500)]

    class Bomb:
        def __del__(self) -> None:
            victim.clear()

    for _ in range(3000):
        bomb = Bomb()
        bomb.me = bomb  # type: ignore[attr-defined]
        del bomb
        if len(victim) < 500:
            victim.extend({i} for i in range(500))
        _native.encode(victim)


# ---- buffers --------------------------------------------------------------------------------------------------------

ARRAYS: dict[str, Callable[[], Any]] = {
    "c": lambda: np.arange(6000.0).reshape(60, 100),
    "fortran": lambda: np.asfortranarray(np.arange(6000.0).reshape(60, 100)),
    "gaps": lambda: np.arange(6000.0)[::3],
    "reversed": lambda: np.arange(6000)[::-1],
    "small": lambda: np.arange(3, dtype="i2"),
    "small fortran": lambda: np.asfortranarray(np.arange(6).reshape(2, 3)),
    "zero-dimensional": lambda: np.array(5.5),
    "empty": lambda: np.empty((0, 7), "f4"),
    "bool": lambda: np.ones(5000, "?"),
    "half": lambda: np.ones(5000, "f2"),
    "long double": lambda: np.ones(500, "g"),
    "complex": lambda: np.ones(5000, "c16") * 1j,
    "complex64": lambda: np.ones(5000, "c8") * 1j,
    "big-endian": lambda: np.arange(5000, dtype=">i4"),
    "records": lambda: np.zeros(500, [("a", "i4"), ("b", "f8", (3,))]),
    "objects": lambda: np.array([1, "a", None, [2]], object),
    "dates": lambda: np.array(["2026-01-01", "NaT"], "M8[D]"),
    "text": lambda: np.array(["abc", "dé"] * 900),
    "bytes": lambda: np.array([b"abc", b"d"] * 900),
    "void": lambda: np.zeros(700, "V8"),
    "many dimensions": lambda: np.zeros((1,) * 20 + (4000,)),
    "scalar": lambda: np.float64(3.5),
    "subclass": lambda: np.arange(4000).view(np.recarray),
    "masked": lambda: np.ma.masked_array([1, 2, 3], [0, 1, 0]),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays_arrive_as_they_were(kind: str) -> None:
    array = ARRAYS[kind]()
    for got in (through(array), through({"a": [array, 1]})["a"][0]):
        assert type(got) is type(array) and got.dtype == array.dtype and got.shape == array.shape
        if kind == "dates":
            assert (got.astype("i8") == array.astype("i8")).all()
        else:
            assert np.array_equal(np.asarray(got), np.asarray(array))
        if getattr(array, "flags", None) is not None and not array.flags.c_contiguous and array.flags.f_contiguous:
            assert got.flags.f_contiguous
        if kind not in ("scalar",):
            assert got.flags.writeable
            assert got.base is not array


def test_an_array_met_twice_arrives_as_one() -> None:
    array = np.arange(5000)
    got = through((array, array))
    assert got[0] is got[1]


def test_memoryviews_and_pickle_buffers() -> None:
    for view in (
        *(memoryview(b"abc"), memoryview(bytes(5000)), memoryview(bytearray(range(256)))[::3]),
        *(memoryview(np.arange(6000.0)), memoryview(np.arange(12, dtype="i4").reshape(3, 4))),
    ):
        got = through(view)
        assert isinstance(got, memoryview) and got.tolist() == view.tolist() and got.format == view.format
    data = np.arange(5000, dtype="u1")
    assert bytes(through(pickle.PickleBuffer(data))) == data.tobytes()
    assert bytes(through([pickle.PickleBuffer(b"abc" * 1000), 1])[0]) == b"abc" * 1000


def test_numpy_is_not_imported_for_builtins() -> None:
    code = (
        "import sys; from shmrt import _native; _native.decode(_native.encode([1, b'x' * 9000, memoryview(b'a' * 9)]));"
        "assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_arrays_need_no_pickle() -> None:
    array = np.arange(5000.0)
    assert np.array_equal(_native.decode(_native.encode([array, np.arange(3)]), False)[0], array)


# ---- calls -----------------------------------------------------------------------------------------------------------


def test_calls() -> None:
    shared = [1]
    args, kwargs = _native.code_call(1, shared, shared, key=shared, other="é")
    assert args == (1, [1], [1]) and kwargs == {"key": [1], "other": "é"}
    assert args[1] is args[2] and kwargs is not None and args[1] is kwargs["key"]
    assert _native.code_call() == ((), None)
    assert _native.code_call(Colour.RED, x=Point(1, 2)) == ((Colour.RED,), {"x": Point(1, 2)})
    assert _native.code_call(*range(1000))[0] == tuple(range(1000))


# ---- hostile bytes ---------------------------------------------------------------------------------------------------

SAMPLES: list[Any] = [
    *((1, "text", 2.5, b"bytes", True, None, 2**70), [[1, [2, [3]]], {"a": (1, 2)}], {1: {2: {3: "é€😀"}}}),
    *({1, 2, "x"}, [b"z" * 3000, bytearray(b"q" * 3000)], "€" * 40, bytearray(b"abc")),
    *([np.arange(1000.0), np.arange(4, dtype="i2")], np.asfortranarray(np.ones((40, 40)))),
]


def survive(data: bytes) -> None:
    try:
        _native.decode(data, False)
    except SegmentError as error:
        assert "corrupt message" in str(error) or "pickle" in str(error), error
    except MemoryError:
        pass  # a size below the message's own, but the machine may still say no


def test_flipped_bytes_are_an_error_or_another_object() -> None:
    print("seed", SEED)
    source = random.Random(SEED)
    for sample in SAMPLES:
        good = _native.encode(sample)
        for _ in range(3000):
            data = bytearray(good)
            for _ in range(source.choice((1, 1, 2, 5))):
                data[source.randrange(len(data))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
            survive(bytes(data))


def test_heads_and_tails_are_an_error() -> None:
    for sample in SAMPLES:
        good = _native.encode(sample)
        for end in [*range(min(len(good), 400)), *range(max(0, len(good) - 60), len(good))]:
            with pytest.raises(SegmentError, match="corrupt message"):
                _native.decode(good[:end], False)
        with pytest.raises(SegmentError, match="corrupt message"):
            _native.decode(good + b"\1", False)


def test_noise() -> None:
    source = random.Random(SEED + 1)
    for _ in range(30_000):
        survive(bytes([source.choice((0, 0, 0, 1))]) + source.randbytes(source.randrange(60)))


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    survive(data)
    survive(b"\0" + data)
    survive(b"\1" + data)


def test_announced_sizes_are_not_believed() -> None:
    for tag in range(1, 40):
        for filling in (b"\xff", b"\x7f", b"\x00", b"\x80"):
            survive(bytes([0, tag]) + filling * 16)
            survive(bytes([0, tag]) + filling * 7 + b"\0" * 9)


def test_nested_bytes_do_not_eat_the_stack() -> None:
    one_item_list = (_native.encode([0])[1:6],)[0]
    with pytest.raises(SegmentError, match="corrupt message"):
        _native.decode(b"\0" + one_item_list * 200_000 + b"\1", False)
    with pytest.raises(SegmentError, match="corrupt message"):
        _native.decode(b"\0" + b"\x0f\x01" * 200_000 + b"\1", False)


def test_a_list_as_a_key_is_corrupt() -> None:
    good = _native.encode({(1,): 2})
    tuple_tag = good.index(_native.encode((1,))[1:3])
    bad = good[:tuple_tag] + _native.encode([1])[1:6] + good[tuple_tag + 2 :]
    with pytest.raises(SegmentError, match="hashed"):
        _native.decode(bad, False)


# ---- leaks -----------------------------------------------------------------------------------------------------------


def test_nothing_is_kept() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise LookupError

    def everything() -> None:
        for sample in [*SAMPLES, *SLOW, [Stubborn()], lambda: 1, (memoryview(b"x" * 3000),), [*range(100), [], []]]:
            try:
                data = _native.encode(sample)
                _native.decode(data)
                _native.decode(data[:-3], False)
            except (LookupError, SegmentError):
                pass

    def held() -> int:
        """Less what CPython's cache of attributes keeps of the names that were looked up: hundreds of kilobytes."""
        (getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache)()
        return tracemalloc.get_traced_memory()[0]

    for _ in range(3):
        everything()
    tracemalloc.start()
    try:
        for _ in range(5):
            everything()
        before = held()
        for _ in range(50):
            everything()
        assert held() - before < 20_000
    finally:
        tracemalloc.stop()

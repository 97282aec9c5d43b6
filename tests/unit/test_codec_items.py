"""Items of tuples and lists, most of which the codec writes and reads without a call for each: every length, every cut.

Strings of few bytes are copied by words that overlap, so all lengths around them are tried, with room to the end of the
message and without.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest

from shmrt import SegmentError, _native

EDGES: list[Any] = [
    *(None, True, False, 0, -128, 127, -129, 128, 2**31 - 1, -(2**31), 2**31, 2**63 - 1, -(2**63), 2**63, 0.5, 1j),
    *("é", "€", "x" * 255, "x" * 256, "x" * 257, b"x" * 255, b"x" * 256, b"x" * 257, (), [], (1, ("a",)), {"a": b"b"}),
]


@pytest.mark.parametrize("kind", [tuple, list])
def test_every_length_arrives(kind: type) -> None:
    for size in range(70):
        text = "".join(chr(33 + at) for at in range(size))
        for behind in range(10):
            value = kind([text, text.encode(), *[None] * behind])
            assert _native.decode(_native.encode(value), False) == value


@pytest.mark.parametrize("kind", [tuple, list])
def test_every_kind_arrives_wherever_it_stands(kind: type) -> None:
    for item in EDGES:
        for value in (kind([item]), kind([item, None]), kind([1.5, item, "name"]), kind([b"y" * 600, item])):
            got = _native.decode(_native.encode(value), False)
            assert got == value and [type(one) for one in got] == [type(one) for one in value]


def test_the_encoder_grows_between_items() -> None:
    value = (*(f"{at:>{at % 200}}" for at in range(255)), 2**70, 1.5)
    assert _native.decode(_native.encode(value), False) == value


@pytest.mark.parametrize("kind", [tuple, list])
def test_every_cut_is_an_error(kind: type) -> None:
    good = _native.encode(kind([1, 300, 2**40, 2.5, "short", "nine more", "x" * 40, b"", b"bytes", True, None, 7]))
    references = sys.getrefcount(None)
    for end in range(len(good)):
        with pytest.raises(SegmentError, match="corrupt message"):
            _native.decode(good[:end], False)
    assert sys.getrefcount(None) - references < len(good) // 2, "a cut message keeps references"


def test_a_byte_above_127_in_any_place_is_an_error() -> None:
    for size in range(1, 40):
        good = bytearray(_native.encode(("x" * size,)))
        first = good.index(b"x" * size)
        for at in range(first, first + size):
            bad = bytes(good[:at]) + b"\x80" + bytes(good[at + 1 :])
            with pytest.raises(SegmentError, match="above 127"):
                _native.decode(bad, False)


def test_identity_is_kept_where_pickle_keeps_it() -> None:
    shared, text = [1], "x" * 300
    lists, texts = _native.decode(_native.encode((shared, shared))), _native.decode(_native.encode((text, text, 1)))
    assert lists[0] is lists[1] and texts[0] is texts[1]

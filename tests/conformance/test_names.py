"""The registry of names: one process writes, everybody reads, and a death of the writer misleads nobody.

tests/native/test_names.c stops the writer after every instruction and puts a change between any two instructions of a
reader. Here real processes read through the Python type while real writers are killed.
"""

from __future__ import annotations

import itertools
import multiprocessing
import random
from collections.abc import Iterator

import pytest

from shmrt import _native, errors

FORK = multiprocessing.get_context("fork")
NAME_MOST = _native.LAYOUT["NAME_BYTES_MAX"]
VALUE_MOST = _native.LAYOUT["NAME_VALUE_BYTES_MAX"]
CAPACITY = _native.LAYOUT["NAMES_DEFAULT"]
KILLS = 200
MEMBERS = [b"one", b"two", b"three"]


@pytest.fixture
def slots() -> Iterator[_native.Slots]:
    table = _native.Slots.create(8)
    yield table
    table.close()


@pytest.fixture
def names(slots: _native.Slots) -> _native.Names:
    _native.Calls(slots).reserve()
    return _native.Names(slots)


# ---- plain use ----


def test_a_name_is_found_until_it_is_removed(names: _native.Names) -> None:
    """put, find, replace, remove, clear, and the count of each."""
    assert (names.find("a"), names.find_all("a"), names.count) == (None, [], 0)
    first, second = names.put("a", b"1"), names.put("ä/β", memoryview(b"two"))
    assert (names.find("a"), names.find("ä/β"), names.find("ä"), names.count) == (b"1", b"two", None, 2)
    names.replace(first, b"")
    assert names.find("a") == b"" and names.find_all("ä/β") == [b"two"]
    names.remove(first)
    assert (names.find("a"), names.find("ä/β"), names.count, names.check()) == (None, b"two", 1, True)
    assert names.put("b", b"3") == first
    names.clear()
    assert (names.find("ä/β"), names.count, names.check()) == (None, 0, True)
    with pytest.raises(IndexError, match=f"index {second}"):
        names.remove(second)


def test_a_name_may_stand_for_a_group(names: _native.Names) -> None:
    """Values of one name are found in the order of their indexes; find gives the first."""
    indexes = [names.put("group", value) for value in MEMBERS]
    assert names.find_all("group") == MEMBERS and names.find("group") == MEMBERS[0]
    names.remove(indexes[0])
    assert names.find_all("group") == MEMBERS[1:] and names.find("group") == MEMBERS[1]


def test_every_length_of_a_name_and_a_value(names: _native.Names) -> None:
    """1 to 180 bytes of name as UTF-8, 0 to 120 of value, and nothing beyond."""
    for size in range(1, NAME_MOST + 1):
        value = bytes(range(size % (VALUE_MOST + 1)))
        index = names.put("n" * size, value)
        assert names.find("n" * size) == value
        assert size == 1 or names.find("n" * (size - 1)) is None
        assert size == NAME_MOST or names.find("n" * (size + 1)) is None
        names.remove(index)
    names.remove(names.put("é" * (NAME_MOST // 2), bytes(VALUE_MOST)))
    index = names.put("x", b"x")
    for name in ("", "n" * (NAME_MOST + 1), "é" * NAME_MOST, "\ud800"):
        with pytest.raises(ValueError):
            names.put(name, b"")
        with pytest.raises(ValueError):
            names.find(name)
    for change in (lambda: names.put("y", bytes(VALUE_MOST + 1)), lambda: names.replace(index, bytes(VALUE_MOST + 1))):
        with pytest.raises(ValueError, match="at most 120"):
            change()
    for wrong in (b"x", 1, None):
        with pytest.raises(TypeError):
            names.find(wrong)  # type: ignore[arg-type]
    for nowhere in (index + 1, CAPACITY, 2**32, 2**40):
        with pytest.raises(IndexError):
            names.replace(nowhere, b"")
    assert names.find_all("x") == [b"x"] and names.count == 1


def test_a_full_registry_says_so(names: _native.Names) -> None:
    """Overloaded names the registry and its capacity; what is in it stays, and a place given back is used."""
    for number in range(CAPACITY):
        assert names.put(f"server {number}", str(number).encode()) == number
    with pytest.raises(errors.Overloaded) as caught:
        names.put("one more", b"")
    assert (caught.value.capacity, caught.value.where) == (CAPACITY, "names")
    assert names.count == CAPACITY and names.check()
    assert all(names.find(f"server {number}") == str(number).encode() for number in range(CAPACITY))
    names.remove(500)
    assert names.put("one more", b"more") == 500 and names.find("one more") == b"more"


def test_without_its_memory_there_is_no_name(slots: _native.Slots) -> None:
    """A runtime without servers never reserves the registry: reading finds nothing, writing says what is missing."""
    names = _native.Names(slots)
    assert (names.find("a"), names.find_all("a"), names.count, names.check()) == (None, [], 0, True)
    names.clear()
    with pytest.raises(errors.SegmentError, match="reserve"):
        names.put("a", b"")
    _native.Calls(slots).reserve()
    names.put("a", b"1")
    _native.Calls(slots).reserve()  # once more: what is there stays
    assert names.find("a") == b"1"


def test_a_closed_table_is_an_error() -> None:
    """Nothing is read through a mapping that is gone."""
    slots = _native.Slots.create(8)
    _native.Calls(slots).reserve()
    names = _native.Names(slots)
    names.put("a", b"1")
    slots.close()
    for look in (lambda: names.find("a"), lambda: names.put("a", b""), lambda: names.count, names.clear):
        with pytest.raises(ValueError, match="closed"):
            look()
    with pytest.raises(TypeError):
        _native.Names(slots)
    with pytest.raises(TypeError):
        _native.Names(None)  # type: ignore[arg-type]


def test_another_mapping_sees_the_same(slots: _native.Slots, names: _native.Names) -> None:
    """What one process puts, every process that maps the segment finds."""
    other = _native.Slots.attach(slots.fd)
    index = names.put("a", b"1")
    assert _native.Names(other).find("a") == b"1"
    _native.Names(other).replace(index, b"2")
    assert names.find("a") == b"2"
    other.close()


# ---- deaths ----


def value_of(number: int) -> bytes:
    """Says its number in every part, in a length that belongs to the number: a mix of two is no value."""
    return number.to_bytes(4, "little") * (1 + number % (VALUE_MOST // 4))


def number_in(value: bytes) -> int:
    number = int.from_bytes(value[:4], "little")
    assert value == value_of(number), f"a mix of two values: {value!r}"
    return number


def write_until_killed(slots: _native.Slots, start: int) -> None:
    """As a new writer does: clear, then names that come, change, move and go. Never returns."""
    names = _native.Names(slots)
    names.clear()
    source = random.Random(start)
    for member in MEMBERS:
        names.put("group", member)
    moving = names.put("moving", value_of(start))
    changing = names.put("changing", value_of(start))
    for number in itertools.count(start + 1):
        names.replace(changing, value_of(number))
        index = names.put(f"coming {source.randrange(3)}", value_of(number))
        beside = names.put("moving", value_of(number))
        names.remove(moving)
        moving = beside
        names.remove(index)


def read_until_told(slots: _native.Slots, pipe: object) -> None:
    """Looks at every name until the pipe says something; answers how often each was there."""
    names = _native.Names(slots)
    seen = dict.fromkeys(("moving", "changing", "coming 0", "coming 1", "coming 2"), 0)
    while not pipe.poll():  # type: ignore[attr-defined]
        for name in seen:
            for value in (names.find(name), *names.find_all(name)):
                seen[name] += value is not None and number_in(value) >= 0
        assert names.find("never put") is None
        assert [member for member in names.find_all("group") if member not in MEMBERS] == []
    pipe.send(seen)  # type: ignore[attr-defined]


@pytest.mark.slow
def test_writers_are_killed_under_the_eyes_of_readers(slots: _native.Slots, names: _native.Names) -> None:
    """200 kills at random moments: every find gives a value that was put under that name, or None; never a mix."""
    seed = random.randrange(2**32)
    print("seed", seed)
    source = random.Random(seed)
    here, there = FORK.Pipe()
    reader = FORK.Process(target=read_until_told, args=(slots, there), daemon=True)
    reader.start()
    found = {"changing": 0, "moving": 0}
    try:
        for kill in range(KILLS):
            start = kill * 10_000_000
            writer = FORK.Process(target=write_until_killed, args=(slots, start), daemon=True)
            writer.start()
            # Its first value says that it has begun; then a random number of looks, while it lives.
            while (value := names.find("changing")) is None or number_in(value) <= start:
                assert writer.is_alive()
            last = 0
            for _ in range(source.randrange(400)):
                value = names.find("changing")
                assert value is not None and number_in(value) >= last, "a value that was replaced came back"
                last = number_in(value)
                assert names.find("moving") is not None, "a name was missed while it moved"
            writer.kill()
            writer.join()
            assert names.check() and names.find_all("group") == MEMBERS
            for name in found:
                number = number_in(names.find(name) or b"")
                assert start <= number, "a value of an earlier writer"
                found[name] += number > start
        here.send("enough")
        assert here.poll(60), "the reader died or hangs"
        assert all(count > KILLS for count in here.recv().values())
    finally:
        reader.kill()
        reader.join()
    assert found == {"changing": KILLS, "moving": found["moving"]} and found["moving"] > KILLS // 2

"""Which functions a pool remembers, and for how long: what has changed in any part is sent anew, the rest is not."""

from __future__ import annotations

import pickle
import posixpath
import subprocess
import sys
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest

from shmrt import _native
from shmrt.process import functions
from shmrt.process.functions import FunctionTable, parts_of


class Pool:
    """Counts what the table gives it; numbers are places in `sent`."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.dropped: list[int] = []
        self.table = FunctionTable(self.add, self.dropped.append)

    def add(self, sent: Any) -> int:
        self.sent.append(sent)
        return len(self.sent) - 1

    def number(self, function: Any, retry_on: Any = None) -> int:
        return self.table.number(function, retry_on)[0]

    def runs(self, number: int, *args: Any) -> Any:
        """What a worker would have of it."""
        sent = self.sent[number]
        function = pickle.loads(pickle.dumps(sent))[0] if not isinstance(sent, tuple) else getattr(posixpath, sent[1])
        return function(*args)


SOURCE = """
FACTOR = 2
TABLE = {"add": 10}

def helper(x):
    return x * FACTOR

def plain(x, more=1):
    return x * FACTOR + more

def nested(x):
    return helper(x)

def looks_up(x):
    return x + TABLE["add"]

def itself(x):
    return 1 if x == 0 else x * itself(x - 1)

def even(x):
    return x == 0 or odd(x - 1)

def odd(x):
    return x != 0 and even(x - 1)

def maker(y):
    def inner(x):
        return x + y
    def change(value):
        nonlocal y
        y = value
    return inner, change
"""


@pytest.fixture
def space() -> dict[str, Any]:
    """Functions as those of `__main__`: nobody finds them by name."""
    found: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(SOURCE, "script", "exec"), found)
    return found


def replace_code(function: FunctionType, source: str) -> None:
    made: dict[str, Any] = {}
    exec(source, made)
    function.__code__ = made["f"].__code__


CHANGES: list[tuple[str, Callable[[dict[str, Any]], object], tuple[int, int]]] = [
    ("plain", lambda space: space.update(FACTOR=5), (7, 16)),
    ("nested", lambda space: space.update(FACTOR=5), (6, 15)),
    ("nested", lambda space: space.update(helper=space["plain"]), (6, 7)),
    ("nested", lambda space: replace_code(space["helper"], "def f(x): return -x"), (6, -3)),
    ("plain", lambda space: replace_code(space["plain"], "def f(x, more=1): return 0"), (7, 0)),
    ("plain", lambda space: setattr(space["plain"], "__defaults__", (9,)), (7, 15)),
    ("looks_up", lambda space: space["TABLE"].update(add=20), (13, 23)),
]


@pytest.mark.parametrize("name, change, results", CHANGES)
def test_a_change_of_any_part_is_sent(space: dict[str, Any], name: str, change: Any, results: tuple[int, int]) -> None:
    pool, function = Pool(), space[name]
    first = pool.number(function)
    assert pool.number(function) == first and pool.runs(first, 3) == results[0]
    change(space)
    second = pool.number(function)
    assert second != first and pool.runs(second, 3) == results[1] == function(3)
    assert pool.number(function) == second


def test_a_cell_of_a_closure(space: dict[str, Any]) -> None:
    pool, (inner, change) = Pool(), space["maker"](1)
    first = pool.number(inner)
    assert pool.runs(first, 1) == 2
    change(7)
    assert pool.runs(pool.number(inner), 1) == 8


def test_attributes_and_keyword_defaults(space: dict[str, Any]) -> None:
    """Dictionaries, which change in place: from then on the function is pickled each time."""
    for change in (lambda f: setattr(f, "word", 1), lambda f: setattr(f, "__kwdefaults__", {"more": 4})):
        exec(compile(SOURCE, "script", "exec"), space)
        pool, function = Pool(), space["plain"]
        first = pool.number(function)
        assert parts_of(function) is not None
        change(function)
        assert parts_of(function) is None
        assert pool.number(function) != first
        assert pool.number(function) == pool.number(function)  # the pickles are the same


def test_what_is_the_same_is_not_pickled_again(space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    pool = Pool()
    names = ("plain", "nested", "itself", "even")
    numbers = [pool.number(space[name]) for name in names]
    assert pool.runs(numbers[2], 5) == 120 and pool.runs(numbers[3], 10) is True
    monkeypatch.setattr(functions, "dumps", lambda value: pytest.fail(f"{value!r} is pickled again"))
    assert [pool.number(space[name]) for name in names] == numbers
    with pytest.raises(pytest.fail.Exception):
        pool.number(space["looks_up"])  # reads a dictionary
    assert pool.table.number(posixpath.basename, None)[1] is True and pool.sent[-1] == ("posixpath", "basename")


def test_who_is_evicted_is_learnt_anew(space: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions, "_FUNCTIONS_MAX", 2)
    pool = Pool()
    first = pool.number(space["plain"])
    pool.number(space["nested"])
    pool.number(space["even"])
    assert pool.dropped == [first]
    assert pool.number(space["plain"]) == 3


@pytest.mark.parametrize("wrong", [None, (), ((), ()), ((), (), ((1, 2),)), (((len, 1, 2),), (), ()), ([], (), ())])
def test_what_are_no_parts(wrong: Any) -> None:
    with pytest.raises(TypeError, match="three tuples"):
        _native.parts_are_same(wrong)


MAIN = """
from shmrt import Pool
FACTOR = 2
def scaled(x):
    return x * FACTOR
def keyed(x):
    return sorted(x, key=lambda y: -y)
class Odd:
    def __hash__(self):
        return hash("FACTOR")
    def __eq__(self, other):
        global FACTOR
        others.append(pool.submit(keyed, [1, 2]))  # another function is submitted while this one is looked at
        return False
others = []
if __name__ == "__main__":
    with Pool(1) as pool:
        print(pool.submit(scaled, 1).result(), pool.submit(scaled, 1).result())
        FACTOR = 3
        print(pool.submit(scaled, 1).result(), pool.call(scaled, 2))
        del FACTOR
        globals()[Odd()] = 1
        FACTOR = 4
        print(pool.submit(scaled, 1).result(), pool.submit(scaled, 1).result())
        print({tuple(other.result()) for other in others} or "nobody")
"""


def test_in_a_real_pool_a_changed_global_is_seen() -> None:
    done = subprocess.run([sys.executable, "-c", MAIN], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:3] == ["2 2", "3 6", "4 4"]

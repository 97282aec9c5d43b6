"""The stale cache by itself and behind a Fallback: edges of time, bounds, keys, what pickles."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from shmrt import Fallback, StaleCache
from shmrt.clock import ManualClock
from shmrt.decide.fallback import worth

pytest.importorskip("cachetools", reason="pip install shmrt[resilience]")

S = 1_000_000_000


def test_the_edges_of_both_times() -> None:
    """Fresh below its bound, stale up to and including its own: to the nanosecond."""
    clock = ManualClock()
    cache = StaleCache(fresh=1.0, max_stale=2.0, clock=clock)
    cache.store("k", "v")
    found = []
    for now in (0, S - 1, S, 2 * S, 2 * S + 1):
        clock.advance(now - clock.now_ns())
        found.append((cache.look("k") or (None,))[0])
    assert found == ["fresh", "fresh", "stale", "stale", None] and len(cache) == 0


@pytest.mark.parametrize("max_stale", [None, 0, 5])
@pytest.mark.parametrize("fresh", [0, 3])
def test_worth_is_one_of_three(fresh: int, max_stale: int | None) -> None:
    for age in range(8):
        what = worth(age, fresh_ns=fresh, max_stale_ns=max_stale)
        assert (what == "fresh") == (age < fresh)
        assert (what == "nothing") == (age >= fresh and max_stale is not None and age > max_stale)
    assert worth(None, fresh_ns=fresh, max_stale_ns=max_stale) == "nothing"


def test_entries_are_bounded_and_the_least_recently_used_goes() -> None:
    cache = StaleCache(2, max_stale=None)
    for key in "abc":
        cache.store(key, key)
        cache.look("a")
    assert [cache.look(key) is not None for key in "abc"] == [True, False, True]
    for number in range(10_000):
        cache.store(number, number)
    assert len(cache) == 2 and cache.stats()["entries"] == 2 and cache.stats()["stored"] == 10_003
    cache.clear()
    assert len(cache) == 0 and cache.look("a") is None


def test_what_is_too_old_gives_its_memory_back_at_the_next_store() -> None:
    clock = ManualClock()
    cache = StaleCache(max_stale=1.0, clock=clock)
    for number in range(100):
        cache.store(number, bytes(10))
    clock.advance(2 * S)
    cache.store("new", 1)
    assert len(cache._entries._Cache__data) == 1  # the library's own table


def test_stale_while_error() -> None:
    clock = ManualClock()
    works = True

    def primary(n: int) -> int:
        if not works:
            raise OSError("down")
        return n * 2

    made = Fallback(primary, ("a", lambda n: -n), default=0, cache=StaleCache(max_stale=10.0, clock=clock))
    assert made(4).source == "primary" and made(4).source == "primary"
    works = False
    clock.advance(10 * S)
    outcome = made(4)
    assert (outcome.value, outcome.source, outcome.age, outcome.errors.sources) == (8, "stale", 10.0, ("primary",))
    assert outcome.degraded and made(5).source == "a"
    clock.advance(1)
    assert made(4).source == "a"
    works = True
    assert made(4).source == "primary"
    works = False
    assert made(4).source == "stale", "the new answer was kept"


def test_a_fresh_answer_spares_the_primary() -> None:
    clock, calls = ManualClock(), []
    made = Fallback(lambda *args: calls.append(args) or 7, cache=StaleCache(fresh=1.0, clock=clock))
    outcomes = [made(1), made(1)]
    assert [outcome.source for outcome in outcomes] == ["primary", "fresh"] and outcomes[1].age == 0
    assert not outcomes[1].degraded and made.stats()["changes"] == 0 and len(calls) == 1
    clock.advance(S)
    assert made(1).source == "primary" and len(calls) == 2


def test_none_is_remembered_and_errors_are_not() -> None:
    answers: list[Any] = [None, OSError(), OSError()]

    def primary() -> Any:
        answer = answers.pop(0)
        if answer is not None:
            raise answer
        return answer

    made = Fallback(primary, default=1, cache=StaleCache())
    assert [made().source for _ in range(3)] == ["primary", "stale", "stale"] and made.sources[2] == "stale"


def test_answers_of_alternatives_are_not_remembered() -> None:
    alive = [True]

    def second() -> int:
        if not alive:
            raise KeyError
        return alive.pop()

    def first() -> int:
        raise OSError

    made = Fallback(first, ("a", second), default=0, cache=StaleCache())
    assert [made().source for _ in range(2)] == ["a", "default"]


def test_two_fallbacks_in_one_cache_do_not_mix() -> None:
    cache, works = StaleCache(), [True]

    def guarded(value: str) -> Any:
        def run(_: int) -> str:
            if not works:
                raise OSError
            return value

        return Fallback(run, cache=cache)

    one, two = guarded("one"), guarded("two")
    one(1), two(1)
    works.clear()
    assert (one(1).value, two(1).value) == ("one", "two")


def test_keys() -> None:
    calls: list[Any] = []
    made = Fallback(lambda *args, **kwargs: calls.append(1) or len(calls), cache=StaleCache(fresh=60.0))
    assert [made(1, b=2, a=1).value, made(1, a=1, b=2).value, made(1, a=1).value] == [1, 1, 2]
    with pytest.raises(TypeError, match=r"must be hashable \(.*list.*\); give StaleCache a key= function"):
        made([1])
    assert len(calls) == 2, "an answer that cannot be remembered is not asked for"
    by_length = Fallback(sum, cache=StaleCache(fresh=60.0, key=len))
    assert by_length([1, 2]).value == by_length([5, 5]).value == 3


def test_another_process_begins_with_nothing() -> None:
    cache = StaleCache(7, fresh=1.0, max_stale=None, key=len)
    cache.store("k", 1)
    copy = pickle.loads(pickle.dumps(cache))
    assert repr(copy) == repr(cache) == "StaleCache(7, fresh=1.0, max_stale=None)" and len(copy) == 0
    assert copy.key(("abc",), {}) == 3 and pickle.loads(pickle.dumps(StaleCache())).key((1,), {}) == (1,)


def test_threads_share_one() -> None:
    """Keys whose comparison lets other threads run."""

    class Key(str):
        def __eq__(self, other: object) -> bool:
            threading.Event().wait(0)
            return str.__eq__(self, other)  # type: ignore[arg-type]

        __hash__ = str.__hash__

    cache = StaleCache(4, fresh=60.0)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            for number in range(500):
                key = Key(number % 8)
                cache.store(key, number)
                found = cache.look(key)
                assert found is None or found[1] % 8 == number % 8
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(cache) == 4


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: StaleCache(0), ValueError, "max_entries=0 must be from 1"),
        (lambda: StaleCache("8"), TypeError, "max_entries must be a whole number, not '8'"),
        (lambda: StaleCache(fresh=-1), ValueError, "fresh=-1 must be at least 0 seconds"),
        (lambda: StaleCache(fresh=None), ValueError, "fresh=None must be seconds"),
        (lambda: StaleCache(fresh=2, max_stale=1), ValueError, "fresh=2 must be at most max_stale=1"),
        (lambda: StaleCache(max_stale="1h"), TypeError, "max_stale must be seconds or None, not '1h'"),
        (lambda: StaleCache(key=3), TypeError, "key must be a function of the arguments, not 3"),
    ],
)
def test_a_mistake_is_named(make: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert words in str(caught.value)

"""A future's `_condition` is a condition as the standard library's: each test runs with both.

The races are provoked with an interpreter that switches threads all the time.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from future_kit import LIMIT_S, Future, in_thread, join, switch_often

MAKERS: dict[str, Callable[[], Any]] = {
    "ours": lambda: Future()._condition,
    "the standard one": threading.Condition,
}


@pytest.fixture(params=MAKERS)
def condition(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]()


def elsewhere(function: Callable[[], Any]) -> Any:
    """Its answer in another thread."""
    answers: list[Any] = []
    join(in_thread(lambda: answers.append(function())))
    return answers[0]


def test_a_thread_takes_it_again_and_again(condition: Any) -> None:
    assert not condition._is_owned()
    with condition as entered, condition:
        assert entered is True and condition._is_owned() and condition.acquire() is True
        condition.release()
        assert elsewhere(condition._is_owned) is False
        assert elsewhere(lambda: condition.acquire(blocking=False)) is False
        assert elsewhere(lambda: condition.acquire(timeout=0.001)) is False
    assert not condition._is_owned() and elsewhere(lambda: condition.acquire(False)) is True


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.release(),
        lambda c: c.wait(),
        lambda c: c.wait(0),
        lambda c: c.notify(),
        lambda c: c.notify_all(),
        lambda c: c.wait_for(lambda: False, 0.01),
        lambda c: c.__exit__(None, None, None),
    ],
)
def test_who_does_not_have_it_is_told(ask: Callable[[Any], object], condition: Any) -> None:
    with pytest.raises(RuntimeError, match="un-acquired lock"):
        ask(condition)


def test_arguments_that_make_no_sense(condition: Any) -> None:
    with pytest.raises(ValueError):
        condition.acquire(False, 1.0)
    with pytest.raises(ValueError):
        condition.acquire(True, -2.0)
    with pytest.raises(TypeError):
        condition.acquire(nonsense=1)
    assert not condition._is_owned()


def test_a_wait_that_is_not_told_ends_and_has_it_again(condition: Any) -> None:
    with condition, condition:
        assert condition.wait(0.001) is False and condition.wait(timeout=0) is False and condition.wait(-1) is False
        assert condition._is_owned()
        condition.notify_all()  # of those that gave up nothing is left
    assert not condition._is_owned()


def test_wait_for_answers_with_the_predicate(condition: Any) -> None:
    with condition:
        assert condition.wait_for(lambda: "yes") == "yes"
        assert condition.wait_for(lambda: 0, timeout=0.001) == 0
        with pytest.raises(KeyError):
            condition.wait_for(lambda: {}["no"])
        assert condition._is_owned()


def test_as_many_wake_as_are_told(condition: Any) -> None:
    waiting: list[int] = []
    woken: list[int] = []

    def wait(number: int) -> None:
        with condition, condition:  # a wait gives back all of it
            waiting.append(number)
            assert condition.wait(LIMIT_S) is True
            woken.append(number)

    threads = [in_thread(lambda n=number: wait(n)) for number in range(6)]  # type: ignore[misc]
    with condition:
        condition.wait_for(lambda: len(waiting) == 6, 0)
    while True:
        with condition:
            if len(waiting) == 6:
                first = waiting[:3]
                condition.notify(3)
                break
    while True:
        with condition:
            if len(woken) >= 3:
                assert sorted(woken) == sorted(first)  # who waited longest
                condition.notify_all()
                break
    join(*threads)
    assert sorted(woken) == list(range(6))


def test_one_thread_at_a_time_has_it(condition: Any) -> None:
    inside: list[int] = []
    most = 0

    def work() -> None:
        nonlocal most
        for _ in range(300):
            with condition:
                inside.append(1)
                most = max(most, len(inside))
                condition.notify()
                condition.wait(0.0001) if len(inside) > 1 else None
                inside.pop()

    with switch_often():
        join(*(in_thread(work) for _ in range(4)))
    assert most == 1 and not condition._is_owned()


def test_no_word_is_lost_between_two_threads(condition: Any) -> None:
    """Each waits for the other's number: a lost wake would hang here."""
    turn = 0

    def play(me: int) -> None:
        nonlocal turn
        for _ in range(500):
            with condition:
                while turn != me:
                    assert condition.wait(LIMIT_S)
                turn = 1 - me
                condition.notify()

    with switch_often():
        join(in_thread(lambda: play(0)), in_thread(lambda: play(1)))


def test_it_cannot_be_made_by_hand() -> None:
    with pytest.raises(TypeError):
        type(Future()._condition)()


def test_another_condition_may_take_its_place() -> None:
    future = Future()
    future._condition = threading.Condition()
    with future._condition:
        assert future._condition._is_owned()
    future.set_result(3)
    assert future.result() == 3

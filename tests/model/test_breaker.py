"""Random lives of a real breaker beside a model: every state, window, trial and counter, to the nanosecond.

hypothesis looks for the shortest life that ends differently, and prints it. The clock is a number.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from breaker_model import BAD, CLOSED, DISABLED, FORCED, GOOD, HALF, NOTHING, OPEN, BreakerModel, Refused, Ticket
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from shmrt import CircuitBreaker, CircuitOpen

MS, S = 1_000_000, 1_000_000_000
QUICK = settings(max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=5000, stateful_step_count=100)


class Oops(Exception):
    pass


class Fine(Exception):
    """An exclusion."""


class Odd(Exception):
    """Excluded by a callable."""


ERRORS: dict[str, list[Any]] = {
    GOOD: [None],
    BAD: [Oops("bad"), ValueError("bad")],
    NOTHING: [Fine("well"), Odd("well"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()],
}


def settings_of(draw: Any) -> tuple[dict[str, Any], SimpleNamespace]:
    """The arguments of a breaker, and the same for the model."""
    window = draw(st.sampled_from([None, None, 1, 3, 8, "0.5s", 2.0, 20.0]))
    slow = draw(st.sampled_from([None, 0.05, 1.0]))
    reset, trial = draw(st.sampled_from([0.001, 1.0, 7.5])), draw(st.sampled_from([0.5, 3.0]))
    backoff = draw(st.sampled_from([1.0, 2.0, 3.0]))
    most = draw(st.sampled_from([None, 10.0])) if backoff > 1 else None
    given: dict[str, Any] = {
        "failure_threshold": draw(st.integers(1, 4)),
        "success_threshold": draw(st.integers(1, 3)),
        "half_open_max": draw(st.integers(1, 3)),
        "reset_timeout": reset,
        "trial_timeout": trial,
        "backoff": backoff,
        "max_reset_timeout": most,
        "slow_call": slow,
        "window": window,
    }
    if window is not None:
        given["min_calls"] = draw(st.sampled_from([None, 1, 2, 5, 9]))
        given["failure_rate"] = draw(st.sampled_from([None, 0.3, 0.5, 1.0]))
        given["slow_rate"] = draw(st.sampled_from([None, 0.25, 1.0])) if slow else None
    rules = SimpleNamespace(
        **{name: given[name] for name in ("failure_threshold", "success_threshold", "half_open_max", "backoff")},
        reset=int(reset * S),
        reset_max=int(S * (most if most else max(reset, 3600.0) if backoff > 1 else reset)),
        trial=int(trial * S),
        slow=None if slow is None else int(slow * S),
        window=None,
        failure_rate=given.get("failure_rate"),
        slow_rate=given.get("slow_rate"),
        min_calls=given.get("min_calls") or 100,
    )
    if isinstance(window, int):
        rules.window, rules.size = "calls", window
    elif window is not None:
        seconds = 0.5 if window == "0.5s" else window
        rules.window, rules.size = "time", max(int(seconds), 10)
        rules.bucket = int(seconds * S / rules.size)
    if window is not None and rules.failure_rate is None and rules.slow_rate is None:
        rules.failure_rate, rules.slow_rate = 0.5, 1.0 if slow else None
    if rules.window == "calls":
        rules.min_calls = min(rules.min_calls, rules.size)
    return given, rules


class Lives(RuleBasedStateMachine):
    """The real breaker and the model, told the same."""

    now = 0

    @initialize(data=st.data(), start=st.sampled_from([0, 1, 12_345_678_901_234]))
    def make(self, data: Any, start: int) -> None:
        given, rules = settings_of(data.draw)
        note(f"{given} from {start}")
        self.now = start
        self.seen: list[tuple[str, str]] = []
        self.real = CircuitBreaker(
            "model",
            **given,
            exclude=[Fine, lambda error: isinstance(error, Odd)],
            failure_if=lambda value: value == BAD,
            on_state_change=lambda _, old, new: self.seen.append((old, new)),
            clock=lambda: self.now / S,
        )
        self.model = BreakerModel(rules)
        self.open: list[tuple[Any, Ticket]] = []

    def refused(self, error: CircuitOpen, expected: Refused) -> None:
        wait = expected.args[0]
        assert error.retry_after == (None if wait is None else wait / S)

    def ask(self) -> Ticket | None:
        try:
            return self.model.admit(self.now)
        except Refused as refusal:
            with pytest.raises(CircuitOpen) as caught:
                self.real.call(pytest.fail, "a refused call is not made")
            self.refused(caught.value, refusal)
            return None

    # ---- calls
    @rule()
    def begin(self) -> None:
        ticket = self.ask()
        if ticket is not None:
            self.open.append((self.real._begin(), ticket))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=st.sampled_from(list(ERRORS)))
    def end(self, data: Any, outcome: str) -> None:
        real, ticket = self.open.pop(data.draw(st.integers(0, len(self.open) - 1)))
        self.real._end(real, data.draw(st.sampled_from(ERRORS[outcome])), None)
        self.model.settle(ticket, outcome, self.now)

    @rule(
        way=st.sampled_from(["call", "decorated", "with", "value"]),
        data=st.data(),
        outcome=st.sampled_from([GOOD, BAD, BAD, NOTHING]),
        took=st.sampled_from([0, 0, 50 * MS, 50 * MS + 1, 1 * S, 1 * S + 1, 4 * S]),
    )
    def whole_call(self, way: str, data: Any, outcome: str, took: int) -> None:
        error = data.draw(st.sampled_from(ERRORS[outcome]))
        ticket = self.ask()
        if ticket is None:
            return

        def work() -> Any:
            self.now += took
            if error is not None and way != "value":
                raise error
            return BAD if way == "value" and outcome == BAD else GOOD

        try:
            if way == "with":
                with self.real:
                    work()
            else:
                assert (self.real(work)() if way == "decorated" else self.real.call(work)) in (GOOD, BAD)
            assert error is None or way == "value"
        except BaseException as raised:
            assert raised is error  # and no other
        self.model.settle(ticket, GOOD if way == "value" and outcome == NOTHING else outcome, self.now)

    # ---- time
    @rule(passed=st.sampled_from([1, MS, 49 * MS, 50 * MS, 333 * MS, S, 3 * S, 25 * S]))
    def wait(self, passed: int) -> None:
        self.now += passed

    @precondition(lambda self: self.model.state == OPEN and self.model.until >= self.now)
    @rule(past=st.integers(0, 1))
    def wait_until_it_may_be_tried(self, past: int) -> None:
        self.now = self.model.until + past

    @precondition(lambda self: self.model.trials)
    @rule(past=st.integers(0, 1))
    def wait_until_a_trial_is_lost(self, past: int) -> None:
        self.now = max(self.now, min(until for _, until in self.model.trials) + past)

    # ---- by hand
    @rule(
        verb=st.sampled_from(
            [("trip", OPEN), ("trip", OPEN), ("reset", CLOSED), ("force_open", FORCED), ("disable", DISABLED)]
        )
    )
    def steer(self, verb: tuple[str, str]) -> None:
        getattr(self.real, verb[0])()
        self.model.put(verb[1], self.now)

    # ---- mistakes: an error, and nothing has happened
    @rule(
        mistake=st.sampled_from(
            [
                lambda breaker: breaker.call(),
                lambda breaker: breaker(5),
                lambda breaker: breaker._end((1, 2), None, None),
                lambda breaker: breaker._end("ticket", None, None),
                lambda breaker: breaker._end((0, 0, 0, 0), "an error", None),
                lambda breaker: breaker.__exit__(None),
                lambda breaker: breaker._set("open"),
                lambda breaker: breaker._set(2),
                lambda breaker: breaker._set(7),
                lambda breaker: CircuitBreaker("model", clock=5),
            ]
        )
    )
    def mistake(self, mistake: Any) -> None:
        with pytest.raises((TypeError, ValueError)):
            mistake(self.real)

    # ---- what must be equal
    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "model"):
            return
        model, facts = self.model, self.real.stats()
        state = HALF if model.state == OPEN and self.now > model.until else model.state
        assert self.real.state == facts["state"] == state
        left = None if state == FORCED else (model.until - self.now) / S if state == OPEN else 0.0
        assert self.real.retry_after == facts["retry_after"] == left
        assert facts["attempt"] == model.attempt
        assert facts["trials"] == len(model.trials)
        assert self.seen == model.changes
        if model.rules.window is None:
            assert facts["failures_in_row"] == (model.row if state == CLOSED else 0)
        elif model.state in (CLOSED, HALF):
            window = model.window(self.now)
            expected = {"calls": len(window), "failed": sum(r[1] for r in window), "slow": sum(r[2] for r in window)}
            assert facts["window"] == expected
        assert {name: count for name, count in facts["counters"].items() if count} == dict(+model.counters)


def test_random_lives_are_those_of_the_model() -> None:
    run_state_machine_as_test(Lives, settings=QUICK)


@pytest.mark.stress
@pytest.mark.slow
def test_many_random_lives_are_those_of_the_model() -> None:
    run_state_machine_as_test(Lives, settings=LONG)


def test_the_model_is_small() -> None:
    """A model that is as long as the code proves nothing."""
    for name in ("breaker_model.py", "permit_models.py"):
        assert len((Path(__file__).parent / name).read_text().splitlines()) <= 150


# ---- arguments that are wrong --------------------------------------------------------------------------------------
COUNTS = st.one_of(st.sampled_from([0, -1, 2**32, 2**70, True, False]), st.sampled_from([None, "5", 1.5, [], object()]))
SECONDS = st.one_of(
    st.sampled_from([0, 0.0, -1, -0.5, float("nan"), float("inf"), 1e300, 10**400, 4e9]),
    st.sampled_from([True, "soon", "", "-1s", [], {}, object()]),
)
RATES = st.sampled_from([0, 0.0, -0.1, 1.0001, 50, float("nan"), float("inf"), "0.5", True, [], object()])
WRONG: dict[str, Any] = {
    "failure_threshold": COUNTS,
    "half_open_max": st.one_of(COUNTS, st.just(65)),
    "success_threshold": COUNTS,
    "min_calls": st.one_of(st.sampled_from([0, -1, 2**32, True, "5", 1.5, [], object()])),
    "reset_timeout": st.one_of(SECONDS, st.none()),
    "slow_call": SECONDS,
    "trial_timeout": SECONDS,
    "max_reset_timeout": st.one_of(SECONDS, st.just(59.9)),
    "backoff": st.sampled_from([0, 0.999, -1, 1001, float("nan"), float("inf"), "2", None, True, []]),
    "failure_rate": RATES,
    "slow_rate": st.one_of(RATES, st.just(0.5)),  # without slow_call
    "window": st.sampled_from(
        [0, -1, 65537, 0.001, 0.0, -1.0, float("nan"), float("inf"), 86401.0, "many", True, [], object()]
    ),
    "exclude": st.sampled_from([5, "ValueError", [5], [None], ["ValueError"], int, [int], object()]),
    "failure_if": st.sampled_from([5, "no", []]),
    "on_state_change": st.sampled_from([5, "no", []]),
    "clock": st.sampled_from([5, "no", []]),
    "name": st.sampled_from(["", None, 5, b"bytes", "x" * 181, "ä" * 91, "a\0b", "a/b", [], "\udc80"]),
}


@pytest.mark.parametrize("argument", list(WRONG))
def test_a_wrong_argument_is_named(argument: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(value=WRONG[argument])
    def look(value: Any) -> None:
        arguments = {"name": "model", argument: value}
        with pytest.raises((TypeError, ValueError)) as caught:
            CircuitBreaker(**arguments)
        assert type(caught.value) in (TypeError, ValueError)
        assert argument in str(caught.value), str(caught.value)

    look()


def test_a_clock_that_is_wrong_is_an_error_and_changes_nothing() -> None:
    times: list[Any] = [0.0]
    breaker = CircuitBreaker("clock", failure_threshold=1, clock=lambda: times[-1])
    breaker.trip()
    for wrong in ("no", -1.0, float("nan"), 1e300, None):
        times.append(wrong)
        with pytest.raises((TypeError, ValueError)):
            breaker.call(pytest.fail)
        times.pop()
    assert breaker.state == OPEN and breaker.retry_after == 60.0

"""Random lives of a real bulkhead and a real rate limit beside their models."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note, reject, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from permit_models import BucketModel, BulkheadModel

from shmrt import Bulkhead, BulkheadFull, Overloaded, RateLimit

S = 1_000_000_000
QUICK = settings(max_examples=100, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck))
LONG = settings(QUICK, max_examples=3000, stateful_step_count=100)
LATELY_S = 0.15  # who has not looked for 0.2 s is passed by; this test does not say when exactly that is


class Permits(RuleBasedStateMachine):
    """Waiters are event loops' ones: they look when they are told to."""

    @initialize(limit=st.integers(1, 4), most_waiting=st.integers(0, 3))
    def make(self, limit: int, most_waiting: int) -> None:
        self.real = Bulkhead("model", limit, most_waiting, timeout=0.0)
        self.model = BulkheadModel(limit, most_waiting)
        self.places: dict[int, Any] = {}
        self.looked: dict[int, float] = {}
        self.names = 0

    def is_clear(self) -> None:
        """Whether nobody in the line counts as stopped, nor could."""
        if any(time.monotonic() - at > LATELY_S for at in self.looked.values()):
            reject()

    def look(self, who: int) -> None:
        self.is_clear()
        answer = self.real._poll(self.places.get(who))
        self.is_clear()
        expected = self.model.take(who)
        told = "refused" if answer is None else "taken" if answer[0] else "waits"
        assert told == expected
        self.places.pop(who, None), self.looked.pop(who, None)
        if told == "waits":
            self.places[who], self.looked[who] = answer[1], time.monotonic()

    @rule()
    def come(self) -> None:
        self.names += 1
        self.look(self.names)

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def look_again(self, data: Any) -> None:
        self.look(data.draw(st.sampled_from(sorted(self.places))))

    @precondition(lambda self: self.places)
    @rule(data=st.data(), timed_out=st.booleans())
    def give_up(self, data: Any, timed_out: bool) -> None:
        who = data.draw(st.sampled_from(sorted(self.places)))
        self.real._give_up(self.places.pop(who), timed_out)
        self.looked.pop(who)
        self.model.leave(who, timed_out)

    @rule(way=st.sampled_from(["try", "acquire", "call", "with"]))
    def take_now(self, way: str) -> None:
        """A timeout of 0 waits for nobody, and goes by those that wait."""
        expected = self.model.take(None)
        if way == "try":
            assert self.real.try_acquire() is (expected == "taken")
        elif way == "acquire":
            assert self.real.acquire(timeout=0) is (expected == "taken")
        else:
            try:
                if way == "with":
                    with self.real:
                        pass
                else:
                    assert self.real.call(int, "5") == 5
                assert expected == "taken"
            except BulkheadFull as refusal:
                assert expected == "refused" and refusal.capacity == self.model.limit
            if expected == "taken":
                self.model.give_back()

    @rule()
    def give_back(self) -> None:
        if self.model.used:
            self.real.release()
            self.model.give_back()
        else:
            with pytest.raises(RuntimeError, match="no permit"):
                self.real.release()

    @rule(limit=st.integers(1, 6))
    def resize(self, limit: int) -> None:
        self.real.resize(limit)
        self.model.limit = limit

    @rule(
        mistake=st.sampled_from(
            [
                lambda b: b.resize(0),
                lambda b: b.resize(65),
                lambda b: b.resize("4"),
                lambda b: b.acquire(timeout=-1),
                lambda b: b.acquire(timeout="soon"),
                lambda b: b.acquire(timeout=float("nan")),
                lambda b: b.call(),
                lambda b: b(5),
                lambda b: b._poll("place"),
            ]
        )
    )
    def mistake(self, mistake: Any) -> None:
        before = self.real.stats()["counters"]
        with pytest.raises((TypeError, ValueError)):
            mistake(self.real)
        assert self.real.stats()["counters"] == before

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "model"):
            return
        model, facts = self.model, self.real.stats()
        assert (facts["in_use"], facts["waiting"], facts["max_concurrent"]) == (
            model.used,
            len(model.line),
            model.limit,
        )
        assert facts["high_water"] == model.high_water
        assert self.real.available == max(model.limit - model.used, 0)
        assert {name: count for name, count in facts["counters"].items() if count} == dict(+model.counters)


class Tokens(RuleBasedStateMachine):
    now = 0

    @initialize(
        rate=st.sampled_from([0.001, 1.0, 3, 7.5, 1000, 333_333.3, 1e9]),
        burst=st.sampled_from([1, 2, 5, 100]),
        start=st.sampled_from([0, 987_654_321_123]),
    )
    def make(self, rate: float, burst: int, start: int) -> None:
        note(f"{rate=} {burst=} from {start}")
        self.now = start
        self.real = RateLimit("model", rate, burst, clock=lambda: self.now / S)
        self.model = BucketModel(max(round(S / rate), 1), burst, when=start)

    @rule(tokens=st.integers(1, 5), way=st.sampled_from(["try", "acquire", "call"]))
    def take(self, tokens: int, way: str) -> None:
        if tokens > self.model.burst:
            with pytest.raises(ValueError, match=f"tokens={tokens}.*{self.model.burst}"):
                self.real.try_acquire(tokens)
            return
        if way == "call":
            tokens = 1
        taken, wait = self.model.take(tokens, self.now, 0)
        if way == "try":
            assert self.real.try_acquire(tokens=tokens) is taken
            return
        try:
            assert (self.real.acquire(tokens, timeout=0) if way == "acquire" else self.real.call(float, 0)) == 0
            assert taken
        except Overloaded as refusal:
            assert not taken and refusal.retry_after == wait / S  # type: ignore[attr-defined]
            assert refusal.capacity == self.model.burst

    @rule(tokens=st.integers(1, 5), patience=st.sampled_from([0, 1, S // 2, 10 * S, None]))
    def take_ahead(self, tokens: int, patience: int | None) -> None:
        """As who sleeps until they are there; nobody sleeps here."""
        if tokens <= self.model.burst:
            answer = self.real._take(tokens, -1 if patience is None else patience)
            assert answer == self.model.take(tokens, self.now, patience)

    @rule(tokens=st.integers(1, 5), less=st.integers(0, 1))
    def take_on_the_edge(self, tokens: int, less: int) -> None:
        """With exactly as much patience as it takes, or a nanosecond less."""
        self.model.pass_time(self.now)
        wait = int(max(tokens - self.model.level, Fraction(0)) * self.model.token_ns)
        if tokens <= self.model.burst and wait >= less:
            answer = self.real._take(tokens, wait - less)
            assert answer == self.model.take(tokens, self.now, wait - less) == (not less, wait)

    @rule(passed=st.sampled_from([1, 1000, 333_333_333, S, 3 * S, 1000 * S]))
    def wait(self, passed: int) -> None:
        self.now += passed

    @rule(before=st.integers(0, 1))
    def wait_for_a_token(self, before: int) -> None:
        """Until one more is there, or a nanosecond less."""
        self.model.pass_time(self.now)
        missing = (Fraction(self.model.tokens(self.now) + 1) - self.model.level) * self.model.token_ns
        assert missing.denominator == 1
        self.now += max(int(missing) - before, 0)

    @rule(tokens=st.sampled_from([0, -1, 2**64, True, "1", 1.5, None]))
    def mistake(self, tokens: Any) -> None:
        for take in (self.real.try_acquire, self.real.acquire):
            with pytest.raises((TypeError, ValueError), match="tokens"):
                take(tokens)

    @invariant()
    def the_same(self) -> None:
        if hasattr(self, "model"):
            assert self.real.tokens == self.model.tokens(self.now)
            counters = self.real.stats()["counters"]
            assert {name: count for name, count in counters.items() if count} == dict(+self.model.counters)


@pytest.mark.parametrize("machine", [Permits, Tokens])
def test_random_lives_are_those_of_the_model(machine: Any) -> None:
    run_state_machine_as_test(machine, settings=QUICK)


@pytest.mark.stress
@pytest.mark.slow
@pytest.mark.parametrize("machine", [Permits, Tokens])
def test_many_random_lives_are_those_of_the_model(machine: Any) -> None:
    run_state_machine_as_test(machine, settings=LONG)


# ---- arguments that are wrong
NO_COUNT = st.sampled_from([-1, 2**70, True, None, "5", 1.5, [], object()])
WRONG: list[tuple[Any, dict[str, Any], str, Any]] = [
    (Bulkhead, {"max_concurrent": 1}, "max_concurrent", st.one_of(NO_COUNT, st.sampled_from([0, 65537]))),
    (Bulkhead, {"max_concurrent": 1}, "max_waiting", st.one_of(NO_COUNT, st.just(4097))),
    (Bulkhead, {"max_concurrent": 1}, "timeout", st.sampled_from([-1, float("nan"), "5", True, [], object()])),
    (Bulkhead, {"max_concurrent": 1}, "name", st.sampled_from(["", None, 5, "x" * 181, "a\0b"])),
    (RateLimit, {"rate": 1}, "rate", st.sampled_from([0, -1, 1e10, 1e-7, float("nan"), float("inf"), "5", True, None])),
    (RateLimit, {"rate": 1}, "burst", st.one_of(NO_COUNT, st.sampled_from([0, 2**31]))),
    (RateLimit, {"rate": 1}, "timeout", st.sampled_from([-1, float("nan"), "5", True, [], object()])),
    (RateLimit, {"rate": 1}, "clock", st.sampled_from([5, "no"])),
    (RateLimit, {"rate": 1}, "name", st.sampled_from(["", None, 5, "x" * 181, "a\0b"])),
]


@pytest.mark.parametrize(
    ("kind", "others", "argument", "values"), WRONG, ids=[f"{r[0].__name__}-{r[2]}" for r in WRONG]
)
def test_a_wrong_argument_is_named(kind: Any, others: dict[str, Any], argument: str, values: Any) -> None:
    @settings(max_examples=30, deadline=None)
    @given(value=values)
    def look(value: Any) -> None:
        with pytest.raises((TypeError, ValueError)) as caught:
            kind(**{"name": "model", **others, argument: value})
        assert type(caught.value) in (TypeError, ValueError)
        assert argument in str(caught.value), str(caught.value)

    look()


def test_a_bucket_that_takes_a_century_to_fill_is_refused() -> None:
    with pytest.raises(ValueError, match="burst=2147483647 of rate=1e-06"):
        RateLimit("model", 1e-6, 2**31 - 1)

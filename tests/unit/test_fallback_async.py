"""Fallback in an event loop, and its retries: detection, timeouts, cancellation, breakers, tenacity."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest

from shmrt import CircuitOpen, Fallback, TaskTimeout, fallback
from shmrt.clock import ManualClock

S = 1_000_000_000


async def down(*_: Any) -> int:
    await asyncio.sleep(0)
    raise OSError("down")


async def up(n: int = 1) -> int:
    await asyncio.sleep(0)
    return n


async def never(*_: Any) -> None:
    await asyncio.Event().wait()


class AsyncObject:
    async def __call__(self, n: int = 1) -> int:
        return n


def fail(*_: Any) -> int:
    raise OSError("down")


@pytest.mark.parametrize("fn", [up, functools.partial(up, 5), AsyncObject(), Fallback(down, default=1)])
def test_a_coroutine_function_is_recognised(fn: Any) -> None:
    for made in (Fallback(fn), Fallback(fail, ("a", fn))):
        assert made.is_async
        outcome = asyncio.run(made())
        assert outcome.value in (1, 5)
    assert asyncio.run(Fallback(fail, ("a", fn)).value()) in (1, 5)
    assert not Fallback(fail, default=1).is_async and Fallback(fail, default_factory=up).is_async


def test_both_kinds_in_one_chain() -> None:
    made = Fallback(down, ("plain", fail), ("coroutine", up))
    outcome = asyncio.run(made())
    assert outcome.source == "coroutine" and outcome.errors.sources == ("primary", "plain")
    outcome = asyncio.run(Fallback(fail, ("lambda", lambda n: up(n))).acall(7))
    assert (outcome.value, outcome.source) == (7, "lambda"), "what a plain function gives is awaited"
    assert asyncio.run(Fallback(down, default_factory=up)()).source == "default"


def test_all_fail() -> None:
    with pytest.raises(OSError, match="down") as caught:
        asyncio.run(Fallback(down, ("a", down))())
    assert caught.value.fallback_errors.sources == ("a",) and caught.value.__context__ is None  # type: ignore[attr-defined]


def test_the_decorator() -> None:
    @fallback(default=0)
    async def half(n: int) -> float:
        return n / 2

    async def main() -> list[Any]:
        return [(await half(4)).value, (await half("x")).source]  # type: ignore[misc]

    assert asyncio.run(main()) == [2.0, "default"]


def test_a_timeout_cancels_and_the_next_source_is_asked() -> None:
    ended = []

    async def hangs() -> None:
        try:
            await never()
        finally:
            ended.append(True)

    outcome = asyncio.run(Fallback(hangs, ("a", never), default=3, timeout={"primary": 0.01, "a": 0.02})())
    assert outcome.value == 3 and ended == [True]
    assert [(type(error), error.elapsed) for error in outcome.errors] == [(TaskTimeout, 0.01), (TaskTimeout, 0.02)]


def test_a_timeout_error_of_the_functions_own_is_not_ours() -> None:
    own = TimeoutError("mine")

    async def late() -> None:
        raise own

    assert asyncio.run(Fallback(late, default=0, timeout=60)()).errors[0] is own


def test_a_deadline_bounds_all_sources_together() -> None:
    outcome = asyncio.run(Fallback(never, ("a", never), ("b", up), default=0, deadline=0.05)())
    assert outcome.source == "default" and outcome.errors.sources == ("primary", "a", "b")
    assert "before source 'a' began" in str(outcome.errors["a"]), "it had used all there was"


@pytest.mark.parametrize("stage", ["primary", "a", "default"])
def test_cancellation_passes_through(stage: str) -> None:
    """From outside, at any source; none of the next is asked."""
    asked = []

    def source(name: str) -> Any:
        async def run() -> None:
            asked.append(name)
            if name == stage:
                await never()
            raise OSError

        return run

    async def main() -> None:
        made = Fallback(source("primary"), ("a", source("a")), default_factory=source("default"), timeout=60)
        task = asyncio.ensure_future(made())
        while stage not in asked:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert asked[-1] == stage and made.stats()["calls"] == 0

    asyncio.run(main())


def test_a_timeout_around_it_is_the_callers() -> None:
    async def main() -> None:
        async with asyncio.timeout(0.01):
            await Fallback(never, default=0, timeout=60)()

    with pytest.raises(TimeoutError):
        asyncio.run(main())


class AsyncBreaker:
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def call(self, fn: Any, *args: Any) -> Any:
        raise AssertionError("not in a loop")

    async def acall(self, fn: Any, *args: Any) -> Any:
        if self.seen:
            raise CircuitOpen("open")
        try:
            return await fn(*args)
        except Exception as error:
            self.seen.append(type(error))
            raise


def test_a_breaker_sees_timeouts() -> None:
    breaker = AsyncBreaker()
    made = Fallback(never, default=0, timeout=0.01, breaker=breaker)
    kinds = [type(asyncio.run(made()).errors[0]) for _ in range(2)]
    assert kinds == [TaskTimeout, CircuitOpen] and breaker.seen == [TaskTimeout]


def test_a_breaker_that_cannot_be_awaited_is_a_mistake_that_no_default_hides() -> None:
    class Plain:
        def call(self, fn: Any, *args: Any) -> Any:
            return fn(*args)

    with pytest.raises(TypeError, match="has no acall"):
        asyncio.run(Fallback(up, default=0, breaker=Plain())())


def test_a_coroutine_function_has_no_pool() -> None:
    with pytest.raises(TypeError, match="runs in the event loop, not in a pool"):
        Fallback(up, pool={"primary": object()})


# ---- retries --------------------------------------------------------------------------------------------------------
tenacity = pytest.importorskip("tenacity", reason="pip install shmrt[resilience]")


class Tries:
    """Fails some times, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


class AsyncTries(Tries):
    async def __call__(self) -> str:  # type: ignore[override]
        return super().__call__()


def quick(attempts: int, **options: Any) -> Any:
    """A policy that does not wait; what it would have waited is kept."""
    waits: list[float] = []
    made = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts), wait=tenacity.wait_fixed(5), sleep=waits.append, **options
    )
    return made, waits


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_the_primary_is_tried_again(failures: int) -> None:
    policy, waits = quick(3)
    primary = Tries(*[OSError(str(n)) for n in range(failures)])
    outcome = Fallback(primary, default=0, retry=policy)()
    assert outcome.source == ("primary" if failures < 3 else "default")
    assert primary.calls == min(failures + 1, 3) and waits == [5.0] * min(failures, 2)
    if failures == 3:
        assert outcome.errors[0].args == ("2",), "the last attempt's"


def test_a_number_waits_a_random_and_growing_time(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tenacity.nap.time.sleep", waits.append)
    assert Fallback(Tries(OSError(), OSError()), retry=3)().value == "answer"
    assert len(waits) == 2 and all(0 <= wait <= 0.1 * 2**n for n, wait in enumerate(waits))


@pytest.mark.parametrize(
    ("error", "calls"), [(OSError(), 2), (CircuitOpen("open"), 1), (KeyError(), 1), (FileNotFoundError(), 1)]
)
def test_only_what_counts_is_tried_again(error: Exception, calls: int) -> None:
    primary = Tries(error)
    made = Fallback(primary, default=0, retry=quick(2)[0], on=OSError, exclude=FileNotFoundError)
    if isinstance(error, (KeyError, FileNotFoundError)):
        with pytest.raises(type(error)):
            made()
    else:
        made()
    assert primary.calls == calls


def test_what_ends_things_is_not_tried_again() -> None:
    calls = []

    def end() -> None:
        calls.append(1)
        raise SystemExit

    policy, _ = quick(3, retry=tenacity.retry_always)
    with pytest.raises(SystemExit):
        Fallback(end, default=0, retry=policy)()
    assert len(calls) == 1


def test_a_policy_about_results() -> None:
    """An answer that the policy never accepts is a failure."""
    policy, _ = quick(2, retry=tenacity.retry_if_result(lambda value: value is None))
    outcome = Fallback(lambda: None, default=1, retry=policy)()
    assert outcome.value == 1 and isinstance(outcome.errors[0], tenacity.RetryError)


def test_no_retry_begins_after_the_deadline_and_no_wait_passes_it() -> None:
    clock = ManualClock()
    waits: list[float] = []
    primary = Tries(*[OSError()] * 9)

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        clock.advance(round(seconds * S))

    class Here:
        def options(self, **_: Any) -> Here:
            return self

        def submit(self, fn: Any) -> Any:
            from concurrent.futures import Future

            future: Future[Any] = Future()
            try:
                future.set_result(fn())
            except Exception as error:
                future.set_exception(error)
            return future

    policy = tenacity.Retrying(wait=tenacity.wait_fixed(4), sleep=sleep)
    made = Fallback(primary, default=0, retry=policy, deadline=10.0, clock=clock, pool=Here())
    outcome = made()
    assert waits == [4.0, 4.0, 2.0] and primary.calls == 3 and outcome.source == "default"
    assert isinstance(outcome.errors[0], TaskTimeout)


def test_each_attempt_is_counted_by_the_breaker() -> None:
    class Counting:
        calls = 0

        def call(self, fn: Any, *args: Any) -> Any:
            self.calls += 1
            return fn(*args)

    breaker = Counting()
    Fallback(Tries(OSError(), OSError()), retry=quick(3)[0], breaker=breaker)()
    assert breaker.calls == 3


@pytest.mark.parametrize("kind", ["number", "Retrying", "AsyncRetrying"])
def test_retries_in_a_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_wait(_: float) -> None: ...

    async def if_os_error(state: Any) -> bool:
        return isinstance(state.outcome.exception(), OSError)

    stop = tenacity.stop_after_attempt(2)
    monkeypatch.setattr("tenacity.asyncio._portable_async_sleep", no_wait)
    retry = {
        "number": 2,
        "Retrying": tenacity.Retrying(stop=stop),
        "AsyncRetrying": tenacity.AsyncRetrying(stop=stop, retry=if_os_error),
    }[kind]
    for failures, source in ((1, "primary"), (2, "default")):
        primary = AsyncTries(*[OSError()] * failures)
        assert asyncio.run(Fallback(primary, default=0, retry=retry)()).source == source
        assert primary.calls == 2
    once = AsyncTries(KeyError("x"))
    if kind == "AsyncRetrying":
        assert asyncio.run(Fallback(once, default=0, retry=retry)()).source == "default" and once.calls == 1
        with pytest.raises(TypeError, match="AsyncRetrying retries in an event loop only"):
            Fallback(Tries(), default=0, retry=retry)()

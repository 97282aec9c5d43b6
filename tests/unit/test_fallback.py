"""Fallback within one process: who answers, what the outcome says, what is raised, what is counted and told."""

from __future__ import annotations

import gc
import logging
import pickle
import sys
import weakref
from concurrent.futures import CancelledError
from functools import partial
from typing import Any

import pytest

import shmrt
from shmrt import CircuitOpen, Fallback, Outcome, Overloaded, RemoteError, TaskTimeout, WorkerCrashed, fallback
from shmrt.clock import ManualClock
from shmrt.decide.fallback import RESERVED, change, time_left
from shmrt.guard.outcome import Errors


class Script:
    """A source that does what it is told, one thing for each call, and says what it was called with."""

    def __init__(self, *does: Any) -> None:
        self.does = list(does)
        self.calls: list[Any] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls.append((args, kwargs))
        what = self.does[min(len(self.calls), len(self.does)) - 1]
        if isinstance(what, BaseException) or (isinstance(what, type) and issubclass(what, BaseException)):
            raise what
        return what


class FakeBreaker:
    """The words of a CircuitBreaker: opens after `threshold` failures in a row."""

    def __init__(self, threshold: int = 2) -> None:
        self.threshold, self.failures, self.refused = threshold, 0, 0

    def call(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        if self.failures >= self.threshold:
            self.refused += 1
            raise CircuitOpen("open", retry_after=60.0)
        try:
            value = fn(*args, **kwargs)
        except Exception:
            self.failures += 1
            raise
        self.failures = 0
        return value


# ---- who answers ----------------------------------------------------------------------------------------------------
def test_the_primary_answers_and_nobody_else_is_asked() -> None:
    second = Script(2)
    outcome = Fallback(Script(1), ("cache", second), default=3)()
    assert tuple(outcome) == (1, "primary", ()) and not outcome.degraded and second.calls == []


def test_alternatives_are_asked_in_order_with_the_same_arguments() -> None:
    sources = [Script(OSError("a")), Script(KeyError("b")), Script("c"), Script("d")]
    pairs = [(name, source) for name, source in zip("xyz", sources[1:], strict=True)]
    outcome = Fallback(sources[0], *pairs)(1, two=2)
    assert (outcome.value, outcome.source) == ("c", "y") and outcome.degraded
    assert [(name, repr(error)) for name, error in outcome.errors.items()] == [
        ("primary", "OSError('a')"),
        ("x", "KeyError('b')"),
    ]
    assert [source.calls for source in sources] == [[((1,), {"two": 2})]] * 3 + [[]]


@pytest.mark.parametrize("value", [None, False, 0, len, ValueError("as a value"), Ellipsis])
def test_any_value_is_a_default(value: Any) -> None:
    """None and functions too: they are given as they are."""
    outcome = Fallback(Script(OSError()), default=value)()
    assert outcome.value is value and outcome.source == "default" and len(outcome.errors) == 1


@pytest.mark.parametrize("value", [None, 0, ValueError("as a value")])
def test_any_value_is_an_answer(value: Any) -> None:
    assert tuple(Fallback(lambda: value, default=1)()) == (value, "primary", ())


def test_a_factory_makes_a_new_default_each_time() -> None:
    made = Fallback(Script(OSError()), default_factory=list)
    assert made().value == [] and made().value is not made().value and made().source == "default"


def test_a_factory_may_fail_too() -> None:
    with pytest.raises(OSError) as caught:
        Fallback(Script(OSError("first")), default_factory=Script(KeyError("made")))()
    assert dict(caught.value.fallback_errors.items()).keys() == {"default"}  # type: ignore[attr-defined]


# ---- nobody answers -------------------------------------------------------------------------------------------------
def test_without_a_default_the_primarys_own_exception_is_raised_with_the_others() -> None:
    first, second, third = ConnectionError("refused"), KeyError("x"), TimeoutError()
    made = Fallback(Script(first), ("a", Script(second)), ("b", Script(third)))
    for _ in range(3):  # the same exception objects again: the notes do not pile up
        with pytest.raises(ConnectionError, match="refused") as caught:
            made()
        assert caught.value is first and first.__cause__ is None and first.__context__ is None
        assert first.__notes__ == [
            "fallback: source 'a' failed too: KeyError: 'x'",
            "fallback: source 'b' failed too: TimeoutError",
        ]
        assert first.fallback_errors["b"] is third and len(first.fallback_errors) == 2  # type: ignore[attr-defined]
    with pytest.raises(ConnectionError) as again:
        raise pickle.loads(pickle.dumps(first))
    assert again.value.fallback_errors.sources == ("a", "b")  # type: ignore[attr-defined]


def test_the_users_own_notes_stay() -> None:
    error = OSError("x")
    error.add_note("mine")
    with pytest.raises(OSError):
        Fallback(Script(error), ("a", Script(KeyError())))()
    assert error.__notes__[0] == "mine" and len(error.__notes__) == 2


def test_one_exception_of_all_sources_is_no_cycle() -> None:
    """It is not attached to itself: it could not be pickled."""
    error = OSError("shared")
    with pytest.raises(OSError):
        Fallback(Script(error), ("a", Script(error)))()
    assert not hasattr(error, "fallback_errors") and pickle.loads(pickle.dumps(error)).args == ("shared",)


def test_an_exception_that_forbids_notes_is_raised_all_the_same() -> None:
    class Closed(Exception):
        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(name)

    with pytest.raises(Closed):
        Fallback(Script(Closed()), ("a", Script(OSError())))()


def test_nothing_is_kept_alive_by_a_failure() -> None:
    """No frame on an exception's traceback holds that exception: counting references is enough to free all."""

    class Big:
        pass

    gc.collect()
    gc.disable()
    try:
        for made in (Fallback(Script(OSError, KeyError), default=0), Fallback(Script(OSError))):
            big = Big()
            gone = weakref.ref(big)
            try:
                made(big)
            except OSError:
                pass
            for source in made._sources.values():
                source.fn.calls.clear()  # type: ignore[attr-defined]
            del big
            assert gone() is None
    finally:
        gc.enable()


# ---- what counts ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, GeneratorExit, shmrt.Shutdown, CancelledError])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_ends_things_is_never_swallowed(end: type[BaseException], place: int) -> None:
    sources: list[Script] = [Script(OSError()), Script(OSError()), Script(OSError())]
    sources[place] = Script(end())
    made = Fallback(sources[0], ("a", sources[1]), default_factory=sources[2])
    with pytest.raises(end):
        made()
    assert [len(source.calls) for source in sources] == [1] * (place + 1) + [0] * (2 - place)


def test_only_what_counts_hands_over() -> None:
    made = Fallback(
        Script(KeyError("x"), OSError("y"), FileNotFoundError("z")), default=0, on=OSError, exclude=FileNotFoundError
    )
    with pytest.raises(KeyError):
        made()
    assert made().source == "default"
    with pytest.raises(FileNotFoundError):
        made()


def test_what_does_not_count_says_what_had_failed_before() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        Fallback(Script(OSError("y")), ("a", Script(ZeroDivisionError())), default=0, on=OSError)()
    assert caught.value.fallback_errors.sources == ("primary",)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "error",
    [CircuitOpen("open"), TaskTimeout("late"), WorkerCrashed("died"), Overloaded("full"), shmrt.PoolBroken("x")],
)
def test_what_the_guards_raise_counts_unless_excluded(error: Exception) -> None:
    assert Fallback(Script(error), default=0, on=ZeroDivisionError)().source == "default"
    with pytest.raises(type(error)):
        Fallback(Script(error), default=0, on=ZeroDivisionError, exclude=type(error))()


@pytest.mark.parametrize("odd", [StopIteration("s"), StopAsyncIteration(), RuntimeError("generator raised")])
def test_exceptions_of_the_interpreters_own_are_failures_like_others(odd: Exception) -> None:
    assert Fallback(Script(odd), default=0)().errors[0] is odd
    with pytest.raises(type(odd)):
        Fallback(Script(odd))()


# ---- guards ---------------------------------------------------------------------------------------------------------
def test_a_breaker_guards_the_primary() -> None:
    breaker, primary = FakeBreaker(2), Script(OSError())
    made = Fallback(primary, default=0, breaker=breaker)
    kinds = [type(made(n).errors["primary"]) for n in range(4)]
    assert kinds == [OSError, OSError, CircuitOpen, CircuitOpen]
    assert len(primary.calls) == 2 and primary.calls[1] == ((1,), {})


def test_breakers_by_source() -> None:
    first, second = FakeBreaker(1), FakeBreaker(1)
    made = Fallback(Script(OSError()), ("a", Script(KeyError())), default=0, breaker={"primary": first, "a": second})
    made()
    assert [type(error) for error in made().errors] == [CircuitOpen, CircuitOpen] and second.refused == 1


def test_a_source_after_the_deadline_is_not_begun() -> None:
    clock, late = ManualClock(), Script(1)

    def slow() -> None:
        clock.advance(2_000_000_000)
        raise OSError

    primary = Script(OSError())
    made = Fallback(slow, ("a", late), default=0, deadline=1.0, clock=clock, pool={"primary": _Here()})
    outcome = made()
    assert outcome.source == "default" and late.calls == [] and primary.calls == []
    assert isinstance(outcome.errors["a"], TaskTimeout) and "before source 'a' began" in str(outcome.errors["a"])


class _Here:
    """A pool that runs in the caller: what is submitted is done at once."""

    def options(self, **options: Any) -> _Here:
        assert options["timeout"] == options["deadline"] == 1.0
        return self

    def submit(self, fn: Any, *args: Any) -> Any:
        from concurrent.futures import Future

        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def test_time_left() -> None:
    table = {(0, None, None): None, (0, 5, None): 5, (3, 5, 10): 5, (7, 5, 10): 3, (10, None, 10): 0, (99, 5, 10): 0}
    for (now, timeout, ends), left in table.items():
        assert time_left(now, timeout_ns=timeout, ends_ns=ends) == left


# ---- what is told ---------------------------------------------------------------------------------------------------
def test_a_change_of_source_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    heard: list[Any] = []
    primary = Script(1, 2, OSError("down"), OSError("down"), OSError("down"), 3, OSError("down"))
    made = Fallback(
        primary, ("a", Script(KeyError(), "a")), default=0, name="news", on_change=lambda *told: heard.append(told[:3])
    )
    with caplog.at_level(logging.INFO, "shmrt.fallback"):
        sources = [made().source for _ in range(7)]
    assert sources == ["primary", "primary", "default", "a", "a", "primary", "a"]
    moves = [("primary", "default"), ("default", "a"), ("a", "primary"), ("primary", "a")]
    assert heard == [("news", *move) for move in moves]
    words = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert words == [
        ("WARNING", "news degraded: default answers instead of primary (primary: OSError: down; a: KeyError)"),
        ("WARNING", "news degraded: a answers instead of default (primary: OSError: down)"),
        ("INFO", "news recovered: primary answers instead of a"),
        ("WARNING", "news degraded: a answers instead of primary (primary: OSError: down)"),
    ]
    assert made.stats() == {
        "calls": 7,
        "failed": 0,
        "degraded": 4,
        "changes": 4,
        "source": "a",
        "answers": {"primary": 3, "a": 3, "default": 1},
        "errors": {"primary": 4, "a": 1},
    }


def test_that_nobody_answers_is_a_change_too(caplog: pytest.LogCaptureFixture) -> None:
    made = Fallback(Script(OSError(), OSError(), 1), name="news")
    with caplog.at_level(logging.INFO, "shmrt.fallback"):
        for _ in range(2):
            with pytest.raises(OSError):
                made()
        made()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert made.stats()["failed"] == 2 and made.stats()["changes"] == 2


def test_a_listener_that_fails_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    made = Fallback(Script(OSError()), default=0, on_change=Script(ZeroDivisionError()))
    assert made().value == 0
    assert "on_change" in caplog.text and "ZeroDivisionError" in caplog.text


def test_every_change_has_one_meaning() -> None:
    """Written out, for all pairs."""
    good, bad = ("primary", "fresh"), ("stale", "a", "default")
    for before in (*good, *bad, None):
        for now in (*good, *bad, None):
            if before == now or (before in good and now in good):
                meant = ""
            else:
                meant = "recovered" if now in good else "failed" if now is None else "degraded"
            assert change(before, now) == meant


# ---- forms ----------------------------------------------------------------------------------------------------------
@fallback(("cache", {1: "one"}.__getitem__), default="many")
def lookup(n: int) -> str:
    """Looks up."""
    raise OSError(n)


class Service:
    word = "hello"

    @fallback(default="nothing")
    def greet(self, name: str) -> str:
        return f"{self.word} {name[0]}{name[1:]}"


def test_as_a_decorator() -> None:
    assert lookup(1) == Outcome("one", "cache", [("primary", OSError(1))])
    assert lookup(7).value == "many" and lookup.value(7) == "many"
    assert lookup.__name__ == "lookup" and lookup.__doc__ == "Looks up." and isinstance(lookup, Fallback)
    assert pickle.loads(pickle.dumps(lookup)) is lookup


def test_as_a_method() -> None:
    assert Service().greet("Ann").value == "hello Ann" and Service().greet("").source == "default"
    assert isinstance(Service.greet, Fallback)
    assert pickle.loads(pickle.dumps(Service.greet)) is Service.greet


def test_a_fallback_within_a_fallback_gives_its_value() -> None:
    inner = Fallback(Script(OSError()), default="inner")
    outcome = Fallback(Script(KeyError()), ("backup", inner))()
    assert (outcome.value, outcome.source) == ("inner", "backup")


def test_a_copy_counts_for_itself() -> None:
    made = Fallback(partial(int, base=10), ("a", len), default=None, name="n", on=ValueError)
    made("x")
    copy = pickle.loads(pickle.dumps(made))
    assert (copy("7").value, copy("x").source, copy.name, copy.stats()["calls"]) == (7, "a", "n", 2)
    assert made.stats()["calls"] == 1
    plain = pickle.loads(pickle.dumps(Fallback(int)))
    with pytest.raises(ValueError):
        plain("x")


def test_a_sync_call_of_what_is_a_coroutine_is_a_mistake_that_no_default_hides() -> None:
    async def coroutine() -> int:
        return 1

    with pytest.raises(TypeError, match="acall"):
        Fallback(lambda: coroutine(), default=0)()


# ---- outcomes -------------------------------------------------------------------------------------------------------
def test_an_outcome_is_plain_data() -> None:
    outcome = Outcome([1], "stale", {"primary": OSError("x")}, 2.5)
    assert pickle.loads(pickle.dumps(outcome)) == outcome != Outcome([1], "stale", (), 2.5)
    assert outcome != ([1], "stale", outcome.errors) and outcome.degraded and outcome.age == 2.5
    assert repr(outcome) == "Outcome([1], 'stale', Errors(primary=OSError('x')), age=2.500)"
    match outcome:
        case Outcome(value, "stale", errors):
            assert value == [1] and errors.get("primary").args == ("x",) and errors.get("a") is None
        case _:
            pytest.fail("it does not match")
    for name in ("value", "source", "errors", "age", "other"):
        with pytest.raises(AttributeError):
            setattr(outcome, name, 1)
        with pytest.raises(AttributeError):
            delattr(outcome, name)
    assert hash(Outcome(1, "primary")) == hash(Outcome(1, "primary")) and not Outcome(1, "fresh").degraded


def test_errors_are_a_tuple_with_names() -> None:
    first, second = OSError("a"), KeyError("b")
    errors = Errors([("primary", first), ("b", second)])
    assert list(errors) == [first, second] and len(errors) == 2 and errors[1] is errors["b"] is second
    assert errors == (first, second) and errors == Errors({"primary": OSError("a"), "b": KeyError("b")})
    assert errors != Errors([("x", first), ("b", second)]) and errors != Errors() and Errors() == ()
    assert dict(errors) == {"primary": first, "b": second} and "b" in errors and first in errors and "c" not in errors
    assert errors.keys() == ("primary", "b") and errors.values() == (first, second)
    with pytest.raises(KeyError, match="'c' is no source that failed; there are primary, b"):
        errors["c"]
    with pytest.raises(AttributeError):
        errors.sources = ()
    for wrong in ([("a", 1)], [1], {1: OSError()}, [("a", OSError(), 1)]):
        with pytest.raises(TypeError, match="errors must be pairs"):
            Errors(wrong)


class Unsendable(Exception):
    def __init__(self) -> None:
        super().__init__("cannot travel")
        self.stream = sys.stdout

    def __reduce__(self) -> Any:
        raise TypeError("no")


def test_an_outcome_pickles_whatever_its_exceptions_are_made_of() -> None:
    outcome = Fallback(Script(Unsendable()), ("a", Script(OSError("x"))), default=1)()
    copy = pickle.loads(pickle.dumps(outcome))
    assert isinstance(copy.errors["primary"], RemoteError) and "cannot travel" in str(copy.errors["primary"])
    assert copy.errors["a"].args == ("x",) and copy.value == 1


# ---- mistakes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Fallback(3), TypeError, "primary must be a function, not 3; a plain value is what default= is for"),
        (lambda: Fallback(len, len), TypeError, 'a pair of a name and a function, ("cache", cached), not <built-in'),
        (lambda: Fallback(len, ("a", 3)), TypeError, "alternative 'a' must be a function, not 3"),
        (lambda: Fallback(len, ("", len)), TypeError, "must be a string with something in it, not ''"),
        (lambda: Fallback(len, ("a", len), ("a", len)), ValueError, "two alternatives are called 'a'"),
        (lambda: Fallback(len, on=3), TypeError, "on must name types of Exception, not 3"),
        (lambda: Fallback(len, on=BaseException), TypeError, "on must name types of Exception"),
        (lambda: Fallback(len, exclude=KeyboardInterrupt), TypeError, "exclude must name types of Exception"),
        (lambda: Fallback(len, timeout=0), ValueError, "timeout=0 must be more than 0 seconds"),
        (lambda: Fallback(len, timeout="1"), TypeError, "timeout must be seconds or None, not '1'"),
        (
            lambda: Fallback(len, timeout={"b": 1}),
            ValueError,
            "timeout names 'b', which is no source; there are primary",
        ),
        (lambda: Fallback(len, deadline=-1), ValueError, "deadline=-1 must be more than 0 seconds"),
        (lambda: Fallback(len, pool="p"), TypeError, "pool must be a Pool or a number of workers, not 'p'"),
        (lambda: Fallback(len, pool=0), ValueError, "pool=0 must be from 1"),
        (lambda: Fallback(len, breaker=3), TypeError, "breaker must have a function call(fn, *args)"),
        (lambda: Fallback(len, retry=0), ValueError, "retry=0 must be from 1 to 1000 attempts"),
        (lambda: Fallback(len, retry="3"), TypeError, "retry must be a number of attempts or a tenacity.Retrying"),
        (lambda: Fallback(len, cache={}), TypeError, "cache must be a StaleCache, not {}"),
        (lambda: Fallback(len, name=""), ValueError, "name='' must be a printable string"),
        (lambda: Fallback(len, on_change=3), TypeError, "on_change must be a function, not 3"),
        (lambda: Fallback(len, default=1, default_factory=list), TypeError, "exclude each other"),
        (lambda: Fallback(len, default_factory=3), TypeError, "must be a function without arguments, not 3"),
        (lambda: fallback(len), TypeError, "fallback must be called"),
        (lambda: Outcome(1, 2), TypeError, "source must be the name of a source, not 2"),
        *(
            (lambda name=name: Fallback(len, (name, len)), ValueError, f"cannot be called '{name}'")
            for name in RESERVED
        ),
    ],
)
def test_a_mistake_is_named(make: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert words in str(caught.value)


def test_a_pool_of_threads_cannot_keep_a_timeout() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as threads:
        assert Fallback(len, pool=threads)("ab").value == 2
        with pytest.raises(TypeError, match=r"workers can be killed, a shmrt\.Pool, not ThreadPoolExecutor"):
            Fallback(len, pool=threads, timeout=1)
        with pytest.raises(TypeError, match="a timeout or deadline needs a pool"):
            Fallback(len, pool=threads, deadline=1)


@pytest.mark.parametrize(
    ("module", "make"),
    [("tenacity", lambda: Fallback(len, retry=3)), ("cachetools", lambda: shmrt.StaleCache())],
)
def test_a_missing_library_is_named_with_its_remedy(module: str, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'{module}.*pip install "shmrt\[resilience\]"'):
        make()
    assert Fallback(Script(OSError()), default=0, breaker=FakeBreaker())().value == 0

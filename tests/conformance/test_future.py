"""shmrt's Future behaves as concurrent.futures.Future does, and costs what a bare one should.

Two kinds of futures are driven here: those without an origin, completed by `set_result` like a standard one, and
those of a `ManualFutureSource`, which stands where the pool's hub stands. CPython's own tests cannot be imported
on most installations, so the behaviours are written down here in our own words.
"""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import gc
import logging
import os
import random
import subprocess
import sys
import threading
import traceback
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import _base
from typing import Any

import pytest

from shmrt import _native

Future: Any = _native.future_class()
LIMIT_S = 60.0  # generous: it only ends what hangs


@pytest.fixture
def source() -> Any:
    return _native.ManualFutureSource()


@pytest.fixture
def short_switches() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


class Collected:
    """Something whose death can be seen."""


# ---- the class ----


def test_import_of_the_core_leaves_concurrent_futures_alone() -> None:
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('shmrt._native', {_native.__file__!r})\n"
        "module = importlib.util.module_from_spec(spec); spec.loader.exec_module(module)\n"
        "assert 'concurrent.futures' not in sys.modules\n"
        "module.future_class()\n"
        "assert 'concurrent.futures' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True, timeout=LIMIT_S)


def test_one_class_that_is_a_standard_future() -> None:
    assert _native.future_class() is Future
    assert issubclass(Future, cf.Future)
    assert isinstance(Future(), cf.Future)
    generic: Any = Future
    assert generic[int].__origin__ is Future
    with pytest.raises(TypeError, match="no arguments"):
        Future(1)


def test_exit_with_futures_alive_is_silent() -> None:
    code = (
        "from shmrt import _native\n"
        "s = _native.ManualFutureSource()\n"
        "f = [s.new() for _ in range(100)]\n"
        "f[0].add_done_callback(print); f[1].me = f[1]; f[2]._condition\n"
        "s.complete(3, 'value', [1]); s.post(4, 'value', 2)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=LIMIT_S, capture_output=True, text=True)
    assert done.stdout == done.stderr == ""


# ---- what the standard library promises ----


def test_states_in_order() -> None:
    future = Future()
    assert (future.done(), future.running(), future.cancelled()) == (False, False, False)
    assert future._state == _base.PENDING
    assert future.set_running_or_notify_cancel() is True
    assert (future.done(), future.running(), future.cancelled()) == (False, True, False)
    assert future.cancel() is False
    future.set_result(5)
    assert (future.done(), future.running(), future.cancelled()) == (True, False, False)
    assert future.cancel() is False
    assert (future.result(), future.exception(), future.result(timeout=0)) == (5, None, 5)


def test_cancel_then_notify() -> None:
    future = Future()
    seen: list[object] = []
    future.add_done_callback(seen.append)
    assert future.cancel() is True and future.cancel() is True
    assert future._state == _base.CANCELLED and seen == [future]
    assert future.set_running_or_notify_cancel() is False
    assert future._state == _base.CANCELLED_AND_NOTIFIED
    for ask in (future.result, future.exception):
        with pytest.raises(cf.CancelledError):
            ask()


@pytest.mark.parametrize("finish", ["set_result", "set_exception", "cancel"])
def test_completing_twice_is_refused(finish: str) -> None:
    future = Future()
    getattr(future, finish)(*([] if finish == "cancel" else [ValueError("x")]))
    with pytest.raises(cf.InvalidStateError, match="Future at 0x"):
        future.set_result(1)
    with pytest.raises(cf.InvalidStateError):
        future.set_exception(ValueError())


def test_running_twice_is_refused_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    future = Future()
    future.set_running_or_notify_cancel()
    with caplog.at_level(logging.CRITICAL, "concurrent.futures"), pytest.raises(RuntimeError, match="unexpected state"):
        future.set_running_or_notify_cancel()
    assert "in unexpected state: RUNNING" in caplog.text


def test_a_stored_exception_is_raised_itself() -> None:
    failure = OSError("gone")
    future = Future()
    future.set_exception(failure)
    assert future.exception() is failure
    depths = []
    for _ in range(3):
        with pytest.raises(OSError) as caught:
            future.result()
        assert caught.value is failure
        depths.append(len(traceback.extract_tb(failure.__traceback__)))
    assert depths[0] >= 1 and "test_future.py" in traceback.extract_tb(failure.__traceback__)[-1].filename
    assert "raised OSError" in repr(future)


def test_keywords_and_wrong_arguments() -> None:
    future = Future()
    future.set_result(result=3)
    assert future.result(timeout=None) == 3
    other = Future()
    other.add_done_callback(fn=lambda _: None)
    other.set_exception(exception=KeyError(1))
    for call in (
        lambda: future.result(1, 2),
        lambda: future.result(limit=1),
        future.set_result,
        lambda: future.add_done_callback(call=print),
        lambda: Future().result("soon"),
    ):
        with pytest.raises(TypeError):
            call()
    with pytest.raises(ValueError, match="nan"):
        Future().result(float("nan"))


@pytest.mark.parametrize("timeout", [0, -1, 0.001])
def test_timeout(timeout: float, source: Any) -> None:
    for future in (Future(), source.new()):
        for ask in (future.result, future.exception):
            with pytest.raises(cf.TimeoutError):
                ask(timeout)


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("how", ["value", "exception", "cancel"])
def test_a_waiting_thread_gets_every_outcome(how: str, watched: bool) -> None:
    future = Future()
    if watched:
        future._condition  # noqa: B018
    got: list[object] = []

    def wait() -> None:
        try:
            got.append(future.result(LIMIT_S))
        except BaseException as failure:
            got.append(type(failure))

    threads = [in_thread(wait) for _ in range(3)]
    {
        "value": lambda: future.set_result(1),
        "exception": lambda: future.set_exception(KeyError()),
        "cancel": future.cancel,
    }[how]()
    join(*threads)
    assert got == [{"value": 1, "exception": KeyError, "cancel": cf.CancelledError}[how]] * 3


def test_callbacks_run_in_order_and_failures_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    future = Future()
    order: list[int] = []
    future.add_done_callback(lambda _: order.append(1))

    def fail(_: object) -> None:
        raise ZeroDivisionError("in a callback")

    future.add_done_callback(fail)
    future.add_done_callback(lambda _: order.append(2))
    with caplog.at_level(logging.ERROR, "concurrent.futures"):
        future.set_result(0)
        future.add_done_callback(fail)
    assert order == [1, 2]
    assert caplog.text.count("exception calling callback for <Future at") == 2
    assert caplog.text.count("ZeroDivisionError: in a callback") == 2


def test_a_callback_sees_a_done_future_and_may_ask_it() -> None:
    future = Future()
    seen: list[object] = []
    future._condition  # noqa: B018

    def look(done: Any) -> None:
        # Another thread can take the condition: callbacks run outside of it.
        join(in_thread(lambda: seen.append(done.done())))
        seen.append(done.result(0))

    future.add_done_callback(look)
    future.set_result(7)
    assert seen == [True, 7]


def test_the_six_attributes_keep_their_identity_and_can_be_written() -> None:
    future = Future()
    for name in ("_condition", "_waiters", "_done_callbacks"):
        assert getattr(future, name) is getattr(future, name)
    waiters: list[object] = []
    future._waiters = waiters
    assert future._waiters is waiters
    future._exception, future._result, future._state = OSError("x"), None, _base.FINISHED
    assert isinstance(future.exception(), OSError)
    future._exception, future._result = None, 42
    assert future.result() == 42
    cf.Future.__init__(future)
    assert not future.done() and future._waiters == []
    cf.Future.set_result(future, 1)
    assert future.result() == 1
    with pytest.raises(ValueError, match="no state"):
        future._state = "LOST"


def test_repr() -> None:
    future = Future()
    assert "state=pending" in repr(future)
    future.set_running_or_notify_cancel()
    assert "state=running" in repr(future)
    future.set_result({})
    assert "state=finished returned dict" in repr(future)
    assert not gc.is_tracked(Future())


# ---- wait, as_completed, asyncio ----


def test_wait_finds_what_was_complete_before(source: Any) -> None:
    futures = [source.new() for _ in range(20)]
    for token in range(20):
        source.post(token, "value", token)
    done, pending = cf.wait(futures, timeout=LIMIT_S)
    assert len(done) == 20 and not pending
    assert source.calls == []  # found by asking: nobody needed the dispatcher


@pytest.mark.parametrize("when", [cf.ALL_COMPLETED, cf.FIRST_COMPLETED, cf.FIRST_EXCEPTION])
def test_wait_is_ended_by_the_dispatcher(source: Any, when: str) -> None:
    futures = [source.new() for _ in range(10)]
    started = threading.Event()

    def dispatch() -> None:
        started.wait(LIMIT_S)
        while sum(name == "watch" for name, _ in source.calls) < 10:
            os.sched_yield()
        for token in range(10):
            source.post(token, "exception" if token == 5 else "value", KeyError(token))
        source.dispatch()

    thread = in_thread(dispatch)
    started.set()
    done, _ = cf.wait(futures, timeout=LIMIT_S, return_when=when)
    join(thread)
    assert len(done) >= {cf.ALL_COMPLETED: 10, cf.FIRST_COMPLETED: 1, cf.FIRST_EXCEPTION: 1}[when]
    assert all(f.done() for f in futures)
    assert sorted(token for name, token in source.calls if name == "watch") == list(range(10))  # once each


def test_as_completed_yields_all_kinds(source: Any) -> None:
    futures = [source.new() for _ in range(30)]

    def dispatch() -> None:
        for token in range(30):
            source.complete(token, ("value", "exception", "cancelled")[token % 3], ValueError(token))

    thread = in_thread(dispatch)
    assert set(cf.as_completed(futures, timeout=LIMIT_S)) == set(futures)
    join(thread)
    assert [f.cancelled() for f in futures] == [t % 3 == 2 for t in range(30)]


def test_cancel_ends_wait_without_an_executor(source: Any) -> None:
    future = source.new()
    thread = in_thread(future.cancel)  # before, while or after wait looks: each must end it
    done, _ = cf.wait([future], timeout=LIMIT_S)
    join(thread)
    assert done == {future} and future._state == _base.CANCELLED_AND_NOTIFIED


def test_await_value_exception_and_cancel(source: Any) -> None:
    async def main() -> None:
        first, second, third, fourth = (source.new() for _ in range(4))

        async def get(future: Any) -> Any:
            return await future

        task = asyncio.ensure_future(get(first))
        await asyncio.sleep(0)
        in_thread(lambda: source.complete(0, "value", "v"))
        assert await asyncio.wait_for(task, LIMIT_S) == "v"
        source.complete(1, "exception", LookupError("no"))
        with pytest.raises(LookupError, match="no"):
            await second
        task = asyncio.ensure_future(get(third))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert third.cancelled() and ("cancel", 2) in source.calls
        wrapped = asyncio.wrap_future(fourth)
        source.complete(3, "cancelled")
        with pytest.raises(asyncio.CancelledError):
            await wrapped

    asyncio.run(main())


def test_await_outside_of_a_loop_is_refused() -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        Future().__await__()


def test_executors_work_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_base, "Future", Future)
    with cf.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(pow, i, 2) for i in range(200)]
        assert type(futures[0]) is Future
        assert [f.result(LIMIT_S) for f in futures] == [i * i for i in range(200)]
        assert list(pool.map(str, range(50))) == [str(i) for i in range(50)]
        assert len(cf.wait([pool.submit(int) for _ in range(50)], LIMIT_S).done) == 50


# ---- origin ----


def test_a_bare_future_is_completed_without_being_watched(source: Any) -> None:
    future = source.new()
    source.post(0, "value", "x", worker="w-1", attempts=3)
    assert source.calls == []
    assert future.result(LIMIT_S) == "x"
    assert (future.worker, future.attempts, source.calls, source.payloads) == ("w-1", 3, [], 0)


@pytest.mark.parametrize("ask", ["done", "cancelled", "running", "_state", "__repr__", "worker", "attempts"])
def test_looking_delivers_what_arrived(ask: str, source: Any) -> None:
    future = source.new()
    source.post(0, "value", 1)
    attribute = getattr(future, ask)
    if callable(attribute):
        attribute()
    assert source.polls >= 1
    assert _native.future_class() is type(future) and future.done() and source.calls in ([], [("running", 0)])


def test_asking_for_parts_watches_once(source: Any) -> None:
    for name in ("_condition", "_waiters", "_done_callbacks"):
        future = source.new()
        token = len(source.calls)
        for _ in range(3):
            getattr(future, name)
            future.add_done_callback(lambda _: None)
        assert source.calls[token:] == [("watch", token)]
    done = source.new()
    source.complete(3, "value", 1)
    done._condition  # noqa: B018
    assert len(source.calls) == 3


def test_only_the_dispatcher_completes_a_watched_future(source: Any) -> None:
    future = source.new()
    threads: list[object] = []
    future.add_done_callback(lambda _: threads.append(threading.current_thread()))
    source.post(0, "value", 1)
    assert not future.done()
    with pytest.raises(cf.TimeoutError):
        future.result(0)
    dispatcher = in_thread(source.dispatch)
    join(dispatcher)
    assert threads == [dispatcher] and future.result(0) == 1


def test_result_inside_of_the_condition_lets_the_dispatcher_in(source: Any) -> None:
    future = source.new()
    thread = threading.Thread(target=lambda: source.complete(0, "value", 4), daemon=True)
    with future._condition:
        thread.start()
        assert future.result(LIMIT_S) == 4
    join(thread)


def test_cancel_asks_the_origin(source: Any) -> None:
    first, second = source.new(), source.new()
    seen: list[object] = []
    first.add_done_callback(seen.append)
    assert first.cancel() is True and first.cancelled() and seen == [first]
    assert source.complete(0, "value", Collected()) is True  # a late result is dropped without a word
    assert source.payloads == 0 and first.cancelled() and seen == [first]
    source.accepts_cancel = False
    assert second.cancel() is False and not second.done()
    source.complete(1, "value", 2)
    assert second.cancel() is False and second.result() == 2
    assert [call for call in source.calls if call[0] == "cancel"] == [("cancel", 0), ("cancel", 1)]


def test_running_asks_the_origin(source: Any) -> None:
    future = source.new()
    assert not future.running()
    source.is_running = True
    assert future.running()
    source.complete(0, "value")
    assert not future.running()


def test_kill(source: Any) -> None:
    future = source.new()
    assert future.kill() is True and ("kill", 0) in source.calls
    source.complete(0, "cancelled")
    assert future.kill() is False
    with pytest.raises(cf.CancelledError):
        future.result()
    by_hand = Future()
    assert by_hand.kill() is True and by_hand.cancelled() and by_hand.kill() is False


def test_completion_with_objects(source: Any) -> None:
    value, failure = source.new(), source.new()
    source.complete(0, "object", {"a": 1})
    source.complete(1, "object", KeyError("k"))
    assert value.result() == {"a": 1} and source.decodes == 0
    with pytest.raises(KeyError):
        failure.result()


# ---- decoding ----


def test_decoded_once_and_by_the_thread_that_asks(source: Any) -> None:
    threads: list[int] = []

    def decode(payload: object) -> object:
        threads.append(threading.get_ident())
        return [payload]

    source.decoder = decode
    future = source.new()
    join(in_thread(lambda: source.complete(0, "value", 1)))
    assert threads == [] and source.payloads == 1
    assert future.result() is future.result() and future._result is future.result()
    assert threads == [threading.get_ident()] and source.payloads == 0


def test_a_failing_decode_is_the_futures_exception(source: Any) -> None:
    def refuse(_: object) -> None:
        raise ArithmeticError("bad bytes")

    source.decoder = refuse
    future = source.new()
    source.complete(0, "value", 1)
    assert isinstance(future.exception(), ArithmeticError) and future.exception() is future.exception()
    with pytest.raises(ArithmeticError, match="bad bytes"):
        future.result()
    assert source.decodes == 1 and source.payloads == 0


def test_an_interrupted_decode_is_raised_where_it_happened(source: Any) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    source.decoder = interrupt
    future = source.new()
    source.complete(0, "value", 1)
    with pytest.raises(KeyboardInterrupt):
        future.exception()
    assert source.payloads == 0


def test_threads_that_race_for_a_decode_share_one(source: Any, short_switches: None) -> None:
    source.decoder = lambda payload: [sum(range(200)), payload]
    for round in range(150):
        future = source.new()
        source.complete(round, "value", round)
        barrier = threading.Barrier(4)
        got: list[object] = []
        threads = [in_thread(lambda b=barrier, f=future, g=got: (b.wait(), g.append(f.result()))) for _ in range(4)]  # type: ignore[misc]
        join(*threads)
        assert len(got) == 4 and all(item is got[0] for item in got)
    assert source.decodes == 150 and source.payloads == 0


def test_a_decode_that_blocks_lets_others_wait_and_itself_fail(source: Any) -> None:
    entered, leave = threading.Event(), threading.Event()
    own: list[object] = []

    def decode(payload: object) -> object:
        entered.set()
        leave.wait(LIMIT_S)
        try:
            future.result()
        except RuntimeError as failure:
            own.append(str(failure))
        return payload

    source.decoder = decode
    future = source.new()
    source.complete(0, "value", "late")
    got: list[object] = []
    first = in_thread(lambda: got.append(future.result()))
    assert entered.wait(LIMIT_S)
    second = in_thread(lambda: got.append(future.result()))
    leave.set()
    join(first, second)
    assert got == ["late", "late"] and source.decodes == 1
    assert len(own) == 1 and "decodes this very result" in str(own[0])


# ---- races ----


def test_a_callback_added_while_completing_runs_once(source: Any, short_switches: None) -> None:
    for token in range(1500):
        future = source.new()
        seen: list[object] = []
        thread = in_thread(lambda t=token: source.complete(t, "value", t))  # type: ignore[misc]
        future.add_done_callback(seen.append)
        join(thread)
        assert seen == [future] and future.result() == token


def test_cancel_against_completion_has_one_winner(source: Any, short_switches: None) -> None:
    for token in range(1000):
        future = source.new()
        seen: list[object] = []
        future.add_done_callback(seen.append)
        future._condition  # noqa: B018
        thread = in_thread(lambda t=token: source.complete(t, "value", t))  # type: ignore[misc]
        cancelled = future.cancel()
        join(thread)
        assert future.done() and future.cancelled() == cancelled and seen == [future]
        if not cancelled:
            future.result()
    assert source.payloads == 0


def test_cancel_against_running_has_one_winner(short_switches: None) -> None:
    for _ in range(1000):
        future = Future()
        started: list[bool] = []
        future._condition  # noqa: B018
        thread = in_thread(lambda f=future, s=started: s.append(f.set_running_or_notify_cancel()))  # type: ignore[misc]
        cancelled = future.cancel()
        join(thread)
        assert started == [not cancelled]


def test_waiters_of_all_kinds_against_random_completion(source: Any, short_switches: None) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    dice = random.Random(seed)
    base = 0
    for _ in range(60):
        futures = [source.new() for _ in range(12)]
        tokens = list(range(base, base + 12))
        base += 12
        dice.shuffle(tokens)
        kinds = [dice.choice(["value", "exception", "cancelled", "object"]) for _ in tokens]

        def finish(tokens: list[int] = tokens, kinds: list[str] = kinds) -> None:
            for token, kind in zip(tokens, kinds, strict=True):
                source.complete(token, kind, ValueError(token))

        thread = in_thread(finish)
        way = dice.randrange(3)
        if way == 0:
            assert len(cf.wait(futures, LIMIT_S).done) == 12
        elif way == 1:
            assert len(list(cf.as_completed(futures, LIMIT_S))) == 12
        else:
            for future in futures:
                try:
                    future.result(LIMIT_S)
                except (ValueError, cf.CancelledError):
                    pass
        join(thread)
        assert all(f.done() for f in futures)


# ---- subclasses ----


def test_subclasses() -> None:
    class Traced(Future):  # type: ignore[misc]
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def set_result(self, result: object) -> None:
            super().set_result([self.name, result])

    future = Traced("t")
    future.set_result(1)
    assert future.result() == ["t", 1] and "Traced at" in repr(future)

    class Slotted(Future):  # type: ignore[misc]
        __slots__ = ("extra",)

    slotted = Slotted()
    slotted.extra = slotted
    dead = weakref.ref(slotted)
    del slotted
    gc.collect()
    assert dead() is None


# ---- memory ----


def test_a_bare_future_is_off_the_collectors_list_until_it_could_close_a_cycle(source: Any) -> None:
    assert not gc.is_tracked(Future()) and not gc.is_tracked(source.new())
    plain = Future()
    plain.set_result("text")
    assert not gc.is_tracked(plain)
    changes: list[Callable[[Any], object]] = [
        lambda f: f._condition,
        lambda f: f._waiters,
        lambda f: f.add_done_callback(print),
        lambda f: setattr(f, "mine", 1),
        lambda f: setattr(f, "_mine", 1),
        lambda f: f.__dict__,
        lambda f: f.set_result([]),
        lambda f: f.set_result({}),
        lambda f: setattr(f, "_result", []),
    ]
    for change in changes:
        future = Future()
        change(future)
        assert gc.is_tracked(future)


@pytest.mark.parametrize("way", ["attribute", "dict", "result", "late", "callback", "waiter", "payload", "exception"])
def test_cycles_are_collected(way: str, source: Any) -> None:
    future = source.new()
    marker = Collected()
    dead = weakref.ref(marker)
    if way == "attribute":
        future.me = future, marker
    elif way == "dict":
        future.__dict__["me"] = future, marker
    elif way == "result":
        future.set_result([future, marker])
    elif way == "late":
        box: dict[str, object] = {}  # not on the list yet when it becomes the result
        future.set_result(box)
        box["me"] = future, marker
        del box
    elif way == "callback":
        future.add_done_callback(lambda _, keep=(future, marker): None)
    elif way == "waiter":
        future._waiters.append((future, marker))
    elif way == "payload":
        source.decoder = lambda payload, keep=(future, marker): [payload, keep]
        source.complete(0, "value", 1)
        future.result()
        source.decoder = None
    else:
        failure = ValueError(future, marker)
        future.set_exception(failure)
        del failure
    if way != "payload":
        source.forget(0)
    alive = weakref.ref(future)
    del future, marker
    gc.collect()
    assert dead() is None and alive() is None


def test_dropping_a_future_drops_its_payload(source: Any) -> None:
    payload = Collected()
    dead = weakref.ref(payload)
    future = source.new()
    source.complete(0, "value", payload)
    del payload
    assert dead() is not None and source.payloads == 1
    del future
    assert dead() is None and source.payloads == 0


def test_nothing_stays_behind(source: Any) -> None:
    def once() -> None:
        future = source.new()
        future.add_done_callback(lambda _: None)
        token = once.token  # type: ignore[attr-defined]
        once.token += 1  # type: ignore[attr-defined]
        with pytest.raises(cf.TimeoutError):
            future.result(0)
        source.complete(token, "value", [token], worker="w" * 40)
        future.result()
        plain = Future()
        with plain._condition:
            plain._waiters.append(_base._FirstCompletedWaiter())
        plain.set_exception(ValueError())
        with pytest.raises(ValueError):
            plain.result()
        Future().cancel()
        repr(plain)
        source.calls.clear()

    once.token = 0  # type: ignore[attr-defined]
    rounds = 4000
    for _ in range(200):
        once()
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(rounds):
            once()
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(gc.get_objects()) - objects < 100
    assert grown < rounds * 16  # the interpreter's free lists fill up once; a leak would be an object each time


def test_a_pending_future_is_small(source: Any) -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        futures = [Future() for _ in range(5000)]
        each = (tracemalloc.get_traced_memory()[0] - before) / len(futures)
    finally:
        tracemalloc.stop()
    assert each < 256

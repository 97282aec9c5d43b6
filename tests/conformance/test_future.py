"""shmrt's Future behaves as concurrent.futures.Future does: its class, states, callbacks, attributes and errors.

Two kinds of futures are driven in these files: those without an origin, completed by `set_result` like a standard one,
and those of a `ManualFutureSource`, which stands where the pool's hub stands. CPython's own tests cannot be imported
on most installations, so the behaviours are written down here in our own words. Waiting for many and asyncio are in
test_future_waits.py, origins and decoding in test_future_origin.py, memory in test_future_memory.py.
"""

from __future__ import annotations

import concurrent.futures as cf
import gc
import logging
import subprocess
import sys
import traceback
import weakref
from concurrent.futures import _base
from typing import Any

import pytest
from future_kit import LIMIT_S, Future, in_thread, join

from shmrt import _native


@pytest.fixture
def source() -> Any:
    return _native.ManualFutureSource()


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

"""Calls that nobody waits for: futures, completed by one daemon thread per process.

The thread, `shmrt-requests`, sleeps until a watched call has ended (an answer, a death, a deadline) and has no timer.
It may see the end of a call before `begin` has told it of the future; such ends are kept until it has.

If the server dies, the root ends its calls and the futures get ServerDown. If this process forks, the copy has no
thread and its futures stay pending.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import Future, InvalidStateError
from time import sleep

from shmrt.errors import RuntimeDown

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Outcome = Callable[[int, Any], Any]  # of (status, value): the result, or it raises

__all__ = ["RequestFuture", "Requests"]


class RequestFuture(Future):  # type: ignore[type-arg]
    """A call under way. `cancel()` works until it has ended: the answer is dropped, the server is not told."""

    _requests: Requests | None = None
    _reference = 0

    def cancel(self) -> bool:
        requests = self._requests
        if requests is not None:
            return requests.cancel(self)
        return super().cancel()

    def _give_up(self) -> bool:
        return super().cancel()


class Requests:
    """Every watched call of one process and runtime."""

    def __init__(self, calls: Any) -> None:
        self._calls = calls
        self._lock = threading.Lock()
        self._open: dict[int, tuple[RequestFuture, Outcome]] = {}
        self._early: dict[int, tuple[int, Any]] = {}
        self._closed: str | None = None
        self._thread = threading.Thread(target=self._run, name="shmrt-requests", daemon=True)
        self._thread.start()

    def begin(
        self,
        box: Any,
        target: int,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        timeout: float | None,
        outcome: Outcome,
    ) -> RequestFuture:
        """Puts the call into the mailbox; `outcome` makes a result of its end. Raises Overloaded, and RingClosed if
        that mailbox is."""
        future = RequestFuture()
        reference = self._calls.begin(box, target, name, args, kwargs, timeout)
        with self._lock:
            end = self._early.pop(reference, None)
            if end is None and self._closed is None:
                future._reference, future._requests = reference, self
                self._open[reference] = (future, outcome)
                return future
        if end is None:
            future.set_exception(RuntimeDown(f"the runtime is gone: {self._closed}", reason=self._closed))
        else:
            _finish(future, outcome, *end)
        return future

    def cancel(self, future: RequestFuture) -> bool:
        with self._lock:
            reference = future._reference
            if reference not in self._open:
                return future._give_up()  # it has ended, or is about to: the future knows
            if not self._calls.cancel(reference):
                return False  # its end is on its way
            del self._open[reference]
        return future._give_up()

    def close(self, reason: str) -> None:
        with self._lock:
            self._closed = reason
            left, self._open = list(self._open.values()), {}
        self._calls.wake()
        if self._thread is not threading.current_thread():
            self._thread.join()
        for future, _ in left:
            error = RuntimeDown(f"the runtime is gone: {reason}", reason=reason)
            _finish(future, _raiser(error), 0, None)

    def _run(self) -> None:
        while self._closed is None:
            try:
                ended = self._calls.collect(None)
            except MemoryError:
                sleep(0.01)  # whoever frees some has to come to it
                continue
            except BaseException:  # an answer raised SystemExit as it was decoded: the next collect has it, as an error
                continue
            for reference, status, value in ended:
                with self._lock:
                    entry = self._open.pop(reference, None)
                    if entry is None:
                        self._early[reference] = (status, value)
                        continue
                try:
                    _finish(*entry, status, value)
                except BaseException:  # of a callback: the others go on
                    sys.excepthook(*sys.exc_info())


def _raiser(error: BaseException) -> Outcome:
    def raise_it(status: int, value: Any) -> Any:
        raise error

    return raise_it


def _finish(future: RequestFuture, outcome: Outcome, status: int, value: Any) -> None:
    try:
        try:
            result = outcome(status, value)
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)
    except InvalidStateError:
        pass  # cancelled meanwhile

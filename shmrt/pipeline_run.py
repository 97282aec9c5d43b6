"""One run of a pipeline, as its consumer holds it: an iterator of outputs inside a `with` block.

The threads and pools behind it are `shmrt.pipeline_motor`; they hold no reference to the run, so a run that is dropped
without being closed ends too.

    with pipe.run(range(10)) as run:
        for item in run:
            ...
    run.report, run.dead_letters
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any

from shmrt.decide.delivery_words import OnError, Taken
from shmrt.errors import RuntimeDown
from shmrt.pipeline_motor import Motor
from shmrt.pipeline_report import DeadLetter, Report
from shmrt.waits import next_of

if TYPE_CHECKING:
    from shmrt.pipeline import Pipeline

__all__ = ["Run"]

_LEFT = object()  # in the outbox: the run was closed
ACK_MOST = 64  # taken items are told in handfuls, or when there is nothing else to do


class Run:
    """The outputs of one run. It starts when the block is entered, or with the first item."""

    def __init__(
        self, pipe: Pipeline, source: Any, *, ordered: bool, on_error: OnError, progress: bool, engine: Any
    ) -> None:
        self._name = pipe.name
        self._motor = Motor(pipe, source, ordered=ordered, on_error=on_error, progress=progress, engine=engine)
        self._buffer: deque[Any] = deque()
        self._unacked = 0
        self._started = self._closed = self._completed = False
        self._owner_pid = os.getpid()
        self._lock = threading.Lock()  # several threads may consume one run; each output goes to one of them
        self._dropped: weakref.finalize[Any, Run] | None = None

    def __enter__(self) -> Run:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Run:
        return self

    def __next__(self) -> Any:
        while True:
            self._check()
            with self._lock:
                if self._buffer:
                    self._unacked += 1
                    if self._unacked >= ACK_MOST:
                        self._acknowledge()
                    return self._buffer.popleft()
                if self._closed:
                    raise StopIteration
                self._start()
                self._acknowledge()
            message = next_of(self._motor.outbox)  # Ctrl-C reaches a consumer that waits
            if isinstance(message, list):
                with self._lock:
                    self._buffer.extend(message)
                continue
            self._motor.outbox.put(None)  # for the next thread that waits
            if message is _LEFT:
                continue
            self._completed = message is None
            self._end(drop=False)  # what another consumer has taken out of the outbox is still to be given
            if message is not None:
                raise message

    @property
    def report(self) -> Report:
        """The accounts as they are now; final once the run is over."""
        return self._motor.report()

    @property
    def dead_letters(self) -> list[DeadLetter]:
        """The failed items of a run with `on_error="dead_letter"`, as they came."""
        return self._motor.dead_letters

    def close(self) -> None:
        """Ends the run; early, if it is not over: what is queued is cancelled and the workers end."""
        if self._owner_pid == os.getpid():  # a forked child owns nothing of it
            self._end(drop=True)

    def _end(self, *, drop: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if drop:
                self._buffer.clear()
        self._motor.outbox.put(_LEFT)  # whoever still waits in another thread
        if self._dropped is not None:
            self._dropped.detach()
            self._motor.close(early=not self._completed)

    def _check(self) -> None:
        if self._owner_pid != os.getpid():
            raise RuntimeDown(
                f"this run of pipeline {self._name!r} belongs to process {self._owner_pid}; process {os.getpid()} is a "
                "fork of it and must start its own",
                reason="forked",
            )

    def _start(self) -> None:
        if self._closed:
            raise RuntimeError(f"this run of pipeline {self._name!r} is over; call run() again")
        if self._started:
            return
        self._started = True
        try:
            self._motor.start()
        except BaseException:
            self._closed = True
            raise
        self._dropped = weakref.finalize(self, self._motor.abandon)

    def _acknowledge(self) -> None:
        if self._unacked:
            self._motor.inbox.put(Taken(self._unacked))
            self._unacked = 0

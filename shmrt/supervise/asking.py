"""Asking the root, from any process of a runtime: numbers, waiting for answers, and what a refusal is.

The thread that reads the link's socket gives each answer to whoever waits for it. If the root dies meanwhile, whoever
waits gets RuntimeDown: nobody can say whether what was asked for had been done, and the next root starts the trees
afresh.
"""

from __future__ import annotations

import itertools
from queue import Empty, SimpleQueue

from shmrt.waits import next_of

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["AskError", "Asking"]


class AskError(Exception):
    """The root refused: `code` says why, `more` what about."""

    def __init__(self, code: str, more: Any = None) -> None:
        super().__init__(f"{code}: {more!r}")
        self.code = code
        self.more = more


class Asking:
    """Mixed into a link. Thread-safe."""

    if TYPE_CHECKING:  # each link has its own

        def _send(self, *message: object) -> None: ...

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._waiting: dict[int, SimpleQueue[tuple[Any, ...]]] = {}
        self._monitors: dict[int, Callable[[int, Any], None]] = {}
        self._early: dict[int, tuple[int, Any]] = {}  # fell between the answer and `watch`

    def ask(self, verb: str, *arguments: Any, timeout: float | None = None) -> Any:
        """The root's answer. Raises AskError if it refuses, TimeoutError after `timeout` seconds, RuntimeDown if it is
        gone."""
        number = next(self._numbers)
        answers: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self._waiting[number] = answers
        try:
            self._send("ask", number, verb, *arguments)
            try:
                ok, value = next_of(answers, timeout)  # Ctrl-C reaches who asks for an end that does not come
            except Empty:
                raise TimeoutError(f"the root supervisor did not answer {verb} in {timeout} s") from None
        finally:
            self._waiting.pop(number, None)
        if ok is None:
            from shmrt.errors import RuntimeDown

            raise RuntimeDown(f"the root supervisor ended while it was asked to {verb}: {value}", reason=value)
        if not ok:
            raise AskError(*value) if isinstance(value, tuple) else AskError(str(value))
        return value

    def answered(self, message: tuple[Any, ...]) -> None:
        """("answer", number, ok, value), by the thread that reads."""
        _, number, ok, value = message
        answers = self._waiting.get(number)
        if answers is not None:
            answers.put((ok, value))

    def root_gone(self, reason: str) -> None:
        """Nobody will answer what was asked so far, and every monitored process died with the root."""
        for answers in list(self._waiting.values()):
            answers.put((None, reason))
        for number in list(self._monitors):
            self.fell(("down", number, 0, "noconnection"))

    # ---- monitors ---------------------------------------------------------------------------------------------------
    def watch(self, number: int, call: Callable[[int, Any], None]) -> None:
        """`call(key, reason)` once, in the thread that reads, or here if it fell already."""
        self._monitors[number] = call
        early = self._early.pop(number, None)
        if early is not None and self._monitors.pop(number, None) is not None:
            call(*early)

    def unwatch(self, number: int) -> None:
        self._monitors.pop(number, None)
        self._early.pop(number, None)

    def fell(self, message: tuple[Any, ...]) -> None:
        """("down", number, key, reason), by the thread that reads."""
        _, number, key, reason = message
        call = self._monitors.pop(number, None)
        if call is None:
            self._early[number] = (key, reason)
        else:
            call(key, reason)

"""The book of a pipeline run: the accounts of its stages, the effects of a step, and what a failure leads to.

Every stage has a `Row`, every item one outcome in it. A failure is counted, then goes by the run's policy:

    on_error        a failure
    "raise"         becomes a Stop that travels behind the outputs before it; the source gives no more
    "dead_letter"   becomes a Letter; the run goes on
    "skip"          is only counted

A step's effects go out in this order: what is to be started and listed, the outputs, then the end of the run. A Stop
comes last and nothing is started beside it, since what comes back then has nobody who waits for it.

    >>> book = Book(rows=1, on_error="dead_letter")
    >>> book.blame(0, "item", KeyError("k"), 3)
    >>> book.rows[0].failed, book.settle([], None)
    (1, [Letter(item='item', error=KeyError('k'), attempts=3, row=0)])
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from shmrt.decide.delivery_nodes import Batch, Work
from shmrt.decide.delivery_words import Deliver, Effect, Finished, Letter, OnError, Row, Stop, Submit

__all__ = ["Book"]


class Book:
    """Accounts and effects of one run. `over`: nothing happens any more; `failing`: nothing new is accepted."""

    __slots__ = ("_then_ns", "effects", "failing", "on_error", "over", "rows")

    def __init__(self, rows: int, on_error: OnError) -> None:
        self.rows = [Row() for _ in range(rows)]
        self.on_error = on_error
        self.effects: list[Effect] = []
        self.failing = False
        self.over = False
        self._then_ns: int | None = None

    # -- accounts

    def balanced(self, taken: int, out: int) -> bool:
        """Nothing is inside, and what each stage took is what the stage before it gave."""
        given = taken
        for row in self.rows:
            if row.pending or row.taken != given:
                return False
            given = row.out
        return given == out

    def pass_time(self, nodes: Iterable[Work | Batch], now_ns: int) -> None:
        """Charges the time since the last step to what held each node up then: its successor, or the source."""
        passed = 0 if self._then_ns is None else max(0, now_ns - self._then_ns)
        self._then_ns = now_ns
        if passed:
            for node in nodes:
                if node.stalled:
                    node.row.blocked_ns += passed
                elif node.starving:
                    node.row.starved_ns += passed

    # -- failures

    def blame(self, row: int, item: Any, error: BaseException, attempts: int) -> Stop | None:
        """Counts a failed item and lists it; a Stop is for the caller, who knows which outputs come before it."""
        self.rows[row].failed += 1
        if self.on_error == "raise":
            self.failing = True  # no more from the source; what came before the failure still goes out
            return Stop(error, item, attempts, row)
        if self.on_error == "dead_letter":
            self.effects.append(Letter(item, error, attempts, row))
        return None

    def stop(self, stop: Stop) -> None:
        """Ends the run with an error, unless it has ended."""
        if not self.over:
            self.over = True
            self.effects.append(stop)

    # -- the end of a step

    def settle(self, outputs: list[Any], end: Finished | None) -> list[Effect]:
        """Everything that the step asked for, in the order in which it is to be done."""
        effects, self.effects = self.effects, []
        # A Stop ends the run wherever in this step it was decided: it comes last, and nothing is started beside it.
        stops = [effect for effect in effects if isinstance(effect, Stop)][:1]
        if stops:
            effects = [effect for effect in effects if not isinstance(effect, (Stop, Submit))]
        if outputs:
            effects.append(Deliver(outputs))
        effects += stops
        if end is not None and not self.over:
            self.over = True
            effects.append(end)
        return effects

"""Commands of control clients: one after the other, each with a number, and each says what it waits for.

A command is *begun* when all before it have given their orders, so the last one that was asked for is what holds in the
end. Whoever carries it out may say `reply.waits("...")`: the orders are given, the next command may begin, and only
the end is still to come. `reply(ok, value)` is that end. A client that did not ask to wait is answered at whichever
of the two comes first.

    queued ── begun by `next` ──> running ── waits ──> waiting ── reply ──> gone
"""

from __future__ import annotations

from time import monotonic_ns

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Operation", "Operations"]


class Operation:
    """One command; callable as the `reply` of whoever carries it out."""

    __slots__ = ("_answer", "_operations", "args", "done", "id", "since_ns", "state", "verb", "wanted")

    def __init__(
        self, operations: Operations, id: int, verb: str, args: dict[str, Any], answer: Callable[[dict[str, Any]], None]
    ) -> None:
        self._operations = operations
        self._answer: Callable[[dict[str, Any]], None] | None = answer
        self.id = id
        self.verb = verb
        self.args = args
        self.state = "queued"
        self.wanted = ""  # what it waits for, in words
        self.since_ns = monotonic_ns()
        self.done = False

    def waits(self, wanted: str) -> None:
        """Its orders are given; the end comes when this has happened."""
        if self.done:
            return
        self.state, self.wanted = "waiting", wanted
        if not self.args.get("wait"):
            self._tell({"ok": True, "operation": self.id, "state": "waiting", "waits_for": wanted})
        self._operations.advance()

    def __call__(self, ok: bool, value: dict[str, Any]) -> None:
        """value: the body of the answer, or of an error `code`, `message` and `hint`. The first call counts."""
        if self.done:
            return
        self.done = True
        self._operations.forget(self)
        self._tell({"ok": ok, "operation": self.id, **value})
        self._operations.advance()

    def left(self) -> None:
        """Its client is gone. What it asked for goes on."""
        self._answer = None

    def _tell(self, body: dict[str, Any]) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer(body)

    def row(self, now_ns: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "verb": self.verb,
            "args": self.args,
            "state": self.state,
            "waits_for": self.wanted or None,
            "seconds": round((now_ns - self.since_ns) / 1e9, 3),
        }


class Operations:
    """All commands of a runtime. `begin(verb, args, reply)` carries one out."""

    def __init__(self, begin: Callable[[str, dict[str, Any], Operation], None]) -> None:
        self._begin = begin
        self._queued: list[Operation] = []
        self._open: dict[int, Operation] = {}
        self._next = 1
        self._advancing = False

    def add(
        self, verb: str, args: dict[str, Any], answer: Callable[[dict[str, Any]], None], *, urgent: bool = False
    ) -> Operation:
        """urgent: begun now, whatever is under way: a stop must not wait for what never ends."""
        operation = Operation(self, self._next, verb, args, answer)
        self._next += 1
        self._open[operation.id] = operation
        if urgent:
            self._start(operation)
        else:
            self._queued.append(operation)
            self.advance()
        return operation

    def advance(self) -> None:
        """Begins the next one if none is giving its orders. What begins may end at once, so this is a loop."""
        if self._advancing:
            return
        self._advancing = True
        try:
            while self._queued and not any(one.state == "running" for one in self._open.values()):
                self._start(self._queued.pop(0))
        finally:
            self._advancing = False

    def _start(self, operation: Operation) -> None:
        operation.state = "running"
        try:
            self._begin(operation.verb, operation.args, operation)
        except Exception as error:  # a mistake of ours must not end the root, nor leave its client without an answer
            text = f"{type(error).__name__}: {error}"
            operation(False, {"code": "internal", "message": f"the root could not do it: {text}", "hint": None})

    def forget(self, operation: Operation) -> None:
        self._open.pop(operation.id, None)

    @property
    def count(self) -> int:
        return len(self._open)

    def rows(self) -> list[dict[str, Any]]:
        """For `status`. A queued one waits for the one that is giving its orders."""
        now = monotonic_ns()
        rows = []
        before: Operation | None = None
        for one in self._open.values():
            row = one.row(now)
            if one.state == "queued" and before is not None:
                row["waits_for"] = f"operation {before.id} ({before.verb})"
            if one.state in ("running", "queued"):
                before = one
            rows.append(row)
        return rows

"""The reports of the trees as the root keeps them: the last thousand, numbered.

A report says what happened and what was decided, with the same keys each time (OTP's supervisor reports): supervisor
(its path), context, reason, offender, and `used` and `limit` where the restart budget is touched. It becomes an event
by a name, a number and the time. The program gets each at once; a root that dies takes its own copies along. What is
told of a place that was full, and the like, is a report, too: of no supervisor, with measurements and metadata beside.
"""

from __future__ import annotations

from time import monotonic_ns

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Reports"]

_MOST = 1000


class Reports:
    """`kept` are the last ones, oldest first; `on_report` hears of each."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Any]] = []
        self.on_report: Callable[[dict[str, Any]], None] | None = None
        self._count = 0

    def keep(self, report: dict[str, Any]) -> dict[str, Any]:
        """The same with event (a name of its own is kept), seq and monotonic_ns."""
        self._count += 1
        event = {
            "event": "supervisor." + report["context"],
            "seq": self._count,
            "monotonic_ns": monotonic_ns(),
            **report,
        }
        self.kept.append(event)
        if len(self.kept) > 2 * _MOST:
            del self.kept[:-_MOST]
        if self.on_report is not None:
            self.on_report(event)
        return event

    def since(self, number: int) -> list[dict[str, Any]]:
        """Those with a greater number."""
        return [event for event in self.kept if event["seq"] > number]

"""What a root has for control clients: the socket, the answers, and the events. Only a named runtime's root has it.

service = Service(root, listener, name, program_pid)
poll(service.fds() + ...)         in the root's loop
service.handle(ready)
service.heard(verb, rest)         what the program says of commands
service.report(report)            what the tree reports, and what is reported of full places and the like
"""

from __future__ import annotations

from shmrt.supervise import views
from shmrt.supervise.answers import Answers
from shmrt.supervise.control import Control

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Service"]


class Service:
    """See the module."""

    def __init__(self, root: Any, listener: int, name: str, program_pid: int) -> None:
        self._root = root
        self._reports = False
        self._answers = Answers(root, name, program_pid)
        self._control = Control(listener, self._answers)
        self._answers.operations = self._control.operations.rows
        root.staff.tell_clients = self._control.publish
        self.handle = self._control.handle
        self.heard = self._answers.heard

    def fds(self) -> list[tuple[int, int]]:
        """What to poll. Somebody may have reported for the first time: from then on that is heard as it comes."""
        reports = self._root.staff.kept_reports
        if reports is not None and not self._reports:
            self._reports = True
            for report in reports.kept:
                self.report(report)
            reports.on_report = self.report
        return self._control.fds()

    def report(self, report: dict[str, Any]) -> None:
        if "measurements" in report:
            self._control.publish(report["event"], report["measurements"], report["metadata"])
            return
        top, *below = report["supervisor"]
        self._control.publish(*views.event_of({**report, "supervisor": (self._answers.label_of(top), *below)}))

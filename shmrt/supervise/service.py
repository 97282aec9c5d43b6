"""What a root has for control clients: the socket, the answers, and the events. Only a named runtime's root has it.

service = Service(root, listener, name, program_pid)
poll(service.fds() + ...)         in the root's loop
service.handle(ready)
service.heard(verb, rest)         what the program says of commands
service.report(report)            what the tree reports
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
        self._reports = False
        self._answers = Answers(root, name, program_pid)
        self._control = Control(listener, self._answers)
        self._answers.operations = self._control.operations.rows
        root.staff.tell_clients = self._control.publish
        self.handle = self._control.handle
        self.heard = self._answers.heard

    def fds(self) -> list[tuple[int, int]]:
        """What to poll. Trees may have been planted since the last time: what they report is heard from then on."""
        trees = self._answers.trees
        if trees is not None and not self._reports:
            self._reports = True
            for report in trees.reports.kept:
                self.report(report)
            trees.reports.on_report = self.report
        return self._control.fds()

    def report(self, report: dict[str, Any]) -> None:
        path = report["supervisor"]
        if path:  # what a breaker did belongs to no supervisor
            path = (self._answers.label_of(path[0]), *path[1:])
        self._control.publish(*views.event_of({**report, "supervisor": path}))

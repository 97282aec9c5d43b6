"""The program's half of what a name means: its directory, its control socket, the commands that come through it.

An unnamed runtime has none of it, and imports none of it.
"""

from __future__ import annotations

from shmrt.runtime_commands import RuntimeCommands
from shmrt.supervise.directory import RuntimeDirectory

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.runtimes import Runtime

__all__ = ["NamedSide", "why_it_gave_up"]


def why_it_gave_up(reason: Any, reports: list[dict[str, Any]]) -> str | None:
    """In words; None for a tree that ended in order. "shutdown" may be either: the limit of restarts is reported."""
    from shmrt.supervise.views import id_text, reason_text

    for report in reversed(reports):
        if report["context"] == "shutdown" and len(report["supervisor"]) == 1:
            return f"it gave up: child {id_text(report['offender'].get('id'))} was restarted too often"
    orderly = reason in ("normal", "shutdown") or (isinstance(reason, tuple) and reason[:1] == ("shutdown",))
    return None if orderly else f"it gave up: {reason_text(reason)}"


class NamedSide:
    """Takes the name when it is made: ConfigError(key="name") if a living runtime has it."""

    def __init__(self, runtime: Runtime, name: str) -> None:
        self.directory = RuntimeDirectory.claim(name)
        self.commands = RuntimeCommands(runtime)
        self._name = name
        self._link: Any = None

    def serve(self, link: Any) -> None:
        """Once there is a root. Every root after it does the same."""
        self._link = link
        self.directory.rooted(link.root_pid)
        link.serve_control(self._name, self.directory.control_fd)

    def hear(self, event: tuple[Any, ...]) -> None:
        """Each event of the link's, in the thread shmrt-link."""
        if event[0] == "command":
            self.commands.obey(*event[1:])
        elif event[0] == "root_started" and self._link is not None:
            self.directory.rooted(event[1])

    def end(self, reason: str | None) -> None:
        """The root is gone. reason: why, unless it was stopped in order; then the directory stays to say so."""
        if reason is None:
            self.directory.remove()
        else:
            self.directory.leave(reason)

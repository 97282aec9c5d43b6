"""A runtime's part in health checks: what belongs to it alone, what it answers, and its HTTP endpoints.

The root asks for the program's checks, ("checks", number), when somebody else wants to know how the runtime is. They
are pickled in a thread of their own: what a user's `__reduce__` does there holds nobody up. `shmrt/guard/http.py` has
the endpoints; they are served by a process of their own, under a supervisor of its own, and the port stays this
program's as long as the runtime runs.
"""

from __future__ import annotations

import sys
import threading

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from shmrt.guard.health import HealthCheck
    from shmrt.guard.http import Port
    from shmrt.guard.report import HealthReport

__all__ = ["RuntimeHealth"]


class RuntimeHealth:
    """Mixed into Runtime."""

    _is_program = True  # it has checks of its own; in a worker they are the program's
    _checks: tuple[HealthCheck, ...] = ()
    _port: Port | None = None
    _http: str | int | None = None
    _link: Any

    def _describe_health(self, health: Iterable[HealthCheck], http: str | int | None) -> None:
        if health:
            from shmrt.guard.health import of_runtime

            self._checks = of_runtime(health)
        if http is not None:
            from shmrt.guard.http_words import parse_address

            parse_address(http)
        self._http = http

    def health(self, group: str | None = None) -> HealthReport:
        """`shmrt.health(runtime, group)`: its pools, trees and shared memory, the checks of its children, its own
        checks and the program's. It never starts the runtime."""
        from shmrt.guard.asking import ask_health

        return ask_health(self, group)  # type: ignore[arg-type]

    @property
    def http_address(self) -> tuple[str, int] | None:
        """Where its health is told over HTTP; None without `http=`, and before the start."""
        return None if self._port is None else self._port.address

    def _hear_checks(self, number: int) -> None:
        """In the thread shmrt-link, which must not wait."""
        threading.Thread(target=self._answer_checks, args=(number,), name="shmrt-checks", daemon=True).start()

    def _answer_checks(self, number: int) -> None:
        from shmrt.errors import RuntimeDown
        from shmrt.guard.asking import snapshot

        rows: Any = None
        surroundings: Any = None
        try:
            rows, surroundings = snapshot(self)
        except Exception:
            sys.excepthook(*sys.exc_info())
        try:
            self._link.say("checks", number, rows, surroundings)
        except RuntimeDown:
            pass  # nobody waits for it any more

    # ---- HTTP -------------------------------------------------------------------------------------------------------
    def _take_port(self) -> None:
        """OSError if it cannot be had."""
        if self._http is not None:
            from shmrt.guard.http import Port

            self._port = Port(self._http)

    def _serve_http(self) -> None:
        if self._port is not None:
            self.trees.plant(self._port.tree())  # type: ignore[attr-defined]

    def _close_port(self) -> None:
        if self._port is not None:
            self._port.close()
            self._port = None

"""What every description of a supervisor can do: be started beside a tree, and speak to what was started from it."""

from __future__ import annotations

import threading

from shmrt.errors import NotFound

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Any

    from shmrt.children import Child
    from shmrt.handles import Count, SupervisorRef
    from shmrt.runtimes import Runtime

__all__ = ["Startable"]


class Startable:
    """The functions of a supervisor, by whatever was started from this description."""

    name: str | None
    _started: SupervisorRef | None = None
    _starts_itself = True
    _starting = threading.RLock()

    def start(self, runtime: Runtime | None = None) -> SupervisorRef:
        """Starts it beside the tree of a runtime (None: the current one); its handle, when all children are up."""
        from shmrt import runtimes

        with self._starting:
            self._started = (runtime or runtimes.current()).trees.plant(self)
            return self._started

    def handle(self) -> SupervisorRef:
        """The supervisor that was started from this description, or that has its name; else it is started now."""
        from shmrt import runtimes

        with self._starting:
            if self._started is None and self.name is not None:
                try:
                    return runtimes.current().supervisor(self.name)
                except NotFound:
                    pass
            if self._started is None:
                if not self._starts_itself:
                    raise NotFound(f"{self!r} was not started; use start(), or Runtime(tree)")
                self.start()
            assert self._started is not None
            return self._started

    def start_child(self, child: Any, *args: Any, **options: Any) -> Any:
        """See SupervisorRef.start_child."""
        return self.handle().start_child(child, *args, **options)

    def terminate_child(self, which: Any) -> None:
        """See SupervisorRef.terminate_child."""
        self.handle().terminate_child(which)

    def restart_child(self, which: Any) -> Any:
        """See SupervisorRef.restart_child."""
        return self.handle().restart_child(which)

    def delete_child(self, which: Any) -> None:
        """See SupervisorRef.delete_child."""
        self.handle().delete_child(which)

    def which_children(self) -> list[tuple[Any, Any, str, str]]:
        """See SupervisorRef.which_children."""
        return self.handle().which_children()

    def which_child(self, which: Any) -> tuple[Any, Any, str, str]:
        """See SupervisorRef.which_child."""
        return self.handle().which_child(which)

    def count_children(self) -> Count:
        """See SupervisorRef.count_children."""
        return self.handle().count_children()

    def get_childspec(self, which: Any) -> Child:
        """See SupervisorRef.get_childspec."""
        return self.handle().get_childspec(which)

    def stop(self, reason: Any = "shutdown", timeout: float | None = None) -> Any:
        """See SupervisorRef.stop. The next use starts it anew."""
        handle, self._started = self.handle(), None
        return handle.stop(reason, timeout)

    def __enter__(self) -> Any:
        self.handle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._started is not None:
            self.stop("shutdown" if kind is None else "killed")

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_started"}

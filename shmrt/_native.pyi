"""Types of the native core; one section per native/py_*.c."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future as _StandardFuture
from typing import Any, Literal

# native/py_layout.c

LAYOUT: Mapping[str, int]
LAYOUT_VERSION: int

# native/py_future.c

def future_class() -> type[_StandardFuture[Any]]: ...

# native/py_future_manual.c

_Outcome = Literal["value", "exception", "cancelled", "object"]

class ManualFutureSource:
    decoder: Callable[[Any], object] | None
    accepts_cancel: bool
    accepts_kill: bool
    is_running: bool
    @property
    def calls(self) -> list[tuple[str, int]]: ...
    @property
    def polls(self) -> int: ...
    @property
    def decodes(self) -> int: ...
    @property
    def payloads(self) -> int: ...
    def new(self) -> _StandardFuture[Any]: ...
    def post(
        self, token: int, outcome: _Outcome, object: object = None, worker: str | None = None, attempts: int = 1
    ) -> None: ...
    def complete(
        self, token: int, outcome: _Outcome, object: object = None, worker: str | None = None, attempts: int = 1
    ) -> bool: ...
    def dispatch(self) -> int: ...
    def forget(self, token: int, /) -> None: ...

# native/py_bench.c

def ping_pong_ns(rounds: int, /) -> float: ...

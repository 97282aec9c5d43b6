"""What the tests of Future share: the class itself, threads that must end, and a way to provoke races."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from shmrt import _native

Future: Any = _native.future_class()
LIMIT_S = 60.0  # generous: it only ends what hangs


def in_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    return thread


def join(*threads: threading.Thread) -> None:
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()


@contextmanager
def switch_often() -> Iterator[None]:
    """Threads take turns far more often than usual, so that races happen."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Collected:
    """Something whose death can be seen."""

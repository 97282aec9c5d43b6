"""Functions that the tests of the pool run in workers, importable there, and what the tests themselves share."""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import os
import re
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LIMIT_S = float(os.environ.get("SHMRT_TEST_LIMIT_S", 120))  # generous: it only ends what hangs


@contextmanager
def watchdog() -> Iterator[None]:
    """A test that hangs shows where, and ends its process."""
    faulthandler.dump_traceback_later(LIMIT_S, exit=True, file=sys.__stderr__)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Waits for what has no event of its own; the watchdog bounds it."""
    end = time.monotonic() + LIMIT_S
    while not (value := condition()):
        assert time.monotonic() < end, what or condition
        os.sched_yield()
    return value


def ready(pool: Any) -> list[dict[str, Any]]:
    return [row for row in pool._core.workers() if row["ready"]]


# ---- tasks ----


def same(value: Any) -> Any:
    return value


def pid(*_: Any) -> int:
    return os.getpid()


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def exit_at_once(code: int = 7) -> None:
    os._exit(code)


def abort() -> None:
    os.abort()


def overflow_c_stack() -> Any:
    """With less stack than the interpreter's own limit of C calls is made for."""
    sys.setrecursionlimit(10**9)
    resource.setrlimit(resource.RLIMIT_STACK, (400 << 10, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    def deeper(_: object) -> Any:
        return functools.reduce(lambda a, b: deeper(b), [1, 2, 3])

    return deeper(0)


def sys_exit(code: Any = 3) -> None:
    sys.exit(code)


def exec_other() -> None:
    os.execv("/bin/sleep", ["sleep", "1000"])


def leave_main_thread() -> None:
    """The main thread ends, another one lives on."""
    threading.Thread(target=signal.pause, daemon=True).start()
    ctypes.CDLL(None).syscall(60, 0)


def note(path: str, text: str = "x") -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def notes(path: Any) -> list[str]:
    try:
        with open(path) as file:
            return file.read().split()
    except FileNotFoundError:
        return []


def note_and_return(path: str, value: Any) -> Any:
    note(path, str(value))
    return value


def die_first(path: str, times: int, value: Any) -> Any:
    """Kills its worker in its first `times` attempts."""
    note(path, str(os.getpid()))
    if len(notes(path)) <= times:
        kill_self()
    return value


def raise_first(path: str, times: int, error: BaseException, value: Any) -> Any:
    note(path, str(os.getpid()))
    if len(notes(path)) <= times:
        raise error
    return value


def raise_it(error: BaseException) -> None:
    raise error


def wait_for_file(path: str, value: Any = None) -> Any:
    """Runs until somebody makes the file."""
    while not os.path.exists(path):
        os.sched_yield()
    return value


def started_then_wait(started: str, path: str, value: Any = None) -> Any:
    note(started, str(os.getpid()))
    return wait_for_file(path, value)


def sleep_long() -> None:
    time.sleep(1000)


def hold_the_gil() -> None:
    ctypes.PyDLL(None).usleep(1_000_000_000)


def backtrack() -> Any:
    return re.match(r"(a+)+$", "a" * 64 + "b")


def masked_loop() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 64))
    while True:
        pass


def ignoring_loop() -> None:
    for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    while True:
        pass


def hold_the_gil_for(seconds: float) -> int:
    ctypes.PyDLL(None).usleep(int(seconds * 1e6))
    return os.getpid()


def hang_first(path: str, times: int, value: Any) -> Any:
    note(path, str(os.getpid()))
    if len(notes(path)) <= times:
        time.sleep(1000)
    return value


def spin_for(seconds: float, value: Any) -> Any:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return value

"""What tasks do. Modules of their own import this in their workers, so it is plain functions and imports little."""

from __future__ import annotations

import os
import time

SIGKILL = 9  # `signal` would bring `enum` into every worker: 1 MB and a millisecond of each
TYPE_CHECKING = False  # workers need not import `typing`
if TYPE_CHECKING:
    from typing import Any


def nothing(number: int) -> int:
    return number


def add_one(number: int) -> int:
    return number + 1


def burn(micros: int) -> int:
    """So many microseconds of CPU time: being pushed off the CPU does not count as work."""
    clock = time.thread_time_ns
    end = clock() + micros * 1000
    while clock() < end:
        pass
    return micros


def spin(micros: int) -> int:
    """So many microseconds by the wall clock."""
    clock = time.perf_counter_ns
    end = clock() + micros * 1000
    while clock() < end:
        pass
    return micros


def first_and_last(array: Any) -> float:
    return float(array[0] + array[-1])


def scaled(array: Any) -> Any:
    """A new array of the same size."""
    return array * 2.0


def seven(number: int) -> int:
    return 7


def pid_of_worker(number: int) -> int:
    return os.getpid()


def wait_a_little(number: int) -> int:
    """Long enough that every worker gets one of several."""
    time.sleep(0.02)
    return os.getpid()


def die_at(number: int) -> int:
    """Number 0 kills its worker; the others give back what they got."""
    if number == 0:
        os.kill(os.getpid(), SIGKILL)
    return number


def sleep_at(number: int) -> int:
    """Number 0 never ends."""
    if number == 0:
        time.sleep(3600)
    return number


def hold_the_gil(number: int) -> int:
    """Number 0 stays in one C call that does not let go of the interpreter."""
    if number == 0:
        sum(range(1 << 50))
    return number

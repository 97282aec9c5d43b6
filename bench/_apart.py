"""Runs a function in a process of its own that can be given up, with everything that it started.

Some peers hang for ever in the situations that are measured here; that is a result, and must not be the end of the run.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from typing import Any

from bench._peers.channels import CONTEXT
from bench._processes import below


class GivenUpError(Exception):
    """It did not come back in time."""


def apart(fn: Callable[..., Any], *args: Any, seconds: float) -> Any:
    """What `fn(*args)` returns, from a forked process. GivenUpError after so many seconds, RuntimeError if it fails."""
    mine, its = CONTEXT.Pipe()
    process = CONTEXT.Process(target=_run, args=(its, fn, args))
    process.start()
    its.close()
    try:
        if not mine.poll(seconds):
            raise GivenUpError(f"nothing in {seconds:g} s")
        try:
            well, value = mine.recv()
        except EOFError:
            process.join()
            raise RuntimeError(f"the process of {fn.__name__} ended with {process.exitcode}") from None
        if not well:
            raise RuntimeError(value)
        process.join(seconds)
        return value
    finally:
        if process.pid is not None and process.is_alive():
            _end_all(process.pid)
        process.join()
        mine.close()


def _end_all(child: int) -> None:
    """It is stopped first: a pool replaces the workers that it sees dying, and one missed here would outlive all."""
    os.kill(child, signal.SIGSTOP)
    os.waitid(os.P_PID, child, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    for pid in (*below(child), child):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _run(pipe: Any, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
    try:
        pipe.send((True, fn(*args)))
    except BaseException:
        pipe.send((False, traceback.format_exc()))

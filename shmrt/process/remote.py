"""Exceptions and log records that came from a worker, in the program.

`unpack_exception` gives the exception that `packing.py` packed, with the text of its traceback as its `__cause__`, or a
`RemoteError` in its place. It cannot fail of what a user's `__reduce__` or `__setstate__` does: only that one task
carries the consequence.

`handle_log` gives a record that a worker logged to the program's own handlers.

`make_error` words the outcomes that have no exception of the user's: a dead worker, a passed deadline.
"""

from __future__ import annotations

TYPE_CHECKING = False  # workers start without typing, which would cost them more than all else
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "RemoteTraceback",
    "broken_reasons",
    "handle_log",
    "keep_log",
    "keep_reasons",
    "log_tails",
    "make_error",
    "unpack_exception",
    "unpack_from",
]

#: Why each broken pool broke, by its name: `keep_reasons`.
broken_reasons: dict[str, list[str]] = {}
#: The last log lines of each worker, by (pool, worker index).
log_tails: dict[tuple[str, int], list[str]] = {}

_KEPT = 4096  # pools, and workers, that are remembered: a program may open a pool for each of its requests
_LOG_TAIL = 20


class RemoteTraceback(Exception):
    """The traceback of another process, as text; it stands as the cause of the exception it belongs to."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return self.text


def unpack_exception(packed: Any, pool: str | None, worker: int, pid: int, attempt: int) -> BaseException:
    """The exception that `pack_exception` packed, with the remote traceback as its cause."""
    return unpack_from(packed, f"in worker {pool}/{worker} (pid {pid}), attempt {attempt}")


def unpack_from(packed: Any, where: str) -> BaseException:
    """The same for any process; `where` is the last line of the cause."""
    if not isinstance(packed, tuple) or len(packed) < 4 or not all(isinstance(word, str) for word in packed[1:4]):
        from shmrt.errors import SegmentError

        return SegmentError(f"what was sent as an exception is none, {where}: its record was overwritten")
    data, name, message, text = packed[:4]
    error: BaseException | None = None
    if data is not None:
        import pickle

        try:
            error = pickle.loads(data)
        except BaseException:
            error = None  # it can be unpickled there but not here: a module that the program lacks, say
    if not isinstance(error, BaseException):
        from shmrt.errors import RemoteError

        error = RemoteError(f"{name}: {message}", type_name=name, traceback_text=text)
    try:
        error.__cause__ = RemoteTraceback(f'\n"""\n{text}"""\n{where}')
    except BaseException:
        pass  # an exception class that forbids even that keeps its own message
    return error


def keep_log(pool: str, worker: int, row: tuple[Any, ...]) -> None:
    """Its line is one of the last that the worker logged, for the error of a task that the worker may die of."""
    import logging

    tail = log_tails.setdefault((pool, worker), [])
    _forget_the_oldest(log_tails)
    tail.append(f"{logging.getLevelName(row[1])} {row[0]}: {row[6]}")
    del tail[:-_LOG_TAIL]


def keep_reasons(pool: str, reasons: list[str]) -> None:
    """What the tasks of a pool that is broken say of it. Written by the pool, when the root says so or it is ended."""
    broken_reasons.pop(pool, None)  # so that it is the youngest
    broken_reasons[pool] = reasons
    _forget_the_oldest(broken_reasons)


def _forget_the_oldest(table: dict[Any, list[str]]) -> None:
    if len(table) > _KEPT:
        for key in list(table)[:-_KEPT]:
            table.pop(key, None)  # another thread may be at it, too


def _last_words(pool: str, worker: int) -> str | None:
    import sys

    runtimes = sys.modules.get("shmrt.runtimes")
    for runtime in runtimes.living() if runtimes else ():
        runtime.hear_notes()  # the hub took them out of the lane before it took leave of the worker
    return "\n".join(log_tails.get((pool, worker), ())) or None


def handle_log(pool: str, worker: int, row: tuple[Any, ...]) -> None:
    """Makes a record again of what a worker sent, and handles it as if it had been logged here."""
    import logging

    name, level, created, path, line, function, text, exc_text, thread, pid = row
    record = logging.LogRecord(name, level, path, line, text, None, None, function)
    record.created = created
    record.msecs = (created - int(created)) * 1000
    record.exc_text = exc_text
    record.threadName = thread
    record.process = pid
    record.processName = f"{pool}/{worker}"
    logger = logging.getLogger(name)
    if logger.isEnabledFor(level):
        logger.handle(record)


def _ended(facts: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """(how the process ended, exit code, signal)."""
    import os
    import signal

    status = facts["wait_status"]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return f"was killed by {name}", None, number
    code = os.WEXITSTATUS(status)
    return f"exited with code {code}", code, None


def make_error(kind: str, facts: dict[str, Any]) -> BaseException:
    """The error for an outcome that the hub decided. `facts`: what is known of the worker's end."""
    from shmrt import errors

    worker = f"{facts['pool']}/{facts['worker']}"
    seconds = facts["elapsed_ns"] / 1e9
    stack = facts["stack"] or None
    attempts = facts["attempts"]
    if kind in ("crashed", "poison"):
        from shmrt import _native

        how, exitcode, number = _ended(facts)
        oom = bool(facts["oom"]) and number == 9
        why = ": the memory cgroup ran out of memory; give it more, or set max_rss" if oom else ""
        if facts["kill_reason"] == _native.KILL_DOUBT:
            why = ": it had written over memory that it shares with the runtime, as a bug in a C library may"
        text = f"worker {worker} (pid {facts['pid']}) {how} while it ran this task{why} (attempt {attempts})"
        if kind == "poison":
            text = (
                f"this message killed its worker {attempts} times; the last, {worker} (pid {facts['pid']}), {how}{why}"
            )
        cls = errors.PoisonMessage if kind == "poison" else errors.WorkerCrashed
        return cls(
            text,
            worker=worker,
            pid=facts["pid"],
            exitcode=exitcode,
            signal=number,
            oom=oom,
            attempts=attempts,
            stack=stack,
            log_tail=_last_words(facts["pool"], facts["worker"]),
        )
    if kind == "timeout":
        text = f"the task ran for {seconds:.3f} s in worker {worker}, longer than its timeout; the worker was killed"
        return errors.TaskTimeout(text, stack=stack, worker=worker, elapsed=seconds)
    if kind == "expired":
        return errors.TaskTimeout("the deadline passed before the task began; it was dropped")
    if kind == "broken":
        from shmrt.errors import PoolBroken

        reasons = broken_reasons.get(facts["pool"], [])
        last = f"; the last: {reasons[-1]}" if reasons else ""
        text = f"pool {facts['pool']} is broken: its workers cannot be kept running{last}"
        broken: BaseException = PoolBroken(text, reasons=reasons)
        return broken
    return errors.RuntimeDown(f"pool {facts['pool']} was closed before this task began", reason="shutdown")

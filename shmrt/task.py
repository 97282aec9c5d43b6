"""Tasks: one supervised process for each call of a function (Elixir's `Task.Supervisor`).

    >>> from shmrt import TaskSupervisor
    >>> with TaskSupervisor() as tasks:
    ...     tasks.async_(pow, 2, 10).result()
    1024

    async_         linked to whoever asked: if that process ends, the task does; if the task fails, a child that asked
                   gets its exit signal (the program and pool workers get it from `result`)
    async_nolink   not linked: the task goes on without its owner, its result is dropped
    start_child    nobody waits for it
    stream         one task for each item, a few at a time

A `Pool` is far faster for many short calls, since its workers stay. A task has a process of its own: it may leak, hang,
or crash, and takes nothing along.

If the task's process dies, `result` raises ServerDown with its exit reason. Rules: Elixir's Task and Task.Supervisor.
"""

from __future__ import annotations

import os
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from queue import Empty, SimpleQueue
from time import monotonic

from shmrt.children import Child
from shmrt.errors import RemoteError, ServerDown, TaskTimeout
from shmrt.server import Server, call
from shmrt.spec import RingSpec, check_count, check_seconds
from shmrt.supervisors import DynamicSupervisor

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

__all__ = ["Task", "TaskSupervisor"]

_MAILBOX = RingSpec(slots=2)
SHUTDOWN_S = 5.0


class _Runner(Server):
    """Runs one function, answers with what it returned, ends."""

    @call
    def run(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.stop("normal")
        return function(*args, **kwargs)


class Task(Future):  # type: ignore[type-arg]
    """A call under way in a process of its own. Only the process that started it can ask for its result."""

    def __init__(self, ref: Any, request: Future[Any]) -> None:
        super().__init__()
        self.ref = ref
        self._request = request
        self._owner_pid = os.getpid()
        self._ignored = False
        self.set_running_or_notify_cancel()
        request.add_done_callback(self._ended)

    def _ended(self, request: Future[Any]) -> None:
        if self.done():
            return
        if request.cancelled():  # ignored: whoever waits for it among others must not wait for ever
            self.set_exception(CancelledError())
        elif (error := request.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(request.result())

    def __reduce__(self) -> Any:
        raise TypeError("a Task cannot be sent to another process: only the one that started it can ask for its result")

    @property
    def pid(self) -> int | None:
        """The process that runs it."""
        return self.ref.pid  # type: ignore[no-any-return]

    def _check(self) -> None:
        if os.getpid() != self._owner_pid:
            raise RuntimeError(
                f"this task was started by process {self._owner_pid}; only that one can ask for its result"
            )
        if self._ignored:
            raise RuntimeError("this task was ignored; its result is dropped")

    def result(self, timeout: float | None = None) -> Any:
        """What the function returned; raises what it raised, ServerDown(reason) if its process died, TimeoutError after
        `timeout` seconds (the task goes on)."""
        self._check()
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """What `result` would raise, or None."""
        self._check()
        return super().exception(timeout)

    def yield_(self, timeout: float | None = SHUTDOWN_S) -> tuple[str, Any] | None:
        """("ok", result) or ("exit", reason); None if it is not over after `timeout` seconds, and may be asked
        again."""
        self._check()
        try:
            error = super().exception(timeout)
        except FutureTimeout:
            return None
        return ("ok", super().result()) if error is None else ("exit", exit_of(error))

    def shutdown(self, timeout: float | str | None = SHUTDOWN_S) -> tuple[str, Any] | None:
        """Ends it: asked first, killed after `timeout` seconds ("brutal_kill": at once). ("ok", result) or ("exit",
        reason) if it was over before; None if it ended because of this."""
        self._check()
        over = self.yield_(0)
        if over is not None:
            return over
        brutal = timeout == "brutal_kill"
        if not brutal:
            seconds = check_seconds(timeout, "timeout")  # type: ignore[arg-type]
            self.ref._ask("end_process", self.ref.key, False)
            try:
                error = super().exception(seconds)
            except FutureTimeout:
                pass
            else:
                if error is None:
                    return ("ok", super().result())
                reason = exit_of(error)
                return None if reason in ("shutdown", "noproc") else ("exit", reason)
        self.ref._ask("end_process", self.ref.key, True)
        error = super().exception()
        if error is None:
            return ("ok", super().result())
        reason = exit_of(error)
        return None if brutal and reason == "killed" else ("exit", reason)

    def ignore(self) -> tuple[str, Any] | None:
        """Its result is of no interest any more: ("ok", result) or ("exit", reason) if it is over, else None; it goes
        on."""
        over = self.yield_(0)
        self._ignored = True
        if over is None:
            self._request.cancel()
        return over


def exit_of(error: BaseException) -> Any:
    """The exit reason behind what a task's `result` raises."""
    if isinstance(error, ServerDown):
        return error.reason
    name = type(error).__name__
    if isinstance(error, RemoteError):
        name = error.type_name or name
    cause = error.__cause__
    return ("error", name, str(error), "" if cause is None else str(cause).strip())


class TaskSupervisor(DynamicSupervisor):
    """Starts tasks and ends them with itself. max_children: how many may run at once; one more is ChildStateError."""

    def __init__(self, *, max_children: int | None = None, name: str | None = None) -> None:
        super().__init__(max_children=max_children, name=name)

    def async_(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        """fn(*args, **kwargs) in a process that is linked to this one."""
        return self._begin(fn, args, kwargs, linked=True)

    def async_nolink(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        """fn(*args, **kwargs) in a process of its own fate."""
        return self._begin(fn, args, kwargs, linked=False)

    def start_child(self, child: Any, *args: Any, **options: Any) -> Any:
        """child(*args), and nobody waits for it; its reference. Options as `Child` takes them: kwargs=, restart=
        ("temporary")."""
        if isinstance(child, Child):
            return super().start_child(child, *args, **options)
        return super().start_child(Child(child, *args, **{"restart": "temporary", **options}))

    def _begin(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], *, linked: bool) -> Task:
        if not callable(fn):
            raise TypeError(f"a task runs a function, not {fn!r}")
        label = getattr(fn, "__name__", type(fn).__name__)
        ref = super().start_child(Child(_Runner, id=label, restart="temporary", mailbox=_MAILBOX))
        if linked:
            ref._ask("tie", ref.key)
        try:
            request = ref.request("run", fn, args, kwargs, timeout=None)
        except BaseException:  # it does not pickle
            self.terminate_child(ref)
            raise
        return Task(ref, request)

    def stream(
        self,
        fn: Callable[[Any], Any],
        items: Iterable[Any],
        *,
        max_concurrency: int | None = None,
        ordered: bool = True,
        timeout: float | None = None,
        on_timeout: str = "kill_task",
        max_buffer: int | None = None,
    ) -> Iterator[tuple[str, Any]]:
        """("ok", fn(item)) or ("exit", reason) for each item, at most max_concurrency (None: the usable CPUs) at a
        time.

        ordered: in the order of the items, else as they end. timeout: seconds that each may take from its start, None
        is no limit; it is then killed, and on_timeout says what comes of it: "kill_task", the element ("exit",
        "timeout"); "exit", TaskTimeout is raised here. max_buffer: how many results may wait behind a slower one that
        comes before them (None: four times max_concurrency); beyond that nothing new is started. What is running when
        the iterator is dropped is killed.
        """
        from shmrt import _native

        if not callable(fn):
            raise TypeError(f"a task runs a function, not {fn!r}")
        most = (
            max(1, _native.usable_cpus())
            if max_concurrency is None
            else check_count(max_concurrency, "max_concurrency")
        )
        if on_timeout not in ("kill_task", "exit"):
            raise ValueError(f"on_timeout={on_timeout!r} must be 'kill_task' or 'exit'")
        buffer = 4 * most if max_buffer is None else check_count(max_buffer, "max_buffer")
        limit = check_seconds(timeout, "timeout", allow_zero=False)
        return _stream(self, fn, iter(items), most, ordered, limit, on_timeout, buffer)


def _stream(
    tasks: TaskSupervisor,
    fn: Callable[[Any], Any],
    items: Iterator[Any],
    most: int,
    ordered: bool,
    limit: float | None,
    on_timeout: str,
    buffer: int,
) -> Iterator[tuple[str, Any]]:
    ended: SimpleQueue[int] = SimpleQueue()
    running: dict[int, tuple[Task, float]] = {}  # by place: the task and when its time is over
    waiting: dict[int, tuple[str, Any]] = {}  # results that are not delivered yet
    begun = delivered = 0
    more = True
    try:
        while True:
            while more and len(running) < most and len(waiting) < buffer:
                try:
                    item = next(items)
                except StopIteration:
                    more = False
                    break
                task = tasks.async_nolink(fn, item)
                running[begun] = (task, monotonic() + limit if limit is not None else float("inf"))
                task.add_done_callback(lambda _, place=begun: ended.put(place))  # type: ignore[misc]
                begun += 1
            ready = [delivered] if ordered and delivered in waiting else [] if ordered else list(waiting)[:1]
            for place in ready:
                delivered += 1
                yield waiting.pop(place)
            if ready:
                continue
            if not running:
                return
            next_end = _next_end(ended, running)
            place = min(running, key=lambda one: running[one][1]) if next_end is None else next_end
            if next_end is None:
                task = running.pop(place)[0]
                task.shutdown("brutal_kill")
                if on_timeout == "exit":
                    raise TaskTimeout(f"item {place} took longer than {limit:g} s; its task was killed", elapsed=limit)
                waiting[place] = ("exit", "timeout")
            elif place in running:
                over = running.pop(place)[0].yield_(None)
                assert over is not None
                waiting[place] = over
    finally:
        for task, _ in running.values():
            task.shutdown("brutal_kill")


def _next_end(ended: SimpleQueue[int], running: dict[int, tuple[Task, float]]) -> int | None:
    """Which task ended; None: the time of one is over."""
    soonest = min(end for _, end in running.values())
    try:
        return ended.get(timeout=None if soonest == float("inf") else max(0.0, soonest - monotonic()))
    except Empty:
        return None

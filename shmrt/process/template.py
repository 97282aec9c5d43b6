"""The template: a process that has imported a pool's `preload` modules and forks its workers.

It forks twice and the middle process exits, so that the worker becomes a child of the root (a child
subreaper), which can reap it, and survives the template. The root learns the worker's pid from the middle
process, before the worker can be the root's child.

    root -> template    ("spawn", slot, epoch, pair, number, restarts)
                        ("stand_by", number), whose answers name slot -1 and that number
                        both with the worker's socket to the root, the second with the pipe of its orders, too
    template -> root    ("ready", native_threads, names) or ("failed", text)
    middle -> root      ("spawned", slot, epoch, pid) or ("not_spawned", slot, epoch, text)

One packet each. The root finds spawns without an answer when the socket ends: every process that could
still answer is gone then.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys

from shmrt import _native
from shmrt.process import inherit, signals, worker
from shmrt.process.spawn import Job, close_all_but, die_first

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["run"]


def run(job: Job, socket: int) -> int:
    """The life of a template; `job` is the pattern for its workers."""
    signals.for_template()
    os.setpgid(0, 0)
    _native.set_parent_death_signal(signals.KILL)
    if os.getppid() != job.root_pid:
        return 1
    _native.set_process_name(f"shmrt-template {job.spec['name']}")
    close_all_but([job.slots.fd, job.lanes_fd, job.stacks_fd, job.arena_fd, socket])
    die_first()
    gc.enable()
    try:
        _preload(job.spec)
    except BaseException as error:
        _send(socket, ("failed", _explain(error)))
        return 1
    gc.collect()
    gc.freeze()  # pages that hold only such objects are never written by a collection, so they stay shared
    _send(socket, ("ready", *_threads()))
    while True:
        _native.poll([(socket, _native.POLLIN)], -1)
        received = _native.recv_fds(socket, 65536)
        if received is None:
            continue
        if not received[0]:
            return 0
        verb, *rest = marshal.loads(received[0])
        job.control_fd, orders = (*received[1], -1, -1)[:2]
        if verb == "spawn":
            job.index, job.epoch, job.pair, job.number, job.restarts = rest
        else:
            job.index, job.epoch = -1, rest[0]
        _spawn(job, socket, orders)
        for fd in received[1]:
            os.close(fd)


def _preload(spec: dict[str, object]) -> None:
    threads = spec.get("threads_per_worker")
    inherit.apply(spec["inherit"], threads)  # type: ignore[arg-type]
    worker.clean_main()
    worker.watch_logging(spec)
    from importlib import import_module

    for name in spec["preload"]:  # type: ignore[attr-defined]
        import_module(name)


def _explain(error: BaseException) -> str:
    from traceback import format_exception

    return "".join(format_exception(error))[-16000:]


def _threads() -> tuple[int, list[str]]:
    threading = sys.modules.get("threading")
    main = threading.main_thread() if threading else None
    names = [thread.name for thread in threading.enumerate() if thread is not main] if threading else []
    try:
        native = len(os.listdir("/proc/self/task")) - 1
    except OSError:
        native = len(names)
    return native, names


def _send(socket: int, message: tuple[Any, ...]) -> None:
    try:
        while _native.send_fds(socket, marshal.dumps(message), ()) is None:
            _native.poll([(socket, _native.POLLOUT)], -1)
    except OSError:
        os._exit(1)  # the root is gone


def _spawn(job: Job, socket: int, orders: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        middle = os.fork()
    except OSError as error:
        _send(socket, ("not_spawned", job.index, job.epoch, f"fork: {error}"))
        return
    if middle:
        try:
            os.waitpid(middle, 0)
        except ChildProcessError:
            pass  # a preloaded module set SIGCHLD aside
        return
    code = 70
    try:
        parent = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            _send(socket, ("not_spawned", job.index, job.epoch, f"fork: {error}"))
            os._exit(1)
        if pid:
            _send(socket, ("spawned", job.index, job.epoch, pid))
            os._exit(0)
        os.close(socket)
        code = worker.run(job, parent, orders)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)

"""What runs between the fork of a worker and its exit.

`run` makes the forked copy of the root (or of a template) into a worker of the program: signals, process
group, parent-death signal, descriptors, death mutex, beat, then the program's own surroundings, the
initializer, READY, the dispatch loop, and a normal exit. Every step that can fail before READY is reported
through the loop as the reason of a start failure.

A worker that *stands by* was forked before anybody needed it. It has gone as far as it can without a slot: it has its
surroundings, runs nothing of the user's, and waits in a read of its pipe for the slot that it is to take. Dead, it
costs nobody anything: the next worker is then forked when it is needed. The end of its pipe ends it.

A spec may name another loop than the native one (`"loop": "module:attribute"`); it is called with
(slots, slot, lanes_fd, pair, arena_fd, options) and has start_failed, run, log and exit_value. If it has `prepare`,
that runs before READY; what `run` returns as an int is the exit code. Children of trees are such
(`supervise/child.py`).
"""

from __future__ import annotations

import gc
import os
import sys

from shmrt import _native
from shmrt.process import inherit, packing, signals
from shmrt.process.after_import import after_import
from shmrt.process.spawn import STACK_BYTES, Job, close_all_but, die_first

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["clean_main", "run", "watch_logging"]

_ = packing.pack_exception  # imported here, in the root, so that no worker pays for it
siblings = 0  # how many workers share the CPUs with this one; 0: this process is no worker
job_of_this: Job | None = None  # what this process knows of itself as a worker
_stack_fd = -1  # where faulthandler writes; -1: not opened yet, or there is no such place
_loop: Any = None  # the loop of this worker: log records go through it
_waiting_loop: _native.WorkerLoop | None = None  # that of one that stands by, until it has its slot


def run(job: Job, middle_pid: int = 0, orders: int = -1) -> int:
    """The life of a worker; returns its exit code. `middle_pid` is the parent that a template's worker outlives,
    `orders` the pipe from which a worker that stands by learns its slot."""
    signals.for_worker()
    if orders < 0:
        signals.leave_on_term(job)
    if middle_pid:
        # Armed before it is the root's child, the signal would come when the middle process exits. Until then it stays
        # in the template's group: whoever ends that before the root has heard of this process ends it, too.
        while os.getppid() == middle_pid:
            os.sched_yield()
    os.setpgid(0, 0)
    _native.set_parent_death_signal(signals.KILL)
    if os.getppid() != job.root_pid:
        return 1  # the root died in between: nobody would end this process any more
    if not middle_pid:  # a template has done so, and what it opened since is its preload's
        close_all_but([job.slots.fd, job.lanes_fd, job.stacks_fd, job.arena_fd, job.control_fd, orders])
    if orders >= 0 and not _stand_by(job, orders, from_template=bool(middle_pid)):
        return 1
    slots, index = job.slots, job.index
    if not _is_wanted(slots, index, job.epoch):
        return 1
    slots.set_process(index, os.getpid())
    slots.hold_death_mutex(index)
    slots.start_beat(index, job.root_pid, job.hub_slot)
    spec = job.spec
    _native.set_process_name(f"shmrt {spec['name']}/{job.number}")
    global _loop, job_of_this, siblings
    siblings, job_of_this, job.own_pid = int(str(spec["workers"])), job, os.getpid()
    _loop = _waiting_loop or _make_loop(job)
    if not spec.get("loop"):
        _loop.take(index, job.pair)
    try:
        if orders < 0:
            _settle_in(job, from_template=bool(middle_pid))
        _prepare(job)
        if hasattr(_loop, "prepare"):
            _loop.prepare()
    except BaseException as error:  # SystemExit, too: an initializer that exits has not made the worker ready
        _loop.start_failed(error)
        _end_quietly()
        return 1
    if not getattr(_loop, "says_ready", False) and not ready(job):
        return 1
    if orders >= 0:
        os.close(orders)  # the first task is on its way meanwhile
    code = 0
    try:
        code = _loop.run() or 0
    except SystemExit as error:  # a task called sys.exit: the process ends as an interpreter would
        code = _exit_code(error)
    left = _leave(spec)
    return code or left


def ready(job: Job) -> bool:
    """From here on it may be given work. False: given up by the root meanwhile; the process must end."""
    gc.freeze()
    try:
        job.slots.ready(job.index)
    except RuntimeError:
        return False
    job.slots.ring(job.hub_slot)  # first: work may wait for it, and whoever is woken may take this CPU
    job.slots.ring(_native.SLOT_ROOT)
    return True


def _stand_by(job: Job, orders: int, *, from_template: bool) -> bool:
    """Gets ready as far as it goes, then sleeps until the root names the slot to take; False when it names none."""
    global _waiting_loop
    try:
        _settle_in(job, from_template=from_template)
        _open_stack_file(job)
        if job.spec.get("seed") is None:
            inherit.reseed(None, 0, 0)
        if not job.spec.get("loop"):
            _waiting_loop = _make_loop(job)
        _native.prepare_beat()
    except BaseException:
        return False  # a worker that is started when it is needed will say why
    _native.owner_self()  # looked up once, both: they take a look at /proc
    _native.usable_cpus()
    _native.set_process_name(f"shmrt-standby {job.spec['name']}")
    gc.collect()
    gc.freeze()
    index, epoch, *_ = _numbers(bytes(20))
    _is_wanted(job.slots, index, epoch)  # a rehearsal: what both need is in this process's own memory when it counts
    message = os.read(orders, 4096)  # shorter than what a pipe takes at once, so it comes whole
    if not message:
        return False
    job.index, job.epoch, job.pair, job.number, job.restarts = _numbers(message)
    signals.leave_on_term(job)
    return True


def _numbers(message: bytes) -> list[int]:
    return memoryview(message).cast("I").tolist()


def _is_wanted(slots: _native.Slots, index: int, epoch: int) -> bool:
    """False: given up by the root meanwhile."""
    return slots.epoch(index) == epoch and slots.state(index) == _native.SLOT_STARTING


def _make_loop(job: Job) -> Any:
    spec = job.spec
    options: dict[str, object] = {"worker": job.number, "pool": spec["name"], "hub_slot": job.hub_slot}
    options.update(spec.get("options", {}))  # type: ignore[call-overload]
    name = spec.get("loop")
    if not name:
        return _native.WorkerLoop(job.slots, job.lanes_fd, job.arena_fd, options)
    sys.path.extend(spec["inherit"]["path"])  # type: ignore[index]
    module, _, attribute = str(name).partition(":")
    made = getattr(__import__(module, fromlist=[attribute]), attribute)
    return made(job.slots, job.index, job.lanes_fd, job.pair, job.arena_fd, options)


def _settle_in(job: Job, *, from_template: bool) -> None:
    """What needs no slot: everything about this process that is the program's choice, but for its code."""
    gc.enable()
    if from_template:
        import atexit

        atexit._clear()  # what the template registered is the template's to run
    else:
        die_first()
        inherit.apply(job.spec["inherit"], job.spec.get("threads_per_worker"))  # type: ignore[arg-type]
        clean_main()
        watch_logging(job.spec)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a kill must not eat whole lines


def _prepare(job: Job) -> None:
    spec = job.spec
    stood_by = _stack_fd >= 0
    _open_stack_file(job)
    _turn_to_own_stack(job)
    if not stood_by or spec.get("seed") is not None:
        inherit.reseed(spec.get("seed"), job.number, job.restarts)  # type: ignore[arg-type]
    initializer = spec.get("initializer")
    if initializer:
        import pickle

        function, arguments = pickle.loads(initializer)  # type: ignore[arg-type]
        function(*arguments)


def _open_stack_file(job: Job) -> None:
    """Python stacks, on SIGUSR1 and on a fatal signal, go where the program can read them after the death. Who has no
    slot yet has no place there: its position is the end of the file, which cannot grow."""
    global _stack_fd
    if job.stacks_fd < 0 or _stack_fd >= 0:
        return
    import faulthandler

    try:
        _stack_fd = os.open(f"/proc/self/fd/{job.stacks_fd}", os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return  # no /proc: a second description with a position of its own cannot be had
    os.lseek(_stack_fd, 0, os.SEEK_END)
    faulthandler.enable(file=_stack_fd, all_threads=True)
    faulthandler.register(signals.USR1, file=_stack_fd, all_threads=True, chain=False)


def _turn_to_own_stack(job: Job) -> None:
    if _stack_fd < 0:
        return
    start = job.pair * STACK_BYTES
    if os.pread(_stack_fd, 1, start) not in (b"", b"\0"):
        os.pwrite(_stack_fd, bytes(STACK_BYTES), start)  # of the worker before
    os.lseek(_stack_fd, start, os.SEEK_SET)


def clean_main() -> None:
    """A `__main__` without the root's names; the program's own travels by value."""
    main = type(sys)("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.modules["__main__"] = main


# ---- logging ------------------------------------------------------------------------------------------------------
def watch_logging(spec: dict[str, object]) -> None:
    """Sends what is logged in this process to the program. `logging` gets the handler when somebody first imports it:
    importing it up front would cost each worker more than its whole start."""
    level = spec.get("log_level")
    after_import("logging", lambda logging: _add_handler(logging, level))


def _add_handler(logging: Any, level: Any) -> None:
    class ToProgram(logging.Handler):  # type: ignore[misc]
        """Each record becomes plain values; the program makes a record of them again and handles it."""

        def emit(self, record: Any) -> None:
            loop = _loop
            if loop is None:
                return  # a template: nobody has asked for its work yet
            try:
                text = record.getMessage()
                if record.exc_info and not record.exc_text:
                    record.exc_text = logging._defaultFormatter.formatException(record.exc_info)
                row = (record.name, record.levelno, record.created, record.pathname, record.lineno, record.funcName)
                loop.log((*row, text, record.exc_text, record.threadName, os.getpid()))
            except Exception:
                self.handleError(record)

    root = logging.getLogger()
    root.addHandler(ToProgram())
    if level is not None:
        root.setLevel(level)


# ---- the end ------------------------------------------------------------------------------------------------------
def _exit_code(error: SystemExit) -> int:
    """What an interpreter makes of it: None is 0, a number itself, anything else is shown and is 1."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    try:
        sys.stderr.write(f"{error.code}\n")
    except Exception:
        pass  # its __str__ raises, or nobody reads
    return 1


def _leave(spec: dict[str, object]) -> int:
    """worker_exit, then everything that a normal exit of an interpreter does for its user."""
    code = 0
    hook = spec.get("worker_exit")
    if hook:
        import pickle

        try:
            _loop.exit_value(pickle.loads(hook)())  # type: ignore[arg-type]
        except BaseException:
            sys.excepthook(*sys.exc_info())
            code = 1
    threading = sys.modules.get("threading")
    if threading is not None:
        threading._shutdown()
    import atexit

    atexit._run_exitfuncs()
    _end_quietly()
    return code


def _end_quietly() -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass  # a closed pipe: nobody reads it

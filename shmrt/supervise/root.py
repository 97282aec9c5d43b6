"""The root supervisor's first steps: from its entry to the fork of the first workers, then its loop.

The program waits for the first result from here on, so nothing is imported before the first workers are forked but what
that takes. Their number is what the program has asked for by then. Then the root leaves the CPUs to them until all of
them serve, or anything else happens; imports its loop (`root_loop.py`); and looks at once what became of them. A root
that cannot import the rest ends, as one that dies, and everything that it has started with it.

It imports no user code and holds no user object; what it starts functions from are bytes that it never reads. `typing`,
`signal`, `socket`, `json` and the like stay out of its start, which is what makes it ready in a few milliseconds.
"""

from __future__ import annotations

import gc
import os
import sys
from time import monotonic_ns

from shmrt import _native
from shmrt.process import signals
from shmrt.process.spawn import die_first
from shmrt.supervise.crew import Crew
from shmrt.supervise.protocol import Channel
from shmrt.supervise.staff import Staff
from shmrt.supervise.starting import Starting

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["main"]

_CONTROL, _PROGRAM = 3, 4  # the descriptors it is started with (`launch.py`)
_PATIENCE_NS = 10_000_000  # so long the loop is not missed: whatever happens ends the wait


def main() -> None:
    """Entered by `python -S -P -c` with the program's pid as argument and the descriptors of `launch.py`."""
    os.closerange(_PROGRAM + 1, 1 << 30)  # whatever the program had made inheritable
    os.chdir("/")
    _native.set_process_name("shmrt-root")
    die_first(900)  # after the workers, before the program, which can start another root
    _native.set_child_subreaper(True)
    # Forking beside the death watch, which holds no lock, is meant; newer interpreters would warn of it.
    import _warnings

    _warnings.filters.insert(0, ("ignore", None, DeprecationWarning, None, 0))
    if os.getppid() != int(sys.argv[1]):
        os._exit(0)  # the program died before this line
    for fd in (_CONTROL, _PROGRAM):
        os.set_inheritable(fd, False)
    channel = Channel(_CONTROL)
    messages = channel.receive()
    while not messages and not channel.closed:
        _native.poll([(_CONTROL, _native.POLLIN)], -1)
        messages = channel.receive()
    if not messages:
        os._exit(0)  # the program died, or could not make the memory
    (_, oom_kills), fds = messages.pop(0)
    slots = _native.Slots.attach(fds[0])
    os.close(fds[0])
    signal_pipe, signal_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signals.for_root(signal_in)
    staff = Staff(channel, slots, fds[1] if len(fds) > 1 else -1)
    starting = Starting(staff)
    slots.set_process(_native.SLOT_ROOT, staff.pid)
    slots.hold_death_mutex(_native.SLOT_ROOT)
    slots.ready(_native.SLOT_ROOT)
    # Before any worker: where threads run out, that is the start failure of a worker and not the end of this process.
    events = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    watch = _native.DeathWatch(slots, events)
    gc.freeze()  # without a collection, for which the first workers would wait; a quiet moment makes up for it
    start_first(staff, starting, messages)
    leave_cpus_to_first(staff, events, signal_pipe)

    from shmrt.supervise.root_loop import Root

    root = Root(staff, starting, _PROGRAM, events, signal_pipe, watch, oom_kills)
    gc.freeze()
    gc.enable()
    root.obey(messages)
    root.run()
    os._exit(0)


def start_first(staff: Staff, starting: Starting, messages: list[tuple[tuple[Any, ...], list[int]]]) -> None:
    """Takes pools without `preload` from the head of `messages`, and forks their workers. What is due later, and what
    follows from a failure, is the loop's to see."""
    now = monotonic_ns()
    while messages:
        (verb, *rest), fds = messages[0]
        if verb != "add_pool" or rest[1].get("preload"):
            return
        del messages[0]
        id, spec, first, count = rest
        crew = staff.crews[id] = Crew(id, spec, first, count, fds, staff.channel)
        for _ in range(crew.keeper.starts(now, alive=crew.alive)):
            if not starting.start(crew, now):
                break


def leave_cpus_to_first(staff: Staff, events: int, signal_pipe: int) -> None:
    """Sleeps until all of the first workers serve, one is dead, the program says something, or it takes too long."""
    slots = [one.slot for crew in staff.crews.values() for one in crew.workers.values()]
    end = monotonic_ns() + _PATIENCE_NS
    while slots and (left := end - monotonic_ns()) > 0:
        # Looked at after each clearing of `events`: what happens later is written there again.
        looks = staff.slots.scan(slots)
        starts = any(state == _native.SLOT_STARTING for state, _ in looks)
        if not starts or any(abandoned for _, abandoned in looks):
            return
        sources = [(fd, _native.POLLIN) for fd in (events, _CONTROL, _PROGRAM, signal_pipe)]
        if [fd for fd, _ in _native.poll(sources, left // 1_000_000 + 1)] != [events]:
            return
        os.eventfd_read(events)

"""Sends the faults of a chaos run: SIGKILL and SIGSTOP to workers of one runtime, SIGKILL to its root, and none else.

Victims are workers that the runtime's own root has said are ready. A kill is ordered from the root, by slot and life,
so no item is blamed for it; with `outside` it is a signal that the runtime knows nothing of, like the kernel's when
memory runs out. Signals go through a pidfd, after a look whether that process is a child of this runtime's root (the
root itself: of this program), so a pid that was used again is not hit. A stopped worker is continued when its time is
over, and at the end; should this program be killed, its workers end with it, since SIGKILL ends stopped ones as well.

`hear` belongs into `Runtime(on_event=)`; deaths and replacements are timed there, as they happen.
"""

from __future__ import annotations

import heapq
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from shmrt import _native
from shmrt.decide.chaos_faults import KINDS, Fault, choose, plan
from shmrt.decide.chaos_recovery import Recovery

__all__ = ["Striker", "parent_of", "pidfd_of_child"]

Life = tuple[int, int]
"""A slot of the process table, and which of its lives."""


def parent_of(pid: int) -> int | None:
    """Of a process that is there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def pidfd_of_child(pid: int, parent: int | None) -> int | None:
    """A descriptor of the process, if it is a child of `parent`: from then on nobody else can be meant by it."""
    if not parent or pid <= 0:
        return None
    try:
        fd = _native.pidfd_open(pid)
    except OSError:
        return None
    if parent_of(pid) == parent:  # looked at after opening: were it another process by now, a signal would reach nobody
        return fd
    os.close(fd)
    return None


class Striker:
    """A thread that follows the plan for `duration` seconds from `start`. A context manager: left, nothing is stopped
    any more and no fault follows."""

    def __init__(self, rates: dict[str, float], seed: int, duration: float, *, outside: bool = False) -> None:
        draws: Any = {kind: random.Random(f"{seed} {kind}") for kind in KINDS}
        self._plan: Iterator[Fault] = plan(draws, **rates)
        self._planned = any(rates.values())
        self._duration, self._outside = duration, outside
        self._runtime: Any = None
        self._lock = threading.Lock()
        self._pids: dict[Life, int] = {}
        self._ready: dict[Life, int] = {}  # and its pool
        self._hit: set[Life] = set()
        self._root_killed: float | None = None  # when, until its end is told
        self._stopped: dict[Life, tuple[int, float]] = {}  # pidfd, since
        self._resumes: list[tuple[float, Life]] = []
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.over = threading.Event()
        """No fault will follow."""
        self.recovery = Recovery()
        self.kills = self.stops = self.roots = self.missed = 0
        """`missed`: faults that found nobody to hit."""
        self.stopped_s = 0.0

    # ---- what the runtime tells, in its thread
    def hear(self, event: Any) -> None:
        """An event of the runtime."""
        if not isinstance(event, tuple):
            return
        verb, now = event[0], time.monotonic()
        with self._lock:
            if verb == "started":
                self._pids[event[1], event[2]] = event[3]
            elif verb == "ready":
                pool = self._pool_of(event[1])
                if pool is not None:
                    self._ready[event[1], event[2]] = pool
                    self.recovery.ready(now, pool=pool)
            elif verb == "root_lost":
                # What the dead one still had to say has been heard: whoever becomes ready now is the next one's.
                at, self._root_killed = self._root_killed, None
                if at is not None:
                    for pool in self._pools():
                        self.recovery.died(at, pool=pool.number, root=True)
            elif verb == "gone":
                life = (event[1], event[2])
                self._ready.pop(life, None)
                self._pids.pop(life, None)
                self._hit.discard(life)

    def output(self) -> None:
        """An output has reached the consumer."""
        with self._lock:
            self.recovery.output(time.monotonic())

    def run_ended(self) -> None:
        """A run's pools are closed."""
        with self._lock:
            self.recovery.run_ended()

    def _pools(self) -> list[Any]:
        return [] if self._runtime is None else list(self._runtime._pools.values())

    def _pool_of(self, slot: int) -> int | None:
        return next((pool.number for pool in self._pools() if pool.first <= slot < pool.first + pool.count), None)

    # ---- the thread
    def attach(self, runtime: Any) -> None:
        """Whose processes are meant."""
        self._runtime = runtime

    def start(self) -> None:
        """Lets the plan's time begin; idempotent. Where no fault is planned it is over at once."""
        if not self._planned:
            self.over.set()
        elif self._thread is None:
            self._thread = threading.Thread(target=self._strike, name="shmrt-chaos", daemon=True)
            self._thread.start()

    def halt(self) -> None:
        """No more faults, without waiting."""
        self._end.set()

    def stop(self) -> None:
        """Ends the faults; returns when every stopped worker goes on."""
        self._end.set()
        if self._thread is not None:
            self._thread.join()
        self.over.set()

    def __enter__(self) -> Striker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _strike(self) -> None:
        began = time.monotonic()
        try:
            for fault in self._plan:
                if fault.at > self._duration or not self._wait_until(began + fault.at):
                    break
                self._carry_out(fault)
            self._wait_until(began + self._duration)
        finally:
            self._resume(None)
            self.over.set()

    def _wait_until(self, when: float) -> bool:
        """False when it is over; workers whose time is up go on meanwhile."""
        while not self._end.is_set():
            now = time.monotonic()
            self._resume(now)
            if now >= when:
                return True
            until = min(when, self._resumes[0][0]) if self._resumes else when
            self._end.wait(max(0.0, until - now))
        return False

    def _carry_out(self, fault: Fault) -> None:
        if fault.kind == "root":
            self._kill_root()
            return
        with self._lock:
            there = sorted(life for life in self._ready if life not in self._hit and life in self._pids)
            if fault.kind == "stop":
                there = [life for life in there if life not in self._stopped]
            life = choose(fault.pick, there)
            if life is None:
                self.missed += 1
                return
            pid, pool = self._pids[life], self._ready[life]
        if fault.kind == "kill":
            self._kill(life, pid, pool)
        else:
            self._halt(life, pid, fault.seconds)

    def _kill(self, life: Life, pid: int, pool: int) -> None:
        now = time.monotonic()
        if self._outside:
            fd = pidfd_of_child(pid, self._runtime.pid)
            sent = fd is not None and _native.pidfd_signal(fd, signal.SIGKILL)
            if fd is not None:
                os.close(fd)
        else:
            try:
                self._runtime._link.kill(*life, _native.KILL_CHAOS)
                sent = True
            except Exception:  # the runtime is closing
                sent = False
        with self._lock:
            if sent:
                self.kills += 1
                self._hit.add(life)
                self.recovery.died(now, pool=pool)
            else:
                self.missed += 1

    def _halt(self, life: Life, pid: int, seconds: float) -> None:
        fd = pidfd_of_child(pid, self._runtime.pid)
        if fd is None or not _native.pidfd_signal(fd, signal.SIGSTOP):
            if fd is not None:
                os.close(fd)
            self.missed += 1
            return
        now = time.monotonic()
        self.stops += 1
        self._stopped[life] = (fd, now)
        heapq.heappush(self._resumes, (now + seconds, life))

    def _resume(self, now: float | None) -> None:
        """Continues those whose time is up; all of them for None."""
        while self._resumes and (now is None or self._resumes[0][0] <= now):
            _, life = heapq.heappop(self._resumes)
            fd, since = self._stopped.pop(life)
            _native.pidfd_signal(fd, signal.SIGCONT)
            os.close(fd)
            self.stopped_s += time.monotonic() - since

    def _kill_root(self) -> None:
        fd = pidfd_of_child(self._runtime.pid or 0, os.getpid())
        with self._lock:  # before its end can be told
            self._root_killed = time.monotonic()
            if fd is not None and _native.pidfd_signal(fd, signal.SIGKILL):
                self.roots += 1
                self._hit.update(self._ready)
            else:
                self._root_killed = None
                self.missed += 1
        if fd is not None:
            os.close(fd)

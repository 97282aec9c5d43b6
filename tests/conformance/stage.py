"""A program's side of the process layer for tests: slots, link, recorded events, and a check that nothing stays."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from shmrt import _native
from shmrt.process import death
from shmrt.supervise.link import RootLink, make_spec

HERE = str(Path(__file__).parent)


class Stage:
    def __init__(self, slots: int = 24, **link):
        self.slots = _native.Slots.create(slots)
        self.lanes = _native.memfd_create("lanes", 4096)
        self.events: list[tuple] = []
        self.changed = threading.Condition()
        self.downs: list[str] = []
        self.link = RootLink.start(lambda: (self.slots, -1), on_event=self._event, on_down=self.downs.append, **link)
        self.pidfds: dict[int, int] = {}

    def _event(self, event):
        if event[0] == "started":
            try:
                self.pidfds[event[3]] = _native.pidfd_open(event[3])
            except ProcessLookupError:
                pass
        if event[0] == "gone":
            self.last_info = self.slots.info(event[1])
            self.slots.free(event[1])
            self.link.freed()
        with self.changed:
            self.events.append((*event, self.last_info["kill_reason"]) if event[0] == "gone" else event)
            self.changed.notify_all()

    def pool(self, workers=2, id=1, first=2, count=10, **more):
        more.setdefault("loop", "process_loop:ParkLoop")
        self.link.add_pool(id, make_spec("p", workers, **more), first_slot=first, slot_count=count, lanes_fd=self.lanes)

    def seen(self, *start, after=0):
        return [event for event in self.events[after:] if event[: len(start)] == start]

    def wait(self, *start, times=1, after=0):
        """The `times`-th event that starts like this; the watchdog is generous and never the point of a test."""
        with self.changed:
            if not self.changed.wait_for(lambda: len(self.seen(*start, after=after)) >= times, 60):
                raise AssertionError(f"no {times} x {start} in {self.events}")
            return self.seen(*start, after=after)[times - 1]

    def mark(self):
        return len(self.events)

    def pid(self, slot):
        return self.slots.info(slot)["pid"]

    def ready_slots(self):
        return [i for i in range(2, self.slots.count) if self.slots.state(i) == _native.SLOT_READY]

    def close(self, grace=10.0):
        root = self.link.root_pid
        self.link.close(grace)
        assert not os.path.exists(f"/proc/{root}/exe"), "the root is still there"
        for pidfd in self.pidfds.values():
            assert _native.pidfd_is_gone(pidfd), "a worker outlived its root"
            os.close(pidfd)
        self.pidfds.clear()
        left = death.kill_session(root)
        assert not left, f"{len(left)} processes of the root's session were left"
        os.close(self.lanes)


def gone(pid: int) -> bool:
    fields = death.stat_fields(pid)
    return fields is None or fields[0] in "ZX"


def wait_gone(pid: int) -> None:
    try:
        pidfd = _native.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert death.wait_gone([pidfd], 60), f"process {pid} is still alive"

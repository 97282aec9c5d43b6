"""A worker that is forked and cannot be watched, since its root has no descriptor left for its pidfd.

It may write in its slot until the kernel has torn it down, so the slot stays its own until then: a second worker in it
would answer the first one's tasks.
"""

from __future__ import annotations

import errno
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from shmrt import _native
from shmrt.supervise.crew import Worker
from shmrt.supervise.protocol import Channel
from shmrt.supervise.starting import Starting


class Sent(list[Any]):
    def send(self, message: Any) -> None:
        self.append(message)


def forked() -> int:
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    return pid


def ready_to_start(monkeypatch: pytest.MonkeyPatch, failures: int) -> tuple[Starting, Any, list[int]]:
    """A worker with a channel, in a root whose next calls of pidfd_open fail."""
    real, asked = _native.pidfd_open, []

    def pidfd_open(pid: int) -> int:
        asked.append(pid)
        if len(asked) <= failures:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(pid)

    monkeypatch.setattr(
        "shmrt.supervise.starting._native", SimpleNamespace(**vars(_native) | {"pidfd_open": pidfd_open})
    )
    slots = SimpleNamespace(set_process=lambda slot, pid: None)
    staff: Any = SimpleNamespace(slots=slots, workers={})
    ours, theirs = _native.socketpair(False)
    os.close(theirs)
    one = Worker(SimpleNamespace(channel=Sent(), id=1), slot=5, epoch=2, number=0, now_ns=0)  # type: ignore[arg-type]
    one.channel = Channel(ours)
    return Starting(staff), one, asked


def end(pid: int) -> int:
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def test_its_channel_gives_way_and_it_ends_as_any_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, one, asked = ready_to_start(monkeypatch, failures=1)
    pid = forked()
    try:
        starting.started(one, pid)
        assert asked == [pid, pid] and one.channel is None
        assert starting.staff.workers == {pid: one} and one.dying
        assert "cannot be watched" in one.unable and "Too many open files" in one.unable
        _native.poll([(one.pidfd, _native.POLLIN)], -1)  # the kernel's word: it was killed
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    except BaseException:
        end(pid)
        raise
    finally:
        if one.pidfd >= 0:
            os.close(one.pidfd)


def test_where_even_that_does_not_help_the_root_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, one, _ = ready_to_start(monkeypatch, failures=2)
    pid = forked()
    try:
        with pytest.raises(OSError, match="Too many open files"):
            starting.started(one, pid)
    finally:
        end(pid)


def test_with_room_it_keeps_its_channel(monkeypatch: pytest.MonkeyPatch) -> None:
    starting, one, asked = ready_to_start(monkeypatch, failures=0)
    pid = forked()
    try:
        starting.started(one, pid)
        assert asked == [pid] and one.channel is not None and not one.dying and one.unable is None
    finally:
        assert end(pid) == signal.SIGKILL
        one.close_channel()
        os.close(one.pidfd)

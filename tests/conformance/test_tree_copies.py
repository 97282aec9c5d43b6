"""Forks that a child's own code makes and that come back from it: they serve nobody and speak for nobody."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tree_kit import PATIENCE_S, Journal, alive, until, wait_for_ever

from shmrt import Child, Runtime, Server, Supervisor, call, cast, monitor, whereis


class Forking(Server):
    """Forks in a call, a cast, or handle_info; the copy comes back like the original."""

    def init(self, journal: Journal) -> None:
        self.journal = journal

    @call
    def fork(self, *, fail: bool = False) -> int:
        return self._fork(fail)

    @cast
    def fork_later(self) -> None:
        self._fork(False)

    def handle_info(self, message: object) -> None:
        self._fork(False)

    @call
    def pid_of(self) -> int:
        return os.getpid()

    def _fork(self, fail: bool) -> int:
        pid = os.fork()
        if not pid:
            self.journal.note("copy", os.getpid())
            if fail:
                raise SystemExit(3)
        return pid or os.getpid()

    def terminate(self, reason: object) -> None:
        self.journal.note("terminate", os.getpid())


def fork_and_return(journal: Journal) -> None:
    """The original stays, the copy comes back."""
    if os.fork():
        wait_for_ever()
    journal.note("copy", os.getpid())


def copies(journal: Journal, count: int) -> list[int]:
    until(lambda: len(journal.lines("copy")) >= count)
    return [int(line.split()[1]) for line in journal.lines("copy")]


@pytest.mark.parametrize("how", ["fork", "fork_fail", "fork_later", "info"])
def test_a_copy_of_a_server_serves_nobody(tmp_path: Path, how: str) -> None:
    """It ends when it comes back from the handler, and the server answers as before."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(Forking, journal, name="forking")])):
        ref = whereis("forking")
        own = ref.call("pid_of", timeout=PATIENCE_S)
        for _ in range(5):
            if how == "info":
                ref.info("fork")
            elif how == "fork_later":
                ref.cast("fork_later")
            else:
                ref.call("fork", fail=how == "fork_fail", timeout=PATIENCE_S)
        for pid in copies(journal, 5):
            until(lambda pid=pid: not alive(pid))
        assert {ref.call("pid_of", timeout=PATIENCE_S) for _ in range(20)} == {own}
        assert not journal.lines("terminate")


def test_a_copy_of_a_function_does_not_speak_for_it(tmp_path: Path) -> None:
    """Its return is not the child's end."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(fork_and_return, journal, id="one", restart="transient")])) as runtime:
        supervisor = runtime.supervisor()
        pid = supervisor.which_child("one")[1]
        with monitor(supervisor.child("one")) as watch:
            [copy] = copies(journal, 1)
            until(lambda: not alive(copy))
            assert supervisor.which_child("one")[1] == pid and alive(pid)
            os.kill(pid, 9)
            down = watch.wait(PATIENCE_S)
        assert down is not None and down.reason == "killed", "not the copy's normal end"

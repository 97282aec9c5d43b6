"""Whatever ends a pool that is a child of a tree, the program keeps nothing of it: no thread, no memory, no workers."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
from tree_kit import PATIENCE_S, Journal, found_again, kill, until

from shmrt import Child, DynamicSupervisor, Pool, Runtime, StartError, Supervisor, whereis
from shmrt.errors import PoolBroken, WorkerCrashed
from shmrt.in_program import InProgram


def doors() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("shmrt-door-")]


def crash(*_: Any) -> None:
    os.abort()


class Refuse:
    """A child that cannot be unpickled."""

    def __reduce__(self) -> Any:
        return crash_in_start, ()

    def __call__(self) -> None: ...


def crash_in_start() -> None:
    raise OSError("it does not start")


def stay(journal: Journal) -> None:
    journal.note("there", os.getpid())
    signal.pause()


def memories() -> set[tuple[str, int]]:
    """This process's open process tables and mailboxes."""
    gc.collect()
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists
            target = os.readlink(f"/proc/self/fd/{entry}")
            if target.startswith(("/memfd:shmrt-slots", "/memfd:shmrt-mailbox")):
                found.add((target, os.stat(f"/proc/self/fd/{entry}").st_ino))
    return found


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:
    before = memories()
    yield
    until(lambda: not doors(), doors)
    until(lambda: not memories() - before, memories)


def test_a_tree_that_gives_up_takes_its_pool_along() -> None:
    tree = Supervisor([Child(Pool, 1, name="work"), Child(crash, id="bad", shutdown="brutal_kill")], max_restarts=0)
    with Runtime(tree) as runtime:
        assert runtime.wait(PATIENCE_S) == "shutdown"


def test_a_pool_whose_tree_could_not_start() -> None:
    """It is open already when the next child fails."""
    with pytest.raises(StartError):
        Runtime(Supervisor([Child(Pool, 1, name="work"), Child(Refuse(), id="bad")])).start()


def test_a_runtime_that_ends_in_the_death_of_its_root() -> None:
    """Nobody closes the pool then: the dead root cannot ask for it, the next one is killed as well."""
    runtime = Runtime(Supervisor([Child(Pool, 1, name="work")]))
    with runtime:
        root = runtime.pid
        assert root is not None and doors()
        kill(root, signal.SIGSTOP)
        threading.Thread(target=kill, args=(root,)).start()


def test_a_dynamic_pool_ends_with_its_root(tmp_path: Path) -> None:
    """The next root starts the trees afresh, without dynamic children: their tasks fail, their workers go."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(DynamicSupervisor(name="pools")), Child(Pool, 1, name="steady")])) as runtime:
        root, steady = runtime.pid, whereis("steady")
        assert root is not None
        runtime.supervisor("pools").start_child(Child(Pool, 1, name="extra"))
        extra = whereis("extra")
        running = extra.submit(stay, journal)
        until(lambda: journal.lines("there"))
        kill(root)
        found_again(runtime, root)
        assert isinstance(running.exception(PATIENCE_S), (PoolBroken, WorkerCrashed))
        until(lambda: doors() == ["shmrt-door-steady"], doors)
        assert whereis("steady") is steady and steady.submit(abs, -1).result(PATIENCE_S) == 1
        until(lambda: whereis("extra") is None)
        runtime.supervisor("pools").start_child(Child(Pool, 1, name="extra"))  # its name is free again
        assert whereis("extra").submit(abs, -2).result(PATIENCE_S) == 2


def test_an_end_while_it_is_being_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its supervisor gives it up just when its worker is there."""
    reached, go = threading.Event(), threading.Event()
    real = InProgram._open_door

    def slow(self: InProgram, data: dict[str, Any]) -> None:
        reached.set()
        assert go.wait(PATIENCE_S)
        real(self, data)

    monkeypatch.setattr(InProgram, "_open_door", slow)
    with Runtime(Supervisor([Child(abs, -1, id="other", restart="temporary")])) as runtime:
        failed: list[BaseException] = []

        def start() -> None:
            try:
                runtime.supervisor().start_child(Child(Pool, 1, name="late", start_timeout=0.5, shutdown="brutal_kill"))
            except StartError as error:
                failed.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        assert reached.wait(PATIENCE_S)
        thread.join()
        assert failed
        until(lambda: not [name for name in (t.name for t in threading.enumerate()) if name == "shmrt-close-late"])
        go.set()
        until(lambda: not [name for name in (t.name for t in threading.enumerate()) if name == "shmrt-open-late"])
        assert not doors()

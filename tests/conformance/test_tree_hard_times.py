"""What must not end more than itself: a full registry, no descriptors, an answer that ends its reader, a root that does
not run, and whatever the dead had in their hands."""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import tree_kit
from tree_kit import kill, until

from shmrt import (
    Child,
    Overloaded,
    Pool,
    Runtime,
    Server,
    ServerDown,
    StartError,
    Supervisor,
    _native,
    call,
    join,
    monitor,
    start,
    whereis,
)


class Exits:
    """Ends whoever unpickles it, unless that minds."""

    def __reduce__(self) -> Any:
        return sys.exit, (7,)


class Servant(Server):
    def init(self, seconds: float = 0.0) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.001)

    @call
    def echo(self, value: Any) -> Any:
        return value

    @call
    def exits(self) -> Any:
        return Exits()

    @call
    def leave(self, code: int) -> None:
        sys.exit(code)


def one(**more: Any) -> Supervisor:
    return Supervisor([Child(Servant, name="one")], **{"max_restarts": 1000, **more})


# ---- the registry ----------------------------------------------------------------------------------------------------
def test_a_full_registry_is_told_to_whoever_wants_a_name() -> None:
    with Runtime(one()) as runtime:
        root, ref = runtime.pid, whereis("one")
        with pytest.raises(Overloaded, match="1024 names"):
            for number in range(1025):
                join(f"group {number}", ref)
        with pytest.raises(StartError, match="Overloaded"):
            start(Servant, name="two")
        assert runtime.pid == root and ref.echo(1) == 1
        assert whereis("two") is None
        kill(ref.pid)  # its groups go with it, and its own name is taken again
        assert until(lambda: whereis("one")).echo(2) == 2
        with start(Servant, name="two") as two:
            assert two.echo(3) == 3 and whereis("two") == two
        assert runtime.pid == root


def test_a_name_that_fits_no_registry_is_refused_before_anybody_is_asked() -> None:
    with Runtime(one()) as runtime:
        root = runtime.pid
        for name in ("x" * 180, "é" * 90):
            with pytest.raises(ValueError, match="at most 179 bytes"):
                start(Servant, name=name)
            with pytest.raises(ValueError, match="at most 179 bytes"):
                join(name, whereis("one"))
        with start(Servant, name="x" * 179) as longest:
            assert whereis("x" * 179) == longest
            join("é" * 89, longest)
        assert runtime.pid == root


# ---- descriptors -----------------------------------------------------------------------------------------------------
def test_a_root_without_descriptors_starts_no_template_and_lives() -> None:
    with Runtime(one()) as runtime:
        root = runtime.pid
        assert root is not None
        before = resource.prlimit(root, resource.RLIMIT_NOFILE)
        resource.prlimit(root, resource.RLIMIT_NOFILE, (len(os.listdir(f"/proc/{root}/fd")) + 2, before[1]))
        pool = Pool(1, runtime=runtime, preload=["json"])
        future = pool.submit(abs, -1)
        with pytest.raises(Exception, match=r"Too many open files.*ulimit -n"):
            future.result(tree_kit.PATIENCE_S)
        resource.prlimit(root, resource.RLIMIT_NOFILE, before)
        pool.shutdown()
        assert runtime.pid == root and whereis("one").echo(1) == 1


# ---- threads of the program ------------------------------------------------------------------------------------------
def test_an_answer_that_exits_its_reader_is_one_failed_request() -> None:
    with Runtime(one()):
        ref = whereis("one")
        exits = ref.request("exits")
        with pytest.raises(SystemExit):
            exits.result(tree_kit.PATIENCE_S)
        assert ref.request("echo", 1).result(tree_kit.PATIENCE_S) == 1


def test_a_callback_that_exits_holds_up_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: told.append(kind))
    with Runtime(one()):
        ref = whereis("one")
        gate = threading.Event()
        ref.request("echo", 0).add_done_callback(lambda _: gate.wait(tree_kit.PATIENCE_S) and sys.exit(3))
        gate.set()
        assert ref.request("echo", 1).result(tree_kit.PATIENCE_S) == 1


def test_an_on_event_that_exits_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: told.append(kind))

    def exits(event: Any) -> None:
        sys.exit(3)

    with Runtime(one(), on_event=exits):
        ref = whereis("one")
        kill(ref.pid)
        assert ref.echo(1) == 1
        until(lambda: told)
    assert set(told) == {SystemExit}


def blocks_of_others() -> int:
    """The arena is this process's default one, in which earlier tests may have left something."""
    gc.collect()
    arena = _native.Arena.default()
    arena.reclaim_dead()
    return arena.stats()["blocks_used"]


# ---- what the dead held ----------------------------------------------------------------------------------------------
def test_blocks_of_a_killed_server_are_free_when_it_is_gone() -> None:
    before = blocks_of_others()
    with Runtime(one()) as runtime:
        ref, pid = whereis("one"), 0
        for _ in range(10):
            # a caller may know of a death before the root has told who runs now
            pid = tree_kit.new_pid(runtime.supervisor(), "one", pid)
            waiting = [ref.request("echo", bytes(1 << 20)) for _ in range(3)]
            kill(pid)
            for future in waiting:
                try:
                    future.result(tree_kit.PATIENCE_S)
                except ServerDown:
                    pass
        del future, waiting
        ref.echo(None)  # the server has let go of its last argument
        until(lambda: runtime._arena.stats()["blocks_used"] <= before, lambda: (before, runtime._arena.stats()))


def test_blocks_of_what_died_with_the_root_are_free() -> None:
    before = blocks_of_others()
    with Runtime(one()) as runtime:
        for _ in range(3):
            root, ref = runtime.pid, until(lambda: whereis("one"))
            held = [ref.request("echo", bytes(1 << 20)) for _ in range(3)]
            kill(root)
            for future in held:
                try:
                    future.result(tree_kit.PATIENCE_S)
                except ServerDown:
                    pass
            tree_kit.found_again(runtime, root)
        del future, held
        until(lambda: whereis("one")).echo(None)
        until(lambda: runtime._arena.stats()["blocks_used"] <= before, lambda: (before, runtime._arena.stats()))


# ---- references ------------------------------------------------------------------------------------------------------
def test_a_reference_goes_on_after_a_stop_and_a_new_start() -> None:
    with Runtime(one()) as runtime:
        supervisor, ref = runtime.supervisor(), whereis("one")
        for turn in range(3):
            supervisor.terminate_child("one")
            for use in (lambda: ref.echo(1), lambda: ref.request("echo", 1).result()):
                with pytest.raises(ServerDown):
                    use()
            supervisor.restart_child("one")
            assert ref.echo(turn) == turn


def test_threads_may_share_a_reference_while_its_child_comes_and_goes() -> None:
    with Runtime(one()) as runtime:
        supervisor, ref = runtime.supervisor(), whereis("one")
        over, wrong = threading.Event(), []

        def use() -> None:
            while not over.is_set():
                try:
                    ref.request("echo", 1).result(tree_kit.PATIENCE_S)
                    ref.cast("echo", 1)
                    ref.echo(1)
                except ServerDown:
                    pass
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(15):
            supervisor.terminate_child("one")
            supervisor.restart_child("one")
        over.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert ref.echo(1) == 1


# ---- time and ends ---------------------------------------------------------------------------------------------------
def test_a_root_that_was_stopped_judges_no_start_by_that_time(tmp_path: Path) -> None:
    """A child gets ready while its root is stopped, for longer than the start may take."""
    journal = tree_kit.Journal(tmp_path / "journal")
    slow = Child(tree_kit.idle, tree_kit.Hold(journal, "slow", "go"), id="slow", start_timeout=9.0)
    with Runtime(one()) as runtime:
        root, found = runtime.pid, []
        assert root is not None

        def begin() -> None:
            try:
                found.append(runtime.supervisor().start_child(slow))
            except StartError as error:
                found.append(error)

        thread = threading.Thread(target=begin)
        thread.start()
        until(lambda: journal.lines("held"))
        os.kill(root, signal.SIGSTOP)
        end = time.monotonic() + 10.5  # the time out, and more than a second on top
        while time.monotonic() < end:
            time.sleep(0.001)
        journal.note("go")
        os.kill(root, signal.SIGCONT)
        thread.join()
        assert tree_kit.alive(found[0].pid), found


def test_an_exit_code_that_is_0_to_the_kernel_is_a_normal_end() -> None:
    with Runtime(one()):
        for code, reason in ((256, "normal"), (257, ("exit", 1)), (0, "normal")):
            ref = start(Servant)
            with monitor(ref) as watch:
                with pytest.raises(ServerDown):
                    ref.leave(code)
                down = watch.wait(tree_kit.PATIENCE_S)
            assert down is not None and down.reason == reason

"""Workers that stand by: who is one, what it becomes, and that its death costs nobody anything."""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import stage as stage_module
from life_kit import run
from stage import Stage, gone, wait_gone

import shmrt
from shmrt.process import death
from shmrt.supervise.asking import AskError

_SEIZE, _INTERRUPT, _DETACH, _WALL = 0x4206, 0x4207, 17, 0x40000000
MODES = {"forked by the root": {}, "forked by a template": {"preload": ("decimal",)}}


@pytest.fixture
def stage(monkeypatch):
    monkeypatch.syspath_prepend(stage_module.HERE)
    made = Stage()
    yield made
    made.close()
    made.slots.close()


def named(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def standbys(root: int) -> list[int]:
    """Children of the root that sleep in wait for their slot."""
    children = Path(f"/proc/{root}/task/{root}/children").read_text().split()
    return [pid for pid in map(int, children) if named(pid).startswith("shmrt-standby") and not gone(pid)]


def wait_standby(root: int, *, other_than: int = 0) -> int:
    while True:
        found = [pid for pid in standbys(root) if pid != other_than]
        if found:
            assert len(found) == 1, f"{len(found)} processes stand by for one pool"
            return found[0]
        os.sched_yield()


def kill(stage, slot):
    """Kills the worker in this slot; the pid of its replacement, once that is ready and the dead one's slot is not."""
    mark = stage.mark()
    os.kill(stage.pid(slot), signal.SIGKILL)
    _, new_slot, epoch, pid = stage.wait("started", after=mark)
    stage.wait("ready", new_slot, epoch)
    stage.wait("gone", slot, after=mark)
    return pid


@pytest.mark.parametrize("mode", MODES)
def test_it_takes_the_place_of_the_next_that_dies(stage, mode):
    stage.pool(2, **MODES[mode])
    stage.wait("ready", times=2)
    for _ in range(5):
        standby = wait_standby(stage.link.root_pid)
        assert death.stat_fields(standby)[2] == standby, "it is not in a group of its own"
        assert kill(stage, stage.ready_slots()[0]) == standby
        assert not named(standby).startswith("shmrt-standby")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_its_death_is_nobodys_loss(stage, mode, number):
    stage.pool(2, **MODES[mode])
    stage.wait("ready", times=2)
    standby = wait_standby(stage.link.root_pid)
    mark = stage.mark()
    os.kill(standby, number)
    wait_gone(standby)
    replaced = kill(stage, stage.ready_slots()[0])
    assert replaced != standby
    assert not stage.seen("start_failed", after=mark)
    assert len(stage.seen("gone", after=mark)) <= 1, "the death of a standby was told as a worker's"
    wait_standby(stage.link.root_pid)


@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_one_does_not_keep_its_pool_from_ending(stage, mode):
    stage.pool(1, **MODES[mode])
    stage.wait("ready")
    standby = wait_standby(stage.link.root_pid)
    os.kill(standby, signal.SIGSTOP)
    stage.link.remove_pool(1, 30)
    stage.wait("removed", 1)
    assert gone(standby)


def test_one_of_a_template_outlives_it(stage):
    stage.pool(1, **MODES["forked by a template"])
    stage.wait("ready")
    root = stage.link.root_pid
    standby = wait_standby(root)
    children = map(int, Path(f"/proc/{root}/task/{root}/children").read_text().split())
    (template,) = [pid for pid in children if named(pid).startswith("shmrt-template")]
    os.kill(template, signal.SIGKILL)
    stage.wait("template_gone", 1)
    assert not gone(standby)
    assert kill(stage, stage.ready_slots()[0]) == standby


def test_one_that_cannot_settle_in_is_not_tried_again_and_again(stage, monkeypatch, tmp_path):
    """Its directory is gone: the pool goes on, and only the success of another worker asks for the next standby."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    stage.pool(1)
    stage.wait("ready")
    first = wait_standby(stage.link.root_pid)
    os.kill(first, signal.SIGSTOP)  # nothing may stand by while the directory goes away
    place.rmdir()
    monkeypatch.chdir(tmp_path)
    os.kill(first, signal.SIGKILL)
    wait_gone(first)
    mark = stage.mark()
    os.kill(stage.pid(stage.ready_slots()[0]), signal.SIGKILL)
    stage.wait("start_failed", 1, after=mark)  # the worker itself says what is wrong
    assert not standbys(stage.link.root_pid)


@pytest.mark.slow
def test_worker_and_standby_killed_together():
    """In both orders, from at once to a moment later: each task gets its answer, and somebody serves again."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with shmrt.Runtime() as runtime, shmrt.Pool(1, max_attempts=1000) as pool:
        pid = pool.submit(os.getpid).result()
        for _ in range(60):
            victims = [pid, wait_standby(runtime.pid)]
            rng.shuffle(victims)
            for victim in victims:
                os.kill(victim, signal.SIGKILL)
                for _ in range(rng.randrange(2000)):
                    pass
            pid = pool.submit(os.getpid).result()
            assert pid not in victims
            wait_gone(victims[0])
            wait_gone(victims[1])
        assert list(pool.map(abs, range(-50, 0))) == list(range(50, 0, -1))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_worker_and_root_killed_together(mode):
    """From at once to a moment later: the root may have sent the standby, heard of it, or neither. Each task gets its
    answer, the next root serves, and nobody of the first is left."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(6):
        with shmrt.Runtime() as runtime, shmrt.Pool(1, max_attempts=1000, **MODES[mode]) as pool:
            for _ in range(5):
                pid = pool.submit(os.getpid).result()
                victims = [pid, runtime.pid, wait_standby(runtime.pid)]
                os.kill(pid, signal.SIGKILL)
                for _ in range(rng.randrange(40_000)):
                    pass
                os.kill(victims[1], signal.SIGKILL)
                assert pool.submit(abs, -3).result() == 3
                for victim in victims:
                    wait_gone(victim)


@contextlib.contextmanager
def frozen(thread: int) -> Iterator[None]:
    """This one thread of a child, and no other of its process, stands still."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    libc.ptrace.restype = ctypes.c_long
    if libc.ptrace(_SEIZE, thread, None, None) != 0:
        pytest.skip(f"NOT TESTED: ptrace is not allowed here ({os.strerror(ctypes.get_errno())})")
    try:
        assert libc.ptrace(_INTERRUPT, thread, None, None) == 0
        assert os.WIFSTOPPED(os.waitpid(thread, _WALL)[1])
        yield
    finally:
        assert libc.ptrace(_DETACH, thread, None, None) == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_standby_serves_while_the_interpreter_of_the_root_stands_still(mode):
    """Its watch sends the standby; what the root hears of it later is one death and one start, of the same number."""
    with shmrt.Runtime() as runtime, shmrt.Pool(1, max_attempts=1000, **MODES[mode]) as pool:
        for _ in range(5):
            pid = pool.submit(os.getpid).result()
            standby = wait_standby(runtime.pid)
            with pytest.raises(AskError):  # its answer comes after all that a template has said before
                runtime._link.ask("who", -1)
            while Path(f"/proc/{runtime.pid}/stat").read_text().rpartition(")")[2].split()[0] != "S":
                os.sched_yield()  # its main thread has placed its orders, and sleeps
            with frozen(runtime.pid):
                os.kill(pid, signal.SIGKILL)
                assert pool.submit(os.getpid).result(60) == standby
            assert pool.submit(abs, -1).result() == 1
            wait_gone(pid)
        while pool.stats()["restarts"] < 5:
            os.sched_yield()  # the last one is counted when the kernel has torn it down
        assert pool.stats()["restarts"] == 5


def test_the_programs_finder_is_loaded_only_when_it_is_asked(tmp_path):
    """An import hook of the program costs a worker nothing until a module is looked for that nobody else finds."""
    hidden = tmp_path / "hidden" / "found_by_hook.py"
    hidden.parent.mkdir()
    hidden.write_text("ANSWER = 42\n")
    (tmp_path / "a_finder.py").write_text(f"""
import importlib.util
class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "found_by_hook":
            return importlib.util.spec_from_file_location(name, {str(hidden)!r})
""")
    source = f"""
import sys
sys.path.append({str(tmp_path)!r})
import a_finder, shmrt
sys.meta_path.append(a_finder.Finder)
with shmrt.Pool(1) as pool:
    say = lambda text: print(pool.submit(eval, text).result(), flush=True)
    say("'a_finder' in __import__('sys').modules")
    say("__import__('found_by_hook').ANSWER")
    say("'a_finder' in __import__('sys').modules")
    try: say("__import__('there_is_no_such_module')")
    except ModuleNotFoundError as error: print(error)
"""
    assert run(source) == (0, "False\n42\nTrue\nNo module named 'there_is_no_such_module'\n", "")


@pytest.mark.slow
def test_a_pool_ends_while_its_template_forks() -> None:
    """Ended at any moment of a replacement's start, when it is not the root's own child yet: the root lives on."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with shmrt.Runtime() as runtime:
        root = runtime.pid
        for _ in range(40):
            with shmrt.Pool(2, preload=("decimal",), max_attempts=100) as pool:
                for pid in {pool.submit(os.getpid).result() for _ in range(4)}:
                    os.kill(pid, signal.SIGKILL)
                for _ in range(rng.randrange(60_000)):
                    pass
        assert runtime.pid == root


def test_a_root_that_dies_while_it_ends_a_pool_keeps_nobody_waiting() -> None:
    with shmrt.Runtime() as runtime:
        pool = shmrt.Pool(1)
        future = pool.submit(time.sleep, 1000)
        while not future.running():
            os.sched_yield()
        ender = threading.Thread(target=pool._opened.finish, args=(1000.0,))
        ender.start()
        while not any(kept.removing for kept in list(runtime._link._pools.values())):
            os.sched_yield()
        os.kill(runtime.pid, signal.SIGKILL)
        ender.join(60)
        assert not ender.is_alive()
        with contextlib.suppress(concurrent.futures.CancelledError):  # the ended pool had it queued again
            assert future.exception(60) is not None
        with shmrt.Pool(1) as another:
            assert another.submit(abs, -1).result() == 1

"""Starting, watching, replacing and ending real processes, with every kind of death.

Nothing here sleeps: each step waits for an event of the root, a pidfd or the end of a pipe.
"""

from __future__ import annotations

import ast
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import process_loop
import pytest
import stage as stage_module
from pool_tasks import until
from stage import Stage, gone, wait_gone

from shmrt import _native
from shmrt.errors import RuntimeDown
from shmrt.process import death


@pytest.fixture
def stage():
    before = set(os.listdir("/proc/self/fd"))
    made = Stage()
    yield made
    made.close()
    made.slots.close()
    assert set(os.listdir("/proc/self/fd")) <= before, "descriptors were left open in the program"


@pytest.fixture(autouse=True)
def path(monkeypatch):
    monkeypatch.syspath_prepend(stage_module.HERE)


def notes(path, kind):
    rows = [line.split(" ", 3) for line in path.read_text().splitlines()] if path.exists() else []
    return [(int(slot), int(pid), ast.literal_eval(value)) for got, slot, pid, value in rows if got == kind]


def named(pid):
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def children_of(root):
    pids = map(int, filter(str.isdigit, os.listdir("/proc")))
    return [pid for pid in pids if (death.stat_fields(pid) or (0, 0))[1] == root]


# ---- start --------------------------------------------------------------------------------------------------------
def test_workers_become_ready_and_leave_in_order(stage):
    stage.pool(3)
    stage.wait("ready", times=3)
    assert sorted(stage.slots.info(slot)["worker"] for slot in stage.ready_slots()) == [0, 1, 2]
    stage.link.remove_pool(1, 30)
    stage.wait("removed", 1)
    assert [event[3] for event in stage.seen("gone")] == [0, 0, 0], "each left by itself after TERM"


def test_a_worker_finds_the_programs_surroundings(stage, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHMRT_TEST_MARK", "here")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    stage.pool(2, options={"do": "surroundings", "notes": str(tmp_path / "notes")}, threads_per_worker=1, seed=5)
    stage.wait("ready", times=2)
    stage.link.remove_pool(1, 30)
    stage.wait("removed", 1)
    worlds = [value for _, _, value in notes(tmp_path / "notes", "world")]
    for world in worlds:
        assert world["cwd"] == str(tmp_path) and world["mark"] == "here" and world["omp"] == "1"
        assert world["path"] == [entry for entry in sys.path if isinstance(entry, str)]
        assert world["main"] == ["__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__"]
        assert world["pgid"] and world["sigint"] and world["threads"] == 2, world
        kinds = [name for name in world["fds"] if "socket" in name or "event" in name or "pidfd" in name]
        assert len(kinds) == 1 and "socket" in kinds[0], "more than its own socket to the root reached a worker"
    assert worlds[0]["random"] != worlds[1]["random"], "two workers draw the same numbers"
    assert worlds[0]["hash"] == worlds[1]["hash"]


def test_an_initializer_that_always_fails_breaks_the_pool(stage, tmp_path):
    stage.pool(2, initializer=pickle.dumps((process_loop.refuse, ())), options={"notes": str(tmp_path / "notes")})
    event = stage.wait("pool_broken", 1)
    assert len(event[2]) >= 3 and all("exited with code 1 before it was ready" in reason for reason in event[2])
    assert "never works" in notes(tmp_path / "notes", "failed")[0][2]
    assert not stage.seen("ready")
    assert len(stage.seen("started")) <= 4, "no more than the limit and those already under way"


def test_exit_hook_and_log_records(stage, tmp_path):
    log = tmp_path / "notes"
    stage.pool(1, options={"do": "logs", "notes": str(log)}, worker_exit=pickle.dumps(process_loop.goodbye))
    stage.wait("ready")
    stage.link.remove_pool(1, 30)
    stage.wait("removed", 1)
    assert notes(log, "exit")[0][2] == "bye"
    row = notes(log, "log")[0][2]
    assert row[0] == "a.b" and row[1] == 30 and row[6] == "hello 7"


def test_more_workers_and_fewer(stage):
    stage.pool(1)
    stage.wait("ready")
    stage.link.resize(1, 3)
    stage.wait("ready", times=3)
    stage.link.resize(1, 1)
    for slot in stage.ready_slots()[:2]:
        stage.slots.request_stop(slot)
    stage.wait("gone", times=2)
    stage.link.resize(1, 2)
    stage.wait("ready", times=4)
    assert len(stage.seen("started")) == 4, "a worker that left a shrunken pool was replaced"


def test_replace_tells_when_the_new_one_is_ready(stage):
    stage.pool(1)
    _, slot, epoch = stage.wait("ready")
    stage.link.replace(slot, epoch)
    event = stage.wait("replaced", slot, epoch)
    assert not stage.seen("gone"), "the old one serves until the hub retires it"
    stage.slots.request_stop(slot)
    stage.wait("gone", slot, epoch)
    assert stage.slots.state(event[3]) == _native.SLOT_READY
    assert len(stage.seen("started")) == 2


# ---- deaths of workers --------------------------------------------------------------------------------------------
def test_a_killed_worker_is_replaced_and_its_status_told(stage):
    stage.pool(2)
    _, slot, epoch = stage.wait("ready", times=2)
    mark = stage.mark()
    os.kill(stage.pid(slot), signal.SIGKILL)
    gone_event = stage.wait("gone", slot, epoch)
    assert gone_event[3] == signal.SIGKILL and gone_event[4] is False
    stage.wait("ready", after=mark)
    assert len(stage.ready_slots()) == 2


def test_a_kill_by_order_carries_its_reason(stage):
    stage.pool(1)
    _, slot, epoch = stage.wait("ready")
    stage.link.kill(slot, epoch, _native.KILL_CHAOS)
    assert stage.wait("gone", slot, epoch)[-1] == _native.KILL_CHAOS
    stage.link.kill(slot, epoch, _native.KILL_CHAOS)  # a life that is over: nobody else is hit
    stage.wait("ready", times=2)
    assert len(stage.seen("gone")) == 1


@pytest.mark.parametrize("way", ["leave_main_thread", "become_another"])
def test_a_process_without_its_main_thread_is_killed(stage, way):
    stage.pool(1, options={"do": way})
    stage.wait("ready", times=2)  # it is replaced although the process never ended by itself
    event = stage.wait("gone")
    assert event[3] == signal.SIGKILL


def test_what_a_worker_started_dies_with_it(stage, tmp_path):
    stage.pool(1, options={"do": "grandchildren", "notes": str(tmp_path / "notes")})
    _, slot, epoch = stage.wait("ready")
    read = lambda: notes(tmp_path / "notes", "children")  # noqa: E731
    while not read():
        os.sched_yield()
    mine = read()[0][2]
    assert not any(gone(pid) for pid in mine)
    os.kill(stage.pid(slot), signal.SIGKILL)
    stage.wait("gone", slot, epoch)
    for pid in mine:
        wait_gone(pid)


def test_a_hundred_deaths_leave_nothing(stage):
    stage.pool(2)
    stage.wait("ready", times=2)
    root = stage.link.root_pid
    # One life first: what is opened once stays open. A worker that stands by now and then adds its pipe and its socket,
    # while it is forked both ends of both.
    fds = None
    for life in range(100):
        slot = stage.ready_slots()[life % 2]
        mark = stage.mark()
        os.kill(stage.pid(slot), signal.SIGKILL)
        stage.wait("gone", after=mark)
        stage.wait("ready", times=3 + life)
        if fds is None:
            fds = len(os.listdir(f"/proc/{root}/fd"))
    until(lambda: len(os.listdir(f"/proc/{root}/fd")) <= fds + 2, "descriptors are left in the root")
    until(lambda: len(children_of(root)) in (2, 3), "zombies or orphans hang on the root")


def test_stacks_can_be_read_before_and_after_a_kill(stage, tmp_path):
    stage.pool(1, options={"do": "spin", "notes": str(tmp_path / "notes")})
    _, slot, epoch = stage.wait("ready")
    while not notes(tmp_path / "notes", "spin"):
        os.sched_yield()
    stage.link.kill(slot, epoch, _native.KILL_TIMEOUT, 7, stack=True)
    stage.wait("gone", slot, epoch)
    assert "in spin" in stage.link.stack_of(slot)
    assert stage.last_info["kill_task_id"] == 7


# ---- templates ----------------------------------------------------------------------------------------------------
def test_workers_of_a_template_survive_it_and_die_with_the_root(stage, tmp_path):
    stage.pool(2, preload=["decimal"], options={"do": "surroundings", "notes": str(tmp_path / "notes")})
    stage.wait("ready", times=2)
    root = stage.link.root_pid
    pids = [stage.pid(slot) for slot in stage.ready_slots()]
    assert all(death.stat_fields(pid)[1] == root for pid in pids), "a worker is not the root's own child"
    (template,) = [pid for pid in children_of(root) if named(pid).startswith("shmrt-template")]
    os.kill(template, signal.SIGKILL)
    stage.wait("template_gone", 1)
    assert not any(gone(pid) for pid in pids), "the template took its workers along"
    os.kill(pids[0], signal.SIGKILL)  # the next one needs a new template
    stage.wait("ready", times=3)
    os.kill(root, signal.SIGKILL)
    wait_gone(pids[1])
    stage.wait("root_started", times=2)
    stage.wait("ready", times=5)


def test_a_preload_that_cannot_be_imported_breaks_the_pool(stage):
    stage.pool(2, preload=["no_such_module_of_anybody"])
    event = stage.wait("pool_broken", 1)
    assert "no_such_module_of_anybody" in event[2][0]


def test_threads_of_a_preload_are_told(stage, tmp_path):
    (tmp_path / "leaves_a_thread.py").write_text(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), name='left', daemon=True).start()\n"
    )
    sys.path.insert(0, str(tmp_path))
    try:
        stage.pool(1, preload=["leaves_a_thread"])
    finally:
        sys.path.remove(str(tmp_path))
    assert stage.wait("preload_threads", 1)[3] == ["left"]
    stage.wait("ready")


# ---- death of the root ----------------------------------------------------------------------------------------------
def test_a_killed_root_is_replaced_and_nothing_of_it_is_left(stage):
    stage.pool(2)
    stage.wait("ready", times=2)
    pids = [stage.pid(slot) for slot in stage.ready_slots()]
    os.kill(stage.link.root_pid, signal.SIGKILL)
    stage.wait("root_lost")
    assert all(gone(pid) for pid in pids), "a worker of the dead root may still write"
    assert [event[-1] for event in stage.seen("gone")] == [_native.KILL_ROOT_LOST] * 2
    stage.wait("ready", times=4)
    assert stage.slots.generation == 2


def test_a_root_that_keeps_dying_is_given_up():
    stage = Stage(max_restarts=2)
    for life in range(3):
        stage.wait("root_started", times=life + 1)
        os.kill(stage.link.root_pid, signal.SIGKILL)
        stage.wait("root_lost", times=life + 1)
    stage.link._thread.join(60)
    assert stage.downs and "more than 2 times" in stage.downs[0]
    with pytest.raises(RuntimeDown, match="more than 2 times"):
        stage.pool(1)
    stage.close()
    stage.slots.close()


def test_a_stopped_root_does_not_stop_the_close(stage):
    stage.pool(1)
    stage.wait("ready")
    os.kill(stage.link.root_pid, signal.SIGSTOP)
    stage.link.close(0.0, timeout_s=0.1)


def test_signals_do_not_end_the_root(stage):
    stage.pool(1)
    stage.wait("ready")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT):
        os.kill(stage.link.root_pid, number)
    stage.link.resize(1, 2)
    stage.wait("ready", times=2)
    assert not stage.seen("root_lost")


# ---- death of the program -------------------------------------------------------------------------------------------
PROGRAM = """
import os, sys, threading
sys.path[:0] = [{here!r}]
from stage import Stage
stage = Stage()
stage.pool(2, preload={preload!r}, options={{"do": "grandchildren", "notes": {notes!r}}})
stage.wait("ready", times=2)
print(stage.link.root_pid, *[stage.pid(slot) for slot in stage.ready_slots()], flush=True)
if {way!r} == "fork":
    if os.fork() == 0:
        threading.Event().wait()
if {way!r} == "exec":
    sys.stdin.readline()
    os.execvp("sleep", ["sleep", "1000"])
sys.stdin.readline()
if {way!r} == "exit":
    sys.exit(3)
threading.Event().wait()
"""


@pytest.mark.parametrize("preload", [[], ["decimal"]], ids=["root", "template"])
@pytest.mark.parametrize("way", ["kill", "exit", "fork", "exec"])
def test_everything_ends_with_the_program(tmp_path, way, preload):
    text = PROGRAM.format(here=stage_module.HERE, notes=str(tmp_path / "notes"), way=way, preload=preload)
    program = subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        pids = [int(word) for word in program.stdout.readline().split()]
        while len(notes(tmp_path / "notes", "children")) < 2:
            os.sched_yield()
        for _, _, mine in notes(tmp_path / "notes", "children"):
            pids += mine
        assert len(pids) == 7 and not any(gone(pid) for pid in pids)
        if way == "exit" or way == "exec":
            program.stdin.write("go\n")
            program.stdin.flush()
        else:
            program.kill()
        for pid in pids:
            wait_gone(pid)
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.wait()
        program.stdin.close()
        program.stdout.close()


def test_a_forked_child_of_the_program_owns_nothing(stage):
    stage.pool(1)
    stage.wait("ready")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            stage.link.resize(1, 2)
        except RuntimeDown as error:
            os.write(writer, str(error).encode())
        finally:
            stage.link.close()
            os._exit(0)
    os.close(writer)
    text = os.read(reader, 1000).decode()
    os.close(reader)
    os.waitpid(child, 0)
    assert str(child) in text and str(os.getpid()) in text
    assert stage.slots.state(stage.ready_slots()[0]) == _native.SLOT_READY

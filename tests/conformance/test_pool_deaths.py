"""Whatever a worker dies of, one task carries it, and the others come to their results."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pool_tasks as tasks
import pytest
from pool_tasks import LIMIT_S

from shmrt import PoisonMessage, Pool, WorkerCrashed

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _watched() -> Iterator[None]:
    with tasks.watchdog():
        yield


def one_bad_task(bad: Any, *arguments: Any, count: int = 1000) -> WorkerCrashed:
    """`count` tasks of which one kills its worker; gives its error when all else is as it should be."""
    with Pool(2) as pool:
        before = [pool.submit(tasks.same, number) for number in range(count // 2)]
        victim = pool.submit(bad, *arguments)
        after = [pool.submit(tasks.same, number) for number in range(count // 2, count - 1)]
        assert [future.result(LIMIT_S) for future in before + after] == list(range(count - 1))
        error = victim.exception(LIMIT_S)
        assert type(error) is WorkerCrashed
        assert error.attempts == victim.attempts == 1
        assert error.worker == victim.worker
        assert error.worker is not None and error.worker.startswith(f"{pool.name}/")
        assert str(error.pid) in str(error)
        assert error.pid not in (None, os.getpid())
        assert pool.submit(tasks.pid).result(LIMIT_S) != error.pid
        assert [future.result(LIMIT_S) for future in [pool.submit(tasks.same, i) for i in range(50)]] == list(range(50))
        assert pool.stats()["crashed"] == 1
        return error


@pytest.mark.parametrize(
    ("bad", "number", "shown"),
    [
        (tasks.kill_self, signal.SIGKILL, None),
        (tasks.segfault, signal.SIGSEGV, "in segfault"),
        (tasks.abort, signal.SIGABRT, "in abort"),
        (tasks.overflow_c_stack, signal.SIGSEGV, "in deeper"),
        (tasks.exec_other, signal.SIGKILL, None),
        (tasks.leave_main_thread, signal.SIGKILL, None),
    ],
)
def test_a_signal_ends_one_task(bad: Any, number: int, shown: str | None) -> None:
    error = one_bad_task(bad)
    assert error.signal is signal.Signals(number)
    assert error.exitcode is None
    assert not error.oom
    assert (error.stack is None) == (shown is None)
    assert shown is None or shown in str(error.stack)


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_an_exit_ends_one_task(code: int) -> None:
    error = one_bad_task(tasks.exit_at_once, code)
    assert (error.exitcode, error.signal, error.oom, error.stack) == (code, None, False, None)


@pytest.mark.parametrize(("argument", "code"), [(3, 3), (None, 0), ("a text", 1), (256 + 5, 5)])
def test_sys_exit_ends_the_worker_with_that_code(argument: Any, code: int) -> None:
    error = one_bad_task(tasks.sys_exit, argument, count=50)
    assert (error.exitcode, error.signal) == (code, None)


def test_a_stack_is_that_of_this_death_and_not_of_one_before() -> None:
    with Pool(1) as pool:
        first = pool.submit(tasks.segfault).exception(LIMIT_S)
        second = pool.submit(tasks.kill_self).exception(LIMIT_S)
        third = pool.submit(tasks.abort).exception(LIMIT_S)
    assert "in segfault" in first.stack
    assert second.stack is None
    assert "in abort" in third.stack
    assert "segfault" not in third.stack


OOM = """
import os, sys
with open(os.path.join(sys.argv[1], "cgroup.procs"), "w") as file:
    file.write(str(os.getpid()))
import pool_tasks as tasks
from shmrt import Pool, WorkerCrashed

def hog():
    kept = []
    while True:
        kept.append(b"x" * (8 << 20))

with Pool(2) as pool, tasks.watchdog():
    before = [pool.submit(tasks.same, i) for i in range(500)]
    victim = pool.submit(hog)
    after = [pool.submit(tasks.same, i) for i in range(500, 999)]
    assert [f.result() for f in before + after] == list(range(999))
    error = victim.exception()
    assert type(error) is WorkerCrashed, repr(error)
    assert pool.submit(tasks.same, 5).result() == 5
    killed = pool.submit(tasks.kill_self).exception()
print(error.oom, error.signal.name, error.attempts, killed.oom, killed.signal.name)
"""


@pytest.fixture
def memory_group() -> Iterator[str]:
    """A control group whose memory limit is real."""
    name = f"shmrt-test-{os.getpid()}"
    v1 = Path("/sys/fs/cgroup/memory")
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    own = next((line.split(":", 2) for line in lines if ":memory:" in line), None)
    base = v1 if own is not None and v1.is_dir() else Path("/sys/fs/cgroup")
    group = base / name
    try:
        group.mkdir()
        if base == v1:
            (group / "memory.limit_in_bytes").write_text(str(256 << 20))
        else:
            (group / "memory.max").write_text(str(256 << 20))
            if (group / "memory.swap.max").exists():
                (group / "memory.swap.max").write_text("0")
            (group / "memory.events").read_text()
    except OSError as error:
        if group.exists():
            group.rmdir()
        pytest.skip(
            f"NO MEMORY CONTROL GROUP CAN BE MADE HERE, the death by the kernel's OOM killer is not tested: {error}"
        )
    yield str(group)
    tasks.until(lambda: _removed(group))


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_the_oom_killer_ends_one_task(memory_group: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", OOM, memory_group],
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent.parent), str(HERE)])},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True", "SIGKILL", "1", "False", "SIGKILL"]


# ---- several attempts ----


def test_a_task_that_dies_once_comes_to_its_result(tmp_path: Path) -> None:
    path = str(tmp_path / "pids")
    with Pool(2, max_attempts=3) as pool:
        others = [pool.submit(tasks.same, number) for number in range(500)]
        future = pool.submit(tasks.die_first, path, 1, "done")
        others += [pool.submit(tasks.same, number) for number in range(500, 999)]
        assert future.result(LIMIT_S) == "done"
        assert future.attempts == 2
        assert [other.result(LIMIT_S) for other in others] == list(range(999))
        assert all(other.attempts == 1 for other in others)
    assert len(set(tasks.notes(path))) == 2


def test_poison_kills_three_workers_and_no_more(tmp_path: Path) -> None:
    path = str(tmp_path / "pids")
    with Pool(2, max_attempts=3) as pool:
        others = [pool.submit(tasks.same, number) for number in range(500)]
        poison = pool.submit(tasks.die_first, path, 1000, None)
        others += [pool.submit(tasks.same, number) for number in range(500, 999)]
        error = poison.exception(LIMIT_S)
        assert type(error) is PoisonMessage
        assert isinstance(error, WorkerCrashed)
        assert error.attempts == poison.attempts == 3
        assert error.signal is signal.SIGKILL
        assert [other.result(LIMIT_S) for other in others] == list(range(999))
        tasks.until(lambda: pool.stats()["restarts"] == 3)
    pids = tasks.notes(path)
    assert len(pids) == len(set(pids)) == 3
    assert error.pid == int(pids[-1])


def note_which(path: str) -> int:
    tasks.note(path, str(os.getpid()))
    return os.getpid()


def test_the_last_attempt_runs_alone_on_a_fresh_worker(tmp_path: Path) -> None:
    path, ran = str(tmp_path / "pids"), str(tmp_path / "ran")
    with Pool(2, max_attempts=2) as pool:
        others = [pool.submit(note_which, ran) for _ in range(200)]
        poison = pool.submit(tasks.die_first, path, 1000, None)
        others += [pool.submit(note_which, ran) for _ in range(2000)]
        assert type(poison.exception(LIMIT_S)) is PoisonMessage
        assert all(other.result(LIMIT_S) for other in others)
        last = tasks.notes(path)[-1]
        assert last not in tasks.notes(ran)  # nothing ran there before it, and nothing was lost with it
        assert all(other.attempts == 1 for other in others)


def test_the_last_attempt_finds_a_fresh_worker_after_the_pool_became_smaller(tmp_path: Path) -> None:
    """Both workers run something when the pool shrinks to one; the death of the other brings no replacement."""
    go, started = str(tmp_path / "go"), [str(tmp_path / "0"), str(tmp_path / "1")]
    with Pool(2, max_attempts=2) as pool:
        futures = [pool.submit(tasks.started_then_wait, path, go, path) for path in started]
        for path in started:
            tasks.until(lambda path=path: tasks.notes(path))
        pids = {row["pid"]: row["worker"] for row in tasks.ready(pool)}
        (surplus,) = [number for number, path in enumerate(started) if pids[int(tasks.notes(path)[0])] == 1]
        pool.resize(1)
        killed = int(tasks.notes(started[surplus])[0])
        os.kill(killed, signal.SIGKILL)
        tasks.until(lambda: killed not in {row["pid"] for row in tasks.ready(pool)})  # a fresh one may be there already
        tasks.note(go)
        assert [future.result(LIMIT_S) for future in futures] == started
        assert futures[surplus].attempts == 2

"""Health checks of a program: every way in which one can end, what the report says, and who may ask.

Real processes: each check runs in one of its own, forked by the root.
"""

from __future__ import annotations

import functools
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import health_tasks as tasks
import pytest
from health_tasks import Fake, once, registered
from tree_kit import Journal, alive, idle, until

from shmrt import (
    Child,
    CircuitBreaker,
    Degraded,
    HealthCheck,
    Pool,
    Ring,
    RingSpec,
    Runtime,
    SpecError,
    Supervisor,
    checks,
    health,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shared() -> Iterator[Runtime]:
    """For tests that leave a runtime as they found it."""
    with Runtime() as runtime:
        yield runtime


def run(*made: HealthCheck, runtime: Runtime | None = None, group: str | None = None) -> Any:
    with registered(*made):
        return health(runtime, group)


# ---- what a check may answer ----------------------------------------------------------------------------------------
ANSWERS: list[tuple[Any, tuple[str, str | None, Any, str | None]]] = [
    (None, ("healthy", None, None, None)),
    (True, ("healthy", None, None, None)),
    (False, ("unhealthy", None, None, None)),
    (0, ("healthy", None, 0, None)),
    (2.5, ("healthy", None, 2.5, None)),
    ("all well", ("healthy", "all well", None, None)),
    ("degraded", ("degraded", None, None, None)),
    ("unhealthy", ("unhealthy", None, None, None)),
    (("degraded", "slow"), ("degraded", "slow", None, None)),
    (("unhealthy", None), ("unhealthy", None, None, None)),
    (Degraded("slow", 3, "ms"), ("degraded", "slow", 3, "ms")),
    ({"value": 7, "unit": "rows"}, ("healthy", None, 7, "rows")),
    ({"status": "degraded", "detail": "few"}, ("degraded", "few", None, None)),
    ({"status": "fine"}, ("unhealthy", None, None, None)),
    ({"rows": 7}, ("healthy", "{'rows': 7}", None, None)),
    ([1, 2], ("healthy", "[1, 2]", None, None)),
    (2**70, ("healthy", None, str(2**70), None)),
    ("x" * 5000, ("healthy", "x" * 1000 + " ...", None, None)),
    (tasks.Odd(), ("unhealthy", None, None, None)),
]


def test_what_an_answer_means(shared: Runtime) -> None:
    """Each kind of answer, all in one report; what cannot be shown is a failure like another."""
    made = [HealthCheck(f"answer-{n}", lambda value=value: value) for n, (value, _) in enumerate(ANSWERS)]
    report = run(*made, runtime=shared)
    for n, (value, wanted) in enumerate(ANSWERS):
        result = report.checks[f"answer-{n}"]
        assert (result.status, result.detail, result.value, result.unit) == wanted, (value, result)


ENDS: dict[str, tuple[Any, str]] = {
    "raises": (tasks.fail, "LookupError: no such table"),
    "raises what cannot be shown": (tasks.raise_odd, "Strange that cannot be shown"),
    "sys.exit": (tasks.leave_in_order, "SystemExit: 4"),
    "hangs": (tasks.hang, "timeout"),
    "hangs with the GIL": (tasks.hang_with_gil, "timeout"),
    "loops": (tasks.loop, "timeout"),
    "SIGKILL": (tasks.kill_itself, "crashed: killed by SIGKILL"),
    "SIGSEGV": (tasks.segfault, "crashed: killed by SIGSEGV"),
    "os.abort": (os.abort, "crashed: killed by SIGABRT"),
    "os._exit(0)": (functools.partial(tasks.leave, 0), "crashed: its process exited with code 0"),
    "os._exit(3)": (functools.partial(tasks.leave, 3), "crashed: its process exited with code 3"),
    "closes everything": (tasks.close_everything, "crashed: "),
    "closes everything and hangs": (tasks.close_and_hang, "crashed: killed by SIGKILL"),
    "cannot be sent": (tasks.Unpicklable(), "cannot be sent"),
    "takes an argument": (lambda missing: None, "TypeError"),
}


def test_every_bad_end_is_its_own_result_and_nobody_elses(shared: Runtime) -> None:
    """Hang, hang with the GIL, crash, exit, raise: one report names each, and the others are answered."""
    made = [HealthCheck(name, fn, timeout=0.5 if error == "timeout" else 60) for name, (fn, error) in ENDS.items()]
    made += [HealthCheck(f"fine-{n}", tasks.fine, timeout=60) for n in range(3)]
    made.append(HealthCheck("async", tasks.patient, timeout=60))
    made.append(HealthCheck("forks", tasks.come_back_twice, timeout=60))
    root = shared.pid
    report = run(*made, runtime=shared)
    for name, (_, error) in ENDS.items():
        result = report.checks[name]
        assert result.status == "unhealthy" and error in result.error, (name, result)
    assert all(report.checks[f"fine-{n}"].status == "healthy" for n in range(3))
    found = report.checks["async"]
    assert (found.status, found.detail, found.value, found.unit) == ("degraded", "slow", 2.5, "s")
    assert report.checks["forks"].detail == "from the check"
    assert report.status == "unhealthy"
    assert shared.pid == root, "the root has outlived all of it"
    assert run(runtime=shared).status == "healthy"


def test_hanging_checks_are_waited_for_together(shared: Runtime) -> None:
    """Eight hangs run at the same time: each began before any had ended."""
    made = [HealthCheck(f"hang-{n}", tasks.hang, timeout=1.0) for n in range(8)]
    results = [result for result in run(*made, runtime=shared).checks.values() if result.name.startswith("hang")]
    assert len(results) == 8 and all("timeout" in result.error for result in results)
    began = max(result.timestamp - timedelta(seconds=result.duration) for result in results)
    assert began < min(result.timestamp for result in results)


def test_a_hung_check_leaves_no_process(shared: Runtime, tmp_path: Path) -> None:
    """Neither its own nor one that it has started."""
    journal = Journal(tmp_path / "journal")
    run(HealthCheck("leaver", functools.partial(tasks.leave_somebody, journal), timeout=1.0), runtime=shared)
    pid = int(journal.lines("left")[0].split()[1])
    until(lambda: not alive(pid))
    until(lambda: not tasks.processes_of_checks(shared.pid or 0))


def test_a_process_serves_again_and_is_replaced_after_a_crash(shared: Runtime, tmp_path: Path) -> None:
    """The pid stays from run to run; a kill between two runs is no result, only another process."""
    journal = Journal(tmp_path / "journal")
    check = HealthCheck("counted", functools.partial(tasks.count, journal, str(tmp_path / "no")))
    with registered(check):
        for _ in range(3):
            assert health(shared).checks["counted"].status == "healthy"
        first, *others = {int(line.split()[1]) for line in journal.lines("checked")}
        assert not others
        os.kill(first, signal.SIGKILL)
        until(lambda: not alive(first))
        once(lambda: health(shared), lambda report: report.checks["counted"].status == "healthy")
    assert len({line for line in journal.lines("checked")}) == 2


def test_kills_at_random_moments_of_a_check(shared: Runtime, tmp_path: Path) -> None:
    """A few in the fast tier; a thousand in `test_a_thousand_kills_inside_checks`."""
    kill_inside(shared, tmp_path, 20)


@pytest.mark.stress
def test_a_thousand_kills_inside_checks(tmp_path: Path) -> None:
    with Runtime() as runtime:
        kill_inside(runtime, tmp_path, 1000)
        assert runtime._slots is not None


def kill_inside(runtime: Runtime, tmp_path: Path, times: int) -> None:
    """SIGKILL to the check's process while it hangs inside: each time the report comes, says so, and the check beside
    it is answered. Nothing is left of any of them."""
    seed = int(os.environ.get("SEED", random.randrange(2**31)))
    draw = random.Random(seed)
    journal, path = Journal(tmp_path / "journal"), tmp_path / "hang"
    path.touch()
    victim = HealthCheck("victim", functools.partial(tasks.hang_if_exists, str(path), journal), timeout=300)
    beside = HealthCheck("beside", tasks.fine, timeout=300)
    with registered(victim, beside):
        for round in range(times):
            found: list[Any] = []
            thread = threading.Thread(target=lambda found=found: found.append(health(runtime)))
            thread.start()
            until(lambda round=round: len(journal.lines("running")) > round)
            for _ in range(draw.randrange(2000)):
                pass  # a random moment
            os.kill(int(journal.lines("running")[round].split()[1]), signal.SIGKILL)
            thread.join()
            report = found[0]
            assert report.checks["victim"].error == "crashed: killed by SIGKILL", f"seed {seed}, round {round}"
            assert report.checks["beside"].status == "healthy", f"seed {seed}, round {round}"
        path.unlink()
        assert health(runtime).checks["victim"].status == "healthy", f"seed {seed}: stuck after {times} kills"
    assert health(runtime).status == "healthy"
    until(lambda: not tasks.processes_of_checks(runtime.pid or 0))


# ---- whose checks there are -----------------------------------------------------------------------------------------
def test_making_one_starts_nothing() -> None:
    code = (
        "import threading, os, shmrt\n"
        "check = shmrt.HealthCheck('x', lambda: 1)\n"
        "assert threading.active_count() == 1\n"
        "from shmrt import runtimes\n"
        "assert runtimes._default is None and not runtimes.living()\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=120)


def test_functions_of_main_and_what_they_close_over() -> None:
    """In a program without a guard: lambdas, closures, functions of `__main__`; without any runtime made by hand."""
    code = """
import shmrt

state = {"ok": True}
LIMIT = 3

def below_limit():
    return len(state) < LIMIT

a = shmrt.HealthCheck("lambda", lambda: state["ok"])
b = shmrt.HealthCheck("function", below_limit, critical=False)
print(shmrt.health().status)
state["ok"] = False
report = shmrt.health()
print(report.status, report.checks["lambda"].status, report.checks["function"].status)
a.unregister()
print(sorted(name for name in shmrt.health().checks if ":" not in name))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["healthy", "unhealthy unhealthy healthy", "['function']"]


def test_the_newest_of_a_name_counts(shared: Runtime) -> None:
    old = HealthCheck("same", tasks.fail)
    new = HealthCheck("same", tasks.fine)
    with registered(old, new):
        assert health(shared).checks["same"].status == "healthy"
        new.unregister()
        new.unregister()
        assert health(shared).checks["same"].status == "unhealthy"
    assert "same" not in health(shared).checks


def test_a_copy_is_nobodys() -> None:
    """Pickling a check makes none of the program."""
    check = HealthCheck("copied", tasks.fail, 2.0, ("live", "mine"), False, interval=2, failures=3, grace=4)
    copy = pickle.loads(pickle.dumps(check))
    check.unregister()
    for word in ("name", "fn", "timeout", "groups", "critical", "on_fail", "interval", "failures", "grace"):
        assert getattr(copy, word) == getattr(check, word)
    assert run().checks.get("copied") is None


def test_checks_of_a_runtime_are_its_own() -> None:
    mine = HealthCheck("mine", tasks.fine)
    with Runtime(health=[mine]) as first, Runtime() as second:
        assert first.health().checks["mine"].status == "healthy"
        assert "mine" not in second.health().checks and "mine" not in health().checks
        other = HealthCheck("mine", tasks.fail)
        with registered(other):
            assert first.health().checks["mine"].status == "healthy", "its own stands before the program's"
            assert second.health().checks["mine"].status == "unhealthy"


def test_restart_needs_a_child() -> None:
    """on_fail="restart" anywhere else is a mistake that is named."""
    check = HealthCheck("lost", tasks.fine, on_fail="restart")
    with pytest.raises(SpecError, match="'lost' has on_fail='restart'"):
        Runtime(health=[check])
    with Runtime() as runtime, pytest.raises(SpecError, match="'lost'"):
        runtime.health()
    check.unregister()


def test_groups(shared: Runtime) -> None:
    """A word or several; a group of one's own; what is in no group of that name is not run."""
    made = [
        HealthCheck("a", tasks.fine),
        HealthCheck("b", tasks.fail, group="live"),
        HealthCheck("c", tasks.fine, group=("live", "mine")),
    ]
    with registered(*made):
        assert set(health(shared, "mine").checks) == {"c"}
        live = health(shared, "live")
        assert set(live.checks) == {"b", "c", "runtime:loop"} and live.status == "unhealthy"
        ready = health(shared, group="ready")
        assert "a" in ready.checks and "b" not in ready.checks and ready.status == "healthy"
        assert {"a", "b", "c", "runtime:started"} <= set(health(shared).checks)
        with pytest.raises(ValueError, match=r"group='redy': .*'live', 'mine', 'ready', 'startup'"):
            health(shared, "redy")
    with pytest.raises(ValueError, match="'mine'"):
        health(shared, "mine")


def test_criticality_and_times(shared: Runtime) -> None:
    """A failure that is not critical degrades; times are aware, and of now."""
    before = datetime.now(UTC)
    report = run(HealthCheck("minor", tasks.fail, critical=False), HealthCheck("fine", tasks.fine), runtime=shared)
    after = datetime.now(UTC)
    assert report.status == "degraded" and report.checks["minor"].status == "unhealthy"
    assert not report.checks["minor"].critical and report.checks["fine"].critical
    for time in [report.timestamp, *(result.timestamp for result in report.checks.values())]:
        assert time.utcoffset() == timedelta(0) and before <= time <= after
    assert all(result.duration >= 0 for result in report.checks.values())
    assert report.checks["fine"].group == ("ready",)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("", print), ValueError, "name=''"),
        ((3, print), TypeError, "name must be a string, not 3"),
        (("x\n", print), ValueError, "printable"),
        (("x" * 121, print), ValueError, "120 characters"),
        (("x", 3), TypeError, "fn must be a function"),
        (("x", print, 0), ValueError, "timeout=0"),
        (("x", print, float("inf")), ValueError, "timeout=inf"),
        (("x", print, None), TypeError, "timeout"),
        (("x", print, 5.0, ""), ValueError, "group=''"),
        (("x", print, 5.0, ()), ValueError, r"group=\(\)"),
        (("x", print, 5.0, ("a", 3)), ValueError, "group="),
        (("x", print, 5.0, "two words"), ValueError, "group='two words'"),
        (("x", print, 5.0, "ready", 1), TypeError, "critical=1"),
        (("x", print, 5.0, "ready", True, "kill"), ValueError, "on_fail='kill'"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[Any, ...], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        HealthCheck(*arguments)


@pytest.mark.parametrize("more", [{"interval": 0}, {"interval": -1}, {"failures": 0}, {"grace": -1}, {"grace": "x"}])
def test_wrong_options_are_named(more: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError), match=next(iter(more))):
        HealthCheck("x", print, **more)


def test_wrong_questions() -> None:
    with pytest.raises(TypeError, match="group must be a word"):
        health(group=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="runtime must be a Runtime"):
        health("shop")  # type: ignore[arg-type]


# ---- who may ask ----------------------------------------------------------------------------------------------------
def from_inside() -> tuple[str, list[str]]:
    report = health()
    return report.status, sorted(name for name in report.checks if ":" not in name)


def test_a_worker_hears_of_the_programs_checks() -> None:
    """The root asks the program for them; what a worker makes itself is not the program's."""
    with Runtime(), Pool(1) as pool:
        with registered(HealthCheck("bad", tasks.fail, critical=False)):
            assert pool.submit(from_inside).result() == ("degraded", ["bad"])
        assert pool.submit(from_inside).result() == ("healthy", [])


def test_a_check_cannot_ask_for_health(shared: Runtime) -> None:
    result = run(HealthCheck("asks", tasks.ask_health), runtime=shared).checks["asks"]
    assert "cannot ask for health()" in result.error


def test_many_ask_at_once(shared: Runtime, tmp_path: Path) -> None:
    """They share the runs, so none of them waits for the others' turn."""
    journal = Journal(tmp_path / "journal")
    check = HealthCheck("counted", functools.partial(tasks.count, journal, str(tmp_path / "no")))
    found: list[str] = []
    with registered(check):
        threads = [threading.Thread(target=lambda: found.append(health(shared).status)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == ["healthy"] * 16
    assert 1 <= len(journal.lines("checked")) <= 16


def test_a_runtime_that_cannot_be_asked_is_unhealthy() -> None:
    """Not started, and ended: a report that says so, not an error."""
    runtime = Runtime()
    report = health(runtime)
    assert report.status == "unhealthy" and "not started" in report.checks["runtime:loop"].error
    with runtime:
        assert runtime.health().status == "healthy"
    report = runtime.health()
    assert report.status == "unhealthy" and "it was stopped" in report.checks["runtime:loop"].error


def test_a_root_that_does_not_run_is_unhealthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped by a signal, it does not answer; let go on, it does."""
    from shmrt.guard import asking

    with Runtime() as runtime:
        assert health().status == "healthy"
        root = runtime.pid or 0
        monkeypatch.setattr(asking, "ROOT_S", 0.2)
        os.kill(root, signal.SIGSTOP)
        try:
            report = health()
        finally:
            os.kill(root, signal.SIGCONT)
        assert report.status == "unhealthy" and "did not answer" in report.checks["runtime:loop"].error
        once(health, lambda report: report.status == "healthy")


def test_the_next_root_answers() -> None:
    """Killed while a check runs: that report is unhealthy, later ones are not."""
    with Runtime() as runtime, registered(HealthCheck("slow", tasks.hang, timeout=300)) as _:
        root = runtime.pid or 0
        found: list[Any] = []
        thread = threading.Thread(target=lambda: found.append(health()))
        thread.start()
        until(lambda: tasks.processes_of_checks(root))
        os.kill(root, signal.SIGKILL)
        thread.join()
        assert found[0].status == "unhealthy" and "runtime:loop" in found[0].checks
    with Runtime() as runtime:
        os.kill(runtime.pid or 0, signal.SIGKILL)
        once(health, lambda report: report.status == "healthy")


# ---- what a runtime knows by itself, and the ready-made checks ------------------------------------------------------
def test_pools(tmp_path: Path) -> None:
    """Workers that do not start: unhealthy while none is ready, degraded while some are; pool.health() agrees."""
    path = tmp_path / "wait"
    with Runtime() as runtime:
        with Pool(1, name="hash") as pool:
            check, by_name = checks.pool(pool), checks.pool("hash", name="by name", critical=False)
            with registered(check, by_name):
                report = once(runtime.health, lambda report: report.status == "healthy")
                assert report.checks["pool.hash:ready"].value == 1
                assert report.checks[check.name].value == report.checks["by name"].value == 1
                assert report.as_json()["checks"]["pool.hash:workers"][0]["observedUnit"] == "workers"
        again = checks.pool("hash")
        gone = run(again, runtime=runtime)
        assert "no such pool" in gone.checks[again.name].error and "pool.hash:ready" not in gone.checks
        path.touch()
        with Pool(2, name="slow", initializer=wait_while_exists, initargs=(str(path),)) as pool:
            report = runtime.health()
            assert report.status == "unhealthy" and "no worker is ready" in report.checks["pool.slow:ready"].error
            assert runtime.health("startup").status == "healthy", "it was ready once"
            assert runtime.health("live").status == "healthy"
            path.unlink()
            once(runtime.health, lambda report: report.status == "healthy")
            path.touch()
            pool.resize(3)
            report = runtime.health()
            assert report.status == "degraded" and report.checks["pool.slow:ready"].value == 2
            path.unlink()


def test_startup_is_ready_once(tmp_path: Path) -> None:
    """Unhealthy until everything was ready for the first time, healthy from then on."""
    path = tmp_path / "wait"
    path.touch()
    with Runtime() as runtime, Pool(1, initializer=wait_while_exists, initargs=(str(path),)) as pool:
        report = runtime.health("startup")
        assert report.status == "unhealthy" and set(report.checks) == {"runtime:started"}
        path.unlink()
        once(lambda: runtime.health("startup"), lambda report: report.status == "healthy")
        path.touch()
        os.kill(pool.submit(os.getpid).result(), signal.SIGKILL)
        once(runtime.health, lambda report: report.status == "unhealthy")
        assert runtime.health("startup").status == "healthy"
        path.unlink()


def wait_while_exists(path: str) -> None:
    import time

    while Path(path).exists():
        time.sleep(0.001)


def test_a_pool_of_another_runtime() -> None:
    """Its own root does not know it; the program does."""
    with Runtime() as other, Pool(1, runtime=other) as pool, Runtime() as runtime:
        pool.submit(int).result()
        with registered(check := checks.pool(pool)):
            assert runtime.health().checks[check.name].status == "healthy"


def test_ready_made_checks(shared: Runtime, tmp_path: Path) -> None:
    """Each of them, well and not."""
    made = {
        "memory": (checks.memory("1TiB", name="memory"), "healthy"),
        "memory!": (checks.memory(1, name="memory!"), "unhealthy"),
        "disk": (checks.disk_space(tmp_path, "1KiB", name="disk"), "healthy"),
        "disk!": (checks.disk_space(tmp_path, 2**60, name="disk!"), "unhealthy"),
        "nowhere": (checks.disk_space(tmp_path / "nowhere", 1, name="nowhere"), "unhealthy"),
        "shm": (checks.shared_memory("4KiB", name="shm"), "healthy"),
        "shm!": (checks.shared_memory(2**60, name="shm!"), "unhealthy"),
        **{
            state: (checks.breaker(Fake(state, state), name=state), wanted)
            for state, wanted in {
                "closed": "healthy",
                "disabled": "healthy",
                "open": "degraded",
                "half_open": "degraded",
                "forced_open": "degraded",
                "ajar": "unhealthy",
            }.items()
        },
    }
    report = run(*(check for check, _ in made.values()), runtime=shared)
    for name, (_, wanted) in made.items():
        assert report.checks[name].status == wanted, report.checks[name]
    assert report.checks["memory"].unit == "bytes" and report.checks["memory"].value > 1 << 20
    assert report.checks["disk"].value > 0 and report.checks["open"].value == "open"
    assert "FileNotFoundError" in report.checks["nowhere"].error


def test_a_breaker_is_looked_at_as_it_is_now(shared: Runtime) -> None:
    breaker = Fake("store", "closed")
    check = checks.breaker(breaker)
    with registered(check):
        assert check.name == "breaker.store:state"
        assert health(shared).checks[check.name].status == "healthy"
        breaker.state = "open"
        assert health(shared).checks[check.name].status == "degraded"


def test_rings(shared: Runtime) -> None:
    """By how full they are; full for a moment is not full for good."""
    ring = Ring.create(RingSpec(slots=20))
    try:
        with registered(check := checks.ring(ring, full_for=0.05)):
            assert health(shared).checks[check.name].value == 0.0
            for n in range(17):
                ring.put(n)
            result = health(shared).checks[check.name]
            assert (result.status, result.value, result.unit) == ("degraded", 85.0, "percent")
            for n in range(3):
                ring.put(n)
            assert health(shared).checks[check.name].status == "unhealthy"
            ring.get_many(20)
            assert health(shared).checks[check.name].status == "healthy"
    finally:
        ring.close()


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: checks.memory("much"), ValueError, "limit='much'"),
        (lambda: checks.memory(0), ValueError, "limit=0"),
        (lambda: checks.disk_space("", 1), ValueError, "path=''"),
        (lambda: checks.disk_space(3, 1), TypeError, "PathLike"),
        (lambda: checks.pool(3), TypeError, "pool must be a Pool"),
        (lambda: checks.breaker(3), TypeError, "b must be a CircuitBreaker"),
        (lambda: checks.ring(3), TypeError, "r must be a Ring"),
        (lambda: checks.shared_memory(1, colour="red"), TypeError, "colour"),
    ],
)
def test_wrong_arguments_of_ready_made_checks(make: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        make()


def test_changes_of_health_are_events() -> None:
    """Well, then not, then well again: two reports, in order, and none for what stays."""
    state = {"ok": True}
    with Runtime() as runtime, registered(HealthCheck("flag", lambda: state["ok"])):
        for ok in (True, True, False, False, True, True):
            state["ok"] = ok
            health()
        until(lambda: len([1 for report in runtime.events() if report["context"] == "health_change"]) == 2)
        first, second = [report for report in runtime.events() if report["context"] == "health_change"]
    assert (first["from"], first["to"], first["reason"]) == ("healthy", "unhealthy", "it answered False")
    assert (second["from"], second["to"], second["offender"]["id"]) == ("unhealthy", "healthy", "flag")


def test_nothing_grows() -> None:
    """Checks that come and go leave neither processes nor slots nor descriptors of the root."""
    with Runtime() as runtime:
        health()
        root = runtime.pid or 0
        until(lambda: not tasks.processes_of_checks(root))
        before = len(os.listdir(f"/proc/{root}/fd"))
        for n in range(15):
            run(HealthCheck(f"passing-{n}", tasks.fine), HealthCheck(f"dying-{n}", tasks.kill_itself))
        health()
        until(lambda: not tasks.processes_of_checks(root))
        until(lambda: len(os.listdir(f"/proc/{root}/fd")) == before)


def test_a_breaker_that_is_open_is_seen_without_being_named() -> None:
    """The breakers that a runtime's processes use are among its own checks; health is degraded, not worse."""
    breaker = CircuitBreaker("store", reset_timeout=3000)
    with Runtime():
        breaker.call(int, "1")
        assert health().checks["breaker.store:state"].status == "healthy"
        breaker.trip()
        report = health()
        assert (report.status, report.checks["breaker.store:state"].status) == ("degraded", "degraded")
        breaker.disable()
        assert health().status == "healthy"


def test_a_check_of_a_real_breaker() -> None:
    """checks.breaker of a CircuitBreaker, in the program and beside a child."""
    breaker = CircuitBreaker("disk", failure_threshold=1, reset_timeout=3000)
    mine = checks.breaker(breaker)
    try:
        with Runtime(Supervisor([Child(idle, id="a", health=[checks.breaker(breaker)])])):
            assert health().status == "healthy"
            breaker.trip()
            report = health()
            assert report.status == "degraded"
            assert report.checks[mine.name].status == "degraded"
    finally:
        mine.unregister()

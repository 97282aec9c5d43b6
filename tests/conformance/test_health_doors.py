"""How a runtime is, asked from outside: the `health` verb over the control socket, and HTTP.

Programs of their own under a name; nothing of the user's is imported by who asks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import health_tasks as tasks
import pytest
from health_tasks import registered
from tree_kit import idle, new_pid, pids, until

from shmrt import Child, ConfigError, HealthCheck, Pool, Runtime, Supervisor

ROOT = Path(__file__).parents[2]
WATCHDOG_S = 300


def cli(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "shmrt", "--runtime-dir", str(place), *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)


@contextmanager
def program(place: Path, code: str) -> Iterator[subprocess.Popen[str]]:
    """One that says "up" and then waits for a line."""
    environment = {**os.environ, "SHMRT_RUNTIME_DIR": str(place)}
    text = f"import shmrt, sys, time\n{code}\n    print('up', flush=True)\n    sys.stdin.readline()\n"
    with subprocess.Popen(
        [sys.executable, "-c", text], cwd=ROOT, env=environment, stdin=-1, stdout=-1, text=True
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            os.kill(process.pid, signal.SIGCONT)
            process.stdin.close()
            process.wait(WATCHDOG_S)


BROKEN = """
check = shmrt.HealthCheck("db", lambda: shmrt.Degraded("slow"))
bad = shmrt.HealthCheck("disk", lambda: False, group=("ready", "mine"))
with shmrt.Runtime(name="shop"):
"""


def test_the_verb(tmp_path: Path) -> None:
    """Text and JSON, groups, and an exit code of 0 or 1 whatever happens."""
    with program(tmp_path, BROKEN):
        done = cli(tmp_path, "health")
        assert done.returncode == 1 and done.stdout.startswith("unhealthy  shop\n  unhealthy disk: it answered False\n")
        assert "degraded  db: slow" in done.stdout and not done.stderr
        done = cli(tmp_path, "-o", "json", "health", "--group", "live")
        assert done.returncode == 0 and json.loads(done.stdout)["status"] == "pass"
        done = cli(tmp_path, "-o", "json", "health", "--group", "mine")
        assert done.returncode == 1 and json.loads(done.stdout)["checks"]["check.disk:health"][0]["status"] == "fail"
        done = cli(tmp_path, "health", "--group", "mien")
        assert done.returncode == 1 and "did you mean 'mine'?" in done.stderr
        done = cli(tmp_path, "health", "--colour")
        assert done.returncode == 1 and "unknown flag" in done.stderr
        events = cli(tmp_path, "-o", "jsonl", "events", "--filter", "name=health.change")
        changes = [json.loads(line) for line in events.stdout.splitlines()]
        assert {(c["metadata"]["id"], c["metadata"]["to"]) for c in changes} == {
            ("db", "degraded"),
            ("disk", "unhealthy"),
        }
    done = cli(tmp_path, "health")
    assert done.returncode == 1 and "no runtime is running" in done.stderr
    assert cli(tmp_path, "health", "--help").returncode == 0


def test_a_program_that_does_not_run(tmp_path: Path) -> None:
    """Stopped by a signal, it cannot send its checks: they run as they were, and the answer says so."""
    with program(tmp_path, BROKEN) as process:
        assert cli(tmp_path, "health").returncode == 1
        os.kill(process.pid, signal.SIGSTOP)
        done = cli(tmp_path, "-v", "health")
        os.kill(process.pid, signal.SIGCONT)
        assert done.returncode == 1 and "unhealthy disk" in done.stdout
        assert "degraded  program:answers: it did not send its checks" in done.stdout


def test_a_root_that_does_not_run(tmp_path: Path) -> None:
    """The verb does not wait longer than it was told to."""
    with program(tmp_path, BROKEN) as process:
        [root] = [int(p) for p in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()] or [0]
        if not root:  # forked by another thread of it
            pytest.skip("this kernel does not tell the children of a process")
        os.kill(root, signal.SIGSTOP)
        done = cli(tmp_path, "health", "--timeout", "200ms")
        os.kill(root, signal.SIGCONT)
        assert (done.returncode, done.stdout) == (1, "") and "no answer within 0.2 s" in done.stderr
        assert "unhealthy  shop" in until(lambda: cli(tmp_path, "health").stdout)


# ---- HTTP -----------------------------------------------------------------------------------------------------------
def get(runtime: Runtime, path: str, **more: Any) -> tuple[int, dict[str, Any]]:
    host, port = runtime.http_address or ("", 0)
    request = urllib.request.Request(f"http://{host}:{port}{path}", **more)
    try:
        with urllib.request.urlopen(request, timeout=WATCHDOG_S) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        error.close()
        return error.code, json.loads(text) if text.startswith(b"{") else {}


def test_http() -> None:
    """pass and warn are 200, fail is 503; liveness knows nothing of what fails elsewhere."""
    state = {"status": "healthy"}
    with Runtime(http=0) as runtime, Pool(1, name="hash"), registered(HealthCheck("flag", lambda: state["status"])):
        until(lambda: get(runtime, "/readyz")[0] == 200)
        until(lambda: get(runtime, "/healthz")[1]["status"] == "pass")
        assert get(runtime, "/startupz")[0] == 200
        for status, code, word in (("degraded", 200, "warn"), ("unhealthy", 503, "fail"), ("healthy", 200, "pass")):
            state["status"] = status
            assert get(runtime, "/readyz")[0] == code
            assert get(runtime, "/readyz?verbose")[1]["checks"]["check.flag:health"][0]["status"] == word
            found = get(runtime, "/healthz")
            assert (found[0], found[1]["status"]) == (code, word) and "pool.hash:ready" in found[1]["checks"]
            alive_ = get(runtime, "/livez")
            assert alive_[0] == 200 and alive_[1]["status"] == "pass" and "checks" not in alive_[1]
        assert get(runtime, "/livez", method="POST")[0] == 405
        assert get(runtime, "/livez", headers={"Host": "evil.example"})[0] == 400
        assert get(runtime, "/")[0] == 404


def test_the_server_of_http_may_die() -> None:
    """It is a child like any other: its port stays, another process serves it; the program's checks are still told."""
    with Runtime(http=0) as runtime, registered(HealthCheck("bad", tasks.fail)):
        supervisor = runtime.supervisor("shmrt-http")
        pid = pids(supervisor)["http"]
        os.kill(pid, signal.SIGKILL)
        new_pid(supervisor, "http", pid)
        assert get(runtime, "/readyz")[0] == 503


def test_http_lives_through_the_death_of_the_root() -> None:
    with Runtime(http=0) as runtime:
        root = runtime.pid or 0
        assert get(runtime, "/livez")[0] == 200
        os.kill(root, signal.SIGKILL)
        until(lambda: runtime.pid != root)

        def served() -> bool:
            try:
                return get(runtime, "/livez")[0] == 200
            except OSError:
                return False

        until(served)


def test_a_port_that_cannot_be_had() -> None:
    """Said at once, and nothing is left of the start; free again after the end."""
    with Runtime(http=0) as runtime:
        port = (runtime.http_address or ("", 0))[1]
        with pytest.raises(ConfigError, match=f"port {port} cannot be had"):
            Runtime(http=port).start()
    with Runtime(http=port) as runtime:
        assert get(runtime, "/livez")[0] == 200
    assert runtime.http_address is None
    with pytest.raises(ValueError, match="http='x'"):
        Runtime(http="x")


def test_startup_waits_for_the_tree(tmp_path: Path) -> None:
    """While the tree starts, HTTP answers already: alive, but not ready."""
    path = tmp_path / "hold"
    path.touch()
    tree = Supervisor([Child(idle, Slow(str(path)), id="slow")])
    runtime = Runtime(tree, http=0)
    import threading

    thread = threading.Thread(target=runtime.start)
    thread.start()
    try:
        until(lambda: runtime.http_address)
        until(lambda: _code(runtime, "/livez") == 200)
        assert (_code(runtime, "/startupz"), _code(runtime, "/readyz")) == (503, 503)
        path.unlink()
        thread.join()
        assert (_code(runtime, "/startupz"), _code(runtime, "/readyz")) == (200, 200)
    finally:
        path.unlink(missing_ok=True)
        thread.join()
        runtime.stop()


def _code(runtime: Runtime, path: str) -> int:
    try:
        return get(runtime, path)[0]
    except OSError:
        return 0


class Slow:
    """Takes its time to be unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return _wait, (self.path,)


def _wait(path: str) -> None:
    import time

    while Path(path).exists():
        time.sleep(0.001)


def test_run_with_http(tmp_path: Path) -> None:
    """`run --http`: endpoints of a tree from the command line; TERM ends it in order, and frees the port."""
    (tmp_path / "app.py").write_text("import signal\ndef loop():\n    while True:\n        signal.pause()\n")
    (tmp_path / "app.toml").write_text(
        '[runtime]\nname = "app"\n[health]\nmemory = "1TiB"\n[child.web]\nstart = "app:loop"\n'
        '[[child.web.health]]\nname = "probe"\ncheck = "builtins:int"\ninterval = "50ms"\non_fail = "restart"\n'
    )
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "SHMRT_RUNTIME_DIR": str(tmp_path / "place"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "shmrt", "-q", "run", "app.toml", "--http", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        try:

            class Address:
                http_address = ("127.0.0.1", port)

            here: Any = Address
            until(lambda: process.poll() is not None or _code(here, "/readyz") == 200)
            checks = get(here, "/healthz")[1]["checks"]
            assert {"child.web:probe", "memory:used", "supervisor.tree:children"} <= set(checks)
            assert cli(tmp_path / "place", "health").returncode == 0
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(WATCHDOG_S) == 0
    assert _code(here, "/livez") == 0


def test_run_refuses_a_bad_address(tmp_path: Path) -> None:
    done = cli(tmp_path, "run", "json:loads", "--http", "99999")
    assert done.returncode == 2 and "http='99999' must be a port" in done.stderr

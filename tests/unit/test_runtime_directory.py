"""The directory of a named runtime: one living owner, nothing of a stranger's touched, nothing left behind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shmrt.errors import ConfigError
from shmrt.supervise import directory, owners, place
from shmrt.supervise.directory import RuntimeDirectory, connect, find, remove_stale

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 60


@pytest.fixture
def where(tmp_path: Path) -> Iterator[str]:
    yield str(tmp_path / "place")


def child(code: str, *words: str) -> subprocess.Popen[str]:
    """Another program; it says a line, and ends when its stdin does."""
    head = "import sys, os\nfrom shmrt.supervise.directory import RuntimeDirectory\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + code + "\nprint('there', flush=True)\nsys.stdin.read()", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def killed_owner(where: str, name: str = "a") -> int:
    """A program that had the name and was killed; its pid."""
    owner = child("one = RuntimeDirectory.claim(sys.argv[2], sys.argv[1])", where, name)
    assert owner.stdout is not None and owner.stdout.readline() == "there\n"
    owner.kill()
    owner.communicate(timeout=WATCHDOG_S)
    return owner.pid


def test_a_name_is_had_and_given_back(where: str) -> None:
    """Modes are what they should be whatever the umask, and nothing stays."""
    before = os.umask(0)
    try:
        one = RuntimeDirectory.claim("a", where)
    finally:
        os.umask(before)
    modes = {path: os.stat(path).st_mode & 0o7777 for path in (where, one.path)}
    assert set(modes.values()) == {0o700}
    assert os.stat(f"{one.path}/control").st_mode & 0o7777 == 0o600
    assert os.stat(f"{one.path}/owner").st_mode & 0o7777 == 0o600
    [found] = find(where)
    assert (found.name, found.state, found.program, found.root) == ("a", "running", os.getpid(), None)
    one.rooted(os.getppid())
    assert find(where)[0].root == os.getppid()
    fd = one.control_fd
    os.close(connect(found))
    one.remove()
    assert not os.path.exists(one.path) and one.control_fd == -1
    with pytest.raises(OSError):
        os.fstat(fd)


def test_a_place_of_ours_goes_with_its_last_runtime(tmp_path: Path) -> None:
    ours = str(tmp_path / "shmrt")
    one, other = RuntimeDirectory.claim("a", ours), RuntimeDirectory.claim("b", ours)
    one.remove()
    assert os.path.isdir(ours)
    other.remove()
    assert not os.path.exists(ours)


def test_two_living_runtimes_of_one_name(where: str) -> None:
    """The second is told whose it is, in this process and in another; the first is not disturbed."""
    one = RuntimeDirectory.claim("a", where)
    with pytest.raises(ConfigError, match=f"'a' is running already: process {os.getpid()} has it") as caught:
        RuntimeDirectory.claim("a", where)
    assert caught.value.key == "name"
    code = "try: RuntimeDirectory.claim('a', sys.argv[1])\nexcept Exception as error: print(error)"
    out, _ = child(code, where).communicate(timeout=WATCHDOG_S)
    assert f"process {os.getpid()} has it" in out
    os.close(connect(find(where)[0]))
    one.remove()


def test_a_killed_owner_leaves_a_stale_directory(where: str) -> None:
    """It is listed, refuses connections, and goes to the next start of that name."""
    pid = killed_owner(where)
    [found] = find(where)
    assert (found.state, found.program) == ("stale", pid) and f"process {pid}, is gone" in found.why
    with pytest.raises(ConnectionRefusedError):
        connect(found)
    one = RuntimeDirectory.claim("a", where)
    assert find(where)[0].program == os.getpid()
    os.close(connect(find(where)[0]))
    one.remove()


def test_clean_removes_only_what_is_stale(where: str) -> None:
    killed_owner(where)
    one = RuntimeDirectory.claim("b", where)
    assert [remove_stale(found.name, where) for found in find(where)] == [True, False]
    assert os.listdir(where) == ["b"] and not remove_stale("a", where) and not remove_stale("c", where)
    one.remove()


def test_what_lies_in_a_place_and_is_no_runtime_is_not_listed(where: str) -> None:
    """`clean` would offer to remove it, and stop at it."""
    killed_owner(where)
    Path(where, "_", "photos").mkdir(parents=True)
    Path(where, "_").chmod(0o700)
    Path(where, "file").touch()
    assert [found.name for found in find(where)] == ["a"]


def test_a_pid_alone_proves_nothing(where: str) -> None:
    """The same pid with another start time, or of another boot, is another process."""
    one = RuntimeDirectory.claim("a", where)
    file = Path(one.path, "owner")
    record = json.loads(file.read_text())
    for changed in (
        {"program": {**record["program"], "start": record["program"]["start"] - 1}},
        {"machine": {**record["machine"], "boot": "another"}},
        {"program": None},
    ):
        file.write_text(json.dumps(record | changed))
        assert find(where)[0].state == "stale"
    file.write_text(json.dumps(record))
    assert find(where)[0].state == "running"
    one.remove()


def test_an_owner_of_another_namespace_is_not_judged_by_its_pid(where: str) -> None:
    """Its socket answers, so it lives; once nobody listens it is stale."""
    one = RuntimeDirectory.claim("a", where)
    file = Path(one.path, "owner")
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"machine": record["machine"] | {"pids": "pid:[1]"}}))
    [found] = find(where)
    assert found.state == "foreign" and not remove_stale("a", where)
    with pytest.raises(ConfigError, match="another pid namespace"):
        RuntimeDirectory.claim("a", where)
    os.close(one.control_fd)
    one.control_fd = -1
    assert find(where)[0].state == "stale" and remove_stale("a", where)


def test_a_root_that_is_still_ending_is_waited_for(where: str) -> None:
    """The name is free when the root of the dead program is gone, not before."""
    root = child("")
    killed_owner(where)
    file = Path(where, "a", "owner")
    record = json.loads(file.read_text())
    file.write_text(json.dumps(record | {"root": owners.describe_process(root.pid)}))
    assert find(where)[0].state == "ending" and not remove_stale("a", where)
    got: list[RuntimeDirectory] = []
    waiter = threading.Thread(target=lambda: got.append(RuntimeDirectory.claim("a", where)))
    waiter.start()
    waiter.join(0.05)
    assert not got
    root.communicate(timeout=WATCHDOG_S)
    waiter.join(WATCHDOG_S)
    assert got[0].path == str(file.parent)
    got[0].remove()


def test_a_runtime_that_gave_up_leaves_its_reason(where: str) -> None:
    """Its program may go on and even start another one of that name."""
    one = RuntimeDirectory.claim("a", where)
    one.leave("it gave up")
    [found] = find(where)
    assert found.state == "stale" and found.why == "it gave up"
    other = RuntimeDirectory.claim("a", where)
    one.remove()  # its directory is another's now
    assert find(where)[0].state == "running"
    other.remove()


def test_a_maker_that_died_half_way(where: str) -> None:
    """A directory without an owner, or with half of one, is stale."""
    for content in (None, b"", b'{"mach', b"\xff", b"[1]", b"[" * 60000):
        Path(where, "a").mkdir(parents=True, mode=0o700)
        if content is not None:
            Path(where, "a", "owner").write_bytes(content)
        Path(where, "a", "owner-0123").touch()
        assert find(where)[0].state == "stale" and remove_stale("a", where)
    Path(where, "a").mkdir(mode=0o700)
    RuntimeDirectory.claim("a", where).remove()


def test_a_stale_socket_is_no_obstacle(where: str) -> None:
    Path(where, "a").mkdir(parents=True, mode=0o700)
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(f"{where}/a/control")
    RuntimeDirectory.claim("a", where).remove()
    assert os.listdir(where) == []


@pytest.mark.parametrize("which", ["place", "name"])
def test_links_strangers_and_loose_modes_are_refused(where: str, tmp_path: Path, which: str) -> None:
    """Nothing is repaired: whoever could write there may have had a reason."""
    path = Path(where) if which == "place" else Path(where, "a")
    path.parent.mkdir(exist_ok=True, mode=0o700)
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="symbolic link") as caught:
        RuntimeDirectory.claim("a", where)
    assert caught.value.key == "runtime_dir" and str(path) in str(caught.value)
    assert os.listdir(tmp_path / "elsewhere") == []
    path.unlink()
    path.write_text("")
    with pytest.raises(ConfigError, match="not a directory"):
        RuntimeDirectory.claim("a", where)
    path.unlink()
    path.mkdir()
    path.chmod(0o770)
    with pytest.raises(ConfigError, match="written by others"):
        RuntimeDirectory.claim("a", where)
    path.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
        with pytest.raises(ConfigError, match="belongs to user 65534, not to 0"):
            RuntimeDirectory.claim("a", where)


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "a\0b", "a\nb", "x" * 181, "\udcff"])
def test_names_that_cannot_be(where: str, name: str) -> None:
    with pytest.raises(ConfigError, match="name=") as caught:
        RuntimeDirectory.claim(name, where)
    assert caught.value.key == "name" and not os.path.exists(where)


@pytest.mark.parametrize("name", ["a", "x" * 180, "später 🎉", "a.b-c_d", "%s", "a b"])
def test_names_that_can(where: str, name: str) -> None:
    """A Unix socket's path has 108 bytes; a name may be longer."""
    one = RuntimeDirectory.claim(name, where)
    assert find(where)[0].name == name
    os.close(connect(find(where)[0]))
    one.remove()


def test_many_at_once_and_one_has_it(where: str) -> None:
    """Of any number of starts at the same moment one gets the name, and every loser is told."""
    code = """
sys.stdin.readline()
try:
    one = RuntimeDirectory.claim('a', sys.argv[1])
    print('mine', flush=True)
except Exception as error:
    print(type(error).__name__, flush=True)
"""
    several = [child(code, where) for _ in range(6)]
    for one in several:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    said = sorted(one.stdout.readline().strip() for one in several if one.stdout is not None)
    assert said == ["ConfigError"] * 5 + ["mine"]
    for one in several:
        one.communicate(timeout=WATCHDOG_S)


def test_starts_and_stops_in_one_place(tmp_path: Path) -> None:
    """The place itself comes and goes meanwhile; nobody trips over that."""
    ours = str(tmp_path / "shmrt")
    problems: list[BaseException] = []

    def cycle(name: str) -> None:
        try:
            for _ in range(100):
                RuntimeDirectory.claim(name, ours).remove()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=cycle, args=(name,)) for name in "abc"]
    for one in threads:
        one.start()
    for one in threads:
        one.join(WATCHDOG_S)
    assert problems == [] and not os.path.exists(ours)


def test_a_lock_that_is_never_given_back(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped process is named as the possible cause; the wait has an end."""
    monkeypatch.setattr(place, "_LOCK_S", 0.02)
    with place.locked(where, make=True), pytest.raises(ConfigError, match=r"kept .* locked"):
        RuntimeDirectory.claim("a", where)


def test_where_directories_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable, else the session's directory if it is this user's, else one in /tmp."""
    monkeypatch.delenv(place.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert place.default_place() == f"{tmp_path}/shmrt"
    for other in ("", "relative", str(tmp_path / "absent")):
        monkeypatch.setenv("XDG_RUNTIME_DIR", other)
        assert place.default_place() == f"/tmp/shmrt-{os.geteuid()}"
    monkeypatch.setenv(place.VARIABLE, str(tmp_path / "x"))
    assert place.default_place() == str(tmp_path / "x")


def test_a_place_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be made: Not a directory"):
        RuntimeDirectory.claim("a", str(tmp_path / "file" / "place"))


def test_a_socket_that_cannot_be_made_leaves_nothing(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(directory, "_listen", fail)
    with pytest.raises(OSError, match="No space"):
        RuntimeDirectory.claim("a", where)
    assert os.listdir(where) == []


def test_a_zombie_is_dead() -> None:
    """Its pid is taken and its start time is right, and yet nobody is there."""
    one = subprocess.Popen(["true"])
    process = owners.describe_process(one.pid)
    while owners.is_alive(process):
        time.sleep(0.001)
    assert owners.describe_process(one.pid) == process
    one.wait(WATCHDOG_S)

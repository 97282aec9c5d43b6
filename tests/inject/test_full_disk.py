"""The disk is full, its quota is used up, or it may not be written to: below the runtime directory, and /dev/shm.

`full_disk.py` tries each operation with room for nothing, for one file or page more, and so on, until it goes through:
one documented error that names the place, the documented exit code, and nothing left behind, not even for the next
try. It has mounts of its own, which nobody else sees.
"""

from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest
from inject_kit import Child

import shmrt
from shmrt.errors import ConfigError
from shmrt.supervise import directory, place

OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
CASES = [("runtime", "runtime"), ("ring", "shm")]


@pytest.fixture(scope="module")
def under() -> tuple[str, ...]:
    for more in ((), ("--user", "--map-root-user")):
        words = (*OWN_MOUNTS, *more)
        try:
            if subprocess.run([*words, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
                return words
        except FileNotFoundError:
            break
    pytest.skip("NOT TESTED: this user may not mount anything, even in a namespace of its own")


def fill(shim: Path, folder: Path, under: tuple[str, ...], *words: object) -> dict[str, int]:
    """What was said how often."""
    child = Child(shim, folder, "full_disk.py", *words, under=under)
    status, lines, err = child.end()
    assert status == 0 and lines and "end" in lines[-1], f"status {status} at {child.at()}\n{err[-6000:]}"
    problems = [line for line in lines if "problem" in line]
    assert not problems, "\n".join(f"{line['k']} more: {line['problem']}" for line in problems[:4])
    said: dict[str, int] = lines[-1]["said"]
    assert lines[-1]["through"] == ("read-only" not in words) and len(said) > lines[-1]["through"], said  # it bit
    print(*words, said)
    return said


@pytest.mark.parametrize("how", ["files", "bytes", "read-only"])
@pytest.mark.parametrize(("operation", "where"), CASES)
def test_no_room(shim: Path, tmp_path: Path, under: tuple[str, ...], operation: str, where: str, how: str) -> None:
    fill(shim, tmp_path, under, operation, where, how, 32)


def test_a_command_says_so(shim: Path, tmp_path: Path, under: tuple[str, ...]) -> None:
    fill(shim, tmp_path, under, "command", "runtime", "read-only", 1)


@pytest.mark.stress
@pytest.mark.parametrize("how", ["files", "bytes"])
@pytest.mark.parametrize(("operation", "where"), [*CASES, ("command", "runtime")])
def test_room_for_one_more_each_time(
    shim: Path, tmp_path: Path, under: tuple[str, ...], operation: str, where: str, how: str
) -> None:
    fill(shim, tmp_path, under, operation, where, how, 1)


# ---- what no tmpfs says --------------------------------------------------------------------------------------------
def test_a_record_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full after some bytes takes those: what says whose the name is must stay what it was."""
    monkeypatch.setenv("SHMRT_RUNTIME_DIR", str(tmp_path))
    with shmrt.Runtime(name="half"):
        path = tmp_path / "half"
        before = (path / "owner").read_bytes()
        fd = os.open(path, os.O_RDONLY)
        write = os.write
        try:
            monkeypatch.setattr(directory.os, "write", lambda file, data: write(file, data[: len(data) // 2]))
            with pytest.raises(OSError) as caught:
                directory._write_owner(fd, {"token": "another"})
            assert caught.value.errno == errno.ENOSPC
        finally:
            monkeypatch.setattr(directory.os, "write", write)
            os.close(fd)
        assert (path / "owner").read_bytes() == before and sorted(os.listdir(path)) == ["control", "owner"]


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, OSError),
        (errno.EDQUOT, OSError),
        (errno.EROFS, ConfigError),
        (errno.EACCES, ConfigError),
        (errno.ENAMETOOLONG, ConfigError),
    ],
)
def test_what_cannot_be_made_is_named(number: int, kind: type[Exception]) -> None:
    """An OSError keeps its number, which the command line turns into code 6; only another place helps the others."""
    with pytest.raises(kind, match="the runtime directory /a/place cannot be made") as caught, place.naming("/a/place"):
        raise OSError(number, os.strerror(number))
    assert getattr(caught.value, "errno", number) == number and isinstance(caught.value, ConfigError) == (
        kind is ConfigError
    )

"""The place that holds the directories of named runtimes: where it is, whose it may be, how its users take turns.

A place, and each directory in it, is 0700, belongs to this user, and is never a symbolic link. What is not like that
is refused, not repaired: somebody else may have had a hand in it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from time import monotonic, sleep

from shmrt.errors import ConfigError

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["VARIABLE", "check_runtime_name", "default_place", "locked", "naming", "open_checked"]

VARIABLE = "SHMRT_RUNTIME_DIR"
NAME_MOST = 180
_LOCK_S = 5.0  # whoever holds it makes a few system calls; longer means that it was stopped
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def check_runtime_name(name: str) -> str:
    """A name that can be a directory and an argument. Raises ConfigError."""
    problem = None
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        size, problem = 0, "cannot be written as UTF-8"
    if not problem and not 1 <= size <= NAME_MOST:
        problem = f"must be 1 to {NAME_MOST} bytes long, not {size}"
    elif not problem and ("/" in name or not name.isprintable()):
        problem = "may not hold '/' or control characters"
    elif not problem and name[0] in ".-":
        problem = f"may not begin with {name[0]!r}"
    if problem:
        raise ConfigError(f"name={name!r} of a runtime {problem}", key="name")
    return name


def default_place() -> str:
    """Where this user's runtimes have their directories. Whether it exists is another question."""
    if place := os.environ.get(VARIABLE):
        return os.path.abspath(place)
    session = os.environ.get("XDG_RUNTIME_DIR", "")
    with contextlib.suppress(OSError):  # after `su` the variable names what belongs to somebody else
        if os.path.isabs(session) and os.stat(session).st_uid == os.geteuid() and os.access(session, os.W_OK):
            return os.path.join(session, "shmrt")
    return f"/tmp/shmrt-{os.geteuid()}"


def _refuse(path: str, problem: str) -> ConfigError:
    return ConfigError(
        f"the runtime directory {path} {problem}; remove it, or choose another place with {VARIABLE} or --runtime-dir",
        key="runtime_dir",
        origin=path,
    )


def open_checked(path: str, dir_fd: int | None = None, *, shown: str | None = None) -> int:
    """A descriptor of a directory that nobody else can have a hand in."""
    shown = shown or path
    try:
        fd = os.open(path, _OPEN, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise _refuse(shown, "is a symbolic link or not a directory") from None
        if error.errno == errno.EACCES:
            raise _refuse(shown, "cannot be opened by this user") from None
        if error.errno in (errno.ENOENT, errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise  # there is none, or a limit that says so itself
        raise _refuse(shown, f"cannot be opened: {error.strerror}") from None
    found = os.fstat(fd)
    problem = None
    if found.st_uid != os.geteuid():
        problem = f"belongs to user {found.st_uid}, not to {os.geteuid()}"
    elif found.st_mode & 0o022:
        problem = f"can be written by others (mode {stat.S_IMODE(found.st_mode):04o})"
    if problem:
        os.close(fd)
        raise _refuse(shown, problem)
    return fd


@contextlib.contextmanager
def locked(place: str, *, make: bool) -> Iterator[int]:
    """The place, with everybody else of this user kept out. FileNotFoundError if it is not there and not to be made."""
    end = monotonic() + _LOCK_S
    fd = -1
    while True:
        if make:
            _make_directory(place)
        try:
            fd = open_checked(place)
        except FileNotFoundError:
            if make and monotonic() < end:
                continue  # a runtime that ended took the empty place with it
            raise
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_there(fd, place):
                break
        except BlockingIOError:
            sleep(0.001)
        os.close(fd)
        if monotonic() > end:
            raise ConfigError(
                f"another process has kept {place} locked for {_LOCK_S:g} s; if it was stopped, let it go on or end it",
                key="runtime_dir",
                origin=place,
            )
    try:
        yield fd
    finally:
        # Unlocked, not only closed: a child that another thread forked meanwhile has a copy of the descriptor.
        fcntl.flock(fd, fcntl.LOCK_UN)
        os.close(fd)


def _is_there(fd: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False))
    except OSError:
        return False


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """What the system says when the directory or a file in it cannot be made, with its path: a full disk or quota as
    OSError, and what only another place can help as ConfigError."""
    try:
        yield
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
            raise OSError(error.errno, f"the runtime directory {path} cannot be made: {error.strerror}") from None
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise  # a limit that says so itself
        raise ConfigError(
            f"the runtime directory {path} cannot be made: {error.strerror}; choose another place with {VARIABLE} or "
            "--runtime-dir",
            key="runtime_dir",
            origin=path,
        ) from None


def _make_directory(path: str) -> None:
    with contextlib.suppress(FileExistsError), naming(path):
        os.mkdir(path, 0o700)

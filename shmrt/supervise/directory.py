"""The directory of a named runtime: who has the name, where its control socket is, what a crash leaves behind.

    $XDG_RUNTIME_DIR/shmrt/NAME/      else /tmp/shmrt-UID/NAME/; SHMRT_RUNTIME_DIR or --runtime-dir name another place
        owner                         JSON: boot, pids and start times of the program and of its root
        control                       the Unix socket that the root answers on, mode 0600

Directories are 0700, belong to this user, and are never symbolic links; whatever else lies there is refused, not
repaired. One living runtime has a name: the next one of that name is told whose it is. A runtime that stops in order
removes its directory. What a crash, or a root that gave up, leaves behind stays for the post-mortem until the next
start of that name or `python -m shmrt clean`; an owner counts as dead only if boot id, pid and start time prove it.

Takeovers and removals of one user exclude each other by a lock on the place that holds the directories. It is held
for a few system calls, never for the life of anybody.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
from time import monotonic, sleep

from shmrt.errors import ConfigError
from shmrt.supervise.owners import describe_machine, describe_process, is_alive, same_machine
from shmrt.supervise.place import check_runtime_name, default_place, locked, naming, open_checked

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Found", "RuntimeDirectory", "connect", "find", "remove_stale"]

_BACKLOG = 128
_ENDING_S = 5.0  # a root whose program died is gone within a second
_FILES = ("control", "owner")


# ---- what lies there ------------------------------------------------------------------------------------------------
class Found:
    """A name that is in use or was. `state`: running, ending (its program is gone, its root not yet), stale (nobody of
    it lives), or foreign (of another pid namespace: nobody can tell here)."""

    __slots__ = ("name", "owner", "path", "state")

    def __init__(self, name: str, path: str, state: str, owner: dict[str, Any]) -> None:
        self.name = name
        self.path = path
        self.state = state
        self.owner = owner

    @property
    def program(self) -> int | None:
        return _pid(self.owner.get("program"))

    @property
    def root(self) -> int | None:
        return _pid(self.owner.get("root"))

    @property
    def why(self) -> str:
        """In words for whoever wanted to talk to it."""
        if self.state == "running":
            return f"process {self.program} has it"
        if self.state == "ending":
            return f"its program {self.program} is gone and its root {self.root} is ending"
        ended = self.owner.get("ended")
        if self.state == "stale":
            left = (
                f"its program, process {self.program}, is gone" if self.program else "whoever began to make it is gone"
            )
            return str(ended) if ended else left
        return "its owner lives in another pid namespace, if at all"


def _pid(process: Any) -> int | None:
    pid = process.get("pid") if isinstance(process, dict) else None
    return pid if isinstance(pid, int) else None


def find(place: str | None = None) -> list[Found]:
    """Every name in that place, by name. An absent place has none."""
    place = place or default_place()
    try:
        fd = open_checked(place)
    except FileNotFoundError:
        return []
    try:
        found = []
        for name in sorted(os.listdir(fd)):
            with contextlib.suppress(FileNotFoundError, ConfigError):  # it has just ended, or it is none of ours
                one = _look(fd, name, place)
                if one.owner or _is_ours(fd, name):
                    found.append(one)
        return found
    finally:
        os.close(fd)


def _is_ours(place_fd: int, name: str) -> bool:
    """Whether nothing lies there but what a runtime makes: a place that the user named may hold others' directories."""
    fd = open_checked(name, place_fd)
    try:
        return all(entry in _FILES or entry.startswith("owner-") for entry in os.listdir(fd))
    finally:
        os.close(fd)


def _look(place_fd: int, name: str, place: str) -> Found:
    path = os.path.join(place, name)
    fd = open_checked(name, place_fd, shown=path)
    try:
        owner = _read_owner(fd)
        return Found(name, path, _judge(owner, fd), owner)
    finally:
        os.close(fd)


def _read_owner(fd: int) -> dict[str, Any]:
    """{} where there is none: its maker died before it was written."""
    try:
        file = os.open("owner", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    except OSError:
        return {}
    try:
        value = json.loads(os.read(file, 65536))
    except (OSError, ValueError, RecursionError):
        return {}
    finally:
        os.close(file)
    return value if isinstance(value, dict) else {}


def _judge(owner: dict[str, Any], fd: int) -> str:
    here = same_machine(owner.get("machine"))
    if here is False:
        return "stale"
    if here is None:
        try:
            os.close(connect_in(fd))
        except (ConnectionRefusedError, FileNotFoundError):
            return "stale"  # whoever lives holds its listening socket
        except OSError:
            pass
        return "foreign"
    if is_alive(owner.get("program")):
        return "stale" if owner.get("ended") else "running"
    return "ending" if is_alive(owner.get("root")) else "stale"


# ---- the socket -----------------------------------------------------------------------------------------------------
def _listen(fd: int) -> int:
    """A listening socket in the directory. The path through the descriptor is short however long the name is."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as server:
        os.fchmod(server.fileno(), 0o600)  # what bind makes has this mode from its first moment
        server.bind(f"/proc/self/fd/{fd}/control")
        server.listen(_BACKLOG)
        return server.detach()


def connect_in(fd: int) -> int:
    """A socket connected to the one in the directory `fd`."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        client.setblocking(False)  # a listener that accepts nobody must not stop us
        client.connect(f"/proc/self/fd/{fd}/control")
        return client.detach()


def connect(found: Found) -> int:
    """A connected socket to the root of that runtime. OSError: there is none, or it does not answer."""
    fd = open_checked(found.path)
    try:
        return connect_in(fd)
    finally:
        os.close(fd)


# ---- having one -----------------------------------------------------------------------------------------------------
class RuntimeDirectory:
    """The name, as long as this program has it. Made by `claim`; ended by `remove` or `leave`."""

    def __init__(self, name: str, place: str, control_fd: int, owner: dict[str, Any]) -> None:
        self.name = name
        self.path = os.path.join(place, name)
        self.control_fd = control_fd
        """The listening socket; every root of the runtime gets it."""
        self._place = place
        self._owner = owner

    @classmethod
    def claim(cls, name: str, place: str | None = None) -> RuntimeDirectory:
        """Takes the name. ConfigError(key="name") if a living runtime has it."""
        check_runtime_name(name)
        place = place or default_place()
        end = monotonic() + _ENDING_S
        while True:
            with contextlib.suppress(FileNotFoundError), locked(place, make=True) as place_fd:
                made = cls._take(name, place, place_fd)
                if made is not None:
                    return made
            if monotonic() > end:
                raise ConfigError(
                    f"a runtime named {name!r} is still ending: its root did not leave within {_ENDING_S:g} s; try "
                    "again, or choose another name",
                    key="name",
                )
            sleep(0.005)

    @classmethod
    def _take(cls, name: str, place: str, place_fd: int) -> RuntimeDirectory | None:
        """None while the last owner's root is on its way out."""
        path = os.path.join(place, name)
        with contextlib.suppress(FileExistsError), naming(path):
            os.mkdir(name, 0o700, dir_fd=place_fd)
        found = _look(place_fd, name, place)
        if found.state == "ending":
            return None
        if found.state != "stale":
            raise ConfigError(
                f"a runtime named {name!r} is running already: {found.why} ({path}); choose another name, or stop it "
                f"with `python -m shmrt --name {name} stop`",
                key="name",
                origin=path,
            )
        fd = open_checked(name, place_fd, shown=path)
        try:
            os.fchmod(fd, 0o700)
            _empty(fd)
            owner = {
                "schema": "shmrt.owner/1",
                "name": name,
                "token": secrets.token_hex(8),
                "machine": describe_machine(),
                "program": describe_process(os.getpid()),
                "root": None,
                "ended": None,
            }
            with naming(path):
                _write_owner(fd, owner)
                return cls(name, place, _listen(fd), owner)
        except BaseException:
            _empty(fd)
            with contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=place_fd)
            raise
        finally:
            os.close(fd)

    def rooted(self, pid: int) -> None:
        """A root was started: its pid becomes part of the record."""
        self._owner["root"] = describe_process(pid)
        self._update()

    def leave(self, reason: str) -> None:
        """The runtime is over, and why is to be found later: the directory stays, as a stale one."""
        self._owner["ended"] = reason
        self._update()
        self._close()

    def remove(self) -> None:
        """The runtime stopped in order: nothing stays."""
        self._close()
        with contextlib.suppress(OSError, ConfigError), locked(self._place, make=False) as place_fd:
            if self._is_ours(place_fd):
                _remove(place_fd, self.name, self._place)

    def _close(self) -> None:
        if self.control_fd >= 0:
            os.close(self.control_fd)
            self.control_fd = -1

    def _is_ours(self, place_fd: int) -> bool:
        return bool(_look(place_fd, self.name, self._place).owner.get("token") == self._owner["token"])

    def _update(self) -> None:
        """Best effort: a directory that the user removed by hand is no reason to end a runtime."""
        with contextlib.suppress(OSError, ConfigError), locked(self._place, make=False) as place_fd:
            if self._is_ours(place_fd):
                fd = open_checked(self.name, place_fd)
                try:
                    _write_owner(fd, self._owner)
                finally:
                    os.close(fd)


def _write_owner(fd: int, owner: dict[str, Any]) -> None:
    """Whole or not at all, for whoever reads it without the lock."""
    private = f"owner-{owner['token']}"
    file = os.open(private, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        try:
            data = json.dumps(owner).encode() + b"\n"
            if os.write(file, data) < len(data):  # the disk is full by now; half a record would speak of nobody
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(file)
        os.rename(private, "owner", src_dir_fd=fd, dst_dir_fd=fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(private, dir_fd=fd)
        raise


def _empty(fd: int) -> None:
    """Removes what a runtime puts into its directory, and nothing else."""
    for entry in os.listdir(fd):
        if entry in _FILES or entry.startswith("owner-"):
            with contextlib.suppress(OSError):
                os.unlink(entry, dir_fd=fd)


def _remove(place_fd: int, name: str, place: str) -> None:
    fd = open_checked(name, place_fd)
    try:
        _empty(fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=place_fd)
    if os.path.basename(place) in ("shmrt", f"shmrt-{os.geteuid()}"):  # a place of ours, not one that the user named
        with contextlib.suppress(OSError):  # others are in it
            os.rmdir(place)


def remove_stale(name: str, place: str | None = None, *, foreign: bool = False) -> bool:
    """Removes that directory if it is stale now (`foreign`: also if nobody can tell); whether it did."""
    place = place or default_place()
    try:
        with locked(place, make=False) as place_fd:
            if _look(place_fd, name, place).state not in (("stale", "foreign") if foreign else ("stale",)):
                return False
            _remove(place_fd, name, place)
            return True
    except FileNotFoundError:
        return False

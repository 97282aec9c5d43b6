"""Names of shared memory: who may use which, how a named file appears all at once, how leftovers go.

A named ring is one file of POSIX shared memory, mode 0600. It is made under a private name that carries its
maker's owner id, filled, and only then linked to its real name, so nobody ever attaches to half of one; a
maker that died before the link leaves a private name, which the next create of the same user sweeps.
A named ring that is whole stays until `unlink` or reboot: that is its contract.

    >>> check_name("orders")
    'orders'
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable

from shmrt.errors import NotFound, SegmentError

__all__ = ["check_name", "create_named", "open_named", "unlink_named"]

_DIRECTORY = "/dev/shm"  # where glibc keeps what shm_open names


def check_name(name: object, argument: str = "name") -> str:
    """A name without '/' and control characters, at most 180 bytes. Raises TypeError or ValueError."""
    if not isinstance(name, str):
        raise TypeError(f"{argument} must be a string, not {name!r}")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise ValueError(f"{argument}={name!r} cannot be written as UTF-8") from None
    if not 1 <= size <= 180:
        raise ValueError(f"{argument}={name!r} must be 1 to 180 bytes long, not {size}")
    if "/" in name or not name.isprintable() or name != name.strip():
        raise ValueError(f"{argument}={name!r} may not hold '/', control characters or spaces at its ends")
    return name


def _file_name(name: str) -> str:
    return f"shmrt-{os.geteuid()}-ring-{name}"


def _private_prefix() -> str:
    return f"shmrt-{os.geteuid()}-new-"


def sweep() -> int:
    """Removes private names whose makers are gone; returns how many."""
    from shmrt import _native

    removed = 0
    prefix = _private_prefix()
    for entry in os.listdir(_DIRECTORY):
        owner = entry[len(prefix) :].partition("-")[0]
        if entry.startswith(prefix) and owner.isdigit() and not _native.owner_is_alive(int(owner)):
            try:
                os.unlink(os.path.join(_DIRECTORY, entry))
                removed += 1
            except OSError:
                pass  # another sweep was faster, or it is not ours to remove
    return removed


def create_named(name: str, size: int, fill: Callable[[int], None]) -> None:
    """Makes the file, lets `fill(fd)` write it, and gives it its name. SegmentError if the name is taken."""
    import posix_ipc

    from shmrt import _native

    sweep()
    private = f"{_private_prefix()}{_native.owner_self()}-{secrets.token_hex(8)}"
    try:
        memory = posix_ipc.SharedMemory("/" + private, posix_ipc.O_CREX, mode=0o600, size=size)
    except (OSError, posix_ipc.Error) as error:
        raise SegmentError(f"shared memory of {size} bytes for ring {name!r} could not be made: {error}") from error
    try:
        os.fchmod(memory.fd, 0o600)  # the umask may have taken bits away
        fill(memory.fd)
        try:
            os.link(os.path.join(_DIRECTORY, private), os.path.join(_DIRECTORY, _file_name(name)))
        except FileExistsError:
            raise SegmentError(
                f"a ring named {name!r} exists already; attach to it, or unlink it first", hint="Ring.attach"
            ) from None
    finally:
        memory.close_fd()
        try:
            posix_ipc.unlink_shared_memory("/" + private)
        except posix_ipc.ExistentialError:
            pass


def open_named(name: str) -> int:
    """A descriptor of the named file; the caller closes it. NotFound if there is none."""
    import posix_ipc

    try:
        return int(posix_ipc.SharedMemory("/" + _file_name(name)).fd)
    except posix_ipc.ExistentialError:
        raise NotFound(
            f"no ring named {name!r} for user {os.geteuid()}; Ring.create(name={name!r}) makes one"
        ) from None
    except ValueError as error:  # what the system says of a directory
        raise SegmentError(f"the ring named {name!r} cannot be opened: its file is not one of shared memory") from error
    except (OSError, posix_ipc.Error) as error:
        raise SegmentError(f"the ring named {name!r} cannot be opened: {error}") from error


def unlink_named(name: str, inode: int) -> bool:
    """Removes the name if it still means the file with this inode. Whoever has it mapped goes on."""
    path = os.path.join(_DIRECTORY, _file_name(name))
    try:
        if os.stat(path).st_ino != inode:
            return False
        os.unlink(path)
    except FileNotFoundError:
        return False
    return True

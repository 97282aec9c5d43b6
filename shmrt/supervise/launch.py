"""Starting the interpreter of a root: lean, without anything of the program's but what it needs to be the same Python.

The root gets two descriptors: 3, its end of the control socket, and 4, a pidfd of the program. Everything else,
the shared memory too, comes through the socket, so that its interpreter starts while the program still makes that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import sys

from shmrt import _native
from shmrt.process.signals import KILL

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Launched", "explain", "launch", "limit_in"]

# A collection during the imports would find nothing.
_ENTER = "import gc, sys; gc.disable(); sys.path.append(sys.argv.pop()); from shmrt.supervise.root import main; main()"
# Variables that shape an interpreter before it runs anything; all other PYTHON* ones are for the user's programs.
_KEPT = ("PYTHONHOME", "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE", "PYTHONMALLOC", "PYTHONPLATLIBDIR")
_hash_seed = ""
_LIMITS = {  # what an answer of the kernel's is about
    errno.EMFILE: " (see `ulimit -n`: shmrt needs about 16 descriptors, and 2 for each pool)",
    errno.EAGAIN: " (see `ulimit -u` and the pids limit of the cgroup)",
    errno.ENOMEM: " (see `ulimit -v` and the memory of the machine)",
}


class Launched:
    """A root whose interpreter starts: the program's end of its control socket, its pid and a pidfd of it."""

    __slots__ = ("control", "pid", "pidfd")

    def __init__(self, control: int, pid: int, pidfd: int) -> None:
        self.control = control
        self.pid = pid
        self.pidfd = pidfd

    def end(self) -> None:
        """Nobody took it over."""
        _native.pidfd_signal(self.pidfd, KILL)
        try:
            os.waitpid(self.pid, 0)
        except ChildProcessError:
            pass  # somebody else in the program waits for any child
        os.close(self.pidfd)
        os.close(self.control)


def launch() -> Launched:
    """Starts a root's process; does not wait for it. Raises OSError that names the limit to raise."""
    opened: list[int] = []
    try:
        ours, theirs = _native.socketpair(False)
        opened += [ours, theirs]
        program = _native.pidfd_open(os.getpid())
        opened.append(program)
        pid, pidfd = _launch(theirs, program)
        opened.remove(ours)
        return Launched(ours, pid, pidfd)
    except OSError as error:
        raise explain(error, "the root supervisor could not be started") from error
    finally:
        for fd in opened:
            os.close(fd)


def _launch(control: int, program: int) -> tuple[int, int]:
    """posix_spawn of a root with these two descriptors, in a session of its own; its pid and a pidfd of it."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    copies: list[int] = []
    try:
        # High copies first, so that neither is overwritten by the other's new number.
        for fd in (control, program):
            copies.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 5))
        actions: list[tuple[Any, ...]] = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, copy, number) for number, copy in enumerate(copies, 3)]
        command = [*_interpreter(), "-c", _ENTER, str(os.getpid()), package]
        pid = os.posix_spawn(
            command[0],
            command,
            _environment(),
            file_actions=actions,
            setsid=True,
            setsigmask=[],
            setsigdef=range(1, 32),
        )
        try:
            return pid, os.pidfd_open(pid)
        except OSError:  # nobody could hear of its end
            os.kill(pid, KILL)
            os.waitpid(pid, 0)
            raise
    finally:
        for fd in copies:
            os.close(fd)


def explain(error: OSError, what: str) -> OSError:
    """The same error, with what it prevented and the limit that it is about."""
    return OSError(error.errno, f"{what}: {error.strerror}{_LIMITS.get(error.errno or 0, '')}")


def limit_in(text: str) -> str:
    """What to add to the words of an OSError that is about a limit, unless they have it already."""
    return next((limit for number, limit in _LIMITS.items() if f"[Errno {number}]" in text and limit not in text), "")


def _interpreter() -> list[str]:
    """The command line of an interpreter as this one, but lean: no site, no user code on its path."""
    flags = sys.flags
    command = [sys.executable or "/proc/self/exe", "-S", "-P", "-s"]
    for letter, value in (("d", flags.debug), ("b", flags.bytes_warning), ("O", flags.optimize), ("v", flags.verbose)):
        command += ["-" + letter * value] if value else []
    command += ["-B"] if flags.dont_write_bytecode else []
    for key, value in sys._xoptions.items():
        command += ["-X", key if value is True else f"{key}={value}"]
    return command


def _environment() -> dict[bytes, bytes]:
    """The root's environment: the program's, without what would bring user code or another hash seed."""
    global _hash_seed
    environment = {key: value for key, value in os.environb.items() if not key.startswith(b"PYTHON")}
    ignores = sys.flags.ignore_environment
    for name in _KEPT if not ignores else ():
        if name in os.environ:
            environment[name.encode()] = os.environb[name.encode()]
    given = "" if ignores else os.environ.get("PYTHONHASHSEED", "")
    if not sys.flags.hash_randomization:
        seed = "0"
    elif given.isdigit():
        seed = given
    else:
        # A random seed of the program cannot be had; all workers of all roots share one of their own.
        _hash_seed = _hash_seed or str(int.from_bytes(os.urandom(4), "little"))
        seed = _hash_seed
    environment[b"PYTHONHASHSEED"] = seed.encode()
    return environment

"""A child of a tree as the root sees it: who it is, its process, its mailbox, and what it said of its end.

A process child is a crew of one (`crew.py`), so that everything the root knows about workers (slots, reaping, process
groups, pools of their own) holds for it, too. But nobody keeps that crew at a number: its supervisor in the tree
decides, and hears of its start and end through `KinLine`, which stands where a pool's crew has its channel.

The key of a child belongs to its specification and outlives every process of it.
"""

from __future__ import annotations

import gc
import os
import sys

from shmrt.supervise.crew import Crew
from shmrt.supervise.protocol import FIRST_KIN

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt import _native
    from shmrt.supervise.crew import Worker

__all__ = ["Kin", "KinCrew", "KinLine", "Unkept", "exit_reason", "import_cloudpickle", "no_room", "signal_name"]

LOOP = "shmrt.supervise.child:ChildLoop"


class Unkept:
    """In the place of a keeper: never starts, counts or breaks anything."""

    __slots__ = ()
    broken = False

    def starts(self, now_ns: int, *, alive: int) -> int:
        return 0

    def wait_ns(self, now_ns: int, *, alive: int) -> int | None:
        return None

    def resize(self, workers: int) -> None: ...

    def on_ready(self) -> None: ...

    def on_start_failed(self, *args: Any, **more: Any) -> None: ...

    def on_gone(self, *args: Any, **more: Any) -> None: ...


class KinLine:
    """Takes the events of one crew and gives them to whoever keeps the tree."""

    __slots__ = ("hear", "kin")
    closed = False
    pending = False

    def __init__(self, kin: Kin, hear: Callable[[Kin, tuple[Any, ...]], None]) -> None:
        self.kin = kin
        self.hear = hear

    def send(self, message: tuple[Any, ...]) -> None:
        self.hear(self.kin, message)


class KinCrew(Crew):
    """One slot, one process at a time, started when its supervisor says so."""

    may_stand_by = False

    def __init__(self, kin: Kin, slot: int, line: Any) -> None:
        super().__init__(FIRST_KIN + kin.key, kin.spec(), slot, 1, [], line)
        self.keeper = Unkept()  # type: ignore[assignment]
        self.orphaned = True  # no hub frees its slot: the root does
        self.kin = kin


class Kin:
    """One child. `data` is what its specification says of how it is started (`shmrt.children.specify`)."""

    __slots__ = (
        *("asked_to_end", "crew", "data", "fails", "in_program", "incarnation", "key", "mailbox", "name_index", "path"),
        *("ready", "said", "start_failure", "surroundings", "unhealthy", "worker"),
    )

    def __init__(self, key: int, data: dict[str, Any], surroundings: dict[str, Any], path: tuple[Any, ...]) -> None:
        self.key = key
        self.data = data
        self.surroundings = surroundings
        self.path = path  # ids from the top supervisor down
        self.crew: KinCrew | None = None
        self.worker: Worker | None = None  # its process, from its start to its reaping
        self.mailbox: _native.Mailbox | None = None
        self.name_index = -1  # in the registry, while it lives
        self.in_program = data["kind"] in ("pool", "pipeline")
        self.incarnation = 0
        self.ready = False
        self.asked_to_end = False
        self.said: tuple[Any, ...] | None = None  # the reason that it gave for its own end
        self.start_failure: Any = None
        self.unhealthy: str | None = None  # the check that it is being killed for

    @property
    def is_server(self) -> bool:
        return bool(self.data["kind"] == "server")

    @property
    def pid(self) -> int | None:
        return self.worker.pid if self.worker is not None and self.worker.pid else None

    def begin(self) -> None:
        """Another process of it is about to start."""
        self.incarnation += 1
        self.ready = self.asked_to_end = False
        self.said = self.start_failure = self.unhealthy = None

    def end_of(self, status: int) -> Any:
        """Its exit reason, by the status of its process."""
        return self.judged(exit_reason(self.said, status, self.asked_to_end))

    def judged(self, reason: Any) -> Any:
        """A kill for a failed check has that as its reason; whoever ended otherwise before it came has his own."""
        return ("unhealthy", self.unhealthy) if self.unhealthy is not None and reason == "killed" else reason

    def spec(self) -> dict[str, Any]:
        """What its process is told, as a pool's specification tells a worker."""
        return {
            "name": self.data["label"],
            "workers": 1,
            "inherit": self.surroundings["inherit"],
            "log_level": self.surroundings["log_level"],
            "loop": LOOP,
            "child": self,
        }


def exit_reason(said: tuple[Any, ...] | None, status: int, asked_to_end: bool) -> Any:
    """What became of a process, as an exit reason: its own words if it ended in order, else what the kernel says.

    >>> exit_reason(None, 0, False), exit_reason(None, 9, False), exit_reason(None, 15, True)
    ('normal', 'killed', 'shutdown')
    >>> exit_reason(None, 3 << 8, False), exit_reason(("normal",), 11, False)
    (('exit', 3), ('signal', 'SIGSEGV'))
    """
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number == 9:
            return "killed"
        if number == 15 and asked_to_end:
            return "shutdown"
        return ("signal", signal_name(number))
    if said is not None:
        return said[0]
    code = os.waitstatus_to_exitcode(status)
    return "normal" if code == 0 else ("exit", code)


def import_cloudpickle(path: list[str]) -> None:
    """Functions by value need it in every child, where importing it would take longer than all else. Found as the
    program finds it: a library is no user code, and nothing is read with it here."""
    own = sys.path
    sys.path = [*own, *path]
    try:
        __import__("cloudpickle.cloudpickle")
    except ImportError:
        pass  # each child will say so itself
    finally:
        sys.path = own
        sys.path_importer_cache.clear()
    gc.collect()
    gc.freeze()


def no_room(text: str) -> OSError:
    from shmrt.errors import SegmentError

    return SegmentError(text, needed=1, free=0, hint="stop some children")


def signal_name(number: int) -> str:
    import _signal  # type: ignore[import-not-found]

    for name in dir(_signal):
        if name.startswith("SIG") and not name.startswith("SIG_") and getattr(_signal, name) == number:
            return name
    return f"signal {number}"

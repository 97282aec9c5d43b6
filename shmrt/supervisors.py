"""Supervisors that need no tree of yours: started by themselves, in the current runtime, at their first use.

    >>> from shmrt import DynamicSupervisor
    >>> DynamicSupervisor(max_children=8, name="sessions").max_children
    8

    DynamicSupervisor     children come and go by request; nothing is started with it (Elixir's DynamicSupervisor)
    PartitionSupervisor   the same child several times, found by a key (Elixir's PartitionSupervisor)
    TaskSupervisor        one process for each call of a function (`shmrt/task.py`)

Each is a description like `Supervisor` and may be a child of a tree. It has the functions of a `SupervisorRef`, which
speak to the supervisor that was started from it; to find it elsewhere, give it a name and use
`runtime.supervisor(name)`.
"""

from __future__ import annotations

from shmrt.children import Child, Supervisor, check_intensity
from shmrt.decide.specs import SupervisorSpec
from shmrt.errors import SpecError
from shmrt.spec import check_count, check_name
from shmrt.startable import Startable

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["DynamicSupervisor", "PartitionSupervisor"]


class DynamicSupervisor(Startable):
    """Starts children by request and restarts each by itself (one_for_one).

    max_children: how many there may be, None is no limit; one more is ChildStateError("max_children"). extra_arguments
    are put before the arguments of every child. max_restarts within max_seconds, over all children, end it. A child
    that ended for good is forgotten, and so is one that was terminated. Children start concurrently; when it ends, all
    are asked to end at once.

    Raises SpecError, ValueError or TypeError for wrong arguments.
    """

    def __init__(
        self,
        *,
        max_children: int | None = None,
        extra_arguments: tuple[Any, ...] = (),
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        name: str | None = None,
    ) -> None:
        self.max_children = None if max_children is None else check_count(max_children, "max_children", least=0)
        if isinstance(extra_arguments, (str, bytes)) or not hasattr(extra_arguments, "__iter__"):
            raise TypeError(f"extra_arguments must be a tuple of arguments, not {extra_arguments!r}")
        self.extra_arguments = tuple(extra_arguments)
        self.max_restarts, self.max_seconds = check_intensity(max_restarts, max_seconds)
        self.name = name
        check_name(name, "name")

    def specification(self) -> SupervisorSpec:
        """What the root knows of it."""
        return SupervisorSpec(
            strategy="dynamic",
            max_restarts=self.max_restarts,
            period=int(self.max_seconds * 1e9),
            max_children=self.max_children,
            name=self.name,
        )

    def extra(self) -> bytes | None:
        """The pickle of what every child's arguments begin with."""
        from shmrt.process.functions import dumps

        return dumps(self.extra_arguments) if self.extra_arguments else None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({f'name={self.name!r}' if self.name else ''})"


class PartitionSupervisor(Startable):
    """The same child `partitions` times (None: the usable CPUs), with ids 0, 1, ...; `partition(key)` finds one.

    child: a Child; its name, if it has one, gets the partition's number behind a hyphen. with_arguments(args, number)
    gives each partition arguments of its own. A partition that dies is restarted by itself (one_for_one, 3 restarts in
    5 s).

    What helps against one busy supervisor or server: each partition is one process, and equal keys meet the same one.
    """

    def __init__(
        self,
        child: Any,
        partitions: int | None = None,
        name: str | None = None,
        *,
        with_arguments: Any = None,
        strategy: str = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
    ) -> None:
        from shmrt import _native

        if not isinstance(child, Child):
            child = Child(child)
        if child.significant:
            raise SpecError("a partition cannot be significant", problem="bad_combination")
        count = max(1, _native.usable_cpus()) if partitions is None else check_count(partitions, "partitions")
        if with_arguments is not None and not callable(with_arguments):
            raise TypeError(f"with_arguments must be a function of (args, number), not {with_arguments!r}")
        self.child = child
        self.partitions = count
        self.name = name
        self._inner = Supervisor(
            [self._numbered(number, with_arguments) for number in range(count)],
            strategy=strategy,
            max_restarts=max_restarts,
            max_seconds=max_seconds,
            name=name,
        )

    def _numbered(self, number: int, with_arguments: Any) -> Child:
        child = self.child
        args = child.args if with_arguments is None else tuple(with_arguments(child.args, number))
        start = child.start
        if with_arguments is None and isinstance(start, Startable) and start.name is not None:
            raise SpecError(
                f"a partition's supervisor cannot have a name ({start.name!r}): there are several",
                problem="invalid_name",
            )
        return Child(
            start,
            *args,
            id=number,
            name=None if child.name is None else f"{child.name}-{number}",
            restart=child.restart,
            shutdown=child.shutdown,
            type=child.type,
            kwargs=child.kwargs,
            mailbox=child.mailbox,
            mailbox_on_restart=child.mailbox_on_restart,
            start_timeout=child.start_timeout,
            health=child.health,
        )

    def partition(self, key: Any) -> Any:
        """The reference of the partition that `key` belongs to, the same in every process: an int by its remainder, a
        string or bytes by their CRC, anything else by that of its repr."""
        from zlib import crc32

        data = (
            key if isinstance(key, bytes) else (key if isinstance(key, str) else repr(key)).encode("utf-8", "replace")
        )
        number = (key if isinstance(key, int) else crc32(data)) % self.partitions
        return self.handle().child(number)

    def specification(self) -> SupervisorSpec:
        """What the root knows of it."""
        return self._inner.specification()

    def extra(self) -> bytes | None:
        """The pickle of what every child's arguments begin with."""
        return None

    def __repr__(self) -> str:
        return f"PartitionSupervisor({self.child!r}, {self.partitions}, name={self.name!r})"

"""What a supervisor is told of a child and of itself: plain data that travels between processes as tuples.

The meanings are OTP's. `restart`: a permanent child is always started again, a transient one only after an
abnormal end, a temporary one never. `shutdown`: how long an orderly end may take (ns), "brutal_kill", or "infinity".
Combinations are checked where the user writes them; nothing is checked here.

>>> leaf = ChildSpec("a", data="what to start", restart="transient")
>>> spec = SupervisorSpec("one_for_all", children=(leaf, ChildSpec("b", supervisor=SupervisorSpec())))
>>> copy = SupervisorSpec.from_plain(spec.to_plain())
>>> copy.strategy, [child.id for child in copy.children], copy.children[1].type, copy.children[1].shutdown
('one_for_all', ['a', 'b'], 'supervisor', 'infinity')
"""

from __future__ import annotations

from shmrt.decide.backoff import Backoff

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["ChildSpec", "SupervisorSpec"]

_S = 1_000_000_000


class ChildSpec:
    """One child: `data` is what to start and means nothing here; `supervisor` makes it a supervisor of its own."""

    __slots__ = ("data", "id", "restart", "shutdown", "significant", "start_timeout", "supervisor", "type")

    def __init__(
        self,
        id: Any,
        *,
        data: Any = None,
        restart: str = "permanent",
        shutdown: int | str | None = None,
        significant: bool = False,
        type: str | None = None,
        start_timeout: int | None = None,
        supervisor: SupervisorSpec | None = None,
    ) -> None:
        self.id = id
        self.data = data
        self.restart = restart
        self.type: str = type or ("worker" if supervisor is None else "supervisor")
        self.shutdown: int | str = shutdown if shutdown is not None else 5 * _S if self.type == "worker" else "infinity"
        self.significant = significant
        self.start_timeout = start_timeout
        self.supervisor = supervisor

    def to_plain(self) -> tuple[Any, ...]:
        below = None if self.supervisor is None else self.supervisor.to_plain()
        return (
            *(self.id, self.data, self.restart, self.shutdown),
            *(self.significant, self.type, self.start_timeout, below),
        )

    @classmethod
    def from_plain(cls, plain: tuple[Any, ...]) -> ChildSpec:
        id, data, restart, shutdown, significant, type, start_timeout, below = plain
        return cls(
            id,
            data=data,
            restart=restart,
            shutdown=shutdown,
            significant=significant,
            type=type,
            start_timeout=start_timeout,
            supervisor=None if below is None else SupervisorSpec.from_plain(below),
        )


class SupervisorSpec:
    """One supervisor. `strategy` "dynamic" has no children of its own and `max_children` at most.

    `backoff` (off by default) makes each automatic restart wait; failures in a row are counted per child, and a child
    that was up for longer than the backoff's cap begins anew.
    """

    __slots__ = (
        "auto_shutdown",
        "backoff",
        "children",
        "max_children",
        "max_restarts",
        "name",
        "period",
        "strategy",
    )

    def __init__(
        self,
        strategy: str = "one_for_one",
        *,
        max_restarts: int = 3,
        period: int = 5 * _S,
        auto_shutdown: str = "never",
        backoff: Backoff | None = None,
        max_children: int | None = None,
        children: tuple[ChildSpec, ...] = (),
        name: str | None = None,
    ) -> None:
        self.strategy = strategy
        self.max_restarts = max_restarts
        self.period = period
        self.auto_shutdown = auto_shutdown
        self.backoff = backoff
        self.max_children = max_children
        self.children = children
        self.name = name

    def to_plain(self) -> tuple[Any, ...]:
        wait = self.backoff
        return (
            *(self.strategy, self.max_restarts, self.period, self.auto_shutdown),
            None if wait is None else (wait.free, wait.first_ns, wait.cap_ns, wait.jitter),
            *(self.max_children, tuple([child.to_plain() for child in self.children]), self.name),
        )

    @classmethod
    def from_plain(cls, plain: tuple[Any, ...]) -> SupervisorSpec:
        strategy, max_restarts, period, auto_shutdown, wait, max_children, children, name = plain
        return cls(
            strategy,
            max_restarts=max_restarts,
            period=period,
            auto_shutdown=auto_shutdown,
            backoff=None if wait is None else Backoff(free=wait[0], first_ns=wait[1], cap_ns=wait[2], jitter=wait[3]),
            max_children=max_children,
            children=tuple([ChildSpec.from_plain(child) for child in children]),
            name=name,
        )

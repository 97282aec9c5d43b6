"""An `Agent` is a server around one value, for state without a class.

    with Agent({}) as seen:
        seen.update(lambda urls: {**urls, "a": 1})
        seen.get(len)                                                   # 1
        seen.get_and_update(lambda urls: (urls.get("a"), {}))           # 1, and the value is {} now

The functions run in the agent's process, one at a time, in the order in which they came; a slow one holds up the
others. They may be of any kind: lambdas and closures are sent by value. What one raises, its caller gets, and the agent
crashes; a supervisor starts it again with its initial value, and what it held is lost. If the process dies, the same.

In a tree: `Child(Agent, 0, name="hits")`, which starts the server class `AgentServer`; then
`Agent.of(whereis("hits"))`. Rules: Elixir's Agent.
"""

from __future__ import annotations

from shmrt.server import Server, call, cast, start
from shmrt.server_ref import CALL_SECONDS, ServerRef

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Agent", "AgentServer"]


class AgentServer(Server):
    """The process of an Agent.

    >>> server = AgentServer()
    >>> server.init(3)
    >>> server.get_and_update(lambda value: (value, value + 1))
    3
    >>> server.get(str)
    '4'
    """

    def init(self, value: Any = None) -> None:
        self.value = value

    @call
    def get(self, fn: Callable[..., Any] | None = None, *args: Any) -> Any:
        return self.value if fn is None else fn(self.value, *args)

    @call
    def update(self, fn: Callable[..., Any], *args: Any) -> None:
        self.value = fn(self.value, *args)

    @call
    def get_and_update(self, fn: Callable[..., Any], *args: Any) -> Any:
        pair = fn(self.value, *args)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise TypeError(f"the function of get_and_update returns (answer, new value), not {pair!r:.200}")
        answer, self.value = pair
        return answer

    @cast
    def change(self, fn: Callable[..., Any], *args: Any) -> None:
        self.value = fn(self.value, *args)

    def _get_state(self) -> Any:
        return self.value

    def _set_state(self, state: Any) -> None:
        self.value = state


class Agent:
    """See the module. Agents are equal when they are the same process, and pickle like their `ref`."""

    __slots__ = ("ref",)

    ref: ServerRef
    child_class = AgentServer  # what `Child(Agent, value)` starts

    def __init__(
        self, initial: Any = None, *, name: str | None = None, mailbox: Any = None, restart: str = "temporary"
    ) -> None:
        self.ref = start(AgentServer, initial, name=name, mailbox=mailbox, restart=restart)

    @classmethod
    def of(cls, ref: ServerRef) -> Agent:
        """The Agent of an AgentServer that runs already."""
        if not isinstance(ref, ServerRef):
            raise TypeError(f"ref must be the ServerRef of an AgentServer, not {ref!r}")
        agent = cls.__new__(cls)
        agent.ref = ref
        return agent

    def get(self, fn: Callable[..., Any] | None = None, *args: Any, timeout: float | None = CALL_SECONDS) -> Any:
        """fn(value, *args); the value itself without a function."""
        return self.ref.call("get", None if fn is None else _function(fn), *args, timeout=timeout)

    def update(self, fn: Callable[..., Any], *args: Any, timeout: float | None = CALL_SECONDS) -> None:
        """Makes fn(value, *args) the value, and waits until it is."""
        self.ref.call("update", _function(fn), *args, timeout=timeout)

    def get_and_update(self, fn: Callable[..., Any], *args: Any, timeout: float | None = CALL_SECONDS) -> Any:
        """fn(value, *args) returns (answer, new value)."""
        return self.ref.call("get_and_update", _function(fn), *args, timeout=timeout)

    def cast(self, fn: Callable[..., Any], *args: Any) -> bool:
        """Like `update`, without waiting."""
        return self.ref.cast("change", _function(fn), *args)

    def stop(self, reason: Any = "normal", timeout: float | None = None) -> None:
        """Ends it after what was sent before."""
        self.ref.stop(reason, timeout)

    @property
    def name(self) -> str | None:
        return self.ref.name

    @property
    def pid(self) -> int | None:
        return self.ref.pid

    def __enter__(self) -> Agent:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.ref.__exit__(kind, error, trace)

    def __eq__(self, other: object) -> bool:
        return self.ref == other.ref if isinstance(other, Agent) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.ref)

    def __reduce__(self) -> Any:
        return (Agent.of, (self.ref,))

    def __repr__(self) -> str:
        return f"<Agent {self.ref._label()} key={self.ref.key}>"


def _function(fn: Any) -> Any:
    if not callable(fn):
        raise TypeError(f"fn must be a function of the value, not {fn!r}")
    return fn

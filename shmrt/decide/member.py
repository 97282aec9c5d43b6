"""One child as its supervisor sees it, and the words for exit reasons.

```
 DOWN --begin--> STARTING --started--> UP --shutdown or kill--> STOPPING --exited--> DOWN
                     |                  |
                     +--exited--> DOWN  +--exited--> DEAD (told, not yet handled) --> DOWN
```
A member that is DOWN may be `restarting`: its supervisor will try again.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from shmrt.decide.specs import ChildSpec

__all__ = ["DEAD", "DOWN", "STARTING", "STOPPING", "UP", "Ending", "Member", "is_orderly"]

DOWN = "down"
STARTING = "starting"
UP = "up"
STOPPING = "stopping"
DEAD = "dead"


class Ending(Exception):
    """The supervisor ends with this reason, after it has stopped what is still there."""

    def __init__(self, reason: Any) -> None:
        self.reason = reason


def is_orderly(reason: Any) -> bool:
    """An end that a transient child is not started again after."""
    return reason in ("normal", "shutdown") or (isinstance(reason, tuple) and reason[:1] == ("shutdown",))


class Member:
    """A child specification in a supervisor, through all its incarnations."""

    __slots__ = (
        *("failures", "ignored", "incarnation", "key", "killed", "lost", "ran", "reason", "restarting"),
        *("restarts", "spec", "start_timer", "state", "stop_timer", "up_since", "wait_timer"),
        *("start_token", "stop_tokens", "timed_out", "ready"),
    )

    def __init__(self, key: int, spec: ChildSpec) -> None:
        self.key = key
        self.spec = spec
        self.state = DOWN
        self.restarting = False
        self.reason: Any = None
        """Why it last ended."""
        self.incarnation = 0
        self.restarts = 0
        self.failures = 0
        """Ends in a row that the backoff counts."""
        self.up_since = 0
        self.ran = False
        self.lost = False
        """Said to be lost since its last start."""
        self.killed = False
        self.ignored = False
        self.timed_out = False
        self.ready = False
        """This incarnation was up."""
        self.start_timer: tuple[int, int] | None = None
        self.stop_timer: tuple[int, int] | None = None
        self.wait_timer: tuple[int, int] | None = None
        self.start_token: Any = None
        self.stop_tokens: list[Any] = []

    @property
    def has_process(self) -> bool:
        """Something of it runs: it will be told when that is gone."""
        return self.state in (STARTING, UP, STOPPING)

    @property
    def counts_as_alive(self) -> bool:
        """For "all significant children are gone": one that is restarting is not gone."""
        return self.restarting or self.state != DOWN

    @property
    def shown(self) -> int | str | None:
        """What which_children has in the place of a pid."""
        if self.state in (UP, STOPPING, DEAD):
            return self.key
        if self.restarting or (self.state == STARTING and self.ran):
            return "restarting"
        return None

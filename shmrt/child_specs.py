"""From a description to what the root knows of it, and back: a start is bytes, everything else plain values."""

from __future__ import annotations

from shmrt.children import MAILBOX, STRATEGIES, Child, Supervisor, kind_of
from shmrt.decide.specs import ChildSpec, SupervisorSpec
from shmrt.spec import RingSpec

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.guard.health import HealthCheck

__all__ = ["describe", "plain_id", "specify", "user_id"]


def specify(child: Child) -> ChildSpec:
    """A child as the root knows it: its start is bytes that the root never reads."""
    from shmrt.process.functions import dumps

    kind = kind_of(child.start)
    data: dict[str, Any] = {"kind": kind, "name": child.name, "label": str(child.id)}
    nested: SupervisorSpec | None = None
    if kind == "supervisor":
        nested = child.start.specification()
        if nested.name is None and child.name is not None:
            nested.name = child.name
        data["extra"] = child.start.extra()
        data["name"] = child.name or child.start.name
    else:
        data["blob"] = dumps((child.start, child.args, child.kwargs))
    if kind == "pool":
        data["mailbox"] = (MAILBOX.slots, MAILBOX.slot_bytes, MAILBOX.on_full)
        data["drop_on_restart"] = False
    if kind == "server":
        mailbox = child.mailbox or MAILBOX
        data["mailbox"] = (mailbox.slots, mailbox.slot_bytes, mailbox.on_full)
        data["drop_on_restart"] = child.mailbox_on_restart == "drop"
        data["handlers"] = dict(child.start.__handlers__)
    if child.health:
        from shmrt.guard.registry import row_of

        data["health"] = [row_of(check, beside=True) for check in child.health]
    timeout = child.start_timeout
    shutdown = child.shutdown
    return ChildSpec(
        id=plain_id(child.id),
        restart=child.restart,
        shutdown=shutdown if isinstance(shutdown, str) else int(shutdown * 1e9),
        significant=child.significant,
        type=child.type,
        start_timeout=None if timeout is None else int(timeout * 1e9),
        data=data,
        supervisor=nested,
    )


def plain_id(id: Any) -> Any:
    """An id as the root can keep it: plain values as they are, anything else by its pickle."""
    if isinstance(id, (str, int, float, bytes, bool, type(None))):
        return id
    if type(id) is tuple and all(not isinstance(part, tuple) and plain_id(part) is part for part in id):
        return id
    from shmrt.process.functions import dumps

    return ("\0pickle", dumps(id))


def user_id(id: Any) -> Any:
    """The id that `plain_id` made plain."""
    if type(id) is tuple and len(id) == 2 and id[0] == "\0pickle":
        from _pickle import loads

        return loads(id[1])
    return id


def describe(spec: ChildSpec) -> Child:
    """The description that `specify` made a specification of."""
    from _pickle import loads

    data = spec.data
    if spec.supervisor is not None:
        inner = spec.supervisor
        start: Any = Supervisor(
            [describe(child) for child in inner.children],
            strategy=inner.strategy if inner.strategy in STRATEGIES else "one_for_one",
            max_restarts=inner.max_restarts,
            max_seconds=inner.period / 1e9,
            auto_shutdown=inner.auto_shutdown,
            backoff=inner.backoff,
            name=inner.name,
        )
        args, kwargs = (), {}
    else:
        start, args, kwargs = loads(data["blob"])
    mailbox = data.get("mailbox")
    checks: list[HealthCheck] = []
    if data.get("health"):
        from shmrt.guard.registry import describe as described

        checks = [described(row) for row in data["health"]]
    return Child(
        start,
        *args,
        id=user_id(spec.id),
        name=data["name"],
        restart=spec.restart,
        shutdown=spec.shutdown if isinstance(spec.shutdown, str) else spec.shutdown / 1e9,
        significant=spec.significant,
        type=spec.type,
        kwargs=kwargs,
        mailbox=None if mailbox is None or data["kind"] == "pool" else RingSpec(*mailbox),
        mailbox_on_restart="drop" if data.get("drop_on_restart") else "keep",
        start_timeout=None if spec.start_timeout is None else spec.start_timeout / 1e9,
        health=checks,
    )

"""What processes notice and the root makes known: that a place was full (`shmrt/overloads.py`).

    ("notice", name, measurements, metadata)     from the program, a worker or a child

A process names a mailbox by its token, since it may not know whose it is; the root knows. What a pool has counted so
far comes along and is kept for `status`, which asks nobody. If the process dies, what it said stands.
"""

from __future__ import annotations

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.staff import Staff
    from shmrt.supervise.tree import Trees

__all__ = ["hear"]


def hear(staff: Staff, trees: Trees | None, name: str, measured: dict[str, Any], about: dict[str, Any]) -> None:
    """One notice."""
    token = about.pop("token", None)
    if token is not None:
        about["where"] = _owner_of(trees, token)
    pool = about.pop("pool", None)
    if pool is not None:
        number = pool.pop("number")
        if number in staff.crews:
            staff.full_pools[number] = pool
    staff.notice(name, measured, about)


def _owner_of(trees: Trees | None, token: bytes) -> str:
    """The name or label of the child whose mailbox it is; "mailbox" once it is gone."""
    for kin in {} if trees is None else trees.kin.values():
        if kin.mailbox is not None and kin.mailbox.token == token:
            return str(kin.data["name"] or kin.data["label"])
    return "mailbox"

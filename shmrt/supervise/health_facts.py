"""What the root knows of the runtime's health without asking anybody: its pools, its trees, its shared memory."""

from __future__ import annotations

from time import monotonic_ns

from shmrt.decide import health_facts
from shmrt.decide.health import HEALTHY
from shmrt.supervise import guards

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

    from shmrt.supervise.tree import Trees

__all__ = ["Facts"]

HTTP = "shmrt-http"  # the supervisor of the health endpoints, which is nobody's concern as long as it is well


class Facts:
    """Looks at the root's own tables; `decide/health_facts.py` judges."""

    def __init__(self, trees: Trees) -> None:
        self._trees = trees
        self._started = False  # everything was ready once

    def pools(self) -> list[dict[str, Any]]:
        """The program's, those of its trees among them."""
        now = monotonic_ns()
        return [
            {
                "name": crew.spec["name"],
                "number": crew.id,
                "wanted": crew.keeper.workers,
                "ready": crew.ready,
                "broken": crew.keeper.broken,
                "reasons": list(crew.keeper.reasons),
                "removing": crew.removing,
                "waits": crew.keeper.wait_ns(now, alive=crew.alive) is not None,
            }
            for crew in self._trees.staff.crews.values()
            if getattr(crew, "kin", None) is None and crew.owner is None
        ]

    def settling(self) -> bool:
        """Some pool will have its workers in a moment, unless something is wrong."""
        return any(
            pool["ready"] < pool["wanted"]
            and not (pool["broken"] or pool["reasons"] or pool["removing"] or pool["waits"])
            for pool in self.pools()
        )

    def rows(self, now: int) -> list[dict[str, Any]]:
        """One result for each check of the runtime's own."""
        trees, pools = self._trees, [pool for pool in self.pools() if not pool["removing"]]
        rows = [health_facts.loop_row(), *health_facts.pool_rows(pools)]
        tops = trees.tree.describe(now=now).get("supervisors", ())
        for top in tops:
            own = trees.tops.get(top["key"], {}).get("of_runtime")
            named = not isinstance(top["path"][0], int) and top["path"][0] != HTTP
            label = top["path"][0] if named else "tree" if own else f"supervisor-{top['key']}"
            # Of servers that were started one by one only what is wrong is told.
            found = health_facts.tree_rows([{**top, "path": (label,)}])
            rows += [row for row in found if own or named or row["status"] != HEALTHY]
        if trees.arena is not None:
            stats = trees.arena.stats()
            rows.append(health_facts.memory_row(stats["bytes_used"], stats["limit"]))
        rows += health_facts.breaker_rows(guards.rows(trees.staff.slots))
        up = all(top["state"] == "running" for top in tops)
        self._started = self._started or (up and all(pool["ready"] or not pool["wanted"] for pool in pools))
        rows.append(health_facts.started_row(self._started))
        for row in rows:
            row["ns"] = now
        return rows

"""The pools of a runtime: their numbers, their slots in the process table, and how they are together."""

from __future__ import annotations

from time import monotonic

from shmrt.supervise.protocol import FIRST_NESTED, FIRST_WORKER

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.pool_opened import OpenedPool
    from shmrt.runtime_tree import TreeSide

__all__ = ["RuntimePools"]


class RuntimePools:
    """Mixed into Runtime."""

    _pools: dict[int, OpenedPool]
    _trees: TreeSide | None
    _lock: Any
    _next_pool: int
    _stopped: bool
    _down: Any
    if TYPE_CHECKING:

        def _check(self) -> None: ...

        @property
        def pid(self) -> int | None: ...

        def hear_notes(self, patience: float = -1) -> None: ...

    def _loose_pools(self) -> list[OpenedPool]:
        """Those that are no children of a tree, which ends its own."""
        trees = self._trees
        return [opened for opened in list(self._pools.values()) if trees is None or not trees.has_pool(opened.number)]

    def _add_pool(self, opened: OpenedPool) -> None:
        """Gives it a number and a range of slots. Raises SegmentError when the process table has none left."""
        with self._lock:
            self._check()
            opened.first = self._free_range(opened.count)
            opened.number = self._next_pool
            self._next_pool += 1
            self._pools[opened.number] = opened

    def _forget_pool(self, opened: OpenedPool) -> None:
        self.hear_notes()
        with self._lock:
            self._pools.pop(opened.number, None)

    def _free_range(self, count: int) -> int:
        taken = sorted((opened.first, opened.first + opened.count) for opened in self._pools.values())
        start = FIRST_WORKER
        for first, end in taken:
            if first - start >= count:
                break
            start = end
        if start + count > FIRST_NESTED:
            raise self._no_slots(count)
        return start

    @staticmethod
    def _no_slots(count: int) -> OSError:
        from shmrt.errors import SegmentError

        return SegmentError(
            f"the process table has no {count} slots in a row left; close a pool, or use a second Runtime",
            needed=count,
            free=0,
            hint="close a pool",
        )

    def chaos_kill(self, rng: Any) -> tuple[int, int] | None:
        """SIGKILLs one ready worker of any pool, chosen by rng, ordered through the root: its slot and epoch."""
        pools = list(self._pools.values())
        rng.shuffle(pools)
        return next((killed for killed in (opened.chaos_kill(rng) for opened in pools) if killed is not None), None)

    def health(self) -> dict[str, Any]:
        """Status of the runtime and of each pool."""
        pools = {opened.name: opened.health() for opened in list(self._pools.values())}
        statuses = {pool["status"] for pool in pools.values()}
        if self._stopped or self._down is not None:
            status = "unhealthy"
        else:
            status = "healthy" if statuses <= {"healthy"} else "degraded"
        return {"status": status, "pools": pools, "root_pid": self.pid, "timestamp": monotonic()}

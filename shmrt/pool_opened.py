"""A pool inside a runtime: its core, its slots, its descriptors, and how all of that comes to its end.

The runtime holds this and not the `Pool`, so a pool that its user forgets is collected like any object; what it
accepted is then done, and its workers end after it, as those of the standard executors do.
"""

from __future__ import annotations

import os
import threading
import weakref

from shmrt import _native
from shmrt.pool_admission import Admission
from shmrt.supervise.protocol import FIRST_NESTED, FIRST_WORKER

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.pool import Pool
    from shmrt.pool_map import Results
    from shmrt.runtimes import Runtime
    from shmrt.spec import RingSpec

__all__ = ["OpenedPool"]

LANE_MIN = 64 << 10  # a smaller lane could not hold what a result with many buffers needs
# What a worker needs of its own before it does anything for the user.
_WORKER_BYTES = 3 << 20
_STACK_BYTES = 65536
_GRACE_S = 5.0


class OpenedPool:
    """Made by `Pool`. Idempotent in everything that ends it."""

    def __init__(
        self, runtime: Runtime, pool: Pool, max_workers: int, spares: int, max_pending: int | None, on_full: str
    ) -> None:
        self.runtime = runtime
        self.name = pool.name
        self.max_workers = max_workers
        self.max_pending = max_pending
        self.number = self.first = 0
        # Twice the workers: a replacement starts while the dead one is still torn down, a recycled one before the old
        # one leaves, and resize has room.
        self.count = min(2 * (max_workers + spares) + 2, FIRST_NESTED - FIRST_WORKER)
        self.core: Any = None
        self.lanes_fd = -1
        self.stacks_fd = -1
        self.removed = threading.Event()
        self.start_failures: list[str] = []
        self.exit_values: list[Any] = []
        self.unread: list[Results] = []  # maps that were dropped before anybody iterated them
        self.final_stats: dict[str, int] = {}
        self._paced: tuple[Any, Any] = (None, None)  # the function of the last map, and its Pace
        self.is_broken = False
        self.chunks = False
        self.admission = Admission(self, max_pending, on_full)
        self.submit_bounded = self.admission.submit
        self._pool = weakref.ref(pool, self._dropped)
        self._ending = threading.Lock()  # held by whoever opens it, too: the root hears of its end after its start
        self._ended = False

    def open(self, *, ring: RingSpec, spares: int, limits: dict[str, int], spec: dict[str, Any]) -> None:
        """Makes the memory and the core, and has the root start the workers. Leaves nothing behind when it fails."""
        self.runtime.start()
        # After the root's start, which takes longer than all of these. Errors are made here once, so that no thread
        # makes one while it is needed.
        try:
            from shmrt.errors import PoolBroken  # noqa: F401
            from shmrt.process.functions import dumps

            for key in ("initializer", "worker_exit"):
                spec[key] = dumps(spec[key]) if spec[key] is not None else None
            with self._ending:
                self._open(ring, spares, limits, spec)
        except OSError as error:
            if type(error) is not OSError or error.errno is None:
                raise  # SegmentError has its own words
            from shmrt.supervise.launch import explain

            raise explain(error, f"pool {self.name} could not be opened") from error

    def _open(self, ring: RingSpec, spares: int, limits: dict[str, int], spec: dict[str, Any]) -> None:
        from shmrt.process.functions import FunctionTable
        from shmrt.supervise.link import make_spec

        runtime = self.runtime
        self.chunks = limits["max_tasks"] == 0
        capacity = max(1 << (ring.slots * ring.slot_bytes - 1).bit_length(), LANE_MIN)
        runtime._add_pool(self)
        try:
            _native.check_memory(self.max_workers * _WORKER_BYTES)
            self.lanes_fd = _native.lanes_create(self.count, capacity, capacity)
            self.stacks_fd = _native.memfd_create("shmrt-stacks", self.count * _STACK_BYTES)
            table: list[Any] = []
            self.core = _native.PoolCore(
                hub=runtime._hub,
                name=self.name,
                pool=self.number,
                first_slot=self.first,
                slot_count=self.count,
                max_workers=self.max_workers,
                lanes_fd=self.lanes_fd,
                stacks_fd=self.stacks_fd,
                register_function=lambda fn, retry_on: table[0].number(fn, retry_on),
                **limits,
            )
            table.append(FunctionTable(self.core.add_function, self.core.drop_function))
            spec["preload"] = spec["preload"] or runtime.preload
            runtime._link.add_pool(
                self.number,
                make_spec(self.name, self.max_workers, spares=spares, **spec),
                first_slot=self.first,
                slot_count=self.count,
                lanes_fd=self.lanes_fd,
                stacks_fd=os.dup(self.stacks_fd),
            )
        except BaseException:
            if self.core is not None:
                self.core.remove()
            self._close()
            raise

    # ---- maps -------------------------------------------------------------------------------------------------------
    def may_chunk(self) -> bool:
        """Whether many items may be one task: not where tasks are counted."""
        return self.max_pending is None and self.chunks

    def pace_of(self, fn: Any) -> Any:
        """What is known of the running time of its calls, if the last map called it, too."""
        if self._paced[0] is not fn:
            from shmrt.pool_feed import new_pace

            self._paced = (fn, new_pace())
        return self._paced[1]

    # ---- the end ----------------------------------------------------------------------------------------------------
    def shutdown(self) -> None:
        """As `Pool.shutdown()` by whoever holds the runtime."""
        pool = self._pool()
        if pool is not None and getattr(pool, "_core", None) is not None:
            pool.shutdown(wait=True)
        elif self.core is not None:  # dropped, or another thread is just making it
            self.end_dropped()

    def end_dropped(self) -> None:
        """Nobody holds the pool: what it accepted is done, then its workers end."""
        failure: Exception | None = None
        try:
            self.run_unread()
        except Exception as error:
            failure = error
        self.core.close()
        self.finish(None)
        if failure is not None:
            raise failure

    def run_unread(self) -> None:
        """Does the work of the maps that were dropped before anybody iterated them. Raises the first exception of
        an input, once all is done: nobody else hears of it."""
        first: Exception | None = None
        while self.unread:
            results = self.unread[-1]
            results._run_to_end(keep=False)
            first = first or results._feed.error
            if results in self.unread:
                self.unread.remove(results)
        if first is not None:
            raise first

    def cancel_queue(self) -> None:
        pool = self._pool()
        if pool is not None:
            pool._cancel_queue()
        else:
            self.core.close()
            self.core.fail_backlog(True)

    def abort(self, grace: float) -> None:
        pool = self._pool()
        if pool is not None:
            pool._abort(grace)
        else:
            self.finish(0.0)

    def finish(self, grace: float | None) -> None:
        """Waits for what is pending (grace None), then ends the workers and gives everything back."""
        runtime = self.runtime
        if not runtime._is_mine:
            return
        if grace is None and not runtime._stopped:
            self.core.wait_pending(0, -1)
        with self._ending:
            if self._ended:
                return
            link = runtime._link
            if not runtime._stopped and link.down is None:
                link.remove_pool(self.number, _GRACE_S if grace is None else grace)
                from shmrt.waits import until_set

                try:
                    until_set(self.removed)
                except BaseException:  # Ctrl-C: the workers get no more time; whoever comes next does the rest
                    link.remove_pool(self.number, 0.0)
                    raise
            self._keep_stats()
            while not self.core.remove():
                if runtime._stopped or link.cut_off:
                    break
                self.core.wait_pending(0, 1_000_000)
                self._keep_stats()
            self._close()
            self._ended = True  # last: an interrupted end is taken up again by the next call

    def stats(self) -> dict[str, int]:
        """See `Pool.stats`."""
        stats = dict(self.core.stats()) if self.core is not None else {}
        if not stats:
            return dict(self.final_stats)
        counters = self.admission.counters()
        stats["expired"] += counters.pop("expired")  # those that waited for a place as well
        return {**stats, **counters}

    def _keep_stats(self) -> None:
        """Just before the core forgets them, and with it the last worker."""
        if dict(self.core.stats()):
            self.admission.close()
            self.final_stats = {**self.stats(), "workers_ready": 0}

    def _dropped(self, _: object) -> None:
        """Nobody holds the pool any more. This runs wherever the collector does, so another thread does the rest."""
        if self.core is not None and not self._ended and self.runtime._is_mine and not self.runtime._stopped:
            self.runtime._link.note(("dropped", self.number))

    def _close(self) -> None:
        self.runtime._forget_pool(self)
        for fd in (self.lanes_fd, self.stacks_fd):
            if fd >= 0:
                os.close(fd)
        self.lanes_fd = self.stacks_fd = -1

    # ---- what others ask --------------------------------------------------------------------------------------------
    def chaos_kill(self, rng: Any) -> tuple[int, int] | None:
        """SIGKILLs one ready worker, chosen by rng and ordered through the root: its slot and epoch, None if there was
        none. Chosen again before it is gone, it is the same death."""
        ready = [row for row in self.core.workers() if row["ready"]]
        if not ready:
            return None
        row = rng.choice(ready)
        self.runtime._link.kill(row["slot"], row["epoch"], _native.KILL_CHAOS)
        return row["slot"], row["epoch"]

    def health(self) -> dict[str, Any]:
        """`status`: healthy (all workers ready), degraded (some) or unhealthy (none); and the numbers behind it."""
        ready = dict(self.core.stats()).get("workers_ready", 0)
        status = "healthy" if ready >= self.max_workers else "degraded" if ready else "unhealthy"
        return {"status": status, "workers_ready": ready, "workers_wanted": self.max_workers}

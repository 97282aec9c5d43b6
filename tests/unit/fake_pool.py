"""An executor with the surface that pipelines use, on threads, with seeded deaths.

Each logical worker is a thread with a queue of its own. A death (from a seed, or because the running function called
`die()`) throws away the result, the worker's memory and instances, runs the initializer again and puts the
interrupted task first, as the real pool does. Nothing here is a mock: the stage functions really run.
"""

from __future__ import annotations

import pickle
import random
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from concurrent.futures import Future
from typing import Any

import cloudpickle

from shmrt.errors import PoisonMessage, WorkerCrashed
from shmrt.process import stage as stage_module

_local = threading.local()


def die() -> None:
    """The running worker is dead: whatever the function goes on to do is never seen."""
    _local.dead = True
    raise RuntimeError("a dead worker cannot raise this")


class _PerWorker(MutableMapping[str, Any]):
    """Stands for module memory of a worker process, and for that of this process in other threads."""

    def __init__(self) -> None:
        self.shared: dict[str, Any] = {}

    def _mine(self) -> dict[str, Any]:
        memory = getattr(_local, "memory", None)
        return self.shared if memory is None else memory

    def __getitem__(self, key: str) -> Any:
        return self._mine()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._mine()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._mine()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._mine())

    def __len__(self) -> int:
        return len(self._mine())


if not isinstance(stage_module._installed, _PerWorker):
    stage_module._installed = _PerWorker()


class FakeFuture(Future[Any]):
    attempts = 1


class FakePool:
    """See the module. `death_rate` is the chance that a task is killed from outside at an attempt."""

    def __init__(
        self,
        max_workers: int = 1,
        *,
        name: str = "fake",
        initializer: Callable[..., None] | None = None,
        initargs: tuple[Any, ...] = (),
        seed: int = 0,
        death_rate: float = 0.0,
        **_: Any,
    ) -> None:
        self.name = name
        self.workers = max_workers
        self.initializer = (initializer, initargs)
        self.rng = random.Random(seed)
        self.death_rate = death_rate
        self.restarts = 0
        self.pinned: list[deque[Any]] = [deque() for _ in range(max_workers)]
        self.free: deque[Any] = deque()
        self.changed = threading.Condition()
        self.closed = self.killed = False
        self.inside = self.inside_most = 0
        self.threads = [threading.Thread(target=self._work, args=(k,), daemon=True) for k in range(max_workers)]
        for thread in self.threads:
            thread.start()

    def submit_stage(
        self,
        fn: Any,
        *args: Any,
        affinity: int | None = None,
        timeout: float | None = None,
        max_attempts: int = 3,
        passes_on: bool = False,
        on_partial: Any = None,
    ) -> FakeFuture:
        task = cloudpickle.dumps((fn, args))
        future = FakeFuture()
        with self.changed:
            if self.closed:
                raise RuntimeError("cannot schedule new futures after shutdown")
            queue = self.free if affinity is None else self.pinned[affinity % self.workers]
            queue.append((future, task, max_attempts))
            self.inside += 1
            self.inside_most = max(self.inside_most, self.inside)
            self.changed.notify_all()
        return future

    def _born(self) -> None:
        _local.memory = {}
        _local.dead = False
        fn, args = self.initializer
        if fn is not None:
            fn(*pickle.loads(pickle.dumps(args)))

    def _work(self, worker: int) -> None:
        self._born()
        while True:
            with self.changed:
                while not self.pinned[worker] and not self.free and not self.closed:
                    self.changed.wait()
                if self.killed or (not self.pinned[worker] and not self.free):
                    return
                future, task, max_attempts = (self.pinned[worker] or self.free).popleft()
            if future.set_running_or_notify_cancel():
                self._attempt(future, task, max_attempts)
            with self.changed:
                self.inside -= 1

    def _attempt(self, future: FakeFuture, task: bytes, max_attempts: int) -> None:
        for attempt in range(1, max_attempts + 1):
            future.attempts = attempt
            _local.dead = False
            problem: Exception | None = None
            result = b""
            with self.changed:
                outside = self.rng.random() < self.death_rate and attempt < max(2, max_attempts)
            try:
                fn, args = pickle.loads(task)
                result = cloudpickle.dumps(fn(*args))
            except Exception as error:
                problem = error
            if not _local.dead and not outside:
                if problem is None:
                    future.set_result(pickle.loads(result))
                else:
                    future.set_exception(problem)
                return
            self.restarts += 1
            self._born()
        kind = PoisonMessage if max_attempts > 1 else WorkerCrashed
        future.set_exception(kind("the worker died", signal=signal.SIGKILL, attempts=max_attempts))

    def stats(self) -> dict[str, Any]:
        return {"restarts": self.restarts}

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        with self.changed:
            self.closed = True
            if cancel_futures:
                for queue in (self.free, *self.pinned):
                    while queue:
                        queue.popleft()[0].cancel()
            self.changed.notify_all()
        if wait:
            for thread in self.threads:
                thread.join()

    def terminate_workers(self) -> None:
        with self.changed:
            self.closed = self.killed = True
            self.changed.notify_all()


class FakeEngine:
    """An engine whose pools are fake; remembers them."""

    name = "local"

    def __init__(self, seed: int = 0, death_rate: float = 0.0) -> None:
        self.seed = seed
        self.death_rate = death_rate
        self.pools: list[FakePool] = []

    def pool(self, max_workers: int, **options: Any) -> FakePool:
        seed = self.seed + len(self.pools)
        self.pools.append(FakePool(max_workers, seed=seed, death_rate=self.death_rate, **options))
        return self.pools[-1]

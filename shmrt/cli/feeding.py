"""Rings of an application, and the pools that work on their messages.

A ring of the file is made when the application starts and removed when it stops; one that is there already is joined,
and stays. Each message of a pool's `input` is leased while a worker has it, so that if the program dies it is in the
ring again: at least once. A message whose task fails is logged and is done.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from queue import Empty
from typing import Any

from shmrt.cli.screen import CliError
from shmrt.cli.target import Target

__all__ = ["Feeders"]

_LOOK_S = 0.5  # how long a stop waits for a thread that has no message


class Feeders:
    """Everything that an application file says of rings, from the start to the end of the tree."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._rings: dict[str, Any] = {}
        self._made: list[Any] = []
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Feeders:
        from shmrt.errors import NotFound, SegmentError
        from shmrt.memory.ring import Ring

        for name, spec in self._target.rings.items():
            try:
                try:
                    self._rings[name] = Ring.attach(name)
                except NotFound:
                    self._rings[name] = Ring.create(spec, name=name)
                    self._made.append(self._rings[name])
            except (SegmentError, ValueError) as error:
                self.__exit__()
                raise CliError(f"ring {name!r}: {error}", hint=getattr(error, "hint", None), code=6) from None
        return self

    def begin(self, runtime: Any) -> None:
        """Once the pools are open."""
        for one in self._target.inputs:
            count = next(opened.max_workers for opened in runtime._pools.values() if opened.name == one.pool)
            for number in range(2 * count):  # while a worker answers, its next message is there
                thread = threading.Thread(
                    target=self._feed, args=(runtime, one), daemon=True, name=f"shmrt-feed-{one.pool}-{number}"
                )
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        """Takes no more messages. What is in hand is done by the pools' own end."""
        self._stopping.set()

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(2 * _LOOK_S)
        for ring in self._made:
            with contextlib.suppress(OSError):
                ring.unlink()

    def _feed(self, runtime: Any, one: Any) -> None:
        from shmrt.errors import EndOfRing

        ring = self._rings[one.ring]
        while not self._stopping.is_set():
            try:
                with ring.lease(timeout=_LOOK_S) as message:
                    self._work(runtime, one, message)
            except Empty:
                continue
            except EndOfRing:
                return

    def _work(self, runtime: Any, one: Any, message: Any) -> None:
        """Until a pool has done it: one that broke or is being restarted comes back."""
        from concurrent.futures import CancelledError

        from shmrt.errors import PoolBroken, RuntimeDown

        while not self._stopping.is_set() or self._pool(runtime, one) is not None:
            pool = self._pool(runtime, one)
            try:
                future = pool.submit(one.target, message) if pool is not None else None
            except RuntimeError:  # it has been shut down, or broke
                future = None
            try:
                if future is not None:
                    future.result()
                    return
            except (PoolBroken, RuntimeDown, CancelledError):
                pass
            except Exception as error:
                self._log(one, error)
                return
            if self._stopping.wait(0.01):
                break
        raise SystemExit  # ends this thread inside the lease: the message goes back to the ring

    @staticmethod
    def _pool(runtime: Any, one: Any) -> Any:
        for opened in list(runtime._pools.values()):
            if opened.name == one.pool:
                return opened._pool()
        return None

    @staticmethod
    def _log(one: Any, error: Exception) -> None:
        logging.getLogger("shmrt.run").error("pool %s: a message of ring %s failed: %r", one.pool, one.ring, error)

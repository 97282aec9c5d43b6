"""Breakers, bulkheads and rate limits in a control segment."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from subject import Subject, attempt

from shmrt import Bulkhead, CircuitBreaker, RateLimit, _native


class Guards(Subject):
    """Breakers of every window, a bulkhead with one permit out, a bucket: entries of a control segment."""

    def build(self) -> None:
        self.slots = _native.Slots.create(6)
        self.fd = self.slots.fd
        with self.area(self.slots):
            for guard in self.guards():
                self.exercise(guard)
        head = mmap.mmap(self.fd, 16384)
        offset = int.from_bytes(head[256 + 6144 + 16 : 256 + 6144 + 24], "little")
        used = int.from_bytes(head[256 + 6144 : 256 + 6144 + 8], "little")
        head.close()
        self.add(self.fd, (256 + 6144, 256 + 6144 + 256), (offset, offset + used))
        self.locks = [128]
        memory, at = self.at(256)
        end, position = at + used, 256
        while at < end:
            self.locks.append(position + 768)
            size = int.from_bytes(memory[at + 4 : at + 8], "little")
            at, position = at + size, position + size

    @staticmethod
    def guards() -> list[Any]:
        return [
            CircuitBreaker("rows", failure_threshold=3, half_open_max=2),
            CircuitBreaker("calls", window=4, failure_rate=0.5, min_calls=2, slow_call=9.0, slow_rate=0.5),
            CircuitBreaker("time", window=3.0, failure_rate=0.5, min_calls=2),
            Bulkhead("hulls", 2, max_waiting=3, timeout=0.0),
            RateLimit("drops", rate=1000.0, burst=5),
        ]

    @staticmethod
    @contextmanager
    def area(slots: Any) -> Iterator[Any]:
        area = _native.GuardArea(slots, 0)
        _native.guards_ask(lambda: area)
        _native.guards_moved()
        try:
            yield area
        finally:
            _native.guards_ask(lambda: None)
            _native.guards_moved()

    @staticmethod
    def exercise(guard: Any) -> list[str]:
        def fail() -> None:
            raise ZeroDivisionError

        def failing() -> None:
            try:
                guard.call(fail)
            except ZeroDivisionError:
                pass

        if isinstance(guard, RateLimit):
            return attempt(guard.try_acquire, lambda: guard.tokens, lambda: guard._counters)
        came = attempt(
            lambda: guard.call(int), failing, failing, lambda: guard.call(int), lambda: guard._look(), guard._overload
        )
        if isinstance(guard, CircuitBreaker):
            return came + attempt(guard.trip, lambda: guard.state, guard.reset, lambda: guard.call(int), guard.stats)
        try:
            return came + attempt(guard.try_acquire, guard.try_acquire, guard.try_acquire, guard.release, guard.release)
        except RuntimeError as error:  # it is lost in what was changed
            assert "has no permit of this process" in str(error), error
            return came

    def use(self) -> list[str]:
        slots = _native.Slots.attach(self.fd)
        came = []
        with self.area(slots) as area:
            came += attempt(area.list)
            for name in ("rows", "none"):
                try:
                    came += attempt(lambda name=name: area.set_breaker(name, 1))  # type: ignore[misc]
                except (LookupError, TimeoutError):
                    pass  # documented: no such breaker, or its mutex is held
            guards = self.guards()
            came += attempt(*(lambda guard=guard: guard._counters for guard in guards))  # type: ignore[misc]
            self.now()
            for guard in guards:
                came += self.exercise(guard)
                guard._leave(area)
            came += attempt(area.list)
        slots.close()
        return came

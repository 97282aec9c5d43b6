"""A Fallback with a StaleCache, written as plainly as possible: what it must answer, and in what state it is then."""

from __future__ import annotations

from typing import Any

__all__ = ["Model"]


class Model:
    """Answers are kept in a list, the one that was used last at its end. Times are whole nanoseconds."""

    def __init__(
        self, fresh: int, max_stale: int | None, entries: int, names: list[str], default: bool, on: Any, exclude: Any
    ) -> None:
        self.fresh, self.max_stale, self.entries = fresh, max_stale, entries
        self.names, self.default, self.on, self.exclude = names, default, on, exclude
        self.kept: list[tuple[Any, Any, int]] = []  # key, value, when
        self.last: str | None = "primary"
        self.told: list[tuple[str | None, str | None]] = []

    def look(self, key: Any, now: int) -> tuple[Any, int] | None:
        for row in self.kept:
            if row[0] == key and (self.max_stale is None or now - row[2] <= self.max_stale):
                self.kept.remove(row)
                self.kept.append(row)
                return row[1], now - row[2]
        return None

    def store(self, key: Any, value: Any, now: int) -> None:
        if self.max_stale is not None:
            self.kept = [row for row in self.kept if now - row[2] <= self.max_stale]
        self.kept = [row for row in self.kept if row[0] != key][-(self.entries - 1) or len(self.kept) :]
        if self.entries == 1:
            self.kept = []
        self.kept.append((key, value, now))

    def call(self, key: Any, now: int, takes: int, plays: dict[str, Any]) -> tuple[Any, ...]:
        """("value", value, source, names that failed, age) or ("error", exception, names of those attached)."""
        if self.fresh:
            found = self.look(key, now)
            if found and found[1] < self.fresh:
                return self.answer(found[0], "fresh", [], found[1])
        failed: list[tuple[str, Exception]] = []
        for name in ["primary", *self.names]:
            play = plays[name]
            now += takes
            if not isinstance(play, Exception):
                if name == "primary":
                    self.store(key, play, now)
                return self.answer(play, name, failed, None)
            failed.append((name, play))
            if not isinstance(play, self.on) or isinstance(play, self.exclude):
                return self.error(play, failed)
            found = self.look(key, now) if name == "primary" else None
            if found:
                return self.answer(found[0], "stale", failed, found[1])
        if self.default:
            return self.answer("default", "default", failed, None)
        return self.error(failed[0][1], failed)

    def answer(self, value: Any, source: str, failed: Any, age: int | None) -> tuple[Any, ...]:
        self.note(source)
        return "value", value, source, [name for name, _ in failed], None if age is None else age / 1e9

    def error(self, error: Exception, failed: Any) -> tuple[Any, ...]:
        self.note(None)
        return "error", error, [name for name, other in failed if other is not error]

    def note(self, source: str | None) -> None:
        good = ("primary", "fresh")
        if not (source == self.last or (source in good and self.last in good)):
            self.told.append((self.last, source))
        self.last = source

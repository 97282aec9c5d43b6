"""One periodic check of a child as a page of straight code: the judge of `Watch` in random tests.

It keeps the whole story of the child's present process, and works out from that story alone what holds: no counters, no
states that change. It shares no code with shmrt/decide.
"""

from __future__ import annotations


class Story:
    """Events of one check as (what, when); `ask` says what a watch must be doing after them."""

    def __init__(self, interval: int, failures: int, grace: int, restarts: bool) -> None:
        self.interval, self.failures, self.grace, self.restarts = interval, failures, grace, restarts
        self.events: list[tuple[str, int]] = []

    def tell(self, what: str, now: int) -> None:
        self.events.append((what, now))

    def life(self) -> list[tuple[str, int]] | None:
        """What happened since the present process came up; None while there is none."""
        started: list[tuple[str, int]] | None = None
        for what, now in self.events:
            if what == "up" and started is None:
                started = [("up", now)]
            elif what == "ended":
                started = None
            elif started is not None:
                started.append((what, now))
                if self.fatal(started):
                    started = None
        return started

    def runs(self, life: list[tuple[str, int]]) -> tuple[list[tuple[str, int]], bool]:
        """The results that answer a run, and whether a run is going on."""
        results, running, free_from = [], False, life[0][1] + self.interval
        for what, now in life[1:]:
            if what == "due" and not running and now >= free_from:
                running = True
            elif what in ("passed", "failed") and running:
                running, free_from = False, now + self.interval
                results.append((what, now))
        return results, running

    def fatal(self, life: list[tuple[str, int]]) -> bool:
        """Whether the last event of this life ends it: enough failures in a row, none of them in grace."""
        results, _ = self.runs(life)
        if not self.restarts or not results or life[-1] != results[-1] or results[-1][0] != "failed":
            return False
        if self.runs(life[:-1])[0] == results:
            return False  # the last event answered nothing
        row = 0
        for at, (what, now) in reversed(list(enumerate(results))):
            if what == "passed":
                break
            excused = now < life[0][1] + self.grace and ("passed" not in [earlier for earlier, _ in results[:at]])
            row += not excused
        return row >= self.failures

    def state(self) -> str:
        life = self.life()
        return "down" if life is None else "running" if self.runs(life)[1] else "waiting"

    def due_at(self) -> int | None:
        """From when "due" begins a run."""
        life = self.life()
        if life is None or self.runs(life)[1]:
            return None
        results, _ = self.runs(life)
        return (results[-1][1] if results else life[0][1]) + self.interval

    def answer(self, what: str, now: int) -> str | None:
        """What the watch must say to this event, which is then part of the story."""
        before = self.state()
        self.tell(what, now)
        if what == "due":
            return "run" if before == "waiting" and self.state() == "running" else None
        if what == "failed" and before == "running" and self.state() == "down":
            return "restart"
        return None

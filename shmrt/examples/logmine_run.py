"""Has all tenants of `logmine.py` at work at the same time, and says what came of it.

Each tenant that is not trusted has a *bulkhead*: a pool of its own, one worker with a spare, that gets the CPU that
others leave and little memory. A call past its *deadline* has its worker killed. A *breaker* counts what fails, and
for a while refuses to try again. What kills three workers is *quarantined*. Tenants that are trusted share the pool
`proven`, and what the others do must not concern them:

    alone       only the trusted ones work
    together    the others do, too

The run goes from one to the other and back, round after round, so that whatever else the machine does meanwhile
concerns both alike. A trusted tenant's answers are checked against those of `serial` in both parts. How many lines they
get through in a second together, as a share of alone, is taken over all rounds but the first, in which workers start.
On a machine that has much else to do it takes more rounds to say.

Halfway, once a trial of b's breaker has failed, its rule is mended: the next trial must close it. At the end the steps
of each tenant are looked up in the events of the runtime, and must be in order (`logmine_story.py`).
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from shmrt import Bulkheads, CircuitBreaker, HealthCheck, Runtime, checks, health
from shmrt.examples import logmine
from shmrt.examples.logmine_story import POOL, Story, in_order
from shmrt.examples.logmine_tenants import Clock, Probation, Trusted
from shmrt.examples.logmine_verdict import REFUSED, Verdict, behaviour, judge

__all__ = ["run"]

DEADLINE_S, TRUSTED_DEADLINE_S = 0.75, 60.0
THRESHOLD, RESET_S, RESET_MOST_S = 3, 1.0, 2.0
MEMORY = 64 << 20
NICE = 15
ATTEMPTS, TRUSTED_ATTEMPTS = 3, 10
ROUND_S, ALONE = 2.0, 0.4
"""How long a round is, and the part of it that the trusted ones have for themselves."""
PATIENCE_S = 60.0
"""How long beyond its time a run goes on until it has seen what it is for."""
TICK_S = 0.25


def run(
    seconds: float = 15.0,
    tenants: int = 8,
    chaos: float = 0.0,
    seed: int | None = None,
    *,
    input: str | None = None,
    workers: int | None = None,
    poison: int = 3,
    least: float = 0.9,
    size: int = logmine.SIZE,
    name: str | None = None,
    stop: threading.Event | None = None,
    progress: Callable[[str], None] | None = None,
) -> Verdict:
    """Runs `tenants` tenants, three of which are b, c and d, for so many seconds, or until `stop` is set.

    chaos: random workers that get SIGKILL, a second. input: a folder with text (None: of this machine), of which `size`
    characters are mined. workers: of the trusted pool (None: the usable CPUs). poison: batches that d's parser dies of.
    least: the share of their throughput that the trusted must keep. name: of the runtime.
    """
    seed = secrets.randbelow(2**31) if seed is None else seed
    batches = logmine.batches_of(input, size=size, seed=seed)
    b, mended = logmine.hanging(batches)
    doubtful = [b, logmine.swelling(batches), logmine.crashing(batches, secrets.token_hex(16), poison, seed)]
    trusted = logmine.healthy(tenants - len(doubtful), batches)
    if progress is not None:
        progress(f"{sum(batch.lines for batch in batches):,} lines; the serial run, to compare")
    expected = logmine.serial(trusted)
    right = right_answers(mended, doubtful[2])
    with ExitStack() as stack:
        runtime = stack.enter_context(Runtime(name=name or f"logmine-{os.getpid()}"))
        story = Story(time.monotonic_ns())
        bulkheads = stack.enter_context(bulkheads_for(doubtful, workers)).start()
        crew = Crew(runtime, bulkheads, trusted, doubtful, expected)
        stack.callback(crew.wellness.close)
        killer = stack.enter_context(killing(runtime, chaos, seed))
        play = Play(crew, story, right, least, seconds, stop or threading.Event(), progress)
        play.run(mended.rules)
    return judge(crew, story, right, seed=seed, killed=killer.killed, least=least, stopped=play.stopped)


def right_answers(b: logmine.Tenant, d: logmine.Tenant) -> dict[str, dict[int, logmine.Found]]:
    """What b must find once it is mended, and d in what its parser does not die of."""
    return {
        one.name: {
            number: logmine.mine(one.rules, batch.text)
            for number, batch in enumerate(one.batches)
            if not batch.origin.startswith(logmine.POISON)
        }
        for one in (b, d)
    }


def bulkheads_for(doubtful: list[logmine.Tenant], workers: int | None) -> Bulkheads:
    """One for all that are trusted, one for each that is not."""
    proven = {"max_workers": workers, "task_timeout": TRUSTED_DEADLINE_S, "max_attempts": TRUSTED_ATTEMPTS}
    probation = {
        "max_workers": 1,
        "spares": 1,  # who loses a worker goes on with the other at once, and is not unhealthy for it
        "task_timeout": DEADLINE_S,
        "max_attempts": ATTEMPTS,
        "initializer": logmine.on_probation,
        "initargs": (MEMORY, NICE),
    }
    return Bulkheads({"proven": proven, **{POOL + tenant.name: probation for tenant in doubtful}})


def killing(runtime: Runtime, rate: float, seed: int) -> Any:
    from shmrt.cli.drive import Chaos

    return Chaos(runtime, rate, seed)


class Wellness:
    """What `health()` says from time to time: the trusted pool must be well; the breakers are not critical."""

    def __init__(self, runtime: Runtime, proven: Any, breakers: list[CircuitBreaker]) -> None:
        self.statuses: Counter[str] = Counter()
        self.missed = 0
        """Looks that found all healthy although a breaker was open."""
        self._runtime, self._breakers = runtime, breakers
        self._checks: list[HealthCheck] = [checks.pool(proven, name="proven")]
        self._checks += [checks.breaker(breaker, name=breaker.name, critical=False) for breaker in breakers]

    def look(self) -> None:
        before = self.open()
        status = health(self._runtime).status
        self.statuses[status] += 1
        self.missed += status == "healthy" and bool(before & self.open())

    def open(self) -> set[str]:
        return {breaker.name for breaker in self._breakers if breaker.state != "closed"}

    def close(self) -> None:
        for check in self._checks:
            check.unregister()


class Crew:
    """All tenants at work, and who looks after them."""

    def __init__(
        self,
        runtime: Runtime,
        bulkheads: Bulkheads,
        trusted: list[logmine.Tenant],
        doubtful: list[logmine.Tenant],
        expected: dict[str, list[logmine.Found]],
    ) -> None:
        self.runtime = runtime
        self.gate = threading.Event()
        self.clock = Clock()
        proven = bulkheads["proven"]
        # Never idle, and never so much under way that a part of the run is over before what it began.
        calls = max(2, -(-2 * proven._max_workers // max(1, len(trusted))))
        self.trusted = [Trusted(one, proven, expected[one.name], self.clock, calls) for one in trusted]
        self.doubtful = [
            Probation(
                one,
                bulkheads[POOL + one.name],
                CircuitBreaker(
                    POOL + one.name,
                    failure_threshold=THRESHOLD,
                    reset_timeout=RESET_S,
                    backoff=2.0,
                    max_reset_timeout=RESET_MOST_S,
                ),
                self.gate,
            )
            for one in doubtful
        ]
        self.wellness = Wellness(runtime, proven, [one.breaker for one in self.doubtful])

    @property
    def all(self) -> list[Any]:
        return [*self.trusted, *self.doubtful]

    def check(self) -> None:
        """Raises what is no tenant's mistake."""
        for one in self.all:
            if one.mistake is not None:
                raise one.mistake

    def begin(self, part: str) -> None:
        """Once nothing of the part before is under way that would not belong to this one."""
        if part == "together":
            self.gate.set()
        self.clock.begin(part)

    def end(self) -> None:
        self.clock.end()
        self.gate.clear()
        for one in self.doubtful:
            one.at_rest.wait()

    def finish(self) -> None:
        for one in self.all:
            one.over.set()
        for one in self.all:
            one.join()


class Play:
    """One part after the other until the time is over and everything was seen, or it is stopped."""

    def __init__(
        self,
        crew: Crew,
        story: Story,
        right: dict[str, dict[int, logmine.Found]],
        least: float,
        seconds: float,
        stop: threading.Event,
        progress: Callable[[str], None] | None,
    ) -> None:
        self.crew, self.story, self.right, self.stop, self.progress = crew, story, right, stop, progress
        self.least = least
        self.stopped = False
        self._rounds = max(3, round(seconds / ROUND_S))
        self._length = seconds / self._rounds
        self._end = time.monotonic() + seconds

    def run(self, mended: tuple[logmine.Rule, ...]) -> None:
        crew = self.crew
        for one in crew.all:
            one.start()
        done, is_mended = 0, False
        while not self.stopped:
            parts = [("alone", self._length * ALONE), ("together", self._length * (1 - ALONE))]
            for part in parts if done % 2 == 0 else reversed(parts):
                self.part(*part)
            done += 1
            self.ask_events()
            if not is_mended and 2 * done >= self._rounds and in_order(self.story.steps, "b", REFUSED):
                crew.doubtful[0].mend(mended)
                is_mended = True
            if done >= self._rounds and (self.saw_all() or time.monotonic() > self._end + PATIENCE_S):
                break
        crew.finish()
        crew.check()
        self.ask_events()

    def part(self, name: str, seconds: float) -> None:
        if self.stopped:
            return
        self.crew.begin(name)
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.stopped:
            self.stopped = self.stop.wait(min(left, TICK_S))
            self.crew.check()
            if name == "together":
                self.crew.wellness.look()
            if self.progress is not None:
                self.progress(self.text(name))
        self.crew.end()

    def text(self, part: str) -> str:
        calls = sum(one.calls for one in self.crew.trusted)
        left = max(0.0, self._end - time.monotonic())
        breakers = "  ".join(f"{one.tenant.name}: {one.breaker.state}" for one in self.crew.doubtful)
        return f"{part}  {calls:,} calls of trusted tenants  {breakers}  {left:.0f} s to go"

    def saw_all(self) -> bool:
        """There is nothing more to come."""
        enough = self.crew.clock.share() >= self.least
        return enough and all(behaviour(self.crew, self.story, self.right).values())

    def ask_events(self) -> None:
        """As the verb `events` does: through the control socket of the runtime."""
        from shmrt.cli.remote import Remote
        from shmrt.supervise.directory import find
        from shmrt.supervise.place import default_place

        found = next(one for one in find(default_place()) if one.name == self.crew.runtime.name)
        with Remote(found) as remote:
            self.story.hear(remote.ask("events", follow=False, since=None)["events"])

"""Runs the target of `chaos`: once without faults, then again and again while there are faults, and compares.

The run without faults says what is expected. It reads the source to its end, or for `duration` seconds if that comes
first; every later run gets exactly as many inputs, which must be the same ones. Faults last for `duration` seconds; the
run that is on when they end goes on without, so what was put in has the chance to come out. If then nothing moves for
`patience` seconds, it is stuck, and that is a broken verdict, not a wait for ever.
"""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from typing import Any

from shmrt.cli.chaos_items import Tally, item, numbered, opened, received
from shmrt.cli.chaos_strike import Striker
from shmrt.cli.drive import Signals, StopNow, evidence, explained
from shmrt.cli.screen import CliError, Screen
from shmrt.decide.chaos_verdict import EXAMPLES_MOST, History, Verdict, judge

__all__ = ["Feed", "Found", "Rounds"]

START_S = 30.0
"""A run whose first output takes longer than this is on its time all the same."""
PATIENCE_S = 60.0
TICK_S = 0.05
SILENCES = 20
"""Without a limit of the user's own, nothing may move for so many times the longest silence of the run without
faults, and for PATIENCE_S at least."""


@dataclasses.dataclass(slots=True)
class Found:
    """What all runs came to."""

    verdict: Verdict = dataclasses.field(default_factory=Verdict)
    rounds: int = 0
    inputs: int = 0
    """Of each run."""
    expected: int = 0
    outputs: int = 0
    """Of all runs with faults."""
    repeated: int = 0
    """Calls of the stages' functions beyond one for each of their items."""
    letters_calm: int = 0
    letters: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rate_calm: float = 0.0
    rate: float = 0.0
    """Inputs a second."""
    stuck: bool = False
    error: str | None = None
    """What a run with faults raised, if one did."""
    control: Verdict | None = None
    """Of a second run without faults, made when the verdict is broken: is it the faults, or the target by itself?"""

    @property
    def holds(self) -> bool:
        return self.verdict.holds and not self.stuck and self.error is None


class Feed:
    """The source of one run, as numbered items. It ends early when `is_over()`, or when `most` were given.

    `inputs` has the checksum of every input that was given; `like` is that of the run before, and `differs` the first
    input that was another one."""

    def __init__(self, source: Any, is_over: Callable[[], bool], *, most: int | None, like: array[int] | None) -> None:
        self._source, self._is_over, self._most, self._like = source, is_over, most, like
        self.inputs = array("Q")
        self.differs: int | None = None
        self.failure: BaseException | None = None

    def __call__(self) -> Iterator[Any]:
        from shmrt.pipeline import open_source

        try:
            items = iter(open_source(self._source))
            while not (self._is_over() or len(self.inputs) == self._most):
                try:
                    value = next(items)
                except StopIteration:
                    if self._like is not None and len(self.inputs) < len(self._like):
                        self.differs = len(self.inputs)
                    return
                number = len(self.inputs)
                thing = item(number, value)
                if self._like is not None and self._like[number] != thing[1]:
                    self.differs = number
                    return
                self.inputs.append(thing[1])
                yield thing
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise


class Patience:
    """A thread beside a run: notes the longest silence, and ends a run in which nothing moves for longer than
    `limit()`, by the signal that a drain's limit uses. `tick` is called meanwhile."""

    def __init__(self, limit: Callable[[], float | None], moved: Callable[[], int], tick: Callable[[], None]) -> None:
        self._limit, self._moved, self._tick = limit, moved, tick
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="shmrt-patience", daemon=True)
        self.longest = 0.0
        self.lost = False

    def __enter__(self) -> Patience:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        seen, moved_at = self._moved(), time.monotonic()
        patient_since: float | None = None  # while there is a limit
        while not self._done.wait(TICK_S):
            self._tick()
            count, now, limit = self._moved(), time.monotonic(), self._limit()
            if limit is None:
                patient_since = None
            elif patient_since is None:
                patient_since = now
            self.longest = max(self.longest, now - moved_at)
            if count != seen:
                seen, moved_at = count, now
            elif limit is not None and patient_since is not None and now - max(moved_at, patient_since) > limit:
                self.lost = True
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
                return


class Rounds:
    """One run without faults, then the others. `again()` gives the target anew if its source can be read only once."""

    def __init__(
        self,
        again: Callable[[], Any],
        striker: Striker,
        signals: Signals,
        screen: Screen,
        tally: Tally,
        *,
        duration: float,
        most: int | None,
        runs: int | None,
        ordered: bool,
        patience: float | None,
    ) -> None:
        self._again, self._striker, self._signals, self._screen = again, striker, signals, screen
        self._tally, self._runs = tally, runs
        self._duration, self._most, self._ordered, self._patience = duration, most, ordered, patience
        self._name = ""
        self._inputs: array[int] = array("Q")
        self._letters: set[tuple[int, ...]] = set()
        self._silence = 0.0
        self._first: float | None = None
        self._members_count = True
        self._shown = 0.0
        self.found = Found()

    def go(self) -> Found:
        """All of it. CliError where there can be no verdict."""
        found = self.found
        calm = self._calm()
        if self._signals.first is not None:
            return found
        seconds = 0.0
        fed = 0
        self._striker.start()
        while True:
            found.rounds += 1
            began = time.monotonic()
            history, feed = self._rough()
            seconds += time.monotonic() - began
            fed += len(feed.inputs)
            found.outputs += len(history)
            found.verdict.add(self._judge(calm, history, feed))
            if feed.differs is not None:
                raise self._unlike(feed.differs, found.rounds + 1)
            if found.rounds == self._runs or self._striker.over.is_set() or self._cut_short():
                break
        self._striker.stop()
        found.rate = fed / max(seconds, 1e-9)
        if not found.holds and not self._cut_short():
            self._screen.progress("broken; once more without faults, to compare")
            history, feed = self._rough(control=True)
            if feed.differs is not None:
                raise self._unlike(feed.differs, found.rounds + 2)
            if not self._cut_short():
                found.control = self._judge(calm, history, feed)
        return found

    def _judge(self, calm: History, history: History, feed: Feed) -> Verdict:
        count = len(feed.inputs)
        return judge(calm, history, count, ordered=self._ordered, members_count=self._members_count)

    def _cut_short(self) -> bool:
        return self._signals.first is not None or self.found.stuck or self.found.error is not None

    def _unlike(self, number: int, run: int) -> CliError:
        return CliError(
            f"target {self._name!r}: run {run} got another input {number} than the first, so nothing can be compared",
            hint="give it a source that says the same each time it is read",
            code=2,
        )

    def _calm(self) -> History:
        """The run without faults: what is expected."""
        began = time.monotonic()

        def is_over() -> bool:  # its time begins with the first output: the workers' start is not counted
            first, now = self._first, time.monotonic()
            return now - began > START_S + self._duration or (first is not None and now - first > self._duration)

        feed, history, patience, _ = self._play(self._most, is_over, None, lambda: None)
        self._inputs, self._silence = feed.inputs, patience.longest
        if self._signals.first is not None or not history.ended:
            return history
        if not feed.inputs:
            raise CliError(f"target {self._name!r}: its source gave nothing", hint="there is nothing to lose", code=2)
        found = self.found
        found.inputs, found.expected = len(feed.inputs), len(history)
        self._letters = set(history.letters)
        found.letters_calm = len(history.letters)
        found.rate_calm = found.inputs / max(time.monotonic() - began, 1e-9)
        if history.torn:
            found.verdict.count("corrupted", (), len(history.torn))
            found.verdict.changed_on_the_way += len(history.torn)
            history.torn.clear()
        return history

    def _rough(self, *, control: bool = False) -> tuple[History, Feed]:
        limit = max(PATIENCE_S, SILENCES * self._silence) if self._patience is None else self._patience
        feed, history, patience, run = self._play(
            len(self._inputs), lambda: False, self._inputs, lambda: limit if self._striker.over.is_set() else None
        )
        found = self.found
        if patience.lost:
            found.stuck = True
            history.ended = True  # what did not come will not come
        if not control:
            self._striker.run_ended()
            if run is not None:
                rows = [row for row in run.report["stages"] if row["kind"] != "batch"]
                found.repeated += max(0, self._tally.take() - sum(row["in"] for row in rows))
            for letter in [] if run is None else run.dead_letters:
                origin, value, _ = opened(letter.item)
                if origin not in self._letters and len(found.letters) < EXAMPLES_MOST:
                    row = evidence(dataclasses.replace(letter, item=value))
                    found.letters.append({"inputs": list(origin), **row})
        return history, feed

    def _play(
        self,
        most: int | None,
        is_over: Callable[[], bool],
        like: array[int] | None,
        limit: Callable[[], float | None],
    ) -> tuple[Feed, History, Patience, Any]:
        """One run to its end."""
        target = self._again()
        self._name = target.name
        source = target.pipeline._source
        kinds = [stage.kind for stage in target.pipeline.stages]
        after_batch = kinds[kinds.index("batch") :] if "batch" in kinds else []
        self._members_count = not {"filter", "flat_map"}.intersection(after_batch)
        self._first = None
        feed = Feed(source, lambda: self._signals.stopping.is_set() or is_over(), most=most, like=like)
        history = History()
        run: Any = None
        with Patience(limit, lambda: len(history) + len(feed.inputs), self._heed) as patience:
            try:
                self._tally.take()
                pipe = numbered(target.pipeline, self._tally.path)
                with pipe.run(feed, ordered=self._ordered, on_error="dead_letter") as run:
                    for thing in run:
                        origin, check, torn = received(thing)
                        history.add(origin, check, torn=torn)
                        self._first = self._first or time.monotonic()
                        self._striker.output()
                        self._show(len(history), like is not None)
                history.balanced = bool(run.report.balanced)
            except StopNow:
                history.ended = False
            except Exception as error:
                history.ended = False
                if like is None or error is feed.failure:
                    raise explained(error, self._name, feed.failure, "dead_letter") from None
                self.found.error = f"{type(error).__name__}: {error}"
        if run is not None:
            history.letters = [opened(letter.item)[0] for letter in run.dead_letters]
        return feed, history, patience, run

    def _heed(self) -> None:
        """A signal ends the faults at once; what was put in then comes out undisturbed."""
        if self._signals.stopping.is_set():
            self._striker.halt()

    def _show(self, outputs: int, faults: bool) -> None:
        now = time.monotonic()
        if now - self._shown < (0.1 if self._screen.terminal else 5.0):
            return
        self._shown = now
        striker, found = self._striker, self.found
        what = (
            f"run {found.rounds + 1}, {striker.kills} killed, {striker.stops} stopped" if faults else "without faults"
        )
        of = f" of {found.expected:,}" if faults else ""
        self._screen.progress(f"{what}: {outputs:,}{of} outputs")

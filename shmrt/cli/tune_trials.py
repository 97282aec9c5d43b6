"""Runs the target of `tune` on its sample, with one setting after another, and checks what comes out each time.

The clock of a trial starts when all workers are ready, and stops with the last output: starting them is not in it. The
first run finds out how many inputs the sample has, and what is expected of them. Outputs are kept until the clock has
stopped and only then turned into a checksum, unless they are large: then as they come, since they may not fill the
memory that the pipeline itself needs.

A trial that raises, gives other outputs, or takes many times as long has a problem, and nothing of it counts. Where
that is the setting as it is, it is the target's problem, and the command ends with it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import islice
from typing import Any

from shmrt.cli.chaos_digest import digest
from shmrt.cli.drive import Signals, explained
from shmrt.cli.screen import CliError, Screen
from shmrt.cli.shaping import WORKABLE, is_workable
from shmrt.decide.routing import weigh
from shmrt.decide.tune_words import Knobs, Setting, StageFacts, Trial
from shmrt.spec import RingSpec

__all__ = ["Answer", "Interrupted", "Sample", "Trials", "knobs_of", "with_setting"]

START_S = 30.0
"""Workers that take longer to start are not waited for: the run will say what is wrong with them."""
INPUTS_LEAST = 16
"""With fewer nobody could see what more workers are worth."""
CLOSE, GROWTH = 1.5, 16.0
LONGER = 10
"""How many times as long a changed setting may take."""
LEAST_LIMIT_S = 10.0
HOLD_BYTES = 2**25
POLL_S = 0.001
LOOKS_MOST = 64
EVERY = 16
FEW = 4
LARGE_BYTES = 2**14


class Interrupted(Exception):
    """A signal ended the trial: nothing of it counts."""


@dataclass(frozen=True, slots=True)
class Sample:
    """How much of the source a trial reads: so many inputs, or as many as take about so many seconds."""

    inputs: int | None = None
    seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came out: how many outputs, and one word for all of them in order."""

    count: int
    word: str


def knobs_of(pipeline: Any) -> Setting:
    """What the description says of each stage with workers."""
    return tuple(
        Knobs(stage.workers, stage.ring.slots, stage.ring.slot_bytes, stage.chunk, stage.spin)
        for stage in pipeline.stages
        if is_workable(stage)
    )


def with_setting(pipeline: Any, setting: Setting) -> Any:
    """A description like `pipeline` with this setting."""
    from shmrt.pipeline import Pipeline

    made = Pipeline(pipeline.name)
    made._source = pipeline._source
    knobs = iter(setting)
    made._stages = tuple(_with(stage, next(knobs)) if is_workable(stage) else stage for stage in pipeline.stages)
    return made


def _with(stage: Any, knobs: Knobs) -> Any:
    ring = RingSpec(knobs.slots, knobs.slot_bytes)
    return replace(stage, workers=knobs.workers, ring=ring, chunk=knobs.chunk, spin=knobs.spin)


class Feed:
    """The source of one trial: waits for the start, ends with the sample, and times the user's source."""

    def __init__(self, source: Any, begin: threading.Event, is_over: Callable[[int], bool]) -> None:
        self._source, self._begin, self._is_over = source, begin, is_over
        self.count = 0
        self.seconds = 0.0
        self.processor_s = 0.0
        self.ended = False
        self.failure: BaseException | None = None

    def __call__(self) -> Iterator[Any]:
        from shmrt.pipeline import open_source

        self._begin.wait()
        clock, began = time.perf_counter, time.thread_time()
        try:
            at = clock()
            items = iter(open_source(self._source))
            while not self._is_over(self.count):
                try:
                    item = next(items)
                except StopIteration:
                    self.ended = True
                    break
                finally:
                    self.seconds += clock() - at
                self.count += 1
                yield item
                at = clock()
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise
        finally:
            self.processor_s = time.thread_time() - began


class Outputs:
    """Takes what comes out; `answer` afterwards. With `compare` off only the number counts."""

    def __init__(self, hold_bytes: int, *, compare: bool) -> None:
        self._hash = blake2b(digest_size=16)
        self._held: list[Any] = []
        self._weight, self._most, self._compare = 0, hold_bytes, compare
        self._large = False
        self.count = 0

    def add(self, item: Any) -> None:
        self.count += 1
        if not self._compare:
            return
        self._held.append(item)
        if self._large or self.count % EVERY == 1:  # small ones are not weighed one by one
            weight = weigh(item)
            self._large = self._large or weight > LARGE_BYTES
            self._weight += weight if self._large else EVERY * weight
        if self._weight > self._most:
            self._digest()

    def _digest(self) -> None:
        for item in self._held:
            self._hash.update(digest(item).to_bytes(8, "little"))
        self._held.clear()
        self._weight = 0

    def answer(self) -> Answer:
        self._digest()
        return Answer(self.count, self._hash.hexdigest() if self._compare else "")


class Trials:
    """One target, one sample. `start` is the setting as it is."""

    def __init__(
        self, again: Callable[[], Any], signals: Signals, screen: Screen, *, sample: Sample, on_error: str
    ) -> None:
        self._again, self._signals, self._screen = again, signals, screen
        self._sample, self._on_error = sample, on_error
        target = again()
        self._next: Any = target
        self.name: str = target.name
        self.described = target.pipeline
        self.start = knobs_of(target.pipeline)
        self.names = tuple(stage.name for stage in target.pipeline.stages if is_workable(stage))
        self.inputs = self._most = 0
        self.whole = False
        """The sample is all that the source gives."""
        self._expected: Answer | None = None
        self._wall_s = 0.0
        self._number = 0
        self.notes: list[str] = []
        timed = [stage.name for stage in target.pipeline.stages if stage.kind == "batch" and stage.timeout is not None]
        self._counted = not timed
        self._compared = not timed
        if timed:
            self.notes.append(f"outputs are not compared: {timed[0]!r} makes batches by the clock")

    def first(self) -> Trial:
        """Finds out what the sample is, and what is expected. CliError for a target that cannot be tuned."""
        most = self._sample.inputs or INPUTS_LEAST
        while True:
            self._most = most
            trial = self.run(self.start)
            if not self.inputs:
                text = f"target {self.name!r}: its source gave nothing"
                raise CliError(text, hint="there is nothing to measure by", code=2)
            # What a source gives at once is no measure: rings hold it. So the sample grows until it takes its time.
            if self._sample.inputs is not None or self.whole:
                return trial
            longer = self._sample.seconds / trial.wall_s
            if longer < CLOSE:  # once more: it may have been slow by chance, and too small a sample spoils all
                longer = self._sample.seconds / self.run(self.start).wall_s
            if longer < CLOSE:
                return trial
            most = int(most * min(longer, GROWTH)) + 1
            self._expected = None

    def run(self, setting: Setting) -> Trial:
        """One trial. Interrupted by a signal; CliError if the setting as it is fails."""
        target = self._next if self._next is not None else self._again()
        self._next = None
        self._number += 1
        try:
            return self._play(target, setting)
        except (Interrupted, CliError):
            raise
        except Exception as error:
            if setting == self.start:
                raise
            return Trial(problem=f"{type(error).__name__}: {error}".splitlines()[0][:120])

    def _play(self, target: Any, setting: Setting) -> Trial:
        source = target.pipeline._source
        begin = threading.Event()
        stopping = self._signals.stopping.is_set
        feed = Feed(source, begin, lambda count: count >= self._most or stopping())
        outputs = Outputs(self._hold_bytes(), compare=self._compared)
        pipe = with_setting(target.pipeline, setting)
        looks: list[tuple[float, ...]] = []
        late = threading.Event()
        try:
            with pipe.run(feed, on_error=self._on_error) as run:
                idle = self._wait_ready(run)

                def give_up() -> None:
                    late.set()
                    run.close()

                timer = threading.Timer(self._limit(), give_up)
                timer.daemon = True
                timer.start()
                try:
                    processor_s, wall = time.process_time(), time.monotonic()
                    begin.set()
                    for item in run:
                        if len(looks) < LOOKS_MOST:
                            looks.append(_weights(run, item, is_workable(pipe.stages[-1])))
                        outputs.add(item)
                    wall = time.monotonic() - wall
                    processor_s = time.process_time() - processor_s - feed.processor_s
                finally:
                    begin.set()
                    timer.cancel()
        except Exception as error:
            if self._signals.first is not None:
                raise Interrupted from None
            if setting == self.start:
                raise explained(error, self.name, feed.failure, self._on_error) from None
            raise
        if self._signals.first is not None:
            raise Interrupted
        if late.is_set():
            return self._too_late(setting)
        return self._checked(
            setting,
            feed,
            outputs,
            Trial(
                inputs=feed.count,
                wall_s=max(wall, 1e-9),
                source_s=feed.seconds,
                program_s=max(0.0, processor_s),
                stages=self._facts(pipe, run.report, looks, idle),
            ),
        )

    def _limit(self) -> float:
        if not self._wall_s:
            return 2 * START_S + 10 * self._sample.seconds
        return max(LEAST_LIMIT_S, LONGER * self._wall_s)

    def _too_late(self, setting: Setting) -> Trial:
        text = f"did not end within {self._limit():.0f} s"
        if setting != self.start:
            return Trial(problem=text)
        hint = "a smaller --sample; or an input that has outputs without end, which no sample can hold"
        raise CliError(f"target {self.name!r}: a run of the sample {text}", hint=hint)

    def _wait_ready(self, run: Any) -> float:
        """Until all workers are, and how long that took; one that cannot start is the run's to report, once it has
        something to do."""
        began = time.monotonic()
        pools = [pool for pool in run._motor._pools if pool is not None]
        while time.monotonic() - began < START_S and not self._signals.stopping.is_set():
            if all(pool.health()["status"] == "healthy" for pool in pools):
                break
            time.sleep(POLL_S)
        return time.monotonic() - began

    def _hold_bytes(self) -> int:
        from shmrt import _native
        from shmrt.runtimes import innermost

        runtime = innermost()
        memory = (runtime and runtime.shm_limit) or int(_native.Arena.default().stats()["limit"])
        return min(HOLD_BYTES, memory // 16)

    def _facts(self, pipe: Any, report: Any, looks: list[tuple[float, ...]], idle_s: float) -> tuple[StageFacts, ...]:
        """`idle_s`: how long all stages starved before the start."""
        rows = {row["name"]: row for row in report["stages"]}
        found = []
        for at, stage in enumerate(stage for stage in pipe.stages if is_workable(stage)):
            row = rows[stage.name]
            seen = sorted(look[at] for look in looks if at < len(look) and look[at])
            found.append(
                StageFacts(
                    stage.name,
                    stage.kind,
                    stage.workers,
                    row["in"],
                    row["busy"],
                    row["blocked"],
                    max(0.0, row["starved"] - idle_s),
                    bytes_each=seen[len(seen) // 2] if seen else 0.0,
                    stateful=stage.stateful,
                    single=stage.timeout is not None or stage.max_attempts < 2,
                )
            )
        return tuple(found)

    def _checked(self, setting: Setting, feed: Feed, outputs: Outputs, trial: Trial) -> Trial:
        answer = outputs.answer()
        if self._expected is None:
            self._expected, self.inputs, self._wall_s = answer, feed.count, trial.wall_s
            self.whole = feed.ended
            return trial
        if feed.count != self.inputs:
            text = f"target {self.name!r}: its source gave {feed.count:,} inputs, and {self.inputs:,} the first time"
            raise CliError(text, hint="give it a source that says the same each time it is read", code=2)
        expected = self._expected
        if self._counted and answer.count != expected.count:
            text = f"{answer.count:,} outputs instead of {expected.count:,}"
            if setting != self.start:
                return Trial(problem=f"gives {text}")
            hint = "what a trial gives must be the same each time, else no change can be judged"
            raise CliError(f"target {self.name!r}: run {self._number} gave {text}, with nothing changed", hint=hint)
        if self._compared and answer.word != expected.word:
            if setting != self.start:
                return Trial(problem="gives other outputs")
            self._compared = False
            self.notes.append("outputs differ from run to run with nothing changed, so only their number is compared")
        return trial


def _weights(run: Any, item: Any, last: bool) -> tuple[float, ...]:
    """About how many bytes an item weighs in each stage with workers, now; 0 where none is held. `item` just came out,
    of the `last` stage unless a batch came after it."""
    motor = run._motor
    nodes = [node for node in motor._machine.nodes if node.plan.kind in WORKABLE]
    with motor._lock:
        found = [float(max((entry.size for entry in islice(node.line, FEW)), default=0)) for node in nodes]
    if last and found:
        found[-1] = max(found[-1], float(weigh(item)))
    return tuple(found)

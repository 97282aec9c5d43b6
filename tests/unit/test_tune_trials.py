"""Trials of `tune` with real workers: what is counted, what is compared, and what makes a trial not count.

No time is asserted. A stage's function sleeps where a worker must be seen to be at work.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import shmrt
from shmrt.cli.screen import CliError, Screen
from shmrt.cli.tune_trials import Interrupted, Sample, Trials, knobs_of, with_setting
from shmrt.decide.tune_words import Knobs, Trial, changed

sys.path.insert(0, str(Path(__file__).parent))
import tune_targets as targets


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[None]:
    with shmrt.Runtime():
        yield


def trials_of(pipeline: Any, inputs: int | None = None, seconds: float = 0.01, on_error: str = "raise") -> Trials:
    target = SimpleNamespace(name="t", pipeline=pipeline)
    signals: Any = SimpleNamespace(first=None, stopping=threading.Event())
    sample = Sample(inputs, seconds)
    return Trials(lambda: target, signals, Screen(quiet=True), sample=sample, on_error=on_error)


def test_a_trial_counts_and_says_who_was_at_work() -> None:
    trials = trials_of(targets.pair, inputs=20)
    first = trials.first()
    assert (trials.inputs, first.inputs, trials.whole, trials.names) == (20, 20, False, ("nap", "words"))
    assert first.wall_s >= 20 * 0.019  # it naps for 20 ms, of which a clock may take a little
    nap, words = first.stages
    assert (nap.taken, words.taken, nap.workers) == (20, 20, 1)
    assert nap.busy_s >= 20 * 0.019 and nap.item_s >= 0.019 and words.busy_s > 0
    again = trials.run(changed(trials.start, 0, workers=3, chunk=2, spin=0.0, slots=8, slot_bytes=4096))
    assert again.problem is None and again.inputs == 20 and again.stages[0].workers == 3


def test_a_sample_grows_until_it_takes_its_time_or_the_source_ends() -> None:
    short = trials_of(targets.naps, seconds=0.001)
    short.first()
    assert short.inputs == 16
    whole = trials_of(targets.pair, seconds=3600.0)
    whole.first()
    assert (whole.inputs, whole.whole) == (64, True)


def test_a_sample_that_was_slow_by_chance_grows_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that take a millisecond for each input, but for the first of 16, which takes a second."""
    trials = trials_of(targets.naps, seconds=1.0)
    ran: list[int] = []

    def run(_setting: Any) -> Trial:
        ran.append(trials._most)
        trials.inputs = trials._most
        return Trial(trials._most, 1.0 if len(ran) == 1 else trials._most / 1000)

    monkeypatch.setattr(trials, "run", run)
    trials.first()
    assert ran[:2] == [16, 16] and ran == sorted(ran) and trials.inputs > 600


def test_other_outputs_make_a_change_not_count() -> None:
    """A stage that counts its items gives other numbers with two workers."""
    trials = trials_of(targets.counters)
    trials.first()
    assert trials.run(trials.start).problem is None
    assert trials.run(changed(trials.start, 0, workers=2)).problem == "gives other outputs"


def test_another_number_of_outputs_makes_a_change_not_count() -> None:
    trials = trials_of(targets.quick)
    trials.first()
    trials._expected = type(trials._expected)(15, "")  # type: ignore[misc,arg-type]
    assert trials.run(changed(trials.start, 0, workers=2)).problem == "gives 16 outputs instead of 15"


def test_a_change_that_cannot_be_had_does_not_count() -> None:
    trials = trials_of(targets.quick)
    trials.first()
    problem = trials.run(changed(trials.start, 0, slots=2**24, slot_bytes=2**15)).problem
    assert problem is not None and problem.startswith(("SegmentError", "OSError", "ValueError"))
    assert trials.run(trials.start).problem is None


def test_outputs_that_differ_by_themselves_are_only_counted() -> None:
    trials = trials_of(targets.varies)
    trials.first()
    assert trials.run(trials.start).problem is None
    assert "only their number is compared" in trials.notes[0]
    assert trials.run(changed(trials.start, 0, workers=2)).problem is None


def test_batches_by_the_clock_are_not_compared() -> None:
    trials = trials_of(targets.timed)
    trials.first()
    assert "batches by the clock" in trials.notes[0]
    assert trials.run(changed(trials.start, 0, workers=2)).problem is None


CANNOT = [
    ("empty", "its source gave nothing", 2),
    ("picks", "five is right out", 1),
    ("broken", "the source of target 't' failed: LookupError: no more data", 1),
    ("shrinks", "the first time", 2),
    ("grows", "with nothing changed", 1),
]


@pytest.mark.parametrize(("name", "part", "code"), CANNOT)
def test_a_target_that_cannot_be_tuned_is_one_clear_error(name: str, part: str, code: int) -> None:
    targets.runs = targets.count()
    trials = trials_of(getattr(targets, name))
    with pytest.raises(CliError) as found:
        trials.first()
        for _ in range(20):  # `grows` may be lucky once
            trials.run(trials.start)
    assert part in found.value.message and found.value.code == code and found.value.hint


def test_failing_items_may_be_left_out() -> None:
    trials = trials_of(targets.picks, on_error="skip")
    trials.first()
    assert trials.run(changed(trials.start, 0, workers=2)).problem is None


def test_a_signal_ends_a_trial_and_nothing_of_it_counts() -> None:
    trials = trials_of(targets.naps)
    trials.first()
    trials._signals.first = signal.SIGINT
    trials._signals.stopping.set()
    with pytest.raises(Interrupted):
        trials.run(trials.start)


def test_a_change_that_takes_much_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    trials = trials_of(targets.naps)
    trials.first()
    monkeypatch.setattr(trials, "_limit", lambda: 0.05)
    assert "did not end within" in (trials.run(changed(trials.start, 0, slots=8)).problem or "")
    with pytest.raises(CliError, match="did not end within"):
        trials.run(trials.start)


def test_a_setting_is_read_and_laid_over_a_description() -> None:
    setting = (Knobs(3, 8, 4096, 16, 5e-5), Knobs(1, 16, 512, None, None))
    made = with_setting(targets.pair, setting)
    assert knobs_of(made) == setting
    assert [stage.name for stage in made.stages] == [stage.name for stage in targets.pair.stages]
    assert knobs_of(targets.pair) == (Knobs(1), Knobs(1))


def test_large_outputs_are_not_kept() -> None:
    """A hundred megabytes come out, more than the shared memory of this runtime holds at once."""
    import numpy

    pipe = shmrt.Pipeline("big").map(lambda x: numpy.full(2**20, x % 7, "u1"), workers=1).source(range(100))
    with shmrt.Runtime(shm_limit="48MiB"):
        trials = trials_of(pipe, inputs=100)
        first = trials.first()
        assert trials.run(changed(trials.start, 0, workers=2)).problem is None
    assert first.stages[0].bytes_each > 2**19

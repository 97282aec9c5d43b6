"""The decisions of `tune`, on machines whose best setting is known.

The fake machine (fake_machine.py) has noise from a seed, and no clock: what is asserted holds for these seeds on every
computer. Nothing is recommended that it does not confirm; noise alone is nearly never taken for a gain.
"""

from __future__ import annotations

import math
import random

import pytest
from fake_machine import FakeMachine, FakeStage, tune

from shmrt.decide.tune_bottleneck import of_trial, verdict
from shmrt.decide.tune_compare import LOOKS, confirm, interval, median, screen, sign_chance
from shmrt.decide.tune_moves import moves
from shmrt.decide.tune_search import Bottleneck, Knobs, StageFacts, Trial, Tuner

ONE = Knobs(workers=1)
QUICK = FakeStage(2e-4)

SHAPES = {
    # A slow stage in the middle of quick ones: more workers there, up to the CPUs.
    "slow middle": (FakeMachine([QUICK, FakeStage(4e-3), QUICK], cpus=8), (ONE, ONE, ONE)),
    # Items of microseconds that travel one by one: the message is what costs.
    "tiny items": (FakeMachine([FakeStage(1e-6, 2e-5, 2e-5, auto=1)] * 2), (ONE, ONE)),
    # The same where somebody had chosen a chunk of one.
    "chosen badly": (FakeMachine([FakeStage(1e-5, 1e-4, 2e-5)]), (Knobs(workers=1, chunk=1),)),
    # Arrays that do not fit their slots.
    "big arrays": (FakeMachine([FakeStage(1e-3, bytes_each=60_000, spill_s=1e-3)] * 2, cpus=2), (ONE, ONE)),
    # A source that gives many at once and then rests, before a stage that has room for few.
    "bursts": (FakeMachine([FakeStage(2e-3), QUICK], cpus=1, burst=4000), (Knobs(1, slots=64), Knobs(1, slots=64))),
    # More workers than CPUs, where each costs the others.
    "too many workers": (FakeMachine([FakeStage(5e-4), FakeStage(5e-4)], cpus=2, drag=0.1), (Knobs(4), Knobs(4))),
}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", SHAPES)
def test_the_optimum_is_found_through_noise(shape: str, seed: int) -> None:
    """Nine tenths of what the best setting gives, with trials that are 4 % apart by chance."""
    machine, start = SHAPES[shape]
    noisy = FakeMachine(machine.stages, machine.cpus, 0.04, seed, machine.burst, machine.source_s, machine.drag)
    found = tune(noisy, start, budget_s=240.0)
    assert found.verdict == "faster"
    assert machine.rate(found.setting) >= 0.9 * machine.optimum(start), found.setting
    true = machine.rate(found.setting) / machine.rate(start)
    assert abs(math.log(found.estimate.ratio / true)) < 0.1
    assert found.estimate.low <= found.estimate.ratio <= found.estimate.high


@pytest.mark.parametrize("noise", [0.0, 0.03, 0.2])
def test_noise_alone_is_nearly_never_taken_for_a_gain(noise: float) -> None:
    """A source that is the limit: no setting is faster. At most one recommendation in twenty, of 200 tunings."""
    wrong = 0
    for seed in range(200):
        machine = FakeMachine([QUICK, QUICK], noise=noise, seed=seed, source_s=1e-3)
        found = tune(machine, (Knobs(2), Knobs(2)))
        assert found.verdict != "faster" or found.setting != found.start
        wrong += found.setting != found.start
    assert wrong <= 10


def test_what_is_not_confirmed_is_not_recommended() -> None:
    """A change that seems faster while it is looked for, and is not when it is confirmed."""
    tuner = Tuner(["s0"], (ONE,), cpus=4, budget_s=1000.0)
    machine = FakeMachine([FakeStage(1e-2)])
    now = 0.0
    while (ask := tuner.ask(now)) is not None:
        now += 1.0
        trial = machine.run(ask.setting if ask.phase != "confirm" else (ONE,))
        tuner.tell(trial, 1.0)
    found = tuner.outcome()
    assert (found.verdict, found.setting) == ("same", (ONE,))
    assert found.best != (ONE,)


def test_a_budget_that_is_too_small_ends_in_an_honest_answer() -> None:
    machine, start = SHAPES["slow middle"]
    found = tune(machine, start, budget_s=8.0)
    assert (found.verdict, found.setting) == ("unsure", start)
    assert found.untried > 0 and found.before.kind == "stage"


def test_the_budget_is_kept() -> None:
    """Whatever its size (`tune` itself asserts it)."""
    machine, start = SHAPES["tiny items"]
    for budget in (1.0, 5.0, 17.0, 33.0, 61.0):
        tune(machine, start, budget_s=budget)


def test_a_confirmation_without_end_ends_with_the_budget() -> None:
    """What seemed faster is a coin when it is confirmed: more pairs are wanted than there is time for."""
    for budget in (36.0, 38.0, 41.0):
        tuner = Tuner(["s0"], (ONE,), cpus=4, budget_s=budget)
        machine = FakeMachine([FakeStage(1e-2)])
        now, pair = 0.0, 0
        while (ask := tuner.ask(now)) is not None:
            assert now <= budget
            now += 1.0
            trial = machine.run(ask.setting)
            if ask.phase == "confirm":
                pair += ask.setting != (ONE,)
                trial = Trial(100, 1.1 if pair % 2 and ask.setting != (ONE,) else 1.0, stages=trial.stages)
            tuner.tell(trial, 1.0)
        assert now <= budget and tuner.outcome().verdict == "unsure"


def test_a_slow_start_leaves_time_to_be_confirmed_against() -> None:
    """Trials of the setting as it is take eight times as long as those of the best: the reserve is for both."""
    machine, start = SHAPES["slow middle"]
    for budget in (60.0, 90.0, 140.0):
        tuner = Tuner(["a", "b", "c"], start, cpus=8, budget_s=budget)
        now = 0.0
        while (ask := tuner.ask(now)) is not None:
            trial = machine.run(ask.setting)
            cost = 3.0 * machine.rate(start) / machine.rate(ask.setting)
            now += cost
            tuner.tell(trial, cost)
        found = tuner.outcome()
        assert found.verdict == "faster" or found.best == start, "it was left unconfirmed"


def test_a_change_that_gives_other_results_or_fails_is_out() -> None:
    tuner = Tuner(["s0"], (ONE,), cpus=4, budget_s=1000.0)
    machine = FakeMachine([FakeStage(1e-2)])
    now = 0.0
    while (ask := tuner.ask(now)) is not None:
        now += 1.0
        wrong = ask.setting[0].workers > 1
        tuner.tell(Trial(problem="other results") if wrong else machine.run(ask.setting), 1.0)
    found = tuner.outcome()
    assert (found.verdict, found.setting) == ("none", (ONE,))
    assert {one.result for one in found.tried if "workers" in one.text} == {"other results"}


def test_what_there_is_no_room_for_is_not_tried() -> None:
    asked = []
    tuner = Tuner(["s0"], (ONE,), cpus=4, budget_s=1000.0, allowed=lambda s: "no room" if s[0].workers > 2 else None)
    machine = FakeMachine([FakeStage(1e-2)])
    now = 0.0
    while (ask := tuner.ask(now)) is not None:
        now += 1.0
        asked.append(ask.setting[0].workers)
        tuner.tell(machine.run(ask.setting), 1.0)
    found = tuner.outcome()
    assert max(asked) == 2 and found.setting[0].workers == 2 and found.verdict == "faster"
    assert "no room" in {one.result for one in found.tried}


def test_a_change_that_is_not_missed_is_left_out() -> None:
    """The search was deceived by luck in one change; taking it back shows that the other is all there is."""
    tuner = Tuner(["s0"], (ONE,), cpus=2, budget_s=10_000.0, workers_most=2)
    machine = FakeMachine([FakeStage(1e-4)], cpus=2)
    now = 0.0
    while (ask := tuner.ask(now)) is not None:
        now += 1.0
        trial = machine.run(ask.setting)
        lucky = ask.phase == "search" and ask.setting[0].chunk == 64
        luck = 1.3 if lucky else 1.0
        tuner.tell(Trial(trial.inputs, trial.wall_s / luck, 0.0, trial.program_s, trial.stages), 1.0)
    found = tuner.outcome()
    assert found.verdict == "faster" and found.setting[0] == Knobs(workers=2)
    assert {"needed", "not needed"} <= {one.result for one in found.tried}


def test_an_unfinished_tuning_says_what_it_knows() -> None:
    """Ctrl-C may come after any trial."""
    machine, start = SHAPES["slow middle"]
    for stop in range(60):
        tuner = Tuner(["a", "b", "c"], start, cpus=8, budget_s=100.0)
        for _ in range(stop):
            ask = tuner.ask(0.0)
            if ask is None:
                break
            tuner.tell(machine.run(ask.setting), 0.5)
        found = tuner.outcome()
        assert found.verdict == "faster" or found.setting == start
        assert found.trials <= stop
    with pytest.raises(ValueError, match="no trial was asked for"):
        Tuner(["a"], (ONE,), cpus=1, budget_s=1.0).tell(Trial(), 1.0)


# ---- the bottleneck


def facts(*busy: float, workers: int = 1) -> tuple[StageFacts, ...]:
    return tuple(StageFacts(f"s{at}", "map", workers, 100, one) for at, one in enumerate(busy))


BOTTLENECKS = [
    (Trial(100, 1.0, stages=facts(0.1, 0.95, 0.2)), 8, ("stage", 1)),
    (Trial(100, 1.0, source_s=0.95, stages=facts(0.1, 0.2)), 8, ("source", None)),
    (Trial(100, 1.0, program_s=0.9, stages=facts(0.1, 0.2)), 8, ("program", None)),
    (Trial(100, 1.0, program_s=0.2, stages=facts(0.9, 0.85)), 2, ("cpus", 0)),
    (Trial(100, 1.0, stages=facts(0.99)), 1, ("cpus", 0)),
    (Trial(100, 1.0, stages=facts(0.3, 0.4)), 8, ("none", 1)),
    (Trial(100, 1.0, stages=()), 8, ("none", None)),
]


@pytest.mark.parametrize(("trial", "cpus", "expected"), BOTTLENECKS)
def test_what_everything_waits_for(trial: Trial, cpus: int, expected: tuple[str, int | None]) -> None:
    found = of_trial(trial, cpus)
    assert (found.kind, found.stage) == expected


def test_the_bottleneck_is_what_most_trials_say() -> None:
    one, other = Trial(100, 1.0, stages=facts(0.9, 0.1)), Trial(100, 1.0, stages=facts(0.1, 0.9))
    assert verdict([one, other, other], 8) == Bottleneck("stage", 1, 0.9, 2, 3)
    assert verdict([Trial(problem="no")], 8) == Bottleneck("none")


def test_with_one_cpu_nothing_spins_and_no_worker_is_added_for_nothing() -> None:
    trial = Trial(100, 1.0, stages=facts(0.5, 0.4))
    found = moves((ONE, ONE), trial, of_trial(trial, 1), cpus=1, workers_most=2)
    assert "spin" not in {knob for move in found for _, knob, _ in move.changes}


def test_items_that_travel_alone_get_no_chunk_and_long_ones_no_spin() -> None:
    alone = StageFacts("alone", "map", 1, 10_000, 0.5, single=True)
    long = StageFacts("long", "map", 1, 10, 0.5)
    trial = Trial(100, 1.0, stages=(alone, long))
    made = moves((ONE, ONE), trial, of_trial(trial, 8), cpus=8, workers_most=8)
    found = {(stage, knob) for move in made for stage, knob, _ in move.changes}
    assert (0, "chunk") not in found and (1, "chunk") not in found and (1, "spin") not in found


# ---- the comparison


def test_equal_settings_are_called_different_at_most_once_in_twenty() -> None:
    """Any noise will do, here one with heavy tails; pairs are added until there is a verdict, as `tune` does."""
    source = random.Random(7)
    wrong = 0
    for _ in range(2000):
        ratios: list[float] = []
        while confirm(ratios, least=0.0).verdict == "more":  # with nothing too small to be called a difference
            ratios.append(math.exp(source.gauss(0, 0.1) * source.expovariate(1.0)))
        wrong += confirm(ratios, least=0.0).verdict in ("faster", "slower")
    assert wrong <= 100


def test_the_interval_holds_the_median() -> None:
    source = random.Random(11)
    for pairs in (7, 11, 16):
        held = 0
        for _ in range(1000):
            ratios = [math.exp(0.2 + source.gauss(0, 0.3)) for _ in range(pairs)]
            low, high = interval(ratios, 0.05)
            held += low <= math.exp(0.2) <= high
        assert held >= 940


def test_a_difference_needs_all_of_the_first_look() -> None:
    assert confirm([1.5] * 6).verdict == "more"
    assert confirm([1.5] * 7).verdict == "faster" and confirm([0.5] * 7).verdict == "slower"
    assert confirm([1.5] * 6 + [0.9]).verdict == "more"
    assert confirm([1.5] * 10 + [0.9]).verdict == "faster"
    assert confirm([1.5] * 8 + [0.9] * 8).verdict == "same"
    with pytest.raises(ValueError, match="17 pairs"):
        confirm([1.5] * (max(LOOKS) + 1))


def test_small_words() -> None:
    assert sign_chance([]) == 1.0 and sign_chance([1.0, 1.0]) == 1.0
    assert median([1, 2]) == 1.5
    assert screen([]) == "more" and screen([1.01, 1.02]) == "no"
    assert screen([2.0, 2.0, 2.0, 2.0, 2.0, 0.5]) == "faster" and screen([2.0, 0.5] * 3) == "no"

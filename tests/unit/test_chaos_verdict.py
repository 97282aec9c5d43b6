"""The decisions of `chaos`: which faults, how long recovery took, what histories amount to. No process is started."""

from __future__ import annotations

import itertools
import random

import pytest

from shmrt.decide.chaos_faults import KINDS, PULSE_S, ROOTS_MOST, ROOTS_WITHIN_S, Fault, choose, plan
from shmrt.decide.chaos_recovery import Recovery, percentile, summary
from shmrt.decide.chaos_verdict import EXAMPLES_MOST, History, Verdict, judge

WORDS = ("lost", "duplicated", "unexpected", "corrupted", "out_of_order", "given_up", "pending", "regrouped")


def history(
    *outputs: tuple[object, int], letters: tuple[tuple[int, ...], ...] = (), torn: tuple[int, ...] = ()
) -> History:
    """From (number or origin, checksum) of each output."""
    made = History()
    for place, (origin, check) in enumerate(outputs):
        made.add((origin,) if isinstance(origin, int) else origin, check, torn=place in torn)  # type: ignore[arg-type]
    made.letters = list(letters)
    return made


def said(verdict: Verdict) -> dict[str, int]:
    return {word: count for word in WORDS if (count := getattr(verdict, word))}


FLAT = [(0, 10), (1, 20), (1, 21), (2, 30)]
BATCHES = [((0, 1), 5), ((2, 3), 6), ((4,), 7)]

TABLE: list[tuple[str, History, History, int, dict[str, int]]] = [
    ("the same", history(*FLAT), history(*FLAT), 3, {}),
    ("one is not there", history(*FLAT), history(*FLAT[:-1]), 3, {"lost": 1}),
    ("all are gone", history(*FLAT), history(), 3, {"lost": 4}),
    ("one of two outputs of one input", history(*FLAT), history(FLAT[0], FLAT[1], FLAT[3]), 3, {"lost": 1}),
    ("twice", history(*FLAT), history(FLAT[0], *FLAT), 3, {"duplicated": 1}),
    ("three times", history(*FLAT), history(FLAT[0], FLAT[0], *FLAT), 3, {"duplicated": 2}),
    ("twice, late", history(*FLAT), history(*FLAT, FLAT[0]), 3, {"duplicated": 1, "out_of_order": 1}),
    ("another value", history(*FLAT), history((0, 99), *FLAT[1:]), 3, {"corrupted": 1}),
    ("another value of one of two", history(*FLAT), history(FLAT[0], (1, 20), (1, 99), FLAT[3]), 3, {"corrupted": 1}),
    ("one too many", history(*FLAT), history(FLAT[0], (0, 99), *FLAT[1:]), 3, {"unexpected": 1}),
    ("of an input that has none", history((0, 1)), history((0, 1), (1, 2)), 2, {"unexpected": 1}),
    ("of an input that was never put in", history((0, 1)), history((0, 1), (7, 2)), 1, {"unexpected": 1}),
    ("the value of another input", history((0, 1), (1, 2)), history((0, 2), (1, 1)), 2, {"corrupted": 2}),
    ("the wrong way round", history((0, 1), (1, 2)), history((1, 2), (0, 1)), 2, {"out_of_order": 1}),
    ("of one input, the wrong way round", history((0, 1), (0, 2)), history((0, 2), (0, 1)), 1, {"out_of_order": 1}),
    ("equal values are told apart", history((0, 1), (1, 1)), history((0, 1), (0, 1)), 2, {"lost": 1, "duplicated": 1}),
    ("changed on its way", history((0, 1)), history((0, 1), torn=(0,)), 1, {"corrupted": 1}),
    ("changed, and one too many", history((0, 1)), history((0, 1), (0, 1), torn=(1,)), 1, {"corrupted": 1}),
    ("given up", history((0, 1), (1, 2)), history((0, 1), letters=((1,),)), 2, {"given_up": 1}),
    ("given up, two outputs", history((0, 1), (0, 2)), history(letters=((0,),)), 1, {"given_up": 1}),
    ("given up without faults, too", history((0, 1), letters=((1,),)), history((0, 1), letters=((1,),)), 2, {}),
    ("given up only without faults", history(letters=((0,),)), history((0, 1)), 1, {"unexpected": 1}),
    ("given up and still there", history((0, 1)), history((0, 1), letters=((0,),)), 1, {"given_up": 1}),
    ("given up, and another lost", history((0, 1), (1, 2)), history(letters=((1,),)), 2, {"given_up": 1, "lost": 1}),
    ("cut short at 2", history(*FLAT), history(*FLAT[:3]), 2, {}),
    ("cut short at 2, and one lost", history(*FLAT), history(*FLAT[1:3]), 2, {"lost": 1}),
    ("nothing went in", history(*FLAT), history(), 0, {}),
    ("batches", history(*BATCHES), history(*BATCHES), 5, {}),
    ("a batch with another value", history(*BATCHES), history(((0, 1), 9), *BATCHES[1:]), 5, {"corrupted": 1}),
    ("a batch twice", history(*BATCHES), history(BATCHES[0], *BATCHES), 5, {"duplicated": 1}),
    ("a batch lost", history(*BATCHES), history(*BATCHES[1:]), 5, {"lost": 2}),
    (
        "batches move behind a dead letter",
        history(*BATCHES),
        history(((0, 2), 1), ((3, 4), 2), letters=((1,),)),
        5,
        {"given_up": 1, "regrouped": 2},
    ),
    ("a batch cut short", history(*BATCHES), history(((0, 1), 5), ((2,), 8)), 3, {"regrouped": 1}),
    (
        "members lost when batches move",
        history(*BATCHES),
        history(((0, 2), 1), ((3,), 2), letters=((1,),)),
        5,
        {"given_up": 1, "lost": 1, "regrouped": 2},
    ),
    (
        "a member in two batches",
        history(*BATCHES),
        history(((0, 1), 5), ((2, 3), 6), ((3, 4), 8)),
        5,
        {"duplicated": 1, "regrouped": 1},
    ),
]


@pytest.mark.parametrize(
    ("calm", "rough", "fed", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE]
)
def test_histories_and_their_verdict(calm: History, rough: History, fed: int, expected: dict[str, int]) -> None:
    """A table of histories; every word of the verdict is found where it should be, and nowhere else."""
    verdict = judge(calm, rough, fed)
    assert said(verdict) == expected
    wrong = {"lost", "duplicated", "unexpected", "corrupted", "out_of_order"}
    assert verdict.holds is wrong.isdisjoint(expected)
    assert bool(verdict.examples) is not verdict.holds


def test_without_order_nothing_is_out_of_it() -> None:
    rough = history((1, 2), (0, 1))
    assert judge(history((0, 1), (1, 2)), rough, 2, ordered=False).holds
    assert judge(history((0, 1), (0, 2)), history((0, 2), (0, 1)), 1, ordered=False).holds


def test_what_was_cut_short_is_pending_and_not_lost() -> None:
    rough = history((0, 10))
    rough.ended = False
    verdict = judge(history(*FLAT), rough, 3)
    assert said(verdict) == {"pending": 3} and verdict.holds
    rough = history((0, 99))
    rough.ended = False
    assert said(judge(history(*FLAT), rough, 3)) == {"pending": 3, "corrupted": 1}
    rough = history(((0, 1), 5))
    rough.ended = False
    assert said(judge(history(*BATCHES), rough, 5)) == {"pending": 3}


def test_a_report_that_does_not_account_for_all_breaks_it() -> None:
    rough = history(*FLAT)
    rough.balanced = False
    verdict = judge(history(*FLAT), rough, 3)
    assert verdict.unbalanced == 1 and not verdict.holds


def test_batches_that_give_any_number_of_outputs_cannot_be_counted_when_they_move() -> None:
    """A filter or flat_map behind a batch makes of other members another number of outputs, by right."""
    rough = history(((0, 2), 1), ((0, 2), 2), letters=((1,),))
    assert said(judge(history(*BATCHES), rough, 5, members_count=False)) == {"given_up": 1, "regrouped": 1}
    assert judge(history(*BATCHES), rough, 5).lost == 2  # 3 and 4
    twice = history(BATCHES[0], *BATCHES)
    assert said(judge(history(*BATCHES), twice, 5, members_count=False)) == {"duplicated": 1}


def test_verdicts_add_up_and_keep_a_few_examples() -> None:
    whole = Verdict()
    for _ in range(3):
        whole.add(judge(history(*FLAT), history(*FLAT[1:]), 3))
    assert whole.lost == 3 and whole.examples == {("lost", (0,)): 3}
    many = judge(history(*((n, n) for n in range(100))), history(), 100)
    assert many.lost == 100 and len(many.examples) == EXAMPLES_MOST
    whole.add(many)
    assert whole.lost == 103 and len(whole.examples) == EXAMPLES_MOST


def test_random_damage_is_counted_exactly() -> None:
    """Of inputs with one to three outputs, some are lost, repeated, changed, added to; each at another input, so that
    the numbers must be exactly those of the damage."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(200):
        inputs = rng.randrange(1, 60)
        calm = [(n, rng.getrandbits(60)) for n in range(inputs) for _ in range(rng.randrange(1, 4))]
        rough: list[tuple[int, int]] = []
        counted = dict.fromkeys(("lost", "duplicated", "corrupted", "unexpected"), 0)
        for number, group in itertools.groupby(calm, key=lambda output: output[0]):
            outputs = list(group)
            what = rng.choice(["lost", "duplicated", "corrupted", "unexpected", "fine", "fine", "fine"])
            place = rng.randrange(len(outputs))
            if what == "lost":
                del outputs[place]
            elif what == "duplicated":
                outputs.insert(place, outputs[place])
            elif what == "corrupted":
                outputs[place] = (number, rng.getrandbits(60) | 1 << 61)
            elif what == "unexpected":
                outputs.append((number, rng.getrandbits(60) | 1 << 61))
            if what != "fine":
                counted[what] += 1
            rough += outputs
        verdict = judge(history(*calm), history(*rough), inputs)
        assert {word: getattr(verdict, word) for word in counted} == counted
        assert verdict.out_of_order == 0 and verdict.pending == 0


# ---- the faults
def faults(seed: int, count: int, **rates: float) -> list[Fault]:
    draws = {kind: random.Random(f"{seed} {kind}") for kind in KINDS}
    return list(itertools.islice(plan(draws, **rates), count))


def test_a_seed_is_a_plan_and_another_rate_moves_no_other_kind() -> None:
    alone = faults(3, 500, kill_rate=20.0)
    assert alone == faults(3, 500, kill_rate=20.0) != faults(4, 500, kill_rate=20.0)
    mixed = faults(3, 2000, kill_rate=20.0, stop_rate=5.0, root_rate=0.1)
    kills = [fault for fault in mixed if fault.kind == "kill"]
    assert kills[:500] == alone
    assert [fault.at for fault in mixed] == sorted(fault.at for fault in mixed)
    assert {fault.kind for fault in mixed} == set(KINDS)
    assert faults(3, 5) == []


def test_gaps_are_exponential_and_pulses_from_1_ms_to_2_s() -> None:
    """Of 20000 of a fixed seed: mean and spread of the gaps are 1/rate; as many pulses below 45 ms as above."""
    found = faults(1, 20000, kill_rate=20.0)
    gaps = [after.at - before.at for before, after in itertools.pairwise(found)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert 0.048 < mean < 0.052 and 0.047 < spread < 0.053
    pulses = [fault.seconds for fault in faults(1, 20000, stop_rate=20.0)]
    assert PULSE_S[0] <= min(pulses) < 0.0011 and 1.9 < max(pulses) <= PULSE_S[1]
    assert 0.48 < sum(pulse < (PULSE_S[0] * PULSE_S[1]) ** 0.5 for pulse in pulses) / len(pulses) < 0.52
    assert all(fault.seconds == 0 for fault in found)


def test_roots_die_no_more_often_than_a_runtime_bears() -> None:
    found = [fault.at for fault in faults(2, 300, root_rate=5.0)]
    for first, last in zip(found, found[ROOTS_MOST:], strict=False):
        assert last - first > ROOTS_WITHIN_S


def test_every_victim_can_be_chosen_and_nobody_of_none() -> None:
    there = list("abcde")
    assert {choose(n / 100, there) for n in range(100)} == set(there)
    assert choose(1.0, there) == "e" and choose(0.3, []) is None


# ---- recovery
def test_replacements_are_matched_with_deaths_of_their_own_pool() -> None:
    recovery = Recovery()
    recovery.ready(0.5, pool=1)  # the first start is nobody's replacement
    recovery.died(1.0, pool=1)
    recovery.died(1.5, pool=2)
    recovery.died(2.0, pool=1)
    recovery.ready(2.5, pool=2)
    recovery.ready(3.0, pool=1)
    recovery.ready(4.0, pool=1)
    recovery.ready(5.0, pool=1)
    assert recovery.until_ready == [1.0, 2.0, 2.0] and recovery.until_root == []


def test_a_root_takes_those_with_it_that_were_not_replaced_yet() -> None:
    recovery = Recovery()
    recovery.died(1.0, pool=1)
    recovery.died(2.0, pool=1, root=True)
    recovery.ready(3.0, pool=1)
    recovery.ready(3.5, pool=1)
    assert recovery.until_ready == [] and recovery.until_root == [1.0]


def test_the_next_output_is_the_next_one_after_the_death() -> None:
    recovery = Recovery()
    recovery.output(0.5)
    recovery.died(1.0, pool=1)
    recovery.died(1.2, pool=1)
    recovery.output(1.5)
    recovery.output(9.0)
    assert recovery.until_output == pytest.approx([0.5, 0.3])
    recovery.died(10.0, pool=1)
    recovery.run_ended()
    recovery.output(20.0)
    recovery.ready(20.0, pool=1)
    assert len(recovery.until_output) == 2 and recovery.until_ready == []


def test_percentiles_are_nearest_ranks() -> None:
    values = [float(n) for n in range(1, 101)]
    random.Random(1).shuffle(values)
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1.0)) == (50.0, 99.0, 100.0)
    assert percentile([7.0], 0.01) == percentile([7.0], 0.99) == 7.0
    assert summary([]) == {"count": 0, "p50": None, "p99": None, "max": None}

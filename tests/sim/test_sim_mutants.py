"""The simulator bites: each decision that is made wrong is found within the seeds that its mutant states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import sim_run
from sim_mutants import MUTANTS, wrong


def first_seed(name: str, most: int) -> tuple[int, Exception] | None:
    """The first that fails with this mutant, and how."""
    with wrong(name):
        for seed in range(most):
            error = sim_run.attempt(seed)[1]
            if error is not None:
                return seed, error
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_wrong_decision_is_found(name: str) -> None:
    what, within, _ = MUTANTS[name]
    found = first_seed(name, within)
    assert found is not None, f"{what}: not found within {within} seeds"
    print(f"{name}: {what}: seed {found[0]} of {within}: {found[1]}")


def test_there_are_enough_and_each_part_has_some() -> None:
    assert len(MUTANTS) >= 30
    parts = {owner.__name__ for _, _, places in MUTANTS.values() for owner, _, _ in places}
    assert parts >= {"Intensity", "Machine", "StaticSupervisor", "DynamicSupervisor", "Timers", "Backoff", "Keeper"}
    assert parts >= {"Watch", "Tasks", "Work", "Flow", "sim_guards"}


def test_a_mutant_leaves_nothing_behind() -> None:
    def places() -> list[Callable[..., Any]]:
        return [owner.__dict__[place] for _, _, wheres in MUTANTS.values() for owner, place, _ in wheres]

    before = places()
    for name in MUTANTS:
        with pytest.raises(KeyError), wrong(name):
            assert places() != before
            raise KeyError
    assert places() == before

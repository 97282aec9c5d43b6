"""Seeds that were kept: each once showed something, and is replayed for ever.

seed      the number
version   of the scenario: what the seed meant when it was kept
why       what was found
mutant    optional: a wrong decision with which the seed fails, so that it still shows what it was kept for
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
import sim_run
from sim_mutants import MUTANTS, wrong
from sim_scenario import VERSION

FILES = sorted(sim_run.REGRESSIONS.glob("*.toml"))


def read(path: Path) -> dict[str, Any]:
    kept = tomllib.loads(path.read_text())
    unknown = set(kept) - {"seed", "version", "why", "mutant"}
    assert not unknown, f"{path.name} has {sorted(unknown)}; it may have seed, version, why, mutant"
    assert kept["why"].strip() and path.name == f"seed-{kept['seed']}.toml"
    return kept


def test_there_are_some() -> None:
    assert FILES


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_a_kept_seed(path: Path) -> None:
    kept = read(path)
    assert kept["version"] == VERSION, (
        f"{path.name} is of scenario version {kept['version']}, this is {VERSION}: its seed means something else now. "
        "Look for a seed that shows the same, keep that one, and remove this file"
    )
    run, error = sim_run.attempt(kept["seed"])
    assert error is None, sim_run.explain(run, error)
    if "mutant" in kept:
        assert kept["mutant"] in MUTANTS
        with wrong(kept["mutant"]):
            error = sim_run.attempt(kept["seed"])[1]
        assert error is not None, f"{path.name} shows nothing of {kept['mutant']} any more"


def test_a_seed_is_kept_as_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sim_run, "REGRESSIONS", tmp_path)
    assert sim_run.main(["keep", "12", "it", 'was "wrong"']) == 0
    assert read(tmp_path / "seed-12.toml") == {"seed": 12, "version": VERSION, "why": 'it was "wrong"'}

"""The pages of the proof say what was run: the bugs on them are those of the lists, the figures those of the runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "native"))
import proof  # noqa: E402


def test_the_seeded_bugs_are_many_and_listed(capsys: pytest.CaptureFixture[str]) -> None:
    proof.list_mutants()
    said = capsys.readouterr().out
    assert len(proof.native.MUTANTS) >= 25
    assert all(f"{mutant.file}: {mutant.name}" in said for mutant in proof.native.MUTANTS)


def test_the_page_of_seeded_bugs_names_no_other() -> None:
    page = (ROOT / "docs" / "proof-mutants.md").read_text()
    there = {(mutant.test, mutant.name) for mutant in proof.native.MUTANTS}
    test = ""
    found = set()
    for line in page.splitlines():
        if line.startswith("## "):
            test = line[3:]
        elif line.startswith("| ") and not line.startswith(("| bug", "| ---")):
            found.add((test, re.split(r" \| ", line[2:])[0]))
            assert "survived" not in line
    assert len(found) >= 25 and found <= there, found - there


def test_a_million_states_or_more() -> None:
    page = (ROOT / "docs" / "proof.md").read_text()
    total = re.search(r"\| \*\*all\*\* \| \*\*[\d,]+\*\* \| \*\*([\d,]+)\*\*", page)
    assert total is not None and int(total[1].replace(",", "")) >= 1_000_000
    assert "'lost': 0, 'duplicated': 0, 'unexpected': 0, 'corrupted': 0" in page


def test_pages_are_made_of_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = {"commit": "abc", "date": "today", "machine": "this one"}
    sweep = {"test": "test_x.c", "sweeps": 3, "states": 4321, "judged": 17, "seconds": 1, "seed": "8", "deaths": 5}
    mutants = [
        {"test": m.test, "name": m.name, "file": m.file, "killed": True, "said": "no | yes"}
        for m in proof.native.MUTANTS
    ]
    found: dict[str, list[dict[str, Any]]] = {
        "sweeps": [sweep],
        "mutants": mutants,
        "fire": [{"test": "t", "seed": "9", "commit": "c", "result": "all"}],
        "inject": [
            {"test": "f", "seed": "7", "commit": "c", "result": "ring: 1200 changes, 0 signals"},
            {
                "test": "s",
                "seed": "7",
                "commit": "c",
                "result": "over its slot: 34 tasks do it",
            },
        ],
        "sanitizers": [
            {"test": "tests/a.py", "commit": "d", "passed": 1200, "skipped": 0, "reports": 0, "ended": "well"},
            {"test": "tests/b.py", "commit": "c", "passed": 34, "skipped": 5, "reports": 0, "ended": "well"},
        ],
    }
    for kind, rows in found.items():
        (tmp_path / f"{kind}.json").write_text(json.dumps(head | {"rows": rows}))
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(proof, "STORE", tmp_path)
    monkeypatch.setattr(proof, "ROOT", tmp_path)
    proof.write_pages()
    page = (tmp_path / "docs" / "proof.md").read_text()
    assert (
        "| test_x.c | 3 | 4,321 | 17 |" in page
        and "commit abc, today, on this one" in page
        and "| t | c | 9 | all |" in page
        and "| f | c | 7 | ring: 1200 changes, 0 signals |" in page
        and "1,234 changes in all." in page
    )
    assert re.search(r"2 of \d+ files of tests \(commits c, d\), 1,234 tests passed, 5 skipped: 0 reports", page)
    assert r"no \| yes" in (tmp_path / "docs" / "proof-mutants.md").read_text()
    found["mutants"].pop()  # a bug that was not tried is not passed over
    (tmp_path / "mutants.json").write_text(json.dumps(head | {"rows": found["mutants"]}))
    with pytest.raises(AssertionError, match="not tried"):
        proof.write_pages()


@pytest.mark.parametrize("wrong", [{"reports": 1}, {"ended": "hung"}, {"ended": "with 1"}])
def test_no_page_of_a_run_that_was_not_clean(wrong: dict[str, Any]) -> None:
    row = {"test": "tests/a.py", "commit": "c", "passed": 1, "skipped": 0, "reports": 0, "ended": "well"}
    with pytest.raises(AssertionError, match="not clean"):
        proof.sanitized([row, row | wrong])

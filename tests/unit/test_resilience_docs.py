"""The manual of fallbacks and bulkheads names every option with its default. Its examples run in test_docs.py."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest

from shmrt import Bulkheads, Fallback, StaleCache
from shmrt.decide.fallback import order
from shmrt.guard.bulkheads import MAX_PENDING
from shmrt.guard.fallback_words import MISSING
from shmrt.guard.sources import REACTION_S

DOCS = Path(__file__).parents[2] / "docs"
PAGE = "\n".join(path.read_text() for path in sorted(DOCS.glob("resilience*.md")))


def table_after(text: str) -> dict[str, str]:
    """Name and second cell of the first table behind a text."""
    found = re.search(r"(?m)^\|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE[PAGE.index(text) :])
    assert found
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]
    return {row[0].strip("`"): row[1] for row in rows}


@pytest.mark.parametrize(
    ("kind", "before"), [(Fallback, "Of `Fallback(primary, "), (StaleCache, "Of `StaleCache(...)`")]
)
def test_every_option_is_there_with_its_default(kind: type, before: str) -> None:
    told = table_after(before)
    skipped = ("self", "primary", "alternatives")
    real = {name: value.default for name, value in inspect.signature(kind).parameters.items() if name not in skipped}
    assert told.keys() == real.keys()
    for name, default in told.items():
        value = real[name]
        if name == "on":
            assert value == (Exception,) and default == "`(Exception,)`"
        elif isinstance(value, (int, float, tuple)):
            assert ast.literal_eval(default.strip("`")) == value, name
        else:
            assert value in (None, MISSING) or name == "clock", name


def test_bulkheads() -> None:
    told = table_after("Each keyword is a bulkhead")
    assert told["max_pending"] == str(MAX_PENDING) and told["on_full"] == '`"raise"`'
    functions = {name.split("(")[0] for name in table_after("itself (`items`, `stats`, ...) is refused")}
    public = {name for name, value in vars(Bulkheads).items() if not name.startswith("_") and inspect.isfunction(value)}
    assert functions == public


def test_what_the_words_say() -> None:
    assert f"ends at the latest {REACTION_S} s after the timeout" in PAGE
    assert order(["a"], remembers=True, has_default=True) == ("fresh", "primary", "stale", "a", "default")
    assert "before any alternative is asked" in PAGE

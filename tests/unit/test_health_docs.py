"""docs/resilience-health.md names every option with its default, and its tables say what the code does.

Its examples run in test_docs.py."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from shmrt import HealthCheck
from shmrt.decide import health_facts
from shmrt.guard import checks, http_words

PAGE = (Path(__file__).parents[2] / "docs" / "resilience-health.md").read_text()


def rows(head: str) -> list[list[str]]:
    """The cells of the table with this head."""
    found = re.search(rf"(?m)^\| {re.escape(head)} \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", PAGE)
    assert found, head
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def test_every_option_is_there_with_its_default() -> None:
    told = {name.strip("`"): default.strip("`") for name, default, _ in rows("option")}
    real = {
        name: value.default
        for name, value in inspect.signature(HealthCheck).parameters.items()
        if value.default is not inspect.Parameter.empty
    }
    assert told == {name: "none" if value is None else repr(value).replace("'", '"') for name, value in real.items()}


def test_every_ready_made_check_is_there() -> None:
    named = re.findall(r"`checks\.(\w+)\(", "".join(row[0] for row in rows("check")))
    assert sorted(named) == sorted(checks.__all__)


def test_every_check_of_the_runtime_is_there() -> None:
    """In the page and in the table of the module that makes them."""
    module = re.findall(r"(?m)^\| `([\w.:]+)` *\| (\w+)", health_facts.__doc__ or "")
    page = re.findall(r"(?m)^\| `((?:runtime|breaker|pool|supervisor)[\w.]*:\w+)` \| (\w+) \|", PAGE)
    assert len(page) == 7 and sorted(page) == sorted(module)


def test_every_path_is_there() -> None:
    for path in http_words.GROUPS:
        assert f"`{path}`" in PAGE

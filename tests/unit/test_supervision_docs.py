"""docs/supervision.md names every option with its default, and its tables say what the code does.

Its examples run in test_docs.py."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from shmrt import Child, DynamicSupervisor, PartitionSupervisor, Runtime, Supervisor, TaskSupervisor
from shmrt.decide.intensity import Intensity
from shmrt.process.serve_end import reason_of
from shmrt.server_ref import CALL_SECONDS
from shmrt.spec import RingSpec

PAGE = (Path(__file__).parents[2] / "docs" / "supervision.md").read_text()


def table_after(text: str) -> list[list[str]]:
    """The cells of the first table with an option column behind a text."""
    rest = PAGE[PAGE.index(text) :]
    found = re.search(r"(?m)^\| option \| default \|.*\n\|[-|]+\|\n((?:\|.*\n)+)", rest)
    assert found
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in found[1].splitlines()]


def options(kind: type) -> dict[str, Any]:
    skipped = ("self", "children", "child", "start", "args")
    return {name: value.default for name, value in inspect.signature(kind).parameters.items() if name not in skipped}


@pytest.mark.parametrize(
    ("kind", "before"),
    [
        (Child, "`Child(start, *args, ...)`"),
        (Supervisor, "Of `Supervisor(children, ...)`"),
        (DynamicSupervisor, "Of `DynamicSupervisor(...)`"),
        (PartitionSupervisor, "Of `PartitionSupervisor("),
        (Runtime, "Of `Runtime(...)`"),
    ],
)
def test_every_option_is_there_with_its_default(kind: type, before: str) -> None:
    told = {}
    for names, default, *_ in table_after(before):
        listed = re.findall(r"`(\w+)`", names)
        defaults = default.split(", ") if len(listed) == default.count(",") + 1 else [default] * len(listed)
        told.update(zip(listed, defaults, strict=True))
    real = options(kind)
    assert told.keys() == real.keys()
    for name, default in told.items():
        value = real[name]
        if default == "as `Supervisor`":
            assert value == options(Supervisor)[name]
        elif value is not None:
            assert default.strip("`") in (repr(value), repr(value).replace("'", '"')), name
        else:
            assert default == "none" or not default.startswith("`None"), name


def test_a_task_supervisor_has_the_options_that_the_page_says() -> None:
    assert options(TaskSupervisor) == {"max_children": None, "name": None}
    assert "Of `TaskSupervisor(...)`: `max_children` (none) and `name` (none)" in PAGE


def test_defaults_that_a_none_stands_for() -> None:
    """The page says what becomes of None."""
    for start, shutdown in ((print, 5.0), (Supervisor([]), "infinity")):
        assert Child(start).shutdown == shutdown
    from shmrt import Pool
    from shmrt.children import MAILBOX

    assert Child(Pool).shutdown == "infinity"
    assert RingSpec(slots=1024) == MAILBOX and CALL_SECONDS == 5.0


def test_the_vectors_of_the_intensity() -> None:
    """Each row of the table, with the decision that the supervisors use."""
    rows = re.findall(r"(?m)^\| (\d+), (\d+|any) \| ([\d, ]+|every 2\.1 s) \| (goes on|gives up)", PAGE)
    assert len(rows) == 6
    for restarts, period, seconds, outcome in rows:
        times = [n * 2.1 for n in range(100)] if seconds.startswith("every") else [int(t) for t in seconds.split(", ")]
        window = Intensity(int(restarts), int(1e9 * int(period if period != "any" else 5)))
        allowed = [window.allow(int(at * 1e9)) for at in times]
        assert all(allowed[:-1]) and allowed[-1] == (outcome == "goes on"), (restarts, period, seconds)


def test_the_reasons_of_exceptions() -> None:
    """Those of the table that an exception makes."""
    from shmrt import Shutdown

    for error, reason in ((Shutdown(), "shutdown"), (Shutdown("x"), ("shutdown", "x")), (SystemExit(3), ("exit", 3))):
        assert reason_of(error) == reason
        shown = str(reason).replace("'", '"').replace('"x"', "info").replace("3", "n")
        assert (f"`{shown}`" if isinstance(reason, tuple) else f'`"{reason}"`') in PAGE

"""The pages of docs/ say what the code does.

Examples run, each page's Python blocks in one fresh interpreter each, and print what the comments behind their `print`
lines say. Byte maps agree with LAYOUT, edge labels with the C sources, named tests and files exist.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NATIVE = sorted((ROOT / "native").glob("*.[ch]"))
WATCHDOG_S = 120
"""Only ends a hang; nothing is measured by it."""


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def expected(block: str) -> list[str]:
    """What stands behind the `print` lines."""
    return [line.rsplit("  # ", 1)[1] for line in block.splitlines() if "print(" in line and "  # " in line]


EXAMPLES = [(page.name, n) for page in sorted(DOCS.glob("*.md")) for n in range(len(blocks(page.name)))]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_an_example_prints_what_it_says(page: str, number: int) -> None:
    """D9. In an interpreter of its own, which leaves nothing to standard error either."""
    text = blocks(page)[number]
    lines = expected(text)
    assert lines, "an example without a result shows nothing"
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False
    )
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, lines, "")


def rows(page: str) -> list[list[str]]:
    """Cells of every table row of a page, without heads and rules."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_examples_are_found() -> None:
    """The extraction sees the tutorial."""
    assert len(blocks("tutorial.md")) >= 10

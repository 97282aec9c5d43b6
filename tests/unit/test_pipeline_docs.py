"""The examples of docs/pipeline.md run, and print what their comments say."""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_pool import FakeEngine

from shmrt.pipeline import Pipeline

PAGE = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_prints_what_it_says(number: int, real: bool, monkeypatch: Any) -> None:
    """D9. Every comment behind a print is what it prints; on the pretended and on the real pool."""
    if real:
        pytest.importorskip("shmrt.pool", exc_type=ImportError)
    else:
        run = Pipeline.run
        monkeypatch.setattr(Pipeline, "run", lambda *args, **kw: run(*args, **{"engine": FakeEngine(), **kw}))
    expected = [line.rsplit("# ", 1)[1] for line in EXAMPLES[number].splitlines() if "print(" in line]
    assert expected, "an example without a result shows nothing"
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(EXAMPLES[number], f"docs/pipeline.md#{number}", "exec"), {"__name__": "example"})
    assert out.getvalue().splitlines() == expected


def test_the_options_of_the_page_are_those_of_the_code() -> None:
    """Names and defaults in the tables are the real ones."""
    import inspect

    mapped = inspect.signature(Pipeline.map).parameters
    for name, default in (("workers", 2), ("timeout", None), ("max_attempts", 3), ("name", None)):
        assert mapped[name].default == default and f"| `{name}` |" in PAGE
    ran = inspect.signature(Pipeline.run).parameters
    for name in ("ordered", "on_error", "progress", "engine"):
        assert f"| `{name}` | `{str(ran[name].default)!r}`".replace("'", '"') in PAGE.replace("'", '"') or (
            f"| `{name}` | `{ran[name].default}`" in PAGE
        )

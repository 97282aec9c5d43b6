"""How the C core is built."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_header_has_the_core_built_again() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = text[text.index("depends = [") :]
    assert [path.name for path in (ROOT / "native").glob("*.h") if f'"native/{path.name}"' not in listed] == []

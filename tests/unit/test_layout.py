"""The meaning of the shared bytes does not change unless the layout version does.

`tests/layout.snap` is the printed LAYOUT. After a change on purpose: raise SHMRT_LAYOUT_VERSION in
native/layout.h, build, and write it anew with

    python tests/unit/test_layout.py
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shmrt import _native

ROOT = Path(__file__).resolve().parents[2]
SNAPSHOT = ROOT / "tests" / "layout.snap"


def printed() -> str:
    lines = [f"version {_native.LAYOUT_VERSION}"]
    lines += [f"{name} {value}" for name, value in _native.LAYOUT.items()]
    return "\n".join(lines) + "\n"


def differences(before: str, after: str) -> list[str]:
    """Why `after` may not follow `before`; empty when it may."""
    old, new = (dict(line.split(" ") for line in text.splitlines()) for text in (before, after))
    if old.pop("version") != new.pop("version"):
        return []
    changed = [f"{name}: {old[name]} -> {new.get(name)}" for name in old if old[name] != new.get(name)]
    return changed + [f"{name}: new" for name in new if name not in old]


def test_numbers_change_only_together_with_the_version() -> None:
    """The layout is frozen by a snapshot."""
    found = differences(SNAPSHOT.read_text(), printed())
    assert not found, f"the shared layout changed, but not SHMRT_LAYOUT_VERSION: {found}"
    assert SNAPSHOT.read_text() == printed(), "tests/layout.snap is of another version: write it anew"


def test_the_comparison_sees_a_moved_field() -> None:
    """A moved, a missing and a new number are told apart from a new version."""
    before = printed()
    moved = before.replace(f"slot.phase {_native.LAYOUT['slot.phase']}\n", "slot.phase 136\n")
    assert differences(before, moved) == ["slot.phase: 128 -> 136"]
    assert differences(before, before + "slot.extra 1\n") == ["slot.extra: new"]
    assert differences(before + "slot.extra 1\n", before) == ["slot.extra: 1 -> None"]
    assert differences(before, moved.replace("version ", "version 9")) == []


def test_the_mapping_cannot_be_changed() -> None:
    """LAYOUT is read-only."""
    with pytest.raises(TypeError):
        _native.LAYOUT["slot"] = 1  # type: ignore[index]


def test_every_constant_and_struct_of_the_header_is_exported() -> None:
    """Nobody needs to restate a number of layout.h."""
    headers = "".join(path.read_text() for path in sorted((ROOT / "native").glob("layout*.h")))
    text = re.sub(r"/\*.*?\*/", "", headers, flags=re.S)
    enumerators = set(re.findall(r"^\tSHMRT_(\w+) = \d+", text, flags=re.M))
    defined = set(re.findall(r"^#define SHMRT_(\w+) ", text, flags=re.M)) - {"LAYOUT_VERSION"}
    defined -= {name for name in defined if name.startswith("LAYOUT_") and name.endswith("_H")}
    structs = set(re.findall(r"^struct shmrt_(\w+) \{", text, flags=re.M))
    assert len(enumerators) > 50 and len(structs) > 8, "the header is not read as it is written"
    assert (enumerators | defined | structs) - set(_native.LAYOUT) == set()


def test_fields_lie_inside_their_struct() -> None:
    """An offset is less than the size of what it is an offset into."""
    for name, value in _native.LAYOUT.items():
        if "." in name:
            struct, field = name.split(".")
            size = _native.LAYOUT[struct]
            assert value < size or (field in {"slots", "data", "trials", "sides", "words"} and value == size), name


if __name__ == "__main__":
    SNAPSHOT.write_text(printed())

"""How the C core is built: optimized over all files only where that works, and never when it is instrumented."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build() -> Any:
    pytest.importorskip("setuptools")
    spec = importlib.util.spec_from_file_location("build_ext_of_shmrt", ROOT / "native" / "build_ext.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiler(*command: str, linker: tuple[str, ...] = ("-shared",)) -> Any:
    return SimpleNamespace(compiler_so=[*command, "-fPIC"], linker_so=[command[0], *linker])


def test_gcc_does_it_where_its_linker_can(build: Any) -> None:
    if shutil.which("gcc") is None:
        pytest.skip("NOT TESTED: no gcc")
    assert build.optimizes_over_all_files(compiler("gcc"))
    assert not build.optimizes_over_all_files(compiler("gcc", linker=("-shared", "-fno-such-flag")))


@pytest.mark.parametrize("command", [("no-such-compiler",), ("gcc", "-fsanitize=thread"), ("clang",)], ids=" ".join)
def test_others_do_not(build: Any, command: tuple[str, ...]) -> None:
    assert not build.optimizes_over_all_files(compiler(*command))


def test_flags_of_the_environment_count(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFLAGS", "-g -fsanitize=address")
    assert not build.optimizes_over_all_files(compiler("gcc"))


def test_every_header_has_the_core_built_again() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    listed = text[text.index("depends = [") :]
    assert [path.name for path in (ROOT / "native").glob("*.h") if f'"native/{path.name}"' not in listed] == []

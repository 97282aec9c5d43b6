"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import shmrt

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(shmrt.__path__, "shmrt.")
    if not module.name.endswith(("__main__", "_native"))
)


@pytest.mark.parametrize("name", ["shmrt", *MODULES])
def test_the_examples_of(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder(exclude_empty=True)
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 20

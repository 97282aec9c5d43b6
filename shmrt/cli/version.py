"""`version`: the package, its extension, the layout of its shared memory, and the Python below."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from shmrt.cli.screen import Screen

DOES = "Package, C extension, layout version, Python"


def options(parser: argparse.ArgumentParser) -> None:
    del parser


def facts() -> dict[str, Any]:
    import shmrt

    found: dict[str, Any] = {"shmrt": shmrt.__version__, "python": sys.version.split()[0], "executable": sys.executable}
    try:
        from shmrt import _native
    except ImportError as error:
        found |= {"extension": None, "problem": str(error)}
    else:
        found |= {"extension": _native.__file__, "layout": getattr(_native, "LAYOUT_VERSION", None)}
    return found


def run(arguments: argparse.Namespace, screen: Screen) -> int:
    found = facts()
    if screen.json:
        screen.document("shmrt.version/1", found)
    else:
        screen.line(f"shmrt {found['shmrt']}")
        if arguments.verbose:
            screen.line(f"extension  {found['extension'] or found['problem']}")
            screen.line(f"layout     {found.get('layout')}")
            screen.line(f"python     {found['python']} ({found['executable']})")
    return 0 if found["extension"] else 1

"""The program's surroundings in plain values, for its workers (`inherit.py` makes them theirs).

Import hooks (editable installs put them into `sys.meta_path`) are sent by pickle where that works; those
of tools that only make sense in the program (test runners, coverage) are left out.
"""

from __future__ import annotations

import os
import sys

from shmrt.process.warning_filters import describe_filters

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

__all__ = ["describe"]

# Finders that are no part of how modules are found in a worker: the interpreter's own, which are there, and
# those of tools that act on the program only.
_OWN_FINDERS = ("_frozen_importlib", "zipimport", "importlib", "builtins")
_TOOL_FINDERS = ("_distutils_hack", "_virtualenv", "six", "_pytest", "pytest", "coverage", "py.", "hypothesis")


def _home(thing: object) -> str:
    kind = thing if isinstance(thing, type) or hasattr(thing, "__qualname__") else type(thing)
    owner = getattr(thing, "__self__", None)  # a class method as a path hook
    return str(getattr(kind, "__module__", None) or getattr(owner, "__module__", "") or "")


def _foreign(things: list[object]) -> list[tuple[int, bytes]]:
    """(position, pickle) of each hook that is neither the interpreter's nor a tool's."""
    found: list[tuple[int, bytes]] = []
    for position, thing in enumerate(things):
        home = _home(thing)
        if home.startswith((*_OWN_FINDERS, *_TOOL_FINDERS)) or home == "__main__":
            continue
        from _pickle import dumps

        try:
            found.append((position, dumps(thing)))
        except Exception:
            continue  # bound to the program: it cannot act elsewhere
    return found


def _umask() -> int:
    # Reading through /proc changes nothing; setting and restoring would be seen by other threads.
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("Umask:"):
                    return int(line.split()[1], 8)
    except (OSError, ValueError, IndexError):
        pass
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def describe() -> dict[str, Any]:
    """Plain values for `apply`, taken now."""
    try:
        directory = os.getcwd()
    except OSError:
        directory = "/"  # removed under the program; nothing relative worked there either
    return {
        "path": [str(entry) for entry in sys.path if isinstance(entry, str)],
        "meta_path": _foreign(list(sys.meta_path)),
        "path_hooks": _foreign(list(sys.path_hooks)),
        "directory": directory,
        "environment": {bytes(key): bytes(value) for key, value in os.environb.items()},
        "umask": _umask(),
        "warn_options": list(sys.warnoptions),
        "warning_filters": describe_filters(),
        "argv": [str(word) for word in getattr(sys, "argv", [""])],
        "prefix": (sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix),
        "executable": sys.executable,
        "dont_write_bytecode": sys.dont_write_bytecode,
        "pycache_prefix": sys.pycache_prefix,
        "recursion_limit": sys.getrecursionlimit(),
        "switch_interval": sys.getswitchinterval(),
        "int_max_str_digits": sys.get_int_max_str_digits() if hasattr(sys, "get_int_max_str_digits") else None,
        "has_site": "site" in sys.modules,
    }

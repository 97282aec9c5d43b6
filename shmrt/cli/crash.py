"""Writes the report of a mistake in shmrt itself, so that the user sees one line and we can see everything."""

from __future__ import annotations

import os
import platform
import sys
import tempfile
import traceback

__all__ = ["write_report"]


def write_report(error: BaseException) -> str | None:
    """The path of a new file with the traceback and the facts of this machine, or None where none can be written."""
    from shmrt import __version__

    text = "\n".join(
        [
            f"shmrt {__version__}, Python {sys.version}, {platform.platform()}",
            f"command: {sys.argv!r}",
            "",
            "".join(traceback.format_exception(error)),
        ]
    )
    try:
        descriptor, path = tempfile.mkstemp(prefix="shmrt-report-", suffix=".txt")
        with os.fdopen(descriptor, "w", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        return None
    return path

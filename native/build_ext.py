"""Builds the C core; in a source folder used as it lies (`pip install -e`), also compiles the package's modules.

An ordinary installation gets its bytecode from the installer. A source folder gets it at the first import, unless
that is forbidden (PYTHONDONTWRITEBYTECODE, a read-only tree); then every start of a program and of a root would
compile all of it anew, which takes longer than the start itself.
"""

from __future__ import annotations

import compileall
import os

from setuptools.command.build_ext import build_ext


class BuildExt(build_ext):
    def run(self) -> None:
        super().run()
        if self.inplace or getattr(self, "editable_mode", False):
            here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            compileall.compile_dir(os.path.join(here, "shmrt"), quiet=2)

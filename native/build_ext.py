"""Builds the C core; in a source folder used as it lies (`pip install -e`), also compiles the package's modules.

The core is optimized over all of its files where compiler and linker can do that: a task's way from `submit` to its
future crosses ten of them, and is some 7 % shorter then.

An ordinary installation gets its bytecode from the installer. A source folder gets it at the first import, unless
that is forbidden (PYTHONDONTWRITEBYTECODE, a read-only tree); then every start of a program and of a root would
compile all of it anew, which takes longer than the start itself.
"""

from __future__ import annotations

import compileall
import os
import subprocess
import tempfile
from typing import Any

from setuptools.command.build_ext import build_ext

OVER_ALL_FILES = ["-flto=auto"]
FIRST = 'int second(void);\n__attribute__((visibility("default"))) int first(void) { return second(); }\n'
SECOND = "int second(void);\nint second(void) { return 2; }\n"


class BuildExt(build_ext):
    def build_extensions(self) -> None:
        if optimizes_over_all_files(self.compiler):
            for extension in self.extensions:
                extension.define_macros = [*extension.define_macros, ("SHMRT_OVER_ALL_FILES", "1")]
                extension.extra_compile_args = [*extension.extra_compile_args, *OVER_ALL_FILES]
                optimized = [flag for flag in extension.extra_compile_args if flag.startswith(("-O", "-f"))]
                extension.extra_link_args = [*extension.extra_link_args, *optimized]
        super().build_extensions()

    def run(self) -> None:
        super().run()
        if self.inplace or getattr(self, "editable_mode", False):
            here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
            compileall.compile_dir(os.path.join(here, "shmrt"), quiet=2)


def optimizes_over_all_files(compiler: Any) -> bool:
    """GCC, whose linker can do it, as a library of two files shows. Clang needs a linker of its own for it, and code
    that is instrumented (`CFLAGS=-fsanitize=...`) is not to be moved between files."""
    command = getattr(compiler, "compiler_so", None)
    if not command or any("-fsanitize" in word for word in [*command, os.environ.get("CFLAGS", "")]):
        return False
    try:
        with tempfile.TemporaryDirectory(prefix="shmrt-build-") as place:
            names = [os.path.join(place, name) for name in ("first.c", "second.c")]
            for name, text in zip(names, (FIRST, SECOND), strict=True):
                with open(name, "w") as file:
                    file.write(text)
            macros = subprocess.run([*command, "-dM", "-E", names[0]], capture_output=True, text=True).stdout
            if "__GNUC__" not in macros or "__clang__" in macros:
                return False
            objects = [name + ".o" for name in names]
            for name, made in zip(names, objects, strict=True):
                subprocess.run(
                    [*command, "-O2", *OVER_ALL_FILES, "-c", name, "-o", made], check=True, capture_output=True
                )
            library = os.path.join(place, "library.so")
            linker = [*compiler.linker_so, "-O2", *OVER_ALL_FILES, *objects, "-o", library]
            subprocess.run(linker, check=True, capture_output=True)
            return True
    except (OSError, subprocess.CalledProcessError):
        return False

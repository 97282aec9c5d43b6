"""What a worker takes over from the program, by description.

Workers are forked from the root, which knows nothing of the program: no `sys.path` of its own, no import
hooks, another directory. `apply` runs in each worker (or once in a template) before any user module is imported;
`surroundings.py` has what it is told.
"""

from __future__ import annotations

import _sitebuiltins  # here, in the root, and not once in each worker
import os
import posix
import sys

from shmrt.process.after_import import after_import
from shmrt.process.warning_filters import apply_filters

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from typing import Any

__all__ = ["apply", "reseed"]

_THREAD_VARIABLES = (
    *(b"OMP_NUM_THREADS", b"OPENBLAS_NUM_THREADS", b"MKL_NUM_THREADS", b"BLIS_NUM_THREADS", b"NUMEXPR_NUM_THREADS"),
    *(b"VECLIB_MAXIMUM_THREADS", b"NUMBA_NUM_THREADS", b"POLARS_MAX_THREADS", b"RAYON_NUM_THREADS", b"TBB_NUM_THREADS"),
)


def apply(description: dict[str, Any], threads: int | None = None) -> None:
    """Makes this process look like the program that was described."""
    get = description.__getitem__
    _apply_environment(get("environment"), threads)
    os.umask(get("umask"))
    os.chdir(get("directory"))
    sys.path[:] = get("path")
    sys.argv = list(get("argv"))
    sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix = get("prefix")
    sys.executable = get("executable")
    sys.dont_write_bytecode = bool(get("dont_write_bytecode"))
    sys.pycache_prefix = get("pycache_prefix")
    sys.setrecursionlimit(get("recursion_limit"))
    sys.setswitchinterval(get("switch_interval"))
    if get("int_max_str_digits") is not None:
        sys.set_int_max_str_digits(get("int_max_str_digits"))
    for position, data in get("meta_path"):
        sys.meta_path.insert(min(position, len(sys.meta_path)), _DescribedFinder(data))
    _apply_path_hooks(get("path_hooks"))
    if get("path_hooks"):
        sys.path_importer_cache.clear()  # what they would find must not be hidden by what was found without them
    sys.warnoptions[:] = get("warn_options")
    apply_filters(get("warning_filters"))
    if get("has_site"):
        _add_builtins()


def _apply_environment(described: dict[bytes, bytes], threads: int | None) -> None:
    """`threads` keeps the pools of numeric libraries small, unless the user has set a variable himself. Each look at
    `os.environ` takes microseconds and dirties pages of every new worker; what it was at the start of the interpreter
    it still is here, since the root never changes it."""
    environment = dict(described)
    if threads is not None:
        for name in _THREAD_VARIABLES:
            environment.setdefault(name, b"%d" % threads)
    here = dict(posix.environ)
    for key in here.keys() - environment.keys():
        del os.environb[key]
    for key, value in environment.items():
        if here.get(key) != value:
            os.environb[key] = value


def _load_hook(data: bytes) -> Any:
    """The hook itself, or None: its module cannot be imported here; what it would find raises ImportError by name."""
    from _pickle import loads  # `pickle` may be half imported here: it looks for a module that exists in Jython only

    try:
        return loads(data)
    except Exception:
        return None


class _DescribedFinder:
    """Stands in `sys.meta_path` for a finder of the program until a module is looked for that no finder before it
    knows. An editable install puts its finder last, and loading it would cost a new worker more than all else."""

    def __init__(self, data: bytes) -> None:
        self._data: bytes | None = data

    def find_spec(self, name: str, path: object = None, target: object = None) -> Any:
        if self._data is None:
            return None  # what loading it imports comes here too; so does everything, if it could not be loaded
        data, self._data = self._data, None
        finder = _load_hook(data)
        if finder is None or finder in sys.meta_path:
            return None
        sys.meta_path[sys.meta_path.index(self)] = finder
        find = getattr(finder, "find_spec", None)
        return None if find is None else find(name, path, target)


def _apply_path_hooks(described: list[tuple[int, bytes]]) -> None:
    for position, data in described:
        hook = _load_hook(data)
        if hook is not None and hook not in sys.path_hooks:
            sys.path_hooks.insert(min(position, len(sys.path_hooks)), hook)


def _add_builtins() -> None:
    """`exit`, `quit` and `help`, which `site` would have added."""
    import builtins

    end = "Ctrl-D (i.e. EOF)"
    for name in ("exit", "quit"):
        if not hasattr(builtins, name):
            setattr(builtins, name, _sitebuiltins.Quitter(name, end))
    if not hasattr(builtins, "help"):
        builtins.help = _sitebuiltins._Helper()


def reseed(seed: int | None, worker: int, restarts: int) -> None:
    """Gives `random` and numpy's global generator of this process its own stream.

    With a seed the stream depends on seed, worker and how often that worker was started before; without one it is
    fresh. A module that is not imported yet gets its seed when it is; without one it seeds itself from the system then.
    """
    if seed is None:
        for name in ("random", "numpy.random"):
            module = sys.modules.get(name)
            if module is not None:
                module.seed()
        return
    words = [seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF, worker, restarts & 0xFFFFFFFF]
    after_import("random", lambda random: random.seed(f"{seed}/{worker}/{restarts}"))
    after_import("numpy.random", lambda random: random.seed(words))

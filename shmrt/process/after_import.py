"""Does something to a module as soon as anybody imports it, without importing it now."""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType
    from typing import Any

__all__ = ["after_import"]


def after_import(name: str, act: Callable[[ModuleType], None]) -> None:
    """Calls `act(module)` now if it is loaded, else once, right after its own code has run."""
    module = sys.modules.get(name)
    if module is not None:
        act(module)
    else:
        sys.meta_path.insert(0, _Watch(name, act))


class _Watch:
    """A finder that finds one module, once, and stands in for its loader."""

    def __init__(self, name: str, act: Callable[[ModuleType], None]) -> None:
        self.name = name
        self.act = act
        self.loader: Any = None

    def find_spec(self, name: str, path: Any = None, target: object = None) -> Any:
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        for finder in list(sys.meta_path):  # another one of us, or of an editable install, may know it
            find = getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    self.loader, spec.loader = spec.loader, self
                return spec
        return None

    def create_module(self, spec: Any) -> Any:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__.loader = self.loader  # type: ignore[union-attr]
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        self.act(module)

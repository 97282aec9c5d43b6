"""A child's check on its way to its process: there it gets a reference to the child, if it takes one."""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

__all__ = ["Beside"]


class Beside:
    """`target` is (key, who), what a reference is made of."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn
        self._takes: bool | None = None

    def __call__(self, target: tuple[int, dict[str, Any]]) -> Any:
        if self._takes is None:
            self._takes = takes_one(self.fn)
        if not self._takes:
            return self.fn()
        from shmrt.handles import make_ref
        from shmrt.home import home

        key, who = target
        return self.fn(make_ref(home(), key, who))

    def __reduce__(self) -> Any:
        return Beside, (self.fn,)


def takes_one(fn: Callable[..., Any]) -> bool:
    """Whether it has a first parameter without a default.

    >>> takes_one(lambda: 1), takes_one(lambda ref: 1), takes_one(lambda limit=3: 1), takes_one(len)
    (False, True, False, True)
    """
    from inspect import Parameter, signature

    try:
        parameters = list(signature(fn).parameters.values())
    except (TypeError, ValueError):
        return False  # written in C, and it does not say
    positional = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    return bool(parameters) and parameters[0].kind in positional and parameters[0].default is Parameter.empty

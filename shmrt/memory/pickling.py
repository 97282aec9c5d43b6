"""Pickling by value, for what plain pickle cannot: lambdas, `__main__`, notebooks, memoryviews.

The C codec calls `dumps_by_value` only after plain pickle said no or named `__main__`, so cloudpickle is
imported late and most programs never pay for it.

    >>> import pickle
    >>> pickle.loads(dumps_by_value(memoryview(b"abc"), None)).tobytes()
    b'abc'
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Callable
from typing import Any

__all__ = ["dumps_by_value"]


def _rebuild_view(buffer: Any, view_format: str, shape: tuple[int, ...]) -> memoryview:
    view = memoryview(buffer)
    if view.format != "B" or view.ndim != 1:
        view = view.cast("B")
    if view_format == "B" and len(shape) == 1:
        return view
    return view.cast(view_format, shape) if len(shape) > 1 else view.cast(view_format)  # type: ignore[call-overload, no-any-return]


def _reduce_view(view: memoryview) -> Any:
    # A view that is not in one piece has no buffer to hand over, so it arrives as a view of a copy.
    whole: Any = view if view.c_contiguous else view.tobytes()
    try:
        memoryview(b"").cast(view.format)  # type: ignore[call-overload]
    except ValueError:
        raise pickle.PicklingError(
            f"a memoryview of format {view.format!r} cannot be rebuilt; send an array or cast it to bytes first"
        ) from None
    return _rebuild_view, (pickle.PickleBuffer(whole), view.format, tuple(view.shape or ()))


@functools.cache
def _pickler() -> Any:
    import cloudpickle

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        # In front of cloudpickle's own table, which would make bytes of a view; the registry of copyreg stays as
        # the user made it. C reads the attribute when a pickler is made, so it has to be the class's.
        dispatch_table = cloudpickle.Pickler.dispatch_table.new_child({memoryview: _reduce_view})

    return Pickler


def dumps_by_value(obj: object, buffer_callback: Callable[[pickle.PickleBuffer], object] | None) -> bytes:
    """The pickle of `obj` by cloudpickle, buffers given to `buffer_callback`."""
    with io.BytesIO() as file:
        _pickler()(file, protocol=5, buffer_callback=buffer_callback).dump(obj)
        return file.getvalue()

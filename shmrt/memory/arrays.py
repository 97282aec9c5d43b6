"""Arrays that are in shared memory from the start, so that sending one copies nothing.

    >>> import shmrt
    >>> image = shmrt.empty((480, 640, 3), "uint8")
    >>> image[:] = 0

Sending such an array (whole: a slice that begins elsewhere is copied) makes it read-only, and the array that
`empty` returned if it is a view of that; the receiver's is read-only, too. Other views of the same memory keep
their own flag and must not be written to any more. The memory is used again only when nobody looks at it, also if
somebody is killed.

It lies in the memory of the current runtime, whose `shm_limit` bounds it. A worker that returns an array that it was
given, or a part of it, and a receiver that sends a read-only one on, copy nothing either; between the stages of a
pipeline no array is copied that a stage gave. It stays a copy where the sender's own view is still out with somebody
else, where the worker has put the array by, and for the second mention of the same memory in one message.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index
from typing import TYPE_CHECKING, Any, SupportsIndex

from shmrt import _native

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import DTypeLike

__all__ = ["empty"]


def empty(
    shape: SupportsIndex | Sequence[SupportsIndex], dtype: DTypeLike = float, *, order: str = "C"
) -> np.ndarray[Any, Any]:
    """An uninitialised array in shared memory. dtypes that hold Python objects are a TypeError.

    Sending it makes it read-only. A view that was made before the send (`half = array[:10]`) stays writable in numpy's
    eyes, since numpy keeps a view's flag: it must not be written to any more, or the receiver sees its data change.
    """
    import numpy as np

    kind = np.dtype(dtype)
    if kind.hasobject:
        raise TypeError(f"dtype={kind!r} holds Python objects, which live in one process only; use a plain dtype")
    if order not in ("C", "F"):
        raise ValueError(f"order={order!r} must be 'C' or 'F'")
    try:
        if isinstance(shape, (bool, str, bytes)):
            raise TypeError
        lengths = (index(shape),) if hasattr(shape, "__index__") else tuple(map(index, shape))
    except TypeError:
        raise TypeError(f"shape={shape!r} must be a whole number or a sequence of them") from None
    if lengths and min(lengths) < 0:
        raise ValueError(f"shape={shape!r} has a negative length")
    size = math.prod(lengths) * kind.itemsize
    if size == 0:
        return np.empty(lengths, kind, order)  # type: ignore[call-overload, no-any-return]
    if size >= 2**63:
        raise ValueError(f"shape={shape!r} of {kind} takes {size} bytes, more than any memory holds")
    block: Any = _native.Arena.current().allocate(size)
    return np.ndarray(lengths, kind, block, 0, None, order)  # type: ignore[arg-type]

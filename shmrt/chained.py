"""What asyncio does with the futures of a pool, as `native/py_future_chain.c` has to know it.

`asyncio.wrap_future`, and `loop.run_in_executor` with it, give a future a callback that hands its outcome to the event
loop. It is a function inside of another one, so it is known by its code, and the future it is for by its closure.
"""

from __future__ import annotations

from asyncio import Future, _get_running_loop, futures
from types import CodeType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["CODE", "PLACES", "Future", "copy_state", "running_loop"]


def _find() -> tuple[CodeType | None, tuple[int, int]]:
    outer = getattr(futures, "_chain_future", None)
    for constant in outer.__code__.co_consts if outer else ():
        if isinstance(constant, CodeType) and constant.co_name == "_call_set_state":
            names = constant.co_freevars
            if "dest_loop" in names and "destination" in names:
                return constant, (names.index("dest_loop"), names.index("destination"))
    return None, (0, 0)


running_loop = _get_running_loop
copy_state: Any = getattr(futures, "_copy_future_state", None)  # (source, destination), in the loop's thread
CODE, PLACES = _find() if copy_state is not None else (None, (0, 0))  # None: this asyncio does it in another way

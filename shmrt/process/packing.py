"""Exceptions on their way out of a process, as plain values.

`pack_exception` gives the exception's pickle if a round trip keeps its type, and always the text of its traceback. It
cannot fail of what a user's `__reduce__`, `__repr__` or `__str__` does: only that one task carries the consequence.
`remote.py` makes an exception of it again.

If the worker dies while packing, the task was still running and its outcome is the death.
"""

from __future__ import annotations

TYPE_CHECKING = False  # workers start without typing, which would cost them more than all else
if TYPE_CHECKING:
    from typing import Any

__all__ = ["pack_exception"]

_TEXT_MAX = 100_000


def _safely(make: Any, otherwise: str) -> str:
    try:
        text = str(make())
    except BaseException as error:
        return f"{otherwise} ({type(error).__name__} while describing it)"
    return text if len(text) <= _TEXT_MAX else text[:_TEXT_MAX] + "\n... (cut)"


def _pickled(error: BaseException) -> bytes | None:
    import pickle

    try:
        data = pickle.dumps(error, 5)
    except BaseException:
        data = b"__main__"
    if b"__main__" in data:
        try:
            import cloudpickle

            data = cloudpickle.dumps(error, 5)
        except BaseException:
            return None
    try:
        again = pickle.loads(data)
    except BaseException:
        return None
    same = type(again) is type(error) or (
        type(again).__qualname__ == type(error).__qualname__ and type(error).__module__ == "__main__"
    )
    return data if same and isinstance(again, BaseException) else None


def pack_exception(error: BaseException) -> tuple[bytes | None, str, str, str]:
    """(pickle or None, qualified type name, message, traceback text) of an exception, whatever it is made of."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ in ("builtins", None) else f"{kind.__module__}.{kind.__qualname__}"
    message = _safely(lambda: str(error), f"<{name} that cannot be shown>")

    def text() -> str:
        import traceback

        return "".join(traceback.format_exception(kind, error, error.__traceback__))

    return _pickled(error), name, message, _safely(text, f"{name}: {message}")

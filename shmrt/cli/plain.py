"""Values of the user's as text and as JSON, whatever they are: neither way ever fails or breaks the format."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

__all__ = ["json_text", "safe_repr", "safe_str"]


def safe_repr(value: Any) -> str:
    return _safely(repr, value)


def safe_str(value: Any) -> str:
    return _safely(str, value)


def _safely(turn: Callable[[Any], str], value: Any) -> str:
    try:
        return turn(value)
    except Exception as error:  # it is the user's code, and an output that cannot be shown must not end the run
        return f"<{type(value).__name__} that has no text: {type(error).__name__}>"


def json_text(value: Any, *, indent: int | None = None) -> str:
    """JSON that every reader takes: null for NaN and the infinities, the repr of what JSON has no word for."""
    try:
        return json.dumps(value, default=safe_repr, indent=indent, allow_nan=False)
    except (ValueError, TypeError, RecursionError):
        pass  # a number or a key that JSON does not have, or a loop: seldom, so that only then each part is looked at
    try:
        return json.dumps(_plain(value, ()), indent=indent, allow_nan=False)
    except (ValueError, RecursionError):
        return json.dumps(safe_repr(value))


def _plain(value: Any, around: tuple[int, ...]) -> Any:
    """The value of parts that JSON has; `around` are the containers that it lies in, to notice a loop."""
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        try:
            json.dumps(value)
        except ValueError:  # more digits than Python turns into text
            return safe_repr(value)
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if id(value) in around:
        return "..."
    inside = (*around, id(value))
    if isinstance(value, dict):
        return {_key(key): _plain(content, inside) for key, content in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(content, inside) for content in value]
    return safe_repr(value)


def _key(key: Any) -> Any:
    return key if key is None or isinstance(key, (str, bool, int)) else safe_repr(key)

"""What a check function's answer means, in plain values.

| answer                                  | status    | detail, value and unit                        |
|-----------------------------------------|-----------|-----------------------------------------------|
| None, True                              | healthy   | -                                             |
| False                                   | unhealthy | -                                             |
| "healthy", "degraded", "unhealthy"      | that      | -                                             |
| another string                          | healthy   | the string is the detail                      |
| a number                                | healthy   | the number is the value                       |
| `Degraded(detail, value, unit)`         | degraded  | its own                                       |
| (status, detail)                        | that      | the detail                                    |
| a dict of status, detail, value, unit   | its own   | its own; each key may be left out             |
| an awaitable                            | of what it gives when awaited, and so is the rest         |
| anything else                           | healthy   | its text is the detail                        |

An exception is unhealthy, and its text the error; `Degraded` may be raised, too.

This runs in the process of the check, never in the root. Texts are cut, so that no check can flood anybody.

>>> find("all well"), find(False)[0], find(Degraded("slow", 1.5, "s"))
(('healthy', 'all well', None, None, None), 'unhealthy', ('degraded', 'slow', 1.5, 's', None))
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Finding: TypeAlias = tuple[str, str | None, Any, str | None, str | None]

__all__ = ["Degraded", "failure", "find"]

TEXT_MOST = 1000
_STATUSES = ("healthy", "degraded", "unhealthy")
_KEYS = ("status", "detail", "value", "unit")


class Degraded(Exception):
    """What a check returns, or raises, to say: it works, but not as it should.

    detail: in words. value, unit: what was measured.
    """

    def __init__(self, detail: str = "", value: Any = None, unit: str | None = None) -> None:
        super().__init__(detail, value, unit)
        self.detail = detail
        self.value = value
        self.unit = unit

    def __str__(self) -> str:
        return str(self.detail)


def find(answer: Any) -> Finding:
    """(status, detail, value, unit, error) of what a check function returned."""
    if hasattr(answer, "__await__"):
        import asyncio

        answer = asyncio.run(_await(answer))
    if answer is None:
        return "healthy", None, None, None, None
    if isinstance(answer, Degraded):
        return "degraded", _text(answer.detail) or None, _plain(answer.value), _word(answer.unit), None
    if isinstance(answer, bool) or type(answer).__name__ in ("bool_", "bool"):  # numpy's, too
        return ("healthy", None, None, None, None) if answer else ("unhealthy", None, None, None, "it answered False")
    if isinstance(answer, str):
        return (answer, None, None, None, None) if answer in _STATUSES else ("healthy", _text(answer), None, None, None)
    if isinstance(answer, (int, float)):
        return "healthy", None, _plain(answer), None, None
    if isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[0], str) and answer[0] in _STATUSES:
        return answer[0], None if answer[1] is None else _text(answer[1]), None, None, None
    if isinstance(answer, dict) and answer and all(key in _KEYS for key in answer):
        return _of_dict(answer)
    return "healthy", _text(answer), None, None, None


def failure(error: BaseException) -> Finding:
    """The same of what it raised."""
    if isinstance(error, Degraded):
        return find(error)
    try:
        text = f"{type(error).__name__}: {error}"
    except BaseException as inner:
        text = f"{type(error).__name__} that cannot be shown ({type(inner).__name__})"
    return "unhealthy", None, None, None, _cut(text)


def _of_dict(answer: dict[str, Any]) -> Finding:
    status = answer.get("status", "healthy")
    if status not in _STATUSES:
        return "unhealthy", None, None, None, _cut(f"it answered status={status!r}, which is none of {_STATUSES}")
    detail = answer.get("detail")
    return (
        str(status),
        None if detail is None else _text(detail),
        _plain(answer.get("value")),
        _word(answer.get("unit")),
        None,
    )


async def _await(answer: Any) -> Any:
    return await answer


def _plain(value: Any) -> Any:
    if value is None or type(value) in (bool, float) or (type(value) is int and -(2**63) <= value < 2**63):
        return value
    return _text(value) if not isinstance(value, float) else float(value)


def _word(unit: Any) -> str | None:
    return None if unit is None else _text(unit)[:40]


def _text(value: Any) -> str:
    return _cut(value if type(value) is str else str(value))


def _cut(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates are no JSON
    return text if len(text) <= TEXT_MOST else text[:TEXT_MOST] + " ..."

"""What a guard does around something that was called and has not run yet: coroutines and generators.

A guard's part is a `Held`: `end` is called once, with the exception or the value; of what is dropped before its end the
Held's own `__del__` tells.
"""

from __future__ import annotations

import inspect

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine, Generator
    from typing import Any, Protocol

    class Held(Protocol):
        def end(self, error: BaseException | None, value: Any = None) -> None: ...


__all__ = ["follow"]


def follow(held: Held, made: Any) -> Any:
    """The same kind of thing around it, which tells how it ended."""
    if inspect.iscoroutine(made):
        return _follow_coroutine(held, made)
    if inspect.isasyncgen(made):
        return _follow_async_generator(held, made)
    return _follow_generator(held, made)


async def _follow_coroutine(held: Held, made: Coroutine[Any, Any, Any]) -> Any:
    try:
        value = await made
    except BaseException as error:
        held.end(error)
        raise
    held.end(None, value)
    return value


def _follow_generator(held: Held, made: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    try:
        value = yield from made
    except BaseException as error:
        held.end(error)
        raise
    held.end(None, value)
    return value


async def _follow_async_generator(held: Held, made: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    try:
        step = made.__anext__()
        while True:
            try:
                item = await step
            except StopAsyncIteration:
                break
            try:
                sent = yield item
            except GeneratorExit:
                raise
            except BaseException as thrown:
                step = made.athrow(thrown)
            else:
                step = made.asend(sent)
    except BaseException as error:
        held.end(error)
        raise
    else:
        held.end(None)
    finally:
        await made.aclose()

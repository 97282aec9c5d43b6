"""What runs inside a worker for one stage of a pipeline.

    install(...)             once per worker process, as its initializer: keeps the stage's functions
    run_chunk(stage, items)  one task: applies the function to each item; an outcome per item
    run_more(stage, token)   one task: the next group of a stream that this process holds

A *chunk result* is plain data: `(values, marks, keys, elapsed_ns, started)`. `values[i]` is the output for item i
unless `marks[i]` says otherwise: `("no",)` filtered, `("wrong", packed)` raised, `("many", outs, keys, token)` the
outputs of a `flat_map`, `("lost",)` a stream that this process does not know. `keys` holds (worked, key or packed
error) per output where a `key_by` function runs in the same task. Items from `started` on were not begun.

A stateful stage has one instance per worker process, made when the first item comes. A `flat_map` function is asked
for outputs up to `group_bytes`; if there are more, its iterator stays here under a token and the program asks for the
next group when it has room, so that an endless generator is held back like everything else. If the process dies,
instance and streams are gone; its replacement starts afresh and answers "lost" for streams that it never had.
"""

from __future__ import annotations

import itertools
import os
import pickle
import traceback
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from shmrt.clock import MONOTONIC
from shmrt.decide.routing import weigh
from shmrt.errors import RemoteError

__all__ = ["collect", "install", "pack_error", "run_chunk", "run_more", "unpack_error"]

ChunkResult = tuple[list[Any], dict[int, Any], "list[tuple[bool, Any]] | None", int, int]


class RemoteTraceback(Exception):
    """The traceback of an exception raised in a worker, as text; the cause of the exception in the program."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


# ---- exceptions as plain data


def pack_error(error: BaseException) -> tuple[bytes | None, str, str, str]:
    """(pickle or None, type name, message, traceback text). The pickle was read back here, so that reading it in the
    program cannot fail for reasons that lie in the exception."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    try:
        text = "".join(traceback.format_exception(error))
    except Exception:
        text = f"{name}: the traceback could not be formatted\n"
    try:
        message = str(error)
    except Exception:
        message = "the message could not be formatted"
    blob: bytes | None = None
    if isinstance(error, Exception):  # SystemExit or KeyboardInterrupt must not end the program in its stead
        try:
            blob = _dumps(error)
            if type(pickle.loads(blob)) is not type(error):
                blob = None
        except BaseException:
            blob = None
    return blob, name, message, text


def unpack_error(packed: tuple[bytes | None, str, str, str]) -> BaseException:
    """The exception again, with the worker's traceback as its cause; a RemoteError where it does not pickle."""
    blob, name, message, text = packed
    error: BaseException | None = None
    if blob is not None:
        try:
            found = pickle.loads(blob)
            error = found if isinstance(found, BaseException) else None
        except Exception:
            error = None
    if error is None:
        error = RemoteError(f"{name}: {message}", type_name=name, traceback_text=text)
    error.__cause__ = RemoteTraceback(text)
    return error


def _dumps(value: Any) -> bytes:
    try:
        return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
    except Exception:
        import cloudpickle  # classes of the program's __main__ come back as themselves this way

        return bytes(cloudpickle.dumps(value))


# ---- the stage


def collect(outputs: Iterator[Any], group_bytes: int) -> tuple[list[Any], bool]:
    """The next group of `outputs`, and whether there may be more."""
    group: list[Any] = []
    size = 0
    for out in outputs:
        group.append(out)
        size += weigh(out)
        if size >= group_bytes:
            return group, True
    return group, False


class _Maker:
    """Calls one instance of a class, made at the first call."""

    __slots__ = ("cls", "instance")

    def __init__(self, cls: Callable[[], Any]) -> None:
        self.cls = cls
        self.instance: Any = None

    def __call__(self, item: Any) -> Any:
        if self.instance is None:
            self.instance = self.cls()
        return self.instance(item)


class _Stage:
    """The functions of one stage and what they left behind in this process."""

    __slots__ = ("counter", "fn", "group_bytes", "key", "kind", "streams", "tag")

    def __init__(self, kind: str, functions: bytes, group_bytes: int) -> None:
        fn, stateful, key, key_stateful = pickle.loads(functions)
        self.kind = kind
        self.fn: Any = _Maker(fn) if stateful else fn
        self.key: Any = _Maker(key) if key_stateful else key
        self.group_bytes = group_bytes
        self.streams: dict[str, Iterator[Any]] = {}
        self.tag = os.urandom(6).hex()  # a replacement must not take another's token for its own
        self.counter = itertools.count()

    def keys(self, outs: list[Any]) -> list[tuple[bool, Any]] | None:
        if self.key is None:
            return None
        found: list[tuple[bool, Any]] = []
        for out in outs:
            try:
                found.append((True, self.key(out)))
            except BaseException as error:
                found.append((False, pack_error(error)))
        return found

    def group(self, outputs: Iterator[Any], token: str | None) -> tuple[Any, ...]:
        outs, more = collect(outputs, self.group_bytes)
        if more and token is None:
            token = f"{self.tag}.{next(self.counter)}"
        if more and token is not None:
            self.streams[token] = outputs
        elif token is not None:
            self.streams.pop(token, None)
        return ("many", outs, self.keys(outs), token if more else None)


# One process serves one stage; a mapping, so that a test can hold several workers in one process.
_installed: MutableMapping[str, _Stage] = {}


def install(stage: str, kind: str, functions: bytes, group_bytes: int) -> None:
    """Keeps the functions of a stage in this worker. A function that cannot be loaded is a failed start."""
    _installed[stage] = _Stage(kind, functions, group_bytes)


def run_chunk(stage: str, items: list[Any]) -> ChunkResult:
    """Applies the stage's function to each item. An exception concerns its own item only."""
    here = _installed[stage]
    kind, fn, key = here.kind, here.fn, here.key
    values: list[Any] = []
    marks: dict[int, Any] = {}
    keys: list[tuple[bool, Any]] | None = None if key is None else []
    begin_ns = MONOTONIC.now_ns()
    for place, item in enumerate(items):
        value: Any = None
        try:
            if kind == "map":
                value = fn(item)
            elif kind == "filter":
                if not fn(item):
                    marks[place] = ("no",)
            elif kind == "flat_map":
                marks[place] = mark = here.group(iter(fn(item)), None)
                if mark[3] is not None:  # the rest of the chunk waits: a stream is gone on with, not queued behind
                    values.append(None)
                    break
        except BaseException as error:
            marks[place] = ("wrong", pack_error(error))
        values.append(value)
        if keys is not None:
            keys.append((False, None))
            if place not in marks:
                try:
                    keys[place] = (True, key(value if kind == "map" else item))
                except BaseException as error:
                    keys[place] = (False, pack_error(error))
    elapsed_ns = MONOTONIC.now_ns() - begin_ns
    return values if kind == "map" else [], marks, keys, elapsed_ns, len(values)


def run_more(stage: str, token: str) -> ChunkResult:
    """The next group of a stream."""
    here = _installed[stage]
    outputs = here.streams.get(token)
    if outputs is None:
        return [], {0: ("lost",)}, None, 0, 1
    begin_ns = MONOTONIC.now_ns()
    try:
        mark = here.group(outputs, token)
    except BaseException as error:
        here.streams.pop(token, None)
        mark = ("wrong", pack_error(error))
    return [], {0: mark}, None, MONOTONIC.now_ns() - begin_ns, 1

"""Pipelines: a line of stages, described as plain data and run on supervised worker processes.

A *stage* applies a function to every item: `map` gives one output, `filter` keeps or drops, `flat_map` gives any
number. `batch` collects items into lists, `key_by` sends items with equal keys to the same worker of the next stage.
Functions run in worker processes; batching, order, routing and de-duplication live in the program.

    >>> pipe = Pipeline("words").flat_map(str.split, name="split").filter(str.isalpha, name="only words").batch(2)
    >>> list(pipe.run_serial(["to be, or", "not to be"]))
    [['to', 'or'], ['not', 'to'], ['be']]

A description never changes: every method returns a new one. It can be pickled, run many times, and run by any engine.
`run` starts the workers, `run_serial` does the same in the calling process, to check or to debug with.

When a worker dies, its replacement gets the interrupted items again, first and in order; the consumer sees every output
once. A class as the function means one instance per worker, made there; its state dies with the worker.
How many items travel to a worker in one task follows their measured times (`chunk="auto"`), or is `chunk` at most;
`spin` is how many seconds an idle worker looks for its next task before it sleeps (None: 5 microseconds).
`python -m shmrt tune` tries both, with workers and rings, and `[stage.NAME]` in a file sets them: docs/tuning.md.
Limits: functions may run more than once, so their effects outside must bear that; a stage with a `timeout` runs its
items one by one; the failed items of a `dead_letter` run are kept until somebody takes them from the list.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from shmrt.decide.delivery_words import OnError
from shmrt.pipeline_report import DeadLetter
from shmrt.spec import RingSpec, check_chunk, check_count, check_seconds, check_spin, parse_size

if TYPE_CHECKING:
    from shmrt.pipeline_run import Run
    from shmrt.pipeline_serial import SerialRun

__all__ = ["DeadLetter", "Pipeline", "Stage"]

GROUP_BYTES = 2**24
ON_ERROR: tuple[OnError, ...] = ("raise", "dead_letter", "skip")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a description. `stateful` means that `fn` is a class with one instance per worker."""

    kind: str
    name: str
    fn: Any = None
    stateful: bool = False
    workers: int = 1
    ring: RingSpec = field(default_factory=RingSpec)
    timeout: float | None = None
    max_attempts: int = 3
    size: int = 1
    group_bytes: int = GROUP_BYTES
    chunk: int | None = None
    spin: float | None = None


def _is_stateful(fn: Any) -> bool:
    # `map(int)` means to call int; a class whose instances can be called is one to make an instance of.
    return isinstance(fn, type) and any("__call__" in vars(cls) for cls in fn.__mro__)


def _load(blob: bytes) -> Pipeline:
    import pickle

    name, stages, source = pickle.loads(blob)
    pipe = Pipeline(name)
    pipe._stages, pipe._source = stages, source
    return pipe


class Pipeline:
    """The description of a pipeline. See the module's page for what the stages mean."""

    __slots__ = ("_name", "_source", "_stages")

    def __init__(self, name: str | None = None) -> None:
        if name is not None and (not isinstance(name, str) or not name):
            raise TypeError(f"name must be a string that is not empty, or None, not {name!r}")
        self._name = name or "pipeline"
        self._stages: tuple[Stage, ...] = ()
        self._source: Any = None

    # -- looking

    @property
    def name(self) -> str:
        return self._name

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self._stages

    @property
    def has_source(self) -> bool:
        """Whether `run()` works without an argument."""
        return self._source is not None

    def __repr__(self) -> str:
        return f"<Pipeline {self._name!r}: {' -> '.join(stage.name for stage in self._stages) or 'no stages'}>"

    def __reduce__(self) -> Any:
        import cloudpickle  # lambdas and functions of __main__ travel by value

        return _load, (cloudpickle.dumps((self._name, self._stages, self._source)),)

    # -- building

    def map(
        self,
        fn: Callable[..., Any],
        *,
        workers: int = 2,
        ring: RingSpec | None = None,
        timeout: float | None = None,
        max_attempts: int = 3,
        chunk: int | str = "auto",
        spin: float | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """One output per item: `fn(item)`. A class with `__call__` is made once per worker."""
        return self._work("map", fn, workers, ring, timeout, max_attempts, name, chunk, spin)

    def filter(
        self,
        fn: Callable[..., Any],
        *,
        workers: int = 2,
        ring: RingSpec | None = None,
        timeout: float | None = None,
        max_attempts: int = 3,
        chunk: int | str = "auto",
        spin: float | None = None,
        name: str | None = None,
    ) -> Pipeline:
        """Keeps the items for which `fn(item)` is true. The item itself goes on, not what `fn` made of its copy."""
        return self._work("filter", fn, workers, ring, timeout, max_attempts, name, chunk, spin)

    def flat_map(
        self,
        fn: Callable[..., Iterable[Any]],
        *,
        workers: int = 2,
        ring: RingSpec | None = None,
        timeout: float | None = None,
        max_attempts: int = 3,
        chunk: int | str = "auto",
        spin: float | None = None,
        name: str | None = None,
        group_bytes: int | str = GROUP_BYTES,
    ) -> Pipeline:
        """Every output of `fn(item)`, published together up to `group_bytes`; beyond that the item streams."""
        where = self._where("flat_map", fn, name)
        group = parse_size(group_bytes, f"{where}: group_bytes")
        return self._work("flat_map", fn, workers, ring, timeout, max_attempts, name, chunk, spin, group)

    def key_by(self, fn: Callable[..., Any], *, name: str | None = None) -> Pipeline:
        """Items with equal `fn(item)` go to the same worker of the next stage, in the order of the source."""
        self._check_fn("key_by", fn, name)
        self._check_place("key_by", name)
        return self._add(Stage("key_by", self._pick_name("key_by", fn, name), fn, _is_stateful(fn)))

    def batch(self, size: int, *, timeout: float | None = None, name: str | None = None) -> Pipeline:
        """Lists of `size` items; fewer when `timeout` seconds passed since the first of them, and at the end."""
        where = self._where("batch", None, name)
        self._check_place("batch", name)
        size = check_count(size, f"{where}: size")
        timeout = check_seconds(timeout, f"{where}: timeout", allow_zero=False)
        return self._add(Stage("batch", self._pick_name("batch", None, name), timeout=timeout, size=size))

    def source(self, source: Any) -> Pipeline:
        """Where `run()` takes items from: an iterable, or a function that returns one (then every run starts afresh).

        Returns a description with that source; this one remembers it too, so that the bare statement
        `pipe.source(...)` is enough for `python -m shmrt run`.
        """
        _check_source(source)
        self._source = source
        return self._add(None)

    # -- running

    def run(
        self,
        source: Any = None,
        *,
        ordered: bool = True,
        on_error: OnError = "raise",
        progress: bool = False,
        engine: Any = "local",
    ) -> Run:
        """A run of this pipeline: a context manager and an iterator of its outputs."""
        from shmrt.pipeline_run import Run

        source = self._check_run(source, on_error)
        return Run(self, source, ordered=bool(ordered), on_error=on_error, progress=bool(progress), engine=engine)

    def run_serial(self, source: Any = None, *, on_error: OnError = "raise") -> SerialRun:
        """The same outputs, letters and report from the calling process alone; nothing can be killed here."""
        from shmrt.pipeline_serial import SerialRun

        return SerialRun(self, self._check_run(source, on_error), on_error=on_error)

    # -- checking

    def _check_run(self, source: Any, on_error: Any) -> Any:
        if on_error not in ON_ERROR:
            raise ValueError(f"on_error={on_error!r} must be one of {', '.join(map(repr, ON_ERROR))}")
        if source is None:
            source = self._source
            if source is None:
                raise ValueError(f"pipeline {self._name!r} has no source: pass one to run(), or add .source(...)")
        _check_source(source)
        return source

    def _where(self, kind: str, fn: Any, name: Any) -> str:
        shown = name if isinstance(name, str) else _fn_name(fn) or kind
        return f"stage {len(self._stages) + 1} ({kind} {shown!r}) of pipeline {self._name!r}"

    def _check_fn(self, kind: str, fn: Any, name: Any) -> None:
        where = self._where(kind, fn, name)
        if not callable(fn):
            raise TypeError(f"{where}: fn must be callable, not {fn!r}")
        target = getattr(fn, "__call__", fn) if not inspect.isroutine(fn) and not isinstance(fn, type) else fn  # noqa: B004
        if _is_stateful(fn):
            target = fn.__call__
        if inspect.iscoroutinefunction(target) or inspect.isasyncgenfunction(target):
            raise TypeError(f"{where}: fn={fn!r} is asynchronous; stages take ordinary functions")

    def _check_place(self, kind: str, name: Any) -> None:
        if self._stages and self._stages[-1].kind == "key_by":
            raise ValueError(
                f"{self._where(kind, None, name)} cannot follow key_by {self._stages[-1].name!r}: a key chooses the "
                f"worker of a map, filter or flat_map; put {kind} before the key_by or after that stage"
            )

    def _pick_name(self, kind: str, fn: Any, name: Any) -> str:
        taken = {stage.name for stage in self._stages}
        if name is not None:
            where = self._where(kind, fn, name)
            if not isinstance(name, str) or not name:
                raise TypeError(f"{where}: name must be a string that is not empty, not {name!r}")
            if name in taken:
                raise ValueError(f"{where}: name={name!r} is taken by another stage")
            return name
        base = picked = _fn_name(fn) or kind
        number = 1
        while picked in taken:
            number += 1
            picked = f"{base}-{number}"
        return picked

    def _work(
        self,
        kind: str,
        fn: Any,
        workers: int,
        ring: RingSpec | None,
        timeout: float | None,
        max_attempts: int,
        name: str | None,
        chunk: int | str,
        spin: float | None,
        group_bytes: int = GROUP_BYTES,
    ) -> Pipeline:
        self._check_fn(kind, fn, name)
        where = self._where(kind, fn, name)
        if ring is None:
            ring = RingSpec()
        if not isinstance(ring, RingSpec):
            raise TypeError(f"{where}: ring must be a RingSpec, not {ring!r}")
        if ring.on_full != "block":
            raise ValueError(
                f"{where}: ring has on_full={ring.on_full!r}, must be 'block': a pipeline holds its source back "
                "instead of losing items"
            )
        return self._add(
            Stage(
                kind,
                self._pick_name(kind, fn, name),
                fn,
                _is_stateful(fn),
                check_count(workers, f"{where}: workers", most=1024),
                ring,
                check_seconds(timeout, f"{where}: timeout", allow_zero=False),
                check_count(max_attempts, f"{where}: max_attempts"),
                group_bytes=group_bytes,
                chunk=check_chunk(chunk, f"{where}: chunk"),
                spin=check_spin(spin, f"{where}: spin"),
            )
        )

    def _add(self, stage: Stage | None) -> Pipeline:
        pipe = Pipeline(self._name)
        pipe._source = self._source
        pipe._stages = self._stages if stage is None else (*self._stages, replace(stage))
        return pipe


def _fn_name(fn: Any) -> str | None:
    name = getattr(fn, "__name__", None)
    return name if isinstance(name, str) and name != "<lambda>" else None


def _check_source(source: Any) -> None:
    if not hasattr(source, "__iter__") and not hasattr(source, "__getitem__") and not callable(source):
        raise TypeError(f"source must be an iterable, or a function that returns one, not {source!r}")


def open_source(source: Any) -> Iterable[Any]:
    """The iterable behind a source; calls it if it is a function."""
    if hasattr(source, "__iter__") and not isinstance(source, type):
        return source  # type: ignore[no-any-return]
    found: Iterable[Any] = source() if callable(source) else source
    if not hasattr(found, "__iter__") and not hasattr(found, "__getitem__"):
        raise TypeError(f"the source function {source!r} must return an iterable, not {found!r}")
    return found

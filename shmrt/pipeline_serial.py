"""The same pipeline in the calling process: what a parallel run must equal.

One generator per stage, pulled by the consumer, written without the machine of the parallel run so that each can check
the other. Outputs, dead letters and the accounts are those of an ordered run without deaths. What cannot be the same:
a function that kills its worker kills this process, `timeout` is not enforced, and a batch never waits for time, so its
timeout has no effect. Stateful stages have as many instances as workers; without keys the items take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from shmrt.decide.delivery_words import OnError, Row
from shmrt.decide.routing import route
from shmrt.pipeline_report import DeadLetter, Report, make_report
from shmrt.process.stage import collect

if TYPE_CHECKING:
    from shmrt.pipeline import Pipeline, Stage

__all__ = ["SerialRun", "blame"]


def blame(error: BaseException, pipe: str, stage: str, item: Any) -> BaseException:
    """The error as the consumer gets it: with a note that says where it is from."""
    if isinstance(error, StopIteration):  # would end the consumer's loop as if nothing had happened
        outer = RuntimeError(f"stage {stage!r} raised StopIteration")
        outer.__cause__ = error
        error = outer
    try:
        shown = repr(item)
    except Exception:
        shown = f"an item of {type(item).__name__}"
    if len(shown) > 200:
        shown = shown[:197] + "..."
    error.add_note(f"in stage {stage!r} of pipeline {pipe!r}, item {shown}")
    return error


class SerialRun:
    """The outputs in order; `report` and `dead_letters` as of a parallel run."""

    def __init__(self, pipe: Pipeline, source: Any, *, on_error: OnError) -> None:
        self._pipe = pipe
        self._on_error = on_error
        self._rows = [Row() for _ in pipe.stages]
        self._taken = 0
        self._out = 0
        self.dead_letters: list[DeadLetter] = []
        self._source_error: BaseException | None = None
        self._iterator = self._outputs(source)

    def __enter__(self) -> SerialRun:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> SerialRun:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def close(self) -> None:
        """Ends the run; the report stays."""
        self._iterator.close()

    @property
    def report(self) -> Report:
        lines = [(stage.name, stage.kind, row, 0) for stage, row in zip(self._pipe.stages, self._rows, strict=True)]
        return make_report(self._pipe.name, lines, self._taken, self._out, len(self.dead_letters))

    def _outputs(self, source: Any) -> Any:
        from shmrt.pipeline import open_source

        line = self._items(source, open_source)
        keyed = False
        for stage, row in zip(self._pipe.stages, self._rows, strict=True):
            line = self._batches(stage, row, line) if stage.kind == "batch" else self._apply(stage, row, line, keyed)
            keyed = stage.kind == "key_by"
        for _, out in line:
            self._out += 1
            yield out
        if self._source_error is not None:
            raise self._source_error

    def _items(self, source: Any, opened: Callable[[Any], Any]) -> Iterator[tuple[Any, Any]]:
        # An error of the source comes after the outputs of everything that it gave, as in a parallel run.
        try:
            for item in opened(source):
                self._taken += 1
                yield None, item
        except Exception as error:
            self._source_error = error

    def _batches(self, stage: Stage, row: Row, line: Iterator[tuple[Any, Any]]) -> Iterator[tuple[Any, Any]]:
        batch: list[Any] = []
        for _, item in line:
            row.taken += 1
            batch.append(item)
            if len(batch) == stage.size:
                row.done += len(batch)
                row.out += 1
                yield None, batch
                batch = []
        if batch:
            row.done += len(batch)
            row.out += 1
            yield None, batch

    def _apply(self, stage: Stage, row: Row, line: Iterator[tuple[Any, Any]], keyed: bool) -> Iterator[tuple[Any, Any]]:
        following = self._pipe.stages[self._pipe.stages.index(stage) + 1 :][:1]
        instances: list[Any] = [None if stage.stateful else stage.fn] * stage.workers
        for number, (key, item) in enumerate(line):
            row.taken += 1
            lane = route(key, stage.workers) if keyed else number % stage.workers
            try:
                if instances[lane] is None:
                    instances[lane] = stage.fn()
                fn = instances[lane]
                if stage.kind == "flat_map":
                    outs = iter(fn(item))
                    group, more = collect(outs, stage.group_bytes)
                elif stage.kind == "filter":
                    group, more = [item] if fn(item) else [], False
                elif stage.kind == "key_by":
                    key = fn(item)
                    if following:
                        route(key, 1)  # a key that cannot be hashed fails here
                    group, more = [item], False
                else:
                    group, more = [fn(item)], False
            except Exception as error:
                self._failed(stage, row, item, error)
                continue
            if stage.kind == "filter" and not group:
                row.filtered += 1
                continue
            while True:
                if not more:
                    row.done += 1
                for out in group:
                    row.out += 1
                    yield key if stage.kind == "key_by" else None, out
                if not more:
                    break
                try:
                    group, more = collect(outs, stage.group_bytes)
                except Exception as error:
                    self._failed(stage, row, item, error)
                    break

    def _failed(self, stage: Stage, row: Row, item: Any, error: Exception) -> None:
        row.failed += 1
        if self._on_error == "raise":
            raise blame(error, self._pipe.name, stage.name, item)
        if self._on_error == "dead_letter":
            self.dead_letters.append(DeadLetter(item, error, 1, stage.name))

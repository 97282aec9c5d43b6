"""From a description to what runs: the machine's nodes, and what each pool of workers is given.

A `key_by` runs in the worker of the stage before it, where the item is made. Behind a batch, which is made in the
program, or at the front, it gets a worker of its own. Every described stage keeps its line in the report either way.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shmrt.decide.delivery_words import Node, NodeKind
from shmrt.pipeline import GROUP_BYTES, Stage
from shmrt.spec import RingSpec

__all__ = ["EDGE_BYTES", "Work", "make_plan", "pickle_functions"]

EDGE_BYTES = 2**26


@dataclass(frozen=True, slots=True)
class Work:
    """What the pool of a work node is made of."""

    stage: Stage
    key: Stage | None
    passes_on: bool = False
    """Its items were made by workers of this run: nobody in the program has them but the run."""

    @property
    def kind(self) -> str:
        return "key" if self.stage.kind == "key_by" else self.stage.kind


def make_plan(stages: Sequence[Stage], memory: int = 2**40) -> tuple[list[Node], list[Work | None]]:
    """Nodes, and beside each work node its Work. All stages together keep to half of `memory` bytes: an item under way
    may have its arguments and its result there at once."""
    most = min(EDGE_BYTES, max(memory // (4 * max(1, len(stages))), 1))
    nodes: list[Node] = []
    works: list[Work | None] = []
    keyed = False  # a key_by came just before
    made = False  # a worker made the items: the source's own, which a filter passes on, are the user's
    place = 0
    while place < len(stages):
        stage = stages[place]
        row, place = place, place + 1
        if stage.kind == "batch":
            timeout_ns = None if stage.timeout is None else int(stage.timeout * 1e9)
            nodes.append(Node(kind="batch", row=row, size=stage.size, timeout_ns=timeout_ns))
            works.append(None)
            continue
        key = stages[place] if place < len(stages) and stages[place].kind == "key_by" else None
        key_row = place if key is not None else None
        place += key is not None
        kinds: dict[str, NodeKind] = {"map": "map", "filter": "filter", "flat_map": "flat_map", "key_by": "key"}
        nodes.append(
            Node(
                kind=kinds[stage.kind],
                row=row,
                workers=stage.workers,
                slots=stage.ring.slots,
                bytes_most=most if most < EDGE_BYTES else max(most, stage.ring.slots * stage.ring.slot_bytes),
                max_attempts=stage.max_attempts,
                chunk=stage.chunk,
                single=stage.timeout is not None or stage.max_attempts == 1,
                keyed=keyed,
                key_row=key_row,
            )
        )
        works.append(Work(stage, key, made))
        made = made or stage.kind in ("map", "flat_map")
        keyed = key is not None or stage.kind == "key_by"
    return nodes, works


def out_ring(stages: Sequence[Stage]) -> RingSpec:
    """The bounds of the consumer's side: those of the last ring."""
    return next((stage.ring for stage in reversed(stages) if stage.kind not in ("batch", "key_by")), RingSpec())


def pickle_functions(pipe: str, work: Work) -> bytes:
    """The functions of a work node for its workers. One that cannot travel is an error here, in the caller."""
    key = work.key
    if work.kind == "key":
        parts: tuple[Any, ...] = (None, False, work.stage.fn, work.stage.stateful)
    else:
        parts = (work.stage.fn, work.stage.stateful, key.fn if key else None, key.stateful if key else False)
    try:
        import cloudpickle

        return bytes(cloudpickle.dumps(parts, protocol=pickle.HIGHEST_PROTOCOL))
    except Exception as error:
        raise TypeError(
            f"stage {work.stage.name!r} of pipeline {pipe!r}: fn={work.stage.fn!r} cannot be sent to a worker: {error}"
        ) from error


assert GROUP_BYTES < EDGE_BYTES, "a group must fit an edge"

"""A task that never ends: how soon a time limit on it is kept, and what waited behind it.

A pool of two workers, `limit_s` for one task that sleeps for ever, or that stays in one C call which holds the
interpreter's lock, while others behind it are short. `noticed_s` is from its submit to its error; `over_ms` what that
is beyond the limit; `others_done` how many of those behind it had their result by then; `usable` whether one more
task runs. A pool that does not come back is given up and its processes are killed. Only shmrt, pebble and mpire can
limit a task; on every other pool, and on these without a limit, nobody ever notices (waiting for ever was not tried).
Median of the turns. Not measured: detection without a limit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from bench._apart import GivenUpError, apart
from bench._measure import figure
from bench._peers import present
from bench._peers.pools import POOLS
from bench._pools import LostError, outcome, warm
from bench._views import Table
from bench._work import hold_the_gil, nothing, sleep_at
from bench.one_death import is_usable

SMOKE = {"limit_s": 0.1, "others": 10, "turns": 1, "patience_s": 8.0}
FULL = {"limit_s": 0.5, "others": 40, "turns": 3, "patience_s": 10.0}

VIEWS = (
    Table(
        "A task limited to half a second",
        {
            "impl": "pool",
            "task": "the task",
            "noticed_s": "noticed after, s",
            "over_ms": "beyond the limit, ms",
            "others_done": "others done by then",
            "error": "error",
            "usable": "usable afterwards",
        },
    ),
)


def one_turn(make: Any, work: Any, limit_s: float, others: int, patience_s: float) -> tuple[float, int, str, bool]:
    pool = make(2)
    warm(pool)
    begin = time.perf_counter()
    hung = pool.submit_limited(work, 0, limit_s)
    rest = [pool.submit(nothing, number) for number in range(others)]
    try:
        outcome(pool, hung, patience_s)
        error = "none"
    except LostError:
        error = f"none in {patience_s:g} s"
    except Exception as problem:
        error = type(problem).__name__
    noticed = time.perf_counter() - begin
    done = 0
    for handle in rest:
        try:
            outcome(pool, handle, 0.01)
            done += 1
        except Exception:
            continue
    usable = is_usable(pool, 3.0)
    if usable:  # one that is not may hang in its close, and all its processes are killed then
        pool.close()
    return noticed, done, error, usable


def run(limit_s: float, others: int, turns: int, patience_s: float) -> Iterator[dict[str, Any]]:
    here, missing = present(POOLS)
    yield from missing
    for make in here:
        if not make.task_timeout:
            yield {"impl": make.impl, "task": "any", "error": "no time limit for a task: nobody notices"}
    found: dict[tuple[str, str], list[tuple[float, int, str, bool]]] = {}
    given_up: dict[tuple[str, str], str] = {}
    for _ in range(turns):
        for make in here:
            if make.task_timeout:
                for task, work in (("sleeps", sleep_at), ("holds the GIL", hold_the_gil)):
                    if (make.impl, task) in given_up:
                        continue
                    try:
                        one = apart(one_turn, make, work, limit_s, others, patience_s, seconds=patience_s * 2)
                    except GivenUpError as reason:
                        given_up[make.impl, task] = str(reason)
                    else:
                        found.setdefault((make.impl, task), []).append(one)
    for (impl, task), why in given_up.items():
        yield {"impl": impl, "task": task, "error": f"the pool hung: {why}", "usable": False}
    for (impl, task), rows in found.items():
        yield {
            "impl": impl,
            "task": task,
            **figure("noticed_s", [row[0] for row in rows]),
            **figure("over_ms", [(row[0] - limit_s) * 1e3 for row in rows]),
            "others_done": f"{min(row[1] for row in rows)} of {others}",
            "error": rows[-1][2],
            "usable": all(row[3] for row in rows),
        }

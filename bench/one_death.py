"""One task of many kills its worker: what becomes of the others, of that one, and of the pool.

Two workers, `tasks` short tasks submitted one by one; the one in the middle sends SIGKILL to its own process. `done` is
how many gave their result, `failed` how many ended with an error and with which, `lost` how many had no outcome within
`patience_s` after the last outcome: a program that waits for those waits for ever. `all_out_ms` is from the first
submit to the last outcome; `usable` tells whether one more task gives its result, on the same pool. Not measured: how
fast a replacement serves (recovery), and deaths between tasks.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

from bench._apart import GivenUpError, apart
from bench._measure import rounded
from bench._peers import present
from bench._peers.pools import POOLS
from bench._pools import TOO_LONG, LostError, failed, outcome, warm
from bench._views import Table
from bench._work import die_at, nothing

SMOKE = {"tasks": 50, "patience_s": 0.3, "heavy": False}
FULL = {"tasks": 1000, "patience_s": 3.0, "heavy": True}

VIEWS = (
    Table(
        "One task of 1000 kills its worker",
        {
            "impl": "pool",
            "done": "done",
            "failed": "failed",
            "errors": "with",
            "lost": "lost",
            "all_out_ms": "all out, ms",
            "usable": "usable afterwards",
        },
    ),
)


def outcomes(pool: Any, tasks: int, patience_s: float) -> dict[str, Any]:
    begin = last = time.perf_counter()
    handles = []
    errors: Counter[str] = Counter()
    for number in range(tasks):
        try:
            handles.append(pool.submit(die_at, (number - tasks // 2)))
        except Exception as error:  # a pool that is broken by now refuses
            errors[type(error).__name__] += 1
    done = lost = 0
    for handle in handles:
        try:
            outcome(pool, handle, 0.01 if lost else patience_s)
        except LostError:
            lost += 1
            continue
        except Exception as error:
            errors[type(error).__name__] += 1
        else:
            done += 1
        last = time.perf_counter()
    names = ", ".join(sorted(errors))
    row = {"done": done, "failed": sum(errors.values()), "errors": names or None, "lost": lost}
    return row | {"all_out_ms": rounded((last - begin) * 1e3)}


def is_usable(pool: Any, patience_s: float) -> bool:
    try:
        return bool(outcome(pool, pool.submit(nothing, 7), patience_s) == 7)
    except Exception:
        return False


def one_death(make: Any, tasks: int, patience_s: float) -> dict[str, Any]:
    pool = make(2)
    warm(pool)
    row = outcomes(pool, tasks, patience_s)
    row["usable"] = is_usable(pool, patience_s)
    if row["usable"] and not row["lost"]:  # else it may hang in its close; its processes are killed then
        pool.close()
    return row


def run(tasks: int, patience_s: float, heavy: bool) -> Iterator[dict[str, Any]]:
    here, missing = present([pool for pool in POOLS if pool.can("submit")])
    yield from missing
    for make in here:
        if make.heavy and not heavy:
            yield {"impl": make.impl, "skipped": TOO_LONG}
            continue
        patience = patience_s * (10 if make.heavy else 1)
        try:
            yield {"impl": make.impl, **apart(one_death, make, tasks, patience, seconds=60 + patience * 4)}
        except GivenUpError as reason:
            yield {"impl": make.impl, "errors": f"the pool hung: {reason}", "usable": False}
        except RuntimeError as error:
            if not make.heavy:
                raise
            yield failed(make.impl, error)

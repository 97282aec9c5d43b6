"""How much `import shmrt` and `python -m shmrt version` add to a bare interpreter.

Milliseconds of wall clock, median over `runs` fresh interpreters, taken in turns so that noise hits all alike.
Not measured: what the first use of a Pool or a numpy array imports.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from bench._views import Table

SMOKE = {"runs": 2}
FULL = {"runs": 40}

VIEWS = (Table("Milliseconds", {"impl": "what", "added_ms": "added, ms", "ms": "in all, ms", "min_ms": "least, ms"}),)

COMMANDS = {
    "bare": ["-c", "pass"],
    "import shmrt": ["-c", "import shmrt"],
    "version": ["-m", "shmrt", "version"],
    "import multiprocessing.pool": ["-c", "import multiprocessing.pool"],
    "import concurrent.futures.process": ["-c", "import concurrent.futures.process"],
}


def run(runs: int) -> Iterator[dict[str, Any]]:
    taken: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(runs):
        for name, words in COMMANDS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
            taken[name].append((time.perf_counter() - begin) * 1e3)
    bare = statistics.median(taken["bare"])
    for name, values in taken.items():
        median = statistics.median(values)
        yield {
            "impl": name,
            "ms": round(median, 2),
            "added_ms": round(median - bare, 2),
            "min_ms": round(min(values), 2),
        }

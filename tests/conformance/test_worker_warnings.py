"""Workers have the program's warning filters, and import nothing because of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 120

HOME = """\
import warnings

class Fussy(UserWarning):
    pass

warnings.simplefilter("always", Fussy)
"""

PROGRAM = """\
import sys
import warnings

sys.path.insert(0, {place!r})
import home_of_a_warning
warnings.filterwarnings("error", message="not THIS", category=RuntimeWarning)
warnings.simplefilter("ignore", ResourceWarning)

def names(filters):
    return [(one[0], getattr(one[1], "pattern", one[1]), one[2].__name__) for one in filters]

def before(_):
    import _warnings
    loaded = [name for name in ("home_of_a_warning", "numpy") if name in sys.modules]
    return loaded, names(_warnings.filters)

def after(_):
    import home_of_a_warning, warnings
    return names(warnings.filters)

def warn(text):
    import warnings
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.warn(text, RuntimeWarning)
    except RuntimeWarning:
        return "an error"
    return len(seen)

if __name__ == "__main__":
    import shmrt
    import numpy
    mine = names(warnings.filters)
    with shmrt.Runtime(), shmrt.Pool(1) as pool:
        loaded, kept = pool.submit(before, 0).result()
        assert loaded == [], loaded
        assert kept == [row for row in mine if row[2] not in ("Fussy", "RankWarning")], kept
        assert pool.submit(warn, "Not this one").result() == "an error"  # the expression ignores case
        found = pool.submit(after, 0).result()
        assert found == [row for row in mine if row[2] != "RankWarning"], (found, mine)
    print("well")
"""


def test_filters_arrive_in_order_and_import_nothing(tmp_path: Path) -> None:
    """Those of classes of a package come when the worker imports it, at the place that they have in the program."""
    (tmp_path / "home_of_a_warning.py").write_text(HOME)
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(place=str(tmp_path)))
    done = subprocess.run(
        [sys.executable, str(program)],
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
    )
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stderr

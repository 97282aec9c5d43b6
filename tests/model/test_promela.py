"""Models of the lock-free protocols in every interleaving, with a death at any step and memory as weak as C11's.

`promela/memory.pml` is the memory; beside it stands one model for each protocol, which says which C functions it
stands for. spin looks at every state within the bounds below: no assertion fails, nobody waits for good. Every seeded
bug of a model (an order made relaxed, a fence dropped, a wake forgotten, a generation kept, ...) must be refuted, else
the model proves nothing.

Needs spin (Debian package: spin) and a C compiler; without them all of this skips and says so.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

MODELS = Path(__file__).with_name("promela")
WATCHDOG_S = 1800
"""Only ends what hangs."""
DEPTH = 200_000


@dataclass(frozen=True, slots=True)
class Check:
    model: str
    bounds: str  # as given to spin
    states: int  # at least so many; a model that is stuck at once would pass, too

    @property
    def name(self) -> str:
        return f"{self.model}-{self.bounds or 'as-it-is'}".replace(" ", "").replace("-D", "-")


FAST = [
    Check("lane", "", 10_000),
    Check("lane", "-DREVOKES=1 -DCRASHES=0", 10_000),
    Check("bell", "-DCRASHES=0", 100_000),
    Check("bell", "-DRINGERS=1 -DCHANGES=2", 50_000),
    Check("bell", "-DRINGERS=1 -DSLEEPERS=2", 100_000),
    Check("park", "-DTHREADS=1", 50_000),
    Check("park", "-DTHREADS=0 -DWATCHES=1 -DCRASHES=0", 100_000),
    Check("stock", "", 1_000),
    Check("behind", "-DVISITS=1 -DWATCHES=1", 100_000),
    Check("block", "", 10_000),
    Check("block", "-DSENDERS=1 -DMESSAGES=2", 1_000),
    Check("block", "-DSECONDS=1", 50_000),
    Check("granule", "-DUSERS=1", 10_000),
    Check("granule", "-DCRASHES=0", 200_000),
    Check("watch", "", 1_000),
    Check("death", "-DTASKS=1", 50_000),
    Check("death", "", 100_000),
]
LONG = [
    Check("lane", "-DMESSAGES=4 -DCRASHES=2", 1_000_000),
    Check("lane", "-DSLOTS=3 -DMESSAGES=5 -DCRASHES=1", 100_000),
    Check("lane", "-DREVOKES=2 -DMESSAGES=4 -DCRASHES=0", 500_000),
    Check("bell", "", 5_000_000),
    Check("park", "-DTHREADS=1 -DRESULTS=2 -DPUMPS=2 -DARMS=2", 500_000),
    Check("stock", "-DSUBMITTERS=3 -DTASKS=3 -DRINGS=3", 50_000),
    Check("behind", "", 5_000_000),
    Check("behind", "-DVISITS=1 -DCRASHES=1", 5_000_000),
    Check("behind", "-DWAITERS=2 -DVISITS=1 -DWATCHES=1 -DRESULTS=1", 1_000_000),
    Check("behind", "-DRESULTS=3 -DWATCHES=1", 5_000_000),
    Check("park", "-DTHREADS=0 -DWATCHES=1", 500_000),
    Check("park", "-DTHREADS=0 -DWATCHES=1 -DRESULTS=2", 2_000_000),
    Check("block", "-DMESSAGES=2 -DCRASHES=1", 100_000),
    Check("block", "-DSENDERS=1 -DMESSAGES=3 -DCRASHES=3", 10_000),
    Check("block", "-DSECONDS=1 -DMESSAGES=2", 2_000_000),
    Check("granule", "-DUSERS=1 -DALLOCS=2 -DTRIMS=2 -DCRASHES=2", 1_000_000),
    Check("granule", "-DUSERS=1 -DKEEPERS=2", 1_000_000),
    Check("death", "-DCRASHES=2", 1_000_000),
    Check("death", "-DTASKS=3", 200_000),
]

ONE_RINGER = "-DRINGERS=1"
TWO_SLEEPERS = "-DRINGERS=1 -DSLEEPERS=2"
TWO_MESSAGES = "-DSENDERS=1 -DMESSAGES=2"
ONE_USER = "-DUSERS=1"
ONE_WATCH = "-DTHREADS=0 -DWATCHES=1"
SEEDED: dict[str, dict[str, str]] = {
    "lane": dict.fromkeys(
        [
            "TAIL_STORE_RELAXED",
            "TAIL_LOAD_RELAXED",
            "HEAD_STORE_RELAXED",
            "HEAD_LOAD_RELAXED",
            "PUBLISH_FIRST",
            "RELEASE_FIRST",
            "RELEASE_BEFORE_DURABLE",
            "ONE_TOO_MANY",
            "NO_NOTICE",
            "ATTACH_HEAD_ONLY",
        ],
        "",
    )
    | dict.fromkeys(["CLAIM_OF_ANOTHER", "CLAIM_STORES"], "-DREVOKES=1 -DCRASHES=0"),
    "bell": dict.fromkeys(
        [
            "NO_FENCE_IN_ARM",
            "NO_FENCE_IN_RING",
            "NO_SECOND_LOOK",
            "NO_WAKE",
            "RING_FIRST",
            "NO_RING_AFTER_DEATH",
            "POLITE_RING_AFTER_DEATH",
            "LOOK_FIRST",
            "DEATH_IS_NO_FENCE",
        ],
        ONE_RINGER,
    )
    # Two sleepers that disarm run in circles: only runs with few enough stores are looked at.
    | {"TWO_DISARM": f"{TWO_SLEEPERS} -DCUT", "EACH_FOR_ITSELF": TWO_SLEEPERS},
    "park": dict.fromkeys(
        [
            "SAME_NUMBER",
            "NO_TELL",
            "NO_SEEN",
            "PARKED_TOO_LATE",
            "NO_RING_AFTER_DEATH",
            "TELL_FIRST",
        ],
        "-DTHREADS=1",
    )
    | dict.fromkeys(["NO_SHORT_SLEEP", "SHORT_SLEEP_ONCE"], "-DTHREADS=1 -DRESULTS=2 -DCRASHES=0")
    | dict.fromkeys(
        [
            "NO_SECOND_LOOK",
            "NO_MAKE_URGENT",
            "BY_THE_BELL",
            "LAZY_FIRST",
            "URGENT_WITHOUT_PUMP",
            "KEEPS_LAZY_BELL",
        ],
        f"{ONE_WATCH} -DCRASHES=0",
    )
    | dict.fromkeys(["NO_RING_IN_WINDOW", "WINDOWS_TOO_LATE"], f"{ONE_WATCH} -DRESULTS=2 -DCRASHES=0"),
    "stock": dict.fromkeys(
        [
            "NO_RING_WHEN_KEPT",
            "NO_SHORT_SLEEP",
            "DECIDES_BEFORE_THE_MUTEX",
            "RINGS_THE_SHORT_SLEEPER_ONLY",
        ],
        "",
    ),
    "behind": dict.fromkeys(
        [
            "NOBODY_BEHIND",
            "NO_STAND_IN",
            "NO_ARM_STANDING_IN",
            "LAZY_STANDING_IN",
            "SLEEPS_ON_BEHIND",
            "NOT_LAZY_BEHIND",
            "WINDOW_IN_ANY_CASE",
            "BEHIND_FOR_EVER",
        ],
        "",
    ),
    "block": dict.fromkeys(
        [
            "SENT_RELAXED",
            "TAKE_RELAXED",
            "FREE_RELAXED",
            "ALLOC_RELAXED",
            "SENT_FIRST",
            "RECLAIM_ALIVE",
            "NO_RECLAIM",
            "STORE_NOT_SWAP",
            "FREE_FIRST",
        ],
        "",
    )
    | dict.fromkeys(["NO_BUMP", "RECLAIM_BEFORE_DRAIN"], TWO_MESSAGES)
    | {"RECLAIM_STORES": "-DSECONDS=1"},
    "granule": dict.fromkeys(
        [
            "HEAD_RELAXED",
            "HEAD_FIRST",
            "NO_SECOND_LOOK",
            "TRIM_TAKES_NO_BLOCK",
            "FREE_RELAXED",
            "PUNCH_LAST",
            "NO_RECLAIM",
            "RECLAIM_ALIVE",
            "RECLAIM_KEEPS_BLOCK",
        ],
        ONE_USER,
    )
    | {"LOOKS_RELAXED": "-DCRASHES=0", "NO_TAKE_OVER": f"{ONE_USER} -DKEEPERS=2"},
    "watch": dict.fromkeys(
        [
            "NO_FENCE_IN_POKE",
            "NO_FENCE_IN_WATCH",
            "NO_POKE",
            "NO_WAITERS_BY_OWNER",
            "WAITERS_IN_FREE_WORD",
            "WAITERS_TOO_LATE",
        ],
        "",
    ),
    "death": dict.fromkeys(
        [
            "DEATH_RELAXED",
            "DEATH_MARK_RELAXED",
            "PHASE_AFTER_CALL",
            "IDLE_BEFORE_COMMIT",
            "NO_DRAIN",
            "NO_RING_AFTER_DEATH",
            "FREE_BEFORE_FORMAT",
            "CLAIM_RELAXED",
            "CLAIM_KEEPS_MUTEX",
        ],
        "",
    ),
}

OFTEN = {
    *(
        "lane TAIL_STORE_RELAXED",
        "lane HEAD_LOAD_RELAXED",
        "lane PUBLISH_FIRST",
        "bell NO_FENCE_IN_ARM",
        "bell NO_WAKE",
    ),
    *("bell POLITE_RING_AFTER_DEATH", "block SENT_RELAXED", "block NO_BUMP", "granule NO_SECOND_LOOK"),
    *("granule HEAD_RELAXED", "watch NO_FENCE_IN_POKE", "watch NO_WAITERS_BY_OWNER", "death DEATH_RELAXED"),
    *("death IDLE_BEFORE_COMMIT", "park SAME_NUMBER", "park NO_TELL"),
    *("behind NO_STAND_IN", "behind LAZY_STANDING_IN", "stock NO_RING_WHEN_KEPT", "stock DECIDES_BEFORE_THE_MUTEX"),
    *("park NO_SECOND_LOOK", "park BY_THE_BELL", "lane CLAIM_OF_ANOTHER", "granule NO_TAKE_OVER"),
}
"""Of each kind of bug one or two in every run of the tests; building all takes a minute."""


def run(command: list[str], place: Path) -> str:
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=WATCHDOG_S, check=False)
    assert done.returncode == 0, f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
    return done.stdout


def explore(model: str, bounds: str, place: Path, optimise: str = "-O0") -> tuple[int, str | None, str]:
    """How many states spin saw, the violation that it found or None, and all that it said."""
    missing = [name for name in ("spin", "cc") if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"SKIPPED: no {' and no '.join(missing)} on this machine (Debian packages: spin, gcc); models unchecked"
        )
    for path in MODELS.glob("*.pml"):
        shutil.copy(path, place)
    run(["spin", "-a", *bounds.split(), f"{model}.pml"], place)
    run(["cc", optimise, "-w", "-DSAFETY", "-DCOLLAPSE", "-DVECTORSZ=4096", "-o", "pan", "pan.c"], place)
    said = run(["./pan", f"-m{DEPTH}"], place)
    assert "max search depth too small" not in said, said
    errors, states = re.search(r"errors: (\d+)", said), re.search(r"(\d+) states, stored", said)
    assert errors and states, said
    violation = re.search(r"^pan:\d+: (.*) \(at depth", said, re.M)
    assert (errors[1] == "0") == (violation is None), said
    assert violation is not None or "Search not completed" not in said, said
    return int(states[1]), violation[1] if violation else None, said


def check(one: Check, place: Path, optimise: str) -> None:
    states, violation, said = explore(one.model, one.bounds, place, optimise)
    print(f"{one.name}: {states} states")
    assert violation is None, said
    assert states >= one.states, f"only {states} states: the model is stuck\n{said}"


@pytest.mark.slow
@pytest.mark.parametrize("one", FAST, ids=lambda one: one.name)
def test_a_model_holds_in_every_interleaving(one: Check, tmp_path: Path) -> None:
    """B2. Within the small bounds no assertion fails and nobody waits for good."""
    check(one, tmp_path, "-O0")  # compiling well costs more here than it saves


@pytest.mark.stress
@pytest.mark.parametrize("one", LONG, ids=lambda one: one.name)
def test_a_model_holds_within_larger_bounds(one: Check, tmp_path: Path) -> None:
    """B2, longer: more messages, more deaths, more processes."""
    check(one, tmp_path, "-O2")


ALL = [(model, bug) for model, bugs in SEEDED.items() for bug in bugs]


def refute(model: str, bug: str, place: Path) -> None:
    _, violation, said = explore(model, f"-D{bug} {SEEDED[model][bug]}", place)
    assert violation is not None, f"{model}.pml holds although it has the bug {bug}\n{said}"
    assert "newest+1" not in violation.replace(" ", ""), f"{bug} only runs out of HISTORY: {violation}"


@pytest.mark.slow
@pytest.mark.parametrize(("model", "bug"), [pair for pair in ALL if " ".join(pair) in OFTEN])
def test_a_seeded_bug_of_a_model_is_refuted(model: str, bug: str, tmp_path: Path) -> None:
    """A5 for the models: spin finds a run that breaks an assertion or never ends; not merely the bound on stores."""
    refute(model, bug, tmp_path)


@pytest.mark.stress
@pytest.mark.parametrize(("model", "bug"), [pair for pair in ALL if " ".join(pair) not in OFTEN])
def test_the_other_seeded_bugs_are_refuted(model: str, bug: str, tmp_path: Path) -> None:
    """A5 for the models, the rest of them."""
    refute(model, bug, tmp_path)


def test_every_seeded_bug_is_named_in_its_model_and_run() -> None:
    """What a model's heading lists is what its text has and what is run here."""
    for model, bugs in SEEDED.items():
        text = (MODELS / f"{model}.pml").read_text()
        heading = text[text.index("Mutants:") : text.index("*/")]
        listed = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", heading))
        used = set(re.findall(r"#(?:ifdef|ifndef) (\w+)", text)) | set(re.findall(r"defined\((\w+)\)", text))
        assert listed == set(bugs), model
        assert set(bugs) <= used, model
    assert {" ".join(pair) for pair in ALL} >= OFTEN
    assert {path.stem for path in MODELS.glob("*.pml")} == {*SEEDED, "memory"}

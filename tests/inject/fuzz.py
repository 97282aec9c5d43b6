"""In a process of its own: changes the memory of one subject in many ways, and uses it each time.

    python fuzz.py SUBJECT KIND SEED FIRST COUNT PROGRESS

KIND is `every` or `few` (mutation k sets byte k // values to one of 256 or of 5 values), `any` (one byte, one value,
from SEED and k), `random` (some places, some values, both from SEED and k) or `late` (the same, while it is used).
PROGRESS is a file of 8 bytes that holds k while it is tried, so that whoever finds this process dead knows what killed
it: `describe` says it in words. The last line of output is a report in JSON.
"""

from __future__ import annotations

import collections
import ctypes
import faulthandler
import json
import mmap
import os
import random
import signal
import struct
import sys
import traceback
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from subject import Subject

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

EVERY = tuple(range(256))
FEW = (0x00, 0x01, 0x7F, 0x80, 0xFF)
NUMBERS = (
    0,
    1,
    2,
    3,
    7,
    8,
    0x7F,
    0xFF,
    1 << 15,
    (1 << 16) - 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 63,
    (1 << 64) - 1,
)


def change(kind: str, seed: int, index: int, size: int) -> list[tuple[int, bytes | int]]:
    """(position, bytes), or (position, number to add to the word there)."""
    if kind == "every":
        return [(index // 256 % size, bytes([index % 256]))]
    if kind == "few":
        return [(index // len(FEW) % size, bytes([FEW[index % len(FEW)]]))]
    rng = random.Random(seed * 1_000_003 + index)
    if kind == "any":
        return [(rng.randrange(size), rng.randbytes(1))]
    made: list[tuple[int, bytes | int]] = []
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        position = rng.randrange(size)
        what = rng.randrange(5)
        if what == 0:
            made.append((position, rng.randbytes(rng.choice((1, 2, 4, 8, 16)))))
        elif what == 1:
            made.append((position & ~3, struct.pack("<I", rng.choice(NUMBERS) & 0xFFFFFFFF)))
        elif what == 2:
            made.append((position & ~7, struct.pack("<Q", rng.choice(NUMBERS))))
        elif what == 3:
            made.append((position & ~7, rng.choice((-1, 1, 2, -2, 64, -64, 1 << 20, 1 << 32))))
        else:
            made.append((position, bytes([1 << rng.randrange(8)])))
    return made


def subject_of(name: str) -> Subject:
    from subjects_control import OneMailbox, Table
    from subjects_guards import Guards
    from subjects_rings import DroppingRing, NamedRing, OneArena, OneRing

    kinds: dict[str, type[Subject]] = {
        "ring": OneRing,
        "dropping": DroppingRing,
        "arena": OneArena,
        "named": NamedRing,
        "table": Table,
        "mailbox": OneMailbox,
        "guards": Guards,
    }
    return kinds[name]()


def main() -> None:
    name, kind, seed, first, count, progress = sys.argv[1:7]
    from subject import DOCUMENTED

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    warnings.simplefilter("ignore")
    fence = getattr(ctypes.CDLL(None), "shim_fence", None)
    if fence is not None:
        fence(1)
    with open(progress, "r+b") as file:
        at = mmap.mmap(file.fileno(), 8)
    subject = subject_of(name)
    outcomes: collections.Counter[str] = collections.Counter()
    unexpected: list[tuple[int, str]] = []
    for index in range(int(first), int(first) + int(count)):
        at[:] = struct.pack("<Q", index)
        subject.restore()
        changes = change(kind, int(seed), index, subject.size)
        subject.late = changes if kind == "late" else []
        for position, content in changes if kind != "late" else []:
            subject.write(position, content)
        subject.let_nobody_hold_it(keep=index % 16 == 0)
        try:
            came = subject.use()
        except DOCUMENTED as error:
            outcomes[type(error).__name__] += 1
        except Exception:
            unexpected.append((index, traceback.format_exc()[-1500:]))
            if len(unexpected) >= 10:
                break
        else:
            outcomes["used, with an error" if came else "used"] += 1
    subject.restore()
    used = subject.use()
    close = getattr(subject, "close", None)
    if close is not None:
        close()
    print(json.dumps({"outcomes": outcomes, "unexpected": unexpected, "size": subject.size, "whole": used}))
    sys.stdout.flush()
    os._exit(0)  # what was left in broken memory is nobody's business at an interpreter's end


if __name__ == "__main__":
    main()

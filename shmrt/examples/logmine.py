"""Many tenants' regular expressions over the text of this machine: work that cannot be trusted.

    text     system logs, manual pages, the sources of this Python: whatever is there, cut into batches of lines
    rules    each tenant has named expressions; a batch becomes, by rule, how often each value was found
    answer   the sum over all batches; its digest must equal the digest of `serial`

Most tenants have ordinary rules. Three have not, and none of them means harm:

    b    one of its rules backtracks for ever: inside `re`, in C, holding the interpreter lock, deaf to signals
    c    one of its rules makes a table of each character by each: for n of them n * n bytes, more than there is
    d    uses a native parser that dies of some texts (a read at address zero stands in for its bug)

What a rule makes of a batch depends on nothing else. So whatever happened to workers on the way, an answer is either
the right one or not there. `logmine_run.py` has them all at work at the same time, and says what came of it:
`python -m shmrt demo logmine`.

    >>> mine((Rule("module", r"^import (\\w+)$"),), "import os\\nimport re\\nimport os\\n")
    ({'os': 2, 're': 1},)
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import os
import random
import re
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, cycle, islice
from typing import Any, NamedTuple

__all__ = ["Batch", "Found", "Rule", "Tenant", "add_up", "batches_of", "digest", "mine", "on_probation", "serial"]

BATCH = 64 << 10
"""Characters of a batch, at least: it ends with a line."""
SIZE = 2 << 20
"""Characters that a run mines."""
VALUE_MOST = 80
FILE_MOST = 4 << 20
LINE_MOST = 2000

LOGS = ("/var/log/*.log", "/var/log/apt/*.log", "/var/log/syslog", "/var/log/messages")
PAGES = ("/usr/share/man/man1/*.gz", "/usr/share/man/man8/*.gz", "/usr/share/man/man[18]/*.[18]")
SOURCES = ("*.py", "[a-r]*/*.py", "[t-z]*/*.py")
"""Of the standard library; what is installed beside it is not everywhere the same."""

Found = tuple[dict[str, int], ...]
"""For each rule, how often each value was found."""


class Rule(NamedTuple):
    """Name, what to look for, and how: a `regex` has at most one group; `parser` and `table` say themselves."""

    name: str
    pattern: str
    how: str = "regex"


class Batch(NamedTuple):
    """A piece of text; `origin` is the file it begins in."""

    origin: str
    text: str

    @property
    def lines(self) -> int:
        return self.text.count("\n")


class Tenant(NamedTuple):
    """Who mines what. `trusted`: its rules have proven themselves."""

    name: str
    rules: tuple[Rule, ...]
    batches: tuple[Batch, ...]
    trusted: bool = True


# ---- what a worker does --------------------------------------------------------------------------------------------


def mine(rules: tuple[Rule, ...], text: str) -> Found:
    """By rule, how often each value was found in the text."""
    return tuple(dict(Counter(value[:VALUE_MOST] for value in _HOW[rule.how](rule.pattern, text))) for rule in rules)


def findall(pattern: str, text: str) -> list[str]:
    return re.compile(pattern, re.MULTILINE).findall(text)


def parse(marker: str, text: str) -> list[str]:
    """How long lines are, by a parser in C with a bug: a text with the marker has it read at address zero."""
    if marker in text:
        import ctypes

        ctypes.string_at(0)
    return [str(1 << len(line).bit_length()) for line in text.splitlines()]


def repeats(least: str, text: str) -> list[str]:
    """Runs of `least` equal characters or more, found in a table of each character by each: a simple way to do it."""
    table = bytearray(len(text) ** 2)
    for row, one in enumerate(text):
        for column in range(row + 1, len(text)):
            table[row * len(text) + column] = one == text[column]
    many = int(least)
    starts = (at for at in range(len(text) - many) if all(table[at * len(text) + at + n] for n in range(1, many)))
    return [text[at] for at in starts]


_HOW: dict[str, Callable[[str, str], list[str]]] = {"regex": findall, "parser": parse, "table": repeats}


def on_probation(memory: int, nice: int) -> None:
    """The initializer of workers for rules that nobody knows: they get the CPU that others leave, so much memory
    beyond what a worker has at its start, and no core file."""
    import resource

    os.nice(nice)
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    for limit, value in ((resource.RLIMIT_AS, now + memory), (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(limit)[1]
        most = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (most, most))


# ---- answers -------------------------------------------------------------------------------------------------------


def add_up(rules: Sequence[Rule], found: Iterable[Found]) -> dict[str, Counter[str]]:
    """By rule, how often each value was found in all batches."""
    total: dict[str, Counter[str]] = {rule.name: Counter() for rule in rules}
    for one in found:
        for rule, counts in zip(rules, one, strict=True):
            total[rule.name].update(counts)
    return total


def digest(answers: dict[str, dict[str, Counter[str]]]) -> str:
    """One word for the answers of all these tenants."""
    word = hashlib.blake2b(digest_size=16)
    for tenant, answer in sorted(answers.items()):
        for rule, counts in sorted(answer.items()):
            word.update(f"{tenant}\0{rule}\n".encode())
            for value, count in sorted(counts.items()):
                word.update(f"{value}\0{count}\n".encode("utf-8", "surrogatepass"))
    return word.hexdigest()


def serial(tenants: Iterable[Tenant]) -> dict[str, list[Found]]:
    """What each tenant's rules find in each of its batches, without a worker."""
    return {one.name: [mine(one.rules, batch.text) for batch in one.batches] for one in tenants}


# ---- text ----------------------------------------------------------------------------------------------------------


def batches_of(folder: str | None = None, *, size: int = SIZE, seed: int = 0) -> list[Batch]:
    """Text of about `size` characters: of the files below `folder`, else a third each of logs, manual pages and
    sources; where there are no logs or pages, the sources make up for them. `seed` chooses which pages and sources.
    ValueError if there is no text."""
    chooser = random.Random(seed)
    if folder is not None:
        if not os.path.isdir(folder):
            raise NotADirectoryError(f"input={folder!r} is not a directory; give a directory that holds text")
        paths = sorted(os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
        found = list(read(shuffled(paths, chooser), size))
        if not found:
            raise ValueError(f"input={folder!r} holds no file with text that can be read; give a directory that does")
        return found
    logs = list(read(paths_of(LOGS), size // 3))
    pages = list(read(shuffled(paths_of(PAGES), chooser), size // 3))
    left = size - sum(len(batch.text) for batch in logs + pages)
    stdlib = sysconfig.get_path("stdlib")
    return logs + pages + list(read(shuffled(paths_of(os.path.join(stdlib, one) for one in SOURCES), chooser), left))


def paths_of(patterns: Iterable[str]) -> list[str]:
    return sorted(chain.from_iterable(map(glob.glob, patterns)))


def shuffled(paths: list[str], chooser: random.Random) -> list[str]:
    chooser.shuffle(paths)
    return paths


def read(paths: Iterable[str], size: int) -> Iterator[Batch]:
    """Batches of these files until there are so many characters. What cannot be read is passed over."""
    origin, held, length = "", [], 0
    for path in paths:
        if size <= 0:
            break
        for line in lines_of(path):
            origin = origin or path
            held.append(line)
            length += len(line)
            if length >= min(BATCH, size):
                yield Batch(origin, "".join(held))
                size -= length
                origin, held, length = "", [], 0
                if size <= 0:
                    break
    if held and size > 0:
        yield Batch(origin, "".join(held))


def lines_of(path: str) -> list[str]:
    """The lines of a file, also of a compressed one; none of one that is no text, or that this user may not read."""
    try:
        with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
            content = file.read(FILE_MOST)
    except (OSError, EOFError, ValueError, zlib.error):
        return []
    if b"\0" in content:
        return []
    return [line[:LINE_MOST] + "\n" for line in content.decode("utf-8", "replace").split("\n") if line.strip()]


# ---- tenants -------------------------------------------------------------------------------------------------------

BOOKS = (
    (
        Rule("day", r"^(\d{4}-\d\d-\d\d)[ T]"),
        Rule("state", r"\bstatus ([\w-]+)"),
        Rule("version", r"\b\d+(?:\.\d+)+\b"),
        Rule("package", r"\b(lib[a-z0-9.+-]+):"),
    ),
    (
        Rule("function", r"^\s*def (\w+)"),
        Rule("module", r"^(?:import|from) ([\w.]+)"),
        Rule("raised", r"\braise (\w+)"),
        Rule("call", r"\b(\w+)\("),
    ),
    (
        Rule("acronym", r"\b[A-Z]{3,8}\b"),
        Rule("mail", r"[\w.+-]+@[\w-]+\.[\w.]+"),
        Rule("section", r"^\.SH (.+)$"),
        Rule("host", r"\bhttps?://([^\s/\"'<>)]+)"),
    ),
    (
        Rule("quoted", r"\"([^\"\n]{1,60})\""),
        Rule("option", r"(?<!\w)--([a-z][a-z-]+)"),
        Rule("number", r"\b0x[0-9a-fA-F]+\b"),
        Rule("path", r"(?<!\w)(/(?:usr|var|etc|tmp)/[\w./-]+)"),
    ),
)
HANGS = Rule("marked", r"((?:\w+\s?)+);;")
MENDED = Rule("marked", r"(\w+)\s?;;")
SWELLS = Rule("repeated", "5", "table")
POISON = "poison-"
FEW = 12
"""Batches of a tenant on probation."""


def healthy(count: int, batches: Sequence[Batch]) -> list[Tenant]:
    """So many tenants with ordinary rules, from "a" on; b, c and d are not among them."""
    letters = (letter for letter in "aefghijklmnopqrstuvwxyz")
    return [
        Tenant(name, book, tuple(batches)) for name, book in zip(islice(letters, count), cycle(BOOKS), strict=False)
    ]


def hanging(batches: Sequence[Batch]) -> tuple[Tenant, Tenant]:
    """b, and b as it is once its rule is mended. Its expression is at its worst where words follow words."""
    word = re.compile(r"\w+(?:\s\w+)*")
    chosen = sorted(batches, key=lambda batch: max(map(len, word.findall(batch.text)), default=0), reverse=True)
    few = tuple(chosen[:FEW])
    return Tenant("b", (HANGS,), few, False), Tenant("b", (MENDED,), few, False)


def swelling(batches: Sequence[Batch]) -> Tenant:
    """c: it gets the longest ones."""
    return Tenant("c", (SWELLS,), tuple(sorted(batches, key=lambda batch: -len(batch.text))[:FEW]), False)


def crashing(batches: Sequence[Batch], marker: str, poison: int, seed: int) -> Tenant:
    """d: `poison` of its batches end with a line that its parser dies of. It has a random word of this run, so no text
    found on a disk does that."""
    chooser = random.Random(seed)
    few = chooser.sample(list(batches), min(FEW, len(batches)))
    bad = [Batch(f"{POISON}{number}", f"{few[number % len(few)].text}{marker}\n") for number in range(poison)]
    mixed = few + bad
    chooser.shuffle(mixed)
    return Tenant("d", (Rule("length", marker, "parser"),), tuple(mixed), False)


def top(answer: dict[str, Counter[str]], most: int = 3) -> dict[str, list[tuple[str, int]]]:
    """By rule, the values found most often; of equal ones the first by the alphabet."""

    def by_count(entry: tuple[str, int]) -> Any:
        return -entry[1], entry[0]

    return {rule: sorted(counts.items(), key=by_count)[:most] for rule, counts in answer.items()}

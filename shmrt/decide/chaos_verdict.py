"""What a run under faults came to, judged by a run without: lost, duplicated, unexpected, corrupted.

A *history* is what came out of one run: each output with its *origin* (the numbers of the inputs that it was made of)
and a checksum of its value. Input by input, what came is compared with what comes without faults:

    lost          an expected output did not come, and no dead letter accounts for it
    duplicated    an expected output came more often than expected
    corrupted     in its place came another value, or one that changed on its way
    unexpected    an output that no expected one is missing for

The first three words are Jepsen's, of its queue tests; so is the fourth, for what was never put in. Besides: *given up*
(dead letters that there are none of without faults: accounted for, not lost), *out of order*, and *pending* (of a run
that was cut short: not yet lost).

    >>> calm, rough = History(), History()
    >>> for number, check in ((0, 11), (1, 22), (2, 33)): calm.add((number,), check)
    >>> for number, check in ((0, 11), (1, 99), (1, 22)): rough.add((number,), check)
    >>> found = judge(calm, rough, 3)
    >>> found.lost, found.duplicated, found.unexpected, found.corrupted
    (1, 0, 1, 0)
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields

__all__ = ["EXAMPLES_MOST", "History", "Origin", "Verdict", "judge"]

Origin = tuple[int, ...]
EXAMPLES_MOST = 10


class History:
    """The outputs of one run in their order; 16 bytes each, unless several inputs made one."""

    __slots__ = ("_checks", "_groups", "_numbers", "balanced", "ended", "letters", "torn")

    def __init__(self) -> None:
        self._numbers = array("q")
        self._checks = array("Q")
        self._groups: list[Origin] = []
        self.torn: set[int] = set()
        """Places of outputs that were not on arrival what the function had returned."""
        self.letters: list[Origin] = []
        """Of what was given up as a dead letter."""
        self.ended = True
        """False: it was cut short, and what is missing may still have come."""
        self.balanced = True

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, origin: Origin, check: int, *, torn: bool = False) -> None:
        """The next output."""
        if torn:
            self.torn.add(len(self._numbers))
        if len(origin) == 1 and origin[0] >= 0:
            self._numbers.append(origin[0])
        else:
            self._numbers.append(-1 - len(self._groups))
            self._groups.append(origin)
        self._checks.append(check)

    def __iter__(self) -> Iterator[tuple[Origin, int, bool]]:
        for place, (number, check) in enumerate(zip(self._numbers, self._checks, strict=True)):
            yield (number,) if number >= 0 else self._groups[-1 - number], check, place in self.torn

    @property
    def batched(self) -> bool:
        """Whether several inputs made an output."""
        return bool(self._groups)

    def same(self, other: History) -> bool:
        """Whether exactly the same came, in the same order."""
        return (
            self._numbers == other._numbers
            and self._checks == other._checks
            and self._groups == other._groups
            and not self.torn
            and not other.torn
            and self.letters == other.letters
        )


@dataclass(slots=True)
class Verdict:
    """Outputs by what became of them; `given_up` counts inputs."""

    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    corrupted: int = 0
    out_of_order: int = 0
    given_up: int = 0
    pending: int = 0
    regrouped: int = 0
    """Batches of other members than without faults: their members are all accounted for, their values not compared."""
    changed_on_the_way: int = 0
    """Those of the corrupted ones whose value was another on arrival than when its function returned it."""
    unbalanced: int = 0
    """Runs whose report did not account for every input."""
    examples: dict[tuple[str, Origin], int] = field(default_factory=dict)
    """Some of what is wrong: the word, the inputs that it happened to, and how often."""

    @property
    def holds(self) -> bool:
        wrong = (self.lost, self.duplicated, self.unexpected, self.corrupted, self.out_of_order, self.unbalanced)
        return not any(wrong)

    def count(self, word: str, origin: Origin, times: int = 1) -> None:
        if times > 0:
            setattr(self, word, getattr(self, word) + times)
            if word not in ("given_up", "pending", "regrouped"):
                self._show((word, origin), times)

    def add(self, other: Verdict) -> None:
        """Of one more run."""
        for one in fields(self):
            if one.name != "examples":
                setattr(self, one.name, getattr(self, one.name) + getattr(other, one.name))
        for what, times in other.examples.items():
            self._show(what, times)

    def _show(self, what: tuple[str, Origin], times: int) -> None:
        if what in self.examples or len(self.examples) < EXAMPLES_MOST:
            self.examples[what] = self.examples.get(what, 0) + times


class _Place:
    """What an origin was expected to give, and what it gave."""

    __slots__ = ("came", "torn", "wanted")

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self.came: list[int] = []
        self.torn = 0


def judge(calm: History, rough: History, fed: int, *, ordered: bool = True, members_count: bool = True) -> Verdict:
    """What `rough` is, if `calm` is how it should be. The first `fed` inputs were put into it; `ordered` says that its
    outputs are to be in the order of the inputs, `members_count` that each batch gives one output, whoever is in it."""
    found = Verdict(unbalanced=int(rough.ended and not rough.balanced))
    if calm.same(rough) and rough.ended:
        return found
    places: dict[Origin, _Place] = {}
    for origin, check, _ in calm:
        if origin[0] < fed:
            places.setdefault(origin, _Place()).wanted.append(check)
    latest = -1
    for origin, check, torn in rough:
        place = places.setdefault(origin, _Place())
        place.torn += torn
        if not torn:
            place.came.append(check)
        if ordered and origin[0] < latest:
            found.count("out_of_order", origin)
        latest = max(latest, origin[0])
    excused = _excused(calm, rough, fed, found)
    batched = calm.batched or rough.batched  # then a single number may be a batch as well
    missing: list[Origin] = []
    more: list[Origin] = []
    for origin, place in places.items():
        if place.wanted == place.came and not place.torn:
            continue
        if batched and not place.torn and not (place.wanted and place.came):
            (missing if place.wanted else more).append(origin)
        else:
            _compare(origin, place, excused, rough.ended, found, ordered)
    if members_count:
        _compare_groups(missing, more, excused, rough.ended, fed, found)
    found.count("regrouped", (), len(more))
    return found


def _excused(calm: History, rough: History, fed: int, found: Verdict) -> set[int]:
    """The inputs that a dead letter accounts for, if there is none without faults; counts them."""
    letters = Counter(rough.letters) - Counter(calm.letters)
    numbers = {number for origin in letters for number in origin if number < fed}
    found.count("given_up", (), len(numbers))
    return numbers


def _compare(origin: Origin, place: _Place, excused: set[int], ended: bool, found: Verdict, ordered: bool) -> None:
    wanted, came = Counter(place.wanted), Counter(place.came)
    if wanted == came and not place.torn:
        if ordered and len(origin) == 1:  # the outputs of one input, among themselves
            found.count("out_of_order", origin)
        return
    absent = (wanted - came).total()
    surplus = came - wanted
    again = sum(times for check, times in surplus.items() if check in wanted)
    other = surplus.total() - again
    found.count("duplicated", origin, again)
    swapped = min(absent, other)
    found.count("corrupted", origin, swapped + place.torn)
    found.changed_on_the_way += place.torn
    found.count("unexpected", origin, other - swapped)
    absent -= min(absent, swapped + place.torn)
    if not excused.isdisjoint(origin):
        return
    found.count("lost" if ended else "pending", origin, absent)


def _compare_groups(
    missing: list[Origin], more: list[Origin], excused: set[int], ended: bool, fed: int, found: Verdict
) -> None:
    """Batches made up differently: a dead letter, a batch's time or the end of the source moves all that follow. Each
    input must be in as many of them as before."""
    before, after = _members(missing), _members(more)
    for number in sorted(before.keys() | after.keys()):
        if number >= fed:
            found.count("unexpected", (number,), after[number])
            continue
        found.count("duplicated", (number,), after[number] - before[number])
        if number not in excused:
            found.count("lost" if ended else "pending", (number,), before[number] - after[number])


def _members(origins: Iterable[Origin]) -> Counter[int]:
    return Counter(number for origin in origins for number in origin)

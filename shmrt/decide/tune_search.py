"""Decides which trial comes next, and what is recommended in the end.

    look      the setting as it is, three times: what is the bottleneck, and how much do equal trials differ?
    search    one move at a time (`tune_moves`) against the best so far, in pairs; what seems faster is the best from
              then on, and moves are made anew from it
    prune     of several changes, each is taken back once: one that is not missed is left out
    confirm   the best against the setting as it is, in pairs that nothing was chosen by: only they say how sure it is

The search keeps back as much of the budget as a confirmation needs, and if that was too little the confirmation may
take half as much again to its first look. If it is not confirmed, the setting stays as it is: "no difference seen" is
an answer.

A trial with a `problem` (other results, an error, no room) ends its change, and says why. In the setting as it is, it
is the caller's to deal with: it must not be told here.

    >>> tuner = Tuner(("slow",), (Knobs(workers=1),), cpus=4, budget_s=60.0)
    >>> machine = lambda setting: Trial(100, 1.0 / setting[0].workers, stages=(
    ...     StageFacts("slow", "map", setting[0].workers, 100, busy_s=1.0),))
    >>> now = 0.0
    >>> while (ask := tuner.ask(now)) is not None:
    ...     now += 0.5
    ...     tuner.tell(machine(ask.setting), 0.5)
    >>> outcome = tuner.outcome()
    >>> outcome.setting[0].workers, outcome.verdict, round(outcome.estimate.ratio, 2)
    (8, 'faster', 8.0)
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from shmrt.decide.tune_bottleneck import Bottleneck, verdict
from shmrt.decide.tune_compare import LEAST, LOOKS, Estimate, confirm, median, screen
from shmrt.decide.tune_moves import moves
from shmrt.decide.tune_words import Knobs, Move, Setting, StageFacts, Trial, changed, differences, setting_text

__all__ = ["Ask", "Bottleneck", "Estimate", "Knobs", "Outcome", "StageFacts", "Trial", "Tried", "Tuner"]

LOOK_TRIALS = 3
OVERTIME = 1.5
RESERVE = 1.25
"""Pairs take longer now and then; the confirmation must not be what falls short."""


@dataclass(frozen=True, slots=True)
class Ask:
    """The trial to run next. `what` says for people what it is about."""

    setting: Setting
    phase: str
    what: str


@dataclass(slots=True)
class Tried:
    """One change and what came of it: `faster`, `no`, `needed`, `not needed`, `unfinished`, or its problem."""

    setting: Setting
    text: str
    why: str
    phase: str
    ratios: list[float] = field(default_factory=list)
    result: str = "unfinished"
    rate: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """verdict: `faster` (the setting is confirmed), `same` (not confirmed), `none` (nothing seemed faster) or `unsure`
    (the budget ended first). `setting` is what is recommended: without `faster`, the one that was there."""

    verdict: str
    setting: Setting
    start: Setting
    best: Setting
    estimate: Estimate
    before: Bottleneck
    after: Bottleneck
    noise: float
    rate: float
    tried: tuple[Tried, ...]
    untried: int
    trials: int
    looked: tuple[Trial, ...]


class Tuner:
    """`ask` says what to run, `tell` takes what it showed; until `ask` gives None. `allowed(setting)` is None for what
    may be tried, else the reason why not."""

    def __init__(
        self,
        names: Sequence[str],
        start: Setting,
        *,
        cpus: int,
        budget_s: float,
        workers_most: int | None = None,
        allowed: Callable[[Setting], str | None] = lambda setting: None,
    ) -> None:
        self._names, self._start, self._cpus, self._budget_s = tuple(names), start, cpus, budget_s
        given = max((knobs.workers for knobs in start), default=1)
        self._workers_most = max(2 * cpus, given) if workers_most is None else workers_most
        self._allowed = allowed
        self._best = start
        self._phase = "look"
        self._trials: dict[Setting, list[Trial]] = {start: []}
        self._costs: dict[Setting, list[float]] = {}
        self._queue: deque[Move] = deque()
        self._seen: set[Setting] = {start}
        self._keep: deque[tuple[int, str]] = deque()
        self._duel: Tried | None = None
        self._pair: list[tuple[Setting, float]] = []
        self._tried: list[Tried] = []
        self._confirmed: list[float] = []
        self._verdict = "unsure"
        self._asked: Ask | None = None

    # -- what to run

    def ask(self, now_s: float) -> Ask | None:
        """The next trial, `now_s` seconds after the start; None when it is over."""
        self._asked = self._choose(now_s)
        return self._asked

    def _choose(self, now_s: float) -> Ask | None:
        if self._phase == "look":
            if len(self._trials[self._start]) < LOOK_TRIALS:
                return Ask(self._start, "look", "as it is")
            self._phase = "search"
            self._refill()
        if self._phase in ("search", "prune") and self._duel is None and not self._next_duel(now_s):
            self._phase = "done" if self._best == self._start else "confirm"
            if self._phase == "done" and not self._queue:
                self._verdict = "none"
        if self._phase in ("search", "prune") and self._must_stop(now_s) and not self._pair:
            self._duel = None
            self._phase = "done" if self._best == self._start else "confirm"
        if self._phase == "confirm" and not self._pair and now_s + self._pair_s() > self._budget_s * self._patience():
            self._phase = "done"
        if self._phase == "done":
            return None
        rival = self._duel.setting if self._duel is not None else self._best
        against = self._best if self._duel is not None else self._start
        done = self._duel.ratios if self._duel is not None else self._confirmed
        first, second = (against, rival) if len(done) % 2 == 0 else (rival, against)
        text = self._duel.text if self._duel is not None else "the best against the setting as it is"
        return Ask(second if self._pair else first, self._phase, text)

    def _pair_s(self) -> float:
        """What a pair of the best and the setting as it is takes: the slower of two may take many times as long."""
        return sum(median(self._costs[setting][-9:]) for setting in (self._start, self._best) if setting in self._costs)

    def _patience(self) -> float:
        """With all that was spent to find it, the first look at a confirmation is worth some more time."""
        return OVERTIME if len(self._confirmed) < LOOKS[0] else 1.0

    def _must_stop(self, now_s: float) -> bool:
        """Whether what is left is just enough to confirm what is there; with nothing to confirm, enough to find it."""
        reserve = RESERVE * LOOKS[0] * self._pair_s()
        return now_s + self._pair_s() > self._budget_s - reserve

    def _refill(self) -> None:
        trials = self._trials[self._best]
        found = verdict(trials, self._cpus)
        middle = sorted(trials, key=lambda trial: trial.rate)[len(trials) // 2]
        self._queue = deque(moves(self._best, middle, found, cpus=self._cpus, workers_most=self._workers_most))

    def _next_duel(self, now_s: float) -> bool:
        """Whether there is something to try, and time for it."""
        while self._phase == "search":
            if not self._queue or self._must_stop(now_s):
                self._begin_prune()
                break
            move = self._queue.popleft()
            setting = move.of(self._best)
            if setting in self._seen:
                continue
            self._seen.add(setting)
            tried = self._note(setting, move.why)
            reason = self._allowed(setting)
            if reason is None:
                self._duel = tried
                return True
            tried.result = reason
        while self._keep and not self._must_stop(now_s):
            stage, knob = self._keep.popleft()
            without = changed(self._best, stage, **{knob: getattr(self._start[stage], knob)})
            if without != self._start and self._allowed(without) is None:
                self._duel = self._note(without, "is it missed when it is taken back?")
                return True
        return False

    def _begin_prune(self) -> None:
        self._phase = "prune"
        pairs = enumerate(zip(self._start, self._best, strict=True))
        self._keep = deque((at, knob) for at, (old, new) in pairs for knob in differences(old, new))
        if len(self._keep) < 2:
            self._keep.clear()  # without its only change it is the setting as it is, which confirming is about

    def _note(self, setting: Setting, why: str) -> Tried:
        text = setting_text(self._names, self._best, setting)
        tried = Tried(setting, text, why, self._phase)
        self._tried.append(tried)
        return tried

    # -- what it showed

    def tell(self, trial: Trial, cost_s: float) -> None:
        """What the trial that was asked for last showed, and how long it took in all."""
        if self._asked is None:
            raise ValueError("no trial was asked for")
        setting, self._asked = self._asked.setting, None
        if self._phase == "look":
            self._costs.setdefault(setting, []).append(cost_s)
            self._trials[self._start].append(trial)
            return
        if trial.problem is not None:
            self._give_up(trial.problem)
            return
        self._costs.setdefault(setting, []).append(cost_s)
        self._trials.setdefault(setting, []).append(trial)
        self._pair.append((setting, trial.rate))
        if len(self._pair) == 2:
            rates = dict(self._pair)
            self._pair = []
            if self._duel is not None:
                self._judge_duel(self._duel, rates)
            else:
                self._judge_best(rates[self._best] / rates[self._start])

    def _give_up(self, problem: str) -> None:
        self._pair = []
        if self._duel is not None:
            self._duel.result = problem
            self._duel = None
            return
        self._tried.append(Tried(self._best, setting_text(self._names, self._start, self._best), "", "confirm"))
        self._tried[-1].result = problem
        self._verdict, self._phase = "same", "done"

    def _judge_duel(self, duel: Tried, rates: dict[Setting, float]) -> None:
        pruning = duel.phase == "prune"
        ratio = rates[duel.setting] / rates[self._best]
        duel.ratios.append(ratio)
        duel.rate = median([trial.rate for trial in self._trials[duel.setting]])
        # What is to stay must be seen to be faster than what is there without it.
        ratios = [1 / one for one in duel.ratios] if pruning else duel.ratios
        found = screen(ratios, least=self._least())
        if found == "more":
            return
        self._duel = None
        if pruning:
            duel.result = "needed" if found == "faster" else "not needed"
            if found != "faster":
                self._best = duel.setting
            return
        duel.result = found
        if found == "faster":
            self._best = duel.setting
            self._refill()

    def _judge_best(self, ratio: float) -> None:
        self._confirmed.append(ratio)
        found = confirm(self._confirmed).verdict
        if found != "more":
            self._verdict = "faster" if found == "faster" else "same"
            self._phase = "done"

    def _least(self) -> float:
        """The gain that is asked of a change: more than equal trials differ by chance, within reason."""
        return max(LEAST, min(0.15, self.noise() / 2))

    def noise(self) -> float:
        """How far apart trials of the setting as it is were, against their median. The first warms caches up."""
        rates = [trial.rate for trial in self._trials[self._start][1:]]
        return (max(rates) - min(rates)) / max(median(rates), 1e-9) if rates else 0.0

    def outcome(self) -> Outcome:
        """What is known now; also before it is over."""
        sure = self._verdict == "faster"
        estimate = confirm(self._confirmed)
        best = self._trials.get(self._best, [])
        looked = self._trials[self._start]
        return Outcome(
            verdict=self._verdict,
            setting=self._best if sure else self._start,
            start=self._start,
            best=self._best,
            estimate=estimate,
            before=verdict(looked, self._cpus),
            after=verdict(best, self._cpus),
            noise=self.noise(),
            rate=median([trial.rate for trial in looked]) if looked else 0.0,
            tried=tuple(self._tried),
            untried=sum(move.of(self._best) not in self._seen for move in self._queue),
            trials=sum(map(len, self._trials.values())),
            looked=tuple(looked),
        )

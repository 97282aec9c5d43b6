"""What a run of `logmine_run.py` came to, and whether it is what was expected.

answers       every answer of a trusted tenant is the serial run's, alone and together, and none failed
throughput    together they get through at least `least` of what they get through alone
deadline      calls of b were killed at their deadline; once its rule is mended it has the serial run's answers
memory        calls of c ended in MemoryError, and none of its workers died of it
quarantine    exactly what d's parser dies of was given up, after three workers each; its other answers are right
health        `health()` was degraded while a breaker was open, and never unhealthy
events        the steps of b, c and d are in order
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from shmrt.examples import logmine
from shmrt.examples.logmine_story import Step, Story, in_order, told

__all__ = ["ORDER", "REFUSED", "Verdict", "behaviour", "judge"]

REFUSED = [*["killed"] * 3, "open", "half_open", "killed", "open"]
ORDER = {
    "b": [*REFUSED, "mended", "half_open", "close"],
    "c": ["open", "half_open", "open"],
    "d": [*["SIGSEGV"] * 3, "quarantined"],
}
"""What must be found of each, one after the other."""


class Verdict(NamedTuple):
    """`expected` says of each expectation whether it was met; `holds`: all were."""

    expected: dict[str, bool]
    trusted: int
    batches: int
    lines: int
    alone: float
    together: float
    share: float
    least: float
    calls: int
    wrong: int
    failed: dict[str, int]
    tenants: dict[str, dict[str, int]]
    opened: dict[str, int]
    quarantined: list[dict[str, Any]]
    health: dict[str, int]
    killed: int
    seed: int
    digest: str
    digests: dict[str, str]
    top: dict[str, list[tuple[str, int]]]
    story: list[str]
    stopped: bool

    @property
    def holds(self) -> bool:
        return all(self.expected.values())

    def text(self) -> str:
        b, c, d = (self.tenants[name] for name in "bcd")
        same = [part for part, digest in self.digests.items() if digest == self.digest]
        found = ", ".join(f"{rule} {first[0]} {first[1]:,} times" for rule, (first, *_) in self.top.items())
        given_up = ", ".join(f"{one['batch']} ({one['attempts']} x {one['how']})" for one in self.quarantined)
        looks = ", ".join(f"{count} x {status}" for status, count in sorted(self.health.items())) or "not asked"
        missing = ", ".join(name for name, met in self.expected.items() if not met)
        return "\n".join(
            [
                *(f"  {line}" for line in self.story),
                f"logmine: {self.trusted} trusted tenants beside b, c and d, on {self.lines:,} lines in {self.batches} "
                f"batches; of a: {found or 'nothing'}",
                f"  trusted  {self.alone:,.0f} lines/s alone, {self.together:,.0f} together: {self.share:.1%}, at "
                f"least {self.least:.0%} is wanted; {self.calls:,} calls, {self.wrong} wrong, "
                f"{sum(self.failed.values())} failed",
                f"  b  backtracks for ever: {b.get('TaskTimeout', 0)} calls killed at their deadline; its breaker "
                f"opened {self.opened['b']} times and refused {b.get('refused', 0)}; {b.get('answers', 0)} answers "
                "since its rule is mended",
                f"  c  exhausts memory: {c.get('MemoryError', 0)} MemoryErrors, {c.get('WorkerCrashed', 0)} workers "
                f"dead; its breaker opened {self.opened['c']} times and refused {c.get('refused', 0)}",
                f"  d  crashes its parser: quarantined {given_up or 'nothing'}; {d.get('answers', 0)} answers",
                f"  health  {looks}",
                *([f"  {self.killed} workers killed at random besides"] if self.killed else []),
                f"  seed {self.seed}; digest {self.digest}; same answer as the serial run: "
                f"{' and '.join(same) if same else 'NO'}",
                f"  as expected: {'yes' if self.holds else 'NO: ' + missing}",
            ]
        )


def behaviour(crew: Any, story: Story, right: dict[str, dict[int, logmine.Found]]) -> dict[str, bool]:
    """Of the expectations those that time makes true; `right`: what b and d must find."""
    b, c, d = crew.doubtful
    trusted = crew.trusted
    poison = set(range(len(d.tenant.batches))) - set(right["d"])
    return {
        "answers": all(one.whole() and not one.wrong and not one.failed for one in trusted),
        "deadline": b.counts["TaskTimeout"] >= 3 and b.found == right["b"],
        "memory": c.counts["MemoryError"] > 0 and not any(died(step) for step in story.steps if step.tenant == "c"),
        "quarantine": d.found == right["d"]
        and set(d.quarantined) == poison
        and all(error.attempts == 3 for error in d.quarantined.values()),
        "events": not story.missed and all(in_order(story.steps, one, wanted) for one, wanted in ORDER.items()),
    }


def died(step: Step) -> bool:
    """By itself. SIGKILL is what chaos sends."""
    return step.what.startswith("SIG") and step.what != "SIGKILL"


def judge(
    crew: Any,
    story: Story,
    right: dict[str, dict[int, logmine.Found]],
    *,
    seed: int,
    killed: int,
    least: float,
    stopped: bool,
) -> Verdict:
    """Of a run that has ended."""
    trusted, d = crew.trusted, crew.doubtful[2]
    digest = logmine.digest({one.tenant.name: logmine.add_up(one.tenant.rules, one.expected) for one in trusted})
    digests = {
        part: logmine.digest(
            {one.tenant.name: logmine.add_up(one.tenant.rules, one.seen[part].values()) for one in trusted}
        )
        for part in ("alone", "together")
    }
    clock = crew.clock
    statuses = crew.wellness.statuses
    met = behaviour(crew, story, right)
    met["answers"] = met["answers"] and set(digests.values()) == {digest}
    met["throughput"] = clock.share() >= least
    # Who kills workers at random may find the trusted pool without one: it is unhealthy then.
    met["health"] = statuses["degraded"] > 0 and not crew.wellness.missed and bool(killed or not statuses["unhealthy"])
    first = trusted[0]
    tops = logmine.top(logmine.add_up(first.tenant.rules, first.expected))
    return Verdict(
        expected=met,
        trusted=len(trusted),
        batches=len(first.tenant.batches),
        lines=sum(batch.lines for batch in first.tenant.batches),
        alone=clock.rate("alone"),
        together=clock.rate("together"),
        share=clock.share(),
        least=least,
        calls=sum(one.calls for one in trusted),
        wrong=sum(one.wrong for one in trusted),
        failed=dict(sum((one.failed for one in trusted), Counter[str]())),
        tenants={one.tenant.name: dict(one.counts) for one in crew.doubtful},
        opened={one.tenant.name: one.breaker.stats()["counters"]["opened"] for one in crew.doubtful},
        quarantined=[
            {
                "batch": d.tenant.batches[number].origin,
                "attempts": error.attempts,
                "how": error.signal.name if error.signal else f"exit code {error.exitcode}",
            }
            for number, error in sorted(d.quarantined.items())
        ],
        health=dict(statuses),
        killed=killed,
        seed=seed,
        digest=digest,
        digests=digests,
        top={rule: most for rule, most in tops.items() if most},
        story=told(story.steps, chaos=killed > 0),
        stopped=stopped,
    )

"""The tenants of logmine: answers are pure, the wrong ones are found out, and each expectation can fail."""

from __future__ import annotations

import gzip
import random
import secrets
import signal
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmrt import CircuitOpen, PoisonMessage, TaskTimeout, WorkerCrashed
from shmrt.examples import logmine, logmine_run, logmine_story, logmine_tenants, logmine_verdict

WATCHDOG_S = 300
"""Only ends a hang; nothing is measured by it."""


# ---- rules and text ------------------------------------------------------------------------------------------------


def folder_of_text(folder: Path) -> str:
    """Two texts, one of them compressed, and what is none."""
    (folder / "one.log").write_text("".join(f"2024-05-0{n % 9 + 1} status installed lib{n}:amd64\n" for n in range(99)))
    with gzip.open(folder / "page.1.gz", "wb") as file:
        file.write(b".SH NAME\nfoo - a page; see https://example.org/foo\n" * 50)
    (folder / "broken.gz").write_bytes(b"\x1f\x8b\x08 cut off")
    (folder / "picture").write_bytes(bytes(range(256)))
    (folder / "empty").write_bytes(b"")
    (folder / "gone").symlink_to(folder / "nowhere")
    return str(folder)


def test_text_is_what_can_be_read_in_batches_of_whole_lines(tmp_path: Path) -> None:
    folder = folder_of_text(tmp_path)
    batches = logmine.batches_of(folder)
    text = "".join(batch.text for batch in batches)
    assert text.count(".SH NAME\n") == 50 and text.count("status installed") == 99 and "\0" not in text
    assert all(batch.text.endswith("\n") for batch in batches)
    assert sum(batch.lines for batch in batches) == 199
    assert logmine.batches_of(folder, seed=7) == logmine.batches_of(folder, seed=7)


def test_there_is_always_text_here() -> None:
    """The sources of this Python at least; the size is a bound, up to a line."""
    batches = logmine.batches_of(size=300_000, seed=1)
    assert 300_000 <= sum(len(batch.text) for batch in batches) < 300_000 + len(batches) * (logmine.LINE_MOST + 2)
    assert batches != logmine.batches_of(size=300_000, seed=2)
    few = logmine.batches_of(size=1000)
    assert 1000 <= sum(len(batch.text) for batch in few) < 1000 + len(few) * (logmine.LINE_MOST + 2)


@pytest.mark.parametrize(("make", "words"), [("", "holds no file with text"), ("file", "is not a directory")])
def test_input_without_text(make: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "here"
    path.write_text("x\n") if make else path.mkdir()
    with pytest.raises((ValueError, NotADirectoryError), match=words):
        logmine.batches_of(str(path))


def test_the_digest_does_not_depend_on_order_and_sees_every_change(tmp_path: Path) -> None:
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    batches = logmine.batches_of(folder_of_text(tmp_path))
    tenants = logmine.healthy(4, batches)
    found = logmine.serial(tenants)

    def word(of: dict[str, list[logmine.Found]]) -> str:
        return logmine.digest({one.name: logmine.add_up(one.rules, of[one.name]) for one in tenants})

    before = word(found)
    mixed = {name: random.Random(seed).sample(some, len(some)) for name, some in reversed(found.items())}
    assert word(mixed) == before
    for name, some in found.items():
        for rule, counts in enumerate(some[0]):
            for value in counts:
                more = ({**counts, value: counts[value] + 1}, *some[0][rule + 1 :])
                assert word({**found, name: [(*some[0][:rule], *more), *some[1:]]}) != before
    assert any(counts for some in found.values() for counts in some[0])


def test_healthy_tenants_are_not_b_c_d() -> None:
    names = [one.name for one in logmine.healthy(23, [])]
    assert len(set(names)) == 23 and names[0] == "a" and not set(names) & set("bcd")


def test_each_rule_of_the_books_has_one_group_at_most() -> None:
    import re

    assert all(re.compile(rule.pattern).groups <= 1 for book in logmine.BOOKS for rule in book)


def test_repeats_and_lengths() -> None:
    text = "aaaab\ncc\n"
    rules = (logmine.Rule("runs", "3", "table"), logmine.Rule("lengths", "\0", "parser"))
    assert logmine.mine(rules, text) == ({"a": 2}, {"8": 1, "4": 1})


def alone(code: str) -> subprocess.CompletedProcess[str]:
    head = "from shmrt.examples import logmine\nimport resource\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    return subprocess.run([sys.executable, "-c", head + code], capture_output=True, text=True, timeout=WATCHDOG_S)


def test_only_the_marker_of_this_run_crashes_the_parser() -> None:
    batches = [logmine.Batch("x", f"line {n}\n" * 20) for n in range(5)]
    tenant = logmine.crashing(batches, "0123", 3, 1)
    bad = [batch for batch in tenant.batches if batch.origin.startswith(logmine.POISON)]
    assert len(bad) == 3 and len(tenant.batches) == 8
    assert logmine.mine((logmine.Rule("length", "4567", "parser"),), bad[0].text)
    ended = alone(f"logmine.mine({tenant.rules!r}, {bad[0].text!r})".replace("Rule(", "logmine.Rule("))
    assert ended.returncode == -signal.SIGSEGV, ended.stderr


def test_memory_on_probation_is_bounded() -> None:
    ended = alone(
        "logmine.on_probation(32 << 20, 1)\nimport os\nassert os.nice(0) >= 1\n"
        "try: logmine.mine((logmine.Rule('r', '5', 'table'),), 'x' * 65536)\nexcept MemoryError: print('bounded')\n"
        "print(logmine.mine((logmine.Rule('r', '[a-z]'),), 'x' * 65536))"
    )
    assert ended.stdout == "bounded\n({'x': 65536},)\n", ended.stderr


# ---- the story -----------------------------------------------------------------------------------------------------


def event(seq: int, name: str, **about: Any) -> dict[str, Any]:
    return {"seq": seq, "ns": seq * 10**9, "name": name, "measurements": {}, "metadata": about}


def test_events_become_steps_once_each_and_gaps_are_counted() -> None:
    events = [
        event(1, "worker.ready", pool="tenant-b", worker=0),
        event(2, "worker.exit", pool="tenant-b", reason="killed by signal 9", ordered=True),
        event(3, "worker.exit", pool="tenant-d", reason="killed by signal 11", ordered=False),
        event(4, "worker.exit", pool="proven", reason="killed by signal 9", ordered=False),
        event(5, "breaker.open", where="tenant-b", kind="breaker", state="open", was="closed"),
        event(8, logmine_story.QUARANTINED, where="tenant-d", kind="task", state="poison-0, 3 x SIGSEGV", was="tried"),
    ]
    story = logmine_story.Story(0)
    story.hear(events[:3])
    story.hear(events)
    assert [(step.tenant, step.what) for step in story.steps] == [
        ("b", "killed"),
        ("d", "SIGSEGV"),
        ("b", "open"),
        ("d", "quarantined"),
    ]
    assert story.missed == 2
    assert logmine_story.told(story.steps)[-1] == "  8.0 s  d  quarantined: poison-0, 3 x SIGSEGV"


def test_order_is_that_of_one_tenant() -> None:
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    choose = random.Random(seed)
    for _ in range(200):
        steps = [logmine_story.Step(n, choose.choice("bc"), choose.choice("xyz")) for n in range(choose.randrange(12))]
        wanted = [choose.choice("xyz") for _ in range(choose.randrange(4))]
        mine = [step.what for step in steps if step.tenant == "b"]
        places = [(0, 0)]  # by hand: how far into `wanted` one gets, taking or leaving each step
        for what in mine:
            places += [(at + 1, 0) for at, _ in places if at < len(wanted) and wanted[at] == what]
        assert logmine_story.in_order(steps, "b", wanted) == any(at == len(wanted) for at, _ in places)


def test_a_long_story_is_cut_in_the_middle() -> None:
    steps = [logmine_story.Step(n, "b", "open" if n % 2 else "half_open") for n in range(100)]
    lines = logmine_story.told(steps, 10)
    assert len(lines) == 11 and "90 lines more" in lines[5]
    assert lines[0].startswith("  0.0 s") and lines[-1].startswith(" 99.0 s")


# ---- the tenants ---------------------------------------------------------------------------------------------------


class FakePool:
    """Each submit ends as `outcome(text)` says: what it returns, or raises."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome
        self.texts: list[str] = []

    def options(self, **_: Any) -> FakePool:
        return self

    def submit(self, fn: Any, rules: Any, text: str) -> Future[Any]:
        self.texts.append(text)
        future: Future[Any] = Future()
        try:
            future.set_result(self.outcome(text))
        except CircuitOpen:
            raise
        except Exception as error:
            future.set_exception(error)
        return future


def tenant_of(count: int, trusted: bool) -> logmine.Tenant:
    batches = tuple(logmine.Batch(f"origin-{n}", f"{n}\n") for n in range(count))
    return logmine.Tenant("x", (logmine.Rule("digit", r"\d"),), batches, trusted)


def on_probation(outcome: Any, count: int = 3) -> tuple[logmine_tenants.Probation, FakePool]:
    pool = FakePool(outcome)
    gate = threading.Event()
    gate.set()
    breaker: Any = SimpleNamespace(name=f"unit-{secrets.token_hex(8)}")
    one = logmine_tenants.Probation(tenant_of(count, False), pool, breaker, gate)
    one.limit = SimpleNamespace(acquire=lambda: 0.0)  # type: ignore[assignment]
    return one, pool


def raising(error: Exception) -> Any:
    raise error


def until(one: logmine_tenants.Probation, enough: Any) -> None:
    """Runs it in this thread until that is true."""
    try_one = one.try_one

    def counted(number: int) -> None:
        try_one(number)
        if enough():
            one.over.set()

    one.try_one = counted  # type: ignore[method-assign]
    one.run()
    if one.mistake is not None:
        raise one.mistake


def test_what_kills_its_workers_is_not_tried_again() -> None:
    poison = PoisonMessage("x", attempts=3, signal=signal.SIGSEGV)
    one, pool = on_probation(lambda text: raising(poison) if text == "1\n" else ({text: 1},))
    until(one, lambda: len(pool.texts) == 20)
    assert pool.texts.count("1\n") == 1 and one.quarantined == {1: poison}
    assert one.found == {0: ({"0\n": 1},), 2: ({"2\n": 1},)}


@pytest.mark.parametrize("error", [TaskTimeout("x"), MemoryError(), WorkerCrashed("x")])
def test_what_fails_is_tried_again_after_the_others(error: Exception) -> None:
    one, pool = on_probation(lambda text: raising(error) if len(pool.texts) == 1 else ({text: 1},))
    until(one, lambda: len(pool.texts) == 4)
    assert pool.texts == ["0\n", "1\n", "2\n", "0\n"]
    assert one.counts == Counter({type(error).__name__: 1, "answers": 3}) and len(one.found) == 3


def test_a_refusal_costs_no_turn() -> None:
    one, pool = on_probation(lambda text: raising(CircuitOpen("x", retry_after=0.0)) if len(pool.texts) < 3 else ())
    until(one, lambda: len(pool.texts) == 4)
    assert pool.texts == ["0\n", "0\n", "0\n", "1\n"] and one.counts["refused"] == 2


def test_what_broken_rules_found_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(logmine_tenants, "note", lambda *what: told.append(what))
    one, pool = on_probation(lambda text: one.mend(()) if len(pool.texts) == 2 else ({text: 1},))
    until(one, lambda: len(pool.texts) == 3)
    assert one.found == {2: ({"2\n": 1},)} and told[0][:2] == (logmine_story.MENDED, "tenant-x")


def test_a_mistake_of_ours_is_kept() -> None:
    one, _ = on_probation(lambda text: raising(KeyError("ours")))
    one.run()
    assert isinstance(one.mistake, KeyError) and one.at_rest.is_set()


def test_a_wrong_answer_of_a_trusted_tenant_is_seen() -> None:
    tenant = tenant_of(3, True)
    expected = logmine.serial([tenant])["x"]
    clock = logmine_tenants.Clock()
    clock.begin("alone")

    def outcome(text: str) -> Any:
        if len(pool.texts) > 8:
            one.over.set()
        if len(pool.texts) in (2, 3):
            raise TaskTimeout("x")
        return ({"nonsense": 1},) if len(pool.texts) == 5 else logmine.mine(tenant.rules, text)

    pool = FakePool(outcome)
    one = logmine_tenants.Trusted(tenant, pool, expected, clock, 1)
    one.run()
    clock.end()
    assert (one.wrong, one.failed, one.mistake) == (1, {"TaskTimeout": 2}, None)
    assert clock.done["alone"][0][0] == 7 and not one.whole()  # nothing was mined together


def test_the_share_is_of_all_rounds_but_the_first() -> None:
    clock = logmine_tenants.Clock()
    assert clock.share() == 0.0
    clock.done = {"alone": [(0, 9.0), (100, 1.0), (300, 3.0)], "together": [(7, 1.0), (90, 2.0), (90, 1.0)]}
    assert (clock.rate("alone"), clock.rate("together"), clock.share()) == (100.0, 60.0, 0.6)


# ---- the verdict ---------------------------------------------------------------------------------------------------


def run_of() -> tuple[Any, logmine_story.Story, dict[str, Any]]:
    """A crew that has done what it should."""
    batches = [logmine.Batch(f"o{n}", f"word {n} 1.2.3\n" * 5) for n in range(4)]
    trusted = []
    for tenant in logmine.healthy(2, batches):
        expected = logmine.serial([tenant])[tenant.name]
        seen = {part: dict(enumerate(expected)) for part in ("alone", "together")}
        one = SimpleNamespace(tenant=tenant, expected=expected, seen=seen, wrong=0, failed=Counter[str](), calls=8)
        one.whole = lambda one=one: all(len(some) == 4 for some in one.seen.values())
        trusted.append(one)
    b, mended = logmine.hanging(batches)
    d = logmine.crashing(batches, "0123", 2, 1)
    right = logmine_run.right_answers(mended, d)
    poison = set(range(len(d.batches))) - set(right["d"])
    stats = {"counters": {"opened": 3}}
    doubtful = [
        SimpleNamespace(
            tenant=tenant,
            counts=Counter({"TaskTimeout": 5, "MemoryError": 5}),
            found=dict(right.get(tenant.name, {})),
            quarantined={n: PoisonMessage("x", attempts=3, signal=11) for n in poison} if tenant is d else {},
            breaker=SimpleNamespace(stats=lambda: stats),
        )
        for tenant in (b, logmine.swelling(batches), d)
    ]
    clock = logmine_tenants.Clock()
    clock.done = {"alone": [(0, 1.0), (100, 1.0)], "together": [(0, 1.0), (95, 1.0)]}
    wellness = SimpleNamespace(statuses=Counter(degraded=3, healthy=1), missed=0)
    story = logmine_story.Story(0)
    for tenant, steps in logmine_verdict.ORDER.items():
        story.steps += [logmine_story.Step(n, tenant, what) for n, what in enumerate(steps)]
    return SimpleNamespace(trusted=trusted, doubtful=doubtful, clock=clock, wellness=wellness), story, right


def judged(change: Any = None, killed: int = 0) -> logmine_verdict.Verdict:
    crew, story, right = run_of()
    if change is not None:
        change(crew, story)
    return logmine_verdict.judge(crew, story, right, seed=1, killed=killed, least=0.9, stopped=False)


def test_the_verdict_holds_if_all_is_as_expected() -> None:
    verdict = judged()
    assert verdict.holds and verdict.share == 0.95, verdict.expected
    assert verdict.text().endswith("same answer as the serial run: alone and together\n  as expected: yes")


def step_out(story: logmine_story.Story, tenant: str, what: str) -> None:
    story.steps.remove(next(step for step in story.steps if step.tenant == tenant and step.what == what))


FAULTS: list[tuple[str, Any]] = [
    ("answers", lambda crew, story: setattr(crew.trusted[0], "wrong", 1)),
    ("answers", lambda crew, story: crew.trusted[1].failed.update(["TaskTimeout"])),
    ("answers", lambda crew, story: crew.trusted[0].seen["alone"].popitem()),
    ("answers", lambda crew, story: crew.trusted[0].seen["together"].update({0: ({"x": 1}, {}, {}, {})})),
    ("throughput", lambda crew, story: crew.clock.done["together"].append((60, 1.0))),
    ("deadline", lambda crew, story: crew.doubtful[0].counts.update({"TaskTimeout": -3})),
    ("deadline", lambda crew, story: crew.doubtful[0].found.popitem()),
    ("memory", lambda crew, story: crew.doubtful[1].counts.clear()),
    ("memory", lambda crew, story: story.steps.append(logmine_story.Step(9, "c", "SIGABRT"))),
    ("quarantine", lambda crew, story: crew.doubtful[2].quarantined.popitem()),
    ("quarantine", lambda crew, story: crew.doubtful[2].found.popitem()),
    ("quarantine", lambda crew, story: setattr(next(iter(crew.doubtful[2].quarantined.values())), "attempts", 2)),
    ("health", lambda crew, story: crew.wellness.statuses.update(["unhealthy"])),
    ("health", lambda crew, story: crew.wellness.statuses.pop("degraded")),
    ("health", lambda crew, story: setattr(crew.wellness, "missed", 1)),
    ("events", lambda crew, story: step_out(story, "b", "close")),
    ("events", lambda crew, story: step_out(story, "c", "half_open")),
    ("events", lambda crew, story: step_out(story, "d", "SIGSEGV")),
    ("events", lambda crew, story: setattr(story, "missed", 1)),
]


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_each_expectation_can_fail(name: str, fault: Any) -> None:
    verdict = judged(fault)
    assert [one for one, met in verdict.expected.items() if not met] == [name]
    assert not verdict.holds and verdict.text().endswith(f"as expected: NO: {name}")


def test_every_expectation_is_seen_to_fail() -> None:
    assert {name for name, _ in FAULTS} == set(judged().expected)


def test_chaos_may_find_the_trusted_pool_without_a_worker() -> None:
    assert judged(lambda crew, story: crew.wellness.statuses.update(["unhealthy"]), killed=1).holds


# ---- the run -------------------------------------------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("chaos", [0.0, 3.0])
def test_the_expectations_are_met(chaos: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """How fast the machine is says nothing here: it takes as long as it takes, and any throughput will do."""
    monkeypatch.setattr(logmine_run, "PATIENCE_S", float(WATCHDOG_S))
    verdict = logmine_run.run(3.0, 5, chaos, size=512 << 10, least=0.0)
    print(f"seed {verdict.seed}\n{verdict.text()}")
    assert verdict.holds and verdict.trusted == 2 and len(verdict.quarantined) == 3


@pytest.mark.stress
def test_a_limit_that_does_not_hold_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenant whose table fits into memory, and answers of the pool that are not the serial run's."""
    monkeypatch.setattr(logmine_run, "PATIENCE_S", 0.0)
    monkeypatch.setattr(logmine, "SWELLS", logmine.Rule("repeated", "a"))
    honest = logmine.serial
    monkeypatch.setattr(logmine, "serial", lambda tenants: {**honest(tenants), "a": [({},) * 4] * 100})
    verdict = logmine_run.run(2.0, 4, size=512 << 10, least=0.0)
    print(f"seed {verdict.seed}\n{verdict.text()}")
    assert not verdict.expected["memory"] and not verdict.expected["answers"] and verdict.wrong


def demo(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shmrt", "demo", "logmine", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.stress
def test_the_command_says_the_verdict() -> None:
    run = demo("--seconds", "3s", "--tenants", "4", "--seed", "7", "--least", "0")
    out, errors = run.communicate(timeout=WATCHDOG_S)
    assert errors.startswith("logmine: chaos kill=0/s, 4 tenants, seed 7\nwatch it: python -m shmrt --name logmine-")
    for words in ("b  the breaker opens", "b  the breaker is half open", "d  quarantined: poison-", "3 x SIGSEGV"):
        assert words in out
    assert "same answer as the serial run: alone and together\n" in out, out
    assert (run.returncode, out.endswith("as expected: yes\n")) in [(0, True), (1, False)], errors


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    run = demo("--seconds", "1000s")
    assert run.stderr is not None and run.stderr.readline().startswith("logmine: chaos kill=0/s")
    run.send_signal(number)
    out, errors = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode == -number, errors
    assert f"{number.name}: draining" in errors and "Traceback" not in errors
    assert "logmine: 5 trusted tenants" in out


@pytest.mark.parametrize("words", [["--tenants", "3"], ["--least", "1.5"], ["--input", "/no/such/folder"]])
def test_bad_arguments_are_named(words: list[str]) -> None:
    run = demo(*words, "--seconds", "1s")
    _, errors = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode != 0 and words[1] in errors and "Traceback" not in errors

"""`bench/` itself: peers get the same duty, wrong answers and missing peers are told, the page is made of the rows."""

from __future__ import annotations

import doctest
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench import _measure, _page, _peers, _results, _svg, _targets, _views
from bench.__main__ import names
from bench._apart import GivenUpError, apart
from bench._peers.channels import CHANNELS, Channel, ShmrtRing
from bench._peers.pools import POOLS, PoolPeer
from bench._streams import BATCH, Case, messages, stream
from bench._work import nothing
from shmrt import _native

ROOT = Path(__file__).resolve().parents[2]
WATCHDOG_S = 120
AT_HAND = ("shmrt", *_peers.STANDARD, "posix-ipc")
"""Packages that every installation of the tests has."""


@pytest.fixture(autouse=True)
def every_peer() -> Any:
    yield
    _peers.select(None)


def bench(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S)


# ---- figures


@pytest.mark.parametrize("name", ["_measure", "_results", "_svg", "_page", "skew", "instructions"])
def test_examples_run(name: str) -> None:
    found = doctest.testmod(importlib.import_module(f"bench.{name}"))
    assert found.attempted and not found.failed


def test_a_pass_is_sized_to_its_time() -> None:
    """Whatever the speed, and between the bounds."""
    for each in (1e-7, 1e-4, 1e-2):
        count = _measure.sized(lambda count, each=each: count * each, 0.5, 4, 10_000_000)
        assert 0.5 / each / 3 <= count <= 0.5 / each * 1.01
    assert _measure.sized(lambda count: count * 1e-9, 0.5, 4, 100) == 100
    assert _measure.sized(lambda count: count * 10.0, 0.5, 4, 100) == 4


def test_a_wrong_answer_is_an_error() -> None:
    with pytest.raises(AssertionError, match="sum of results: 3, not 4"):
        _measure.check(3, 4, "sum of results")


def test_the_probes_of_the_machine_check_their_argument() -> None:
    for probe in (_native.ping_pong_ns, _native.wake_round_trip_ns):
        for wrong in (0, -1, 100_000_001):
            with pytest.raises(ValueError, match=f"rounds={wrong} must be from 1 to 100000000"):
                probe(wrong)


def test_a_wake_takes_longer_than_a_cache_line() -> None:
    """Both are measured between processes on two CPUs, one of them asleep. One or the other may be disturbed, so the
    shortest of some are compared; a wake is two system calls at least."""
    import os

    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("it needs two CPUs")
    wake = min(_native.wake_round_trip_ns(101) for _ in range(3))
    assert wake > 200


# ---- peers


@pytest.mark.parametrize("channel", [one for one in CHANNELS if one.package in AT_HAND], ids=lambda one: one.impl)
@pytest.mark.parametrize("kind", ["tuple", 16, 4096])
@pytest.mark.parametrize("batch", [False, True])
def test_channels_carry_everything(channel: type[Channel], kind: int | str, batch: bool) -> None:
    """The warm-up compares the checksum of every byte, so a round that ends is one that lost and changed nothing."""
    case = Case(channel, (1, 1), kind, batch)
    if not case.fits():
        pytest.skip("larger than it carries")
    with stream(channel, (1, 1), kind, batch) as running:
        assert running.timed(BATCH * 4, full=True) > 0
        assert running.timed(BATCH * 4) > 0


@pytest.mark.parametrize(
    "channel", [one for one in CHANNELS if one.package in AT_HAND and one.many_to_many], ids=lambda one: one.impl
)
def test_channels_are_shared(channel: type[Channel]) -> None:
    with stream(channel, (2, 2), "tuple") as running:
        assert running.timed(64, full=True) > 0


class Losing(ShmrtRing):
    """Changes one message."""

    def at_producer(self, index: int) -> Any:
        put = super().at_producer(index)
        sent = iter(range(10_000))
        return lambda obj: put(obj if next(sent) != 3 else (obj[0] + 1, *obj[1:]))


def test_a_changed_message_is_noticed() -> None:
    with pytest.raises(AssertionError, match="sum of what arrived"), stream(Losing, (1, 1), "tuple") as running:
        running.timed(16)


def test_batches_are_of_objects_of_their_own() -> None:
    """Pickle writes an object that it meets again as two bytes; a peer that pickles lists would look too good."""
    for kind in ("tuple", 16, 4096):
        items = messages(kind)
        assert len({id(item) for item in items}) == BATCH
        assert len(set(items)) == BATCH


@pytest.mark.parametrize("make", [one for one in POOLS if one.package in AT_HAND], ids=lambda one: one.impl)
def test_pools_do_what_they_offer(make: type[PoolPeer]) -> None:
    with make(2) as pool:
        total = sum(range(100))
        every: Any = pool
        assert sum(every.result(handle) for handle in [every.submit(nothing, number) for number in range(100)]) == total
        for verb in ("map", "map_one_by_one", "map_by_64", "map_unordered"):
            if make.can(verb):
                found = list(getattr(pool, verb)(nothing, range(100)))
                assert (sorted(found) if verb == "map_unordered" else found) == list(range(100))
        if make.can("completed"):
            assert sum(every.completed([every.submit(nothing, number) for number in range(100)])) == total


def test_a_missing_peer_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = type("Gone", (), {"impl": "gone.Pool", "package": "mpire"})
    ours = type("Ours", (), {"impl": "shmrt.Pool", "package": "shmrt"})
    monkeypatch.setattr(_peers, "version", lambda package: None)
    here, rows = _peers.present([ours, gone])
    assert here == [ours]
    assert rows == [{"impl": "gone.Pool", "skipped": "mpire is not installed"}]
    _peers.select([])
    assert _peers.present([ours, gone]) == ([ours], [])  # nobody asked for it


def test_an_unknown_name_is_refused() -> None:
    for words, text in (
        (("run", "nonsense"), "no benchmark nonsense; there are array_messages, "),
        (("run", "--peers", "celery"), "no peer celery; there are multiprocessing, "),
        (("rows", "messages"), "rows is what run starts by itself"),
    ):
        done = bench(*words)
        assert done.returncode == 2
        assert text in done.stderr


def sleep_for_ever(answer: Any) -> None:
    process = subprocess.Popen(["sleep", "3600"])
    Path(answer).write_text(str(process.pid))
    time.sleep(3600)


def test_what_hangs_is_given_up_with_all_that_it_started(tmp_path: Path) -> None:
    with pytest.raises(GivenUpError, match="nothing in 2 s"):
        apart(sleep_for_ever, tmp_path / "pid", seconds=2)
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + WATCHDOG_S
    while Path(f"/proc/{pid}").exists() and ") Z " not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < end
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        apart(divmod, 1, 0, seconds=WATCHDOG_S)
    assert apart(divmod, 7, 2, seconds=WATCHDOG_S) == (3, 1)


# ---- results and the page


def test_results_append(tmp_path: Path) -> None:
    """One line for each benchmark of a run, with what the figures depend on."""
    path = tmp_path / "results.ndjson"
    for _ in range(2):
        done = bench("run", "--smoke", "--peers", "none", "--append", str(path), "import_time")
        assert done.returncode == 0, done.stderr
    lines = _results.read(path)
    assert [line["bench"] for line in lines] == ["import_time"] * 2
    for key in ("commit", "cpu", "cpus", "kernel", "python", "compiler", "flags", "versions", "parameters", "run"):
        assert key in lines[0], key
    assert len(lines[0]["line_rtt_ns"]) == len(lines[0]["wake_rtt_us"]) == 2
    assert lines[0]["rows"] == [json.loads(json.dumps(row)) for row in lines[0]["rows"]]
    assert _results.newest(lines) == {}, "smoke runs are no results"


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    path = tmp_path / "results.ndjson"
    path.write_text('{"bench": "tasks", "rows": []}\n{"bench": "tasks"}\n')
    with pytest.raises(ValueError, match=r"results.ndjson:2 is not a benchmark's result"):
        _results.read(path)


def result(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    facts = {"cpu": "a cpu", "cpus": 2, "kernel": "6", "python": "3", "compiler": "cc", "flags": "-O2"}
    about = {"run": "2020-01-01T00:00:00+00:00", "commit": "abc", "versions": {"mpire": "1.2"}, "seconds": 1.0}
    return {"bench": name, "line_rtt_ns": [100.0, None], "wake_rtt_us": [30.0, 40.0], "rows": rows} | facts | about


ROWS = [
    {"impl": "shmrt.Ring", "shape": "1x1", "payload": "tuple", "batch": 1, "per_s": 4e6, "per_s_range": [3e6, 5e6],
     "copies": 2, "survives_kill": "yes"},
    {"impl": "multiprocessing.Queue", "shape": "1x1", "payload": "tuple", "batch": 1, "per_s": 2e5, "copies": 4,
     "survives_kill": "no"},
    {"impl": "faster-fifo", "skipped": "faster-fifo is not installed"},
]  # fmt: skip


def test_the_page_begins_with_reasons_to_distrust_it() -> None:
    page, _ = _page.render({"messages": result("messages", ROWS)})
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings[:2] == ["# Benchmarks", "## Reasons to distrust this page"]


def test_the_page_shows_rows_ratios_guarantees_and_what_is_missing() -> None:
    page, plots = _page.render({"messages": result("messages", ROWS)})
    assert "| **shmrt.Ring** | 4 M<br><sub>3 M to 5 M</sub> | 2 | yes |" in page
    assert "| multiprocessing.Queue | 200 k | 4 | no |" in page
    assert "| *shmrt by the best other* | *20* |" in page
    assert "Not measured: faster-fifo (faster-fifo is not installed)." in page
    assert "| tuples one by one, by multiprocessing.Queue | at least 20 times | 20 | yes |" in page
    assert "| tuples one by one, by the best peer | at least 5 times | 20 | yes |" in page
    assert "| tuples 32 at once, by the best peer with calls for many | at least 10 times | not measured |" in page
    assert "100 → ? | 30 → 40 |" in page
    assert list(plots) == ["messages.svg"]
    assert "](benchmarks/messages.svg)" in page


def test_pictures_are_well_formed_and_the_same_each_time() -> None:
    from xml.etree import ElementTree

    for picture in (
        lambda: _svg.bars("a <title>", "µs", {"shmrt & co": 12.0, "peer": 900.0}, {"peer": [800.0, 1e4]}, True),
        lambda: _svg.lines("t", "x", "y", {"shmrt": [(1, 0.1), (100, 0.9)], "p": [(1, 0.0)]}, True, False),
        lambda: _svg.bars("one", "", {"only": 0.0}, {}, False),
    ):
        text = picture()
        assert text == picture()
        ElementTree.fromstring(text)
        assert len(text) < 8000


@pytest.mark.parametrize("name", names())
def test_each_says_what_it_measures_and_what_not(name: str) -> None:
    module = importlib.import_module(f"bench.{name}")
    about = " ".join((module.__doc__ or "").split())
    assert "Not measured: " in about or "Not counted: " in about, f"{name} does not say what it does not measure"
    assert module.SMOKE.keys() == module.FULL.keys()
    assert module.VIEWS and all(isinstance(view, _views.View) for view in module.VIEWS)
    assert name in _page.ORDER


def test_targets_that_cannot_be_told_say_so() -> None:
    for target in _targets.TARGETS:
        with pytest.raises(_targets.Absent):
            target.value({})


def test_the_page_is_of_the_results() -> None:
    """docs/benchmarks.md is what `python -m bench page` makes of bench/results.ndjson, with its plots."""
    if not _results.RESULTS.exists():
        pytest.skip("no results are recorded")
    page, plots = _page.render(_results.newest(_results.read(_results.RESULTS)))
    assert _page.PAGE.read_text() == page, "python -m bench page"
    assert {path.name: path.read_text() for path in _page.PLOTS.glob("*.svg")} == plots, "python -m bench page"

"""The root's first steps: what it imports before its first fork, what it starts by itself, and how long it keeps still.

Whatever it does not do by itself is the loop's, so nothing may be lost between the two.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shmrt import _native
from shmrt.supervise import root

ROOT = Path(__file__).resolve().parents[2]
MS = 1_000_000
EVENTS, SIGNALS, CONTROL, PROGRAM = 20, 21, 3, 4
STARTING, READY = (_native.SLOT_STARTING, False), (_native.SLOT_READY, False)
DEAD = (_native.SLOT_STARTING, True)


def imported(module: str) -> set[str]:
    """What a lean interpreter, as the root's is, has after the import of `module`, and nothing else."""
    script = f"import sys; sys.path.append(sys.argv[1]); import {module}; print(*sys.modules)"
    command = [sys.executable, "-S", "-P", "-s", "-c", script, str(ROOT)]
    return set(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())


def test_nothing_is_imported_before_the_first_fork_but_what_it_takes() -> None:
    late = {f"shmrt.supervise.{name}" for name in ("root_loop", "reaping", "forest", "nested", "templates", "standbys")}
    programs = {"shmrt.process.remote", "shmrt.process.surroundings", "shmrt.process.template", "shmrt.errors"}
    dear = {"typing", "signal", "socket", "json", "enum", "re", "threading", "pickle", "subprocess", "site"}
    found = imported("shmrt.supervise.root")
    assert "shmrt.process.worker" in found  # else every worker would import it
    assert "shmrt.process.packing" in found
    assert not found & (late | programs | dear)
    assert late <= imported("shmrt.supervise.root_loop")


class Starts:
    """Starting that starts until `most` processes are there."""

    def __init__(self, most: int = 100) -> None:
        self.most = most
        self.asked: list[int] = []

    def start(self, crew: Any, now: int) -> bool:
        self.asked.append(crew.id)
        if len(self.asked) > self.most:
            return False
        crew.workers[crew.first + len(crew.workers)] = SimpleNamespace(stays=True)
        return True


def pool(id: int, workers: int, **more: Any) -> tuple[tuple[Any, ...], list[int]]:
    return ("add_pool", id, {"name": f"pool-{id}", "workers": workers, **more}, 10 * id, 8), [100 + id, 200 + id]


def started(messages: list[tuple[tuple[Any, ...], list[int]]], most: int = 100) -> tuple[Any, Starts]:
    staff: Any = SimpleNamespace(crews={}, channel=object())
    starts = Starts(most)
    root.start_first(staff, starts, messages)  # type: ignore[arg-type]
    return staff, starts


def test_workers_of_the_first_pools_are_started() -> None:
    messages = [pool(1, 2, spares=1), pool(2, 1)]
    staff, starts = started(messages)
    assert starts.asked == [1, 1, 1, 2]
    assert messages == []
    assert [(crew.id, crew.lanes_fd, crew.stacks_fd) for crew in staff.crews.values()] == [(1, 101, 201), (2, 102, 202)]


@pytest.mark.parametrize("first", [pool(1, 2, preload=("json",)), (("control", "name", 1), [9]), (("stop", 0.0), [])])
def test_what_needs_the_loop_waits_for_it_and_so_does_what_was_said_after_it(first: Any) -> None:
    messages = [pool(5, 1), first, pool(2, 2)]
    staff, starts = started(messages)
    assert starts.asked == [5]
    assert messages == [first, pool(2, 2)]
    assert list(staff.crews) == [5]


def test_a_start_that_fails_leaves_the_rest_to_the_loop() -> None:
    messages = [pool(1, 4), pool(2, 1)]
    staff, starts = started(messages, most=1)
    assert starts.asked == [1, 1, 2]
    assert list(staff.crews) == [1, 2]  # the loop tries again, by the rules of the keeper
    assert messages == []


class Wait:
    """The wait for the first workers: `looks` is what the table says at each look, `news` what each poll reports."""

    def __init__(self, looks: Iterable[list[tuple[int, bool]]], news: Iterable[list[int]]) -> None:
        self.looks, self.news = iter(looks), iter(news)
        self.now = 0
        self.said: list[Any] = []

    def scan(self, slots: list[int]) -> list[tuple[int, bool]]:
        self.said.append("look")
        return next(self.looks)

    def poll(self, sources: list[tuple[int, int]], timeout_ms: int) -> list[tuple[int, int]]:
        assert {fd for fd, _ in sources} == {EVENTS, SIGNALS, CONTROL, PROGRAM}
        self.said.append(timeout_ms)
        found = next(self.news)
        self.now += 4 * MS if found else timeout_ms * MS
        return [(fd, _native.POLLIN) for fd in found]

    def run(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        native = SimpleNamespace(poll=self.poll, POLLIN=_native.POLLIN, SLOT_STARTING=_native.SLOT_STARTING)
        monkeypatch.setattr(root, "_native", native)
        monkeypatch.setattr(root, "monotonic_ns", lambda: self.now)
        monkeypatch.setattr(root.os, "eventfd_read", lambda fd: self.said.append("cleared"))
        workers = {slot: SimpleNamespace(slot=slot) for slot in (2, 3)}
        crews = {1: SimpleNamespace(workers=workers)}
        staff: Any = SimpleNamespace(crews=crews, slots=SimpleNamespace(scan=self.scan))
        root.leave_cpus_to_first(staff, EVENTS, SIGNALS)
        return self.said


def test_it_keeps_still_until_all_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    wait = Wait([[STARTING, STARTING], [READY, STARTING], [READY, READY]], [[EVENTS], [EVENTS]])
    assert wait.run(monkeypatch) == ["look", 11, "cleared", "look", 7, "cleared", "look"]


@pytest.mark.parametrize("look", [[DEAD, STARTING], [STARTING, (_native.SLOT_READY, True)]])
def test_a_death_ends_the_wait(monkeypatch: pytest.MonkeyPatch, look: list[tuple[int, bool]]) -> None:
    assert Wait([[STARTING, STARTING], look], [[EVENTS]]).run(monkeypatch)[-2:] == ["cleared", "look"]


@pytest.mark.parametrize("news", [[CONTROL], [PROGRAM], [SIGNALS], [EVENTS, PROGRAM]])
def test_other_news_ends_the_wait_and_is_left_to_the_loop(monkeypatch: pytest.MonkeyPatch, news: list[int]) -> None:
    assert Wait([[STARTING, STARTING]], [news]).run(monkeypatch) == ["look", 11]


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Wait([[STARTING, STARTING]], [[]]).run(monkeypatch) == ["look", 11]


def test_without_workers_there_is_nothing_to_wait_for() -> None:
    root.leave_cpus_to_first(SimpleNamespace(crews={}, slots=None), EVENTS, SIGNALS)  # type: ignore[arg-type]

"""The root's loop by a clock that the test moves: whenever the root itself did not run, nobody is judged by that time.

A SIGSTOP, a suspended machine or a starved one may hold the root at any line of its loop: while it waits for news,
while it waits a moment before it prepares the next start, and while it works.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from shmrt.supervise import root_loop
from shmrt.supervise.root_loop import Root

S = 1_000_000_000


class Loop(Root):
    """The loop alone. Every step lets its own time pass, and says what the loop did."""

    def __init__(self, wait: int | None, prepares: bool = False, **lasts: int) -> None:
        self.now = 1000 * S
        self.wait, self.prepares, self.lasts = wait, prepares, lasts
        self.said: list[Any] = []
        self.rounds = 0
        self.stopping, self.service, self.crews = False, None, {}
        self.channel: Any = SimpleNamespace(fd=0, pending=False)
        self.events = self.signal_pipe = self.program = 0
        self.reaping: Any = SimpleNamespace(end_everybody=lambda: None)
        self.placed = 0
        self.watch: Any = SimpleNamespace(place=self.place, take_back=self.take_back)
        self.standbys: Any = SimpleNamespace(
            orders=lambda now: ["an order"], hear=lambda done, now: self.said.append(done)
        )

    def passes(self, step: str) -> None:
        """In the first round alone: later ones show what the first left."""
        if self.rounds == 1:
            self.now += self.lasts.get(step, 0)

    def poll(self, fds: Any, timeout_ms: int) -> list[tuple[int, int]]:
        self.said.append(("poll", timeout_ms))
        self.passes("poll")
        return []

    def place(self, orders: list[str]) -> None:
        assert not self.placed, "placed twice"
        self.placed = len(orders)

    def take_back(self) -> list[str]:
        assert self.said[-1][0] == "poll", "something was done while orders held"
        placed, self.placed = self.placed, 0
        return ["done"] * placed

    def program_is_gone(self) -> bool:
        self.rounds += 1
        return self.rounds > 2

    def settle(self, now: int) -> None:
        self.said.append(("settle", (self.now - 1000 * S) / S))
        self.passes("settle")

    def wait_ns(self, now: int) -> int | None:
        return self.wait

    def handlers(self) -> dict[int, Any]:
        return {}

    def channels(self) -> list[tuple[int, int]]:
        return []

    def may_prepare(self) -> bool:
        return self.prepares

    def prepare(self) -> None:
        self.said.append("prepare")
        self.passes("prepare")

    def handle(self, ready: set[int], handlers: dict[int, Any]) -> None:
        self.said.append("handle")
        self.passes("handle")

    def forgive(self, late: int) -> None:
        self.said.append(("forgive", late / S))


def said(monkeypatch: pytest.MonkeyPatch, loop: Loop) -> list[Any]:
    monkeypatch.setattr(root_loop, "monotonic_ns", lambda: loop.now)
    monkeypatch.setattr(root_loop, "_native", SimpleNamespace(poll=loop.poll, POLLOUT=4))
    loop.run()
    return loop.said


@pytest.mark.parametrize("step", ["poll", "handle", "settle"])
def test_a_stop_at_any_step_is_forgiven_before_anybody_is_judged(monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    found = said(monkeypatch, Loop(9 * S, **{step: 12 * S}))
    forgiven = found.index(("forgive", 12.0))
    assert forgiven < found.index(("settle", 12.0))
    assert sum(entry[0] == "forgive" for entry in found) == 1
    assert found.count(["done"]) == 2


@pytest.mark.parametrize("step", ["poll", "prepare"])
@pytest.mark.parametrize("wait", [None, 9 * S])
def test_a_stop_while_the_next_start_is_prepared(monkeypatch: pytest.MonkeyPatch, step: str, wait: int | None) -> None:
    found = said(monkeypatch, Loop(wait, prepares=True, **{step: 12 * S}))
    assert found[:2] == [("settle", 0.0), ("poll", 5)]
    assert found.index(("forgive", 12.0)) < found.index(("settle", 12.0))
    assert "prepare" in found


def test_time_that_was_waited_for_is_nobodys_gift(monkeypatch: pytest.MonkeyPatch) -> None:
    found = said(monkeypatch, Loop(9 * S, poll=9 * S))
    assert found[:4] == [("settle", 0.0), ("poll", 9000), ["done"], "handle"]
    assert not any(entry[0] == "forgive" for entry in found)


def test_waiting_for_ever_is_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was due: whatever is due by now was asked for after it."""
    assert not any(entry[0] == "forgive" for entry in said(monkeypatch, Loop(None, poll=3600 * S)))


def test_a_moment_is_forgiven_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    lasts = {"poll": S // 2, "handle": S // 2, "settle": S // 4}
    assert not any(entry[0] == "forgive" for entry in said(monkeypatch, Loop(0, **lasts)))


def test_a_near_end_is_not_put_off_by_preparing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("poll", 2) in said(monkeypatch, Loop(2_000_000, prepares=True))


def test_who_stops_places_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = Loop(0)
    loop.stopping, loop.crews = True, {1: object()}  # type: ignore[dict-item]
    assert [] in said(monkeypatch, loop) and ["done"] not in loop.said


class Settled(Loop):
    """Its templates say that they are ready when the strays are looked for, the first and the second time."""

    settle = Root.settle

    def __init__(self) -> None:
        super().__init__(None)
        self.staff: Any = SimpleNamespace(strays=True)
        self.reaping = SimpleNamespace(kill_strays=self.kill_strays)
        self.forest: Any = SimpleNamespace(settle=lambda now: None)
        self.starting: Any = SimpleNamespace(start=self.start)
        keeper = SimpleNamespace(starts=lambda now, alive: 2 - alive, broken=False)
        self.crew: Any = SimpleNamespace(spec={}, workers={}, removing=False, keeper=keeper, alive=0)
        self.crews = {1: self.crew}
        self.looked = 0

    def kill_strays(self) -> None:
        self.looked += 1
        self.staff.strays = self.looked < 2

    def start(self, crew: Any, now: int) -> bool:
        crew.alive += self.looked == 2
        return self.looked == 2


def test_what_is_heard_while_strays_are_ended_is_acted_on_before_the_root_sleeps() -> None:
    """A template that gets ready just then is not heard of again: its pool would wait for its workers for ever."""
    loop = Settled()
    loop.settle(loop.now)
    assert loop.crew.alive == 2 and not loop.staff.strays

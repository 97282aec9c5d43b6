"""What a death leaves to calls, mailboxes and names, in real processes: what docs/crash-model.md says of servers."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import shmrt
from shmrt import Child, Pool, Runtime, Server, ServerDown, Supervisor, call, cast, noreply, whereis


class Clerk(Server):
    """Answers `late` when it is told to, and `who` at once."""

    def init(self) -> None:
        self.waiting: list[Any] = []
        self.seen: list[Any] = []

    @call
    def late(self) -> Any:
        self.waiting.append(self.sender)
        return noreply

    @call
    def answer(self, value: Any) -> list[bool]:
        waiting, self.waiting = self.waiting, []
        return [self.reply(sender, value) for sender in waiting]

    @call
    def waits(self) -> int:
        return len(self.waiting)

    @call
    def who(self) -> int:
        return os.getpid()

    @call
    def hang(self) -> None:
        time.sleep(1000)

    @cast
    def see(self, what: Any) -> None:
        self.seen.append(what)

    @call
    def all(self) -> list[Any]:
        return self.seen


class Deadly:
    """Kills whoever unpickles it."""

    def __reduce__(self) -> Any:
        return _die, ()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def office(**options: Any) -> Supervisor:
    return Supervisor([Child(Clerk, name="clerk", **options)], name="office")


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.001)


def test_a_killed_server_fails_what_it_had_and_serves_the_rest() -> None:
    """Put off, in hand, and not begun: the first two end at once, the third is answered by the next incarnation."""
    with Runtime(office()):
        clerk = whereis("clerk")
        pid = clerk.who()
        put_off, in_hand = clerk.request("late"), clerk.request("hang")
        clerk.see("x")
        not_begun = clerk.request("who")
        until(lambda: _qsize(clerk) == 2)
        os.kill(pid, signal.SIGKILL)
        assert put_off.exception(30).reason == in_hand.exception(30).reason == "killed"
        assert not_begun.result(30) == clerk.who() != pid
        assert clerk.all() == ["x"] and whereis("clerk") == clerk


def test_a_dead_mailbox_is_told_to_its_callers() -> None:
    """mailbox_on_restart="drop", and a server that is gone for good: who had not been begun hears of it, too."""
    for options, restarted in (({"mailbox_on_restart": "drop"}, True), ({"restart": "temporary"}, False)):
        with Runtime(office(**options)):
            clerk = whereis("clerk")
            pid = clerk.who()
            calls = [clerk.request("hang"), clerk.request("who")]
            until(lambda: _qsize(clerk) == 1)  # noqa: B023
            os.kill(pid, signal.SIGKILL)
            reasons = [one.exception(30).reason for one in calls]
            assert reasons == ["killed", "restarted" if restarted else "killed"]
            if restarted:
                until(lambda: whereis("clerk") is not None)
                assert clerk.who() != pid
            else:
                with pytest.raises(ServerDown) as caught:
                    clerk.who()
                assert caught.value.reason == "noproc" and whereis("clerk") is None


def test_a_message_that_kills_its_reader_does_so_once() -> None:
    with Runtime(office()):
        clerk = whereis("clerk")
        deadly, other = clerk.request("see", Deadly()), clerk.request("who")
        assert deadly.exception(30).reason == "killed"
        assert other.result(30) == clerk.who()
        clerk.cast("see", Deadly())
        assert clerk.call("who", timeout=30) != other.result()


def _ask_and_die() -> None:
    whereis("clerk").request("late")
    until(lambda: whereis("clerk").waits() == 1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_answer_to_a_dead_caller_is_dropped() -> None:
    """And reaches nobody else: its slot is another caller's by then, or nobody's."""
    with Runtime(office()), Pool(1) as pool:
        clerk = whereis("clerk")
        for _ in range(3):
            assert isinstance(pool.submit(_ask_and_die).exception(30), shmrt.WorkerCrashed)
            until(lambda: clerk.waits() == 1)
            mine = clerk.request("late")
            until(lambda: clerk.waits() == 2)
            assert clerk.answer("mine") == [False, True]
            assert mine.result(30) == "mine"


def test_a_killed_root_gives_its_tree_to_the_next() -> None:
    """It is started afresh; calls end, casts stay; what has a name is found again, what was added later is gone."""
    with Runtime(office()) as runtime:
        clerk, supervisor = whereis("clerk"), runtime.supervisor("office")
        added = supervisor.start_child(Child(Clerk, id="more"))
        before, pid = runtime.pid, clerk.who()
        waiting = [clerk.request("late"), clerk.request("late")]
        until(lambda: clerk.waits() == 2)
        waiting += [clerk.request("hang"), clerk.request("who")]
        clerk.see("x")
        until(lambda: _qsize(clerk) == 2)
        os.kill(before, signal.SIGKILL)
        for request in waiting:
            assert request.exception(30).reason == "noconnection"
        until(lambda: whereis("clerk") is not None)
        assert whereis("clerk").who() == clerk.who() != pid and runtime.pid != before
        assert clerk.all() == ["x"]
        assert [row[0] for row in supervisor.which_children()] == ["clerk"]
        assert added.pid is None
        with pytest.raises(ServerDown):
            added.who()


def test_who_asks_between_two_roots_hears_so() -> None:
    """At once: neither root would answer. `root_lost` is told when the one is gone and the other not begun."""
    ends: list[Any] = []

    def ask() -> None:
        try:
            ends.append(supervisor.which_children())
        except shmrt.RuntimeDown as error:
            ends.append(error.reason)

    def hear(event: Any) -> None:
        if event[0] == "root_lost":
            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(10)
            ends.append(asking.is_alive())

    with Runtime(office(), on_event=lambda event: None if isinstance(event, dict) else hear(event)) as runtime:
        supervisor = runtime.supervisor("office")
        os.kill(runtime.pid or 0, signal.SIGKILL)
        until(lambda: len(ends) == 2)
        assert ends == ["there is none just now", False]
        until(lambda: whereis("clerk") is not None)


def test_a_server_that_was_stopped_and_started_again_is_found_by_every_way() -> None:
    """Its mailbox is another one, and each way must notice by itself."""
    with Runtime(office()) as runtime:
        clerk, supervisor = whereis("clerk"), runtime.supervisor("office")
        ways: list[Any] = [
            lambda: clerk.who(),
            lambda: clerk.request("who").result(30),
            lambda: asyncio.run(clerk.acall("who", timeout=30)),
            lambda: clerk.cast("see", "x") and clerk.who(),
        ]
        for way in ways:
            before = clerk.who()
            supervisor.terminate_child("clerk")
            supervisor.restart_child("clerk")
            assert way() == clerk.who() != before
        supervisor.terminate_child("clerk")
        with pytest.raises(ServerDown, match="no server clerk"):
            clerk.who()
        assert clerk.request("who").exception(30).reason == "noproc" and not clerk.cast("see", "x")


def test_a_call_to_a_server_that_is_looked_up_between_two_roots_is_noconnection() -> None:
    """By every way, as for a call under way: whoever calls servers hears ServerDown, and calls again."""
    ends: list[Any] = []

    def ends_of(way: Any) -> Any:
        try:
            return way()
        except BaseException as error:
            return error

    def hear(event: Any) -> None:
        if event[0] == "root_lost":
            ways: list[Any] = [
                lambda: clerk.who(),
                lambda: clerk.request("who").exception(0),
                lambda: asyncio.run(clerk.acall("who")),
                lambda: clerk.stop(),
                lambda: clerk.mailbox_stats(),
                lambda: clerk.cast("see", "x"),
                lambda: clerk.pid,
            ]
            asking = threading.Thread(target=lambda: ends.extend(map(ends_of, ways)), daemon=True)
            asking.start()
            asking.join(10)

    with Runtime(office(), on_event=lambda event: None if isinstance(event, dict) else hear(event)) as runtime:
        clerk, supervisor = whereis("clerk"), runtime.supervisor("office")
        assert clerk.who()
        supervisor.terminate_child("clerk")
        supervisor.restart_child("clerk")  # its mailbox is another one, and whoever calls it next finds out
        os.kill(runtime.pid or 0, signal.SIGKILL)
        until(lambda: len(ends) == 7)
        assert [getattr(end, "reason", end) for end in ends] == ["noconnection"] * 5 + [False, None]
        assert all(isinstance(end, ServerDown) for end in ends[:5])
        until(lambda: whereis("clerk") is not None)
        assert clerk.who() == whereis("clerk").who()


class Second(Clerk):
    """Hangs in its second start."""

    def init(self, path: str) -> None:
        with open(path, "a") as file:
            file.write(f"{os.getpid()}\n")
        with open(path) as file:
            if len(file.readlines()) == 2:
                time.sleep(1000)
        super().init()


def test_a_root_that_dies_while_it_plants_gives_its_tree_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "starts"
    with Runtime(Supervisor([Child(Second, str(path), name="clerk")])) as runtime:
        first = runtime.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: len(path.read_text().splitlines()) == 2)
        second = runtime.pid
        assert second not in (first, None)
        os.kill(second, signal.SIGKILL)
        until(lambda: len(path.read_text().splitlines()) == 3)
        assert whereis("clerk").call("who", timeout=30) == int(path.read_text().splitlines()[2])
        assert runtime.wait(0) is None


def _qsize(ref: Any) -> int:
    ref._reach()
    return int(ref._box.qsize())

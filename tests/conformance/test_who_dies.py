"""What a death leaves to calls, mailboxes and names, in real processes: what docs/crash-model.md says of servers."""

from __future__ import annotations

import os
import signal
import time
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
    """The tree is started afresh; calls under way end; what has a name is found again, what was added later is gone."""
    with Runtime(office()) as runtime:
        clerk, supervisor = whereis("clerk"), runtime.supervisor("office")
        added = supervisor.start_child(Child(Clerk, id="more"))
        before, pid = runtime.pid, clerk.who()
        waiting = [clerk.request("late"), clerk.request("late")]
        until(lambda: clerk.waits() == 2)
        os.kill(before, signal.SIGKILL)
        for request in waiting:
            assert request.exception(30).reason == "noconnection"
        until(lambda: whereis("clerk") is not None)
        assert whereis("clerk").who() == clerk.who() != pid and runtime.pid != before
        assert [row[0] for row in supervisor.which_children()] == ["clerk"]
        assert added.pid is None
        with pytest.raises(ServerDown):
            added.who()


def _qsize(ref: Any) -> int:
    ref._reach()
    return int(ref._box.qsize())

"""Servers and agents as users have them: what Elixir's tests of GenServer and Agent expect, with real processes."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import shmrt
from shmrt import (
    Agent,
    AlreadyStarted,
    CallTimeout,
    Continue,
    Down,
    Exit,
    Overloaded,
    Pool,
    RingSpec,
    Runtime,
    Server,
    ServerDown,
    ServerRef,
    Shutdown,
    StartError,
    call,
    cast,
    get_state,
    noreply,
    replace_state,
    send_after,
    start,
    whereis,
)

PATIENCE_S = 60.0


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Runtime]:
    with Runtime() as made:
        yield made


def wait_until(condition: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)
    return found


class Stack(Server):
    """Elixir's own example, and whatever else a test asks of it."""

    def init(self, *items: Any, note: str | None = None, trap: bool = False) -> Any:
        self.items = list(items)
        self.note, self.trap_exit = note, trap
        self.put_off: list[Any] = []

    @call
    def pop(self) -> Any:
        return self.items.pop(0)

    @call
    def all(self) -> list[Any]:
        return self.items

    @cast
    def push(self, item: Any) -> None:
        self.items.insert(0, item)

    @call
    def later(self) -> Any:
        self.put_off.append(self.sender)
        return noreply

    @call
    def senders(self) -> list[Any]:
        return self.put_off

    @call
    def hang(self) -> None:
        self.say("hanging")
        time.sleep(3600)

    @call
    def leave(self, reason: Any) -> str:
        self.stop(reason)
        return "left"

    @call
    def end(self, error: BaseException) -> None:
        raise error

    @call
    def ask(self, other: ServerRef, name: str, *args: Any) -> Any:
        return other.call(name, *args)

    @call
    def watch(self, other: ServerRef, how: str) -> None:
        if how == "link":
            shmrt.link(other)
        else:
            self.watched = shmrt.monitor(other)

    @call
    def stop_other(self, other: ServerRef) -> None:
        other.stop()

    def handle_info(self, message: Any) -> None:
        self.items.append(message)

    def say(self, word: str) -> None:
        if self.note is not None:
            with Path(self.note).open("a") as file:
                file.write(word + "\n")

    def terminate(self, reason: Any) -> None:
        self.say(f"end {reason!r}")


def words(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def test_a_stack() -> None:
    with start(Stack, "hello") as stack:
        assert stack.pop() == "hello"
        stack.push("world")
        assert stack.cast("push", "there") and stack.all() == ["there", "world"]
        assert stack.call("pop", timeout=None) == "there"
        assert isinstance(stack.pid, int) and stack.pid != os.getpid()
        assert stack.request("pop").result(PATIENCE_S) == "world"
        assert asyncio.run(stack.acall("all")) == []
        stack.info(1)
        assert stack.all() == [1] and get_state(stack)["items"] == [1]
        assert replace_state(stack, lambda state: {**state, "items": [2]})["items"] == [2]
        assert stack.pop() == 2
    with pytest.raises(ServerDown) as caught:
        stack.all()
    assert caught.value.reason == "noproc" and stack.pid is None
    assert stack.cast("push", 1) is False and stack.info(1) is False, "nobody there is no error of a cast"


def test_names() -> None:
    assert whereis("nobody") is None
    with start(Stack, name="stack") as stack:
        found = whereis("stack")
        assert found == stack and found.name == "stack" and found.all() == []
        with pytest.raises(AlreadyStarted) as caught:
            start(Stack, name="stack")
        assert caught.value.ref == stack
        again = pickle.loads(pickle.dumps(stack))
        assert again == stack and again.all() == []
    assert whereis("stack") is None
    start(Stack, name="stack").stop()


class Unwilling(Server):
    def init(self, how: str) -> Any:
        if how == "raise":
            raise ValueError("no such disk")
        if how == "shutdown":
            raise Shutdown("not today")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.stop("refused")

    @call
    def anything(self) -> None: ...


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        *(("shutdown", ("shutdown", "not today")), ("stop", "refused"), ("kill", "killed")),
        ("raise", ("error", "ValueError", "no such disk")),
    ],
)
def test_a_start_that_fails(how: str, reason: Any) -> None:
    with pytest.raises(StartError) as caught:
        start(Unwilling, how, name="unwilling")
    found = caught.value.reason
    assert (found[:3] if how == "raise" else found) == reason
    assert whereis("unwilling") is None


def test_a_start_returns_before_the_slow_part_of_init() -> None:
    class Slow(Server):
        def init(self) -> Any:
            self.order = ["init"]
            return Continue("slow")

        def handle_continue(self, arg: Any) -> None:
            self.order.append(arg)

        @call
        def done(self) -> list[str]:
            return self.order

    with start(Slow) as slow:
        assert slow.done() == ["init", "slow"]


def test_a_call_that_is_not_answered_in_time_and_its_late_answer() -> None:
    with start(Stack, 1) as stack:
        patience, senders = 0.01, []
        while not senders:  # a server that comes to it too late skips it
            with pytest.raises(CallTimeout):
                stack.call("later", timeout=patience)
            patience, senders = 2 * patience, stack.senders()
        (sender,) = senders
        assert Server.reply(sender, "late") is False
        assert stack.pop() == 1, "the late answer is nobody's"


def test_an_answer_from_a_worker() -> None:
    with start(Stack) as stack, Pool(1) as pool:
        future = stack.request("later")
        (sender,) = stack.senders()
        assert pool.submit(lambda: (stack.cast("push", 7), Server.reply(sender, os.getpid()))).result() == (True, True)
        assert future.result(PATIENCE_S) not in (os.getpid(), stack.pid)
        assert pool.submit(stack.all).result() == [7]


def test_servers_use_servers() -> None:
    one = start(Stack, 1)
    with start(Stack, 2) as two:
        assert one.ask(two, "pop") == 2
    with pytest.raises(RuntimeError, match="called itself"):
        one.ask(one, "pop")  # and crashes of that
    with start(Stack) as one, start(Stack) as two:
        one.stop_other(two)
        assert two.pid is None
        for _ in range(200):  # the link of that server has a thread now, beside its loop
            assert get_state(one, timeout=PATIENCE_S)["items"] == []


def wait_for_ever(_: object) -> None:
    threading.Event().wait()


def test_who_leaves_by_an_exception_waits_for_no_handler_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.children.SHUTDOWN_S", 0.05)
    with pytest.raises(ZeroDivisionError), Agent(0) as agent:
        agent.cast(wait_for_ever)
        raise ZeroDivisionError
    pid = agent.pid
    assert pid is not None  # it goes on until the runtime ends
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: agent.pid != pid)


@pytest.mark.parametrize("reason", ["normal", "shutdown", ("shutdown", {"why": [1]}), ("shutdown", Continue(1)), "odd"])
def test_stop(tmp_path: Path, reason: Any) -> None:
    stack = start(Stack, kwargs={"note": str(tmp_path / "note")})
    for item in range(20):
        stack.push(item)
    stack.stop(reason)
    assert words(tmp_path / "note") == [f"end {reason!r}"]
    with pytest.raises(ServerDown) as caught:
        stack.stop(reason)
    assert caught.value.reason == "noproc"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        *((Shutdown(), "shutdown"), (Shutdown((1, "x")), ("shutdown", (1, "x"))), (SystemExit(0), "normal")),
        *((SystemExit(3), ("exit", 3)), (Shutdown({"a": [1]}), ("shutdown", {"a": [1]}))),
        (Shutdown(Continue(1)), ("shutdown", Continue(1))),
    ],
)
def test_a_handler_that_ends_its_server(error: BaseException, reason: Any) -> None:
    stack = start(Stack)
    with shmrt.monitor(stack) as monitor:
        with pytest.raises(ServerDown) as caught:
            stack.end(error)
        assert caught.value.reason == reason
        down = monitor.wait(PATIENCE_S)
    assert down is not None and down.reason == reason


def test_an_answer_goes_out_before_the_end() -> None:
    stack = start(Stack)
    with shmrt.monitor(stack) as monitor:
        assert stack.leave(("shutdown", 1)) == "left"
        down = monitor.wait(PATIENCE_S)
    assert down is not None and down.reason == ("shutdown", 1)


def test_a_crash_is_for_its_caller_and_the_next_incarnation_starts_afresh(tmp_path: Path) -> None:
    stack = start(Stack, "fresh", restart="permanent", kwargs={"note": str(tmp_path / "note")})
    stack.push("lost")
    pid = stack.pid
    with pytest.raises(LookupError, match="gone") as caught:
        stack.end(LookupError("gone"))
    assert "in end" in str(caught.value.__cause__) and f"(pid {pid})" in str(caught.value.__cause__)
    assert stack.all() == ["fresh"], "the same ref, another process, the first state"
    assert stack.pid != pid
    assert words(tmp_path / "note")[0].startswith("end ('error', 'LookupError', 'gone'")
    stack.stop()


def test_a_killed_server_fails_only_the_call_it_had(tmp_path: Path) -> None:
    note = tmp_path / "note"
    stack = start(Stack, "fresh", restart="permanent", kwargs={"note": str(note)})
    put_off = stack.request("later")
    hanging = stack.request("hang")
    wait_until(lambda: words(note) == ["hanging"])
    waiting = [stack.request("all") for _ in range(3)]
    assert stack.pid is not None
    os.kill(stack.pid, signal.SIGKILL)
    for future in (hanging, put_off):
        with pytest.raises(ServerDown) as caught:
            future.result(PATIENCE_S)
        assert caught.value.reason == "killed"
    assert [future.result(PATIENCE_S) for future in waiting] == [["fresh"]] * 3
    stack.stop()


def test_a_full_mailbox(tmp_path: Path) -> None:
    note = tmp_path / "note"
    small = RingSpec(slots=2, on_full="raise")
    stack = start(Stack, name="small", mailbox=small, kwargs={"note": str(note)})
    hanging = stack.request("hang")
    wait_until(lambda: words(note) == ["hanging"])
    assert stack.info(1) and stack.info(2)
    with pytest.raises(Overloaded) as caught:
        stack.all()
    assert (caught.value.capacity, caught.value.where) == (2, "small")
    with pytest.raises(Overloaded):
        stack.push(3)
    assert stack.pid is not None
    os.kill(stack.pid, signal.SIGKILL)
    with pytest.raises(ServerDown):
        hanging.result(PATIENCE_S)


@pytest.mark.parametrize("traps", [False, True])
def test_a_shutdown_reaches_a_handler_that_runs(tmp_path: Path, traps: bool) -> None:
    """The supervisor asks; a server that traps exits is let finish, and killed when that takes too long."""
    note = tmp_path / "note"
    with Runtime(
        shmrt.Supervisor(
            [
                shmrt.Child(
                    Stack,
                    name="busy",
                    shutdown=0.2 if traps else PATIENCE_S,
                    kwargs={"note": str(note), "trap": traps},
                )
            ]
        )
    ):
        stack = whereis("busy")
        assert stack is not None
        hanging = stack.request("hang")
        wait_until(lambda: words(note) == ["hanging"])
    with pytest.raises((ServerDown, shmrt.RuntimeDown)):
        hanging.result(PATIENCE_S)
    assert words(note) == ["hanging"] + ([] if traps else ["end 'shutdown'"])


@pytest.mark.parametrize("traps", [False, True])
def test_a_linked_server_ends_with_the_other_or_hears_of_it(traps: bool) -> None:
    one, other = start(Stack, kwargs={"trap": traps}), start(Stack)
    one.watch(other, "link")
    with shmrt.monitor(one) as monitor:
        assert other.pid is not None
        os.kill(other.pid, signal.SIGKILL)
        if traps:
            assert wait_until(one.all) == [Exit("killed", other.key)]
            one.stop()
        down = monitor.wait(PATIENCE_S)
    assert down is not None and down.reason == ("normal" if traps else "killed")


def test_the_end_of_a_monitored_server_is_a_message() -> None:
    other = start(Stack)
    with start(Stack) as one:
        one.watch(other, "monitor")
        other.stop(("shutdown", Continue(1)))
        (down,) = wait_until(one.all)
        assert down == Down(("shutdown", Continue(1)), down.monitor, other.key)


def test_timers() -> None:
    with start(Stack) as stack:
        soon, never = send_after(stack, {"due": 1}, 0.01), send_after(stack, "never", 3600.0)
        wait_until(lambda: stack.all() == [{"due": 1}])
        assert shmrt.cancel_timer(soon) is None
        left = shmrt.cancel_timer(never)
        assert left is not None and 3500 < left <= 3600 and shmrt.cancel_timer(never) is None


def test_many_callers_from_many_places() -> None:
    with Agent(0) as total, Pool(2) as pool:
        rounds = 200

        def work() -> None:
            for _ in range(rounds):
                total.update(lambda value: value + 1, timeout=PATIENCE_S)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for future in [pool.submit(work) for _ in range(2)]:
            future.result()
        for thread in threads:
            thread.join()
        assert total.get() == 4 * rounds


def test_an_agent() -> None:
    with Agent({}, name="seen") as seen:
        by = 2
        seen.update(lambda value: {**value, "a": by})
        assert seen.get(len) == 1 and seen.get(lambda value: value["a"]) == 2
        assert seen.get_and_update(lambda value: (value.get("a"), {})) == 2 and seen.get() == {}
        assert get_state(seen) == {} and replace_state(seen, lambda value: {"b": 1}) == {"b": 1}
        found = whereis("seen")
        assert found is not None and Agent.of(found) == seen
    agent = Agent(1)
    with pytest.raises(ZeroDivisionError):
        agent.get(lambda value: value // 0)
    with pytest.raises(ServerDown):
        agent.get()

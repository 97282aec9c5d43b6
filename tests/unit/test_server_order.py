"""What a server does next, how it ends, and what it shows of itself."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from typing import Any

import pytest
from server_kit import PATIENCE_S, Changed, Child, World, wait_until, world

import shmrt
from shmrt import Agent, Continue, Down, Exit, Server, ServerDown, ServerRef, Shutdown, call, cast
from shmrt.errors import CallTimeout, RuntimeDown


@pytest.fixture(params=["plain", "shared"])
def w(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(request.param) as made:
        yield made


class Script(Server):
    """Writes down what it handles. `hold` stops it in a handler until the test has arranged what comes next."""

    log: list[Any]
    held: threading.Event
    gate: threading.Event

    def init(self, *acts: str) -> Any:
        self.log.append("init")
        return self.act(*acts)

    def act(self, *acts: str) -> Any:
        for what in acts:
            if what == "return":
                return Continue("returned")
            if what == "idle":
                self.idle_timeout = 0
            elif what == "awake":
                self.idle_timeout = None
            elif what == "stop":
                self.stop(("shutdown", "asked"))
            elif what == "raise":
                raise ValueError("raised")
            else:
                self.continue_with(what)
        return None

    @cast
    def hold(self, *acts: str) -> Any:
        self.log.append("hold")
        self.held.set()
        assert self.gate.wait(PATIENCE_S)
        return self.act(*acts)

    @cast
    def note(self, what: Any, *acts: str) -> Any:
        self.log.append(what)
        return self.act(*acts)

    @call
    def ask(self, what: Any, *acts: str) -> Any:
        self.log.append(what)
        return self.act(*acts)

    def handle_info(self, message: Any) -> Any:
        self.log.append(("info", message))
        return self.act("awake") if message == "timeout" else None

    def handle_continue(self, arg: Any) -> Any:
        self.log.append(("continue", arg))
        return Continue("more") if arg == "again" else None

    def terminate(self, reason: Any) -> None:
        self.log.append(("terminate", reason))


def script(**attributes: Any) -> type[Script]:
    fresh = {"log": [], "held": threading.Event(), "gate": threading.Event()}
    return type("Script", (Script,), {**fresh, **attributes})


def holding(w: World, *acts: str, **attributes: Any) -> tuple[Child, type[Script]]:
    """A server inside a handler, which will do `acts` when its gate opens."""
    cls = script(**attributes)
    child = w.begin(cls)
    child.ref.hold(*acts)
    assert cls.held.wait(PATIENCE_S)
    cls.log.clear()
    return child, cls


def test_continue_goes_before_the_mailbox(w: World) -> None:
    cls = script()
    child = w.add(cls, "first", "return")
    child.ref.note("message", "later")
    child.ref.note("last")
    child.start()
    child.ref.ask("done")
    assert cls.log == [
        *("init", ("continue", "first"), ("continue", "returned"), "message", ("continue", "later"), "last", "done")
    ]


def test_continue_comes_back_after_itself_and_after_a_calls_answer(w: World) -> None:
    cls = script()
    ref = w.begin(cls).ref
    assert ref.ask("x", "again") is None
    ref.ask("y")
    assert cls.log == ["init", "x", ("continue", "again"), ("continue", "more"), "y"]


def test_a_shutdown_goes_before_continue(w: World) -> None:
    child, cls = holding(w, "never", trap_exit=True)
    child.ref.note("never")
    child.tell("shutdown")
    cls.gate.set()
    assert child.wait() == "shutdown" and cls.log == [("terminate", "shutdown")]
    assert child.box.qsize() == 1, "what it had not taken stays for the next incarnation"


def test_a_shutdown_that_came_while_it_started_is_not_missed(w: World) -> None:
    cls = script()
    child = w.add(cls, "never")
    child.ref.note("never")
    child.control = _control(w)
    child.tell("shutdown")
    threading.Thread(target=child.run).start()
    assert child.wait() == "shutdown" and cls.log == ["init", ("terminate", "shutdown")]


def test_an_idle_timeout_of_zero_goes_before_the_mailbox_and_after_continue(w: World) -> None:
    child, cls = holding(w, "idle", "first")
    child.ref.note("message")
    cls.gate.set()
    child.ref.ask("done")
    assert cls.log == [("continue", "first"), ("info", "timeout"), "message", "done"]


def test_an_idle_timeout_of_zero_that_stays_comes_once_after_each_message(w: World) -> None:
    class Always(script()):  # type: ignore[misc]
        def handle_info(self, message: Any) -> None:
            self.log.append(message)

    ref = w.begin(Always, "idle").ref
    for what in "ab":
        ref.ask(what)
    ref.ask("c", "awake")
    assert Always.log == ["init", "timeout", "a", "timeout", "b", "timeout", "c"]


def test_an_idle_timeout_comes_as_often_as_it_passes(w: World) -> None:
    class Ticking(Server):
        idle_timeout = 0.002
        count = 0

        @call
        def ticks(self) -> int:
            return self.count

        def handle_info(self, message: Any) -> None:
            assert message == "timeout"
            self.count += 1

    ref = w.begin(Ticking).ref
    wait_until(lambda: w.children[1].box is not None and _ticks(w.children[1]) >= 3)
    assert ref.ticks() >= 3


def _ticks(child: Child) -> int:
    state: dict[str, Any] = shmrt.get_state(child.ref)
    return int(state.get("count", 0))


def test_questions_about_its_state_do_not_put_off_an_idle_timeout(w: World) -> None:
    class Patient(Server):
        idle_timeout = 0.05
        count = 0

        def handle_info(self, message: Any) -> None:
            self.count += 1

    child = w.begin(Patient)
    wait_until(lambda: _ticks(child) >= 1)  # asks all the time


def test_stop_handles_first_what_was_sent_before(w: World) -> None:
    child, cls = holding(w)
    child.ref.note("before")
    stopping = threading.Thread(target=lambda: child.ref.stop(("shutdown", "enough")))
    stopping.start()
    wait_until(lambda: child.control.inbox)
    child.ref.note("before, too")
    cls.gate.set()
    stopping.join()
    assert child.reason == ("shutdown", "enough")
    assert cls.log == ["before", "before, too", ("terminate", ("shutdown", "enough"))]


def test_stop_leaves_what_was_sent_after(w: World) -> None:
    class Refilling(script()):  # type: ignore[misc]
        me: Any = None

        def handle_info(self, message: Any) -> None:
            self.log.append(message)
            Refilling.me.info("more")

    child = w.begin(Refilling)
    Refilling.me = child.ref
    child.ref.info("start")
    child.ref.stop()
    assert child.reason == "normal" and child.box.qsize() == 1


def test_stop_says_how_it_went(w: World) -> None:
    class Bad(Server):
        def terminate(self, reason: Any) -> None:
            raise OSError("disk")

    child = w.begin(Bad, name="bad")
    with pytest.raises(ServerDown, match="server bad ended: OSError: disk") as caught:
        child.ref.stop()
    assert caught.value.reason[:3] == ("error", "OSError", "disk")
    with pytest.raises(ServerDown) as caught:
        child.ref.stop()
    assert caught.value.reason == "noproc"
    with pytest.raises(TypeError, match="reason"):
        child.ref.stop(3)
    slow, cls = holding(w)
    with pytest.raises(CallTimeout):
        slow.ref.stop(timeout=0.01)
    cls.gate.set()
    assert slow.wait() == "normal", "it was not told that nobody waits any more"


@pytest.mark.parametrize("traps", [False, True])
def test_a_linked_process_that_ends(w: World, traps: bool) -> None:
    child, cls = holding(w, trap_exit=traps)
    child.tell("exit_signal", 7, "normal")
    cls.gate.set()
    child.ref.ask("alive")
    child.tell("exit_signal", 7, "killed")
    if traps:
        wait_until(lambda: len(cls.log) == 3)
        assert cls.log == [("info", Exit("normal", 7)), "alive", ("info", Exit("killed", 7))]
        assert not child.ended.is_set()
    else:
        assert child.wait() == "killed" and cls.log == ["alive", ("terminate", "killed")]


def test_a_monitored_process_that_ends(w: World) -> None:
    child, cls = holding(w, "first")
    child.tell("down", 3, 7, ("shutdown", 1))
    cls.gate.set()
    wait_until(lambda: len(cls.log) == 2)
    assert cls.log == [("continue", "first"), ("info", Down(("shutdown", 1), 3, 7))]
    assert pickle.loads(pickle.dumps(cls.log[1][1])).key == 7


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        (lambda child: child.tell("shutdown"), "shutdown"),
        (lambda child: child.ref.note("x", "stop"), ("shutdown", "asked")),
        (lambda child: child.ref.note("x", "raise"), "error"),
        (lambda child: child.ref.stop("odd"), "odd"),
        (lambda child: child.tell("exit_signal", 1, "killed"), "killed"),
    ],
)
def test_terminate_runs_at_every_end(w: World, end: Callable[[Child], object], reason: Any) -> None:
    cls = script()
    child = w.begin(cls)
    end(child)
    ended = child.wait()
    assert (ended[0] if reason == "error" else ended) == reason
    assert cls.log[-1] == ("terminate", ended)


def test_terminate_may_say_another_reason(w: World) -> None:
    class Last(Server):
        def terminate(self, reason: Any) -> None:
            raise Shutdown("saved")

    child = w.begin(Last)
    child.tell("shutdown")
    assert child.wait() == ("shutdown", "saved")


# ---- TERM -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def restore_term() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGURG)}
    signal.signal(signal.SIGURG, lambda number, frame: None)  # else the kernel keeps it to itself
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def terminated(w: World, cls: type[Script], when: Callable[[], Any], *casts: tuple[str, ...]) -> Child:
    """Runs the server in the main thread, where signals arrive, and sends TERM once `when` is true."""
    child = w.add(cls)
    for acts in casts:
        child.ref.hold(*acts)

    def nudge() -> None:
        """As the root does: the main thread may sleep over the TERM that came just before."""
        os.kill(os.getpid(), signal.SIGURG)

    def send() -> None:
        wait_until(when)
        os.kill(os.getpid(), signal.SIGTERM)
        if cls.trap_exit:
            wait_until(lambda: w.slots.control_count(child.key) or nudge())
            cls.gate.set()
        wait_until(lambda: child.ended.is_set() or nudge())

    thread = threading.Thread(target=send)
    thread.start()
    try:
        child.control = _control(w)
        child.run(catch_term=True)
    finally:
        thread.join()
        del w.homes.own
    return child


def _control(w: World) -> Any:
    from server_kit import Control

    return Control(w)


def test_term_ends_a_server_that_waits(w: World, restore_term: None) -> None:
    cls = script()
    child = terminated(w, cls, lambda: w.children[1].ready.is_set())
    assert child.reason == "shutdown" and cls.log == ["init", ("terminate", "shutdown")]


def test_term_interrupts_a_handler(w: World, restore_term: None) -> None:
    cls = script()
    child = terminated(w, cls, cls.held.is_set, ("never",))
    assert child.reason == "shutdown" and cls.log == ["init", "hold", ("terminate", "shutdown")]


def test_term_waits_for_the_handler_of_a_server_that_traps_exits(w: World, restore_term: None) -> None:
    cls = script(trap_exit=True)
    child = terminated(w, cls, cls.held.is_set, ("never",), ())
    assert child.reason == "shutdown" and cls.log == ["init", "hold", ("terminate", "shutdown")]
    assert child.box.qsize() == 1


# ---- state ----------------------------------------------------------------------------------------------------------
class Account(Server):
    def init(self, secret: str) -> None:
        self.secret = secret
        self.amount = 1
        self.idle_timeout = 1000
        self.lock = threading.Lock()

    @cast
    def pay(self, amount: int) -> None:
        self.amount += amount

    @call
    def peek(self) -> tuple[int, str, Any]:
        return self.amount, self.secret, self.idle_timeout

    def format_state(self, state: Any) -> Any:
        if state["amount"] < 0:
            raise ValueError("in debt")
        return {**state, "secret": "***"}


def test_state_from_outside_in_order_and_redacted(w: World) -> None:
    ref = w.begin(Account, "sesame").ref
    ref.pay(4)
    shown = shmrt.get_state(ref)
    assert shown.pop("lock").startswith("<unlocked _thread.lock"), "what cannot be pickled is shown as it shows itself"
    assert shown == {"amount": 5, "secret": "***"}
    assert shmrt.replace_state(ref, lambda state: {**_without(state, "lock"), "amount": state["amount"] * 2}) == {
        "amount": 10,
        "secret": "***",
    }
    assert ref.peek() == (10, "sesame", 1000), "settings are no state, and secrets are"


def _without(state: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in state.items() if key != name}


def test_a_question_that_fails_leaves_the_server_as_it_was(w: World) -> None:
    child = w.begin(Account, "sesame", name="bank")
    with pytest.raises(ZeroDivisionError) as caught:
        shmrt.replace_state(child.ref, lambda state: 1 // 0)
    assert "in server bank" in str(caught.value.__cause__)
    with pytest.raises(TypeError, match="dict of its attributes"):
        shmrt.replace_state(child.ref, lambda state: 3)
    assert child.ref.peek()[:2] == (1, "sesame")
    child.ref.pay(-5)
    with pytest.raises(ValueError, match="in debt"):
        shmrt.get_state(child.ref)
    assert child.ref.peek()[0] == -4
    with pytest.raises(TypeError, match="fn must be"):
        shmrt.replace_state(child.ref, 3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ref must be"):
        shmrt.get_state("bank")


def test_a_question_that_nobody_answers(w: World) -> None:
    child, cls = holding(w)
    with pytest.raises(CallTimeout):
        shmrt.get_state(child.ref, timeout=0.01)
    cls.gate.set()
    child.ref.stop()
    with pytest.raises(ServerDown):
        shmrt.get_state(child.ref)


# ---- timers ---------------------------------------------------------------------------------------------------------
def test_timers(w: World) -> None:
    cls = script()
    child = w.begin(cls)
    timer = shmrt.send_after(child.ref, {"due": 1}, 1.5)
    assert pickle.loads(pickle.dumps(timer)) == timer
    nanoseconds, payload = w.timers[timer._id]
    assert nanoseconds == 1_500_000_000
    child.box.cast(_mail_info(), "pickled", (payload,), None, 0.0)
    child.box.cast(_mail_info(), "pickled", (b"not a pickle",), None, 0.0)
    child.ref.ask("then")
    assert cls.log == ["init", ("info", {"due": 1}), "then"]
    assert shmrt.cancel_timer(timer) == 1.5
    assert shmrt.cancel_timer(timer) is None
    for wrong, error in [(-1, ValueError), ("x", TypeError), (None, TypeError), (float("inf"), ValueError)]:
        with pytest.raises(error, match="seconds"):
            shmrt.send_after(child.ref, 1, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timer"):
        shmrt.cancel_timer(3)  # type: ignore[arg-type]


def _mail_info() -> int:
    from shmrt import _native

    return int(_native.MAIL_INFO)


# ---- refs -----------------------------------------------------------------------------------------------------------
def test_refs_travel(w: World) -> None:
    child = w.begin(Account, "x", name="bank")
    again = pickle.loads(pickle.dumps(child.ref))
    assert again == child.ref and hash(again) == hash(child.ref) and again is not child.ref
    assert (again.name, again.key, again.pid) == ("bank", child.key, 4711)
    assert again.peek()[0] == 1 and repr(again) == "<ServerRef bank key=1>"
    assert again != w.begin(Account, "x").ref and again != "bank"
    lazy = ServerRef(1, (0, 0, 1, b"t1"), runtime=w.word)
    assert lazy == again and lazy.peek()[1] == "x", "what it handles is asked for when nobody has said it"
    with pytest.raises(AttributeError, match="has no handler 'nope'"):
        _ = lazy.nope
    with pytest.raises(AttributeError):
        _ = lazy._repr_html_
    assert sum(verb == "who" and args == (1,) for verb, *args in map(list, w.asked)) <= 2
    child.ref.stop()
    assert again.pid is None


def test_a_mailbox_that_is_gone_is_a_server_that_is_gone(w: World) -> None:
    def gone(address: Any) -> Any:
        raise LookupError

    w.outside._open = gone  # type: ignore[method-assign]
    ref = ServerRef(9, (0, 0, 9, b"nine"), handlers={"add": ("call", False)}, runtime=w.word)
    for ask in (ref.add, lambda: ref.request("add").result(30), lambda: asyncio.run(ref.acall("add"))):
        with pytest.raises(ServerDown) as caught:
            ask()
        assert caught.value.reason == "noproc"
    assert ref.cast("add") is False and ref.info(1) is False


def test_a_fork_and_a_closed_runtime_own_nothing(w: World) -> None:
    ref = w.begin(Account, "x").ref
    assert ref.peek()
    w.outside.owner_pid += 1
    with pytest.raises(RuntimeDown, match="is a fork of it"):
        ref.peek()
    w.outside.owner_pid -= 1
    w.outside.down = "stopped"
    with pytest.raises(RuntimeDown, match="stopped"):
        ref.pay(1)
    w.outside.down = None


def test_with_a_server(w: World) -> None:
    child = w.begin(Account, "x")
    with child.ref as ref:
        ref.pay(1)
    assert child.reason == "normal"
    with child.ref:
        pass
    child = w.begin(Account, "x")
    with pytest.raises(ZeroDivisionError), child.ref:
        _ = 1 // 0
    assert child.reason == "shutdown"


def test_requests_end_in_every_way(w: World) -> None:
    child, cls = holding(w)
    late = child.ref.request("ask", "late", timeout=0.01)
    with pytest.raises(CallTimeout):
        late.result(30)
    given_up = child.ref.request("ask", "given up")
    assert given_up.cancel() and given_up.cancelled()
    with pytest.raises(CancelledError):
        given_up.result(30)
    kept = child.ref.request("ask", "kept")
    wrong = child.ref.request("nope")
    cls.gate.set()
    assert kept.result(30) is None and not kept.cancel()
    with pytest.raises(AttributeError):
        wrong.result(30)
    assert cls.log == ["kept"], "nobody waits for the others any more, so they are skipped"
    open_one = w.begin(script(held=cls.held, gate=threading.Event())).ref
    open_one.hold()
    pending = open_one.request("ask", 1)
    w.outside.close("stopped")
    with pytest.raises(RuntimeDown, match="stopped"):
        pending.result(30)
    w.children[2].cls.gate.set()


def test_an_end_that_is_seen_before_the_future_is_known(w: World) -> None:
    ref = w.begin(Account, "x").ref

    def slow_to_return(*args: Any) -> int:
        reference: int = w.calls.begin(*args)
        wait_until(lambda: reference in w.outside.requests._early)
        return reference

    w.outside.calls = Changed(w.calls, begin=slow_to_return)
    assert ref.request("peek").result(30) == (1, "x", 1000)
    assert not w.outside.requests._early


def test_what_has_ended_cannot_be_cancelled(w: World) -> None:
    child, cls = holding(w)
    w.outside.calls = Changed(w.calls, cancel=lambda reference: False)
    future = child.ref.request("ask", 1)
    assert not future.cancel() and not future.done(), "its end is on its way"
    cls.gate.set()
    assert future.result(30) is None


def test_calls_in_an_event_loop(w: World) -> None:
    ref = w.begin(Account, "x").ref

    async def several() -> list[Any]:
        ref.pay(1)
        answers = await asyncio.gather(*(ref.acall("peek") for _ in range(3)))
        with pytest.raises(AttributeError):
            await ref.acall("nope", timeout=None)
        return list(answers)

    assert asyncio.run(several()) == [(2, "x", 1000)] * 3


# ---- agents ---------------------------------------------------------------------------------------------------------
def test_an_agent_holds_a_value(w: World) -> None:
    with Agent(1, name="hits") as hits:
        three = 3
        assert hits.update(lambda value: value + three) is None
        assert hits.get() == 4 and hits.get(lambda value: value * 10) == 40 and hits.get(pow, 2) == 16
        assert hits.get_and_update(lambda value: (value, "new")) == 4
        assert hits.cast(str.upper) and hits.get() == "NEW"
        assert shmrt.get_state(hits) == "NEW" and shmrt.replace_state(hits, len) == 3
        assert pickle.loads(pickle.dumps(hits)) == hits and hits.name == "hits" and hits.pid == 4711
        assert Agent.of(hits.ref).get() == 3 and repr(hits) == "<Agent hits key=1>"
        with pytest.raises(TypeError, match="fn must be"):
            hits.update(3)  # type: ignore[arg-type]
    assert w.children[1].reason == "normal"


@pytest.mark.parametrize("use", [lambda a: a.update(lambda v: 1 // 0), lambda a: a.get_and_update(lambda v: 5)])
def test_a_function_that_raises_crashes_its_agent(w: World, use: Callable[[Agent], object]) -> None:
    agent = Agent(1)
    with pytest.raises((ZeroDivisionError, TypeError)):
        use(agent)
    assert w.children[1].wait()[0] == "error"


def test_wrong_arguments_of_start(w: World) -> None:
    with pytest.raises(TypeError, match="Server class"):
        shmrt.start(print)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="restart='never'"):
        shmrt.start(Account, restart="never")
    with pytest.raises(TypeError, match="name"):
        shmrt.whereis(3)  # type: ignore[arg-type]

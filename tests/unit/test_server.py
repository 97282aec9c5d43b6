"""The class of a server, and what its loop does with calls, casts and infos."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from server_kit import Changed, World, wait_until, world

import shmrt
from shmrt import Continue, Server, ServerDown, Shutdown, SpecError, _native, call, cast, noreply
from shmrt.errors import CallTimeout, ChildStateError, MessageTooLarge, Overloaded, RemoteError
from shmrt.process.remote import RemoteTraceback
from shmrt.process.server_words import plain, reason_from


@pytest.fixture(params=["plain", "shared"])
def w(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(request.param) as made:
        yield made


class Counter(Server):
    def init(self, start: int = 0) -> None:
        self.n = start
        self.seen: list[Any] = []

    @call
    def add(self, by: int = 1) -> int:
        self.n += by
        return self.n

    @cast
    def reset(self, to: int = 0) -> None:
        self.n = to

    @call
    def fail(self, error: BaseException) -> None:
        raise error

    @cast
    def fail_cast(self) -> None:
        raise ValueError("cast")

    @call
    def leave(self, reason: Any) -> str:
        self.stop(reason)
        return "bye"

    @call
    def infos(self) -> list[Any]:
        return self.seen

    @call
    def lock(self) -> Any:
        return threading.Lock()

    def handle_info(self, message: Any) -> None:
        if message == "fail":
            raise ValueError("info")
        self.seen.append(message)


def test_calls_and_casts_keep_their_order(w: World) -> None:
    ref = w.begin(Counter, 10, name="counter").ref
    assert ref.add is ref.add, "asked for once"
    assert ref.add(5) == 15 and ref.add(by=2) == 17
    assert ref.reset() is None
    assert ref.add() == 1
    assert ref.call("add", 5, timeout=1.0) == 6
    assert ref.cast("reset", to=3) is True
    assert ref.call("reset", 9) is None, "a call of a cast's handler waits until it has run"
    assert ref.cast("add", 5) and ref.add(0) == 14
    assert ref.info({"a": 1}) and ref.infos() == [{"a": 1}]


def test_an_unknown_handler_is_told_to_the_caller_and_the_server_lives(w: World) -> None:
    child = w.begin(Counter, name="counter")
    with pytest.raises(AttributeError, match=r"server counter has no handler 'nope'; it has add, fail"):
        child.ref.call("nope")
    with pytest.raises(AttributeError, match="'nope'"):
        child.ref.nope(1)
    child.ref.cast("nope")
    with pytest.raises(AttributeError, match="'init'"):
        child.ref.call("init", 5)
    assert child.ref.add() == 1 and not child.ended.is_set()


def test_arguments_that_do_not_fit_are_the_callers_fault(w: World) -> None:
    child = w.begin(Counter)
    with pytest.raises(TypeError, match=r"add\(\)"):
        child.ref.add(1, 2, 3)
    child.ref.cast("reset", 1, 2, 3)
    assert child.ref.add() == 1
    with pytest.raises(TypeError):
        child.ref.add("text")  # begins, and fails inside: that is a crash
    assert child.wait()[:2] == ("error", "TypeError")


def test_an_exception_reaches_its_caller_and_ends_the_server(w: World, caplog: pytest.LogCaptureFixture) -> None:
    child = w.begin(Counter, name="counter")
    with pytest.raises(KeyError, match="gone") as caught:
        child.ref.fail(KeyError("gone"))
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail" in str(caught.value.__cause__) and "in server counter (pid " in str(caught.value.__cause__)
    kind, name, text, trace = child.wait()
    assert (kind, name, text) == ("error", "KeyError", "'gone'") and "in fail" in trace
    wait_until(lambda: "server counter ends: KeyError: 'gone'" in caplog.text)


@pytest.mark.parametrize("send", [lambda ref: ref.fail_cast(), lambda ref: ref.info("fail")])
def test_an_exception_that_nobody_waits_for_ends_it_too(w: World, send: Callable[[Any], Any]) -> None:
    child = w.begin(Counter)
    send(child.ref)
    assert child.wait()[:2] == ("error", "ValueError")


def test_an_exception_that_memory_has_no_room_for_is_told_in_short() -> None:
    with world("plain") as made:
        reply = made.calls.reply

        def tight(reference: int, status: int, value: Any) -> bool:
            if len(_native.encode(value)) > 1000:
                raise MessageTooLarge("no room", size=2, limit=1)
            return bool(reply(reference, status, value))

        made.calls = Changed(made.calls, reply=tight)
        child = made.begin(Counter)
        with pytest.raises(RemoteError, match=r"^AttributeError: .*x{40}"):
            child.ref.call("x" * 5000)
        assert child.ref.add() == 1
        with pytest.raises(RemoteError, match=r"^KeyError: .*x{40}"):
            child.ref.fail(KeyError("x" * 5000))
        assert child.wait()[:2] == ("error", "KeyError"), "the server's reason is whole"


def test_an_answer_that_cannot_be_sent_is_an_exception_of_the_handler(w: World) -> None:
    child = w.begin(Counter)
    with pytest.raises(TypeError, match="pickle"):
        child.ref.lock()
    assert child.wait()[:2] == ("error", "TypeError")


class Unreadable:
    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> None:
    raise OSError("cannot be read here")


def test_a_message_that_cannot_be_read_harms_nobody_else(w: World) -> None:
    child = w.begin(Counter)
    with pytest.raises(OSError, match="cannot be read here"):
        child.ref.add(Unreadable())
    child.ref.cast("reset", Unreadable())
    child.ref.info(Unreadable())
    assert child.ref.add() == 1 and child.ref.infos() == []


@pytest.mark.parametrize("reason", ["normal", "shutdown", ("shutdown", 7), "odd"])
def test_stop_in_a_handler_answers_first(w: World, reason: Any) -> None:
    child = w.begin(Counter)
    assert child.ref.leave(reason) == "bye"
    assert child.wait() == reason


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Shutdown(), "shutdown"),
        (Shutdown({"disk": "full"}), ("shutdown", {"disk": "full"})),
        (SystemExit(), "normal"),
        (SystemExit(0), "normal"),
        (SystemExit(3), ("exit", 3)),
        (SystemExit("text"), ("exit", 1)),
    ],
)
def test_an_orderly_exit_in_a_handler_is_its_reason(w: World, error: SystemExit, reason: Any) -> None:
    child = w.begin(Counter)
    with pytest.raises(ServerDown) as caught:
        child.ref.fail(error)
    assert child.wait() == reason and caught.value.reason == reason


def test_a_reason_of_any_kind_comes_back_as_it_was(w: World) -> None:
    child = w.begin(Counter)
    with pytest.raises(ServerDown) as caught:
        child.ref.fail(Shutdown(Continue([noreply])))
    assert caught.value.reason == ("shutdown", Continue([noreply]))
    assert child.wait()[1][0] == "\0pickle", "the root carries the pickle, and never opens it"
    assert plain(("x", threading.Lock()))[1].startswith("<unlocked")
    endless: list[Any] = []
    endless.append(endless)
    assert reason_from(plain(("x", endless)))[1][0][0]
    assert reason_from(("\0pickle", b"nonsense")).startswith("<cannot be unpickled")
    assert pickle.loads(pickle.dumps(Shutdown((1, 2)))).info == (1, 2)


class Slow(Server):
    """Answers when it is told to, in the order that it is told."""

    def init(self) -> None:
        self.waiting: list[Any] = []

    @call
    def ask(self, sender: Any) -> Any:
        assert sender == self.sender
        self.waiting.append(sender)
        return noreply

    @cast
    def answer(self, value: Any) -> None:
        assert self.sender is None
        self.told = [self.reply(sender, value) for sender in self.waiting]

    @call
    def twice(self) -> str:
        self.reply(self.sender, "first")
        return "second"

    @call
    def senders(self) -> list[Any]:
        return self.waiting

    @call
    def soon(self) -> Any:
        return Continue(self.sender)

    def handle_continue(self, arg: Any) -> None:
        assert self.sender is None
        self.reply(arg, "continued")

    def handle_info(self, message: Any) -> None:
        assert self.sender is None
        self.waiting.append(message)

    @call
    def last(self) -> list[bool]:
        return self.told


def test_an_answer_may_come_later_from_anybody_once(w: World) -> None:
    ref = w.begin(Slow).ref
    first, second = ref.request("ask"), ref.request("ask")
    senders = ref.senders()
    assert Server.reply(senders[0], "from outside") is True
    assert first.result(30) == "from outside"
    assert Server.reply(senders[0], "again") is False
    ref.answer("inside")
    assert second.result(30) == "inside" and ref.last() == [False, True]
    assert ref.twice() == "first"
    assert ref.soon() == "continued", "a call's handler that continues answers later, too"
    ref.info("no call")
    assert ref.senders()[-1] == "no call"
    with pytest.raises(TypeError, match="sender"):
        Server.reply(None, 1)  # type: ignore[arg-type]


def test_a_late_answer_is_dropped_at_the_door(w: World) -> None:
    ref = w.begin(Slow).ref
    patience = 0.01
    while not ref.senders():  # a server that comes to it too late skips it
        with pytest.raises(CallTimeout):
            ref.call("ask", timeout=patience)
        patience *= 2
    ref.answer("late")
    assert ref.last() == [False]
    assert ref.twice() == "first", "the next call is not answered by the late one"


def test_those_who_wait_hear_how_the_server_ended(w: World) -> None:
    child = w.begin(Slow)
    future = child.ref.request("ask")
    child.ref.senders()
    child.tell("shutdown")
    with pytest.raises(ServerDown) as caught:
        future.result(30)
    assert caught.value.reason == "shutdown"
    child.lose()
    with pytest.raises(ServerDown) as caught:
        child.ref.senders()
    assert caught.value.reason == "noproc"
    assert child.ref.cast("answer", 1) is False and child.ref.info(1) is False
    with pytest.raises(ServerDown):
        child.ref.request("ask").result(30)


def test_messages_wait_for_the_next_incarnation(w: World) -> None:
    child = w.add(Counter, 100)
    child.start()
    child.tell("shutdown")
    child.wait()
    future = child.ref.request("add", 5)
    child.start()
    assert future.result(30) == 105


def test_full_mailboxes(w: World) -> None:
    child = w.add(Counter, box=w.box(1, "raise"), name="small")
    child.ref.info(1)
    with pytest.raises(Overloaded, match=r"the mailbox of server small is full: 1 messages") as caught:
        child.ref.add()
    assert (caught.value.capacity, caught.value.where) == (1, "small")
    with pytest.raises(Overloaded):
        child.ref.reset()
    with pytest.raises(Overloaded):
        child.ref.request("add")
    dropping = w.add(Counter, box=w.box(1, "drop_newest")).ref
    assert dropping.info(1) is True and dropping.info(2) is False
    blocking = w.add(Counter, box=w.box(1, "block"))
    blocking.ref.info(1)
    with pytest.raises(Overloaded):
        blocking.ref.cast("reset", timeout=0.0)
    future = []
    thread = threading.Thread(target=lambda: future.append(blocking.ref.call("add", timeout=30)))
    thread.start()
    blocking.start()
    thread.join()
    assert future == [1]


class Selfish(Server):
    def init(self, me: Any = None) -> None:
        self.me = me

    @call
    def know(self, me: Any) -> None:
        self.me = me

    @call
    def whom(self) -> Any:
        return self.me

    @call
    def misuse(self, how: str) -> Any:
        if how == "stop":
            return self.me.stop()
        if how == "thread":
            home = shmrt.server._home()
            self.thread = threading.Thread(target=lambda: (w_home(home), self.me.know("told")))
            return self.thread.start()
        if how == "state":
            return shmrt.get_state(self.me)
        return self.me.call("misuse", "again")

    @call
    def fill(self) -> int:
        sent = 0
        try:
            while True:
                self.me.info(sent)
                sent += 1
        except Overloaded:
            return sent

    def handle_info(self, message: Any) -> None:
        pass


def w_home(home: Any) -> None:
    """The thread belongs to the process of the server."""
    from shmrt import server_home

    server_home._finder.__self__.homes.own = home  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["call", "stop", "state"])
def test_calling_oneself_is_an_error_not_a_deadlock(w: World, how: str) -> None:
    ref = w.begin(Selfish, name="me").ref
    ref.know(ref)
    with pytest.raises(ChildStateError, match="server me called itself") as caught:
        ref.misuse(how)
    assert isinstance(caught.value, RuntimeError) and caught.value.state == "calling_self"


def test_another_thread_of_the_server_may_ask_it(w: World) -> None:
    ref = w.begin(Selfish).ref
    ref.know(ref)
    ref.misuse("thread")
    wait_until(lambda: ref.whom() == "told")


def test_filling_ones_own_mailbox_does_not_wait_for_oneself(w: World) -> None:
    ref = w.begin(Selfish, box=w.box(4, "block")).ref
    ref.know(ref)
    assert ref.fill() == 4


def test_init_fails_the_start(w: World) -> None:
    class Broken(Server):
        def init(self, how: str) -> None:
            if how == "raise":
                raise ValueError("no")
            if how == "shutdown":
                raise Shutdown("no disk")
            self.stop("refused")

        def terminate(self, reason: Any) -> None:
            raise AssertionError("what never began is not ended")

    for how, reason in [("raise", "error"), ("shutdown", ("shutdown", "no disk")), ("stop", "refused")]:
        child = w.begin(Broken, how)
        assert child.wait() == reason or child.reason[:3] == ("error", "ValueError", "no")
        assert not child.ready.is_set()


# ---- classes --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["call", "stop", "pid", "info", "request", "key"])
def test_a_handler_may_not_hide_a_method_of_the_ref(name: str) -> None:
    with pytest.raises(
        SpecError, match=f"handler '{name}' of server .*Bad is named like a method of ServerRef"
    ) as caught:
        type("Bad", (Server,), {name: call(lambda self: None)})
    assert caught.value.problem == "bad_handler"


@pytest.mark.parametrize("name", ["init", "terminate", "handle_info", "reply", "sender", "trap_exit"])
def test_a_handler_may_not_be_a_part_of_server(name: str) -> None:
    with pytest.raises(SpecError, match="which is no handler"):
        type("Bad", (Server,), {name: cast(lambda self: None)})


def test_handlers_that_cannot_run() -> None:
    with pytest.raises(SpecError, match="async"):

        class Later(Server):
            @call
            async def wait(self) -> None: ...

    with pytest.raises(SpecError, match="generator"):

        class Many(Server):
            @call
            def each(self) -> Iterator[int]:
                yield 1

    with pytest.raises(SpecError, match="by position only"):

        class Where(Server):
            @call
            def ask(self, sender: Any, /) -> None: ...

    with pytest.raises(TypeError, match="@call goes on a method"):
        call(3)  # type: ignore[type-var]


def test_handlers_are_inherited_and_overridden() -> None:
    class Mixin:
        @call
        def extra(self) -> str:
            return "mixed in"

    class Child(Mixin, Counter):
        def add(self, by: int = 2, *, sender: Any = None) -> int:
            return by

        reset = None  # type: ignore[assignment]

    assert Child.__handlers__["add"] == ("call", True)
    assert Child.__handlers__["extra"] == ("call", False)
    assert "reset" not in Child.__handlers__ and Counter.__handlers__["reset"] == ("cast", False)


def test_a_server_can_be_tried_without_a_process() -> None:
    server = Counter()
    server.init(3)
    assert server.add(2) == 5
    server.stop("shutdown")
    with pytest.raises(TypeError, match="reason"):
        server.stop(3)
    assert server.sender is None and Continue(1) == Continue(1) != Continue(2)

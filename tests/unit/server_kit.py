"""A runtime for servers inside one process: the real loop and refs, over real shared memory or over plain memory.

`World` is the root: it starts a server in a thread of its own, keeps its mailbox over restarts, and tells callers how
it ended. The plain Slots, Calls and Mailbox are a dict and a deque with the rules of the shared ones: what holds over
both is the server's doing.
"""

from __future__ import annotations

import marshal
import pickle
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from shmrt import _native, server_home
from shmrt.errors import Overloaded, RingClosed
from shmrt.process.serve import serve
from shmrt.server_home import AskError, Home
from shmrt.server_ref import ServerRef
from shmrt.spec import ON_FULL

PATIENCE_S = 30.0
"""A test that waits so long hangs."""

BELL = threading.Condition()
"""Everything here changes under this lock, and every change rings it."""


def wait_until(condition: Callable[[], Any], seconds: float = PATIENCE_S) -> Any:
    """What the condition gives once it is true; fails when that takes too long."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.001)
    return found


class Slots:
    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def control_count(self, index: int) -> int:
        return self.counts.get(index, 0)

    def send_control(self, index: int) -> int:
        with BELL:
            self.counts[index] = self.counts.get(index, 0) + 1
            BELL.notify_all()
            return self.counts[index]


class Calls:
    """Call slots: [state, target, deadline, status, value, watched]."""

    def __init__(self) -> None:
        self.table: dict[int, SimpleNamespace] = {}
        self.ended: deque[int] = deque()
        self.awake = False
        self.last = 0

    def _open(self, target: int, timeout: float | None, watched: bool) -> int:
        with BELL:
            self.last += 1
            end = None if timeout is None else time.monotonic() + timeout
            self.table[self.last] = SimpleNamespace(
                state="waiting", target=target, end=end, status=0, value=None, watched=watched
            )
            return self.last

    def _put(self, box: Mailbox, target: int, message: tuple[Any, ...], timeout: float | None, watched: bool) -> int:
        reference = self._open(target, timeout, watched)
        try:
            box.put(_native.MAIL_CALL, reference, *message, timeout)
        except BaseException:
            with BELL:
                del self.table[reference]
            raise
        return reference

    def call(self, box: Any, target: int, name: str, args: Any, kwargs: Any, timeout: float | None, /) -> Any:
        try:
            reference = self._put(box, target, (name, args, kwargs), timeout, False)
        except RingClosed:
            return _native.CALL_CLOSED, None
        except Overloaded:
            return _native.CALL_OVERLOADED, None
        with BELL:
            slot = self.table[reference]
            left = None if slot.end is None else slot.end - time.monotonic()
            BELL.wait_for(lambda: slot.state == "replied", PATIENCE_S if left is None else max(0.0, left))
            del self.table[reference]
            if slot.state != "replied":
                return _native.CALL_TIMEOUT, None
        return slot.status, _native.decode(slot.value)

    def begin(self, box: Any, target: int, name: str, args: Any, kwargs: Any, timeout: float | None, /) -> int:
        return self._put(box, target, (name, args, kwargs), timeout, True)

    def collect(self, timeout: float | None, /) -> list[tuple[int, int, Any]]:
        with BELL:
            while True:
                now = time.monotonic()
                late = [r for r, s in self.table.items() if s.watched and s.end is not None and s.end <= now]
                for reference in late:
                    if self.table[reference].state != "replied":
                        self._end(reference, _native.CALL_TIMEOUT, None)
                ended, self.ended = list(self.ended), deque()
                if ended or self.awake:
                    self.awake = False
                    slots = [(reference, self.table.pop(reference)) for reference in ended]
                    return [(reference, slot.status, _native.decode(slot.value)) for reference, slot in slots]
                ends = [s.end - now for s in self.table.values() if s.watched and s.end is not None]
                BELL.wait(min(ends, default=PATIENCE_S))

    def wake(self) -> None:
        with BELL:
            self.awake = True
            BELL.notify_all()

    def cancel(self, reference: int, /) -> bool:
        with BELL:
            slot = self.table.get(reference)
            if slot is None or slot.state == "replied":
                return False
            del self.table[reference]
            return True

    def _end(self, reference: int, status: int, value: Any) -> None:
        slot = self.table[reference]
        slot.state, slot.status, slot.value = "replied", status, _native.encode(value)
        if slot.watched:
            self.ended.append(reference)
        BELL.notify_all()

    def reply(self, reference: int, status: int, value: Any, /) -> bool:
        _native.encode(value)  # what cannot be sent is known before anything happens
        with BELL:
            slot = self.table.get(reference)
            if slot is None or slot.state != "taken":
                return False
            self._end(reference, status, value)
            return True

    def fail_taken(self, owner: int, reason: Any, /) -> None:
        self._fail("taken", None, reason)

    def fail_waiting(self, target: int, reason: Any, /) -> None:
        self._fail("waiting", target, reason)

    def _fail(self, state: str, target: int | None, reason: Any) -> None:
        with BELL:
            for reference, slot in list(self.table.items()):
                if target in (None, slot.target) and slot.state == state:
                    self._end(reference, _native.CALL_DOWN, reason)


class Changed:
    """The same calls with another method."""

    def __init__(self, calls: Any, **methods: Any) -> None:
        self.calls = calls
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.calls, name)


class Mailbox:
    token = b"t"

    def __init__(self, capacity: int = 1000, on_full: str = "raise") -> None:
        self.capacity = capacity
        self.on_full = on_full
        self.messages: deque[tuple[int, int, bytes]] = deque()
        self.closed = False
        self.done_count = 0

    def put(self, kind: int, reference: int, name: str, args: Any, kwargs: Any, timeout: float | None) -> bool:
        body = _native.encode((name, args, kwargs))
        with BELL:
            if self.on_full == "block":
                BELL.wait_for(lambda: len(self.messages) < self.capacity or self.closed, timeout)
            if self.closed:
                raise RingClosed("closed")
            if len(self.messages) >= self.capacity:
                if self.on_full == "drop_newest":
                    return False
                raise Overloaded("full", capacity=self.capacity)
            self.messages.append((kind, reference, body))
            BELL.notify_all()
            return True

    def cast(self, kind: int, name: str, args: Any, kwargs: Any, timeout: float | None, /) -> bool:
        return self.put(kind, 0, name, args, kwargs, timeout)

    def take(self, calls: Calls, slots: Slots, index: int, seen: int, timeout: float | None, /) -> Any:
        end = None if timeout is None else time.monotonic() + timeout
        with BELL:
            while True:
                if slots.control_count(index) != seen:
                    return slots.control_count(index)
                while self.messages:
                    kind, reference, body = self.messages.popleft()
                    BELL.notify_all()
                    if kind == _native.MAIL_CALL:
                        slot = calls.table.get(reference)
                        if slot is None or slot.state != "waiting":
                            continue
                        slot.state = "taken"
                    try:
                        return (kind, reference, *_native.decode(body))
                    except Exception as error:
                        return (kind, reference, None, error, None)
                left = None if end is None else end - time.monotonic()
                if left is not None and left <= 0:
                    return None
                # TERM must find the main thread awake now and then, as a system call would be interrupted.
                BELL.wait(0.05 if left is None else min(left, 0.05))

    def done(self, slots: Slots, index: int) -> None:
        self.done_count += 1

    def ring(self) -> None:
        with BELL:
            BELL.notify_all()

    def qsize(self) -> int:
        return len(self.messages)

    def close(self) -> None:
        with BELL:
            self.closed = True
            BELL.notify_all()


class Control:
    """The child's end of its socket."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.inbox: deque[tuple[Any, ...]] = deque()
        self.sent: list[tuple[Any, ...]] = []

    def take(self) -> list[tuple[Any, ...]]:
        with BELL:
            messages, self.inbox = list(self.inbox), deque()
            return messages

    def send(self, message: tuple[Any, ...]) -> None:
        marshal.dumps(message)  # what the channel would do
        with BELL:
            self.sent.append(message)
            if message[0] == "system_reply":
                self.world.answers[message[1]] = message[2:]
            BELL.notify_all()


_here: list[Any] = []


class _Here:
    """Pickles as the place where this process keeps it: classes of tests hold events, which do not travel."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> Any:
        _here.append(self.value)
        return (_find, (len(_here) - 1,))


def _find(index: int) -> Any:
    return _here[index]


class Child:
    """One server of the world. `reason` is how its last incarnation ended."""

    def __init__(self, world: World, key: int, cls: Any, args: Any, kwargs: Any, name: str | None, box: Any) -> None:
        self.world, self.key, self.cls, self.name, self.box = world, key, cls, name, box
        self.make = pickle.dumps(_Here((cls, args, kwargs)))
        self.ready = threading.Event()
        self.ended = threading.Event()
        self.reason: Any = None
        self.address = (0, 0, key, b"t%d" % key)
        self.ref = ServerRef(key, self.address, name=name, handlers=cls.__handlers__, runtime=world.word)

    def start(self) -> None:
        self.ready.clear()
        self.ended.clear()
        self.control = Control(self.world)
        threading.Thread(target=self.run, daemon=True).start()
        wait_until(lambda: self.ready.is_set() or self.ended.is_set())

    def run(self, catch_term: bool = False) -> None:
        self.world.homes.own = self.world.make_home(self.key)
        world = self.world
        self.reason = serve(
            *(self.make, self.box, world.calls, world.slots, self.key, self.control),
            on_ready=self.ready.set,
            name=self.name,
            runtime=world.word,
            catch_term=catch_term,
        )
        world.calls.fail_taken(_native.owner_self(), self.reason)
        self.ended.set()

    def tell(self, *message: Any) -> None:
        """As the root does: the message, then the control count."""
        marshal.dumps(message)
        with BELL:
            self.control.inbox.append(message)
        self.world.slots.send_control(self.key)
        self.box.ring()

    def wait(self) -> Any:
        assert self.ended.wait(PATIENCE_S), "the server did not end"
        return self.reason

    def lose(self) -> None:
        """It will not be started again."""
        self.box.close()
        self.world.calls.fail_waiting(self.key, self.reason)


class World:
    word = "world"

    def __init__(self, memory: str = "plain") -> None:
        self.shared = memory == "shared"
        if self.shared:
            self.slots: Any = _native.Slots.create(16)
            self.calls: Any = _native.Calls(self.slots)
            self.calls.reserve()
        else:
            self.slots, self.calls = Slots(), Calls()
        self.children: dict[int, Child] = {}
        self.answers: dict[Any, Any] = {}
        self.timers: dict[int, tuple[int, bytes]] = {}
        self.asked: list[tuple[Any, ...]] = []
        self.homes = threading.local()
        self.outside = self.make_home(None)
        self.token = 0

    def make_home(self, key: int | None) -> Home:
        made = Home(self.calls, SimpleNamespace(ask=self.ask), runtime=self.word, key=key)  # type: ignore[arg-type]
        made._open = lambda address: self.children[address[2]].box  # type: ignore[method-assign]
        made.start = self.start
        made.find = lambda name: None
        return made

    def home(self, runtime: Any = None) -> Home:
        return getattr(self.homes, "own", self.outside)

    def add(self, cls: Any, *args: Any, name: str | None = None, box: Any = None, **kwargs: Any) -> Child:
        key = len(self.children) + 1
        child = self.children[key] = Child(self, key, cls, args, kwargs, name, box or self.box())
        return child

    def box(self, capacity: int = 1000, on_full: str = "raise") -> Any:
        if self.shared:
            return _native.Mailbox.create(capacity, 512, ON_FULL.index(on_full), None, self.calls)
        return Mailbox(capacity, on_full)

    def begin(self, cls: Any, *args: Any, **options: Any) -> Child:
        child = self.add(cls, *args, **options)
        child.start()
        return child

    def start(
        self, cls: Any, args: Any, kwargs: Any, *, name: Any, mailbox: Any, restart: Any, mailbox_on_restart: Any
    ) -> ServerRef:
        return self.begin(cls, *args, name=name, **kwargs).ref

    def ask(self, verb: str, *args: Any, timeout: float | None = None) -> Any:
        self.asked.append((verb, *args))
        if verb == "cancel_timer":
            return self.timers.pop(args[0], (None,))[0]
        child = self.children.get(args[0])
        if child is None:
            raise AskError("not_found", args[0])
        if verb == "who":
            pid = 0 if child.ended.is_set() else 4711
            return {"handlers": child.cls.__handlers__, "mailbox": child.address, "pid": pid}
        if child.ended.is_set():
            raise AskError("noproc")
        if verb == "send_after":
            self.token += 1
            self.timers[self.token] = (args[1], args[2])
            return self.token
        self.token += 1
        token = self.token
        if verb == "stop_child":
            child.tell("system", token, "stop", marshal.dumps(args[1]))
            if not child.ended.wait(PATIENCE_S if timeout is None else timeout):
                raise TimeoutError
            if child.reason != args[1]:
                raise AskError("exit", child.reason)
            return child.reason
        child.tell("system", token, args[1], args[2])
        with BELL:
            if not BELL.wait_for(lambda: token in self.answers or child.ended.is_set(), timeout):
                raise TimeoutError
        if token not in self.answers:
            raise AskError("noproc")
        return self.answers.pop(token)

    def close(self) -> None:
        for child in self.children.values():
            if child.ready.is_set() and not child.ended.is_set():
                child.tell("shutdown")
                child.wait()
        self.outside.close("it was closed")
        if self.shared:
            self.slots.close()
        _here.clear()


@contextmanager
def world(memory: str) -> Iterator[World]:
    before = server_home._finder
    made = World(memory)
    server_home.use(made.home)
    try:
        yield made
    finally:
        made.close()
        server_home._finder = before

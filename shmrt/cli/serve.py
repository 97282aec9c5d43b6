"""`run` of a supervision tree: starts it, waits until it ends or is told to, and says why it gave up.

    TERM, INT      stop in order: the tree in reverse order of its start, its pools with what they accepted, at most
                   `drain_timeout`. A second one stops at once, and the command ends by the signal.
    QUIT           stops at once
    HUP            reads the configuration again (`reload.py`); also the command `reload`
    USR1, USR2     nothing

Handlers only put a word into a queue that the main thread reads; so do the commands of control clients and the thread
that waits for the end of the runtime. While the tree starts, TERM and INT give the start up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

from shmrt.cli.drive import SAME_S
from shmrt.cli.naming import start_named
from shmrt.cli.probes import runtime_options
from shmrt.cli.screen import CliError, Screen
from shmrt.cli.target import Target, within

__all__ = ["serve", "shaped"]

_AFTER_S = 2.0  # what a stop at once may take


class _GiveUpStart(BaseException):
    """TERM or INT while the tree starts."""


class Words:
    """What the main thread hears: ("stop", signal or None, now), ("reload", reply), ("ended", reason)."""

    def __init__(self) -> None:
        self.inbox: SimpleQueue[tuple[Any, ...]] = SimpleQueue()
        self.starting = True
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Words:
        for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
            number = getattr(signal, name)
            self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
            self.inbox.put(("stop", signal.Signals(number), number == signal.SIGQUIT))
            if self.starting:
                self.starting = False
                raise _GiveUpStart
        elif number == signal.SIGHUP:
            self.inbox.put(("reload", None))

    def get(self, seconds: float | None) -> tuple[Any, ...] | None:
        try:
            return self.inbox.get(timeout=seconds)
        except Empty:
            return None


def shaped(tree: Any, settings: dict[str, Any]) -> Any:
    """The tree with what flags, variables or the file say of its strategy and its restarts."""
    import copy

    from shmrt.children import Supervisor

    given = {
        key: settings[f"supervisor.{name}"]
        for key, name in (("strategy", "strategy"), ("max_restarts", "max_restarts"), ("max_seconds", "within"))
        if settings[f"supervisor.{name}"] is not None
    }
    if not given:
        return tree
    if "strategy" in given and not isinstance(tree, Supervisor):
        kind = type(tree).__name__
        raise CliError(f"--strategy shapes a Supervisor, and the target is a {kind}", hint="leave it out", code=2)
    shape = copy.copy(tree)
    for key, value in given.items():
        setattr(shape, key, value)
    return shape


def serve(
    target: Target, settings: dict[str, Any], screen: Screen, settings_again: Callable[[], dict[str, Any]]
) -> int:
    """Runs the tree to its end; the exit code."""
    from shmrt.cli.feeding import Feeders
    from shmrt.cli.reload import Reloader
    from shmrt.runtimes import Runtime

    tree = shaped(target.tree, settings)
    started = time.monotonic()
    with Words() as words, Feeders(target) as feeders:
        runtime = _start(target, tree, settings, words, screen, Runtime)
        feeders.begin(runtime)
        reloader = Reloader(runtime, target, tree, settings, settings_again)
        runtime.on_stop_command(lambda now: words.inbox.put(("stop", None, now)))
        runtime.on_reload_command(lambda: _asked(words))
        threading.Thread(target=lambda: words.inbox.put(("ended", runtime.wait())), daemon=True).start()
        words.starting = False
        name = f"--name {runtime.name} " if runtime.name else ""
        screen.note(f"up after {time.monotonic() - started:.1f} s; `python -m shmrt {name}status` looks at it")
        ending = _Ending(runtime, feeders, settings["runtime.drain_timeout"], screen)
        while (word := words.get(ending.rest())) is None or word[0] != "ended":
            if word is None:
                ending.at_once()
            elif word[0] == "stop":
                ending.stop(*word[1:])
            elif not ending.began:
                reloader.start(word[1], screen)
    return _concluded(word[1], runtime, ending, screen, time.monotonic() - started)


def _start(
    target: Target, tree: Any, settings: dict[str, Any], words: Words, screen: Screen, make: Callable[..., Any]
) -> Any:
    from shmrt.errors import StartError

    options = runtime_options(settings)
    try:
        with within(settings["runtime.ready_timeout"], f"starting the tree of {target.name!r}"):
            return start_named(
                settings["runtime.name"], target.name, lambda name: make(tree, name=name, **options), screen
            )
    except _GiveUpStart:
        word = words.get(0)
        number = word[1] if word else signal.SIGTERM
        raise CliError(f"{number.name}: stopped before the tree was up", code=128 + number, signal=number) from None
    except StartError as error:
        detail = _traceback_of(error.reason)
        raise CliError(f"the supervision tree did not start: {error}", hint=detail, code=5) from None


def _asked(words: Words) -> dict[str, Any]:
    """For the thread of a `reload` command: has it done by the main thread's order, and returns what came of it."""
    reply: SimpleQueue[Any] = SimpleQueue()
    words.inbox.put(("reload", reply))
    result = reply.get()
    if isinstance(result, BaseException):
        raise result
    found: dict[str, Any] = result
    return found


class _Ending:
    """How far the end has come. Whatever takes time is done in threads, so that a second signal is heard."""

    def __init__(self, runtime: Any, feeders: Any, drain_s: float, screen: Screen) -> None:
        self._runtime, self._feeders, self._drain_s, self._screen = runtime, feeders, drain_s, screen
        self.began = False
        self.signal: signal.Signals | None = None
        self.cut_short = False
        self._first_s = self._limit_s = 0.0

    def rest(self) -> float | None:
        """Until something is to be done even if nobody says a word."""
        return max(0.0, self._limit_s - time.monotonic()) if self.began else None

    def stop(self, number: signal.Signals | None, now: bool) -> None:
        again = self.began and time.monotonic() - self._first_s >= SAME_S
        self.signal = self.signal or number
        if now or again or (not self.began and self._drain_s == 0):
            self.at_once()
        elif not self.began:
            self.began, self._first_s = True, time.monotonic()
            self._limit_s = self._first_s + self._drain_s
            who = number.name if number is not None else "stop"
            self._screen.note(f"{who}: stopping in order, at most {self._drain_s:g} s; once more stops now")
            self._feeders.stop()
            threading.Thread(target=self._quietly, args=(self._runtime.stop,), daemon=True).start()

    def at_once(self) -> None:
        if self.cut_short:  # even that took too long: whatever is left ends with this process
            number = self.signal or signal.SIGTERM
            raise CliError(f"{number.name}: it did not end in order", code=128 + number, signal=number)
        self.began = self.cut_short = True
        self._limit_s = time.monotonic() + _AFTER_S
        self._feeders.stop()
        threading.Thread(target=self._quietly, args=(self._kill,), daemon=True).start()

    def _kill(self) -> None:
        with contextlib.suppress(Exception):
            self._runtime.supervisor().stop("killed")
        self._runtime.stop(0.0)

    @staticmethod
    def _quietly(work: Callable[[], None]) -> None:
        """The runtime may end while it is told to; that is what was wanted."""
        from shmrt.errors import ShmrtError

        with contextlib.suppress(ShmrtError):
            work()


def _concluded(reason: Any, runtime: Any, ending: _Ending, screen: Screen, seconds: float) -> int:
    from shmrt.handles import explain
    from shmrt.runtime_named import why_it_gave_up

    if ending.cut_short and ending.signal is not None:
        text = "stopped before everything was down in order"
        raise CliError(f"{ending.signal.name}: {text}", code=128 + ending.signal, signal=ending.signal)
    reports = runtime.events()
    why = why_it_gave_up(reason, reports)
    if not ending.began and why is not None:
        raise CliError(f"the supervision tree ended: {why}", hint="\n  ".join(chain(reports)) or None, code=5)
    if screen.json:
        who = ending.signal.name if ending.signal is not None else None
        body = {"reason": explain(reason), "signal": who, "drained": not ending.cut_short, "seconds": round(seconds, 3)}
        screen.document("shmrt.run/1", body)
    else:
        screen.note(f"ended after {seconds:.1f} s: {explain(reason)}")
    return 1 if ending.cut_short else 0


def chain(reports: list[dict[str, Any]]) -> list[str]:
    """Why a tree gave up, the last cause last: what its children died of, and who was restarted too often."""
    from shmrt.supervise.views import id_text, reason_text

    lines: list[str] = []
    counts: dict[str, int] = {}
    for report in reports:
        if report["context"] not in ("child_terminated", "start_error", "shutdown", "out_of_memory"):
            continue
        where = "/".join(id_text(part) if isinstance(part, str) else "tree" for part in report["supervisor"])
        child = id_text(report["offender"].get("id"))
        verb = {"start_error": "did not start", "shutdown": "was restarted too often"}.get(report["context"], "ended")
        why = "" if report["context"] == "shutdown" else f": {reason_text(report['reason'])}"
        line = f"{where}: child {child} {verb}{why}"
        counts[line] = counts.pop(line, 0) + 1
    for line, count in list(counts.items())[-8:]:
        lines.append(line if count == 1 else f"{line} ({count} times)")
    detail = next((text for report in reversed(reports) if (text := _traceback_of(report["reason"]))), None)
    return lines + (detail.splitlines() if detail else [])


def _traceback_of(reason: Any) -> str | None:
    """The last lines of the user's own traceback, where the reason holds one."""
    from shmrt.supervise.views import reason_detail

    text = reason_detail(reason)
    if text is None:
        return None
    frames = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    own = [line for line in frames if here not in line] or frames
    return f"at {own[-1]}" if own else None

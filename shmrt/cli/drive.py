"""Drives one run of a pipeline: signals, chaos, progress, the consumer, and what it all came to.

The first TERM or INT stops the source and lets everything accepted come out, at most `drain_timeout` seconds;
the second ends the run at once. A run that was drained has ended well; one that was cut short ends the command by
that signal, and so does any whose answer had to be whole.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from shmrt.cli import blame
from shmrt.cli.plain import safe_repr, safe_str
from shmrt.cli.screen import CliError, Screen, write_stdout
from shmrt.cli.target import Target

__all__ = ["Chaos", "Outcome", "drive"]


@dataclass(slots=True)
class Outcome:
    """What a run came to; `summary` is what the target's consumer returned, None without one."""

    summary: Any = None
    report: Any = None
    dead_letters: list[Any] = field(default_factory=list)
    outputs: int = 0
    seconds: float = 0.0
    killed: int = 0
    signal: signal.Signals | None = None
    drained: bool = True


SAME_S = 0.2
"""Programs like timeout(1) signal the process and its group: a second signal this soon is the first one again."""


LONGEST_S = 1e8
"""About three years; setitimer refuses more."""


class StopNow(BaseException):
    """The second signal, or the drain that took too long."""


class Signals:
    """TERM and INT while a run is on. Handlers only set flags, arm the timer, or raise."""

    def __init__(self, drain_timeout: float, screen: Screen) -> None:
        self._limit, self._screen = drain_timeout, screen
        self._before: dict[signal.Signals, Any] = {}
        self.first: signal.Signals | None = None
        self.ordered = False  # by the command `stop`, not by whoever waits for this process
        self._at = 0.0
        self.stopping = threading.Event()

    def __enter__(self) -> Signals:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGALRM:
            raise StopNow
        if self.first is not None and time.monotonic() - self._at < SAME_S:
            return
        if self.first is not None or self._limit == 0:
            self.first = self.first or signal.Signals(number)
            raise StopNow
        self.first, self._at = signal.Signals(number), time.monotonic()
        self.stopping.set()
        signal.setitimer(signal.ITIMER_REAL, min(self._limit, LONGEST_S))
        self._screen.note(f"{self.first.name}: draining, at most {self._limit:g} s; once more stops now")

    def stop(self, now: bool) -> None:
        """The command `stop`, in a thread: as TERM, and `now` as a second one."""
        self.ordered = True
        os.kill(os.getpid(), signal.SIGTERM)
        if now:
            time.sleep(1.5 * SAME_S)
            os.kill(os.getpid(), signal.SIGTERM)


class Chaos:
    """Kills random workers through the root, at exponential intervals drawn from one seed."""

    def __init__(self, runtime: Any, rate: float, seed: int) -> None:
        self._runtime, self._rate, self._random = runtime, rate, random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._kill, name="shmrt-chaos", daemon=True)
        self._victims: set[tuple[int, int]] = set()

    @property
    def killed(self) -> int:
        return len(self._victims)

    def __enter__(self) -> Chaos:
        if self._rate > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._rate > 0:
            self._thread.join()

    def _kill(self) -> None:
        while not self._stop.wait(self._random.expovariate(self._rate)):
            try:
                victim = self._runtime.chaos_kill(self._random)
            except Exception:
                return  # the runtime is closing
            if victim is not None:
                self._victims.add(victim)


class Watched:
    """The run as its consumer sees it, counted and shown."""

    def __init__(self, run: Any, total: int | None, screen: Screen, chaos: Chaos) -> None:
        self._run, self._total, self._screen, self._chaos = run, total, screen, chaos
        self._outputs = self._counted()
        self.count = 0
        self.failure: BaseException | None = None
        """What the run itself raised, so that it is not taken for a mistake of the consumer."""

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._outputs)

    @property
    def report(self) -> Any:
        return self._run.report

    @property
    def dead_letters(self) -> Any:
        return self._run.dead_letters

    def _counted(self) -> Iterator[Any]:
        every = 0.1 if self._screen.terminal else 5.0
        shown = started = time.monotonic()
        for item in self._failing():
            self.count += 1
            yield item
            now = time.monotonic()
            if now - shown >= every:
                shown = now
                width = self._screen.width()
                self._screen.progress(progress_text(self.count, self._total, now - started, self._chaos.killed, width))
        self._screen.clear()

    def _failing(self) -> Iterator[Any]:
        try:
            yield from self._run
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise


def explained(error: BaseException, target: str, source_error: BaseException | None, on_error: str) -> BaseException:
    """What the run raised, in its own words and without a traceback if the user's functions raised it."""
    from shmrt.errors import RuntimeDown, SegmentError

    if error is source_error:
        if isinstance(error, BrokenPipeError) and blame.reader_left():
            return error
        return CliError(
            f"the source of target {target!r} failed: {blame.exception_text(error)}",
            hint="; ".join(
                [*filter(None, [blame.at(error)]), "what it gave before was put out; --on-error is about items only"]
            ),
        )
    notes = getattr(error, "__notes__", ())
    of_an_item = any(note.startswith("in stage ") for note in notes)
    if not isinstance(error, Exception):
        return error
    if isinstance(error, (RuntimeDown, SegmentError, OSError)) and not of_an_item:
        return error
    hints = list(notes[:1])
    if of_an_item and on_error == "raise":
        hints.append("--on-error dead_letter lists what fails and goes on")
    return CliError(f"the run failed: {blame.exception_text(error)}", hint="; ".join(hints) or None)


def progress_text(count: int, total: int | None, seconds: float, killed: int, width: int) -> str:
    """The numbers, with a bar before them where the terminal has room for both."""
    rate = f"{count / max(seconds, 1e-9):,.0f}/s"
    deaths = f"  {killed} workers killed" if killed else ""
    if not total:
        return f"{count:,} done  {rate}{deaths}"
    filled = min(20, 20 * count // total)
    numbers = f"{count:,} of {total:,}  {rate}{deaths}"
    bar = f"[{'#' * filled}{'.' * (20 - filled)}] "
    return bar + numbers if len(bar + numbers) < width else numbers


class Pacer:
    """Shows the progress of something that only calls back with a number."""

    def __init__(self, screen: Screen, total: int, doing: str) -> None:
        self._screen, self._total, self._doing = screen, total, doing
        self._started = self._shown = time.monotonic()

    def __call__(self, count: int) -> None:
        now = time.monotonic()
        if now - self._shown >= (0.1 if self._screen.terminal else 5.0):
            self._shown = now
            room = self._screen.width() - len(self._doing) - 2
            text = progress_text(count, self._total, now - self._started, 0, room)
            self._screen.progress(f"{self._doing}  {text}" if len(text) < room else text)


class Stoppable:
    """The target's source, ended early once `stopping` is set; an item that it gave already is still passed on."""

    def __init__(self, source: Any, stopping: threading.Event) -> None:
        self._source, self._stopping = source, stopping
        self.failure: BaseException | None = None

    def __call__(self) -> Iterator[Any]:
        from shmrt.pipeline import open_source

        try:
            items = iter(open_source(self._source))
            while not self._stopping.is_set():
                try:
                    item = next(items)
                except StopIteration:
                    return
                yield item
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise


def drive(
    target: Target,
    screen: Screen,
    *,
    drain_timeout: float,
    kill: float = 0.0,
    seed: int = 0,
    on_error: str = "dead_letter",
    show: Callable[[Any], None] | None = None,
    name: str | None = None,
    options: dict[str, Any] | None = None,
) -> Outcome:
    """Runs the pipeline to its end. `show` gets every output of a target without a `consume` of its own. `name` is that
    of the runtime; without one it is made of the target's. `options` are further arguments of the `Runtime`."""
    source = source_of(target)
    from shmrt.cli.naming import start_named
    from shmrt.runtimes import Runtime

    outcome = Outcome()
    total = getattr(source, "total", None)
    if total is None and hasattr(source, "__len__"):
        total = len(source)
    started = time.monotonic()
    with Signals(drain_timeout, screen) as signals:
        try:
            with contextlib.ExitStack() as stack:
                more = options or {}
                runtime = start_named(name, target.name, lambda name: Runtime(name=name, **more), screen)
                stack.enter_context(runtime)
                runtime.on_stop_command(signals.stop)
                feed = Stoppable(source, signals.stopping)
                run = stack.enter_context(target.pipeline.run(feed, on_error=on_error))
                chaos = stack.enter_context(Chaos(runtime, kill, seed))
                watched = Watched(run, total, screen, chaos)
                try:
                    if target.consume is not None:
                        outcome.summary = consumed(target, watched)
                    else:
                        for item in watched:
                            if show is not None:
                                show(item)
                except BaseException as error:
                    if error is not watched.failure or isinstance(error, StopNow):
                        raise
                    raise explained(error, target.name, feed.failure, on_error) from None
                finally:
                    outcome.outputs, outcome.killed = watched.count, chaos.killed
                    outcome.report, outcome.dead_letters = run.report, list(run.dead_letters)
        except StopNow:
            outcome.drained = False
    outcome.signal = None if signals.ordered and outcome.drained else signals.first
    outcome.seconds = time.monotonic() - started
    screen.clear()
    return outcome


def consumed(target: Target, watched: Watched) -> Any:
    """What the target's `consume` makes of the run."""
    return blame.call(
        "its 'consume'",
        target.name,
        lambda: target.consume(watched),
        lambda error: error is watched.failure or isinstance(error, StopNow),
    )


def source_of(target: Target) -> Any:
    """The pipeline's own source; a pipeline without one cannot be run from a command line."""
    if not target.pipeline.has_source:
        raise CliError(
            f"target {target.name!r}: the pipeline has no source", hint="add .source(iterable or callable)", code=2
        )
    return target.pipeline._source


def evidence(letter: Any) -> dict[str, Any]:
    """What is known about an item that was given up, as plain data."""
    error = letter.error
    number = getattr(error, "signal", None)
    return {
        "item": letter.item,
        "stage": letter.stage,
        "attempts": letter.attempts,
        "error": type(error).__name__,
        "signal": number.name if number else None,
        "exitcode": getattr(error, "exitcode", None),
        "message": (safe_str(error).splitlines() or [""])[0],
    }


def evidence_line(found: dict[str, Any]) -> str:
    item = safe_repr(found["item"])
    shown = item if len(item) <= 160 else item[:157] + "..."
    how = f"signal {found['signal']}" if found["signal"] else found["message"]
    return f"given up: {shown} after {found['attempts']} attempts in {found['stage']}: {found['error']} ({how})"


def finish(outcome: Outcome, *, partial: str | None = None) -> None:
    """Ends the command by the signal that ended the run, if it cut the run short.

    With `partial` a drained run is too little as well, since its source was not read to the end: that is the message.
    """
    write_stdout()
    if outcome.signal is None or (outcome.drained and partial is None):
        return
    text = partial if outcome.drained and partial else "stopped before everything accepted was done"
    raise CliError(f"{outcome.signal.name}: {text}", code=128 + outcome.signal, signal=outcome.signal)

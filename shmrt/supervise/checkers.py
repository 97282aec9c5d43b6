"""The processes that run health checks: one for each check, started, told to run, watched and killed by the root.

    asleep ── start ──> starting ── ready ──> running ── answer ──> idle ── start ──> running
                            │                    │                    └── a minute ──> asleep
                            └── its end, its time is over: a failed result ──> asleep

A process stays for the next run, and is replaced when it was killed or died. Nothing of the user's is looked at here:
a check is bytes, its answer plain values. The time of a run counts from when its process is ready to begin; getting
there has a limit of its own, so that nobody waits for a machine that starts no processes.

If a check's process dies, hangs or closes its connection, that is the result of this run, and nobody else's affair.
"""

from __future__ import annotations

from time import monotonic_ns

from shmrt import _native
from shmrt.process import death
from shmrt.supervise.crew import Crew, Worker
from shmrt.supervise.kin import Kin, Unkept, signal_name
from shmrt.supervise.protocol import FIRST_KIN

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.supervise.nested import Nested
    from shmrt.supervise.staff import Staff
    from shmrt.supervise.starting import Starting

__all__ = ["START_NS", "Checker", "Checkers", "CheckerCrew"]

START_NS = 5_000_000_000
_IDLE_NS = 60_000_000_000
_FIRST = 1 << 50  # their numbers, far above the keys of children
LOOP = "shmrt.supervise.checker:CheckerLoop"


class CheckerLine:
    """Takes the events of one crew."""

    __slots__ = ("checker", "hear")
    closed = False
    pending = False

    def __init__(self, checker: Checker, hear: Callable[[Checker, tuple[Any, ...]], None]) -> None:
        self.checker = checker
        self.hear = hear

    def send(self, message: tuple[Any, ...]) -> None:
        self.hear(self.checker, message)


class CheckerCrew(Crew):
    """One slot, one process at a time, as long as there is one."""

    may_stand_by = False
    kin = False  # it is neither a child's nor a pool's

    def __init__(self, checker: Checker, slot: int, line: Any) -> None:
        super().__init__(FIRST_KIN + _FIRST + checker.number, checker.spec(), slot, 1, [], line)
        self.keeper = Unkept()  # type: ignore[assignment]
        self.orphaned = True  # no hub frees its slot: the root does
        self.checker = checker


class Run:
    """One run, from the wish to its result; `waiters` are called with the result."""

    __slots__ = ("attempted", "deadline_ns", "sent", "since_ns", "waiters")

    def __init__(self, now: int) -> None:
        self.since_ns = now
        self.deadline_ns = now + START_NS
        self.attempted = False  # a process was started for it
        self.sent = False
        self.waiters: list[Callable[[dict[str, Any]], None]] = []


class Checker:
    """One check. `row` is what the root knows of it (`shmrt/guard/registry.py`), `kin` the child that it stands
    beside."""

    __slots__ = (
        "crew",
        "dropped",
        "idle_ns",
        "kin",
        "loaded",
        "number",
        "row",
        "run",
        "runs",
        "status",
        "surroundings",
    )

    def __init__(self, number: int, row: dict[str, Any], surroundings: dict[str, Any], kin: Kin | None = None) -> None:
        self.number = number
        self.row = row
        self.surroundings = surroundings
        self.kin = kin
        self.crew: CheckerCrew | None = None
        self.run: Run | None = None
        self.runs = 0
        self.loaded: bytes | None = None  # what its process has unpickled
        self.idle_ns = 0
        self.status: str | None = None  # of its last result
        self.dropped = False

    @property
    def worker(self) -> Worker | None:
        return None if self.crew is None else next(iter(self.crew.workers.values()), None)

    def spec(self) -> dict[str, Any]:
        return {
            "name": f"check {self.row['name']}",
            "workers": 1,
            "inherit": self.surroundings["inherit"],
            "log_level": self.surroundings["log_level"],
            "loop": LOOP,
            "check": self.row["name"],
        }


class Checkers:
    """All of them. `on_result(checker, result)` is called before whoever waits; `who(kin)` describes a child."""

    def __init__(
        self,
        staff: Staff,
        starting: Starting,
        nested: Nested,
        on_result: Callable[[Checker, dict[str, Any]], None],
        who: Callable[[Kin], dict[str, Any]],
    ) -> None:
        self.staff = staff
        self.starting = starting
        self.nested = nested
        self.on_result = on_result
        self.who = who
        self._all: dict[int, Checker] = {}
        self._count = 0

    def make(self, row: dict[str, Any], surroundings: dict[str, Any], kin: Kin | None = None) -> Checker:
        self._count += 1
        checker = self._all[self._count] = Checker(self._count, row, surroundings, kin)
        return checker

    def drop(self, checker: Checker) -> None:
        """It is nobody's check any more."""
        checker.dropped = True
        if checker.run is not None:
            self._finish(checker, "unhealthy", error="the check was taken away")
        self._kill(checker)
        if checker.crew is None:
            self._all.pop(checker.number, None)

    # ---- running ----------------------------------------------------------------------------------------------------
    def start(self, checker: Checker, then: Callable[[dict[str, Any]], None], now: int) -> None:
        """Runs it, or joins the run that is going on; `then(result)` follows, maybe at once."""
        begins = checker.run is None
        if checker.run is None:
            checker.run = Run(now)
            checker.runs += 1
        checker.run.waiters.append(then)
        if begins:
            self._go_on(checker, now)

    def _go_on(self, checker: Checker, now: int) -> None:
        run, one = checker.run, checker.worker
        assert run is not None
        if one is None and run.attempted:
            self._finish(checker, "unhealthy", error="its process ended before it was ready")
        elif one is None:
            self._start_process(checker, run, now)
        elif one.ready and not one.dying and not run.sent:
            self._send(checker, one, run, now)

    def _start_process(self, checker: Checker, run: Run, now: int) -> None:
        if checker.crew is None:
            slot = self.nested.allot_child(_FIRST + checker.number)
            if not slot:
                self._finish(checker, "unhealthy", error="the process table has no slot left for it")
                return
            checker.crew = CheckerCrew(checker, slot, CheckerLine(checker, self._hear))
            self.staff.crews[checker.crew.id] = checker.crew
        run.attempted = True
        checker.loaded = None
        if not self.starting.start(checker.crew, now) and checker.run is run and not checker.crew.workers:
            self._finish(checker, "unhealthy", error="its process could not be started")
            self._release(checker)

    def _send(self, checker: Checker, one: Worker, run: Run, now: int) -> None:
        if one.channel is None or one.channel.closed:
            self._kill(checker)
            return
        run.sent = True
        run.deadline_ns = now + int(checker.row["timeout_ns"])
        what = checker.row["what"]
        target = None if checker.kin is None else (checker.kin.key, self.who(checker.kin))
        one.channel.send(("check", checker.runs, None if what == checker.loaded else what, target))
        checker.loaded = what

    def _finish(
        self, checker: Checker, status: str, detail: Any = None, value: Any = None, unit: Any = None, error: Any = None
    ) -> None:
        run, checker.run = checker.run, None
        assert run is not None
        now = checker.idle_ns = monotonic_ns()
        row = checker.row
        result = {
            "name": row["name"],
            "key": row["name"],
            "groups": row["groups"],
            "status": status,
            "critical": row["critical"],
            "detail": detail,
            "value": value,
            "unit": unit,
            "error": error,
            "seconds": (now - run.since_ns) / 1e9,
            "ns": now,
        }
        self.on_result(checker, result)
        for then in run.waiters:
            then(result)

    # ---- what happens to processes ----------------------------------------------------------------------------------
    def answered(self, one: Worker, number: int, *finding: Any) -> None:
        """("checked", ...) of a check's process."""
        checker: Checker = one.crew.checker  # type: ignore[attr-defined]
        if checker.run is not None and checker.run.sent and number == checker.runs and len(finding) == 5:
            self._finish(checker, *finding)

    def _hear(self, checker: Checker, message: tuple[Any, ...]) -> None:
        verb = message[0]
        if verb == "ready":
            if checker.run is not None:
                self._go_on(checker, monotonic_ns())
        elif verb == "start_failed":
            if checker.run is not None and checker.run.attempted and not checker.run.sent:
                self._finish(checker, "unhealthy", error=f"its process could not be started: {message[4]}")
        elif verb == "gone":
            self._gone(checker, int(message[3]), bool(message[4]))

    def _gone(self, checker: Checker, status: int, oom: bool) -> None:
        run = checker.run
        if run is not None and run.sent:
            self._finish(checker, "unhealthy", error=_crashed(status, oom))
            run = checker.run  # whoever heard of it may have started another one
        if run is not None:
            self._go_on(checker, monotonic_ns())
        if checker.run is None and checker.worker is None:
            self._release(checker)

    def _release(self, checker: Checker) -> None:
        """It has no process, and needs no slot."""
        if checker.crew is not None:
            self.staff.crews.pop(checker.crew.id, None)
            self.nested.forget_child(_FIRST + checker.number)
            checker.crew = None
        if checker.dropped:
            self._all.pop(checker.number, None)

    def _kill(self, checker: Checker) -> None:
        one = checker.worker
        if one is not None and not one.dying:
            self.staff.order_and_kill(one, _native.KILL_STOP)

    # ---- what time brings -------------------------------------------------------------------------------------------
    def settle(self, now: int) -> None:
        for checker in list(self._all.values()):
            run, one = checker.run, checker.worker
            if run is None:
                if one is not None and now >= checker.idle_ns + _IDLE_NS:
                    self._kill(checker)
            elif run.sent and one is not None and (one.channel is None or one.channel.closed) and not one.dying:
                self._kill(checker)  # its result will be how it ended
            elif now >= run.deadline_ns:
                self._kill(checker)
                self._finish(checker, "unhealthy", error=self._late(checker, run))

    @staticmethod
    def _late(checker: Checker, run: Run) -> str:
        if not run.sent:
            return f"timeout: it had no process after {START_NS / 1e9:g} s"
        return f"timeout: no answer within {checker.row['timeout_ns'] / 1e9:g} s; its process was killed"

    def wait_ns(self, now: int) -> int | None:
        due = [checker.run.deadline_ns - now for checker in self._all.values() if checker.run is not None]
        due += [
            checker.idle_ns + _IDLE_NS - now
            for checker in self._all.values()
            if checker.run is None and (one := checker.worker) is not None and not one.dying
        ]
        return max(0, min(due)) if due else None

    def forgive(self, late: int) -> None:
        for checker in self._all.values():
            checker.idle_ns += late
            if checker.run is not None:
                checker.run.deadline_ns += late

    def fell(self) -> None:
        """The runtime ends."""
        for checker in list(self._all.values()):
            self.drop(checker)


def _crashed(status: int, oom: bool) -> str:
    """How the process ended, of a check that did not answer."""
    import os

    if os.WIFSIGNALED(status):
        return f"crashed: killed by {signal_name(os.WTERMSIG(status))}{' (out of memory)' if oom else ''}"
    return f"crashed: its process {death.describe_status(status)} before it answered"

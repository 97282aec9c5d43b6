"""How the runtime is: the root's half of `shmrt.health`.

Somebody asks (the program, a worker, a client of the control socket); the checks that are wanted run at the same time
(`checkers.py`); when all have answered or their time is over, what the root knows by itself is added
(`decide/health_facts.py`) and the answer goes out. A check that runs already is joined.

Whose checks there are:

    the program's     come along when the program asks; for anybody else the root asks the program for them,
                      ("checks", number), and does with the last ones if it does not answer within a second
    a child's         come with its specification; run again and again while it is up (`health_watch.py`), and when
    somebody
                      asks

Each change of a check's status is a report, context "health_change".
"""

from __future__ import annotations

from time import monotonic_ns

from shmrt.decide import health_facts
from shmrt.decide.health import DEGRADED, HEALTHY, UNHEALTHY, overall
from shmrt.supervise.checkers import START_NS, Checker, Checkers
from shmrt.supervise.health_facts import Facts
from shmrt.supervise.health_watch import Watching, state_of

TYPE_CHECKING = False  # the module `typing` costs more than all else here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from shmrt.supervise.asks import Asks
    from shmrt.supervise.crew import Worker
    from shmrt.supervise.kin import Kin
    from shmrt.supervise.tree import Trees

    Answer = Callable[[bool, Any], None]

__all__ = ["Health"]

_PROGRAM_NS = 1_000_000_000  # for the program to send its checks
_PATIENCE_NS = 500_000_000  # for workers that are just starting
_KEPT_NS = 60_000_000_000  # an answer that nobody fetches
_OWN_GROUPS = ("live", "ready", "startup")


class Request:
    """Somebody's question. `begun(ok, value)` is told once what it will take, `ended(body)` what came of it."""

    __slots__ = (
        "begun",
        "body",
        "done_ns",
        "ended",
        "group",
        "known",
        "left",
        "number",
        "pull_ns",
        "rows",
        "settle_ns",
    )

    def __init__(self, number: int, group: str | None, begun: Answer) -> None:
        self.number = number
        self.group = group
        self.begun = begun
        self.ended: list[Callable[[dict[str, Any]], None]] = []
        self.rows: list[dict[str, Any] | None] = []
        self.known: list[dict[str, Any]] = []  # checks that need no process: looked at last
        self.left = -1  # checks without a result; -1: they are not begun
        self.pull_ns = 0  # when the program's checks are no longer waited for
        self.settle_ns = 0  # when its workers are no longer waited for
        self.body: dict[str, Any] | None = None
        self.done_ns = 0

    def wants(self, groups: Any) -> bool:
        return self.group is None or self.group in groups


class Health:
    """Made when the first child with checks is planted, or when somebody first asks."""

    def __init__(self, trees: Trees, asks: Asks) -> None:
        self.trees = trees
        self.asks = asks
        self.checkers = Checkers(
            trees.staff, trees.starting, trees.nested, self._result, lambda kin: self.asks.who(kin.key)
        )
        self.facts = Facts(trees)
        self._program: dict[str, Checker] = {}
        self._rows: list[dict[str, Any]] = []  # the program's, as it last sent them
        self._surroundings: dict[str, Any] | None = None
        self.watching = Watching(trees, self.checkers, self._run)
        self._requests: dict[int, Request] = {}
        self._own: dict[str, str] = {}  # the status of each check of the root's own when it was last looked at
        self._count = 0

    # ---- asking -----------------------------------------------------------------------------------------------------
    def ask(self, who: Worker | None, number: int, group: str | None, rows: Any, surroundings: Any) -> None:
        """("ask", number, "health", ...)."""

        def begun(ok: bool, value: Any) -> None:
            self._tell(who, number, ok, value)

        self.request(group, begun, rows if who is None else None, surroundings)

    def wait(self, who: Worker | None, number: int, request_number: int) -> None:
        """("ask", number, "health_wait", ...)."""
        request = self._requests.get(request_number)
        if request is None:
            self._tell(who, number, False, ("not_found", request_number))
        elif request.body is not None:
            self._tell(who, number, True, request.body)
            del self._requests[request_number]
        else:
            request.ended.append(lambda body: self._tell(who, number, True, body))

    def _tell(self, who: Worker | None, number: int, ok: bool, value: Any) -> None:
        if who is None or who.channel is not None:
            self.trees.send_to(who, ("answer", number, ok, value))

    def request(self, group: str | None, begun: Answer, rows: Any = None, surroundings: Any = None) -> Request:
        """`begun(True, (number, most_ns))` or `begun(False, (code, more))`. Without `rows` the program is asked."""
        now = monotonic_ns()
        self._count += 1
        request = self._requests[self._count] = Request(self._count, group, begun)
        if rows is not None:
            self._take(rows, surroundings)
            self._begin(request, now)
        else:
            request.pull_ns = now + _PROGRAM_NS
            self.trees.staff.channel.send(("checks", request.number))
        return request

    def heard_checks(self, number: int, rows: Any, surroundings: Any) -> None:
        """The program's answer; None: it could not say, which its own log tells."""
        if rows is not None:
            self._take(rows, surroundings)
        request = self._requests.get(number)
        if request is not None and request.left < 0:
            self._begin(request, monotonic_ns())

    def _take(self, rows: list[dict[str, Any]], surroundings: dict[str, Any]) -> None:
        """The program's checks as they are now."""
        for row in rows:
            self.trees.warm(row["what"] if row["kind"] == "call" else b"", surroundings)
        self._rows, self._surroundings = rows, surroundings
        names = {row["name"] for row in rows if row["kind"] == "call"}
        for name in [name for name in self._program if name not in names]:
            self.checkers.drop(self._program.pop(name))
        for row in rows:
            if row["kind"] == "call":
                known = self._program.get(row["name"])
                if known is None:
                    self._program[row["name"]] = self.checkers.make(row, surroundings)
                else:
                    known.row, known.surroundings = row, surroundings

    # ---- one request ------------------------------------------------------------------------------------------------
    def _begin(self, request: Request, now: int) -> None:
        groups = {*_OWN_GROUPS, *(group for row in self._rows for group in row["groups"])}
        groups |= {group for _, checker in self.watching.checkers() for group in checker.row["groups"]}
        if request.group is not None and request.group not in groups:
            del self._requests[request.number]
            request.begun(False, ("no_group", sorted(groups)))
            return
        request.left = 0
        wanted: list[tuple[Checker, str | None]] = []
        for row in self._rows:
            if request.wants(row["groups"]):
                if row["kind"] == "call":
                    wanted.append((self._program[row["name"]], None))
                else:
                    request.known.append(row)
        wanted += [
            (checker, path) for path, checker in self.watching.checkers() if request.wants(checker.row["groups"])
        ]
        if request.pull_ns and now >= request.pull_ns:
            request.rows.append(self._unanswered(now))
        most = max([0, *(int(checker.row["timeout_ns"]) for checker, _ in wanted)])
        request.begun(True, (request.number, most + (START_NS if wanted else 0) + _PATIENCE_NS))
        request.left = len(wanted) + 1  # until all of them are begun
        for checker, of in wanted:
            self._run_for(request, checker, of, now)
        self._one_less(request)

    def _run_for(self, request: Request, checker: Checker, path: str | None, now: int) -> None:
        at = len(request.rows)
        request.rows.append(None)

        def then(result: dict[str, Any]) -> None:
            request.rows[at] = {**result, "of": path, "key": health_facts.key_of(result["name"], path)}
            self._one_less(request)

        state = None if checker.kin is None else state_of(self.trees, checker.kin)
        if checker.kin is None or state == "up":
            self._run(checker, then, now)
        elif state in (None, "down"):  # it ended in order, or somebody has stopped it: there is nothing to check
            self._one_less(request)
        else:
            then({**self._row_of(checker.row, (UNHEALTHY, None, None, None, f"its child is {state}"), now)})

    def _one_less(self, request: Request) -> None:
        request.left -= 1
        if request.left == 0:
            request.settle_ns = monotonic_ns() + _PATIENCE_NS
            self._conclude(request, monotonic_ns())

    def _conclude(self, request: Request, now: int) -> None:
        """With what the root knows by itself. Workers that start just now are given a moment."""
        if now < request.settle_ns and request.wants(("ready", "startup")) and self.facts.settling():
            return
        rows = [self._known(row, now) for row in request.known] + [row for row in request.rows if row is not None]
        own = self.facts.rows(now)
        for row in own:
            self._note_own(row, "runtime")
        rows += [row for row in own if request.wants(row["groups"])]
        status = overall((row["status"], row["critical"]) for row in rows)
        request.body, request.done_ns = {"status": status, "checks": rows, "group": request.group}, now
        for ended in request.ended:
            ended(request.body)
            self._requests.pop(request.number, None)

    # ---- what is known without running anything ---------------------------------------------------------------------
    def _row_of(self, row: dict[str, Any], finding: Any, now: int) -> dict[str, Any]:
        return {**health_facts.row_of(row["name"], row["groups"], finding, row["critical"]), "ns": now}

    def _known(self, row: dict[str, Any], now: int) -> dict[str, Any]:
        """Of one that needs no process: "said" by the program, or about a pool."""
        found = self._row_of(row, row["what"] if row["kind"] == "said" else self._pool_finding(row["what"]), now)
        self._note_own(found, "program")
        return {**found, "key": health_facts.key_of(row["name"], None)}

    def _pool_finding(self, which: int | str) -> Any:
        for pool in self.facts.pools():
            if which in (pool["number"], pool["name"]) and not pool["removing"]:
                return health_facts.pool_finding(pool)
        return UNHEALTHY, None, None, None, "there is no such pool any more"

    def _unanswered(self, now: int) -> dict[str, Any]:
        detail = f"it did not send its checks within {_PROGRAM_NS / 1e9:g} s; they run as they were the last time"
        return {**health_facts.row("program:answers", ("ready",), DEGRADED, detail=detail), "ns": now}

    def _run(self, checker: Checker, then: Callable[[dict[str, Any]], None], now: int) -> None:
        """In its process, unless the answer is known without."""
        if checker.row["kind"] == "call":
            self.checkers.start(checker, then, now)
            return
        what = checker.row["what"]
        result = self._row_of(checker.row, what if checker.row["kind"] == "said" else self._pool_finding(what), now)
        self._result(checker, result)
        then(result)

    # ---- changes ----------------------------------------------------------------------------------------------------
    def _result(self, checker: Checker, result: dict[str, Any]) -> None:
        before, checker.status = checker.status, result["status"]
        kin = checker.kin
        path = ("program",) if kin is None else self._path_of(kin)
        self._note(before, result, path, 0 if kin is None else kin.key, None if kin is None else kin.pid)

    def _path_of(self, kin: Kin) -> tuple[Any, ...]:
        return self.trees.path_of(kin.key) if kin.key in self.trees.tree.owners else kin.path

    def _note_own(self, row: dict[str, Any], whose: str) -> None:
        before = self._own.get(row["name"])
        self._own[row["name"]] = row["status"]
        if row["name"] != "runtime:started":
            self._note(before, row, (whose,), 0, None)

    def _note(self, before: str | None, row: dict[str, Any], path: tuple[Any, ...], key: int, pid: int | None) -> None:
        """A change is told; that something is well at the first look is none."""
        if row["status"] == (before or HEALTHY):
            return
        self.trees.note(
            {
                "supervisor": path,
                "context": "health_change",
                "reason": row["error"] or row["detail"] or row["status"],
                "offender": {"id": row["name"], "key": key, "pid": pid},
                "from": before or HEALTHY,
                "to": row["status"],
            }
        )

    # ---- what time brings -------------------------------------------------------------------------------------------
    def settle(self, now: int) -> None:
        self.watching.settle(now)
        self.checkers.settle(now)
        for request in list(self._requests.values()):
            if request.left < 0 and now >= request.pull_ns:
                self._begin(request, now)
            elif request.left == 0 and request.body is None:
                self._conclude(request, now)
            elif request.body is not None and now >= request.done_ns + _KEPT_NS:
                del self._requests[request.number]

    def waits_ns(self, now: int) -> list[int]:
        waits = [wait] if (wait := self.checkers.wait_ns(now)) is not None else []
        waits += self.watching.waits_ns(now)
        for request in self._requests.values():
            if request.body is None and request.left <= 0:
                waits.append(max(0, (request.pull_ns if request.left < 0 else request.settle_ns) - now))
            elif request.body is not None:
                waits.append(request.done_ns + _KEPT_NS - now)
        return waits

    def forgive(self, late_ns: int) -> None:
        self.checkers.forgive(late_ns)
        self.watching.forgive(late_ns)

    def fell(self) -> None:
        self.watching.fell()
        self._program.clear()
        self.checkers.fell()

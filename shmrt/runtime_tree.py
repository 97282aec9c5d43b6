"""The program's half of the trees: it plants them, opens the pools and pipelines that are their children, and keeps
their reports.

The tree itself lives in the root (`supervise/tree.py`). The program tells it what to start; the root tells the program

    open_child, close_child, kill_child    for a child that lives in the program; each is done in a thread of its own
    event                                  a report: kept, logged if somebody died, given to `on_event`
    log                                    what a child logged, for the program's own handlers
    top_ended                              a tree is gone; if it is the runtime's own, so is the runtime

If the root dies, its processes end with it. The program's next root gets the same trees and starts them afresh; pools
of a tree are the program's and go on with what they had accepted.
"""

from __future__ import annotations

import contextlib
import threading
from time import monotonic

from shmrt.errors import AlreadyStarted, NotFound, RuntimeDown, StartError
from shmrt.handles import SupervisorRef, at_fault, explain, make_ref, reason_from
from shmrt.home import Home, home_of
from shmrt.in_program import InProgram, in_thread
from shmrt.planted import NEXT_ROOTS, Planted
from shmrt.supervise.asking import AskError
from shmrt.supervise.link import make_spec

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.runtimes import Runtime

__all__ = ["TreeSide"]

_EVENTS_MAX = 1000
_TRIES = 4  # to plant a tree in the next root
_KILLED_S = 5.0  # a root that runs has killed everything long before
_LOGGED = ("child_terminated", "start_error", "shutdown_error", "shutdown", "out_of_memory")


class TreeSide:
    """See the module. Made when the first tree is planted."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.events: list[dict[str, Any]] = []
        self.inside: dict[int, InProgram] = {}  # pools and pipelines, by key
        self._kept: dict[tuple[Any, ...], InProgram] = {}  # by path, over the death of a root
        self._planted: list[Planted] = []
        self._early: dict[int, Any] = {}  # ends of supervisors that were planted just now, by key
        self._lock = threading.RLock()
        self._replanting = threading.Lock()
        self._numbers = 0
        self._losses = 0  # of roots
        self._stopping = False
        self._over = False

    @property
    def home(self) -> Home:
        from shmrt.home import home

        return (
            home() if self.runtime._slots is None or not hasattr(self.runtime._link, "say") else home_of(self.runtime)
        )

    # ---- planting ---------------------------------------------------------------------------------------------------
    def start_tree(self, tree: Any) -> None:
        """The runtime's own, once."""
        if not any(planted.of_runtime for planted in self._planted):
            tree._started = self.plant(tree, of_runtime=True)

    def plant(self, tree: Any, *, of_runtime: bool = False, again: bool = True) -> SupervisorRef:
        """Starts a top supervisor; returns when its children are up. StartError says which was not."""
        with self._lock:
            self._numbers += 1
            number = self._numbers
        planted = Planted(
            number, tree.specification().to_plain(), make_spec("child", 1), tree.extra(), of_runtime, again
        )
        self._planted.append(planted)
        try:
            self._ask_to_plant(planted)
        except BaseException:
            with self._lock:
                self._planted.remove(planted)
                if all(other.key for other in self._planted):
                    self._early.clear()
            raise
        return SupervisorRef(self.home, planted.key, tree.name, tree.name or "supervisor")

    def _ask_to_plant(self, planted: Planted) -> None:
        where = (planted.of_runtime, planted.number)
        try:
            key = int(self.home.ask("plant", planted.spec, planted.surroundings, planted.extra, *where))
        except AskError as error:
            if error.code != "planted":
                raise self._not_planted(error) from None
            key = int(error.more)  # the root has it already
        with self._lock:
            planted.key = key
            over = key in self._early
            reason = self._early.pop(key, None)
        if over:  # the thread that hears of ends was faster than this one
            self._ended(key, reason)

    def _not_planted(self, error: AskError) -> Exception:
        if error.code == "already_started":
            key, who = error.more
            ref = make_ref(self.home, key, who)
            return AlreadyStarted(f"{ref!r} is running already; its name is taken", ref=ref)
        reason = reason_from(error.more)
        child, inner = at_fault(reason)
        if isinstance(inner, tuple) and inner[:1] == ("already_started",):
            return AlreadyStarted(f"child {child!r} did not start: its name is taken", ref=self._ref_of(inner[1]))
        what = (
            f"child {child!r} did not start: {explain(inner)}"
            if child is not None
            else f"the tree did not start: {explain(reason)}"
        )
        return StartError(what, reason=reason, child=child)

    def _ref_of(self, key: int) -> Any:
        """None if it is gone."""
        try:
            return make_ref(self.home, key, self.home.ask("who", key))
        except AskError:
            return None

    def supervisor(self, name: str | None) -> SupervisorRef:
        try:
            key, who = self.home.ask("find", name)
        except AskError:
            what = "the runtime was given no tree" if name is None else f"no supervisor is named {name!r}"
            raise NotFound(what) from None
        return SupervisorRef(self.home, key, who["name"], who["label"])

    # ---- the end ----------------------------------------------------------------------------------------------------
    def stop_all(self, grace: float | None = None) -> None:
        """Every tree in order, the last one first; what is not gone after `grace` seconds is killed, and so is
        everything after Ctrl-C."""
        self._stopping = True
        end = None if grace is None else monotonic() + grace
        try:
            for planted in reversed(list(self._planted)):
                self._stop(planted, "shutdown", end)
        except BaseException as error:
            soon = monotonic() + _KILLED_S
            for planted in reversed(list(self._planted)):
                with contextlib.suppress(TimeoutError):  # of a root that is stopped; it is killed next
                    self._stop(planted, "killed", soon)
            self._planted.clear()  # nobody is asked again: what is left ends with its root
            if not isinstance(error, TimeoutError):
                raise

    def leave(self) -> None:
        """The runtime has ended: what the program holds of its children is given back."""
        with self._lock:
            self._over = True
            left = [*self.inside.values(), *self._kept.values()]
        for inside in left:
            inside.leave()

    def _stop(self, planted: Planted, reason: str, end: float | None) -> None:
        timeout = None if end is None else max(0.0, end - monotonic())
        try:
            self.runtime._link.ask("stop_planted", planted.number, reason, timeout=timeout)
        except (AskError, RuntimeDown):
            pass  # it is gone

    def has_pool(self, number: int) -> bool:
        """Whether this pool is a child of a tree."""
        return any(
            inside.pool is not None and inside.pool._opened.number == number for inside in list(self.inside.values())
        )

    def _ended(self, key: int, reason: Any) -> None:
        with self._lock:
            planted = next((planted for planted in self._planted if planted.key == key), None)
            if planted is None:
                if any(not planted.key for planted in self._planted):
                    self._early[key] = reason  # of one whose key is not known here yet
                return
            self._planted.remove(planted)
        if planted.of_runtime and not self._stopping:
            self.runtime._down = reason_from(reason)
            in_thread("shmrt-end", self.runtime._end_with_tree)

    # ---- what the root says -----------------------------------------------------------------------------------------
    def hear(self, event: tuple[Any, ...]) -> None:
        """In the thread `shmrt-link`, which must not wait."""
        verb, *rest = event
        if verb == "event":
            self._report(rest[0])
        elif verb == "log":
            from shmrt.process.remote import handle_log

            handle_log(rest[0], 0, rest[1])
        elif verb == "open_child":
            key, incarnation, data, path = rest
            in_thread(f"shmrt-open-{data['label']}", lambda: self._open(key, incarnation, data, path))
        elif verb in ("close_child", "kill_child"):
            inside = self.inside.get(rest[0])
            if inside is not None:
                in_thread(f"shmrt-close-{inside.label}", inside.close if verb == "close_child" else inside.kill)
        elif verb == "top_ended":
            self._ended(*rest)
        elif verb == "root_lost":
            self._root_lost()
        elif verb == "root_started" and rest[1] > 1:
            losses = self._losses
            in_thread("shmrt-replant", lambda: self._replant(losses))

    def reports(self) -> list[dict[str, Any]]:
        """The last ones, with reasons and ids as the user knows them: unpickled here, in whoever asks."""
        found = []
        for report in self.events[-_EVENTS_MAX:]:
            offender = {**report["offender"], "id": reason_from(report["offender"]["id"])}
            path = reason_from(report["supervisor"])
            found.append({**report, "supervisor": path, "offender": offender, "reason": reason_from(report["reason"])})
        return found

    def mailboxes(self) -> dict[str, dict[str, Any]]:
        """What each child's mailbox has counted, by the child's name, else by its path."""
        found = {}
        for name, path, stats in self.home.ask("mailboxes"):
            del stats["taken"]  # by the root
            found[name or "/".join(map(str, reason_from(tuple(path))[1:]))] = stats
        return found

    def _report(self, report: dict[str, Any]) -> None:
        self.events.append(report)
        if len(self.events) > 2 * _EVENTS_MAX:
            del self.events[:-_EVENTS_MAX]
        if report["context"] in _LOGGED:
            import logging

            top, *below = report["supervisor"]
            own = any(planted.of_runtime and top in planted.keys | {0} for planted in self._planted)
            who = "/".join([("tree" if own else "supervisor") if isinstance(top, int) else str(top), *map(str, below)])
            budget = ""
            if "used" in report:
                used, limit = report["used"], report["limit"]
                budget = f", restart {used} of {limit}" if used <= limit else f", one restart more than {limit} allow"
            logging.getLogger("shmrt.supervisor").error(
                "%s: %s of %s: %s%s",
                who,
                report["context"],
                report["offender"]["id"],
                explain(report["reason"]),
                budget,
            )

    def _root_lost(self) -> None:
        if self._planted and not self._stopping:
            import logging

            logging.getLogger("shmrt.supervisor").error(
                "the root supervisor died; the next one starts the trees afresh"
            )
        home = self.runtime._home
        if home is not None:
            home.names.clear()  # the dead root's; nobody else writes them now
            home.calls.fail_all("noconnection")
        with self._lock:
            self._losses += 1
            self._kept |= {inside.path: inside for inside in self.inside.values()}
            self.inside.clear()

    def _replant(self, losses: int) -> None:
        with self._replanting:
            self.runtime._link.hand_over_mailboxes()
            for planted in [planted for planted in self._planted if planted.key and not self._stopping]:
                if not planted.again:
                    self._planted.remove(planted)
                    continue
                if not self._plant_again(planted):
                    return  # that root is gone, too: the next one gets what this one has not kept
            with self._lock:
                if self._losses > losses:
                    return  # as above, noticed later
                forsaken, self._kept = list(self._kept.values()), {}
        for inside in forsaken:  # a dynamic child, or of a tree that could not be planted again
            inside.forsake()

    def _plant_again(self, planted: Planted) -> bool:
        """In the next root. A child that dies in its start ends the start of its tree, so there are some tries. False:
        that root is dead, too."""
        for left in reversed(range(_TRIES)):
            try:
                planted.key = NEXT_ROOTS
                self._ask_to_plant(planted)
                return True
            except RuntimeDown:
                return False
            except Exception as error:
                if left and isinstance(error, StartError) and not self._stopping:
                    continue
                if planted in self._planted:
                    self._planted.remove(planted)
                if planted.of_runtime:
                    self.runtime._down = getattr(error, "reason", None) or str(error)
                    self.runtime._end_with_tree()
                return True
        return True

    def key_now(self, key: int) -> int | None:
        """Of a top supervisor that had this key, maybe in a root that is dead."""
        found = next((planted.key for planted in self._planted if key in planted.keys), None)
        return None if found == NEXT_ROOTS else found  # it is being planted: whoever asks again later finds it

    # ---- children in the program ------------------------------------------------------------------------------------
    def _open(self, key: int, incarnation: int, data: dict[str, Any], path: tuple[Any, ...]) -> None:
        with self._lock:
            if self._over:
                return
            inside = self._kept.pop(path, None)
            if inside is None or inside.is_over:
                inside = InProgram(self, data["label"], path)
            inside.key, inside.incarnation = key, incarnation
            self.inside[key] = inside
        inside.open(data)

    def pool_broken(self, number: int, reasons: list[str]) -> None:
        """In the thread `shmrt-link`."""
        for inside in list(self.inside.values()):
            if inside.pool is not None and inside.pool._opened.number == number:
                text = reasons[-1] if reasons else "its workers cannot be kept running"
                inside.over(("error", "shmrt.errors.PoolBroken", text, "\n".join(reasons)))

    def pool_removed(self, number: int) -> None:
        """In the thread `shmrt-link`: a pool has no workers any more. Maybe somebody shut down a pool of a tree."""
        for inside in list(self.inside.values()):
            if inside.pool is not None and inside.pool._opened.number == number and not inside.is_closing:
                inside.over("normal")

    def pool(self, key: int) -> Any:
        """The pool of a tree, for this program."""
        inside = self.inside.get(key)
        return None if inside is None else inside.pool

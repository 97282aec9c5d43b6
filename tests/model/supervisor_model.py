"""One supervisor of leaves as a page of straight code: the judge of the real machine in random tests.

Nothing takes time here: a start works or fails at once, a child that is asked to end does so at once. So the model is
plain recursion over lists, without inboxes, routines or effects. It shares no code with shmrt/decide.
"""

from __future__ import annotations

from typing import Any

QUIET = ("normal", "shutdown", ("shutdown", "x"))


class Ended(Exception):
    """The supervisor is over."""


class Kid:
    def __init__(self, id: str, restart: str, significant: bool, ending: Any) -> None:
        self.id, self.restart, self.significant, self.ending = id, restart, significant, ending
        self.state = "stopped"  # or "running", "restarting"


class Model:
    """`log` has "+a" and "-a"; `fails` what the next starts of an id do; `clock` and `period` count the same unit."""

    def __init__(self, strategy: str, intensity: int, period: int, auto: str, most: int | None) -> None:
        self.strategy, self.intensity, self.period, self.auto, self.most = strategy, intensity, period, auto, most
        self.kids: list[Kid] = []
        self.log: list[str] = []
        self.times: list[int] = []
        self.fails: dict[str, list[Any]] = {}
        self.clock = 0
        self.ended: Any = None

    def kid(self, id: str) -> Kid | None:
        return next((kid for kid in self.kids if kid.id == id), None)

    # ------------------------------------------------------------------ one child

    def start(self, kid: Kid) -> Any:
        """None: it runs, or was ignored; else why not."""
        self.log.append("+" + kid.id)
        failure = self.fails[kid.id].pop(0) if self.fails.get(kid.id) else None
        if failure is None:
            kid.state = "running"
            return None
        self.log.append("-" + kid.id)
        kid.state = "stopped"
        if failure == "ignore":
            if (kid.restart == "temporary" or self.strategy == "dynamic") and kid in self.kids:
                self.kids.remove(kid)
            return None
        return failure

    def halt(self, kid: Kid) -> None:
        if kid.state == "running":
            self.log.append("-" + kid.id)
        kid.state = "stopped"
        if kid.restart == "temporary" and kid in self.kids:
            self.kids.remove(kid)

    def over(self, reason: Any) -> None:
        for kid in self.kids[::-1]:
            self.halt(kid)
        self.kids = []
        self.ended = reason
        raise Ended

    # ------------------------------------------------------------------ events

    def exit(self, id: str, reason: Any) -> None:
        kid = self.kid(id)
        if kid is None or kid.state != "running":
            return
        self.log.append("-" + id)
        kid.state = "stopped"
        if kid.restart == "permanent" or (kid.restart == "transient" and reason not in QUIET):
            self.restart(kid)
            return
        if kid.restart == "temporary" or self.strategy == "dynamic":
            self.kids.remove(kid)
        others = any(other.significant and other.state != "stopped" for other in self.kids)
        if kid.significant and (self.auto == "any_significant" or (self.auto == "all_significant" and not others)):
            self.over("shutdown")

    def restart(self, kid: Kid) -> None:
        """Attempts until one works or there are too many."""
        while True:
            self.times = [at for at in self.times if self.clock - at <= self.period] + [self.clock]
            if len(self.times) > self.intensity:
                self.over("shutdown")
            group = [kid]
            if self.strategy in ("one_for_all", "rest_for_one"):
                group = self.kids[:] if self.strategy == "one_for_all" else self.kids[self.kids.index(kid) :]
                for other in group[::-1]:
                    self.halt(other)
            for other in group:
                if other in self.kids and self.start(other) is not None:
                    other.state, kid = "restarting", other
                    break
            else:
                return

    def ask(self, verb: str, id: str, spec: Kid | None) -> Any:
        """The answer: a word, or the reason of a failed start in a list."""
        kid = self.kid(id)
        if verb == "start_child" and spec is not None:
            if spec.significant and (self.auto == "never" or spec.restart == "permanent"):
                return "bad_combination"
            if kid is not None and self.strategy != "dynamic":
                return "already_started" if kid.state == "running" else "already_present"
            if self.most is not None and len(self.kids) >= self.most:
                return "max_children"
            failure = self.start(spec)
            if failure is not None:
                return [failure]
            if spec.state == "running" or (spec.restart != "temporary" and self.strategy != "dynamic"):
                self.kids.append(spec)
            return "ok"
        if verb != "terminate_child" and self.strategy == "dynamic":
            return "dynamic"
        if kid is None:
            return "not_found"
        if verb == "terminate_child":
            self.halt(kid)
            if self.strategy == "dynamic" and kid in self.kids:
                self.kids.remove(kid)
            return "ok"
        if kid.state != "stopped":
            return kid.state
        if verb == "delete_child":
            self.kids.remove(kid)
            return "ok"
        failure = self.start(kid)
        return "ok" if failure is None else [failure]

    def stop(self, reason: Any) -> None:
        self.over(reason)

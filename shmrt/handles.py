"""What users hold of a running tree: references to its supervisors and processes.

    SupervisorRef    start, stop, restart and list the children of a supervisor (OTP's `supervisor` functions)
    ProcessRef       a child that runs a function
    ServerRef        a server (`shmrt/server.py`)

All of them work from the program and from any worker, and can be pickled to any process of the same runtime. A refusal
of the supervisor is an error with OTP's word in it: `ChildStateError.state`, `StartError.reason`.

If a process dies, its references stay and speak of the next incarnation of the same child; monitors, links and group
memberships belong to one incarnation. If the root dies, whoever asks just then gets RuntimeDown; the program's next
root starts the trees afresh, and references made before are of no use.
"""

from __future__ import annotations

from collections import namedtuple

from shmrt.child_specs import specify, user_id
from shmrt.children import Child
from shmrt.errors import AlreadyStarted, ChildStateError, NotFound, ServerDown, SpecError, StartError
from shmrt.home import home_by_token
from shmrt.process.server_words import at_fault, explain, plain, reason_from
from shmrt.supervise.asking import AskError

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from typing import Any

    from shmrt.home import Home

__all__ = [
    "Count",
    "ProcessRef",
    "Ref",
    "SupervisorRef",
    "at_fault",
    "explain",
    "make_ref",
    "reason_from",
    "refusal",
    "stop_child",
]


if TYPE_CHECKING:
    from typing import NamedTuple

    class Count(NamedTuple):
        specs: int
        active: int
        supervisors: int
        workers: int
else:
    Count = namedtuple("Count", "specs active supervisors workers", module=__name__)
    Count.__doc__ = "(specs, active, supervisors, workers), also by these names: OTP's `supervisor:count_children/1`."


class Ref:
    """One child of a tree, by its key. Equal references mean the same child of the same runtime."""

    __slots__ = ("_first_key", "_home", "key", "label", "name")

    def __init__(self, home: Home, key: int, name: str | None, label: str) -> None:
        self._home = home
        self.key = self._first_key = key  # the second one is who it is, whatever has its name later
        self.name = name
        self.label = label

    @property
    def pid(self) -> int | None:
        """Process id of its present incarnation; None while it has none."""
        try:
            return self._who()["pid"] or None
        except NotFound:
            return None

    def _who(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._home.ask("who", self.key)
        except AskError:
            raise NotFound(f"{self!r} is gone for good") from None
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ref) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[int, int]:
        return self._first_key, self._home.token

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.label} #{self.key}>"

    def __reduce__(self) -> Any:
        return _rebuild, (type(self), self._home.token, self.key, self.name, self.label)


def _rebuild(cls: type[Ref], token: int, *rest: Any) -> Ref:
    return cls(home_by_token(token), *rest)


class ProcessRef(Ref):
    """A child that runs a function (or, in the program, a pool or pipeline of the tree)."""

    __slots__ = ()

    def stop(self, reason: Any = "shutdown", timeout: float | None = None) -> None:
        """SIGTERM, which the function sees as `Shutdown`; waits for its end. Its supervisor then restarts it or not, by
        its restart type. TimeoutError after `timeout` seconds: it goes on ending. ServerDown if it ended for another
        reason."""
        stop_child(self, reason, timeout)


def stop_child(ref: Ref, reason: Any, timeout: float | None) -> None:
    try:
        ref._home.ask("stop_child", ref.key, plain(reason), timeout=timeout)
    except AskError as error:
        if error.code == "exit":
            raise ServerDown(
                f"{ref!r} ended for another reason: {error.more!r}", reason=reason_from(error.more)
            ) from None
        raise ServerDown(f"{ref!r} has no process to stop", reason="noproc") from None


class SupervisorRef(Ref):
    """A supervisor of a running tree. Its functions are OTP's: `supervisor:start_child/2` and so on."""

    __slots__ = ()

    def start_child(self, child: Any, *args: Any, **options: Any) -> Any:
        """Starts one more child, at the end; returns its reference when it is ready.

        `child` is a `Child`, or what its `start` would be, with arguments and options as `Child` takes them.
        AlreadyStarted if its id or name is alive, ChildStateError ("already_present", "restarting", "max_children"),
        StartError if it did not get ready, SpecError."""
        if not isinstance(child, Child):
            child = Child(child, *args, **options)
        elif args or options:
            raise TypeError("a Child has its arguments already; give them to Child(...)")
        from shmrt.supervise.link import make_spec

        surroundings = make_spec("child", 1)
        found = self._ask("start_child", specify(child).to_plain(), surroundings, about=child.id)
        if found is None:
            return None  # its init answered that it is not needed
        key, who = found
        return make_ref(self._home, key, who)

    def terminate_child(self, which: Any) -> None:
        """Stops it by its `shutdown` and keeps its specification (a temporary one, and a dynamic one, is forgotten).
        `which`: its id; of a dynamic supervisor its reference or pid. NotFound."""
        self._ask("terminate_child", self._name_of(which), about=which)

    def restart_child(self, which: Any) -> Any:
        """Starts a child that was stopped, or ended and was not restarted; its reference. ChildStateError ("running",
        "restarting"), NotFound, StartError."""
        found = self._ask("restart_child", self._name_of(which), about=which)
        return None if found is None else make_ref(self._home, *found)

    def delete_child(self, which: Any) -> None:
        """Forgets the specification of a stopped child. ChildStateError ("running", "restarting"), NotFound."""
        self._ask("delete_child", self._name_of(which), about=which)

    def which_children(self) -> list[tuple[Any, Any, str, str]]:
        """(id, pid or None or "restarting", type, restart) of each child, newest first. Where a worker shows a pid, a
        supervisor shows its reference."""
        return [self._row(row) for row in self._ask("which_children")]

    def which_child(self, which: Any) -> tuple[Any, Any, str, str]:
        """The row of one child. NotFound."""
        return self._row(self._ask("which_child", self._name_of(which), about=which))

    def count_children(self) -> Count:
        """(specs, active, supervisors, workers)."""
        return Count(*self._ask("count_children"))

    def get_childspec(self, which: Any) -> Child:
        """The description that a child was started with. NotFound."""
        from shmrt.child_specs import describe
        from shmrt.decide.specs import ChildSpec

        return describe(ChildSpec.from_plain(self._ask("get_childspec", self._name_of(which), about=which)))

    def child(self, which: Any) -> Any:
        """A reference to a child by its id, whatever its state. NotFound."""
        key = self._ask("key_of", self._name_of(which), about=which)
        return make_ref(self._home, *key)

    def stop(self, reason: Any = "shutdown", timeout: float | None = None) -> Any:
        """Ends it with everything under it, in reverse order of start; "killed" ends it brutally. Its own supervisor
        then decides as after any exit. Returns the reason; TimeoutError after `timeout` seconds (it goes on ending)."""
        try:
            return reason_from(self._of_its_own("stop_supervisor", plain(reason), timeout=timeout))
        except AskError:
            raise ServerDown(f"{self!r} is not running", reason="noproc") from None

    def describe(self) -> dict[str, Any]:
        """The tree below it as plain data: strategy, restarts used, children with their states."""
        found: dict[str, Any] = self._of_its_own("describe")
        return found

    # ---- asking -----------------------------------------------------------------------------------------------------
    def _ask(self, verb: str, *arguments: Any, about: Any = None) -> Any:
        try:
            return self._of_its_own("supervise", verb, *arguments)
        except AskError as error:
            raise refusal(self._home, error, self, about) from None

    def _of_its_own(self, verb: str, *arguments: Any, timeout: float | None = None) -> Any:
        """What the root says of this supervisor, or of whoever has taken its place."""
        try:
            return self._home.ask(verb, self.key, *arguments, timeout=timeout)
        except AskError as error:
            if error.code != "noproc" or not self._renew():
                raise
        return self._home.ask(verb, self.key, *arguments, timeout=timeout)

    def _renew(self) -> bool:
        """Whether another supervisor has its name now, since one above it was restarted; or the next root its tree."""
        key: int | None = None
        if self.name is not None:
            try:
                key = self._home.ask("find", self.name)[0]
            except AskError:
                pass
        elif self._home.owner is not None:
            key = self._home.owner.trees.key_now(self.key)
        if key is None:
            return False
        before, self.key = self.key, key
        return key != before

    def _row(self, row: tuple[Any, ...]) -> tuple[Any, Any, str, str]:
        id, whom, type, restart = row
        if isinstance(whom, tuple):
            key, pid, who = whom
            whom = pid if who is None else make_ref(self._home, key, who)
        return user_id(id), whom, type, restart

    @staticmethod
    def _name_of(which: Any) -> tuple[str, Any]:
        from shmrt.child_specs import plain_id

        key = getattr(which, "key", None)
        return ("key", key) if key is not None else ("id", plain_id(which))


def refusal(home: Home, error: AskError, supervisor: Any, about: Any) -> Exception:
    """The error that a supervisor's answer means."""
    code, more = error.code, error.more
    if code == "already_started":
        key, who = more
        ref = make_ref(home, key, who)
        return AlreadyStarted(f"{supervisor!r}: {about!r} is running already, as {ref!r}", ref=ref)
    if code == "bad_combination":
        return SpecError(f"{supervisor!r}: child {about!r}: {dict(more)}: nothing would come of its end", problem=code)
    if code in ("running", "restarting", "already_present", "max_children", "dynamic"):
        hints = {
            "running": "terminate it first",
            "restarting": "its restart is under way; terminate it first",
            "already_present": "it is there and not running; restart_child or delete_child",
            "max_children": f"{more} children run already, its max_children",
            "dynamic": "a dynamic supervisor forgets whoever ends; start_child and terminate_child are all it has",
        }
        return ChildStateError(f"{supervisor!r}: child {about!r}: {code}: {hints[code]}", state=code)
    if code == "not_found":
        return NotFound(f"{supervisor!r} has no child {about!r}")
    if code == "start_error":
        reason = reason_from(more)
        return StartError(
            f"{supervisor!r}: child {about!r} did not start: {explain(reason)}", reason=reason, child=about
        )
    if code in ("noproc", "ended", "down"):
        return ServerDown(f"{supervisor!r} is not running", reason=reason_from(more) if code != "noproc" else "noproc")
    return RuntimeError(f"{supervisor!r} refused: {error}")


def make_ref(home: Home, key: int, who: dict[str, Any]) -> Any:
    """The right kind of reference to a child."""
    kind = who["kind"]
    if kind == "pool":
        from shmrt.pool_ref import PoolRef

        return PoolRef(key, who["mailbox"], name=who["name"], handlers={}, runtime=home.token)
    if kind == "server":
        from shmrt.server import ServerRef

        return ServerRef(key, who["mailbox"], name=who["name"], handlers=who["handlers"], runtime=home.token)
    cls = SupervisorRef if kind == "supervisor" else ProcessRef
    return cls(home, key, who["name"], who["label"])

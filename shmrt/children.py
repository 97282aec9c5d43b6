"""Descriptions of children and supervisors: plain data that says how something is started, stopped and restarted.

    >>> from shmrt import Child, Supervisor
    >>> tree = Supervisor([Child(print, "hello", id="greeter", restart="transient")], strategy="one_for_all")
    >>> tree.children[0].id, tree.max_restarts, tree.max_seconds
    ('greeter', 3, 5.0)

A description starts nothing. `Runtime(tree)` starts it with the runtime, `start` and `start_child` within one. The
rules are those of OTP's `supervisor`: what contradicts itself is a `SpecError` here, in the caller, and `problem` is
OTP's code for it (`supervisor:check_childspecs/1`).

What a child's `start` may be, and what its process then does:

    a function            runs it; its return is exit reason "normal", an exception ("error", ...)
    a `Server` class      makes an instance, runs `init`, serves its mailbox
    `Pool`                a pool of the program's, made with these arguments; shown as a supervisor, which it is
    a `Pipeline` with a source    one run of it, in the program; its normal end is "normal"
    a supervisor          a subtree: `Supervisor`, `DynamicSupervisor`, `TaskSupervisor`, `PartitionSupervisor`

If a child dies, its supervisor does what `restart` and its own strategy say; if the program dies, all of it ends.
"""

from __future__ import annotations

from shmrt.decide.specs import SupervisorSpec
from shmrt.errors import SpecError
from shmrt.spec import FOREVER, RingSpec, check_count, check_name
from shmrt.startable import Startable

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any

    from shmrt.decide.backoff import Backoff
    from shmrt.guard.health import HealthCheck

__all__ = ["Child", "Supervisor", "backoff_of", "check_intensity", "kind_of"]

type_of = type  # `type` is an argument below
RESTARTS = ("permanent", "transient", "temporary")
STRATEGIES = ("one_for_one", "one_for_all", "rest_for_one")
AUTO_SHUTDOWNS = ("never", "any_significant", "all_significant")
SHUTDOWN_S = 5.0  # of a worker; a supervisor has all the time it needs
MAILBOX = RingSpec(slots=1024)


def _spec_error(problem: str, text: str) -> SpecError:
    return SpecError(text, problem=problem)


class Child:
    """How one child is started, stopped and restarted (OTP's child specification).

    start: see the module; args and kwargs are its arguments. id: its name within the supervisor, by default `name`,
    else start's own name. name: registered while it lives, for `whereis`. restart: "permanent" (always), "transient"
    (after an abnormal end), "temporary" (never). shutdown: seconds to end in order before SIGKILL, "brutal_kill" (at
    once) or "infinity"; None is 5 s, infinity for supervisors. significant: its end may end the supervisor
    (`auto_shutdown`). type: "worker" or "supervisor", None says what `start` is. mailbox: RingSpec of a server's
    mailbox (1024 messages, block). mailbox_on_restart: "keep" or "drop" what a dead server had not begun.
    start_timeout: seconds to get ready, None is no limit. health: `HealthCheck`s that run beside it, again and again,
    while it is up.

    Raises SpecError; its `problem` is OTP's code, such as "bad_combination".
    """

    __slots__ = (
        *(
            "args",
            "health",
            "id",
            "kwargs",
            "mailbox",
            "mailbox_on_restart",
            "name",
            "restart",
            "shutdown",
            "significant",
            "start",
        ),
        *("start_timeout", "type"),
    )

    def __init__(
        self,
        start: Any,
        *args: Any,
        id: object = None,
        name: str | None = None,
        restart: str = "permanent",
        shutdown: float | str | None = None,
        significant: bool = False,
        type: str | None = None,
        kwargs: Mapping[str, Any] | None = None,
        mailbox: RingSpec | None = None,
        mailbox_on_restart: str = "keep",
        start_timeout: float | None = None,
        health: Iterable[HealthCheck] = (),
    ) -> None:
        start = getattr(start, "child_class", start) if isinstance(start, type_of) else start
        kind = kind_of(start)
        if kind in ("supervisor", "pipeline") and (args or kwargs):
            raise _spec_error(
                "invalid_mfa", f"{start!r} is a description already; it takes no arguments, not {args or kwargs!r}"
            )
        self.start = start
        self.args = args
        self.kwargs = _keywords(kwargs)
        _check_in_program(kind, start, args, self.kwargs)
        self.name = name
        check_name(name, "name")
        if id is None:
            id = name or _own_name(start, kind)
        try:
            hash(id)
        except TypeError:
            raise _spec_error(
                "invalid_child_id", f"id={id!r} cannot be compared as a key; use a string or a tuple"
            ) from None
        self.id = id
        self.restart = _one_of(restart, RESTARTS, "restart", "invalid_restart_type")
        self.type = _one_of(
            type or ("supervisor" if kind in ("supervisor", "pool") else "worker"),
            ("worker", "supervisor"),
            "type",
            "invalid_child_type",
        )
        self.shutdown = _check_shutdown(shutdown, self.type)
        if not isinstance(significant, bool):
            raise _spec_error("invalid_significant", f"significant={significant!r} must be True or False")
        self.significant = significant
        if significant and restart == "permanent":
            raise _spec_error(
                "bad_combination",
                f"child {id!r}: significant=True with restart='permanent': it is always restarted, so its end can "
                "never end the supervisor; make it 'transient' or 'temporary'",
            )
        if mailbox is not None and not isinstance(mailbox, RingSpec):
            raise _spec_error("invalid_mailbox", f"mailbox must be a RingSpec, not {mailbox!r}")
        if mailbox is not None and kind != "server":
            raise _spec_error("invalid_mailbox", f"child {id!r}: only a Server has a mailbox, and {start!r} is none")
        self.mailbox = mailbox
        self.mailbox_on_restart = _one_of(mailbox_on_restart, ("keep", "drop"), "mailbox_on_restart", "invalid_mailbox")
        self.start_timeout = _seconds(start_timeout, "start_timeout")
        self.health = () if health in ((), [], None) else _checks_of(kind, id, health)

    def __repr__(self) -> str:
        return f"Child({_own_name(self.start, kind_of(self.start))}, id={self.id!r}, restart={self.restart!r})"


class Supervisor(Startable):
    """Children in order, a strategy, and how many restarts are too many (OTP's `supervisor:init/1`).

    strategy: "one_for_one" restarts the child that died; "rest_for_one" also all that were started after it;
    "one_for_all" all. More than max_restarts restarts within max_seconds end the supervisor with reason "shutdown", and
    its own supervisor decides. auto_shutdown: "never", "any_significant", "all_significant". backoff: seconds before
    the first delayed restart, a mapping with base, max and jitter, or None (restart at once, as OTP does). name: for
    `runtime.supervisor(name)` and `whereis`.

    Raises SpecError that names the offending pair.
    """

    _starts_itself = False

    def __init__(
        self,
        children: Iterable[Child],
        *,
        strategy: str = "one_for_one",
        max_restarts: int = 3,
        max_seconds: float = 5.0,
        auto_shutdown: str = "never",
        backoff: Any = None,
        name: str | None = None,
    ) -> None:
        try:
            self.children = tuple(children)
        except TypeError:
            raise _spec_error(
                "invalid_child_spec", f"children must be a list of Child(...), not {children!r}"
            ) from None
        self.strategy = _one_of(strategy, STRATEGIES, "strategy", "invalid_strategy")
        self.auto_shutdown = _one_of(auto_shutdown, AUTO_SHUTDOWNS, "auto_shutdown", "invalid_auto_shutdown")
        self.max_restarts, self.max_seconds = check_intensity(max_restarts, max_seconds)
        self.backoff = backoff_of(backoff)
        self.name = name
        check_name(name, "name")
        seen: set[object] = set()
        for child in self.children:
            if not isinstance(child, Child):
                raise _spec_error("invalid_child_spec", f"children must be Child(...) descriptions, not {child!r}")
            if child.id in seen:
                raise _spec_error(
                    "duplicate_child_name", f"two children have the id {child.id!r}; give one another id="
                )
            seen.add(child.id)
            check_significant(child, self.auto_shutdown)

    def __repr__(self) -> str:
        name = f", name={self.name!r}" if self.name else ""
        return f"{type(self).__name__}({[child.id for child in self.children]}, strategy={self.strategy!r}{name})"

    def specification(self) -> SupervisorSpec:
        """What the root knows of it. Pickles every child's start: raises what pickling raises."""
        from shmrt.child_specs import specify

        return SupervisorSpec(
            strategy=self.strategy,
            max_restarts=self.max_restarts,
            period=int(self.max_seconds * 1e9),
            auto_shutdown=self.auto_shutdown,
            backoff=self.backoff,
            max_children=None,
            children=tuple(specify(child) for child in self.children),
            name=self.name,
        )

    def extra(self) -> bytes | None:
        """The pickle of what every child's arguments begin with."""
        return None


def _checks_of(kind: str, id: object, health: Any) -> tuple[HealthCheck, ...]:
    from shmrt.guard.health import of_child

    return of_child(kind, id, health)


def _keywords(kwargs: Any) -> dict[str, Any]:
    try:
        found = dict(kwargs or {})
    except (TypeError, ValueError):
        found = {None: None}
    if not all(isinstance(key, str) for key in found):
        raise _spec_error("invalid_mfa", f"kwargs={kwargs!r} must be a dict of keyword arguments")
    return found


def kind_of(start: Any) -> str:
    """function, server, pool, pipeline or supervisor. Raises SpecError for anything else."""
    import sys

    if hasattr(start, "specification") and not isinstance(start, type):
        return "supervisor"
    if isinstance(start, type):
        if _is_server(start):
            return "server"
        pool = sys.modules.get("shmrt.pool")
        if pool is not None and issubclass(start, pool.Pool):
            return "pool"
        if hasattr(start, "specification"):
            raise _spec_error(
                "invalid_mfa",
                f"{start.__name__} is a class; a child's start is one that is made: {start.__name__}(...)",
            )
    pipeline = sys.modules.get("shmrt.pipeline")
    if pipeline is not None and isinstance(start, pipeline.Pipeline):
        return "pipeline"
    pool = sys.modules.get("shmrt.pool")
    if pool is not None and isinstance(start, pool.Pool):
        raise _spec_error(
            "invalid_mfa", f"{start!r} is open already; describe it with Child(Pool, ...) and the supervisor opens it"
        )
    if not callable(start):
        raise _spec_error(
            "invalid_mfa", f"start={start!r} must be a function, a Server class, Pool, a Pipeline or a Supervisor"
        )
    return "function"


def _is_server(start: type) -> bool:
    import sys

    module = sys.modules.get("shmrt.server")
    return module is not None and issubclass(start, module.Server)


def check_intensity(max_restarts: int, max_seconds: float) -> tuple[int, float]:
    try:
        restarts = check_count(max_restarts, "max_restarts", least=0)
    except (TypeError, ValueError) as error:
        raise _spec_error("invalid_intensity", str(error)) from None
    seconds = _seconds(max_seconds, "max_seconds", problem="invalid_period")
    if seconds is None or seconds <= 0:
        raise _spec_error("invalid_period", f"max_seconds={max_seconds!r} must be more than 0 seconds")
    return restarts, seconds


def check_significant(child: Child, auto_shutdown: str) -> None:
    if child.significant and auto_shutdown == "never":
        raise _spec_error(
            "bad_combination",
            f"child {child.id!r}: significant=True with auto_shutdown='never': nothing would come of its end; set the "
            "supervisor's auto_shutdown to 'any_significant' or 'all_significant'",
        )


def backoff_of(value: Any) -> Backoff | None:
    """None, seconds before the first delayed restart, or a mapping with base, max (seconds) and jitter (the part of a
    delay, 0 to 1, that is random)."""
    if value is None:
        return None
    from shmrt.decide.backoff import Backoff

    if isinstance(value, Backoff):
        return value
    settings: dict[str, Any] = dict(value) if hasattr(value, "keys") else {"base": value}
    unknown = settings.keys() - {"base", "max", "jitter"}
    if unknown:
        raise _spec_error("invalid_backoff", f"backoff has no {sorted(unknown)[0]!r}; it has base, max and jitter")
    base = _seconds(settings.get("base", 0.1), "backoff base", problem="invalid_backoff")
    most = _seconds(settings.get("max", 30.0), "backoff max", problem="invalid_backoff")
    if not base or not most or most < base:
        raise _spec_error("invalid_backoff", f"backoff={value!r}: base must be more than 0 and max at least base")
    jitter = settings.get("jitter", 0.5)
    if isinstance(jitter, bool) or not isinstance(jitter, (int, float)) or not 0 <= jitter <= 1:
        raise _spec_error("invalid_backoff", f"backoff jitter={jitter!r} must be from 0 (none) to 1 (all of the delay)")
    return Backoff(free=0, first_ns=int(base * 1e9), cap_ns=int(most * 1e9), jitter=jitter)


def _seconds(value: Any, argument: str, *, problem: str = "invalid_start_timeout") -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value < 0:
        raise _spec_error(problem, f"{argument}={value!r} must be seconds")
    return FOREVER if value > FOREVER else float(value)


def _check_shutdown(value: Any, type: str) -> float | str:
    if value is None:
        return "infinity" if type == "supervisor" else SHUTDOWN_S
    if value in ("brutal_kill", "infinity"):
        return str(value)
    if isinstance(value, str) or _is_no_time(value):
        raise _spec_error("invalid_shutdown", f"shutdown={value!r} must be seconds, 'brutal_kill' or 'infinity'")
    return "infinity" if value > FOREVER else float(value)


def _is_no_time(value: Any) -> bool:
    return isinstance(value, bool) or not isinstance(value, (int, float)) or value != value or value < 0


def _one_of(value: Any, allowed: Sequence[str], argument: str, problem: str) -> str:
    if value not in allowed:
        raise _spec_error(problem, f"{argument}={value!r} must be one of {', '.join(allowed)}")
    return str(value)


def _check_in_program(kind: str, start: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """What the program would find only when it opens the child."""
    if kind == "pipeline" and not start.has_source:
        raise _spec_error("invalid_mfa", f"{start!r} has no source to run from; give it one with .source(...)")
    if kind == "pool":
        from inspect import signature

        try:
            signature(start).bind(*args, **kwargs)
        except TypeError as error:
            raise _spec_error("invalid_mfa", f"Pool does not take that: {error}") from None


def _own_name(start: Any, kind: str) -> str:
    if kind in ("supervisor", "pipeline"):
        return str(getattr(start, "name", None) or type(start).__name__)
    named: Callable[[], str] = lambda: getattr(start, "__name__", None) or type(start).__name__  # noqa: E731
    return str(named())

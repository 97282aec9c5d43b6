"""Erlang/OTP fault tolerance for Python worker processes, at the speed of shared memory.

Names resolve when first used (PEP 562), so importing the package is cheap and starts nothing:

    >>> import shmrt
    >>> shmrt.RingSpec(slots=8)
    RingSpec(slots=8, slot_bytes=512, on_full='block')
"""

from __future__ import annotations

import sys as _sys

if _sys.platform != "linux" or _sys.implementation.name != "cpython" or not (3, 11) <= _sys.version_info[:2] <= (3, 14):
    raise ImportError(
        f"shmrt needs Linux and CPython 3.11 to 3.14; this is {_sys.implementation.name} "
        f"{_sys.version_info[0]}.{_sys.version_info[1]} on {_sys.platform}"
    )
if not getattr(_sys, "_is_gil_enabled", lambda: True)():
    raise ImportError("shmrt does not support free-threaded builds of CPython; use the ordinary build")

TYPE_CHECKING = False
if TYPE_CHECKING:  # the names once more, for type checkers, which do not ask `__getattr__`
    # fmt: off
    # isort: off
    from shmrt.agent import Agent as Agent, AgentServer as AgentServer
    from shmrt.children import Child as Child, Supervisor as Supervisor
    from shmrt.deadlines import deadline as deadline
    from shmrt.errors import AlreadyStarted as AlreadyStarted, BulkheadFull as BulkheadFull, CallTimeout as CallTimeout
    from shmrt.errors import ChildStateError as ChildStateError, CircuitOpen as CircuitOpen, ConfigError as ConfigError
    from shmrt.errors import EndOfRing as EndOfRing, MessageTooLarge as MessageTooLarge, NotFound as NotFound
    from shmrt.errors import Overloaded as Overloaded, PoisonMessage as PoisonMessage, PoolBroken as PoolBroken
    from shmrt.errors import RemoteError as RemoteError, RingClosed as RingClosed, RuntimeDown as RuntimeDown
    from shmrt.errors import SegmentError as SegmentError, ServerDown as ServerDown, ShmrtError as ShmrtError
    from shmrt.errors import Shutdown as Shutdown, SpecError as SpecError, StartError as StartError
    from shmrt.errors import TaskTimeout as TaskTimeout, WorkerCrashed as WorkerCrashed
    from shmrt.guard.breaker import CircuitBreaker as CircuitBreaker
    from shmrt.guard.bulkhead import Bulkhead as Bulkhead
    from shmrt.guard.rate import RateLimit as RateLimit
    from shmrt.guard.bulkheads import Bulkheads as Bulkheads
    from shmrt.guard.fallback import Fallback as Fallback, fallback as fallback
    from shmrt.guard.outcome import Outcome as Outcome
    from shmrt.guard.stale import StaleCache as StaleCache
    from shmrt.guard.health import HealthCheck as HealthCheck, health as health
    from shmrt.guard.report import CheckResult as CheckResult, HealthReport as HealthReport
    from shmrt.handles import Count as Count, ProcessRef as ProcessRef, SupervisorRef as SupervisorRef
    from shmrt.memory.arrays import empty as empty
    from shmrt.memory.ring import Ring as Ring
    from shmrt.monitors import join as join, leave as leave, link as link, members as members, monitor as monitor
    from shmrt.monitors import Monitor as Monitor, unlink as unlink
    from shmrt.pipeline import DeadLetter as DeadLetter, Pipeline as Pipeline
    from shmrt.pool import Future as Future, Pool as Pool
    from shmrt.pool_ref import PoolRef as PoolRef
    from shmrt.process.findings import Degraded as Degraded
    from shmrt.process.server_words import Continue as Continue, Down as Down, Exit as Exit, Sender as Sender
    from shmrt.process.server_words import ignore as ignore, noreply as noreply
    from shmrt.runtimes import Runtime as Runtime
    from shmrt.server import Server as Server, ServerRef as ServerRef, call as call, cast as cast, start as start
    from shmrt.server import whereis as whereis
    from shmrt.server_tools import cancel_timer as cancel_timer, get_state as get_state, replace_state as replace_state
    from shmrt.server_tools import send_after as send_after
    from shmrt.spec import RingSpec as RingSpec
    from shmrt.supervisors import DynamicSupervisor as DynamicSupervisor, PartitionSupervisor as PartitionSupervisor
    from shmrt.task import Task as Task, TaskSupervisor as TaskSupervisor
    from shmrt.runtimes import current
    # isort: on
    # fmt: on

    runtime = current

__version__ = "0.1.0"

_HOME = {
    "Ring": "shmrt.memory.ring",
    "empty": "shmrt.memory.arrays",
    "RingSpec": "shmrt.spec",
    "Pool": "shmrt.pool",
    "Future": "shmrt.pool",
    "Pipeline": "shmrt.pipeline",
    "DeadLetter": "shmrt.pipeline",
    "Runtime": "shmrt.runtimes",
    "runtime": "shmrt.runtimes",
    "Child": "shmrt.children",
    "Supervisor": "shmrt.children",
    "DynamicSupervisor": "shmrt.supervisors",
    "PartitionSupervisor": "shmrt.supervisors",
    "TaskSupervisor": "shmrt.task",
    "Task": "shmrt.task",
    "Bulkhead": "shmrt.guard.bulkhead",
    "CircuitBreaker": "shmrt.guard.breaker",
    "RateLimit": "shmrt.guard.rate",
    "Shutdown": "shmrt.errors",
    "join": "shmrt.monitors",
    "leave": "shmrt.monitors",
    "link": "shmrt.monitors",
    "members": "shmrt.monitors",
    "monitor": "shmrt.monitors",
    "unlink": "shmrt.monitors",
    "deadline": "shmrt.deadlines",
    "Agent": "shmrt.agent",
    "AgentServer": "shmrt.agent",
    "Count": "shmrt.handles",
    "HealthCheck": "shmrt.guard.health",
    "health": "shmrt.guard.health",
    "CheckResult": "shmrt.guard.report",
    "HealthReport": "shmrt.guard.report",
    "Degraded": "shmrt.process.findings",
    "Monitor": "shmrt.monitors",
    "PoolRef": "shmrt.pool_ref",
    "ProcessRef": "shmrt.handles",
    "SupervisorRef": "shmrt.handles",
    "Bulkheads": "shmrt.guard.bulkheads",
    "Fallback": "shmrt.guard.fallback",
    "fallback": "shmrt.guard.fallback",
    "Outcome": "shmrt.guard.outcome",
    "StaleCache": "shmrt.guard.stale",
}
_HOME.update(dict.fromkeys(("Server", "ServerRef", "call", "cast", "start", "whereis"), "shmrt.server"))
_HOME.update(dict.fromkeys(("Continue", "Down", "Exit", "Sender", "ignore", "noreply"), "shmrt.process.server_words"))
_HOME.update(dict.fromkeys(("cancel_timer", "get_state", "replace_state", "send_after"), "shmrt.server_tools"))
_ERRORS = (
    *("AlreadyStarted", "BulkheadFull", "CallTimeout", "ChildStateError", "CircuitOpen", "ConfigError", "EndOfRing"),
    *("MessageTooLarge", "NotFound", "Overloaded", "PoisonMessage", "PoolBroken", "RemoteError", "RingClosed"),
    *("RuntimeDown", "SegmentError", "ServerDown", "ShmrtError", "SpecError", "StartError", "TaskTimeout"),
    *("Shutdown", "WorkerCrashed"),
)
_HOME.update(dict.fromkeys(_ERRORS, "shmrt.errors"))

_MODULES = {"errors": "shmrt.errors", "checks": "shmrt.checks"}

__all__ = [*sorted(_HOME), *_MODULES]


def __getattr__(name: str) -> object:
    if name == "_native":
        # Asked for only while the submodule is not imported yet: a source folder without its core says so in words.
        try:
            __import__("shmrt._native")
        except ModuleNotFoundError:
            raise ImportError(
                f"the C core of shmrt is not built in {__path__[0]}: run `pip install -e .` in that source folder, or "
                "start Python elsewhere to use an installed shmrt"
            ) from None
        return _sys.modules["shmrt._native"]
    home = _MODULES.get(name) or _HOME.get(name)
    if home is None:  # the import machinery asks for submodules this way; the answer must cost nothing
        raise AttributeError(f"module 'shmrt' has no attribute {name!r}")
    from importlib import import_module

    if name in _MODULES:
        return import_module(home)
    if name == "runtime":
        value: object = import_module(home).current
    else:
        value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

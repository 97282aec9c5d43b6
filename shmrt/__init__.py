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
    "Shutdown": "shmrt.errors",
    "join": "shmrt.monitors",
    "leave": "shmrt.monitors",
    "link": "shmrt.monitors",
    "members": "shmrt.monitors",
    "monitor": "shmrt.monitors",
    "unlink": "shmrt.monitors",
    "Agent": "shmrt.agent",
}
_HOME.update(dict.fromkeys(("Server", "ServerRef", "call", "cast", "start", "whereis"), "shmrt.server"))
_HOME.update(dict.fromkeys(("Continue", "Down", "Exit", "Sender", "noreply"), "shmrt.process.server_words"))
_HOME.update(dict.fromkeys(("cancel_timer", "get_state", "replace_state", "send_after"), "shmrt.server_tools"))
_ERRORS = (
    *("AlreadyStarted", "BulkheadFull", "CallTimeout", "ChildStateError", "CircuitOpen", "ConfigError", "EndOfRing"),
    *("MessageTooLarge", "NotFound", "Overloaded", "PoisonMessage", "PoolBroken", "RemoteError", "RingClosed"),
    *("RuntimeDown", "SegmentError", "ServerDown", "ShmrtError", "SpecError", "StartError", "TaskTimeout"),
    *("Shutdown", "WorkerCrashed"),
)
_HOME.update(dict.fromkeys(_ERRORS, "shmrt.errors"))

__all__ = [*sorted(_HOME), "errors"]


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
    home = "shmrt.errors" if name == "errors" else _HOME.get(name)
    if home is None:  # the import machinery asks for submodules this way; the answer must cost nothing
        raise AttributeError(f"module 'shmrt' has no attribute {name!r}")
    from importlib import import_module

    if name == "errors":
        return import_module(home)
    if name == "runtime":
        value: object = import_module(home).current
    else:
        value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

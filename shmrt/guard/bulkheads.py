"""Pools that are isolated from each other, by name.

    >>> with Bulkheads(critical=2, background={"max_workers": 1, "task_timeout": 60}) as bulkheads:
    ...     bulkheads.critical.submit(pow, 2, 10).result(), bulkheads["background"].submit(len, "abc").result()
    (1024, 3)

Each is a `Pool` with workers, lanes and a backlog of its own. What happens in one stays there: a task whose process
dies fails alone (`WorkerCrashed`) and takes neither its caller nor a neighbour along, as with Elixir's `async_nolink`;
one that hangs holds up to its timeout one worker of its own pool; and a full one says `Overloaded` to its own callers,
at once. They share the CPUs, the memory and the root.

A pool starts at its first use. If the program dies, all of them end.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from shmrt.errors import PoolBroken
from shmrt.pool import Pool
from shmrt.pool_options import check_attempts
from shmrt.spec import RingSpec, check_count, check_modules, check_name, check_seconds, check_spin, parse_size

TYPE_CHECKING = False  # `typing` is not worth its time at start
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Any

    from shmrt.children import Child

__all__ = ["MAX_PENDING", "Bulkheads"]

MAX_PENDING = 1024
"""How many tasks a bulkhead accepts that are not done, as a mailbox takes messages, unless it says otherwise."""
_GRACE_S = 5.0


class Bulkheads(Mapping[str, Pool]):
    """Pools by name: `bulkheads.critical` or `bulkheads["critical"]`.

    Each keyword is a bulkhead: a number of workers, or a dict of `Pool` arguments. Other names than identifiers go into
    the first argument, a dict of the same kind; the second is a dict of Pool arguments for those that do not say
    otherwise. Unless told, max_pending is 1024 (running tasks count) and on_full is "raise".

    Iterating gives the names. Raises ValueError or TypeError for a wrong argument, naming the bulkhead, and for a name
    that is a function of this class. Closed by `with` as Pool is, or by `shutdown`.
    """

    def __init__(
        self,
        bulkheads: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        /,
        **more: int | Mapping[str, Any],
    ) -> None:
        given = {**_mapping(bulkheads, "the bulkheads"), **more}
        if len(given) < len(bulkheads or ()) + len(more):
            twice = sorted(set(bulkheads or ()) & set(more))
            raise ValueError(f"bulkhead {twice[0]!r} is given twice")
        if not given:
            raise ValueError("Bulkheads needs at least one, such as Bulkheads(critical=4, background=1)")
        common = _mapping(defaults, "the defaults of bulkheads")
        self._options: dict[str, dict[str, Any]] = {}
        for name, value in given.items():
            _check_bulkhead_name(name)
            self._options[name] = _pool_options(name, value, common)
        self._pools: dict[str, Pool] = {}
        self._opening = {name: threading.Lock() for name in given}
        self._closed = False

    # ---- the pools --------------------------------------------------------------------------------------------------
    def __getitem__(self, name: str) -> Pool:
        pool = self._pools.get(name)
        if pool is not None:
            return pool
        if name not in self._options:
            raise KeyError(f"no bulkhead {name!r}; there are {', '.join(self._options)}")
        with self._opening[name]:  # of this one: nobody waits for the start of another's workers
            if name not in self._pools:
                if self._closed:
                    raise RuntimeError("cannot schedule new futures after shutdown")
                self._pools[name] = Pool(**self._options[name])
            return self._pools[name]

    def __getattr__(self, name: str) -> Pool:
        if name.startswith("_") or name not in self._options:
            known = ", ".join(self.__dict__.get("_options", ()))
            raise AttributeError(f"no bulkhead {name!r}; there are {known}", name=name, obj=self)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._options)

    def __len__(self) -> int:
        return len(self._options)

    def __contains__(self, name: object) -> bool:
        return name in self._options

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self._options]

    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    def start(self) -> Bulkheads:
        """Starts all of them now instead of at their first use."""
        for name in self:
            self[name]
        return self

    # ---- how they are -----------------------------------------------------------------------------------------------
    def stats(self) -> dict[str, dict[str, Any]]:
        """What `Pool.stats` says, by name, with max_pending beside it; {"pending": 0, ...} for those not started."""
        found: dict[str, dict[str, Any]] = {}
        for name, options in self._options.items():
            pool = self._pools.get(name)
            counts: dict[str, Any] = {"pending": 0} if pool is None else pool.stats()
            found[name] = {**counts, "max_pending": options["max_pending"], "started": pool is not None}
        return found

    def health(self) -> dict[str, Any]:
        """`status` of all: healthy if each is, unhealthy if each is, else degraded; `bulkheads`: `Pool.health` by name.
        One that was not started yet is healthy: it starts when it is needed."""
        each: dict[str, dict[str, Any]] = {}
        for name, options in self._options.items():
            pool = self._pools.get(name)
            if pool is None:
                each[name] = {"status": "healthy", "workers_ready": 0, "workers_wanted": options["max_workers"]}
            else:
                each[name] = pool.health()
        found = {one["status"] for one in each.values()}
        status = found.pop() if len(found) == 1 else "degraded"
        return {"status": status, "bulkheads": each}

    def children(self, **options: Any) -> list[Child]:
        """Descriptions of the same pools for a `Supervisor`, which opens and restarts them; `whereis(name)` finds them
        then, from any process. options: as of `Child`, for all: restart=, shutdown=."""
        from shmrt.children import Child

        for taken in ("id", "name", "kwargs"):
            if taken in options:
                raise TypeError(f"children() gives each child its own {taken}; it cannot be the same for all")
        made = []
        for name, kwargs in self._options.items():
            if kwargs.get("runtime") is not None:
                raise ValueError(f"bulkhead {name!r} has a runtime=; a pool of a tree belongs to the tree's runtime")
            made.append(Child(Pool, id=name, name=name, kwargs={**kwargs, "name": name}, **options))
        return made

    # ---- the end ----------------------------------------------------------------------------------------------------
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False, timeout: float | None = None) -> bool:
        """`Pool.shutdown` of all at the same time, so that one that takes long keeps no other. timeout: seconds after
        which what still runs is killed; None waits as long as it takes. Whether nothing had to be killed."""
        seconds = check_seconds(timeout, "timeout")
        if seconds is not None and not wait:
            raise ValueError(f"timeout={timeout!r} needs wait=True: nobody would be there to kill what overstays")
        pools = self._close()
        if not wait:
            for pool in pools:
                pool.shutdown(wait=False, cancel_futures=cancel_futures)
            return True
        ends = _Ends([(pool, lambda one: one.shutdown(cancel_futures=cancel_futures)) for pool in pools])
        try:
            ended = ends.wait(seconds)
            if not ended:
                for pool in ends.living():
                    pool.kill_workers()
                ends.wait(None)
        except BaseException:  # Ctrl-C during the wait: from here on as if it had come before
            self._abort(pools)
            raise
        ends.check()
        return ended

    def _close(self) -> list[Pool]:
        """Starts no more pools; those that are there."""
        self._closed = True
        for lock in self._opening.values():
            with lock:
                pass  # whoever was starting one has put it there
        return list(self._pools.values())

    def _abort(self, pools: list[Pool]) -> None:
        """As leaving a `with Pool` by an exception does, for all at once: one grace time for all of them."""
        for pool in pools:
            pool._cancel_queue()
        ends = _Ends([(pool, lambda one: one._abort(_GRACE_S)) for pool in pools])
        try:
            ends.wait(None)
        except BaseException:  # another Ctrl-C: no more grace
            _Ends([(pool, lambda one: one._abort(0.0)) for pool in ends.living()]).wait(None)
            raise

    def __enter__(self) -> Bulkheads:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.shutdown()
        else:
            self._abort(self._close())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={options['max_workers']}" for name, options in self._options.items())
        return f"<Bulkheads {shown}{', shut down' if self._closed else ''}>"

    def __reduce__(self) -> Any:
        raise TypeError("Bulkheads belong to the process that made them and cannot be pickled; make them where used")


class _Ends:
    """One thread for the end of each pool: a thread that waits for one would keep it from the next."""

    def __init__(self, ends: list[tuple[Pool, Any]]) -> None:
        self._errors: list[BaseException] = []
        self._threads = {
            threading.Thread(target=self._end, args=(pool, end), daemon=True, name=f"shmrt-end-{pool.name}"): pool
            for pool, end in ends
        }
        for thread in self._threads:
            thread.start()

    def _end(self, pool: Pool, end: Any) -> None:
        try:
            end(pool)
        except PoolBroken:
            pass  # its futures have said so
        except BaseException as error:
            self._errors.append(error)

    def wait(self, seconds: float | None) -> bool:
        """Whether all have ended."""
        from time import monotonic

        end = None if seconds is None else monotonic() + seconds
        for thread in self._threads:
            thread.join(None if end is None else max(end - monotonic(), 0))
        return not self.living()

    def living(self) -> list[Pool]:
        return [pool for thread, pool in self._threads.items() if thread.is_alive()]

    def check(self) -> None:
        """Raises the first error of an end."""
        if self._errors:
            raise self._errors[0]


# ---- what is given --------------------------------------------------------------------------------------------------
def _mapping(value: Any, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{what} must be a dict, not {value!r}")
    return dict(value)


def _check_bulkhead_name(name: Any) -> None:
    if not isinstance(name, str) or not name:
        raise TypeError(f"the name of a bulkhead must be a string with something in it, not {name!r}")
    check_name(name, "the name of a bulkhead")
    if name.startswith("_") or any(name in vars(base) for base in Bulkheads.__mro__):
        raise ValueError(f"a bulkhead cannot be called {name!r}: that has a meaning as an attribute of Bulkheads")


def _pool_options(name: str, value: Any, common: dict[str, Any]) -> dict[str, Any]:
    """What its Pool is made with. Checked now: it is made much later, and where nobody expects a mistake."""
    own = dict(value) if isinstance(value, Mapping) else {"max_workers": value}
    try:
        if value is None or isinstance(value, str):
            raise TypeError(f"must be a number of workers or a dict of Pool arguments, not {value!r}")
        options = {"max_pending": MAX_PENDING, "on_full": "raise", "name": name, **common, **own}
        for option, setting in options.items():
            check = _CHECKS.get(option)
            if check is None:
                raise TypeError(f"Pool has no argument {option!r}; there are {', '.join(sorted(_CHECKS))}")
            used_up = check(setting, option)  # an iterator has given what it had
            options[option] = used_up if isinstance(used_up, tuple) else setting
        if options["max_pending"] is None:
            raise ValueError("max_pending=None: a bulkhead without a bound could take all memory from the others")
        if options.get("max_workers") is None:
            from shmrt.pool import _default_workers

            options["max_workers"] = _default_workers()
    except (TypeError, ValueError) as error:
        raise type(error)(f"bulkhead {name!r}: {error}") from None
    return options


def _optional(check: Any) -> Any:
    return lambda value, name: None if value is None else check(value, name)


def _workers(value: Any, name: str) -> None:
    from shmrt.runtimes import WORKERS_MAX

    check_count(value, name, most=WORKERS_MAX)


def _spares(value: Any, name: str) -> None:
    from shmrt.runtimes import WORKERS_MAX

    check_count(value, name, least=0, most=WORKERS_MAX)


def _positive_seconds(value: Any, name: str) -> None:
    check_seconds(value, name, allow_zero=False)


def _period(value: Any, name: str) -> None:
    if value is None:
        raise TypeError(f"{name} must be seconds, not None; max_restarts=None is what never breaks a pool")
    check_seconds(value, name, allow_zero=False)


def _callable(value: Any, name: str) -> None:
    if not callable(value):
        raise TypeError(f"{name} must be a callable, not {value!r}")


def _on_full(value: Any, name: str) -> None:
    if value not in ("block", "raise"):
        raise ValueError(f"{name}={value!r} must be 'block' or 'raise'")


def _initargs(value: Any, name: str) -> tuple[Any, ...]:
    if not hasattr(value, "__iter__"):
        raise TypeError(f"{name} must be a tuple of arguments for the initializer, not {value!r}")
    return tuple(value)


def _ring(value: Any, name: str) -> None:
    if not isinstance(value, RingSpec):
        raise TypeError(f"{name} must be a RingSpec, not {value!r}")


def _runtime(value: Any, name: str) -> None:
    from shmrt.runtimes import Runtime

    if not isinstance(value, Runtime):
        raise TypeError(f"{name} must be a Runtime, not {value!r}")


def _anything(value: Any, name: str) -> None:
    """Accepted and ignored."""


_CHECKS: dict[str, Any] = {
    "max_workers": _optional(_workers),
    "mp_context": _anything,
    "initializer": _optional(_callable),
    "initargs": _initargs,
    "max_tasks_per_child": _optional(check_count),
    "name": check_name,
    "ring": _optional(_ring),
    "max_attempts": lambda value, name: check_attempts(value),
    "task_timeout": _positive_seconds,
    "max_rss": _optional(parse_size),
    "max_age": _positive_seconds,
    "spares": _spares,
    "spin": check_spin,
    "preload": check_modules,
    "max_restarts": _optional(lambda value, name: check_count(value, name, least=0)),
    "max_seconds": _period,
    "worker_exit": _optional(_callable),
    "threads_per_worker": _optional(check_count),
    "max_pending": _optional(check_count),
    "on_full": _on_full,
    "seed": _optional(lambda value, name: check_count(value, name, least=0, most=2**63 - 1)),
    "runtime": _optional(_runtime),
}
"""A test holds these to Pool's own arguments and to its own verdicts."""

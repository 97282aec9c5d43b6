"""Bulkheads: pools by name that do not touch each other. What dies, hangs or fills up in one stays in it."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from guard_tasks import die, gone, hang
from pool_tasks import until, watchdog

from shmrt import Bulkheads, Child, Overloaded, Pool, Runtime, Supervisor, WorkerCrashed, runtime, whereis
from shmrt.guard.bulkheads import _CHECKS, MAX_PENDING

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def bounded() -> Iterator[None]:
    with watchdog():
        yield


def test_by_name() -> None:
    with Bulkheads(critical=2, normal=1, background=1) as bulkheads:
        assert bulkheads.critical is bulkheads["critical"] and isinstance(bulkheads.critical, Pool)
        assert list(bulkheads) == ["critical", "normal", "background"] and len(bulkheads) == 3
        assert "normal" in bulkheads and "x" not in bulkheads and isinstance(bulkheads, Mapping)
        assert bulkheads.normal.submit(pow, 2, 3).result() == 8 and bulkheads.normal.name == "normal"
        assert set(map(id, bulkheads.values())) == {id(bulkheads[name]) for name in bulkheads}
        assert bulkheads.get("x") is None and {"critical", "normal"} <= set(dir(bulkheads))
        with pytest.raises(KeyError, match="no bulkhead 'x'; there are critical, normal, background"):
            bulkheads["x"]
        with pytest.raises(AttributeError, match="no bulkhead 'x'; there are critical"):
            _ = bulkheads.x
    assert repr(bulkheads) == "<Bulkheads critical=2, normal=1, background=1, shut down>"


def test_nothing_starts_before_it_is_used() -> None:
    with Runtime() as own:
        with Bulkheads(a=1, b=1, c=1) as bulkheads:
            assert not own._pools and bulkheads.health()["status"] == "healthy"
            assert not bulkheads.stats()["a"]["started"]
            bulkheads.a.submit(len, "x").result()
            assert [opened.name for opened in own._pools.values()] == ["a"]
            assert bulkheads.start() is bulkheads and len(own._pools) == 3
        assert not own._pools


def test_two_threads_that_use_one_first_get_the_same() -> None:
    with Bulkheads(a=1) as bulkheads:
        found: list[Any] = []
        gate = threading.Barrier(4)

        def use() -> None:
            gate.wait()
            found.append(bulkheads.a)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, found))) == 1


def test_each_has_workers_of_its_own() -> None:
    with Bulkheads(a=2, b=1) as bulkheads:
        pids = {name: {bulkheads[name].submit(os.getpid).result() for _ in range(20)} for name in bulkheads}
        assert not pids["a"] & pids["b"] and os.getpid() not in pids["a"] | pids["b"]


def test_a_full_one_says_so_at_once_and_the_others_take_on() -> None:
    """max_pending counts what runs; by default it is MAX_PENDING."""
    with Bulkheads(slow={"max_workers": 1, "max_pending": 3}, other=1) as bulkheads:
        futures = [bulkheads.slow.submit(hang) for _ in range(3)]
        for _ in range(5):
            with pytest.raises(Overloaded) as caught:
                bulkheads.slow.submit(hang)
            assert (caught.value.capacity, caught.value.where) == (3, "slow")
        assert bulkheads.other.submit(len, "abc").result() == 3
        assert bulkheads.stats()["slow"]["max_pending"] == 3
        for future in futures:
            future.kill()
    with Bulkheads(slow=1) as bulkheads:
        first = bulkheads.slow.submit(hang)
        rest = [bulkheads.slow.submit(len, "x") for _ in range(MAX_PENDING - 1)]
        with pytest.raises(Overloaded):
            bulkheads.slow.submit(len, "x")
        first.kill()
        assert {future.result() for future in rest} == {1}


def test_a_death_touches_nobody_else() -> None:
    """30 deaths in one; every task of the neighbour completes on the worker it began with, and the caller goes on."""
    with Bulkheads(bad=1, good=1) as bulkheads:
        worker = bulkheads.good.submit(os.getpid).result()
        deaths = []
        for number in range(30):
            deaths.append(bulkheads.bad.submit(die))
            assert bulkheads.good.submit(pow, number, 2).result() == number * number
        assert all(isinstance(death.exception(), WorkerCrashed) for death in deaths)
        assert bulkheads.good.submit(os.getpid).result() == worker
        assert bulkheads.good.stats()["restarts"] == 0 and bulkheads.stats()["bad"]["crashed"] == 30


def test_a_hung_one_holds_its_own_workers_only() -> None:
    with Bulkheads(bad={"max_workers": 2, "task_timeout": 0.5}, good=1) as bulkheads:
        hung = [bulkheads.bad.submit(hang) for _ in range(4)]
        while not all(future.done() for future in hung):
            assert bulkheads.good.submit(len, "ab").result() == 2
        assert bulkheads.good.stats()["restarts"] == 0 and bulkheads.bad.stats()["timed_out"] == 4


def test_health_is_that_of_each() -> None:
    with Bulkheads(a=1, b=1) as bulkheads:
        bulkheads.a.submit(len, "x").result()
        until(lambda: bulkheads.health()["status"] == "healthy")
        bulkheads.b.submit(len, "x").result()
        bulkheads.b.kill_workers()
        health = bulkheads.health()
        assert health["status"] == "degraded" and health["bulkheads"]["a"]["status"] == "healthy"
        bulkheads.a.kill_workers()
        assert bulkheads.health()["status"] == "unhealthy"


def test_in_an_event_loop_a_full_one_raises() -> None:
    async def main() -> None:
        with Bulkheads(a={"max_workers": 1, "max_pending": 1}) as bulkheads:
            future = bulkheads.a.submit(hang)
            with pytest.raises(Overloaded):
                bulkheads.a.submit(len, "x")
            future.kill()
            with pytest.raises(asyncio.CancelledError):
                await future

    asyncio.run(main())


# ---- the end --------------------------------------------------------------------------------------------------------
def test_the_end_waits_for_what_was_accepted() -> None:
    with Bulkheads(a=1, b=1) as bulkheads:
        futures = [bulkheads[name].submit(pow, 2, number) for name in bulkheads for number in range(50)]
    assert sorted(future.result(0) for future in futures) == sorted([2**n for n in range(50)] * 2)
    for name in bulkheads:
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            bulkheads[name].submit(len, "x")
    assert bulkheads.shutdown() is True, "twice is as once"


def test_one_that_was_never_used_does_not_start_after_the_end() -> None:
    bulkheads = Bulkheads(a=1)
    bulkheads.shutdown()
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        _ = bulkheads.a


def test_a_hung_one_does_not_keep_the_others_from_ending() -> None:
    """shutdown(timeout=) of all at the same time: the first hangs for ever, the second is gone long before."""
    bulkheads = Bulkheads(hung=1, fine=1)
    hung = [bulkheads.hung.submit(hang) for _ in range(3)]
    worker = bulkheads.fine.submit(os.getpid).result()
    ended: list[bool] = []
    thread = threading.Thread(target=lambda: ended.append(bulkheads.shutdown(timeout=3)))
    thread.start()
    until(lambda: gone(worker))
    assert not hung[0].done(), "it was gone while the other still hung"
    thread.join()
    assert ended == [False] and all(future.exception(0) is not None for future in hung)
    assert bulkheads.hung.stats()["workers_ready"] == 0


def test_leaving_by_an_exception_gives_all_one_grace_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.guard.bulkheads._GRACE_S", 0.5)
    with pytest.raises(ZeroDivisionError):
        with Bulkheads(a=1, b=1, c=1) as bulkheads:
            hung = [bulkheads[name].submit(hang) for name in bulkheads]
            waiting = [bulkheads[name].submit(len, "x") for name in bulkheads]
            until(lambda: all(future.running() for future in hung))
            begun = time.monotonic()
            raise ZeroDivisionError
    assert all(future.done() for future in hung) and all(future.cancelled() for future in waiting)
    print(f"three hung pools ended in {time.monotonic() - begun:.1f} s; one after the other would take 1.5 s at least")


def test_ctrl_c_while_waiting_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shmrt.guard.bulkheads._GRACE_S", 0.5)

    def interrupt() -> None:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        with Bulkheads(a=1, b=1) as bulkheads:
            hung = bulkheads.a.submit(hang)
            until(hung.running)
            threading.Timer(0.5, interrupt).start()
    assert hung.done()


def test_without_waiting() -> None:
    bulkheads = Bulkheads(a=1)
    future = bulkheads.a.submit(pow, 2, 5)
    bulkheads.shutdown(wait=False)
    assert future.result() == 32
    bulkheads.shutdown()


# ---- in a tree ------------------------------------------------------------------------------------------------------
def test_as_children_of_a_supervisor() -> None:
    described = Bulkheads(critical=1, background={"max_workers": 1, "max_pending": 2}).children(restart="transient")
    assert [(child.id, child.name, child.restart) for child in described] == [
        ("critical", "critical", "transient"),
        ("background", "background", "transient"),
    ]
    assert all(isinstance(child, Child) for child in described)
    with Runtime(Supervisor(described)):
        assert whereis("critical").submit(len, "abc").result() == 3
        hung = [whereis("background").submit(hang) for _ in range(2)]
        with pytest.raises(Overloaded):
            whereis("background").submit(hang)
        for future in hung:
            future.kill()


# ---- mistakes -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["keys", "values", "get", "items", "stats", "health", "shutdown", "children", "start"])
def test_a_name_that_has_a_meaning_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"a bulkhead cannot be called '{name}'"):
        Bulkheads(**{name: 1})


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda: Bulkheads(), ValueError, "at least one, such as Bulkheads(critical=4"),
        (lambda: Bulkheads(a=0), ValueError, "bulkhead 'a': max_workers=0 must be from 1"),
        (lambda: Bulkheads(a="4"), TypeError, "bulkhead 'a': must be a number of workers or a dict of Pool arguments"),
        (lambda: Bulkheads(a=True), TypeError, "bulkhead 'a': max_workers must be a whole number, not True"),
        (lambda: Bulkheads(a=None), TypeError, "bulkhead 'a': must be a number of workers"),
        (
            lambda: Bulkheads(a={"workers": 4}),
            TypeError,
            "bulkhead 'a': Pool has no argument 'workers'; there are init",
        ),
        (lambda: Bulkheads(a={"max_pending": None}), ValueError, "a bulkhead without a bound"),
        (lambda: Bulkheads(a={"on_full": "drop"}), ValueError, "bulkhead 'a': on_full='drop' must be"),
        (lambda: Bulkheads({"a": 1}, a=2), ValueError, "bulkhead 'a' is given twice"),
        (lambda: Bulkheads([("a", 1)]), TypeError, "the bulkheads must be a dict"),
        (lambda: Bulkheads({"a": 1}, 3), TypeError, "the defaults of bulkheads must be a dict, not 3"),
        (lambda: Bulkheads({"a": 1}, {"x": 3}), TypeError, "bulkhead 'a': Pool has no argument 'x'"),
        (lambda: Bulkheads({3: 1}), TypeError, "the name of a bulkhead must be a string"),
        (lambda: Bulkheads({"a/b": 1}), ValueError, "must be a printable string without '/'"),
        (lambda: Bulkheads(_a=1), ValueError, "cannot be called '_a'"),
        (lambda: Bulkheads(a=1).children(id="x"), TypeError, "its own id"),
        (lambda: Bulkheads(a={"runtime": runtime()}).children(), ValueError, "belongs to the tree's runtime"),
        (lambda: Bulkheads(a=1).shutdown(False, timeout=1), ValueError, "needs wait=True"),
        (lambda: pickle.dumps(Bulkheads(a=1)), TypeError, "cannot be pickled; make them where used"),
    ],
)
def test_a_mistake_is_named(make: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert words in str(caught.value)


def test_every_argument_of_a_pool_is_known() -> None:
    assert set(_CHECKS) == set(inspect.signature(Pool).parameters)


WRONG: dict[str, list[Any]] = {
    "max_workers": [0, "x", 10**9],
    "initializer": [3],
    "initargs": [3],
    "max_tasks_per_child": [0, "x"],
    "name": ["", "a/b"],
    "ring": [3],
    "max_attempts": [0, 10**6, None],
    "task_timeout": [0, -1, "x"],
    "max_rss": ["x", 0],
    "max_age": [0, "x"],
    "spares": [-1, None, 10**9],
    "preload": ["numpy", 3],
    "max_restarts": [-1],
    "max_seconds": [None, 0],
    "worker_exit": [3],
    "threads_per_worker": [0],
    "max_pending": [0],
    "on_full": ["drop_oldest"],
    "seed": [-1, 2**64],
    "spin": [-1, "x"],
    "runtime": [3],
}


@pytest.mark.parametrize("argument", sorted(_CHECKS))
def test_what_a_pool_would_refuse_is_refused_before_anything_starts(argument: str) -> None:
    """The same kind of error with the same words, and the name of the bulkhead before them."""
    assert argument in WRONG or argument == "mp_context"
    for value in WRONG.get(argument, []):
        options = {"max_workers": 1, argument: value}
        with pytest.raises((TypeError, ValueError)) as theirs:
            Pool(**options)
        with pytest.raises(type(theirs.value)) as ours:
            Bulkheads(a=options)
        said, meant = str(ours.value).removeprefix("bulkhead 'a': "), str(theirs.value)
        assert said == meant or (argument == "max_workers" and "max_workers" in said), (said, meant)


def test_arguments_that_are_read_once_are_kept() -> None:
    options = {"max_workers": 1, "preload": iter(["json"]), "initializer": print, "initargs": iter([""])}
    assert Bulkheads(a=options)._options["a"]["preload"] == ("json",)
    assert Bulkheads({"tenant-a": {}}, {"max_workers": 3, "max_pending": 9})._options["tenant-a"] == {
        "max_pending": 9,
        "on_full": "raise",
        "name": "tenant-a",
        "max_workers": 3,
    }


# ---- by hand --------------------------------------------------------------------------------------------------------
@pytest.mark.stress
def test_a_healthy_tenant_keeps_nine_tenths_of_its_throughput(request: pytest.FixtureRequest) -> None:
    """Beside one that only crashes, one that only hangs, and one that is full; on a machine with nothing else to do."""
    if "stress" not in request.config.getoption("markexpr"):
        pytest.skip("it measures time: python -m pytest -m stress, on a quiet machine")
    import faulthandler

    from bench.bulkheads import FULL, run

    faulthandler.cancel_dump_traceback_later()
    rows = {row["beside"]: row for row in run(**FULL)}
    print(*rows.values(), sep="\n")
    assert all(rows[name]["ratio"] >= 0.9 for name in ("crashing", "hanging", "full"))
    assert rows["crashing, in one pool"]["ratio"] < 0.9, "the bad tenant does harm where nothing stands between"

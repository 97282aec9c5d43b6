"""Full places are reported: at once, then at most once a second for each, with how many there were; and shown in
`status`."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from overload_kit import PATIENCE_S, Clerk, held, hold_server, let_go, lines, overloads, stopped, told, trace, until

import shmrt
from shmrt import Child, Overloaded, Pool, Ring, RingSpec, Runtime, ServerDown, Supervisor, TaskTimeout, start, whereis

FORK = multiprocessing.get_context("fork")
SECOND_NS = 1_000_000_000


@pytest.fixture(scope="module", autouse=True)
def runtime() -> Iterator[Runtime]:
    with Runtime() as made:
        yield made


def keeps_its_distance(events: list[dict[str, Any]]) -> bool:
    """At most one a second; the root stamps them when it hears of them, so give or take a tenth."""
    times = [event["monotonic_ns"] for event in events]
    return all(later - earlier > 0.5 * SECOND_NS for earlier, later in itertools.pairwise(times))


def refuse(ref: Any, times: int) -> int:
    refused = 0
    for _ in range(times):
        try:
            ref.cast("note", "x")
        except Overloaded:
            refused += 1
    return refused


def test_the_first_is_reported_at_once_and_the_rest_by_count(runtime: Runtime, tmp_path: Path) -> None:
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), name="busy", mailbox=RingSpec(slots=1, on_full="raise"))
    holding = hold_server(ref, path)
    ref.note("a")
    assert refuse(ref, 500) == 500
    first = until(lambda: overloads(runtime, "busy"))[0]
    assert first["measurements"] == {"count": 1, "refused": 1, "dropped": 0, "expired": 0}
    assert first["metadata"] == {
        "where": "busy",
        "kind": "mailbox",
        "policy": "raise",
        "capacity": 1,
        "pid": os.getpid(),
    }
    assert (first["supervisor"], first["context"], first["offender"]["id"]) == ((), "overload", "busy")
    until(lambda: told(runtime, "busy", "refused") == 500)
    assert len(overloads(runtime, "busy")) <= 3 and keeps_its_distance(overloads(runtime, "busy"))
    numbers = [event["seq"] for event in runtime.events()]
    assert numbers == sorted(set(numbers))
    let_go(path)
    holding.result(PATIENCE_S)
    ref.stop()


def refuse_there(ref: Any, times: int) -> tuple[int, int]:
    return os.getpid(), refuse(ref, times)


def test_many_processes_make_one_report(runtime: Runtime, tmp_path: Path) -> None:
    """Workers and the program meet the same full mailbox: one report a second for all, and every refusal in one of
    them."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), name="besieged", mailbox=RingSpec(slots=1, on_full="raise"))
    holding = hold_server(ref, path)
    ref.note("a")
    with Pool(3) as pool:
        futures = [pool.submit(refuse_there, ref, 2000) for _ in range(6)]
        own = refuse(ref, 2000)
        counts = [future.result(PATIENCE_S) for future in futures]
        total = own + sum(count for _, count in counts)
        assert total == 14_000 == ref.mailbox_stats()["refused"]
        until(lambda: told(runtime, "besieged", "refused") == total, lambda: overloads(runtime, "besieged"))
    assert keeps_its_distance(overloads(runtime, "besieged"))
    let_go(path)
    holding.result(PATIENCE_S)
    ref.stop()


def test_a_reporter_that_is_killed_leaves_its_turn_to_others(runtime: Runtime, tmp_path: Path) -> None:
    """Whoever meets the full place next reports, a second later at most, and for the dead as well."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), name="mourned", mailbox=RingSpec(slots=1, on_full="raise"))
    holding = hold_server(ref, path)
    ref.note("a")
    with Pool(1) as pool:
        pid, _ = pool.submit(refuse_there, ref, 50).result(PATIENCE_S)
        until(lambda: overloads(runtime, "mourned"))
        os.kill(pid, signal.SIGKILL)  # with 49 that it has not told yet, most likely
        until(lambda: pool.submit(os.getpid).result(PATIENCE_S) != pid)
    until(lambda: refuse(ref, 1) and told(runtime, "mourned", "refused") >= 51)
    total = ref.mailbox_stats()["refused"]
    until(lambda: told(runtime, "mourned", "refused") == total)
    let_go(path)
    holding.result(PATIENCE_S)
    ref.stop()


def test_drops_and_expiries_are_reported_by_whoever_sees_them(runtime: Runtime, tmp_path: Path) -> None:
    """The putter sees what it drops; the server what has expired."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), name="lossy", mailbox=RingSpec(slots=2, on_full="drop_oldest"))
    with stopped(ref.pid):
        for _ in range(5):
            ref.cast("note", "late", deadline=0.0)
    until(lambda: told(runtime, "lossy", "dropped") == 3 and told(runtime, "lossy", "expired") == 2)
    assert lines(path) == []
    ref.stop()
    ref = start(Clerk, str(path), name="slow")
    with stopped(ref.pid):
        ref.cast("note", "late", deadline=0.0)
    event = until(lambda: overloads(runtime, "slow"))[0]
    assert (event["metadata"]["pid"], event["measurements"]["expired"]) == (ref.pid, 1)
    ref.stop()


def test_rings_are_reported_where_there_is_a_runtime(runtime: Runtime) -> None:
    name = f"test reports {os.getpid()}"
    ring = Ring.create(RingSpec(slots=1, on_full="drop_newest"), name=name)
    try:
        for number in range(4):
            ring.put(number)
        until(lambda: told(runtime, name, "dropped") == 3)
        assert overloads(runtime, name)[0]["metadata"]["kind"] == "ring"
    finally:
        ring.unlink()


def drop_without_a_runtime(ring: Ring) -> None:
    for number in range(50):
        ring.put(number)


def test_a_process_without_a_runtime_counts_and_starts_none(runtime: Runtime) -> None:
    """The next report of a process that has one tells of those, too."""
    name = f"test counts {os.getpid()}"
    ring = Ring.create(RingSpec(slots=1, on_full="drop_oldest"), name=name)
    try:
        ring.put(0)
        other = multiprocessing.get_context("fork").Process(target=drop_without_a_runtime, args=(ring,))
        other.start()
        other.join()
        assert other.exitcode == 0 and ring.stats().drops == 50 and not overloads(runtime, name)
        ring.put(1)
        until(lambda: told(runtime, name, "dropped") == 51)
    finally:
        ring.unlink()


def test_a_pool_reports_what_it_refuses_and_what_expires(runtime: Runtime, tmp_path: Path) -> None:
    """What was not told when the pool ends is told then."""
    path = tmp_path / "trace"
    with Pool(1, max_pending=3, on_full="raise", name="crowded") as pool:
        first = pool.submit(held, str(path))
        late = [pool.options(deadline=0.01).submit(trace, str(path), "late") for _ in range(2)]
        for future in late:
            with pytest.raises(TaskTimeout):
                future.result(PATIENCE_S)
        waiting = [pool.submit(os.getpid) for _ in range(2)]
        for _ in range(7):
            with pytest.raises(Overloaded):
                pool.submit(os.getpid)
        assert len(waiting) == 2
        let_go(path)
        first.result(PATIENCE_S)
    until(lambda: (told(runtime, "crowded", "refused"), told(runtime, "crowded", "expired")) == (7, 2))
    assert overloads(runtime, "crowded")[0]["metadata"]["capacity"] == 3
    assert len(overloads(runtime, "crowded")) <= 3


def test_nothing_is_left_running_when_a_place_is_quiet_again(tmp_path: Path) -> None:
    """The thread that counts on ends within seconds, and comes again with the next."""
    for _ in range(2):
        ring = Ring.create(RingSpec(slots=1, on_full="drop_newest"))
        ring.put(1)
        ring.put(2)
        until(lambda: any(thread.name == "shmrt-overload" for thread in threading.enumerate()))
        until(lambda: all(thread.name != "shmrt-overload" for thread in threading.enumerate()))


def test_counts_of_the_runtime(runtime: Runtime, tmp_path: Path) -> None:
    """Runtime.stats has every pool and every mailbox."""
    path = tmp_path / "trace"
    ref = start(Clerk, str(path), name="counted", mailbox=RingSpec(slots=5))
    other = start(Clerk, str(path))
    with Pool(1, name="a pool") as pool, Pool(1, name="a pool"):
        pool.submit(os.getpid).result(PATIENCE_S)
        ref.ask()
        stats = runtime.stats()
        assert [name.partition("#")[0] for name in stats["pools"]] == ["a pool", "a pool"]
        assert stats["pools"]["a pool"] == pool.stats()
        expected = ref.mailbox_stats()
        del expected["policy"]
        assert stats["mailboxes"]["counted"] == expected and expected["messages_in"] == 1
        assert len(stats["mailboxes"]) >= 2
    ref.stop()
    other.stop()


# ---- a named runtime: status and events ask nobody
def test_status_and_events_of_a_named_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shmrt.cli.remote import Remote
    from shmrt.supervise.directory import find

    monkeypatch.setenv("SHMRT_RUNTIME_DIR", str(tmp_path / "place"))
    path = tmp_path / "trace"
    name = f"test-overload-{os.getpid()}"
    tree = Supervisor([Child(Clerk, str(path), name="clerk", mailbox=RingSpec(slots=1, on_full="raise"))])
    with Runtime(tree, name=name) as runtime:
        ref = whereis("clerk")
        holding = hold_server(ref, path)
        ref.note("a")
        assert refuse(ref, 3) == 3
        with Pool(1, max_pending=1, on_full="raise", name="bounded") as pool:
            first = pool.submit(held, str(path))
            with pytest.raises(Overloaded):
                pool.submit(os.getpid)
            with Remote(next(one for one in find() if one.name == name)) as remote:
                until(lambda: told(runtime, "bounded", "refused") == 1 and told(runtime, "clerk", "refused") == 3)
                status = remote.ask("status")
                row = status["supervisors"][0]["children"][0]
                assert {key: row["mailbox"][key] for key in ("depth", "capacity", "refused", "drops", "expired")} == {
                    "depth": 1,
                    "capacity": 1,
                    "refused": 3,
                    "drops": 0,
                    "expired": 0,
                }
                pools = {row["name"]: row["overload"] for row in status["pools"]}
                assert pools["bounded"]["refused"] == 1
                events = [event for event in remote.ask("events")["events"] if event["name"] == "overload"]
                assert sum(event["measurements"]["refused"] for event in events) == 4
                assert {event["metadata"]["where"] for event in events} == {"clerk", "bounded"}
                assert remote.ask("inspect", worker="clerk")["mailbox"]["refused"] == 3
            let_go(path)
            first.result(PATIENCE_S)
        holding.result(PATIENCE_S)
        root = runtime.pid
        os.kill(root, signal.SIGKILL)
        until(lambda: runtime.pid not in (root, None) and whereis("clerk"))
        until(lambda: _ask(whereis("clerk")))
        assert whereis("clerk").mailbox_stats()["refused"] == 3  # over the death of the root, too
        assert told(runtime, "clerk", "refused") == 3


def _ask(ref: Any) -> Any:
    try:
        return ref is not None and ref.ask("back")
    except (ServerDown, shmrt.RuntimeDown):
        return None

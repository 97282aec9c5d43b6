"""Deaths at bad moments: of the root, of the program, of children that are just starting."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import life_kit
import pytest
import tree_kit
from tree_kit import Journal, Mark, alive, found_again, kill, until

from shmrt import Child, DynamicSupervisor, Runtime, RuntimeDown, ServerDown, StartError, Supervisor, monitor

SEED = int(os.environ.get("SHMRT_SEED", str(random.SystemRandom().randrange(2**32))))


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal")


@pytest.fixture
def rng() -> random.Random:
    print(f"SHMRT_SEED={SEED}", file=sys.stderr)
    return random.Random(SEED)


# ---- the root --------------------------------------------------------------------------------------------------------
def test_a_killed_root_brings_its_trees_back(journal: Journal) -> None:
    """The next root starts the trees afresh, nothing of the old one lives, and handles obtained anew work."""
    inner = Supervisor([Child(tree_kit.stay, journal, name, name=name) for name in "bc"], name="inner")
    tree = Supervisor([Child(tree_kit.stay, journal, "a", id="a"), Child(inner)], strategy="rest_for_one", name="top")
    with Runtime(tree) as runtime:
        for turn in range(1, 4):
            root = runtime.pid
            assert root is not None
            top = runtime.supervisor("top")
            below = runtime.supervisor("inner")
            pids = [top.which_child("a")[1], *tree_kit.pids(below).values()]
            for name in "abc":
                journal.wait(f"run {name}", turn)
            kill(root)
            top = found_again(runtime, root, "top")
            assert not [pid for pid in [root, *pids] if alive(pid)]
            after = [top.which_child("a")[1], *tree_kit.pids(runtime.supervisor("inner")).values()]
            assert all(alive(pid) for pid in after) and not set(after) & set(pids)
            old = after[1]
            kill(old)
            assert tree_kit.new_pid(runtime.supervisor("inner"), "c", old)
        assert runtime.wait(0) is None


def test_an_old_reference_never_means_another_child() -> None:
    """A reference made before the root's death speaks of nobody after it, and ends nobody."""
    with Runtime(DynamicSupervisor(name="d")) as runtime:
        supervisor = runtime.supervisor("d")
        old = [supervisor.start_child(tree_kit.idle, id="old") for _ in range(3)]
        root = runtime.pid
        assert root is not None
        kill(root)
        supervisor = found_again(runtime, root, "d")
        assert supervisor.count_children().specs == 0
        new = [supervisor.start_child(tree_kit.idle, id="new") for _ in range(3)]
        assert [ref.pid for ref in old] == [None, None, None]
        assert not set(old) & set(new)
        for ref in old:
            down = monitor(ref).wait(0)
            assert down is not None and down.reason == "noproc"
            with pytest.raises(LookupError):
                supervisor.terminate_child(ref)
        assert all(alive(ref.pid) for ref in new)


def test_the_root_is_killed_again_while_it_brings_its_trees_back(journal: Journal) -> None:
    """A death while the trees come up costs another root and nothing else."""
    slow = tree_kit.Hold(journal, "b", "go")
    tree = Supervisor([Child(tree_kit.idle, id="a"), Child(tree_kit.idle, slow, id="b")], name="top")
    journal.note("go")
    with Runtime(tree) as runtime:
        journal.clear()
        for turn in range(1, 4):
            root = runtime.pid
            assert root is not None
            kill(root)
            until(lambda turn=turn: len(journal.lines("held")) == turn, lambda: (journal.lines(), runtime.pid))
            assert runtime.pid != root
        journal.note("go")
        until(lambda: runtime.wait(0) is not None or is_up(runtime, "top"))
        assert runtime.wait(0) is None
        assert runtime.supervisor("top").count_children() == (2, 2, 0, 2)
        held = [int(line.split()[2]) for line in journal.lines("held")]
        assert [alive(pid) for pid in held] == [False, False, True]


def is_up(runtime: Runtime, name: str) -> bool:
    try:
        return bool(runtime.supervisor(name).describe()["state"] == "running")
    except (LookupError, RuntimeDown):
        return False


def test_the_root_is_killed_during_the_first_start(journal: Journal) -> None:
    """Runtime(tree).start() then raises RuntimeDown or comes up with the next root; either way nothing stays behind."""
    tree = Supervisor([Child(tree_kit.idle, tree_kit.Hold(journal, "a", "go"), id="a")])
    runtime = Runtime(tree)
    failures: list[BaseException] = []

    def start() -> None:
        try:
            runtime.start()
        except BaseException as error:
            failures.append(error)

    starter = threading.Thread(target=start)
    starter.start()
    until(lambda: journal.lines("held"))
    pid = int(journal.lines("held")[0].split()[2])
    assert runtime.pid is not None
    kill(runtime.pid)
    journal.note("go")
    starter.join(tree_kit.PATIENCE_S)
    assert not starter.is_alive() and not alive(pid)
    assert not failures or isinstance(failures[0], RuntimeDown)
    root = runtime.pid
    runtime.stop()
    assert root is None or not alive(root)


def test_whoever_asks_a_dying_root_is_told(journal: Journal) -> None:
    """A request that the root took with it is RuntimeDown; the next one is served by the next root."""
    with Runtime(DynamicSupervisor(name="d")) as runtime:
        supervisor = runtime.supervisor("d")
        failures: list[BaseException] = []

        def start() -> None:
            try:
                supervisor.start_child(tree_kit.idle, tree_kit.Hold(journal, "slow", "never"))
            except BaseException as error:
                failures.append(error)

        starter = threading.Thread(target=start)
        starter.start()
        until(lambda: journal.lines("held"))
        root = runtime.pid
        assert root is not None
        kill(root)
        starter.join(tree_kit.PATIENCE_S)
        assert len(failures) == 1 and isinstance(failures[0], RuntimeDown)
        assert found_again(runtime, root, "d").start_child(tree_kit.idle).pid


# ---- the program -----------------------------------------------------------------------------------------------------
PROGRAM = """
import sys, threading
sys.path.insert(0, {here!r})
import tree_kit
from shmrt import Child, DynamicSupervisor, Runtime, Supervisor
journal = tree_kit.Journal({path!r})
inner = Supervisor([Child(tree_kit.deaf, journal, n, id=n) for n in "abc"])
tree = Supervisor([Child(inner), Child(DynamicSupervisor(name="d")), Child(tree_kit.hold_gil, journal, "g")])
runtime = Runtime(tree)
runtime.start()
slow = tree_kit.Hold(journal, "slow", "never")
threading.Thread(target=runtime.supervisor("d").start_child, args=(tree_kit.idle, slow), daemon=True).start()
tree_kit.until(lambda: len(journal.lines()) == 5)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGSEGV"])
def test_a_killed_program_leaves_nothing(journal: Journal, how: str) -> None:
    """If the program dies everything ends, deaf children, children in C and children that start included."""
    source = PROGRAM.format(here=str(Path(__file__).parent), path=journal.path)
    with life_kit.Program(source) as program:
        assert program.line() == "up"
        assert len(program.family()) == 6
        program.kill(getattr(signal, how))
        taken, left = program.seconds_until_nobody()
        assert not left
        print(f"nobody left after {taken:.3f} s")
    assert not life_kit.shared_names(program.pid)


def test_a_program_that_ends_stops_its_tree_in_order(journal: Journal) -> None:
    """A program that just ends stops the runtime that it had started: children see Shutdown."""
    source = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import tree_kit\nfrom shmrt import Child, Runtime, Supervisor\n"
        f"journal = tree_kit.Journal({journal.path!r})\n"
        "runtime = Runtime(Supervisor([Child(tree_kit.stay, journal, n, id=n) for n in 'ab']))\n"
        "runtime.start()\n"
        "journal.wait('run a'); journal.wait('run b')\n"
    )
    code, _, errors = life_kit.run(source)
    assert (code, errors) == (0, "")
    assert journal.lines("shutdown") == ["shutdown b", "shutdown a"]


# ---- children at random moments --------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_that_dies_at_any_moment_of_its_start(rng: random.Random, number: signal.Signals) -> None:
    """A hundred children killed while they start: each start is answered, with the reason, and nobody is left."""
    seen = {"failed": 0, "started": 0}
    with Runtime(DynamicSupervisor()) as runtime:
        supervisor = runtime.supervisor()
        for turn in range(100):
            result: list[Any] = []

            def start(turn: int = turn, result: list[Any] = result) -> None:
                try:
                    child = Child(tree_kit.idle, id=turn, restart="temporary", shutdown="infinity")
                    result.append(supervisor.start_child(child))
                except BaseException as error:
                    result.append(error)

            starter = threading.Thread(target=start)
            starter.start()
            pid = until(lambda turn=turn, result=result: pid_of(supervisor, turn) or result)
            end = time.perf_counter_ns() + rng.randrange(15_000_000)
            while time.perf_counter_ns() < end:
                pass
            if isinstance(pid, int):
                try:
                    kill(pid, number)
                except ProcessLookupError:
                    pass
            starter.join(tree_kit.PATIENCE_S)
            assert not starter.is_alive()
            [outcome] = result
            if isinstance(outcome, StartError):
                seen["failed"] += 1
                assert outcome.reason in ("killed", "shutdown", "normal", ("signal", "SIGTERM")) or (
                    outcome.reason[0] in ("exit", "error")
                ), outcome.reason
            else:
                seen["started"] += 1
                if not isinstance(pid, int):  # it was up before its pid was seen
                    kill(outcome.pid)
                elif number == signal.SIGTERM:  # one that came too early for anybody to hear it
                    with contextlib.suppress(ServerDown):
                        outcome.stop()
                until(lambda: supervisor.count_children().specs == 0, supervisor.which_children)
            assert not isinstance(pid, int) or not alive(pid)
        assert supervisor.count_children() == (0, 0, 0, 0)
        assert runtime.pid is not None and alive(runtime.pid)
        odd = [
            report
            for report in tree_kit.reports(runtime, "child_terminated")
            if report["reason"] not in ("killed", "shutdown")
        ]
        assert not odd
    print(seen)


def pid_of(supervisor: Any, id: int) -> int | None:
    try:
        return supervisor.child(id).pid  # type: ignore[no-any-return]
    except (LookupError, RuntimeError):
        return None


def test_a_crash_loop_at_import_freezes_nobody(journal: Journal) -> None:
    """A child that crashes at each start, again and again, leaves its supervisor and all others answering."""
    loop = Child(tree_kit.idle, tree_kit.Fail(tree_kit.Oops("again"), journal, "good"), id="loop")
    journal.note("good")
    tree = Supervisor(
        [Child(tree_kit.idle, id="calm"), loop, Child(DynamicSupervisor(name="d"))], max_restarts=10**6, max_seconds=1e6
    )
    with Runtime(tree) as runtime:
        supervisor = runtime.supervisor()
        calm, victim = supervisor.which_child("calm")[1], supervisor.which_child("loop")[1]
        journal.clear()
        kill(victim)
        until(lambda: len(journal.lines("failing")) > 2)
        for _ in range(50):
            shown = tree_kit.pids(supervisor)
            assert shown["calm"] == calm and shown["loop"] in (None, "restarting")
            assert supervisor.count_children().specs == 3
        ref = runtime.supervisor("d").start_child(tree_kit.idle)
        assert alive(ref.pid)
        supervisor.terminate_child("loop")
        count = len(journal.lines("failing"))
        assert supervisor.which_child("loop")[1] is None
        journal.note("good")
        supervisor.restart_child("loop")
        assert len(journal.lines("failing")) == count
        assert alive(supervisor.which_child("loop")[1])


def test_random_deaths_in_a_deep_tree(journal: Journal, rng: random.Random) -> None:
    """Sixty random kills in a tree of three layers and three strategies: in the end every child runs, once."""

    def layer(name: str, strategy: str, *more: Child) -> Supervisor:
        children = [Child(tree_kit.idle, Mark(journal, name, n), id=f"{name}{n}") for n in range(3)]
        return Supervisor([*children, *more], strategy=strategy, max_restarts=10**6, max_seconds=1e6, name=name)

    low = layer("low", "rest_for_one")
    middle = layer("middle", "one_for_all", Child(low))
    with Runtime(layer("top", "one_for_one", Child(middle))) as runtime:
        names = ("low", "middle", "top")
        for _ in range(60):
            try:
                supervisor = runtime.supervisor(rng.choice(names))
                living = [pid for pid in tree_kit.pids(supervisor).values() if isinstance(pid, int)]
                if living:
                    kill(rng.choice(living))
            except (LookupError, RuntimeError, ProcessLookupError):
                pass  # it is just being restarted

        def settled() -> bool:
            try:
                pids = [
                    pid
                    for name in names
                    for pid in tree_kit.pids(runtime.supervisor(name)).values()
                    if not hasattr(pid, "which_children")
                ]
            except (LookupError, RuntimeError):
                return False
            return len(pids) == 9 and all(isinstance(pid, int) and alive(pid) for pid in pids)

        until(settled, lambda: runtime.supervisor().describe())
        assert runtime.wait(0) is None


def test_the_handle_of_a_tree_finds_it_again() -> None:
    """A handle of a tree that was planted speaks of the same tree in the next root, with or without a name."""
    loose = DynamicSupervisor()
    with Runtime(Supervisor([Child(tree_kit.idle, id="a")])) as runtime, loose:
        handle = runtime.supervisor()
        loose.start_child(tree_kit.idle)
        root = runtime.pid
        assert root is not None
        kill(root)
        found_again(runtime, root)

        def answered() -> Any:
            try:
                return [handle.count_children().specs, loose.count_children().specs]
            except RuntimeError:  # not planted yet
                return None

        assert until(answered) == [1, 0]
        assert loose.start_child(tree_kit.idle).pid
        assert handle.describe()["state"] == "running"

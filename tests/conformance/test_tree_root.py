"""What outlives the root of a tree: messages in mailboxes, pools with what they accepted; and what does not, with an
error."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path
from typing import Any

from tree_kit import PATIENCE_S, Journal, until

from shmrt import (
    Child,
    Pool,
    RingSpec,
    Runtime,
    RuntimeDown,
    Server,
    ServerDown,
    Supervisor,
    call,
    cast,
    monitor,
    start,
    whereis,
)


class Slow(Server):
    """Handles nothing before the journal says so."""

    def init(self, journal: Journal) -> None:
        self.journal = journal

    @cast
    def note(self, word: str) -> None:
        self.journal.note("began", word)
        self.journal.wait("go")
        self.journal.note("did", word)

    @call
    def ask(self, word: str) -> str:
        self.journal.wait("go")
        return word


def double(journal: Journal, x: int) -> int:
    journal.wait("go")
    return 2 * x


def kill_root(runtime: Runtime) -> int:
    """Returns when another one runs."""
    old = runtime.pid
    assert old is not None
    os.kill(old, signal.SIGKILL)
    until(lambda: runtime.pid not in (None, old))
    return old


def find(name: str) -> Any:
    """The next root starts the tree afresh; until then the name is nobody's."""

    def look() -> Any:
        try:
            return whereis(name)
        except RuntimeDown:
            return None

    return until(look, name)


def test_messages_in_a_mailbox_outlive_the_root(tmp_path: Path) -> None:
    """What was cast and not begun is handled by the next root's server; what was being handled is not begun again."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(Slow, journal, name="slow", mailbox=RingSpec(slots=8))])) as runtime:
        ref = whereis("slow")
        for word in "abcd":
            ref.cast("note", word)
        journal.wait("began a")
        kill_root(runtime)
        journal.note("go")
        again = find("slow")
        for word in "bcd":
            journal.wait(f"did {word}")
        assert again.call("ask", "x", timeout=PATIENCE_S) == "x" == ref.call("ask", "x", timeout=PATIENCE_S)
        assert journal.lines("began") == [f"began {word}" for word in "abcd"]


def test_who_waits_for_an_answer_hears_of_the_roots_death(tmp_path: Path) -> None:
    """Begun or not: ServerDown, and the answer of nobody else."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(Slow, journal, name="slow")])) as runtime:
        ref = whereis("slow")
        waiting = [ref.request("ask", word) for word in "abc"]
        watch = monitor(ref)
        kill_root(runtime)
        for future in waiting:
            assert isinstance(future.exception(PATIENCE_S), ServerDown)
        down = watch.wait(PATIENCE_S)
        assert down is not None and down.reason == "noconnection"
        journal.note("go")
        assert find("slow").call("ask", "d", timeout=PATIENCE_S) == "d"


def test_a_pool_of_the_tree_goes_on_with_what_it_accepted(tmp_path: Path) -> None:
    """The program has its backlog: what was not running is done, under the same name."""
    journal = Journal(tmp_path / "journal")
    with Runtime(Supervisor([Child(Pool, 2, name="work")])) as runtime:
        pool = whereis("work")
        futures = [pool.submit(double, journal, n) for n in range(20)]
        kill_root(runtime)
        journal.note("go")
        done = [future for future in futures if future.exception(PATIENCE_S) is None]
        assert len(done) >= 18, "at most the two that were running died with their workers"
        assert [future.result() for future in done] == [2 * n for n, future in enumerate(futures) if future in done]
        assert find("work") is pool and pool.submit(double, journal, 21).result(PATIENCE_S) == 42


def test_servers_outside_any_tree(tmp_path: Path) -> None:
    """A permanent one is started again by the next root, a temporary one is gone."""
    journal = Journal(tmp_path / "journal")
    journal.note("go")
    with Runtime() as runtime:
        kept = start(Slow, journal, name="kept", restart="permanent")
        gone = start(Slow, journal, name="gone")
        kill_root(runtime)
        assert find("kept").call("ask", "x", timeout=PATIENCE_S) == "x"
        assert kept.call("ask", "y", timeout=PATIENCE_S) == "y"
        assert whereis("gone") is None
        try:
            gone.call("ask", "z", timeout=PATIENCE_S)
        except ServerDown:
            return
        raise AssertionError("a server that nobody restarts answered")


def test_callers_of_many_threads_all_hear(tmp_path: Path) -> None:
    """Ten threads in calls while the root dies, again and again: each call ends in its own answer or ServerDown."""
    journal = Journal(tmp_path / "journal")
    journal.note("go")
    wrong: list[Any] = []
    stop = threading.Event()
    answers = 0

    def ask(number: int) -> None:
        nonlocal answers
        turn = 0
        while not stop.is_set():
            turn += 1
            word = f"{number}/{turn}"
            try:
                server = whereis("slow")
                if server is not None:
                    if server.call("ask", word, timeout=PATIENCE_S) != word:
                        wrong.append(word)
                    answers += 1
            except (ServerDown, RuntimeDown):
                pass
            except Exception as error:
                wrong.append(error)

    with Runtime(Supervisor([Child(Slow, journal, name="slow")])) as runtime:
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(10)]
        for thread in threads:
            thread.start()
        for _ in range(3):
            before = answers
            until(lambda before=before: answers > before + 20)
            kill_root(runtime)
        before = answers
        until(lambda: answers > before + 20)
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong, wrong

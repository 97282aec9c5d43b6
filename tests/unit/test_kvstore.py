"""The example that stays up: its verdict holds under fire, and would not hold if the store were careless."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from shmrt import call
from shmrt.examples import kvstore, kvstore_load

WATCHDOG_S = 120
"""Only ends a hang; nothing is measured by it."""


# ---- the journal ---------------------------------------------------------------------------------------------------


def journal(folder: Path) -> kvstore.Journal:
    return kvstore.Journal(str(folder))


def test_what_was_appended_is_read_back_and_the_last_word_counts(tmp_path: Path) -> None:
    one = journal(tmp_path)
    for entry in (("a", (1, "x")), ("b", (1, "ü\n")), ("a", (2, "y"))):
        one.append(*entry)
    one.close()
    again = journal(tmp_path)
    assert again.load() == {"a": (2, "y"), "b": (1, "ü\n")} and again.lines == 3
    again.close()


def test_half_a_line_was_never_acknowledged(tmp_path: Path) -> None:
    """A kill in the middle of a write, at every length; the next line does not grow out of the half one."""
    first, second = kvstore._line("a", (1, "x")), kvstore._line("b", (1, "y"))
    for cut in range(len(second)):
        (tmp_path / "journal").write_bytes(first + second[:cut])
        one = journal(tmp_path)
        assert one.load() == {"a": (1, "x")}
        one.append("c", (1, "z"))
        assert one.load() == {"a": (1, "x"), "c": (1, "z")}
        one.close()


def test_damage_that_no_kill_explains_is_an_error(tmp_path: Path) -> None:
    line = kvstore._line("a", (1, "x"))
    (tmp_path / "journal").write_bytes(line.replace(b"x", b"y") + line)
    one = journal(tmp_path)
    with pytest.raises(ValueError, match="line 1 is damaged"):
        one.load()
    one.close()


def test_a_rewritten_journal_says_the_same(tmp_path: Path) -> None:
    one = journal(tmp_path)
    for version in range(1, 50):
        one.append("a", (version, str(version)))
    one.rewrite({"a": (49, "49")})
    assert one.lines == 1
    one.append("b", (1, ""))
    assert one.load() == {"a": (49, "49"), "b": (1, "")}
    one.close()


def test_one_process_at_a_time_has_the_journal(tmp_path: Path) -> None:
    one = journal(tmp_path)
    opened = threading.Event()

    def second() -> None:
        journal(tmp_path).close()
        opened.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not opened.wait(0.05)
    one.close()
    assert opened.wait(WATCHDOG_S)
    thread.join()


# ---- the servers, without a process --------------------------------------------------------------------------------


def test_a_write_names_its_version_so_twice_is_once(tmp_path: Path) -> None:
    store = kvstore.Store()
    store.init(str(tmp_path))
    assert store.put("a", 2, "two", 7) == (7, 0)
    assert store.put("a", 2, "two", 8) == (8, 2)
    assert store.put("a", 1, "one", 9) == (9, 2)
    assert store.get("a", 10) == (10, 2, "two") and store.get("b", 11) == (11, 0, "")
    assert store.format_state(None) == {"keys": 1, "lines": 1}
    store.terminate("shutdown")


def test_a_long_journal_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kvstore, "LINES_MOST", 10)
    store = kvstore.Store()
    store.init(str(tmp_path))
    for version in range(1, 12):
        store.put("a", version, "", 0)
    assert store.tidy() == 1 and store.get("a", 0) == (0, 11, "")
    store.terminate("shutdown")


# ---- the clients ---------------------------------------------------------------------------------------------------


class Fake:
    """A store in this process. `spoil` gets every answer."""

    def __init__(self, spoil: Any) -> None:
        self.data: dict[str, tuple[int, str]] = {}
        self.spoil = spoil

    def call(self, name: str, key: str, *rest: Any) -> Any:
        before = self.data.get(key, (0, ""))
        if name == "put":
            self.data[key] = rest[:2]
        return self.spoil(self, (rest[-1], before[0]) if name == "put" else (rest[-1], *before))


def forget(fake: Fake, answer: Any) -> Any:
    fake.data.clear()
    return answer


@pytest.mark.parametrize(
    ("spoil", "wrong"),
    [
        (lambda fake, answer: answer, set()),
        (forget, {"lost"}),
        (lambda fake, answer: (answer[0] + 1, *answer[1:]), {"misdirected"}),
        (lambda fake, answer: (*answer[:2], "nonsense") if len(answer) == 3 else answer, {"wrong"}),
    ],
)
def test_a_client_sees_what_is_wrong(spoil: Any, wrong: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way to fail is counted under its own name, and an honest store fails in none."""
    fake = Fake(spoil)
    monkeypatch.setattr(kvstore_load, "store", lambda: fake)
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    client = kvstore_load.Client(0, seed, threading.Event())
    for _ in range(1000):
        client.write()
        client.read()
    assert {name for name in ("lost", "misdirected", "wrong", "stuck") if client.counts[name]} == wrong
    assert client.counts["writes"] == client.counts["reads"] == 1000
    assert bool(client.lost_in(fake.data)) == ("lost" in wrong)


# ---- the tree ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_verdict_holds_in_peace() -> None:
    verdict = kvstore.main(0.7, 3, mood=0.0)
    print(f"seed {verdict.seed}\n{verdict.text()}")
    assert verdict.holds and verdict.writes > 50 and verdict.reads > 20 and verdict.digests > 0
    assert (verdict.killed, verdict.crashed, verdict.restarts, verdict.retried) == (0, 0, 0, {})


@pytest.mark.slow
def test_the_verdict_holds_under_fire() -> None:
    verdict = kvstore.main(2.0, 3, chaos=15.0)
    print(f"seed {verdict.seed}\n{verdict.text()}")
    assert verdict.holds and verdict.writes > 50 and verdict.killed > 3


class Hasty(kvstore.Store):
    """Answers first and journals later; and dies at every hundredth write."""

    def keep(self, key: str, entry: kvstore.Entry) -> None:
        self.__dict__.setdefault("later", []).append((key, entry))
        self.data[key] = entry
        if len(self.later) == 100:
            os.kill(os.getpid(), signal.SIGKILL)

    def terminate(self, reason: Any) -> None:
        for key, entry in self.later:
            self.journal.append(key, entry)
        super().terminate(reason)


class Mixed(kvstore.Store):
    """Gives every hundredth reader the answer of the one before."""

    @call
    def get(self, key: str, token: int) -> Any:
        self.reads = self.__dict__.get("reads", 0) + 1
        answer = self.before if self.reads % 100 == 0 else super().get(key, token)
        self.before = answer
        return answer


@pytest.mark.slow
@pytest.mark.parametrize(("store", "fault"), [(Hasty, "lost"), (Mixed, "misdirected")])
def test_a_careless_store_is_found_out(store: type[kvstore.Store], fault: str) -> None:
    verdict = kvstore.main(1.5, 3, mood=0.0, store=store, restarts=1000)
    print(f"seed {verdict.seed}\n{verdict.text()}")
    assert not verdict.holds and getattr(verdict, fault) > 0
    assert verdict.text().endswith("NO")


# ---- the command ---------------------------------------------------------------------------------------------------


def demo(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shmrt", "demo", "kvstore", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_command_says_the_verdict() -> None:
    seed = secrets.randbelow(2**31)
    print(f"seed {seed}")
    run = demo("--seconds", "1s", "--clients", "2", "--chaos", "kill=5", "--seed", str(seed))
    out, errors = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode == 0, errors
    assert out.endswith(f"seed {seed}; every acknowledged write is there: yes\n")
    assert errors == f"kvstore: chaos kill=5/s, 2 clients, seed {seed}\n"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_order(number: signal.Signals) -> None:
    """As a terminal sends it, to the whole group: the verdict is about what was done until then."""
    run = demo("--seconds", "1000s", "--clients", "2")
    assert run.stderr is not None and run.stderr.readline().startswith("kvstore: chaos kill=0/s")
    os.killpg(run.pid, number)
    out, errors = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode == -number, errors
    assert out.endswith("every acknowledged write is there: yes\n")
    assert errors == f"{number.name}: draining, at most 30 s; once more stops now\n"

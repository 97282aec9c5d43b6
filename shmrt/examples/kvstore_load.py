"""Puts clients on the store of `kvstore.py`, kills its processes, and says what came of it.

A client is a thread of this program. It owns some keys and writes version after version of each; every answer is
checked against what it must be:

    lost         an acknowledged version is not there: in a later answer, or in the journal at the end
    misdirected  the answer has another call's token: it belongs to somebody else
    wrong        the value is not the one of its key and version
    stuck        no answer within 30 s, however often it was asked

A call that ends in ServerDown, CallTimeout or a dead worker is made again: a write names its version, so twice is the
same as once. The time from the first try to the answer is what the client had to wait.

If a client meets anything else, that is a mistake, and `run` raises it. Ctrl-C ends the run early and in order: the
clients finish their call, the tree ends from the last child to the first, and the verdict is about what was done.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple
from zlib import crc32

from shmrt import (
    CallTimeout,
    NotFound,
    Overloaded,
    Pool,
    PoolBroken,
    Runtime,
    RuntimeDown,
    ServerDown,
    WorkerCrashed,
    whereis,
)
from shmrt.examples import kvstore

__all__ = ["Chaos", "Client", "Verdict", "run"]

KEYS = 100
STUCK_S = 30.0
AGAIN_S = 0.01
FAILURES = (ServerDown, CallTimeout, WorkerCrashed, PoolBroken, Overloaded, NotFound)
"""What a call may end in while something is down. Everything else is a mistake."""


class Verdict(NamedTuple):
    """What a run came to. `holds`: nothing lost, misdirected, wrong or stuck."""

    seconds: float
    writes: int
    reads: int
    digests: int
    advice: int
    lost: int
    misdirected: int
    wrong: int
    stuck: int
    killed: int
    crashed: int
    restarts: int
    retried: dict[str, int]
    p50_ms: float
    p99_ms: float
    pause_ms: float
    digest_pause_ms: float
    seed: int

    @property
    def holds(self) -> bool:
        return not (self.lost or self.misdirected or self.wrong or self.stuck)

    def text(self) -> str:
        retries = ", ".join(f"{count} {name}" for name, count in sorted(self.retried.items())) or "none"
        return (
            f"kvstore: {self.writes:,} acknowledged writes, lost {self.lost}; {self.misdirected} answers of another "
            f"call, {self.wrong} wrong, {self.stuck} never came\n"
            f"  {self.reads:,} reads, {self.digests:,} digests by workers, {self.advice:,} answers of the moody service"
            f"\n  {self.killed} processes killed, {self.crashed} crashed, {self.restarts} restarts; asked again after: "
            f"{retries}\n"
            f"  a call took {self.p50_ms:.3f} ms (median), {self.p99_ms:.3f} ms (p99); longest pause of a client "
            f"{self.pause_ms:.0f} ms, {self.digest_pause_ms:.0f} ms for a digest\n"
            f"  seed {self.seed}; every acknowledged write is there: {'yes' if self.holds else 'NO'}"
        )


def value_of(key: str, version: int) -> str:
    """The only right value, so that whoever reads can tell."""
    return f"{crc32(f'{key}:{version}'.encode()):08x}" * 4


class Client(threading.Thread):
    """See the module."""

    def __init__(self, number: int, seed: int, stop: threading.Event) -> None:
        super().__init__(name=f"client-{number}", daemon=True)
        self.random = random.Random(f"{seed}/{number}")
        self.stop = stop
        self.versions = {f"{number}/{at}": 0 for at in range(KEYS)}
        self.unsure: dict[str, int] = {}
        """Versions whose write was given up without an answer: they may be there."""
        self.counts: Counter[str] = Counter()
        self.retried: Counter[str] = Counter()
        self.times: list[float] = []
        """Seconds that calls of the store took which were answered."""
        self.pauses: dict[str, float] = {"store": 0.0, "digest": 0.0}
        """The longest time from the first try to the answer."""
        self.mistake: BaseException | None = None

    def run(self) -> None:
        deeds = [self.write] * 60 + [self.read] * 30 + [self.digest] * 5 + [self.ask_advice] * 5
        try:
            while not self.stop.is_set():
                self.random.choice(deeds)()
        except BaseException as error:
            self.mistake = error
            self.stop.set()

    # ---- what it does -----------------------------------------------------------------------------------------------
    def write(self) -> None:
        key = self.random.choice(list(self.versions))
        version = max(self.versions[key], self.unsure.get(key, 0)) + 1
        before = self.insist("put", key, version, value_of(key, version))
        if before is None:
            self.unsure[key] = version
            return
        # A first try may have been done without an answer: then this version is there already.
        self.counts["lost"] += before[0] < self.versions[key]
        self.versions[key] = version
        self.counts["writes"] += 1

    def read(self) -> None:
        key = self.random.choice(list(self.versions))
        found = self.insist("get", key)
        if found is not None:
            self.check(key, *found)
            self.counts["reads"] += 1

    def digest(self) -> None:
        """A worker of the pool asks the store, by name."""
        keys = self.random.sample(list(self.versions), 3)
        token = self.token()
        answer = self.again("digest", lambda: pool().submit(kvstore.digest, keys, token).result(timeout=STUCK_S))
        if answer is not None:
            found = self.checked(answer, token)[0]
            for key, (version, value) in zip(keys, found, strict=True):
                self.check(key, version, value)
            self.counts["digests"] += 1

    def ask_advice(self) -> None:
        """Nobody depends on it: one try, and no answer is an answer."""
        service, token = whereis("moody"), self.token()
        if service is None:
            return
        try:
            self.checked(service.call("advice", token, timeout=0.5), token)
            self.counts["advice"] += 1
        except (ConnectionError, *FAILURES):
            pass

    # ---- how --------------------------------------------------------------------------------------------------------
    def insist(self, name: str, *args: Any) -> tuple[Any, ...] | None:
        """A call of the store until there is an answer, without its token; None if there is none."""
        token = self.token()
        answer = self.again("store", lambda: store().call(name, *args, token))
        return None if answer is None else self.checked(answer, token)

    def again(self, what: str, ask: Callable[[], Any]) -> Any:
        started = time.monotonic()
        while True:
            begun = time.monotonic()
            try:
                answer = ask()
            except FAILURES as error:
                self.retried[type(error).__name__] += 1
            except RuntimeError as error:  # the pool is being closed, to be opened again
                if "shutdown" not in str(error):
                    raise
                self.retried["pool closed"] += 1
            else:
                now = time.monotonic()
                if what == "store":
                    self.times.append(now - begun)
                self.pauses[what] = max(self.pauses[what], now - started)
                return answer
            if time.monotonic() - started > STUCK_S:
                self.counts["stuck"] += 1
                return None
            time.sleep(AGAIN_S)

    def token(self) -> int:
        return self.random.getrandbits(62)

    def checked(self, answer: tuple[Any, ...], token: int) -> tuple[Any, ...]:
        self.counts["misdirected"] += answer[0] != token
        return answer[1:]

    def check(self, key: str, version: int, value: str) -> None:
        self.counts["lost"] += version < self.versions[key]
        self.counts["wrong"] += value != (value_of(key, version) if version else "")

    def lost_in(self, data: dict[str, kvstore.Entry]) -> int:
        """Acknowledged versions that are not in there."""
        return sum(data.get(key, (0, ""))[0] < version for key, version in self.versions.items())


def store() -> Any:
    found = whereis("store")
    if found is None:
        raise NotFound("the store is being restarted")
    return found


def pool() -> Pool:
    found: Any = whereis("compute")
    if found is None:
        raise NotFound("the pool is being restarted")
    return found  # type: ignore[no-any-return]


# ---- kills ---------------------------------------------------------------------------------------------------------


class Chaos(threading.Thread):
    """SIGKILL for a random process of the tree, at exponential intervals drawn from one seed."""

    def __init__(self, runtime: Runtime, rate: float, seed: int) -> None:
        super().__init__(name="chaos", daemon=True)
        self.runtime, self.rate, self.random = runtime, rate, random.Random(seed)
        self.killed = 0
        self._over = threading.Event()

    def run(self) -> None:
        while not self._over.wait(self.random.expovariate(self.rate)):
            self.killed += self.kill_one()

    def kill_one(self) -> bool:
        """Servers and functions by their pid; a worker of the pool through the root, which knows which are ready."""
        try:
            pids = processes(self.runtime.supervisor())
            workers = pool().stats()["workers_ready"]
        except (*FAILURES, RuntimeDown):
            return False  # whoever was asked ended meanwhile
        if not pids and not workers:
            return False
        place = self.random.randrange(len(pids) + workers)
        if place >= len(pids):
            return self.runtime.chaos_kill(self.random) is not None
        return kill(pids[place], self.runtime.pid)

    def __enter__(self) -> Chaos:
        if self.rate > 0:
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.rate > 0:
            self.join()


def processes(supervisor: Any) -> list[int]:
    """The servers and functions below a supervisor."""
    found: list[int] = []
    for _, whom, _, _ in reversed(supervisor.which_children()):
        if isinstance(whom, int):
            found.append(whom)
        elif hasattr(whom, "which_children"):
            found += processes(whom)
    return found


def kill(pid: int, root: int | None) -> bool:
    """SIGKILL, if it is still the root's child: numbers are used again."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        with open(f"/proc/{pid}/stat") as file:
            if int(file.read().rpartition(")")[2].split()[1]) != root:
                return False
        signal.pidfd_send_signal(process, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(process)


# ---- the run -------------------------------------------------------------------------------------------------------


class Reports:
    """Counts what the tree tells: deaths that nobody ordered, and starts."""

    def __init__(self) -> None:
        self.crashed = self.starts = 0

    def __call__(self, event: Any) -> None:
        if isinstance(event, dict) and event["offender"].get("type") == "worker":  # of a full mailbox: none
            self.starts += event["context"] == "progress"
            self.crashed += event["context"] == "child_terminated" and isinstance(event["reason"], tuple)


def run(
    seconds: float = 10.0,
    clients: int = 4,
    chaos: float = 0.0,
    seed: int | None = None,
    *,
    stop: threading.Event | None = None,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> Verdict:
    """Runs the tree (options: those of `kvstore.tree`) under `clients` for so many seconds, or until `stop` is set."""
    seed = secrets.randbelow(2**31) if seed is None else seed
    stop = threading.Event() if stop is None else stop
    with ExitStack() as stack:
        journal = options.pop("journal", None)
        if journal is None:
            journal = tempfile.mkdtemp(prefix="shmrt-kvstore-")
            stack.callback(shutil.rmtree, journal, ignore_errors=True)
        # Kills are no mistakes of the children: what they cost must not use up what mistakes may cost.
        options.setdefault("restarts", kvstore.RESTARTS + int(4 * chaos * kvstore.PERIOD_S))
        reports = Reports()
        threads = [Client(number, seed, stop) for number in range(clients)]
        started = time.monotonic()
        with Runtime(kvstore.tree(journal, **options), on_event=reports) as runtime:
            first = reports.starts
            chaos_thread = Chaos(runtime, chaos, seed)
            with chaos_thread:
                for client in threads:
                    client.start()
                wait(stop, seconds, threads, chaos_thread, progress)
                stop.set()
                for client in threads:
                    client.join()
        took = time.monotonic() - started
        for client in threads:
            if client.mistake is not None:
                raise client.mistake
        left = kvstore.Journal(journal)
        data = left.load()
        left.close()
    counts = sum((client.counts for client in threads), Counter[str]())
    times = sorted(moment for client in threads for moment in client.times) or [0.0]
    return Verdict(
        seconds=took,
        lost=counts["lost"] + sum(client.lost_in(data) for client in threads),
        wrong=counts["wrong"] + sum(value != value_of(key, version) for key, (version, value) in data.items()),
        killed=chaos_thread.killed,
        crashed=reports.crashed,
        restarts=reports.starts - first,
        retried=dict(sum((client.retried for client in threads), Counter[str]())),
        p50_ms=1e3 * times[len(times) // 2],
        p99_ms=1e3 * times[len(times) * 99 // 100],
        pause_ms=1e3 * max(client.pauses["store"] for client in threads),
        digest_pause_ms=1e3 * max(client.pauses["digest"] for client in threads),
        seed=seed,
        **{name: counts[name] for name in ("writes", "reads", "digests", "advice", "misdirected", "stuck")},
    )


def wait(
    stop: threading.Event,
    seconds: float,
    clients: list[Client],
    chaos: Chaos,
    progress: Callable[[str], None] | None,
) -> None:
    """Until the time is over, `stop` is set, or Ctrl-C."""
    end = time.monotonic() + seconds
    try:
        while (left := end - time.monotonic()) > 0 and not stop.wait(min(left, 1.0)):
            if progress is not None:
                writes = sum(client.counts["writes"] for client in clients)
                progress(f"{writes:,} writes  {chaos.killed} processes killed  {max(0.0, left - 1):.0f} s to go")
    except KeyboardInterrupt:
        pass  # the verdict is about what was done

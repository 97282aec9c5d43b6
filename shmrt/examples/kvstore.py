"""A key-value store that stays up: a tree of three layers, and where the state lives in it.

    kvstore  rest_for_one          what stands further down needs what stands above it
    ├─ storage  rest_for_one
    │   ├─ store    Server         the data; `whereis("store")` finds it from every process
    │   └─ janitor  function       has the journal rewritten before it gets long
    ├─ compute    Pool             its workers compute on values that they ask the store for, by name
    └─ services  one_for_one       nobody depends on these
        ├─ log    Server           the last lines that the others wrote
        └─ moody-guard  one_for_one, with an intensity and a backoff of its own
            └─ moody  Server       crashes at random; clients do without it meanwhile

If the store dies, its supervisor starts the next one, and the janitor with it; the pool does not even notice. Only if
the storage supervisor gives up, everything after it starts afresh, too. If the moody service gives its guard no rest,
the guard gives up, and the supervisor of the services starts another guard.

*Where does the state live?* Not in the process: a crashed server starts with what its `init` makes. A second server
that keeps the data for it (as ETS tables have an heir in OTP) outlives the mistakes of the store, but is one more
process that may be killed. So it is a file. `put` writes a line of the journal before it answers, and what `write` has
taken belongs to the kernel: it survives every process of this program. `init` reads it back. A kill in the middle of a
write leaves half a line, which nobody was told of; `init` cuts it off. (A machine that loses power needs `fsync`, too.)

*What may a client believe?* An answer: the write is in the journal. No answer (ServerDown, CallTimeout): it is there or
not, so the client says it again, and since a write names its version, twice is the same as once.

`tree()` runs by `python -m shmrt run shmrt.examples.kvstore:tree`. `main(...)` puts clients on it, kills its processes
and says what came of it: `python -m shmrt demo kvstore --chaos kill=20`.

    >>> from shmrt.examples.kvstore import tree
    >>> tree("/nowhere").children[0].id
    'storage'
"""

from __future__ import annotations

import atexit
import fcntl
import json
import os
import random
import shutil
import tempfile
import time
from collections import deque
from typing import Any
from zlib import crc32

from shmrt import Child, NotFound, Pool, RingSpec, Server, ServerRef, Supervisor, call, cast, whereis

__all__ = ["Journal", "Log", "Moody", "Store", "digest", "janitor", "main", "tree"]

LINES_MOST = 20_000
"""Beyond so many lines the journal is rewritten: one line for each key."""
RESTARTS, PERIOD_S = 3, 5.0
"""What the supervisors bear before they give up, as OTP's do; a run with chaos asks for more."""
MOOD = 0.05
"""How often the moody service crashes: one call in twenty."""

Entry = tuple[int, str]


# ---- the journal ---------------------------------------------------------------------------------------------------


class Journal:
    """Every write, one line each, checked by its CRC. Whoever has it open is alone: the next one waits for its end.

    If its process dies in the middle of a line, that line is not there.
    """

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, "journal")
        self._lock = os.open(os.path.join(folder, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._file = self._open(self.path)
        self.lines = 0

    @staticmethod
    def _open(path: str, more: int = 0) -> int:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | more, 0o600)

    def load(self) -> dict[str, Entry]:
        """What was written; half a line at the end is cut off. ValueError for damage that no kill explains."""
        data: dict[str, Entry] = {}
        with open(self.path, "rb") as file:
            whole = file.read()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(self.path, end)
        lines = whole[:end].splitlines()
        for number, line in enumerate(lines, 1):
            check, body = line[:8], line[9:]
            if check != b"%08x" % crc32(body):
                raise ValueError(f"{self.path}: line {number} is damaged")
            key, version, value = json.loads(body)
            data[key] = (version, value)
        self.lines = len(lines)
        return data

    def append(self, key: str, entry: Entry) -> None:
        """Returns once the kernel has it."""
        self._write(self._file, _line(key, entry))
        self.lines += 1

    def rewrite(self, data: dict[str, Entry]) -> None:
        """One line for each key. The old file stands until the new one is whole."""
        fresh = self._open(self.path + ".new", os.O_TRUNC)
        self._write(fresh, b"".join(_line(key, entry) for key, entry in data.items()))
        os.replace(self.path + ".new", self.path)
        os.close(self._file)
        self._file, self.lines = fresh, len(data)

    @staticmethod
    def _write(file: int, line: bytes) -> None:
        rest = memoryview(line)
        while rest:
            rest = rest[os.write(file, rest) :]

    def close(self) -> None:
        os.close(self._file)
        os.close(self._lock)


def _line(key: str, entry: Entry) -> bytes:
    body = json.dumps([key, *entry]).encode()
    return b"%08x %s\n" % (crc32(body), body)


# ---- the servers ---------------------------------------------------------------------------------------------------


class Store(Server):
    """Keys with a version and a value. Every answer begins with the token of its question.

    Its attributes are a copy of the journal; if the process dies, the next one reads it.
    """

    def init(self, folder: str) -> None:
        self.journal = Journal(folder)
        self.data = self.journal.load()
        note(f"store: {len(self.data)} keys from {self.journal.lines} lines")

    @call
    def put(self, key: str, version: int, value: str, token: int) -> tuple[int, int]:
        """(token, the version that was there before). An older version than that changes nothing."""
        before = self.data.get(key, (0, ""))[0]
        if version > before:
            self.keep(key, (version, value))
        return token, before

    def keep(self, key: str, entry: Entry) -> None:
        """First the journal: what is not there was never answered."""
        self.journal.append(key, entry)
        self.data[key] = entry

    @call
    def get(self, key: str, token: int) -> tuple[int, int, str]:
        return token, *self.data.get(key, (0, ""))

    @call
    def tidy(self) -> int:
        """Rewrites a long journal; how many lines it has."""
        if self.journal.lines > max(LINES_MOST, 2 * len(self.data)):
            self.journal.rewrite(self.data)
            note(f"store: rewrote the journal, {self.journal.lines} lines")
        return self.journal.lines

    def format_state(self, state: Any) -> Any:
        """For `get_state`: how much there is, not what."""
        return {"keys": len(self.data), "lines": self.journal.lines}

    def terminate(self, reason: Any) -> None:
        """Good manners only: nothing may depend on it, since a kill leaves no time for it."""
        self.journal.close()


class Log(Server):
    """The last lines, in memory. Who restarts it, gets an empty one; that is as much as these lines are worth."""

    def init(self, most: int = 200) -> None:
        self.rows: deque[str] = deque(maxlen=most)

    @cast
    def write(self, text: str) -> None:
        self.rows.append(text)

    @call
    def last(self, count: int = 20) -> list[str]:
        return list(self.rows)[-count:]


def note(text: str) -> None:
    """Writes to the log if there is one just now: nobody waits for it, nobody ends with it."""
    log = whereis("log")
    if log is not None:
        log.cast("write", f"{os.getpid()} {text}", timeout=0)


class Moody(Server):
    """A service that is not to be relied on."""

    def init(self, mood: float = MOOD) -> None:
        self.mood = mood

    @call
    def advice(self, token: int) -> tuple[int, str]:
        if random.random() < self.mood:
            raise ConnectionError("not today")
        return token, "keep calm"


# ---- what runs beside them -----------------------------------------------------------------------------------------


def janitor(every: float = 0.5) -> None:
    """Runs for ever; TERM is raised here as `Shutdown`, and needs no code."""
    while True:
        store = whereis("store")
        if store is not None:
            store.call("tidy", timeout=30)  # no answer: let it crash, too
        time.sleep(every)


def digest(keys: list[str], token: int) -> tuple[int, list[tuple[int, str]], int]:
    """In a worker of the pool: (token, what the store says of each key, a checksum over it)."""
    store = whereis("store")
    if not isinstance(store, ServerRef):
        raise NotFound("the store is not there")
    found = [store.call("get", key, token)[1:] for key in keys]
    return token, found, crc32(repr(found).encode())


def tree(
    journal: str | None = None,
    *,
    workers: int = 2,
    restarts: int = RESTARTS,
    mood: float = MOOD,
    store: type[Store] = Store,
) -> Supervisor:
    """The description. journal: a folder that keeps the data; None makes one that goes when the program ends."""
    if journal is None:
        journal = tempfile.mkdtemp(prefix="shmrt-kvstore-")
        atexit.register(shutil.rmtree, journal, ignore_errors=True)
    limits: dict[str, Any] = {"max_restarts": restarts, "max_seconds": PERIOD_S}
    storage = Supervisor(
        [
            Child(store, journal, name="store", mailbox=RingSpec(slots=256), start_timeout=30.0),
            Child(janitor),
        ],
        strategy="rest_for_one",
        name="storage",
        **limits,
    )
    log = Child(Log, name="log", mailbox=RingSpec(slots=64, on_full="drop_oldest"))
    guard = Supervisor(
        [Child(Moody, mood, name="moody", mailbox=RingSpec(slots=16, on_full="raise"))],
        max_restarts=3,
        max_seconds=1.0,
        backoff={"base": 0.02, "max": 0.5},
        name="moody-guard",
    )
    return Supervisor(
        [
            Child(storage),
            Child(Pool, workers, name="compute", kwargs={"max_attempts": 3}),
            Child(Supervisor([log, Child(guard)], name="services", **limits)),
        ],
        strategy="rest_for_one",
        name="kvstore",
        **limits,
    )


def main(seconds: float = 10.0, clients: int = 4, chaos: float = 0.0, seed: int | None = None, **more: Any) -> Any:
    """Clients on the tree for so many seconds, `chaos` random kills a second; see `kvstore_load.run`."""
    from shmrt.examples.kvstore_load import run

    return run(seconds, clients, chaos, seed, **more)

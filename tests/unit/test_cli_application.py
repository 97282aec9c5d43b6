"""Application files: what the tables become, and that every mistake names its file, line and key."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shmrt.cli.config import read_settings
from shmrt.cli.run import load_target
from shmrt.cli.screen import CliError

MODULE = """
import shmrt

class Store(shmrt.Server):
    def init(self, *args, **kwargs):
        pass

def work(item):
    return item

def loop():
    pass

value = 3
"""

WHOLE = """
[runtime]
name = "shop"
drain_timeout = "5s"
shm_limit = "64MiB"

[supervisor]
strategy = "rest_for_one"
max_restarts = 7
within = "2m"
auto_shutdown = "any_significant"
backoff = { base = "100ms", max = "30s", jitter = 0.25 }

[ring.docs]
slots = 64
slot_bytes = "1KiB"
overflow = "drop_old"

[child.first]
start = "application_module:loop"

[pool.hash]
target = "application_module:work"
input = "docs"
workers = 3
task_timeout = "250ms"
max_tasks = 100
max_rss = "512MiB"
retry = { max_attempts = 4 }
restart = "transient"
significant = true

[supervisor.stores]
strategy = "one_for_all"
within = 3
restart = "transient"

[supervisor.stores.child.index]
start = "application_module:Store"
args = [1, "two"]
kwargs = { three = 3 }
name = "index"
mailbox = { slots = 16, on_full = "raise" }
shutdown = "brutal_kill"

[supervisor.stores.supervisor.deep.child.last]
start = "application_module:loop"
shutdown = "1500ms"

[child.${THE_NAME}]
start = "application_module:loop"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "application_module.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("application_module", None)


def read(here: Path, text: str, **flags: Any) -> tuple[dict[str, Any], Any]:
    path = here / "app.toml"
    path.write_text(text)
    settings = read_settings(flags, str(path))
    return settings, load_target(settings)


def refusal(here: Path, text: str) -> str:
    with pytest.raises(CliError) as caught:
        read(here, text)
    assert caught.value.code == 2
    return f"{caught.value.message}\n{caught.value.hint}"


def test_everything_that_a_file_can_say(here: Path) -> None:
    """Each key becomes the keyword of its name; children stand in the order of the file, whatever their kind."""
    settings, target = read(here, WHOLE.replace("${THE_NAME}", "later"))
    assert (settings["runtime.name"], settings["runtime.drain_timeout"]) == ("shop", 5.0)
    assert settings["runtime.shm_limit"] == 64 << 20
    tree = target.tree
    assert (tree.strategy, tree.max_restarts, tree.max_seconds) == ("rest_for_one", 7, 120.0)
    assert tree.auto_shutdown == "any_significant"
    assert (tree.backoff.first_ns, tree.backoff.cap_ns, tree.backoff.jitter) == (100_000_000, 30_000_000_000, 0.25)
    assert [child.id for child in tree.children] == ["first", "hash", "stores", "later"]
    pool = tree.children[1]
    assert (pool.restart, pool.significant, pool.name) == ("transient", True, "hash")
    assert pool.kwargs == {
        "max_workers": 3,
        "task_timeout": 0.25,
        "max_tasks_per_child": 100,
        "max_rss": 512 << 20,
        "max_attempts": 4,
        "preload": ["application_module"],
    }
    [fed] = target.inputs
    assert (fed.pool, fed.ring, fed.target.__name__) == ("hash", "docs", "work")
    assert (target.rings["docs"].slots, target.rings["docs"].on_full) == (64, "drop_oldest")
    stores = tree.children[2]
    assert (stores.type, stores.restart, stores.start.strategy) == ("supervisor", "transient", "one_for_all")
    assert stores.start.max_seconds == 3.0
    index, deep = stores.start.children
    assert (index.name, index.args, index.kwargs, index.shutdown) == ("index", (1, "two"), {"three": 3}, "brutal_kill")
    assert (index.mailbox.slots, index.mailbox.on_full) == (16, "raise")
    assert deep.start.children[0].shutdown == 1.5
    tree.specification()


def test_flags_and_variables_come_before_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shmrt.cli.serve import shaped

    text = '[runtime]\nname = "file"\n[supervisor]\nmax_restarts = 7\n[child.a]\nstart = "application_module:loop"\n'
    settings, target = read(here, text)
    assert settings["runtime.name"] == "file" and shaped(target.tree, settings).max_restarts == 7
    monkeypatch.setenv("SHMRT_NAME", "variable")
    monkeypatch.setenv("SHMRT_SUPERVISOR_MAX_RESTARTS", "8")
    settings, target = read(here, text)
    assert settings["runtime.name"] == "variable" and shaped(target.tree, settings).max_restarts == 8
    settings, target = read(here, text, **{"runtime.name": "flag", "supervisor.max_restarts": 9})
    assert settings["runtime.name"] == "flag" and shaped(target.tree, settings).max_restarts == 9


def test_strings_take_the_environment(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_ARGUMENT", "from outside")
    text = '[child.a]\nstart = "application_module:loop"\nargs = ["${THE_ARGUMENT}", ["${THE_ARGUMENT}"]]\n'
    assert read(here, text)[1].tree.children[0].args == ("from outside", ["from outside"])


A = '[child.a]\nstart = "application_module:loop"\n'
MISTAKES = [
    ("[child.a]\n", [":1:", "[child.a] has no 'start'", 'start = "MODULE:OBJECT"']),
    (A + "restrat = 1\n", [":3:", "unknown key 'restrat' in [child.a]", "did you mean 'restart'"]),
    (A + 'restart = "often"\n', ["[child.a]", "'often'", "permanent, transient, temporary"]),
    (A + "restart = 1\n", [":3:", "restart must be a string"]),
    (A + 'shutdown = "soon"\n', [":3:", "'soon'", "250ms"]),
    (A + "args = 1\n", [":3:", "args must be a list"]),
    (A + "significant = true\n", ["significant=True", "always restarted"]),
    (A + "mailbox = { slots = 3 }\n", ["[child.a]", "only a Server has a mailbox"]),
    (A + 'health = "x"\n', [":3:", "health must be a list, not 'x'"]),
    (A + "[[child.a.health]]\ncheck = 'application_module:work'\n", [":3:", "a check needs name"]),
    (A + "[[child.a.health]]\nname = 'n'\ncheck = 'application_module:nothing'\n", [":3:", "nothing"]),
    (A + "[[child.a.health]]\nname = 'n'\ncheck = 'application_module:work'\ngrac = 1\n", ["'grac'", "'grace'"]),
    (A + "[[child.a.health]]\nname = 'n'\ncheck = 'application_module:work'\non_fail = 'x'\n", ["on_fail='x'"]),
    ('[child.a]\nstart = "application_module:nothing"\n', [":2:", "has no 'nothing'"]),
    ('[child.a]\nstart = "no_such_module:x"\n', [":2:", "no module 'no_such_module'"]),
    ('[child.a]\nstart = "application_module:value"\n', ["[child.a]", "must be a function, a Server class"]),
    ("child = 3\n", [":1:", "child = 3 must be a table"]),
    ("[child]\na = 3\n", [":2:", "child.a = 3 must be a table"]),
    (A + '[supervisor]\nstrategy = "best"\n', ["[supervisor]", "'best'"]),
    (A + "[supervisor]\nstrategi = 1\n", [":4:", "did you mean 'strategy'"]),
    (A + "[supervisor]\nmax_restarts = 1.5\n", [":4:", "max_restarts must be a whole number"]),
    (A + "[supervisor]\nwithin = 1\nmax_seconds = 2\n", ["say the same"]),
    (A + "[supervisor]\nwithin = 0\n", ["[supervisor]", "more than 0"]),
    (A + '[supervisor]\nbackoff = { bass = "1s" }\n', ["bass"]),
    (A + '[supervisor.child.b]\nstart = "x:y"\n', ["children of the top supervisor stand in [child.NAME]"]),
    ("[pool.p]\nworkers = 0\n", [":2:", "workers must be from 1 to 256, not 0"]),
    ("[pool.p]\nworkers = 1000\n", [":2:", "from 1 to 256"]),
    ("[pool.p]\nretry = { max_attempts = 0 }\n", ["max_attempts must be from 1"]),
    ('[pool.p]\nbreaker = { open_for = "1s" }\n', [":2:", "'breaker' of [pool.p] is not available"]),
    ("[pool.p]\nworkers = 1\nmax_workers = 2\n", ["say the same"]),
    ('[pool.p]\ninput = "docs"\n', ["needs a target"]),
    ('[pool.p]\ntarget = "application_module:work"\ninput = "docs"\n', [":3:", "there is no [ring.docs]"]),
    ("[pool.p]\nretry = { quarantine = true }\n", ["'quarantine'", "not available"]),
    (A + "[ring.r]\nslots = 0\n", ["[ring.r]", "slots"]),
    (A + '[ring.r]\noverflow = "explode"\n', ["'explode'", "drop_old"]),
    (A + "[http]\nport = 1\n", ["unknown key 'http.port'"]),
    (A + "[http]\nlisten = 'x:y'\n", ["http='x:y' must be a port"]),
    (A + "[health]\nmemory = 'much'\n", ["'much' is not a size"]),
    (A + "[metrics]\n", ["[metrics] is not available in this version"]),
    (A + '[runtime]\nstart_method = "spawn"\n', [":4:", "no start method"]),
    ('target = "a:b"\n' + A, ["describes an application", "no target"]),
    (A + "[set]\nx = 1\n", ["'x'", "shapes a target that is a function"]),
    (A + 'args = ["${NO_SUCH_VARIABLE_HERE}"]\n', ["NO_SUCH_VARIABLE_HERE"]),
]


@pytest.mark.parametrize(("text", "parts"), MISTAKES, ids=lambda value: repr(value)[-40:])
def test_a_mistake_is_named(here: Path, text: str, parts: list[str]) -> None:
    """File, line and key where there is one; never a traceback."""
    said = refusal(here, text)
    assert str(here / "app.toml") in said
    for part in parts:
        assert part in said, said


def test_in_a_pyproject(here: Path) -> None:
    """Under [tool.shmrt], with the lines of that file."""
    path = here / "pyproject.toml"
    path.write_text('[project]\nname = "x"\n[tool.shmrt.child.a]\nstart = "application_module:loop"\nnope = 1\n')
    with pytest.raises(CliError, match=r"pyproject.toml:5: unknown key 'nope'"):
        load_target(read_settings({}, str(path)))

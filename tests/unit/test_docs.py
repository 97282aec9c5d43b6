"""The pages of docs/ say what the code does.

Examples run, each page's Python blocks in one fresh interpreter each, and print what the comments behind their `print`
lines say. Byte maps agree with LAYOUT, edge labels with the C sources, named tests and files exist.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from shmrt import _native

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
NATIVE = sorted((ROOT / "native").glob("*.[ch]"))
WATCHDOG_S = 120
"""Only ends a hang; nothing is measured by it."""


QUIET = "import logging; logging.getLogger('shmrt').addHandler(logging.NullHandler())\n"
UNSAID = dict.fromkeys(("supervision.md", "resilience.md", "resilience-fallback.md"), QUIET)
"""What goes before each example of a page: deaths and failures are logged, and those pages are about them."""


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / name).read_text(), re.DOTALL)


def expected(block: str) -> list[str]:
    """What stands behind the `print` lines."""
    return [line.rsplit("  # ", 1)[1] for line in block.splitlines() if "print(" in line and "  # " in line]


EXAMPLES = [(page.name, n) for page in sorted(DOCS.glob("*.md")) for n in range(len(blocks(page.name)))]


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_an_example_prints_what_it_says(page: str, number: int) -> None:
    """D9. In an interpreter of its own, which leaves nothing to standard error either."""
    text = blocks(page)[number]
    lines = expected(text)
    assert lines, "an example without a result shows nothing"
    text = UNSAID.get(page, "") + text
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False
    )
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, lines, "")


def rows(page: str) -> list[list[str]]:
    """Cells of every table row of a page, without heads and rules."""
    lines = [line for line in (DOCS / page).read_text().splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines]


def test_examples_are_found() -> None:
    """The extraction sees the tutorial."""
    assert len(blocks("tutorial.md")) >= 10


def test_every_byte_map_is_that_of_the_code() -> None:
    """layout.md names every field of every struct with its offset, and every size."""
    found = {row[1]: int(row[0]) for row in rows("layout.md") if row[0].isdigit()}
    fields = {name: value for name, value in _native.LAYOUT.items() if "." in name}
    assert found == fields
    sizes = dict(re.findall(r"^`(\w+)`, (\d+) bytes", (DOCS / "layout.md").read_text(), re.M))
    assert {name: int(size) for name, size in sizes.items()} == {
        name: _native.LAYOUT[name] for name in {field.split(".")[0] for field in fields}
    }
    assert f"Layout version {_native.LAYOUT_VERSION}." in (DOCS / "layout.md").read_text()


def comments(text: str) -> str:
    return "\n".join(re.findall(r"/\*.*?\*/", text, re.DOTALL))


def test_every_edge_label_is_in_the_table_and_the_other_way_round() -> None:
    """ordering.md has the labels of the C sources, no more and no less."""
    labels = {label for path in NATIVE for label in re.findall(r"\b[A-Z]\d\b", comments(path.read_text()))}
    assert {row[0] for row in rows("ordering.md") if re.fullmatch(r"[A-Z]\d", row[0])} == labels


ORDERS = re.compile(r"memory_order_(acquire|release|acq_rel|seq_cst)")
LABEL = re.compile(r"\b[A-Z]\d\b")
HELPER = "shmrt_word_swap("
"""The arena's compare-and-swap: acq_rel, whatever label its caller gives it."""
ELSEWHERE = {"F4": "the kernel releases", "T1": "time orders it", "R1": "the mutex orders it"}
"""Edges that are not a release and an acquire of ours."""


def near(lines: list[str], number: int) -> set[str]:
    """The labels in a line (counted from 1), the three before it and the one behind it."""
    return {label for line in lines[max(number - 4, 0) : number + 1] for label in LABEL.findall(line)}


def ordered(text: str) -> list[tuple[int, set[str], set[str]]]:
    """Each line with an order that the machine has to keep: its number, its orders, the labels near it."""
    lines = text.splitlines()
    return [
        (number, set(ORDERS.findall(line)), near(lines, number))
        for number, line in enumerate(lines, 1)
        if ORDERS.search(line) and "atomic_signal_fence" not in line  # that one orders the compiler only
    ]


def edges() -> dict[str, list[str]]:
    return {row[0]: row[1:] for row in rows("ordering.md") if LABEL.fullmatch(row[0])}


def test_every_ordering_names_its_edge() -> None:
    """An acquire or release without an edge of the table is a guess."""
    known = set(edges())
    found = [
        f"{path.name}:{number}"
        for path in NATIVE
        for number, _, labels in ordered(path.read_text())
        if not labels & known
    ]
    assert not found
    assert ordered("x = atomic_load_explicit(&a, memory_order_acquire);\n") == [(1, {"acquire"}, set())]
    assert ordered("x = atomic_load_explicit(&a, memory_order_acquire); /* L1 */\n")[0][2] == {"L1"}


def test_every_edge_has_both_of_its_sides_in_the_code() -> None:
    """A release that nobody acquires orders nothing, nor does an acquire of what nobody released."""
    orders: dict[str, set[str]] = {}
    for path in NATIVE:
        for _, found, labels in ordered(path.read_text()):
            for label in labels:
                orders.setdefault(label, set()).update(found)
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines, 1):
            if HELPER in line:
                for label in near(lines, number):
                    orders.setdefault(label, set()).add("acq_rel")
    both = {"acq_rel", "seq_cst"}
    for label in edges().keys() - ELSEWHERE.keys():
        have = orders.get(label, set())
        assert have & (both | {"release"}), f"{label} has no release"
        assert have & (both | {"acquire"}), f"{label} has no acquire"


def test_every_edge_names_code_that_exists() -> None:
    """The files of a row have its label, and its words in backquotes are words of the sources."""
    sources = {path.name: path.read_text() for path in NATIVE}
    words = {word for text in sources.values() for word in re.findall(r"\w+", text)}
    for label, cells in edges().items():
        assert len(cells) == 3 and all(cells), label
        line = next(row for row in (DOCS / "ordering.md").read_text().splitlines() if row.startswith(f"| {label} |"))
        for name in re.findall(r"`([^`]+)`", line):
            if name.endswith((".c", ".h")):
                assert label in LABEL.findall(sources[name]), f"{name} does not mention {label}"
            else:
                assert name in words, f"{label} names {name}"


def test_named_files_and_tests_exist() -> None:
    """What a page names in backquotes as a file or a test is there."""
    tests = {
        name
        for path in [*ROOT.glob("tests/**/*.py"), *ROOT.glob("tests/**/*.c")]
        for name in re.findall(r"^(?:def|static void|void|static int|int) (test_\w+)", path.read_text(), re.M)
    }
    missing = []
    for page in DOCS.rglob("*.md"):
        for word in re.findall(r"`([\w./-]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
            if re.fullmatch(r"(native|shmrt|tests|bench|docs)/[\w./-]+\.\w+", word) and not (ROOT / word).exists():
                missing.append(f"{page.name}: {word}")
            if re.fullmatch(r"test_\w+", word) and word not in tests:
                missing.append(f"{page.name}: {word}")
    assert not missing


def test_every_death_names_its_test() -> None:
    """Each row of the crash model's first table ends with a test: a function or a C program."""
    table = rows("crash-model.md")
    heads = [number for number, row in enumerate(table) if row[0] == "dies"]
    assert table[heads[0]][-1] == "test"
    deaths = table[heads[0] + 2 : heads[1]]
    assert len(deaths) > 10
    assert not [row for row in deaths if not re.fullmatch(r"test_\w+|tests/native/\w+\.c", row[-1])]


def test_the_package_tells_type_checkers_what_it_hands_out() -> None:
    """Names come from `__getattr__`, which type checkers do not ask; they read the imports beside it."""
    import shmrt

    imports = [
        (node.module, name.asname)
        for node in ast.walk(ast.parse((ROOT / "shmrt" / "__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom)
        for name in node.names
        if name.asname == name.name
    ]
    lazy = {name: home for name, home in shmrt._HOME.items() if name != "runtime"}
    assert len(imports) == len(lazy) and {name: home for home, name in imports} == lazy


def test_the_types_of_the_core_are_those_of_the_core() -> None:
    """_native.pyi names every public name and method of the built module, and no other."""
    told: dict[str, set[str]] = {}
    for node in ast.parse((ROOT / "shmrt" / "_native.pyi").read_text()).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            told[node.target.id] = set()
        elif isinstance(node, ast.FunctionDef):
            told[node.name] = set()
        elif isinstance(node, ast.ClassDef):
            names = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
            names |= {
                part.target.id for part in node.body if isinstance(part, ast.AnnAssign) and hasattr(part.target, "id")
            }
            told[node.name] = {name for name in names if not name.startswith("__")}
    real = {
        name: {part for part in vars(value) if not part.startswith("__")} if isinstance(value, type) else set()
        for name, value in vars(_native).items()
        if not name.startswith("_")
    }
    assert {name: parts for name, parts in told.items() if not name.startswith("_")} == real

"""The flagship example's stages are pure and its answer does not depend on order."""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path

import pytest

from shmrt.examples import dedup

BODY = "\n".join(f"def function_{n}(a, b):\n    return a * {n} + b - {n + 1}\n" for n in range(60))


def tree(folder: Path) -> list[str]:
    """Two copies, one near copy, one stranger, one broken, one tiny, one binary file."""
    files = {
        "one.py": BODY.encode(),
        "copy.py": BODY.encode(),
        "near.py": (BODY + "\n# a comment\nx = 1\n").encode(),
        "stranger.py": "\n".join(f"class C{n}: value = '{n * n}'" for n in range(80)).encode(),
        "broken.py": b"def f(:\n  '''" + BODY.encode(),
        "tiny.py": b"x = 1\n",
        "binary.py": bytes(range(256)) * 8,
        "latin.py": b"# -*- coding: nonsense -*-\n" + BODY.encode(),
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return dedup.source_files(str(folder))


def test_copies_cluster_and_strangers_do_not(tmp_path: Path) -> None:
    clusters = dedup.run_serial(tree(tmp_path)).clusters()
    groups = [{os.path.basename(path) for path in group} for group in clusters]
    assert any({"one.py", "copy.py", "near.py"} <= group for group in groups), groups
    assert not any("stranger.py" in group or "tiny.py" in group for group in groups), groups


def test_the_digest_does_not_depend_on_order(tmp_path: Path) -> None:
    paths = tree(tmp_path)
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    digests = set()
    for _ in range(5):
        random.Random(seed).shuffle(paths)
        seed += 1
        digests.add(dedup.run_serial(paths).digest())
    assert len(digests) == 1


def test_the_digest_sees_every_change(tmp_path: Path) -> None:
    paths = tree(tmp_path)
    before = dedup.run_serial(paths).digest()
    assert dedup.run_serial(paths[1:]).digest() != before
    (tmp_path / "stranger.py").write_text("class Other: pass\n" * 40)
    assert dedup.run_serial(paths).digest() != before


def test_a_file_that_cannot_be_read_is_a_result(tmp_path: Path) -> None:
    missing = str(tmp_path / "gone.py")
    clusters = dedup.run_serial([missing, str(tmp_path)])
    assert clusters.files == 2 and set(clusters.unreadable) == {missing, str(tmp_path)}


def test_layout_and_comments_do_not_count() -> None:
    assert dedup.shingles_of(b"a = b + c * d") == dedup.shingles_of(b"a=b+c*d  # same\n\n")


@pytest.mark.parametrize("count", [24, 30, 127, 128, 1000])
def test_signatures_estimate_similarity(count: int) -> None:
    """A set shares all bins with itself, and about half with one that overlaps by half."""
    generator = random.Random(count)
    values = sorted(generator.randbytes(8) for _ in range(2 * count))
    both = dedup.signature(b"".join(values))
    assert len(both) == 2 * dedup.BINS
    assert both == dedup.signature(b"".join(values))
    half = dedup.signature(b"".join(sorted(generator.sample(values, count))))
    equal = sum(both[at : at + 2] == half[at : at + 2] for at in range(0, len(both), 2))
    assert 0.2 * dedup.BINS < equal < 0.8 * dedup.BINS


def test_a_sample_is_the_same_for_a_seed() -> None:
    one, two, other = (dedup.source_files(sample=50, seed=seed) for seed in (1, 1, 2))
    assert one == two != other and len(one) == 50
    assert all(a < b for a, b in pairwise(one))


def test_only_the_word_of_this_run_kills(tmp_path: Path) -> None:
    """A poison file is text like any other to a run that does not know its word."""
    path = next(dedup.poison_files(str(tmp_path), 1, "0123"))
    assert dedup.shingle(dedup.read(path))[0] == path
    assert dedup.shingle(dedup.read(path), poison="4567")[0] == path


@pytest.mark.parametrize("word", ["stdlib", "/no/such/directory"])
def test_input_that_is_no_directory(word: str) -> None:
    with pytest.raises(NotADirectoryError, match=r"input=.* is not a directory"):
        dedup.source_files(word)

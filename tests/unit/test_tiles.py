"""Tiles: what the stages find, the pictures that are read, and the verdict, each expectation of which can fail."""

from __future__ import annotations

import json
import math
import re
import signal
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shmrt.examples import tiles, tiles_images
from shmrt.examples.tiles_verdict import BYTES, Calm, Kill, Look, Stop, Verdict, is_full, judge

WATCHDOG_S = 600.0
"""Ends what hangs; nothing is judged by it."""

# ---- what is found


def test_the_stages_find_what_plain_loops_find() -> None:
    tile = tiles.Cutter([tiles.drawn(2)]).cut(7, np.empty(tiles.SHAPE, np.uint8))
    light = [[(77 * int(r) + 150 * int(g) + 29 * int(b)) >> 8 for r, g, b in row] for row in tile]
    patterns, gradients = [0] * 256, [0] * 8
    around = [(-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1)]
    for y in range(1, 255):
        for x in range(1, 255):
            code = sum((light[y + dy][x + dx] >= light[y][x]) << bit for bit, (dy, dx) in enumerate(around))
            patterns[code] += 1
            across, down = light[y][x + 1] - light[y][x - 1], light[y + 1][x] - light[y - 1][x]
            gradients[(across < 0) * 4 + (down < 0) * 2 + (abs(across) < abs(down))] += abs(across) + abs(down)
    found = tiles.describe(7, tile)
    assert found["patterns"] == patterns and found["gradients"] == gradients
    for channel, entropy in enumerate(found["entropy"]):
        counts = [list(tile[..., channel].flat).count(value) for value in range(256)]
        shares = [count / 65536 for count in counts if count]
        assert math.isclose(entropy, -sum(share * math.log2(share) for share in shares), rel_tol=1e-12)
    small = np.frombuffer(found["thumbnail"], np.uint8).reshape(32, 32, 3)
    assert small[3, 5, 1] == int(tile[24:32, 40:48, 1].sum()) // 64


def test_a_flat_tile_has_no_entropy_and_no_gradients() -> None:
    found = tiles.describe(0, np.full(tiles.SHAPE, 9, np.uint8))
    assert found["entropy"] == [0.0] * 3 and found["gradients"] == [0] * 8 and found["patterns"][255] == 254**2


def test_tiles_wrap_round_and_differ() -> None:
    picture = np.arange(300 * 260 * 3, dtype=np.uint32).astype(np.uint8).reshape(300, 260, 3)
    cutter = tiles.Cutter([picture], seed=3)
    cut = [cutter.cut(number, np.empty(tiles.SHAPE, np.uint8)) for number in range(40)]
    again = tiles.Cutter([picture], seed=3).cut(17, np.zeros(tiles.SHAPE, np.uint8))
    assert np.array_equal(again, cut[17]) and len({one.tobytes() for one in cut}) == 40
    twice = np.concatenate([np.concatenate([picture] * 2)] * 2, axis=1)
    for one in cut:
        assert any(_is_cut(one[::y, ::x], twice) for y in (1, -1) for x in (1, -1))


def _is_cut(tile: Any, twice: Any) -> bool:
    first = tile[0].tobytes()
    for y in range(300):
        row = twice[y].tobytes()
        at = row.find(first)
        while at >= 0:
            if at % 3 == 0 and np.array_equal(twice[y : y + 256, at // 3 : at // 3 + 256], tile):
                return True
            at = row.find(first, at + 1)
    return False


def test_the_index_does_not_depend_on_the_order() -> None:
    cutter = tiles.Cutter([tiles.drawn(0)])
    found = [tiles.describe(n, cutter.cut(n, np.empty(tiles.SHAPE, np.uint8))) for n in range(6)]
    forth, back = tiles.Index(), tiles.Index()
    for number in range(6):
        forth.add(number, found[number], [(1, 1)] * 3)
        back.add(5 - number, found[5 - number], [(1, 1), (1, 1), (2, 1)])
    assert forth.digest() == back.digest() and (forth.copies, back.copies) == (0, 6)
    with pytest.raises(ValueError, match="tile 3 came twice"):
        back.add(3, found[3])
    other = tiles.Index()
    for number in range(6):
        other.add(number, found[number if number != 2 else 1])
    assert other.digest() != forth.digest()
    alone = tiles.Index()
    alone.add(0, found[0], [None, None])
    assert alone.copies == 1  # it did not lie in shared memory at all


def test_the_serial_run_repeats_itself() -> None:
    one, two = tiles.serial(tiles=5, seed=1), tiles.serial(tiles=5, seed=1)
    assert one == two and one["tiles"] == 5 and one["digest"] != tiles.serial(tiles=5, seed=2)["digest"]


# ---- pictures


def png(picture: Any, colour: int, filters: Callable[[int], int], palette: bytes = b"") -> bytes:
    """An encoder that is written without a look at the decoder."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    height, width, channels = picture.shape
    lines, before = b"", bytes(width * channels)
    for y in range(height):
        line, out = picture[y].tobytes(), bytearray()
        for at, value in enumerate(line):
            a = line[at - channels] if at >= channels else 0
            b, c = before[at], before[at - channels] if at >= channels else 0
            p = a + b - c
            paeth = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            out.append((value - (0, a, b, (a + b) // 2, paeth)[filters(y)]) & 255)
        lines += bytes([filters(y)]) + out
        before = line
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, colour, 0, 0, 0])
    packed = zlib.compress(lines)
    parts = chunk(b"IHDR", head) + (chunk(b"PLTE", palette) if palette else b"")
    middle = len(packed) // 2
    return (
        b"\x89PNG\r\n\x1a\n"
        + parts
        + chunk(b"IDAT", packed[:middle])
        + chunk(b"IDAT", packed[middle:])
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_png_of_every_filter_is_read(tmp_path: Path, colour: int, channels: int) -> None:
    rng = np.random.default_rng(colour)
    picture = (np.cumsum(rng.integers(0, 9, (40, 30, channels)), 1) % 256).astype(np.uint8)
    if channels % 2 == 0:
        picture[..., -1] = 255
    path = tmp_path / "one.png"
    path.write_bytes(png(picture, colour, lambda y: y % 5))
    got = tiles_images.read_picture(str(path))
    expected = picture[..., : channels - (channels % 2 == 0)]
    assert got is not None and np.array_equal(got, np.broadcast_to(expected, (40, 30, 3))) and got.flags.c_contiguous


def test_palettes_and_transparency(tmp_path: Path) -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(3, 4, 1) % 3
    (tmp_path / "one.png").write_bytes(png(picture, 3, lambda y: 0, bytes([9, 8, 7, 1, 2, 3, 255, 0, 255])))
    got = tiles_images.read_picture(str(tmp_path / "one.png"))
    assert got is not None and got[0].tolist() == [[9, 8, 7], [1, 2, 3], [255, 0, 255], [9, 8, 7]]
    clear = np.full((2, 2, 4), 200, np.uint8)
    clear[0, 0, 3] = 0
    (tmp_path / "two.png").write_bytes(png(clear, 6, lambda y: 0))
    got = tiles_images.read_picture(str(tmp_path / "two.png"))
    assert got is not None and got[0].tolist() == [[0, 0, 0], [200 * 200 // 255] * 3]


def test_ppm_and_pgm_are_read(tmp_path: Path) -> None:
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    (tmp_path / "a.ppm").write_bytes(b"P6\n# by hand\n4 2\n255\n" + colours.tobytes())
    (tmp_path / "b.pgm").write_bytes(b"P5 4 2 255\n" + bytes(range(8)))
    one, two = (tiles_images.read_picture(str(tmp_path / name)) for name in ("a.ppm", "b.pgm"))
    assert one is not None and np.array_equal(one, colours)
    assert two is not None and two[1, 3].tolist() == [7, 7, 7]


def test_what_is_no_picture_is_left_out(tmp_path: Path) -> None:
    whole = png(np.zeros((20, 20, 3), np.uint8), 2, lambda y: y % 5)
    huge = whole[:16] + (2**30).to_bytes(4, "big") + whole[20:]
    bad = {
        "cut": whole[:-40],
        "nothing": b"",
        "text": b"hello",
        "huge": huge,
        "deep": whole[:24] + b"\x10" + whole[25:],
    }
    for name, content in bad.items():
        (tmp_path / f"{name}.png").write_bytes(content)
        assert tiles_images.read_picture(str(tmp_path / f"{name}.png")) is None, name
    (tmp_path / "short.ppm").write_bytes(b"P6 40 20 255\nxx")
    assert tiles_images.read_picture(str(tmp_path / "short.ppm")) is None
    for cut in range(0, len(whole), 7):  # whatever it ends with, it is an answer
        (tmp_path / "any.png").write_bytes(whole[:cut])
        tiles_images.read_picture(str(tmp_path / "any.png"))


def test_where_pictures_come_from(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match="/no/such"):
        tiles_images.pictures("/no/such")
    with pytest.raises(ValueError, match="256x256"):
        tiles_images.pictures(str(tmp_path))
    (tmp_path / "small.png").write_bytes(png(np.zeros((9, 9, 3), np.uint8), 2, lambda y: 0))
    large = tiles_images.drawn(5)[:256, :300]
    (tmp_path / "large.ppm").write_bytes(b"P6 300 256 255\n" + large.tobytes())
    found, whence = tiles_images.pictures(str(tmp_path))
    assert len(found) == 1 and np.array_equal(found[0], large) and whence == f"1 of {tmp_path}"
    found, whence = tiles_images.pictures()
    assert len(found) >= 8 and min(min(one.shape[:2]) for one in found) >= 256 and "installation" in whence


def test_drawn_pictures_are_the_same_everywhere() -> None:
    one = tiles_images.drawn(1, seed=4)
    assert zlib.crc32(one.tobytes()) == DRAWN_CRC and not np.array_equal(one, tiles_images.drawn(1, seed=5))


DRAWN_CRC = 4272423605

# ---- the verdict

LIMIT = 64 << 20


def judged(**changes: Any) -> Verdict:
    look = Look((16,) * 4, 100, 17_000_000, 17_000_000, 10**8)
    summary = {"digest": "d", "copies": 0, "tiles": 50}
    given: dict[str, Any] = {
        "summaries": [summary, summary],
        "serial": ["d", "d"],
        "calm": Calm(100.0, 0.5, 10**8),
        "stop": Stop(5.0, [look, look._replace(memory=2 * 10**8)], 0, True, 9),
        "kills": [Kill(7, 2, False)],
        "left": 0,
    }
    return judge(**(given | changes), slots=16, limit=LIMIT, pictures="none", seed=1)  # type: ignore[arg-type]


def test_a_good_run_holds() -> None:
    verdict = judged()
    assert verdict.holds and verdict.gb_per_second == round(100 * BYTES / 1e9, 4)
    assert "same answer as the serial run: yes in calm (50 tiles), yes while stopped and killed" in verdict.text()
    assert json.loads(json.dumps(verdict._asdict()))["stop_memory"] == [10**8, 2 * 10**8]


LOOK = Look((16,) * 4, 100, 17_000_000, 17_000_000, 10**8)
GOOD = {"digest": "d", "copies": 0, "tiles": 50}


@pytest.mark.parametrize(
    ("wrong", "changes"),
    [
        ("answers", {"serial": ["d", "e"]}),
        ("copies", {"summaries": [GOOD, GOOD | {"copies": 1}]}),
        ("full", {"stop": Stop(5.0, [LOOK._replace(rings=(16, 16, 15, 16))] * 2, 0, True, 9)}),
        ("full", {"stop": Stop(5.0, [LOOK._replace(rings=(16, 17, 16, 16))] * 2, 0, True, 9)}),
        ("memory", {"stop": Stop(5.0, [LOOK, LOOK._replace(pages=17_004_096)], 0, True, 9)}),
        ("memory", {"stop": Stop(5.0, [LOOK, LOOK._replace(given=101)], 0, True, 9)}),
        ("memory", {"stop": Stop(5.0, [LOOK._replace(pages=LIMIT + 4096)] * 2, 0, True, 9)}),
        ("alive", {"stop": Stop(5.0, [LOOK] * 2, 1, True, 9)}),
        ("alive", {"stop": Stop(5.0, [LOOK] * 2, 0, False, 9)}),
        ("resumed", {"stop": Stop(5.0, [LOOK] * 2, 0, True, 0)}),
        ("reclaimed", {"kills": [Kill(7, 2, False), Kill(8, 2, True)]}),
        ("reclaimed", {"kills": [Kill(7, 0, False)]}),
        ("clean", {"left": 1}),
    ],
)
def test_each_expectation_can_fail(wrong: str, changes: dict[str, Any]) -> None:
    verdict = judged(**changes)
    assert [name for name, met in verdict.expected.items() if not met] == [wrong]
    assert not verdict.holds and f"NOT as expected: {wrong}" in verdict.text()


def test_no_look_at_rest_is_no_proof() -> None:
    verdict = judged(stop=Stop(5.0, [], 0, True, 9))
    assert not verdict.expected["full"] and not verdict.expected["memory"] and "no rest" in verdict.text()


def test_what_a_ring_may_hold() -> None:
    assert is_full((8, 8), 8, LIMIT) and not is_full((8, 9), 8, LIMIT) and not is_full((7, 8), 8, LIMIT)
    part = (LIMIT // 8) // BYTES
    assert is_full((part, part), 10_000, LIMIT) and is_full((part + 1, part), 10_000, LIMIT)
    assert not is_full((part // 2, part), 10_000, LIMIT) and not is_full((part + 2, part), 10_000, LIMIT)
    assert is_full((1, 1, 1, 1), 16, 1 << 20)


# ---- the page


def test_the_pages_example_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "pipeline-tiles.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/pipeline-tiles.md", "exec"), {"__name__": "example"})
    assert capsys.readouterr().out.strip() == example.rsplit("# ", 1)[1].strip()


# ---- the command


def demo(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "shmrt", "demo", "tiles", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_the_demo_holds_and_says_so() -> None:
    run = demo("--tiles", "32", "--stop", "100ms", "--kills", "1", "--ring-slots", "4", "-o", "json")
    out, err = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode == 0, (out, err)
    verdict = json.loads(out)
    assert verdict["holds"] and verdict["copies_per_tile"] == 0 and verdict["rings"] == [4, 4, 4, 4]
    assert verdict["digests"] == verdict["serial_digests"] and verdict["killed"] == 1


@pytest.mark.slow
def test_a_demo_that_is_stopped_has_no_verdict() -> None:
    run = demo("--tiles", "100000", "--ring-slots", "4")
    assert run.stderr is not None
    while "calm" not in (line := run.stderr.readline()):
        assert line, "it ended by itself"
    run.send_signal(signal.SIGINT)
    _, err = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode == -signal.SIGINT and "no verdict" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--input", "/no/such/dir"], "/no/such/dir"),
        (["--chaos", "kill=1"], "--stop and --kills"),
        (["--tiles", "5"], "invalid choice"),
        (["--shm-limit", "never"], "shm"),
    ],
)
def test_mistakes_are_told(words: list[str], said: str) -> None:
    run = demo(*words)
    out, err = run.communicate(timeout=WATCHDOG_S)
    assert run.returncode in (2, 3) and out == "" and said in err and "Traceback" not in err


def test_without_numpy_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from shmrt.cli import demo as command
    from shmrt.cli.screen import CliError

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "numpy" else found(name, *more)
    )
    with pytest.raises(CliError, match="needs numpy"):
        command.tiles(None, None)  # type: ignore[arg-type]

"""The pictures that `tiles.py` cuts up: those of the installation or of a folder, else drawn ones that never change.

    >>> picture = drawn(3, seed=1)
    >>> picture.shape, picture.dtype.name, bool((picture == drawn(3, seed=1)).all())
    ((512, 512, 3), 'uint8', True)

PNG and PPM/PGM files are read here, with numpy and zlib alone; other formats where Pillow is installed. A file that
cannot be read is left out, and an animation gives its first picture. Pictures smaller than a tile are left out, too.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sysconfig
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Picture = NDArray[np.uint8]

__all__ = ["LEAST", "drawn", "pictures", "read_picture"]

LEAST = 256
"""Pictures with a side below this are too small for a tile."""
DRAWN = 8
DRAWN_SIDE = 512
PICTURES_MOST = 64
BYTES_MOST = 16 << 20
PIXELS_MOST = 1 << 24
"""A file that announces more is left out: it may be made to exhaust memory."""

_PLAIN = (".png", ".ppm", ".pgm")
_OTHERS = (".jpg", ".jpeg", ".gif", ".tif", ".tiff", ".bmp", ".webp")
_BUNDLED = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
_MAGIC = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def pictures(folder: str | None = None, *, seed: int = 0) -> tuple[list[Picture], str]:
    """The pictures in the order of their paths, and where they are from.

    folder: where they are looked for (None: what scikit-image, scikit-learn, matplotlib and IDLE bring along, and drawn
    ones if those are fewer than eight). A folder that is none, or has no picture of 256x256 pixels or more, is an
    error.
    """
    if folder is not None and not os.path.isdir(folder):
        raise NotADirectoryError(f"input={folder!r} is not a directory; give a directory that holds PNG or PPM files")
    found: list[Picture] = []
    for path in _paths([folder] if folder is not None else _bundled()):
        picture = read_picture(path)
        if picture is not None and min(picture.shape[:2]) >= LEAST:
            found.append(picture)
        if len(found) == PICTURES_MOST:
            break
    if folder is not None and not found:
        raise ValueError(f"input={folder!r} has no PNG or PPM picture of {LEAST}x{LEAST} pixels or more")
    if folder is not None:
        return found, f"{len(found)} of {folder}"
    more = [drawn(number, seed=seed) for number in range(DRAWN - len(found))]
    return found + more, f"{len(found)} of the installation and {len(more)} drawn ones"


def _bundled() -> list[str]:
    folders = []
    for package, below in _BUNDLED.items():
        try:
            found = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            found = None
        folders += [os.path.join(place, below) for place in (found and found.submodule_search_locations) or []]
    return [*folders, os.path.join(sysconfig.get_path("stdlib"), "idlelib", "Icons")]


def _paths(folders: list[str]) -> list[str]:
    endings = _PLAIN if importlib.util.find_spec("PIL") is None else _PLAIN + _OTHERS
    return [
        os.path.join(top, name)
        for folder in folders
        for top, _, names in sorted(os.walk(folder))
        for name in sorted(names)
        if name.lower().endswith(endings)
    ]


def read_picture(path: str) -> Picture | None:
    """Height x width x 3 bytes, or None for what cannot be read. Grey becomes three equal channels, transparency
    black."""
    try:
        if os.path.getsize(path) > BYTES_MOST:
            return None
        with open(path, "rb") as file:
            content = file.read(BYTES_MOST)
        lower = path.lower()
        if lower.endswith(".png"):
            return _png(content)
        return _pnm(content) if lower.endswith(_PLAIN) else _with_pillow(path)
    except (OSError, ValueError, KeyError, IndexError, zlib.error, ImportError):
        return None


# ---- formats ---------------------------------------------------------------------------------------------


def _pnm(content: bytes) -> Picture:
    """Binary PPM and PGM of one byte a sample."""
    head = re.match(rb"P([56])((?:\s+|#[^\n]*\n)+)(\d+)\s+(?:#[^\n]*\n\s*)*(\d+)\s+(\d+)\s", content)
    if head is None:
        raise ValueError("no binary PPM or PGM")
    width, height, most = (int(head.group(part)) for part in (3, 4, 5))
    channels = 3 if head.group(1) == b"6" else 1
    if most != 255 or not 0 < width * height <= PIXELS_MOST:
        raise ValueError("samples of more than a byte, or too many")
    samples = np.frombuffer(content, np.uint8, width * height * channels, head.end())
    return _in_colour(samples.reshape(height, width, channels))


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = len(_MAGIC)
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + size]
        at += size + 12


def _png(content: bytes) -> Picture:
    """PNG of one byte a sample, not interlaced; which nearly all are."""
    if not content.startswith(_MAGIC):
        raise ValueError("no PNG")
    packed, palette, head = b"", b"", b""
    for kind, data in _chunks(content):
        if kind == b"IHDR":
            head = data
        elif kind == b"PLTE":
            palette = data
        elif kind == b"IDAT":
            packed += data
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    depth, colour, interlaced = head[8], head[9], head[12]
    channels = _CHANNELS[colour]
    if depth != 8 or interlaced or not 0 < width * height <= PIXELS_MOST:
        raise ValueError("samples of another size, interlaced, or too many")
    size = height * (1 + width * channels)
    flat = zlib.decompressobj().decompress(packed, size)
    if len(flat) != size:
        raise ValueError("it ends too early")
    picture = _unfiltered(np.frombuffer(flat, np.uint8).reshape(height, -1), channels).reshape(height, width, channels)
    if colour == 3:
        colours = np.zeros((256, 3), np.uint8)
        given = np.frombuffer(palette, np.uint8).reshape(-1, 3)
        colours[: len(given)] = given
        return np.ascontiguousarray(colours[picture[..., 0]])
    return _in_colour(picture)


def _unfiltered(lines: Any, step: int) -> Any:
    """Each line says how it was predicted: not, from the left, from above, from their mean, or from the nearest of
    three."""
    out = np.zeros((len(lines) + 1, lines.shape[1] - 1), np.uint8)
    for number, line in enumerate(lines, 1):
        kind, raw, above, here = int(line[0]), line[1:], out[number - 1], out[number]
        if kind == 0:
            here[:] = raw
        elif kind == 1:
            here[:] = np.cumsum(raw.reshape(-1, step), 0, np.uint8).reshape(-1)
        elif kind == 2:
            here[:] = raw + above
        elif kind in (3, 4):
            here[:] = np.frombuffer(_predicted(kind, bytes(raw), bytes(above), step), np.uint8)
        else:
            raise ValueError("an unknown filter")
    return out[1:]


def _predicted(kind: int, raw: bytes, above: bytes, step: int) -> bytearray:
    out = bytearray(len(raw))
    for at, value in enumerate(raw):
        left, up = out[at - step] if at >= step else 0, above[at]
        if kind == 3:
            out[at] = (value + (left + up) // 2) & 255
            continue
        corner = above[at - step] if at >= step else 0
        guess = left + up - corner
        far = abs(guess - left), abs(guess - up), abs(guess - corner)
        near = left if far[0] <= far[1] and far[0] <= far[2] else up if far[1] <= far[2] else corner
        out[at] = (value + near) & 255
    return out


def _in_colour(picture: Any) -> Picture:
    """From one to four channels, the even ones of which are transparency last."""
    channels = picture.shape[2]
    if channels % 2 == 0:
        alpha = picture[..., -1:].astype(np.uint16)
        picture = (picture[..., :-1] * alpha // 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(picture, (*picture.shape[:2], 3)))


def _with_pillow(path: str) -> Picture:
    image_of: Any = importlib.import_module("PIL.Image").open
    with image_of(path) as image:
        if not 0 < image.width * image.height <= PIXELS_MOST:
            raise ValueError("too many pixels")
        return np.array(image.convert("RGB"), np.uint8)


# ---- drawn ones --------------------------------------------------------------------------------------------


def drawn(number: int, *, seed: int = 0, side: int = DRAWN_SIDE) -> Picture:
    """Waves, discs and grain, in whole numbers only: the same on every machine."""
    x, y = np.meshgrid(np.arange(side, dtype=np.int64), np.arange(side, dtype=np.int64))
    draw = _Numbers(seed * 1_000_003 + number)
    out = np.empty((side, side, 3), np.uint8)
    grain = _mixed(x * 65_537 + y * 257 + draw(1 << 30)) & 31
    for channel in range(3):
        value = (x * draw(7) + y * draw(7) + ((x * y) >> (5 + draw(4)))) & 255
        for _ in range(4):
            far = (x - draw(side)) ** 2 + (y - draw(side)) ** 2
            value = np.where(far < (20 + draw(side // 4)) ** 2, (value >> 1) + draw(128), value)
        out[..., channel] = np.clip(value + grain, 0, 255)
    return out


class _Numbers:
    """A generator that will not change with numpy's or Python's."""

    def __init__(self, seed: int) -> None:
        self._state = seed & (2**64 - 1)

    def __call__(self, below: int) -> int:
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & (2**64 - 1)
        return 1 + (self._state >> 33) % below


def _mixed(values: Any) -> Any:
    values = (values ^ (values >> 13)) * 1_274_126_177 & 0xFFFFFFFF
    return values ^ (values >> 16)

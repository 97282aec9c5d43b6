"""Two small kinds of picture, bars and lines, written as SVG: a few kilobytes, the same bytes for the same rows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape

WIDTH = 760
COLOURS = ("#c0392b", "#2471a3", "#1e8449", "#b9770e", "#6c3483", "#117a65", "#839192", "#a04000", "#5d6d7e", "#7d6608")
"""The first is ours."""

Points = Sequence[tuple[float, float]]


def short(value: float) -> str:
    """
    >>> short(1234567.0), short(45600), short(3210), short(12.345), short(0.0123), short(0)
    ('1.23 M', '45.6 k', '3210', '12.3', '0.0123', '0')
    """
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g} M" if abs(value) < 1e9 else f"{value / 1e6:.0f} M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.3g} k"
    return f"{value:.0f}" if abs(value) >= 1000 or not value else f"{value:.3g}"


class Scale:
    """From values to positions, linear or logarithmic."""

    def __init__(self, values: Sequence[float], low_at: float, high_at: float, log: bool) -> None:
        self.log = log and min(values) > 0
        self.low_at, self.high_at = low_at, high_at
        if self.log:
            self.low = 10.0 ** math.floor(math.log10(min(values)) + 1e-9)
            self.high = 10.0 ** math.ceil(math.log10(max(values)) - 1e-9)
            if self.low == self.high:
                self.high *= 10
        else:
            self.low, self.high = min(0.0, min(values)), max(values) or 1.0

    def at(self, value: float) -> float:
        if self.log:
            share = math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return round(self.low_at + share * (self.high_at - self.low_at), 1)

    def marks(self) -> Iterator[float]:
        if self.log:
            value = self.low
            while value <= self.high * 1.001:
                yield value
                value *= 10
            return
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 2))
        while (self.high - self.low) / step > 6:
            step *= 2
        for number in range(int((self.high - self.low) / step) + 1):
            yield self.low + number * step


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, more: str = "") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}"{more}>{escape(words)}</text>'


def framed(height: int, parts: list[str]) -> str:
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" fill="#222">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>"]) + "\n"


def bars(title: str, unit: str, values: Mapping[str, float], ranges: Mapping[str, Sequence[float]], log: bool) -> str:
    """One bar for each name, in the order given, with a line from its lowest to its highest value."""
    left, right, top, each = 230, WIDTH - 90, 44, 24
    every = [*values.values(), *(value for pair in ranges.values() for value in pair)]
    scale = Scale(every, left, right, log)
    bottom = top + each * len(values)
    said = f"{unit}, logarithmic" if scale.log else unit
    parts = [text(14, 24, f"{title} ({said})" if said else title, size=15)]
    for mark in scale.marks():
        x = scale.at(mark)
        parts.append(f'<path d="M{x} {top - 4}V{bottom}" stroke="#ddd"/>')
        parts.append(text(x, bottom + 16, short(mark), "middle", 11))
    for number, (name, value) in enumerate(values.items()):
        y = top + each * number
        colour = COLOURS[0] if name.startswith("shmrt") else COLOURS[1]
        start = scale.at(scale.low if scale.log else 0.0)
        parts.append(text(left - 8, y + 14, name, "end"))
        parts.append(
            f'<rect x="{start}" y="{y + 3}" width="{max(scale.at(value) - start, 1):.1f}" height="15" fill="{colour}"/>'
        )
        end = scale.at(value)
        if name in ranges:
            low, high = (scale.at(bound) for bound in ranges[name])
            parts.append(f'<path d="M{low} {y + 10.5}H{high}" stroke="#222" stroke-width="1.5"/>')
            end = max(end, high)
        parts.append(text(end + 6, y + 15, short(value)))
    return framed(bottom + 28, parts)


def lines(
    title: str, x_label: str, y_label: str, series: Mapping[str, Points], log_x: bool, log_y: bool
) -> str:  # fmt: skip
    """One line with dots for each name; the names stand at the right."""
    left, right, top, bottom = 70, WIDTH - 210, 44, 360
    across = Scale([x for points in series.values() for x, _ in points], left, right, log_x)
    up = Scale([y for points in series.values() for _, y in points], bottom, top, log_y)
    parts = [text(14, 24, title, size=15)]
    for mark in up.marks():
        y = up.at(mark)
        parts += [f'<path d="M{left} {y}H{right}" stroke="#ddd"/>', text(left - 6, y + 4, short(mark), "end", 11)]
    for x in sorted({x for points in series.values() for x, _ in points}):
        parts.append(text(across.at(x), bottom + 16, short(x), "middle", 11))
    parts.append(text((left + right) / 2, bottom + 36, x_label, "middle"))
    turn = f' transform="rotate(-90 16 {(top + bottom) / 2})"'
    parts.append(text(16, (top + bottom) / 2, y_label, "middle", 12, turn))
    labels = sorted(series, key=lambda name: -series[name][-1][1])
    for number, (name, points) in enumerate(series.items()):
        ours = name.startswith("shmrt")
        colour = COLOURS[0] if ours else COLOURS[1 + number % (len(COLOURS) - 1)]
        placed = [(across.at(x), up.at(y)) for x, y in points]
        path = " ".join(f"{x},{y}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{3 if ours else 1.5}"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in placed]
        at = top + 12 + labels.index(name) * 20
        parts.append(f'<rect x="{right + 14}" y="{at - 9}" width="10" height="10" fill="{colour}"/>')
        parts.append(text(right + 30, at, name))
    return framed(bottom + 48, parts)

"""Line plots as SVG text, so that a script can draw what it measured without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 560, 340
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 40, 52
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e")


@dataclass(frozen=True, slots=True)
class Line:
    """One curve: points in rising x."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Axis:
    """What an axis shows."""

    name: str
    log: bool = False
    top: float | None = None
    """Upper end; None: where the data ends."""


def line_plot(title: str, x: Axis, y: Axis, lines: Sequence[Line]) -> str:
    """A plot of at most five lines. A log axis needs positive values.

    :raises ValueError: there is nothing to draw.
    """
    points = [point for line in lines for point in line.points]
    if not points:
        raise ValueError("a plot needs points")
    across = _Scale(x, [point[0] for point in points], _LEFT, _WIDTH - _RIGHT)
    up = _Scale(
        y,
        [0.0 if not y.log else points[0][1], *(point[1] for point in points)],
        _HEIGHT - _BOTTOM,
        _TOP,
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_LEFT}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
    ]
    for value in across.ticks():
        place = across.place(value)
        parts.append(
            f'<path d="M{place:.1f} {_TOP}V{_HEIGHT - _BOTTOM}" stroke="#ddd"/>'
            f'<text x="{place:.1f}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">'
            f"{_label(value)}</text>"
        )
    for value in up.ticks():
        place = up.place(value)
        parts.append(
            f'<path d="M{_LEFT} {place:.1f}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
            f'<text x="{_LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_label(value)}</text>'
        )
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 14}" text-anchor="middle">'
        f"{escape(x.name)}</text>"
        f'<text transform="translate(16 {(_TOP + _HEIGHT - _BOTTOM) / 2}) rotate(-90)" '
        f'text-anchor="middle">{escape(y.name)}</text>'
    )
    for number, (line, colour) in enumerate(zip(lines, _COLOURS, strict=False)):
        path = "L".join(f"{across.place(a):.1f} {up.place(b):.1f}" for a, b in line.points)
        dots = "".join(
            f'<circle cx="{across.place(a):.1f}" cy="{up.place(b):.1f}" r="2.5" fill="{colour}"/>'
            for a, b in line.points
        )
        height = _TOP + 14 + 16 * number
        parts.append(
            f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>{dots}'
            f'<path d="M{_LEFT + 10} {height - 4}h18" stroke="{colour}" stroke-width="3"/>'
            f'<text x="{_LEFT + 34}" y="{height}">{escape(line.name)}</text>'
        )
    return "\n".join([*parts, "</svg>\n"])


class _Scale:
    def __init__(self, axis: Axis, values: Sequence[float], start: float, end: float) -> None:
        self._log = axis.log
        self._low = min(values)
        high = max(values) if axis.top is None else axis.top
        self._high = high if high > self._low else self._low + 1
        self._start, self._end = start, end

    def place(self, value: float) -> float:
        """Where a value lies in the picture."""
        if self._log:
            part = math.log(value / self._low) / math.log(self._high / self._low)
        else:
            part = (value - self._low) / (self._high - self._low)
        return self._start + part * (self._end - self._start)

    def ticks(self) -> list[float]:
        """Round values within the axis."""
        if self._log:
            powers = range(math.floor(math.log10(self._low)), math.ceil(math.log10(self._high)) + 1)
            round_ones = [10.0**power * step for power in powers for step in (1, 3)]
        else:
            rough = (self._high - self._low) / 5
            power = 10.0 ** math.floor(math.log10(rough))
            step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
            first = math.ceil(self._low / step)
            round_ones = [step * number for number in range(first, first + 8)]
        slack = 1e-9 * self._high
        return [value for value in round_ones if self._low - slack <= value <= self._high + slack]


def _label(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.3g}"

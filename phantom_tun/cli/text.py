"""How numbers and tables are said to people."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence

_MINUTE = 60
_HOUR = 3600
_DAY = 86_400
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SHORT_ID = 8


def duration(seconds: float) -> str:
    """``0.7 s``, ``42 s``, ``5 min``, ``3 h 10 min``, ``2 d 4 h``."""
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def size(count: int) -> str:
    """``512 B``, ``1.5 KiB`` …"""
    value = float(count)
    for unit in _UNITS[:-1]:
        if value < 1024:
            return f"{count} B" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} {_UNITS[-1]}"


def short_id(identifier: str) -> str:
    """The first eight hex digits."""
    return identifier[:_SHORT_ID]


def columns(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Lines of a table. Nothing is ever shortened or broken: addresses are there to be copied."""
    cells = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(map(str.ljust, row, widths)).rstrip()


def fitting_columns(
    heads: Sequence[str], rows: Iterable[Sequence[str]], least: int
) -> Iterator[str]:
    """The same, without the last columns for which a terminal has no room; ``least`` are kept."""
    rows = list(rows)
    room = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    kept = len(heads)
    while True:
        lines = list(columns(heads[:kept], [row[:kept] for row in rows]))
        if kept <= least or max(map(len, lines)) <= room:
            return iter(lines)
        kept -= 1


def counted(count: int, noun: str) -> str:
    """``1 path``, ``2 paths``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"

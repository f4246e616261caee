"""How numbers and tables are said to people."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO

_MINUTE = 60
_HOUR = 3600
_DAY = 86_400
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_SHORT_ID = 8
_LEAST_ROOM = 20
_STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""What colours a terminal and takes no room there."""


def duration(seconds: float) -> str:
    """``40 ms``, ``0.7 s``, ``42 s``, ``5 min``, ``3 h 10 min``, ``2 d 4 h``."""
    whole = round(seconds)
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms" if seconds >= 0.0005 else "under 1 ms"
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
    """The same, without the last columns for which a terminal has no room, which a last line names;
    ``least`` are kept."""
    rows = list(rows)
    space = room(sys.stdout) or sys.maxsize
    kept = len(heads)
    while True:
        lines = list(columns(heads[:kept], [row[:kept] for row in rows]))
        if kept <= least or max(map(len, lines)) <= space:
            break
        kept -= 1
    if kept < len(heads):
        missing = ", ".join(heads[kept:])
        lines.append(fitted(f"no room for {missing}: widen the terminal, or use --json"))
    return iter(lines)


def room(stream: TextIO) -> int | None:
    """Columns of the terminal that ``stream`` is; ``None`` if it is none."""
    if not stream.isatty():
        return None
    try:
        width = int(os.environ.get("COLUMNS") or os.get_terminal_size(stream.fileno()).columns)
    except (OSError, ValueError):
        width = shutil.get_terminal_size().columns
    return width


def fitted(text: str, hang: int = 0, stream: TextIO | None = None) -> str:
    """``text`` in lines that fit the terminal, all but the first indented by ``hang``; as it is if
    ``stream``, standard output unless given, is no terminal. Words are never broken."""
    width = room(stream or sys.stdout)
    if width is None:
        return text
    return "\n".join(
        part for line in text.split("\n") for part in _parts(line, hang, max(width, _LEAST_ROOM))
    )


def _parts(line: str, hang: int, width: int) -> Iterator[str]:
    part, used = "", 0
    for found in re.findall(r"\s*\S+", line):
        word, takes = found, _length(found)
        if used > hang and used + takes > width:
            yield part
            word, part, used = found.lstrip(), " " * hang, hang
            takes = _length(word)
        part, used = part + word, used + takes
    yield part


def _length(text: str) -> int:
    return len(_STYLE.sub("", text))


def counted(count: int, noun: str) -> str:
    """``1 path``, ``2 paths``."""
    plural = f"{noun}es" if noun.endswith("s") else f"{noun}s"
    return f"{count} {noun if count == 1 else plural}"

"""Samples to tables. Times on a shared machine are noisy; ratios of what was measured right after
each other are less so."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from phantom_tun.lab.bench.model import FIGURES, ConditionResult, Figure, Report, SystemResult

NOTHING = "–"
BUSY_PER_CORE = 0.5
"""A load average above this, before anything is started, spoils a run."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Some values in short."""

    median: float
    lowest: float
    highest: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of what was measured; ``None``: nothing was."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def ratio(figure: Figure, ours: SystemResult, peer: SystemResult) -> Spread | None:
    """How many times better we are, from values of the same repetition; below 1: worse."""
    pairs = zip(ours.samples.get(figure.key, ()), peer.samples.get(figure.key, ()), strict=False)
    found = []
    for mine, theirs in pairs:
        if mine and theirs:
            found.append(mine / theirs if figure.better == "higher" else theirs / mine)
    return spread(found)


def cell(value: Spread | None, digits: int) -> str:
    """``12.3 (11.9–14.0)``."""
    if value is None:
        return NOTHING
    text = f"{value.median:.{digits}f}"
    if value.lowest == value.highest:
        return text
    return f"{text} ({value.lowest:.{digits}f}–{value.highest:.{digits}f})"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def values_table(result: ConditionResult) -> str:
    """Median and range of every figure, a column for each system."""
    rows = []
    for figure in FIGURES:
        cells = [cell(spread(s.samples.get(figure.key, ())), figure.digits) for s in result.systems]
        if any(text != NOTHING for text in cells):
            rows.append([f"{figure.title} ({figure.unit})", *cells])
    return table(["", *(system.title for system in result.systems)], rows)


def ratios_table(result: ConditionResult) -> str:
    """How many times better the first system is than each other; empty if it is alone."""
    if len(result.systems) < 2:
        return ""
    ours, *peers = result.systems
    rows = []
    for figure in FIGURES:
        cells = [cell(ratio(figure, ours, peer), 2) for peer in peers]
        if any(text != NOTHING for text in cells):
            rows.append([figure.title, *cells])
    head = [f"{ours.title} is better by", *(f"than {peer.title}" for peer in peers)]
    return table(head, rows)


def markdown(report: Report, pictures: Sequence[str] = ()) -> str:
    """The whole report."""
    machine, settings = report.machine, report.settings
    lines = [
        "# Benchmark",
        "",
        f"{report.when}, {machine.cpus} processor cores ({machine.model}), "
        f"{machine.memory_gib:.0f} GiB, Linux {machine.kernel}, Python {machine.python}. "
        f"{settings.repetitions} repetitions, transfers of {settings.bulk_s:g} s. Everything, the "
        "load generator included, shares these cores.",
        "",
        "Median (lowest–highest) of the repetitions. Ratios are taken within a repetition; above "
        "1, we are better. Processor time is that of all processes of a system, without the load "
        "generator. What each figure means is in [README.md](README.md).",
    ]
    lines += [f"\n![{picture}]({picture})" for picture in pictures]
    for result in report.conditions:
        lines += ["", f"## {result.condition.title}", ""]
        load = [f"{result.load_before[0]:.1f} before"]
        if result.load_after is not None:
            load.append(f"{result.load_after[0]:.1f} after")
        lines += [f"Load average of the machine: {', '.join(load)}.", ""]
        if result.load_before[0] > machine.cpus * BUSY_PER_CORE:
            lines += ["**The machine was busy with other things: rely on nothing here.**", ""]
        lines += [values_table(result), ratios_table(result)]
        lines += [f"- {system.title}: {system.version}" for system in result.systems]
        errors = [f"- {s.title}: {text}" for s in result.systems for text in s.errors]
        if errors:
            lines += ["", "What failed:", "", *errors]
    return "\n".join(lines) + "\n"

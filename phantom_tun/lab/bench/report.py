"""A run as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from phantom_tun.lab.bench import goals
from phantom_tun.lab.bench.model import (
    FIGURES,
    GROWTH_FIGURES,
    ConditionResult,
    GrowthResult,
    Report,
)
from phantom_tun.lab.bench.spreads import Spread, ratio, spread

NOTHING = "–"
TOO_BUSY = 0.15
"""Of the whole machine, before anything is started: more spoils a run."""


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
    titles = [
        f"{system.title} {goals.REMARKED}" if system.remarks else system.title
        for system in result.systems
    ]
    return table(["", *titles], rows)


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


def goals_table(run: Report) -> str:
    """What was to be reached, and what was; empty if the run says nothing about it."""
    rows = goals.rows(run)
    if not rows:
        return ""
    return table(["goal", "wanted", "measured", ""], rows)


def growth_table(result: GrowthResult) -> str:
    """A row for each size."""
    known = {key for point in result.points for key in point.samples}
    figures = [figure for figure in GROWTH_FIGURES if figure.key in known]
    rows = [
        [
            f"{point.x:g}",
            *(cell(spread(point.samples.get(f.key, ())), f.digits) for f in figures),
        ]
        for point in result.points
    ]
    return table([result.x_title, *(f"{f.title} ({f.unit})" for f in figures)], rows)


def markdown(report: Report, pictures: Mapping[str, Sequence[str]] = MappingProxyType({})) -> str:
    """The whole report; ``pictures`` are file names by scenario."""
    machine, settings = report.machine, report.settings
    lines = [
        "# Benchmark",
        "",
        f"{report.when}, {machine.cpus} processor cores ({machine.model}), "
        f"{machine.memory_gib:.0f} GiB, Linux {machine.kernel}, Python {machine.python}. "
        f"Transfers of {settings.bulk_s:g} s, with delay {settings.delayed_bulk_s:g} s, with "
        f"delay and a rate limit {settings.far_bulk_s:g} s. "
        "Everything, the load generator included, shares these cores.",
        "",
        "Median (lowest–highest) of the repetitions. Ratios are taken within a repetition; above "
        "1, we are better. Processor time is that of all processes of a system, without the load "
        "generator. What each figure means is in [README.md](README.md).",
        "",
        goals_table(report),
    ]
    for result in report.conditions:
        lines += ["", f"## {result.condition.title}", "", *_busy(result), ""]
        lines += _shown(pictures.get(result.condition.key, ()))
        lines += [values_table(result), ratios_table(result)]
        lines += [f"- {system.title}: {system.version}" for system in result.systems]
        lines += [
            f"- {goals.REMARKED} {system.title}, {remark}"
            for system in result.systems
            for remark in system.remarks
        ]
        lines += _failures(f"{s.title}: {text}" for s in result.systems for text in s.errors)
    for growth in report.growth:
        lines += ["", f"## {growth.title}", "", *_busy(growth), ""]
        lines += _shown(pictures.get(growth.key, ()))
        lines += [growth_table(growth)]
        lines += _failures(growth.errors)
    return "\n".join(lines) + "\n"


def _busy(result: ConditionResult | GrowthResult) -> list[str]:
    text = f"Before it, other things kept {100 * result.busy_before:.0f} % of the machine busy."
    if result.busy_before <= TOO_BUSY:
        return [text]
    return [text, "", "**That is too much: rely on nothing here.**"]


def _shown(pictures: Sequence[str]) -> list[str]:
    return [*(f"![{picture}]({picture})" for picture in pictures), ""] if pictures else []


def _failures(texts: Iterable[str]) -> list[str]:
    found = [f"- {text}" for text in texts]
    return ["", "What failed:", "", *found] if found else []

"""Samples to spreads, ratios, tables and pictures."""

from __future__ import annotations

from xml.etree import ElementTree

import msgspec
import pytest

from phantom_tun.lab.bench import plots, report, spreads
from phantom_tun.lab.bench.model import (
    FIGURES,
    Condition,
    ConditionResult,
    Figure,
    Machine,
    Report,
    Settings,
    SystemResult,
)
from phantom_tun.lab.bench.spreads import Spread

SPEED = Figure("down_1", "speed", "Mbit/s", "higher")
LATENCY = Figure("echo", "latency", "ms", "lower")


def system(key: str, **samples: list[float | None]) -> SystemResult:
    return SystemResult(key, f"System <{key}>", "1.0", dict(samples))


def result(*systems: SystemResult) -> ConditionResult:
    return ConditionResult(Condition("plain", "No & delay"), 0.04, list(systems))


def whole(found: ConditionResult) -> Report:
    machine = Machine(2, "Some processor", "6.1", 24.0, "3.11.2")
    return Report(
        "2026-01-01T00:00:00+00:00", machine, Settings(2, 2.0, 8.0, 5, 2.0, 9, 12, 3), [found]
    )


def test_a_spread_leaves_out_what_failed() -> None:
    assert spreads.spread([3.0, None, 1.0, 2.0]) == Spread(2.0, 1.0, 3.0)
    assert spreads.spread([None]) is None
    assert spreads.spread([]) is None


def test_above_one_is_better_whichever_way_the_figure_goes() -> None:
    ours = system("ours", down_1=[400.0], echo=[2.0])
    peer = system("peer", down_1=[100.0], echo=[8.0])
    assert spreads.ratio(SPEED, ours, peer) == Spread(4.0, 4.0, 4.0)
    assert spreads.ratio(LATENCY, ours, peer) == Spread(4.0, 4.0, 4.0)
    assert spreads.ratio(LATENCY, peer, ours) == Spread(0.25, 0.25, 0.25)


def test_ratios_are_taken_within_a_repetition() -> None:
    ours = system("ours", down_1=[100.0, None, 10.0, 7.0])
    peer = system("peer", down_1=[50.0, 3.0, 5.0])
    assert spreads.ratio(SPEED, ours, peer) == Spread(2.0, 2.0, 2.0)


def test_nothing_is_divided_by_nothing() -> None:
    assert spreads.ratio(SPEED, system("a", down_1=[1.0]), system("b", down_1=[0.0])) is None
    assert spreads.ratio(SPEED, system("a"), system("b", down_1=[1.0])) is None


def test_samples_that_were_skipped_count_as_failed() -> None:
    found = system("ours")
    found.add(1, "echo", 2.0)
    found.add(2, "echo", None)
    assert found.samples == {"echo": [None, 2.0, None]}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (Spread(2.0, 2.0, 2.0), "2.0"),
        (Spread(2.0, 1.0, 30.0), "2.0 (1.0–30.0)"),
    ],
)
def test_cells(value: Spread | None, text: str) -> None:
    assert report.cell(value, 1) == text


def test_figures_nobody_has_are_no_rows() -> None:
    text = report.values_table(result(system("ours", echo=[1.0]), system("peer")))
    assert text.count("\n") == 3
    assert "| echo idle, median (ms) | 1.00 | – |" in text


def test_one_system_alone_is_not_compared() -> None:
    assert report.ratios_table(result(system("ours", echo=[1.0]))) == ""


def test_the_report_says_what_failed_and_how_busy_the_machine_was() -> None:
    broken = system("peer")
    broken.errors.append("did not start")
    text = report.markdown(whole(result(system("ours", echo=[1.0]), broken)), {"plain": ["a.svg"]})
    assert "other things kept 4 % of the machine busy." in text
    assert "- System <peer>: did not start" in text
    assert "![a.svg](a.svg)" in text


@pytest.mark.parametrize(("share", "too_busy"), [(0.14, False), (0.16, True)])
def test_a_run_on_a_busy_machine_is_marked(share: float, too_busy: bool) -> None:
    found = result(system("ours", echo=[1.0]))
    found.busy_before = share
    assert ("rely on nothing here" in report.markdown(whole(found))) is too_busy


def test_every_figure_has_a_row_of_its_own() -> None:
    assert len({figure.key for figure in FIGURES}) == len(FIGURES)
    assert set(plots.PLOTTED) <= {figure.key for figure in FIGURES}


def test_the_picture_is_well_formed_and_has_a_bar_for_each_value() -> None:
    found = result(
        system("ours", down_1=[1.0, 2.0], echo=[1.0]),
        system("peer", down_1=[4.0]),
        system("none"),
    )
    root = ElementTree.fromstring(plots.chart(found))  # noqa: S314 - we wrote it
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}rect")) == 1 + 3  # the background and the bars
    bars = [float(bar.attrib["width"]) for bar in root.findall(f"{name}rect")[1:]]
    assert bars[1] / bars[0] == pytest.approx(4.0 / 1.5, rel=0.01)
    assert any(text.text == "System <peer>" for text in root.findall(f"{name}text"))


def test_the_results_file_can_be_read_again() -> None:
    run = whole(result(system("ours", echo=[1.0, None])))
    assert msgspec.json.decode(msgspec.json.encode(run), type=Report) == run

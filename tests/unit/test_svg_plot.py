"""Plots are well-formed and put points where they belong."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from phantom_tun.analysis.svg_plot import Axis, Line, line_plot

SVG = "{http://www.w3.org/2000/svg}"


def circles(text: str) -> list[tuple[float, float]]:
    root = ET.fromstring(text)  # noqa: S314 - our own
    return [(float(c.get("cx", "")), float(c.get("cy", ""))) for c in root.iter(f"{SVG}circle")]


def labels(text: str) -> list[str]:
    return [node.text or "" for node in ET.fromstring(text).iter(f"{SVG}text")]  # noqa: S314


def test_a_plot_is_xml_with_its_names() -> None:
    text = line_plot("A < B", Axis("x & y"), Axis("part"), [Line("one", [(0, 0), (10, 1)])])
    assert {"A < B", "x & y", "part", "one"} <= set(labels(text))


def test_larger_values_are_farther_right_and_higher() -> None:
    points = circles(line_plot("t", Axis("x"), Axis("y"), [Line("l", [(1, 1), (2, 5), (4, 9)])]))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted((y for _, y in points), reverse=True)


def test_a_log_axis_spaces_factors_evenly() -> None:
    line = Line("l", [(10, 1), (100, 1), (1_000, 1)])
    (first, _), (second, _), (third, _) = circles(
        line_plot("t", Axis("x", log=True), Axis("y"), [line])
    )
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_ticks_are_round_numbers() -> None:
    text = line_plot("t", Axis("x"), Axis("y", top=1.0), [Line("l", [(0, 0.2), (120, 0.9)])])
    assert {"0", "50", "100", "0.2", "1"} <= set(labels(text)) or {"0", "20", "1"} <= set(
        labels(text)
    )
    assert not [label for label in labels(text) if re.fullmatch(r"0\.\d{4,}", label)]


def test_a_flat_line_and_a_single_point_can_be_drawn() -> None:
    assert circles(line_plot("t", Axis("x"), Axis("y"), [Line("l", [(3, 0)])]))


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(ValueError, match="points"):
        line_plot("t", Axis("x"), Axis("y"), [Line("l", [])])

"""Figures of growth: arithmetics, failures, tables and curves."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from phantom_tun.lab.bench import growth, plots, report
from phantom_tun.lab.bench.hosts import Inside
from phantom_tun.lab.bench.load_wire import Target
from phantom_tun.lab.bench.measuring import LoadFailed
from phantom_tun.lab.bench.model import GrowthPoint, GrowthResult
from phantom_tun.lab.bench.systems import Running
from phantom_tun.lab.plan import MAX_HOPS, nodes_needed


def result(*points: GrowthPoint) -> GrowthResult:
    return GrowthResult("hops", "Hops", "hops on either side", 0.0, list(points))


def running(relays: int, on_way: int) -> Running:
    roles = {"client": (1,), "relay": tuple(range(10, 10 + relays))}
    return Running(Inside((), {}), Target("x", 1), roles, 0.0, on_way)


def test_points_are_made_when_needed_and_stay_in_order() -> None:
    found = result()
    found.at(8).add({"echo": 2.0})
    found.at(1).add({"echo": 1.0})
    found.at(8).add({"echo": 3.0, "connect": 9.0})
    assert [(point.x, point.samples) for point in found.points] == [
        (1, {"echo": [1.0]}),
        (8, {"echo": [2.0, 3.0], "connect": [9.0]}),
    ]


def test_a_tunnel_costs_what_relays_it_passes_have_grown_by() -> None:
    empty = {"memory_client": 50.0, "memory_relay": 40.0}
    full = {"memory_client": 60.0, "memory_relay": 43.0}
    found = growth.per_tunnel_kib(empty, full, 100, running(relays=12, on_way=6))
    assert found["tunnel_edge"] == pytest.approx(102.4)
    assert found["tunnel_relay"] == pytest.approx(3 * 1024 * 12 / 600)


def test_without_relays_no_tunnel_costs_them_anything() -> None:
    found = growth.per_tunnel_kib({"memory_client": 1.0}, {"memory_client": 2.0}, 4, running(0, 0))
    assert found == {"tunnel_edge": 256.0}


def test_a_failure_is_noted_and_the_rest_goes_on() -> None:
    found, said = result(), list[str]()
    with growth.noting(found, "at 3", said.append):
        raise LoadFailed("broke")
    assert found.errors == ["at 3: broke"]
    assert "broke" in said[0]


def test_a_mistake_of_ours_is_no_failure_of_the_measurement() -> None:
    with pytest.raises(ZeroDivisionError), growth.noting(result(), "at 3", print):
        _ = 1 / 0


def test_the_lab_of_hops_is_large_enough_for_the_longest_paths() -> None:
    assert max(growth.HOPS) == MAX_HOPS
    assert 2 * len(growth.HOPS) + growth.RELAYS_OF_HOPS_LAB >= nodes_needed(MAX_HOPS)


def test_the_table_has_a_row_for_each_size_and_a_column_for_what_was_measured() -> None:
    points = GrowthPoint(0, {"echo": [1.0, 3.0]}), GrowthPoint(3, {"start": [5.0]})
    text = report.growth_table(result(*points))
    assert (
        text.splitlines()[0]
        == "| hops on either side | echo idle, median (ms) | start to reachable (s) |"
    )
    assert "| 0 | 2.00 (1.00–3.00) | – |" in text
    assert "| 3 | – | 5.0 |" in text


def test_curves_need_two_sizes() -> None:
    points = GrowthPoint(0, {"echo": [1.0], "start": [1.0]}), GrowthPoint(3, {"echo": [5.0]})
    found = plots.curves(result(*points))
    assert set(found) == {"echo"}
    ElementTree.fromstring(found["echo"])  # noqa: S314 - we wrote it

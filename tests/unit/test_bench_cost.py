"""Processor time and memory, from a made-up /proc."""

from __future__ import annotations

from pathlib import Path

import pytest

from phantom_tun.lab.bench import cost
from phantom_tun.lab.bench.cost import TICKS_PER_S

STAT = "{pid} (a) b) S {parent} 1 1 0 -1 0 0 0 0 0 {user} {system} {child} {children} 20 0 1 0 99\n"


def make(proc: Path, pid: int, parent: int, ticks: tuple[int, int, int, int], kib: int) -> None:
    directory = proc / str(pid)
    directory.mkdir()
    user, system, child, children = ticks
    text = STAT.format(
        pid=pid, parent=parent, user=user, system=system, child=child, children=children
    )
    (directory / "stat").write_text(text)
    resident = f"VmRSS:\t{kib} kB\n" if kib else ""
    (directory / "status").write_text(f"Name:\tx\n{resident}Threads:\t1\n")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    make(tmp_path, 10, 1, (1, 2, 4, 8), 1024)
    make(tmp_path, 11, 10, (100, 0, 0, 0), 2048)
    make(tmp_path, 12, 11, (0, 200, 0, 0), 0)
    make(tmp_path, 20, 1, (5000, 0, 0, 0), 4096)
    (tmp_path / "uptime").write_text("1 1\n")
    return tmp_path


def test_a_name_may_hold_anything() -> None:
    text = STAT.format(pid=5, parent=7, user=1, system=2, child=3, children=4)
    assert cost.parse_stat(text) == (7, 10)


def test_processor_time_is_that_of_descendants_too_and_of_nobody_else(proc: Path) -> None:
    assert cost.cpu_seconds([10], proc) == pytest.approx(315 / TICKS_PER_S)


def test_nothing_is_counted_twice(proc: Path) -> None:
    assert cost.cpu_seconds([10, 11, 12], proc) == cost.cpu_seconds([10], proc)


def test_processes_that_are_gone_cost_nothing(proc: Path) -> None:
    assert cost.cpu_seconds([999], proc) == 0
    assert cost.resident_mib([999], proc) == 0


def test_a_process_may_go_while_it_is_looked_at(proc: Path) -> None:
    (proc / "30").mkdir()
    assert cost.cpu_seconds([30, 20], proc) == pytest.approx(5000 / TICKS_PER_S)


def test_memory_is_added_up_and_a_zombie_has_none(proc: Path) -> None:
    assert cost.resident_mib([10], proc) == pytest.approx(3.0)


def test_a_loop_of_parents_is_no_endless_loop() -> None:
    assert cost.with_descendants([1], {1: 2, 2: 1, 3: 9}) == {1, 2}


def test_this_machine_can_be_described() -> None:
    machine = cost.machine()
    assert machine.cpus >= 1
    assert machine.memory_gib > 0
    assert machine.model


def test_waiting_is_not_busy() -> None:
    stat = "cpu  10 1 20 100 30 2 3 4 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"
    assert cost.parse_busy(stat) == (40, 170)


def test_how_busy_the_machine_was_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stat").write_text("cpu  100 0 0 1000 0 0 0 0 0 0\n")

    def pass_time(_seconds: float) -> None:
        (tmp_path / "stat").write_text("cpu  125 0 0 1075 0 0 0 0 0 0\n")

    monkeypatch.setattr(cost.time, "sleep", pass_time)
    assert cost.busy_share(1.0, tmp_path) == pytest.approx(0.25)

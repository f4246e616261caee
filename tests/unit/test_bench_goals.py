"""What was to be reached; and results of several runs put together."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from phantom_tun.lab.bench import goals, merge, report
from phantom_tun.lab.bench.goals import GOALS, Grown, GrownTimes, Times, Value, met
from phantom_tun.lab.bench.model import (
    FIGURES,
    GROWTH_FIGURES,
    Condition,
    ConditionResult,
    GrowthPoint,
    GrowthResult,
    Machine,
    Report,
    Settings,
    SystemResult,
)
from phantom_tun.lab.bench.scenarios import CONDITIONS, GROWTH, SYSTEMS
from phantom_tun.lab.errors import BadLabOption

MACHINE = Machine(2, "Some processor", "6.1", 24.0, "3.11.2")
SETTINGS = Settings(2, 2.0, 8.0, 5, 2.0, 9, 12, 3)
BOTH = Condition("both", "Slow", 20.0, "100mbit")


def system(key: str, **samples: list[float | None]) -> SystemResult:
    return SystemResult(key, key, "1.0", dict(samples))


def run_of(condition: Condition, *systems: SystemResult) -> Report:
    found = ConditionResult(condition, 0.1, list(systems))
    return Report("2026-01-01T00:00:00+00:00", MACHINE, SETTINGS, [found])


def grown(key: str, *points: GrowthPoint) -> Report:
    result = GrowthResult(key, "Growing", "nodes", 0.1, list(points))
    return Report("2026-01-01T00:00:00+00:00", MACHINE, SETTINGS, [], [result])


PLAIN = Condition("plain", "No delay")


def test_a_figure_is_held_against_its_limit() -> None:
    run = run_of(PLAIN, system("ours", echo=[3.0, 3.5, 9.0]))
    assert met(Value("plain", "echo", "<=", 4), run) is True
    assert met(Value("plain", "echo", "<=", 3), run) is False
    assert met(Value("plain", "echo", ">=", 3.5), run) is True


def test_what_was_not_measured_is_neither_reached_nor_missed() -> None:
    run = run_of(PLAIN, system("ours", echo=[None]))
    for goal in (
        Value("plain", "echo", "<=", 4),
        Value("both", "echo", "<=", 4),
        Value("plain", "down_1", ">=", 1, "ours-0"),
        Times("plain", "echo", 2, "tor"),
        Grown("nodes", 12, "start", "<=", 9),
    ):
        assert met(goal, run) is None
    assert goals.rows(run) == []
    assert report.goals_table(run) == ""


def test_times_better_is_taken_within_repetitions() -> None:
    ours, tor = system("ours", connect=[10.0, 1.0]), system("tor", connect=[30.0, 2.0])
    run = run_of(PLAIN, ours, tor)
    assert met(Times("plain", "connect", 2.5, "tor"), run) is True
    assert met(Times("plain", "connect", 2.6, "tor"), run) is False


def test_a_share_of_what_a_peer_takes_is_taken_within_repetitions() -> None:
    ours, tor = system("ours", connect=[10.0, 4.0]), system("tor", connect=[40.0, 10.0])
    run = run_of(PLAIN, ours, tor)
    goal = Times("plain", "connect", 0.4, "tor", "<=")
    found = goal.value(run)
    assert found is not None
    assert (found.lowest, found.highest) == (pytest.approx(0.25), pytest.approx(0.4))
    assert met(goal, run) is True
    assert met(Times("plain", "connect", 0.2, "tor", "<="), run) is False


def test_a_figure_beside_which_something_was_amiss_says_so() -> None:
    ours = system("ours", down_1=[95.0])
    ours.remarks.append("repetition 1: something was amiss")
    run = run_of(Condition("limited", "Slow", rate="100mbit"), ours)
    text = report.markdown(run)
    assert "| limited: 1 stream down | ≥ 90 Mbit/s | 95 \\* | reached |" in text
    assert "|  | ours \\* |" in text
    assert "- \\* ours, repetition 1: something was amiss" in text
    ours.remarks.clear()
    assert "\\*" not in report.markdown(run)


def test_a_peer_is_marked_only_in_its_column() -> None:
    ours, tor = system("ours", down_1=[95.0]), system("tor", down_1=[9.0])
    tor.remarks.append("repetition 1: something was amiss")
    text = report.markdown(run_of(PLAIN, ours, tor))
    assert "|  | ours | tor \\* |" in text
    assert "9 × | 10.6 |" in text


def test_limits_follow_the_links() -> None:
    (share,) = (
        g for g in GOALS if isinstance(g, Value) and g.title().startswith("both: 1 stream d")
    )
    run = run_of(BOTH, system("ours", down_1=[85.0]))
    assert share.limit(run) == pytest.approx(85.0)
    assert met(share, run) is True
    delayed = Condition("delayed", "Far", 20.0)
    (first,) = (
        g for g in GOALS if isinstance(g, Value) and g.title().startswith("delayed: new connection")
    )
    assert first.limit(run_of(delayed)) == pytest.approx(1.1 * 280)


def test_a_size_has_goals_of_its_own() -> None:
    run = grown("nodes", GrowthPoint(12, {"start": [20.0]}), GrowthPoint(17, {"start": [10.0]}))
    assert met(Grown("nodes", 17, "start", "<=", 12), run) is True
    assert met(Grown("nodes", 12, "start", "<=", 12), run) is False


def test_two_sizes_are_compared_within_repetitions() -> None:
    one, two = GrowthPoint(1, {"tunnels": [2.0, 5.0]}), GrowthPoint(2, {"tunnels": [3.0, 7.0]})
    goal = GrownTimes("workers", 2, 1, "tunnels", ">=", 1.4)
    found = goal.value(grown("workers", one, two))
    assert found is not None
    assert (found.lowest, found.highest) == (pytest.approx(1.4), pytest.approx(1.5))
    assert met(goal, grown("workers", one, two)) is True
    assert met(goal, grown("workers", one)) is None


def test_all_that_was_asked_for_is_a_goal() -> None:
    wanted = {
        (goal.title(), f"{goal.way} {goal.limit(run_of(BOTH)):.4g} {goal.unit()}")
        for goal in GOALS
        if not isinstance(goal, Value) or not callable(goal.at)
    }
    for title, limit in (
        ("plain: 1 stream up, compared to Tor as shipped", ">= 9 ×"),
        ("plain: 1 stream down, compared to Tor with Vanilla", ">= 4.5 ×"),
        ("plain: 1 stream down, compared to Yggdrasil-8", ">= 1.25 ×"),
        ("plain: 1 stream up, compared to the C TLS chain", ">= 0.5 ×"),
        ("plain: 8 streams up, compared to Tor with Vanilla", ">= 5 ×"),
        ("plain: processor, 1 stream down, compared to Tor as shipped", "<= 0.1667 ×"),
        ("plain: new connection to first byte back, median", "<= 12 ms"),
        (
            "plain: new connection to first byte back, median, compared to Tor as shipped",
            "<= 0.5 ×",
        ),
        (
            "delayed: new connection to first byte back, median, compared to Tor as shipped",
            "<= 0.55 ×",
        ),
        ("tunnels = 500: memory of an idle tunnel at a relay", "<= 39.06 KiB"),
        ("tunnels = 3000: memory, service's side", "<= 381.5 MiB"),
        ("nodes = 17: start to reachable", "<= 12 s"),
        ("nodes = 12: path build, median", "<= 0.7 s"),
        ("workers = 2: 16 tunnels, compared to workers = 1", ">= 1.3 ×"),
        ("workers = 2: processor of the relay, compared to workers = 1", "<= 1.1 ×"),
    ):
        assert (title, limit) in wanted


def test_the_table_says_what_is_missed() -> None:
    run = run_of(PLAIN, system("ours", echo=[3.0, 5.0, 9.0], connects=[200.0]))
    text = report.goals_table(run)
    assert "| plain: echo idle, median | ≤ 4 ms | 5 (3–9) | **missed** |" in text
    assert "| plain: connections, sustained | ≥ 150 1/s | 200 | reached |" in text


def test_every_goal_is_about_something_that_is_measured() -> None:
    keys = {figure.key for figure in (*FIGURES, *GROWTH_FIGURES)}
    assert len({goal.title() for goal in GOALS}) == len(GOALS)
    for goal in GOALS:
        assert isinstance(goal, Value | Times | Grown | GrownTimes)
        assert goal.figure in keys
        assert goal.unit()
        if isinstance(goal, Grown | GrownTimes):
            assert goal.growth in GROWTH
        else:
            assert goal.condition in CONDITIONS
            assert (goal.peer if isinstance(goal, Times) else goal.system) in SYSTEMS


# --- put together ---------------------------------------------------------------------------------


def test_repetitions_add_up_side_by_side() -> None:
    earlier = run_of(PLAIN, system("ours", echo=[1.0, 2.0]), system("tor", echo=[5.0]))
    later = run_of(PLAIN, system("ours", echo=[3.0]), system("tor", echo=[6.0]))
    earlier.conditions[0].systems[0].remarks.append("amiss")
    later.conditions[0].systems[0].remarks.append("again")
    (found,) = merge.merged(earlier, later).conditions
    assert [each.samples for each in found.systems] == [
        {"echo": [1.0, 2.0, 3.0]},
        {"echo": [5.0, None, 6.0]},
    ]
    assert found.systems[0].remarks == ["amiss", "again"]
    assert earlier.conditions[0].systems[0].samples == {"echo": [1.0, 2.0]}


def test_what_only_one_of_them_has_is_kept() -> None:
    earlier = run_of(PLAIN, system("ours", echo=[1.0]))
    earlier.growth = grown("hops", GrowthPoint(1, {"echo": [1.0]})).growth
    later = run_of(BOTH, system("tor", echo=[2.0]))
    later.growth = grown(
        "hops", GrowthPoint(1, {"echo": [2.0]}), GrowthPoint(2, {"echo": [4.0]})
    ).growth
    found = merge.merged(earlier, later)
    assert [each.condition.key for each in found.conditions] == ["plain", "both"]
    assert [(p.x, p.samples) for p in found.growth[0].points] == [
        (1, {"echo": [1.0, 2.0]}),
        (2, {"echo": [4.0]}),
    ]


def test_other_links_are_another_condition() -> None:
    other = Condition("plain", "No delay", rate="1gbit")
    found = merge.merged(run_of(PLAIN, system("ours")), run_of(other, system("ours")))
    assert len(found.conditions) == 2


def test_results_of_another_machine_are_refused() -> None:
    other = msgspec.structs.replace(run_of(PLAIN), machine=msgspec.structs.replace(MACHINE, cpus=9))
    with pytest.raises(BadLabOption, match="different machines"):
        merge.merged(run_of(PLAIN), other)


def test_reading_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "full.json"
    assert merge.read(file) is None
    file.write_bytes(msgspec.json.encode(run_of(PLAIN, system("ours", echo=[1.0]))))
    assert merge.read(file) == run_of(PLAIN, system("ours", echo=[1.0]))
    file.write_text("{}")
    with pytest.raises(BadLabOption, match="another --label"):
        merge.read(file)

"""Options, and what is measured where."""

from __future__ import annotations

import pytest

from phantom_tun.lab.bench import measuring, options, run, scenarios
from phantom_tun.lab.bench.growth import GROWTHS
from phantom_tun.lab.bench.options import parse
from phantom_tun.lab.bench.scenarios import CONDITIONS, GROWTH, SCENARIOS, SYSTEMS, Choice
from phantom_tun.lab.errors import BadLabOption


def chosen(choice: Choice) -> dict[str, tuple[str, ...]]:
    return {scenario.key: systems for scenario, systems in choice.scenarios}


def test_quick_is_ours_and_tor_without_delay() -> None:
    found = parse(["--quick"])
    assert chosen(found.choice) == {"plain": ("ours", "tor")}
    assert found.choice.growth == ()
    assert found.settings.repetitions == 2
    assert found.label == "quick"


def test_quick_takes_less_than_three_minutes() -> None:
    found = parse(["--quick"])
    assert 60 < scenarios.planned_seconds(found.choice, found.settings) < 170


def test_without_options_it_is_everything_three_times() -> None:
    found = parse([])
    assert tuple(chosen(found.choice)) == CONDITIONS
    assert chosen(found.choice)["plain"] == SYSTEMS
    assert found.choice.growth == GROWTH
    assert found.settings.repetitions == 3
    assert 1500 < scenarios.planned_seconds(found.choice, found.settings) < 2700


@pytest.mark.parametrize(
    ("only", "expected", "growth"),
    [
        (["delayed/tor"], {"delayed": ("tor",)}, ()),
        (["plain/tor,plain/ours"], {"plain": ("ours", "tor")}, ()),
        (["hops", "limited/ours"], {"limited": ("ours",)}, ("hops",)),
        (["/tor"], dict.fromkeys(CONDITIONS, ("tor",)), ()),
    ],
)
def test_only(only: list[str], expected: dict[str, tuple[str, ...]], growth: object) -> None:
    found = parse([word for item in only for word in ("--only", item)])
    assert chosen(found.choice) == expected
    assert found.choice.growth == growth


def test_conditions_have_the_delay_and_the_rate_asked_for() -> None:
    found = parse(["--delay-ms", "50", "--rate", "1gbit"]).conditions
    assert (found["plain"].delay_ms, found["plain"].rate) == (0, None)
    assert (found["both"].delay_ms, found["both"].rate) == (50, "1gbit")


def test_transfers_last_longer_with_delay_unless_told() -> None:
    usual, told = parse([]), parse(["--seconds", "1"])
    assert run.under(usual.conditions["delayed"], usual.settings).bulk_s == 8
    assert run.under(usual.conditions["limited"], usual.settings).bulk_s == 2.5
    assert run.under(usual.conditions["both"], usual.settings).bulk_s == 20
    assert run.under(told.conditions["delayed"], told.settings).bulk_s == 1
    assert run.under(told.conditions["both"], told.settings).bulk_s == 1


def test_peers_have_as_many_relays_as_our_paths() -> None:
    systems = parse(["--hops", "2"]).systems
    assert systems["yggdrasil"].title == "Yggdrasil line of 6"
    assert systems["tls-chain"].title == "TLS chain of 4"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--only", "plain/freenet"],
        ["--only", "windy"],
        ["--only", "hops/tor"],
        ["--rate", "fast"],
        ["--delay-ms", "0"],
        ["--repetitions", "0"],
        ["--repetitions", "101"],
        ["--seconds", "0.1"],
        ["--hops", "9"],
        ["--hops", "0"],
        ["--nodes", "9"],
    ],
)
def test_options_that_make_no_sense_are_refused(arguments: list[str]) -> None:
    with pytest.raises(BadLabOption):
        parse(arguments)


def test_bad_options_end_with_a_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--only", "plain/freenet"]) == 1
    assert "there is no system freenet" in capsys.readouterr().err


def test_every_scenario_can_be_measured() -> None:
    assert set(GROWTH) == set(GROWTHS)
    systems = options.parse([]).systems
    assert tuple(systems) == SYSTEMS
    for scenario in SCENARIOS:
        assert set(scenario.systems) <= set(SYSTEMS)
        assert set(scenario.measurements) <= set(measuring.MEASUREMENTS)


def test_what_says_nothing_about_a_system_is_left_out() -> None:
    (plain,) = (scenario for scenario in SCENARIOS if scenario.key == "plain")
    assert plain.measurements_of("ours") == plain.measurements
    assert "burst" not in plain.measurements_of("tls-chain")
    assert "down_1" in plain.measurements_of("i2pd")

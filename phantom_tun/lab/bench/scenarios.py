"""What is measured where: systems and figures of every scenario, and how long that takes.

A scenario is a condition of the links under which systems are compared, or a way in which ours
grows (:mod:`~phantom_tun.lab.bench.growth`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from phantom_tun.lab.bench.model import Condition, Settings
from phantom_tun.lab.errors import BadLabOption

SYSTEMS = (
    "ours", "tor", "tor-vanilla", "yggdrasil", "i2pd", "tls-chain", "ours-0", "ours-fresh",
)  # fmt: skip
GROWTH = ("hops", "tunnels", "nodes", "workers")

_ALL = (
    "connections", "burst", "echo_idle", "down_1", "up_1", "down_8", "up_8", "echo_loaded", "udp",
    "memory",
)  # fmt: skip
_SPEED = ("down_1", "up_1")


@dataclass(frozen=True, slots=True)
class Scenario:
    """Systems side by side.

    ``measurements`` are names of :data:`phantom_tun.lab.bench.measuring.MEASUREMENTS`.
    """

    key: str
    systems: tuple[str, ...]
    measurements: tuple[str, ...]
    measures_start: bool = False
    """Systems start one after the other, each timed; else they start while others do."""

    def measurements_of(self, system: str) -> tuple[str, ...]:
        """What is measured at one system here: of some, only what says something."""
        left_out = _LEFT_OUT.get(system, frozenset())
        return tuple(name for name in self.measurements if name not in left_out)


SCENARIOS = (
    Scenario("plain", SYSTEMS, _ALL, measures_start=True),
    Scenario(
        "delayed",
        ("ours", "tor", "yggdrasil", "i2pd", "tls-chain"),
        ("connections", "echo_idle", *_SPEED),
    ),
    Scenario(
        "limited",
        ("ours", "tor", "yggdrasil", "tls-chain"),
        (*_SPEED, "down_8", "echo_loaded"),
    ),
    Scenario("both", ("ours", "tor", "tls-chain"), ("connections", *_SPEED)),
)
CONDITIONS = tuple(scenario.key for scenario in SCENARIOS)
KEYS = (*CONDITIONS, *GROWTH)

_LEFT_OUT = {
    # Minutes for nothing: it is slower by two orders of magnitude.
    "i2pd": frozenset({"burst", "up_1", "down_8", "up_8", "echo_loaded"}),
    # A process for each connection.
    "tls-chain": frozenset({"burst"}),
    "ours-0": frozenset({"burst", "down_8", "up_8", "echo_loaded"}),
    # It only makes connections in another way.
    "ours-fresh": frozenset(_ALL) - {"connections", "burst"},
}

_SECONDS_TO_START = {
    "tor": 30,
    "tor-vanilla": 30,
    "i2pd": 45,
    "ours": 25,
    "ours-0": 8,
    "ours-fresh": 25,
}
_SECONDS_OF_GROWTH = {"hops": 150, "tunnels": 150, "nodes": 320, "workers": 130}
_OVERHEAD_S = 0.6
"""Of each measurement: a process, connections, a pause."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run shall do: scenarios with their systems, and ways to grow."""

    scenarios: tuple[tuple[Scenario, tuple[str, ...]], ...]
    growth: tuple[str, ...]


def choose(only: Sequence[str]) -> Choice:
    """What ``--only`` asks for: ``SCENARIO``, ``SCENARIO/SYSTEM`` or ``/SYSTEM``; nothing: all.

    :raises BadLabOption: one of them isn't there.
    """
    wanted: dict[str, set[str]] = {}
    for item in only or KEYS:
        key, _, system = item.strip().partition("/")
        if key and key not in KEYS:
            raise BadLabOption(f"there is no scenario {key}: use {', '.join(KEYS)}")
        if system and system not in SYSTEMS:
            raise BadLabOption(f"there is no system {system}: use {', '.join(SYSTEMS)}")
        if system and key in GROWTH:
            raise BadLabOption(f"{key} is about ours alone: leave out /{system}")
        for each in [key] if key else CONDITIONS:
            wanted.setdefault(each, set()).update(_systems_of(each, system))
    return Choice(
        tuple(
            (scenario, tuple(key for key in SYSTEMS if key in wanted[scenario.key]))
            for scenario in SCENARIOS
            if wanted.get(scenario.key)
        ),
        tuple(key for key in GROWTH if key in wanted),
    )


def _systems_of(key: str, system: str) -> Collection[str]:
    if system:
        return (system,)
    return next((s.systems for s in SCENARIOS if s.key == key), ())


def planned_seconds(choice: Choice, how: Settings) -> float:
    """About how long all of it takes on an idle machine."""
    total = float(sum(_SECONDS_OF_GROWTH[key] for key in choice.growth))
    for scenario, systems in choice.scenarios:
        starts = [_SECONDS_TO_START.get(system, 3) for system in systems]
        total += sum(starts) if scenario.measures_start else max(starts, default=0)
        names = [name for system in systems for name in scenario.measurements_of(system)]
        each = sum(_OVERHEAD_S + seconds_of(name, scenario.key, how) for name in names)
        total += how.repetitions * each
    return total


def seconds_of(measurement: str, scenario: str, how: Settings) -> float:
    """How long the load of one measurement lasts."""
    delayed = scenario in ("delayed", "both")
    match measurement:
        case "connections":
            return 6.0 if delayed else 2.0
        case "burst":
            return how.burst_s
        case "echo_idle":
            return 5.0 if delayed else 1.5
        case "memory":
            return 0.0
        case "udp":
            return how.bulk_s + 2.5
        case "echo_loaded":
            return how.bulk_s + 1.5
        case _:
            if scenario == "both":
                return how.far_bulk_s
            return how.delayed_bulk_s if delayed else how.bulk_s


def conditions(delay_ms: float, rate: str) -> dict[str, Condition]:
    """The links of every scenario."""
    return {
        "plain": Condition("plain", "No delay, links as fast as the machine"),
        "delayed": Condition("delayed", f"{delay_ms:g} ms one way between any two hosts", delay_ms),
        "limited": Condition("limited", f"Links of {rate}", rate=rate),
        "both": Condition("both", f"Links of {rate}, {delay_ms:g} ms one way", delay_ms, rate),
    }

"""What phantom-tun wants to reach, and whether a run shows it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from phantom_tun.lab.bench.model import (
    FIGURES,
    GROWTH_FIGURES,
    ConditionResult,
    Report,
    SystemResult,
)
from phantom_tun.lab.bench.spreads import Spread, ratio, spread
from phantom_tun.lab.plan import parse_rate

MB_IN_MIB = 1e6 / 2**20
KB_IN_KIB = 1e3 / 2**10

_FIGURE = {figure.key: figure for figure in (*FIGURES, *GROWTH_FIGURES)}
_TITLES = {
    "tor": "Tor as shipped",
    "tor-vanilla": "Tor with Vanilla",
    "yggdrasil": "Yggdrasil-8",
    "tls-chain": "the C TLS chain",
}

Way = Literal[">=", "<="]
REMARKED = "\\*"
"""Beside a figure, in Markdown: something was not as it should be while it was measured."""

_HOLDS: dict[Way, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}
_SIGN: dict[Way, str] = {">=": "≥", "<=": "≤"}


class Goal(Protocol):
    """One row of the table of goals."""

    @property
    def way(self) -> Way:
        """Which side of the limit is wanted."""

    def title(self) -> str:
        """What is measured, and where."""

    def unit(self) -> str:
        """Of the value and of the limit."""

    def limit(self, run: Report) -> float | None:
        """What is wanted; ``None``: it can't be said for this run."""

    def value(self, run: Report) -> Spread | None:
        """What was measured; ``None``: it wasn't."""

    def remarks(self, run: Report) -> list[str]:
        """What was not as it should be meanwhile."""


@dataclass(frozen=True, slots=True)
class Value:
    """A figure of one system under one condition."""

    condition: str
    figure: str
    way: Way
    at: float | Callable[[ConditionResult], float]
    system: str = "ours"

    def title(self) -> str:
        """See :class:`Goal`."""
        hops = ", no hops" if self.system == "ours-0" else ""
        return f"{self.condition}: {_FIGURE[self.figure].title}{hops}"

    def unit(self) -> str:
        """See :class:`Goal`."""
        return _FIGURE[self.figure].unit

    def limit(self, run: Report) -> float | None:
        """See :class:`Goal`."""
        if not callable(self.at):
            return self.at
        found = condition_of(run, self.condition)
        return None if found is None else self.at(found)

    def value(self, run: Report) -> Spread | None:
        """See :class:`Goal`."""
        found = system_of(condition_of(run, self.condition), self.system)
        return None if found is None else spread(found.samples.get(self.figure, ()))

    def remarks(self, run: Report) -> list[str]:
        """See :class:`Goal`."""
        return _remarks(run, self.condition, self.system)


@dataclass(frozen=True, slots=True)
class Times:
    """Ours as a multiple of a peer's figure, whichever is better."""

    condition: str
    figure: str
    at: float
    peer: str
    way: Way = ">="

    def title(self) -> str:
        """See :class:`Goal`."""
        return f"{self.condition}: {_FIGURE[self.figure].title}, compared to {_TITLES[self.peer]}"

    def unit(self) -> str:
        """See :class:`Goal`."""
        return "×"

    def limit(self, _run: Report) -> float | None:
        """See :class:`Goal`."""
        return self.at

    def value(self, run: Report) -> Spread | None:
        """See :class:`Goal`."""
        found = condition_of(run, self.condition)
        mine, theirs = system_of(found, "ours"), system_of(found, self.peer)
        if mine is None or theirs is None:
            return None
        better = ratio(_FIGURE[self.figure], mine, theirs)
        if better is None or self.way == ">=":
            return better
        # Of a figure of which less is wanted, the share that is left.
        return Spread(1 / better.median, 1 / better.highest, 1 / better.lowest)

    def remarks(self, run: Report) -> list[str]:
        """See :class:`Goal`."""
        return _remarks(run, self.condition, "ours")


@dataclass(frozen=True, slots=True)
class Grown:
    """A figure of ours at one size."""

    growth: str
    x: float
    figure: str
    way: Way
    at: float

    def title(self) -> str:
        """See :class:`Goal`."""
        return f"{self.growth} = {self.x:g}: {_FIGURE[self.figure].title}"

    def unit(self) -> str:
        """See :class:`Goal`."""
        return _FIGURE[self.figure].unit

    def limit(self, _run: Report) -> float | None:
        """See :class:`Goal`."""
        return self.at

    def value(self, run: Report) -> Spread | None:
        """See :class:`Goal`."""
        return spread(samples_of(run, self.growth, self.x, self.figure))

    def remarks(self, _run: Report) -> list[str]:
        """See :class:`Goal`."""
        return []


@dataclass(frozen=True, slots=True)
class GrownTimes:
    """A figure of ours at one size as a multiple of what it is at another."""

    growth: str
    x: float
    than: float
    figure: str
    way: Way
    at: float

    def title(self) -> str:
        """See :class:`Goal`."""
        title = _FIGURE[self.figure].title
        return f"{self.growth} = {self.x:g}: {title}, compared to {self.growth} = {self.than:g}"

    def unit(self) -> str:
        """See :class:`Goal`."""
        return "×"

    def limit(self, _run: Report) -> float | None:
        """See :class:`Goal`."""
        return self.at

    def value(self, run: Report) -> Spread | None:
        """See :class:`Goal`."""
        mine = samples_of(run, self.growth, self.x, self.figure)
        others = samples_of(run, self.growth, self.than, self.figure)
        pairs = zip(mine, others, strict=False)
        return spread(one / other for one, other in pairs if other)

    def remarks(self, _run: Report) -> list[str]:
        """See :class:`Goal`."""
        return []


def samples_of(run: Report, growth: str, x: float, figure: str) -> Sequence[float]:
    """What was measured at one size, one value for each repetition."""
    for found in run.growth:
        for point in found.points:
            if (found.key, point.x) == (growth, x):
                return point.samples.get(figure, ())
    return ()


def condition_of(run: Report, key: str) -> ConditionResult | None:
    """The results under one condition."""
    return next((found for found in run.conditions if found.condition.key == key), None)


def system_of(found: ConditionResult | None, key: str) -> SystemResult | None:
    """The results of one system there."""
    systems: Sequence[SystemResult] = () if found is None else found.systems
    return next((system for system in systems if system.key == key), None)


def met(goal: Goal, run: Report) -> bool | None:
    """Does the median reach the limit? ``None``: it wasn't measured."""
    value, limit = goal.value(run), goal.limit(run)
    return None if value is None or limit is None else _HOLDS[goal.way](value.median, limit)


def rows(run: Report) -> list[list[str]]:
    """Goal, wanted, measured, verdict: of the goals that this run says something about."""
    found = []
    for goal in GOALS:
        value, limit, verdict = goal.value(run), goal.limit(run), met(goal, run)
        if value is not None and limit is not None:
            wanted = f"{_SIGN[goal.way]} {_short(limit)} {goal.unit()}"
            measured = _short(value.median)
            if value.lowest != value.highest:
                measured += f" ({_short(value.lowest)}–{_short(value.highest)})"
            if goal.remarks(run):
                measured += f" {REMARKED}"
            found.append([goal.title(), wanted, measured, "reached" if verdict else "**missed**"])
    return found


def _remarks(run: Report, condition: str, system: str) -> list[str]:
    found = system_of(condition_of(run, condition), system)
    return [] if found is None else found.remarks


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _share_of_rate(share: float) -> Callable[[ConditionResult], float]:
    def limit(found: ConditionResult) -> float:
        rate = found.condition.rate
        return share * parse_rate(rate) / 1e6 if rate is not None else float("inf")

    return limit


def _round_trips(count: float) -> Callable[[ConditionResult], float]:
    """Of a chain of seven links."""
    return lambda found: count * 14 * found.condition.delay_ms


GOALS: tuple[Goal, ...] = (
    *(
        Times("plain", figure, times, peer)
        for peer, times in (
            ("tor", 9), ("tor-vanilla", 4.5), ("yggdrasil", 1.25), ("tls-chain", 0.5),
        )
        for figure in ("down_1", "up_1")
    ),
    # Tor's best is the better of the two.
    *(
        Times("plain", figure, 5, peer)
        for figure in ("down_8", "up_8")
        for peer in ("tor", "tor-vanilla")
    ),
    Value("plain", "down_1_cpu", "<=", 28),
    Value("plain", "up_1_cpu", "<=", 28),
    Times("plain", "down_1_cpu", 1 / 6, "tor", "<="),
    Times("plain", "up_1_cpu", 1 / 6, "tor", "<="),
    Value("plain", "down_1_hop", "<=", 4),
    Value("plain", "up_1_hop", "<=", 4),
    Value("plain", "down_1", ">=", 1300, "ours-0"),
    Value("plain", "up_1", ">=", 1300, "ours-0"),
    # A program can be told that it is connected before anything is known: only a byte that has come
    # back says something.
    Value("plain", "connect", "<=", 12),
    Times("plain", "connect", 0.5, "tor", "<="),
    Value("plain", "connects", ">=", 150),
    Value("delayed", "connect", "<=", _round_trips(1.1)),
    Times("delayed", "connect", 0.55, "tor", "<="),
    Value("plain", "echo", "<=", 4),
    Value("plain", "echo_loaded_p95", "<=", 50),
    *(
        Value(condition, figure, ">=", _share_of_rate(share))
        for condition, share in (("limited", 0.9), ("both", 0.85))
        for figure in ("down_1", "up_1")
    ),
    *(
        Times("delayed", figure, times, peer)
        for peer, times in (("tor", 20), ("tls-chain", 0.8))
        for figure in ("down_1", "up_1")
    ),
    Grown("nodes", 12, "path_build", "<=", 0.7),
    Grown("nodes", 17, "start", "<=", 12),
    Value("plain", "memory_relay", "<=", 50 * MB_IN_MIB),
    Value("plain", "memory_client", "<=", 80 * MB_IN_MIB),
    Value("plain", "memory_service", "<=", 80 * MB_IN_MIB),
    Grown("tunnels", 500, "tunnel_relay", "<=", 40 * KB_IN_KIB),
    Grown("tunnels", 3000, "memory_service", "<=", 400 * MB_IN_MIB),
    *(
        goal
        for load in ("", "_tls")
        for goal in (
            GrownTimes("workers", 2, 1, f"tunnels{load}", ">=", 1.3),
            GrownTimes("workers", 2, 1, f"tunnels_relay{load}", "<=", 1.1),
        )
    ),
)  # fmt: skip
"""In the order of what is asked for."""

"""What a run is asked to do, and what comes out of it; the results file is :class:`Report`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec


class Condition(msgspec.Struct, frozen=True):
    """What the links between hosts are like."""

    key: str
    title: str
    delay_ms: float = 0.0
    """One way, between any two hosts."""
    rate: str | None = None
    """Of every host's link, each way, as ``tc`` writes it; ``None``: as fast as the machine."""


class Settings(msgspec.Struct, frozen=True):
    """How much is measured."""

    repetitions: int
    bulk_s: float
    """Each transfer without delay."""
    delayed_bulk_s: float
    """Each transfer with delay, where a connection takes longer to get up to speed."""
    connections: int
    """New connections, one after the other."""
    burst_s: float
    """Connections as fast as they come."""
    echoes: int
    nodes: int
    """Of our own lab."""
    hops: int
    """On each side."""
    far_bulk_s: float = 8.0
    """Each transfer with delay and a rate limit, where it takes longest; earlier
    results don't say."""


class Figure(msgspec.Struct, frozen=True):
    """One row of the tables."""

    key: str
    title: str
    unit: str
    better: Literal["higher", "lower"]
    digits: int = 1


class SystemResult(msgspec.Struct):
    """One system under one condition."""

    key: str
    title: str
    version: str
    samples: dict[str, list[float | None]] = msgspec.field(default_factory=dict)
    """By figure: one value per repetition, ``None`` where the measurement failed."""
    errors: list[str] = msgspec.field(default_factory=list)
    remarks: list[str] = msgspec.field(default_factory=list)
    """What was not as it should be while it was measured, once for each measurement."""

    def add(self, repetition: int, key: str, value: float | None) -> None:
        """Note what a repetition (from 0) gave; those left out before count as failed."""
        values = self.samples.setdefault(key, [])
        values += [None] * (repetition + 1 - len(values))
        values[repetition] = value


class ConditionResult(msgspec.Struct):
    """All systems under one condition."""

    condition: Condition
    busy_before: float
    """How busy the machine was (0 to 1) before any system was started."""
    systems: list[SystemResult] = msgspec.field(default_factory=list)


class Machine(msgspec.Struct, frozen=True):
    """Where it was measured."""

    cpus: int
    model: str
    kernel: str
    memory_gib: float
    python: str


class GrowthPoint(msgspec.Struct):
    """What was measured at one size."""

    x: float
    samples: dict[str, list[float]] = msgspec.field(default_factory=dict)
    """By figure: one value per repetition."""

    def add(self, found: Mapping[str, float]) -> None:
        """Note what a repetition gave."""
        for key, value in found.items():
            self.samples.setdefault(key, []).append(value)


class GrowthResult(msgspec.Struct):
    """How our figures change with one thing."""

    key: str
    title: str
    x_title: str
    busy_before: float
    """How busy the machine was (0 to 1) before anything was started."""
    points: list[GrowthPoint] = msgspec.field(default_factory=list)
    errors: list[str] = msgspec.field(default_factory=list)

    def at(self, x: float) -> GrowthPoint:
        """The point at ``x``, made if there is none."""
        for point in self.points:
            if point.x == x:
                return point
        point = GrowthPoint(x)
        self.points.append(point)
        self.points.sort(key=lambda each: each.x)
        return point


class Report(msgspec.Struct):
    """One run, or several put together."""

    when: str
    """ISO 8601, UTC; of the latest."""
    machine: Machine
    settings: Settings
    conditions: list[ConditionResult] = msgspec.field(default_factory=list)
    growth: list[GrowthResult] = msgspec.field(default_factory=list)


_F = Figure
FIGURES = (
    _F("down_1", "1 stream down", "Mbit/s", "higher"),
    _F("up_1", "1 stream up", "Mbit/s", "higher"),
    _F("down_8", "8 streams down", "Mbit/s", "higher"),
    _F("up_8", "8 streams up", "Mbit/s", "higher"),
    _F("down_1_cpu", "processor, 1 stream down", "CPU-s/GB", "lower"),
    _F("up_1_cpu", "processor, 1 stream up", "CPU-s/GB", "lower"),
    _F("down_8_cpu", "processor, 8 streams down", "CPU-s/GB", "lower"),
    _F("up_8_cpu", "processor, 8 streams up", "CPU-s/GB", "lower"),
    _F("down_1_hop", "processor of one relay, 1 stream down", "CPU-s/GB", "lower", 2),
    _F("up_1_hop", "processor of one relay, 1 stream up", "CPU-s/GB", "lower", 2),
    _F("established", "new connection stands, median", "ms", "lower"),
    _F("connect", "new connection to first byte back, median", "ms", "lower"),
    _F("connect_p95", "new connection to first byte back, p95", "ms", "lower"),
    _F("connects", "connections, sustained", "1/s", "higher"),
    _F("connects_cpu", "processor per connection", "CPU-ms", "lower"),
    _F("echo", "echo idle, median", "ms", "lower", 2),
    _F("echo_p95", "echo idle, p95", "ms", "lower", 2),
    _F("echo_loaded", "echo under 8 streams, median", "ms", "lower"),
    _F("echo_loaded_p95", "echo under 8 streams, p95", "ms", "lower"),
    _F("udp", "UDP, 1200-byte datagrams at 50 Mbit/s", "Mbit/s", "higher"),
    _F("udp_loss", "UDP, loss", "%", "lower", 2),
    _F("udp_jitter", "UDP, jitter", "ms", "lower", 2),
    _F("udp_cpu", "processor, UDP", "CPU-s/GB", "lower"),
    _F("memory_client", "memory, client's side", "MiB", "lower"),
    _F("memory_service", "memory, service's side", "MiB", "lower"),
    _F("memory_relay", "memory, a relay (median)", "MiB", "lower"),
    _F("idle_cpu", "processor when idle, all of it", "% of a core", "lower"),
    _F("start", "start to reachable", "s", "lower"),
)

_ALSO_GROWTH = (
    "down_1", "down_1_cpu", "connect", "echo", "memory_client", "memory_service", "memory_relay",
    "start",
)  # fmt: skip
GROWTH_FIGURES = (
    *(figure for figure in FIGURES if figure.key in _ALSO_GROWTH),
    _F("path_build", "path build, median", "s", "lower", 2),
    _F("opened", "connections opened", "1/s", "higher"),
    _F("tunnel_relay", "memory of an idle tunnel at a relay", "KiB", "lower"),
    _F("tunnels", "16 tunnels", "Mbit/s", "higher", 0),
    _F("tunnels_relay", "processor of the relay", "CPU-s/GB", "lower", 2),
    _F("tunnels_tls", "16 tunnels, TLS at the load's ends too", "Mbit/s", "higher", 0),
    _F(
        "tunnels_relay_tls",
        "processor of the relay, TLS at the load's ends too",
        "CPU-s/GB",
        "lower",
        2,
    ),
    _F("tunnel_edge", "memory of an idle connection at the client's side", "KiB", "lower"),
)

"""Samples in short. Times on a shared machine are noisy; ratios of what was measured right after
each other are less so."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from phantom_tun.lab.bench.model import Figure, SystemResult


@dataclass(frozen=True, slots=True)
class Spread:
    """Some values in short."""

    median: float
    lowest: float
    highest: float


def spread(values: Iterable[float | None]) -> Spread | None:
    """Of what was measured; ``None``: nothing was."""
    known = [value for value in values if value is not None]
    return Spread(statistics.median(known), min(known), max(known)) if known else None


def ratio(figure: Figure, ours: SystemResult, peer: SystemResult) -> Spread | None:
    """How many times better we are, from values of the same repetition; below 1: worse."""
    pairs = zip(ours.samples.get(figure.key, ()), peer.samples.get(figure.key, ()), strict=False)
    found = []
    for mine, theirs in pairs:
        if mine and theirs:
            found.append(mine / theirs if figure.better == "higher" else theirs / mine)
    return spread(found)
